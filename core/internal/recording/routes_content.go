package recording

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"slices"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

// castDeadline bounds each write of a download.
const castDeadline = 30 * time.Second

func (s *Store) serveCast(f *api.Frame, w http.ResponseWriter, req *http.Request) {
	ctx := req.Context()
	r, p, err := s.content(ctx, req.PathValue("id"))
	if err == nil && r.Kind == KindWeb {
		err = api.Conflict("not_terminal", "This is the recording of a web session: play it in the console, or export it as a video.")
	}
	if err == nil {
		// Written first: who cannot be audited sees nothing.
		err = s.note(ctx, audit.RecordingPlayed, p, r, map[string]string{"form": "asciicast"})
	}
	if err != nil {
		f.Fail(w, req, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-asciicast")
	w.Header().Set("Content-Disposition", `attachment; filename="`+r.ID+`.cast"`)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Trailer", trailerStatus+", "+trailerText)
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w)}
	defer out.rc.SetWriteDeadline(time.Time{})
	state, err := s.WriteCast(ctx, out, r)
	if err != nil {
		if !out.wrote {
			if _, damaged := errors.AsType[*DamageError](err); damaged {
				err = api.Conflict("damaged", "The recording is damaged: "+err.Error()+".")
			} else if errors.Is(err, fs.ErrNotExist) {
				err = api.Conflict("damaged", "The recording is damaged: its file is missing.")
			}
			w.Header().Del("Trailer")
			w.Header().Del("Content-Disposition")
			f.Fail(w, req, err)
			return
		}
		s.cfg.Log.Error("recording not sent to its end", "recording", r.ID, "err", err)
		w.Header().Set(trailerStatus, "unsent")
		w.Header().Set(trailerText, "not sent to its end")
		return
	}
	w.Header().Set(trailerStatus, string(state.Status))
	w.Header().Set(trailerText, state.Text)
}

// deadlineWriter gives each write a deadline of its own.
type deadlineWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	wrote bool
}

func (d *deadlineWriter) Write(p []byte) (int, error) {
	if err := d.rc.SetWriteDeadline(time.Now().Add(castDeadline)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	d.wrote = true
	return d.w.Write(p)
}

type eventsIn struct {
	api.IDIn
	Limit int     `query:"limit" minimum:"1" maximum:"5000" default:"1000"`
	After float64 `query:"after" minimum:"0" doc:"seconds; only events later than this"`
}

// TimelineEvent is an event on the timeline.
type TimelineEvent struct {
	Seconds float64           `json:"seconds"`
	Kind    string            `json:"kind"`
	Fields  map[string]string `json:"fields,omitempty"`
	Source  string            `json:"source,omitempty" doc:"node of a web session that told"`
}

// EventsBody is a page of a timeline's events.
type EventsBody struct {
	Items     []TimelineEvent `json:"items"`
	More      bool            `json:"more" doc:"ask again with after = seconds of the last"`
	Integrity *Integrity      `json:"integrity,omitempty" doc:"when read to the end"`
}

type eventsOut struct{ Body EventsBody }

// keepEarliest adds e and keeps the first limit by time.
func (b *EventsBody) keepEarliest(limit int, e TimelineEvent) {
	i, _ := slices.BinarySearchFunc(b.Items, e.Seconds, func(x TimelineEvent, s float64) int {
		if x.Seconds <= s {
			return -1
		}
		return 1
	})
	b.Items = slices.Insert(b.Items, i, e)
	if len(b.Items) > limit {
		b.Items, b.More = b.Items[:limit], true
	}
}

func (s *Store) handleEvents(ctx context.Context, in *eventsIn) (*eventsOut, error) {
	r, p, err := s.content(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.note(ctx, audit.RecordingPlayed, p, r, map[string]string{"form": "events"}); err != nil {
		return nil, err
	}
	x, f, err := s.reader(r)
	if err != nil {
		return nil, damagedProblem(err)
	}
	defer f.Close()
	out := &eventsOut{}
	out.Body.Items = []TimelineEvent{}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		it, err := x.Next()
		if err != nil {
			if state := x.Integrity(); state.Status != "" {
				out.Body.Integrity = &state
				return out, nil
			}
			return nil, err
		}
		if it.Kind != ItemEvent || it.At.Seconds() <= in.After && in.After > 0 {
			continue
		}
		if r.Kind == KindWeb {
			// In the file they stand as the nodes brought them.
			out.Body.keepEarliest(in.Limit, TimelineEvent{Seconds: it.At.Seconds(), Kind: it.Event, Fields: it.Fields, Source: it.Source})
			continue
		}
		if len(out.Body.Items) == in.Limit {
			out.Body.More = true
			return out, nil
		}
		out.Body.Items = append(out.Body.Items, TimelineEvent{Seconds: it.At.Seconds(), Kind: it.Event, Fields: it.Fields, Source: it.Source})
	}
}

func damagedProblem(err error) error {
	if d, ok := errors.AsType[*DamageError](err); ok {
		return api.Conflict("damaged", "The recording is damaged: "+d.Error()+".")
	}
	return err
}

type SearchIn struct {
	api.IDIn
	Query string  `query:"q" required:"true" minLength:"1" maxLength:"200"`
	From  float64 `query:"from" minimum:"0" maximum:"100000000" doc:"seconds; only places at or after"`
	Limit int     `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

type searchOut struct {
	Body struct {
		Hits []Hit `json:"hits"`
	}
}

func (s *Store) handleSearch(ctx context.Context, in *SearchIn) (*searchOut, error) {
	r, p, err := s.content(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.note(ctx, audit.RecordingSearched, p, r, nil); err != nil {
		return nil, err
	}
	hits, err := s.Search(ctx, r, in.Query, time.Duration(in.From*float64(time.Second)), in.Limit)
	if err != nil {
		return nil, damagedProblem(err)
	}
	out := &searchOut{}
	out.Body.Hits = hits
	return out, nil
}

type integrityOut struct{ Body Integrity }

func (s *Store) handleVerify(ctx context.Context, in *api.IDIn) (*integrityOut, error) {
	r, _, err := s.visible(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	state, err := s.Verify(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &integrityOut{Body: state}, nil
}
