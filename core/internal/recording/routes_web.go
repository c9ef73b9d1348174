package recording

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

// Bounds of answers about web recordings.
const (
	// maxWait is how long a request may wait for something to happen.
	maxWait = 25 * time.Second
	// maxFrames is the most bytes of frames in one answer.
	maxFrames = 64 << 20
	// viewedFor is how long after the audit event about a view, what belongs to
	// the same view is not noted again: a player asks for a recording in pieces.
	viewedFor = 10 * time.Minute
	maxViewed = 10000
	// activityBars is how many bars the picture of activity has.
	activityBars = 200
	// quietFrom is from when on a time without frames and events is idle.
	quietFrom = 2 * time.Second
)

// webRoutes registers what only web recordings have.
func (s *Store) webRoutes(f *api.Frame) {
	const tag = "recordings"
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/timeline", ID: "get-recording-timeline", Tag: tag, Who: api.Self(),
		Summary: "List what happened in a web session: requests, clipboard, files, injections; by time once it is over, while it is live as it arrives",
	}, s.handleTimeline)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/keyframes", ID: "list-recording-keyframes", Tag: tag, Who: api.Self(),
		Summary: "Where a web session's picture can be entered, how active it was, and when nothing happened",
	}, s.handleKeyframes)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/frames", ID: "get-recording-frames", Tag: tag, Who: api.Self(), Type: "application/octet-stream",
		Summary: "A web session's frames: entries of 4 bytes length, 8 bytes microseconds since the start (big-endian), frame; an entry without frame ends them and says up to when they are all there: ask for more with after",
	}, func(w http.ResponseWriter, r *http.Request) { s.serveFrames(f, w, r) })
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/picture", ID: "get-recording-picture", Tag: tag, Who: api.Self(), Type: "image/png",
		Summary: "A web session's picture at a moment: at = seconds since the start",
	}, func(w http.ResponseWriter, r *http.Request) { s.servePicture(f, w, r) })
	s.exportRoutes(f)
}

// Moment is an event of a web session.
type Moment struct {
	T      float64           `json:"t" doc:"seconds since the start"`
	Kind   string            `json:"kind"`
	Source string            `json:"source,omitempty" doc:"the node that told; empty: core"`
	Fields map[string]string `json:"fields"`
	Cut    bool              `json:"cut,omitempty" doc:"long values are cut; list-recording-events has them whole"`
}

type timelineIn struct {
	api.IDIn
	After int    `query:"after" minimum:"0" doc:"go on here: next of the answer before"`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"1000"`
	Query string `query:"q" maxLength:"200" doc:"only events with this text in their kind or values, ignoring case"`
	Kind  string `query:"kind" maxLength:"200" doc:"only these kinds, separated by commas"`
}

type timelineOut struct {
	Body struct {
		Events    []Moment   `json:"events"`
		Next      int        `json:"next" doc:"ask again with after = next"`
		More      bool       `json:"more"`
		Integrity *Integrity `json:"integrity"`
	}
}

// has reports whether want, in lower case, is in the event.
func (m *Moment) has(want string) bool {
	if strings.Contains(strings.ToLower(m.Kind), want) {
		return true
	}
	for v := range maps.Values(m.Fields) {
		if strings.Contains(strings.ToLower(v), want) {
			return true
		}
	}
	return false
}

// openWeb returns what a web recording that the caller may see holds now. The
// caller closes the file.
func (s *Store) openWeb(ctx context.Context, id, form string) (*Recording, *webView, *os.File, error) {
	r, p, err := s.content(ctx, id)
	if err != nil {
		return nil, nil, nil, err
	}
	if r.Kind != KindWeb {
		return nil, nil, nil, api.Conflict("not_web", "This is no recording of a web session: it has no picture.")
	}
	// Written first: who cannot be audited sees nothing.
	if err := s.noteView(ctx, p, r, form); err != nil {
		return nil, nil, nil, err
	}
	f, err := s.openFile(r.ID, kindRec, r.StartedAt)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil, api.Conflict("damaged", "The recording is damaged: its file is missing.")
	}
	if err != nil {
		return nil, nil, nil, err
	}
	v, err := s.view(ctx, r, f)
	if err != nil {
		f.Close()
		return nil, nil, nil, damagedProblem(err)
	}
	return r, v, f, nil
}

// noteView audits that p sees r, once for the pieces of one view.
func (s *Store) noteView(ctx context.Context, p *api.Principal, r *Recording, form string) error {
	key, now := p.UserID+" "+r.ID+" "+form, time.Now()
	s.mu.Lock()
	last, known := s.viewed[key]
	s.mu.Unlock()
	if known && now.Sub(last) < viewedFor {
		return nil
	}
	if err := s.note(ctx, audit.RecordingPlayed, p, r, map[string]string{"form": form}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.viewed) >= maxViewed {
		maps.DeleteFunc(s.viewed, func(_ string, t time.Time) bool { return now.Sub(t) >= viewedFor })
	}
	if len(s.viewed) < maxViewed {
		s.viewed[key] = now
	}
	return nil
}

func (s *Store) handleTimeline(ctx context.Context, in *timelineIn) (*timelineOut, error) {
	_, v, f, err := s.openWeb(ctx, in.ID, "timeline")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := &timelineOut{}
	b := &out.Body
	b.Events, b.Integrity, b.Next = []Moment{}, &v.state, min(in.After, len(v.events))
	want, kinds := strings.ToLower(in.Query), strings.FieldsFunc(in.Kind, func(r rune) bool { return r == ',' })
	for _, e := range v.events[b.Next:] {
		if len(b.Events) == in.Limit {
			b.More = true
			break
		}
		b.Next++
		if (len(kinds) == 0 || slices.Contains(kinds, e.Kind)) && (want == "" || e.has(want)) {
			b.Events = append(b.Events, e)
		}
	}
	return out, nil
}

// Keyframe is a moment at which the picture can be entered.
type Keyframe struct {
	T float64 `json:"t"`
}

// Span is a stretch of time, in seconds since the start.
type Span struct {
	From float64 `json:"from"`
	To   float64 `json:"to"`
}

type keyframesOut struct {
	Body struct {
		Keyframes []Keyframe `json:"keyframes"`
		Frames    int        `json:"frames"`
		Duration  float64    `json:"duration_s"`
		Live      bool       `json:"live"`
		Width     int        `json:"width" doc:"largest picture, pixels"`
		Height    int        `json:"height"`
		// Activity are the bytes of frames in equal parts of the duration.
		Activity  []int64   `json:"activity" doc:"bytes of frames in equal parts of the duration"`
		Idle      []Span    `json:"idle" doc:"when nothing happened for 2 s or more"`
		Integrity Integrity `json:"integrity"`
	}
}

func (s *Store) handleKeyframes(ctx context.Context, in *api.IDIn) (*keyframesOut, error) {
	r, v, f, err := s.openWeb(ctx, in.ID, "keyframes")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := &keyframesOut{}
	b := &out.Body
	b.Keyframes, b.Idle, b.Integrity, b.Frames = []Keyframe{}, v.idle(), v.state, len(v.frames)
	b.Live, b.Duration, b.Activity = v.state.Status == Live, v.last.Seconds(), make([]int64, activityBars)
	for _, fr := range v.frames {
		if fr.key {
			b.Keyframes = append(b.Keyframes, Keyframe{T: fr.at.Seconds()})
			b.Width, b.Height = max(b.Width, int(fr.w)), max(b.Height, int(fr.h))
		}
		b.Activity[min(int(activityBars*fr.at/(v.last+1)), activityBars-1)] += int64(fr.size)
	}
	if b.Width == 0 {
		b.Width, b.Height = r.Width, r.Height
	}
	return out, nil
}

// idle is when there was neither frame nor event.
func (v *webView) idle() []Span {
	at := make([]float64, 0, len(v.frames)+len(v.events)+1)
	for _, fr := range v.frames {
		at = append(at, fr.at.Seconds())
	}
	for _, e := range v.events {
		at = append(at, e.T)
	}
	slices.Sort(at)
	spans, last := []Span{}, 0.0
	for _, t := range append(at, v.last.Seconds()) {
		if t-last >= quietFrom.Seconds() {
			spans = append(spans, Span{From: last, To: t})
		}
		last = t
	}
	return spans
}

// seconds reads a time from a query; ok is false when it is not there.
func seconds(req *http.Request, name string) (d time.Duration, ok bool, err error) {
	text := req.URL.Query().Get(name)
	if text == "" {
		return 0, false, nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || v < 0 || v > 1e8 {
		return 0, false, api.Invalid(api.FieldError{Field: "query." + name, Message: "must be seconds since the start"})
	}
	return time.Duration(math.Round(v*1e6)) * time.Microsecond, true, nil
}

// serveFrames answers with the frames from the last keyframe at or before
// "from", or those later than "after", up to "to". With "wait" it waits for a
// live recording to go on.
func (s *Store) serveFrames(fr *api.Frame, w http.ResponseWriter, req *http.Request) {
	from, _, err1 := seconds(req, "from")
	after, next, err2 := seconds(req, "after")
	to, bounded, err3 := seconds(req, "to")
	wait, _, err4 := seconds(req, "wait")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		fr.Fail(w, req, err)
		return
	}
	if !bounded {
		to = 1 << 60
	}
	ctx := req.Context()
	r, v, f, err := s.openWeb(ctx, req.PathValue("id"), "frames")
	if err != nil {
		fr.Fail(w, req, err)
		return
	}
	defer f.Close()
	pick := func() []webFrame {
		if next {
			return v.after(after, to)
		}
		return v.since(from, to)
	}
	list := pick()
	if len(list) == 0 && v.state.Status == Live && wait > 0 {
		if v, err = s.waitFor(ctx, r, f, min(wait, maxWait), func(n *webView) bool { v = n; return len(pick()) > 0 }); err != nil {
			fr.Fail(w, req, damagedProblem(err))
			return
		}
		list = pick()
	}
	// What is sent is all up to here; a live recording may yet get frames that
	// happened before what it has.
	done := min(to, v.last)
	if v.state.Status == Live {
		if done = max(from, after); len(list) > 0 {
			done = list[len(list)-1].at
		}
	}
	s.sendFrames(fr, w, req, r, v, f, list, done)
}

// waitFor looks at a live recording until enough is there, it ends, or the time
// is over.
func (s *Store) waitFor(ctx context.Context, r *Recording, f *os.File, most time.Duration, enough func(*webView) bool) (*webView, error) {
	s.mu.Lock()
	writer := s.writers[r.ID]
	s.mu.Unlock()
	if writer != nil {
		defer writer.hasten()()
	}
	over := time.NewTimer(most)
	defer over.Stop()
	t := time.NewTicker(followPause)
	defer t.Stop()
	for looks := 1; ; looks++ {
		progress := writer.taken()
		v, err := s.view(ctx, r, f)
		if err != nil || enough(v) || v.state.Status != Live {
			return v, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-over.C:
			return v, nil
		case <-progress:
		case <-t.C:
		}
		if looks%8 == 0 {
			if r, err = s.Get(ctx, s.cfg.DB, r.ID); err != nil {
				return nil, err
			}
		}
	}
}

func (s *Store) sendFrames(fr *api.Frame, w http.ResponseWriter, req *http.Request, r *Recording, v *webView, f *os.File, list []webFrame, done time.Duration) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w)}
	defer out.rc.SetWriteDeadline(time.Time{})
	in := &frameReader{f: f, parts: v.parts}
	sent := 0
	var head []byte
	for i, x := range list {
		if sent > maxFrames && x.at > list[i-1].at {
			done = list[i-1].at // the rest is asked for again
			break
		}
		data, err := in.read(x)
		if err == nil {
			head = binary.BigEndian.AppendUint32(head[:0], uint32(len(data)))
			head = binary.BigEndian.AppendUint64(head, uint64(x.at/time.Microsecond))
			if _, err = out.Write(head); err == nil {
				_, err = out.Write(data)
			}
		}
		if err != nil {
			if !out.wrote {
				fr.Fail(w, req, damagedProblem(err))
				return
			}
			// Without the last entry the client knows that it is not all.
			s.cfg.Log.Error("frames of a recording not sent to their end", "recording", r.ID, "err", err)
			return
		}
		sent += len(data)
	}
	head = binary.BigEndian.AppendUint32(head[:0], 0)
	head = binary.BigEndian.AppendUint64(head, uint64(done/time.Microsecond))
	if _, err := out.Write(head); err != nil {
		s.cfg.Log.Debug("frames of a recording not sent to their end", "recording", r.ID, "err", err)
	}
}
