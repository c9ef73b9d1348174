package recording

import (
	"context"
	"errors"
	"net/http"
	"os/exec"
	"strconv"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

func (s *Store) exportRoutes(f *api.Frame) {
	const tag = "recordings"
	api.Register(f, api.Op{
		Method: "POST", Path: "/recordings/{id}/exports", ID: "create-recording-export", Tag: tag, Who: api.Self(), Status: 202,
		Summary: "Make a video of a web session: WebM (VP9) or MP4 (H.264); kept for an hour by the core that made it",
	}, s.handleExport)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/exports", ID: "list-recording-exports", Tag: tag, Who: api.Self(),
		Summary: "List one's own videos of a web session",
	}, s.handleExports)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/exports/{export}", ID: "get-recording-export", Tag: tag, Who: api.Self(),
		Summary: "How far a video is",
	}, s.handleExportState)
	api.Register(f, api.Op{
		Method: "DELETE", Path: "/recordings/{id}/exports/{export}", ID: "delete-recording-export", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Stop making a video, or remove it",
	}, s.handleExportDrop)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/exports/{export}/file", ID: "get-recording-export-file", Tag: tag, Who: api.Self(), Type: "video/webm",
		Summary: "Download a finished video",
	}, func(w http.ResponseWriter, r *http.Request) { s.serveExport(f, w, r) })
}

// ExportIn asks for a video.
type ExportIn struct {
	Format Format  `json:"format" enum:"webm,mp4"`
	From   float64 `json:"from,omitempty" minimum:"0" doc:"seconds since the start"`
	To     float64 `json:"to,omitempty" minimum:"0" doc:"seconds since the start; 0: to the end"`
	Events bool    `json:"events,omitempty" doc:"with a line under the picture: the time and what happened last"`
}

type exportIn struct {
	api.IDIn
	Body ExportIn
}

type exportOut struct{ Body Export }

func (s *Store) handleExport(ctx context.Context, in *exportIn) (*exportOut, error) {
	r, v, f, err := s.openWeb(ctx, in.ID, "keyframes")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := api.PrincipalFrom(ctx)
	if _, err := exec.LookPath(s.cfg.FFmpeg); err != nil {
		return nil, api.Unavailable("no_ffmpeg", "Videos cannot be made: "+ErrNoFFmpeg.Error()+".")
	}
	c := clip{format: in.Body.Format, from: micro(in.Body.From), to: micro(in.Body.To), events: in.Body.Events, started: r.StartedAt}
	if c.to == 0 || c.to > v.last {
		c.to = v.last
	}
	switch {
	case len(v.frames) == 0:
		return nil, api.Conflict("no_picture", "This recording has no picture.")
	case c.to <= c.from:
		return nil, api.Invalid(api.FieldError{Field: "body.from", Message: "must be before the end"})
	case c.to-c.from > exportLongest:
		return nil, api.Invalid(api.FieldError{Field: "body.to", Message: "at most 24 hours in one video"})
	}
	// Written first: who cannot be audited gets nothing.
	if err := s.note(ctx, audit.RecordingExported, p, r, map[string]string{
		"form": string(c.format), "from": strconv.FormatFloat(in.Body.From, 'f', 3, 64), "to": strconv.FormatFloat(c.to.Seconds(), 'f', 3, 64),
	}); err != nil {
		return nil, err
	}
	x, err := s.export(p.UserID, r, c)
	if errors.Is(err, errTooMany) {
		return nil, api.Limited("Too many videos are being made or kept: delete one, or wait.", 60)
	}
	return &exportOut{Body: x}, err
}

func micro(s float64) time.Duration { return time.Duration(s*1e6) * time.Microsecond }

type exportsOut struct {
	Body struct {
		Items []Export `json:"items"`
	}
}

func (s *Store) handleExports(ctx context.Context, in *api.IDIn) (*exportsOut, error) {
	r, p, err := s.content(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &exportsOut{}
	out.Body.Items = []Export{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.exports {
		if x.user == p.UserID && x.Recording == r.ID {
			out.Body.Items = append(out.Body.Items, *x)
		}
	}
	return out, nil
}

type ExportIDIn struct {
	api.IDIn
	Export string `path:"export" maxLength:"64"`
}

// lostVideo is said of a video that is not on the list: the list ends with core.
const lostVideo = "It is not kept any more: a video lasts an hour, and not over a restart of core. Ask for it again."

// ownExport returns the caller's export of a recording that he still may see.
func (s *Store) ownExport(ctx context.Context, recordingID, id string) (*Recording, *api.Principal, Export, error) {
	r, p, err := s.content(ctx, recordingID)
	if err != nil {
		return nil, nil, Export{}, err
	}
	x, ok := s.exportOf(p.UserID, r.ID, id)
	if !ok {
		return nil, nil, Export{}, api.Missing("video", lostVideo)
	}
	return r, p, x, nil
}

type exportStateIn struct {
	ExportIDIn
	Wait float64 `query:"wait" minimum:"0" maximum:"25" doc:"seconds to wait for something new"`
}

func (s *Store) handleExportState(ctx context.Context, in *exportStateIn) (*exportOut, error) {
	_, _, x, err := s.ownExport(ctx, in.ID, in.Export)
	if err != nil {
		return nil, err
	}
	over := time.NewTimer(micro(in.Wait))
	defer over.Stop()
	t := time.NewTicker(followPause)
	defer t.Stop()
	ended := func() bool { return x.State == "done" || x.State == "failed" }
	for was := x; !ended() && x.State == was.State && x.Progress < was.Progress+0.01; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-over.C:
			return &exportOut{Body: x}, nil
		case <-t.C:
		}
		now, ok := s.exportOf(x.user, in.ID, in.Export)
		if !ok {
			return nil, api.Missing("video", lostVideo)
		}
		x = now
	}
	return &exportOut{Body: x}, nil
}

func (s *Store) handleExportDrop(ctx context.Context, in *ExportIDIn) (*struct{}, error) {
	_, _, x, err := s.ownExport(ctx, in.ID, in.Export)
	if err != nil {
		return nil, err
	}
	return nil, s.dropExport(x.ID)
}

func (s *Store) serveExport(f *api.Frame, w http.ResponseWriter, req *http.Request) {
	ctx := req.Context()
	r, p, x, err := s.ownExport(ctx, req.PathValue("id"), req.PathValue("export"))
	if err == nil && x.State != "done" {
		err = api.Conflict("not_done", "The video is not made yet.")
	}
	if err == nil {
		err = s.note(ctx, audit.RecordingExported, p, r, map[string]string{"form": string(x.Format), "step": "sent"})
	}
	if err != nil {
		f.Fail(w, req, err)
		return
	}
	w.Header().Set("Content-Type", "video/"+string(x.Format))
	w.Header().Set("Content-Disposition", `attachment; filename="`+r.ID+`.`+string(x.Format)+`"`)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.FormatInt(x.Size, 10))
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w)}
	defer out.rc.SetWriteDeadline(time.Time{})
	if err := s.copyExport(ctx, out, x); err != nil {
		if !out.wrote {
			w.Header().Del("Content-Length")
			w.Header().Del("Content-Disposition")
			f.Fail(w, req, err)
			return
		}
		s.cfg.Log.Error("video not sent to its end", "recording", r.ID, "err", err)
	}
}
