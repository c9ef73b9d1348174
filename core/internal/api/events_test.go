package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// revocable is an Authenticator whose logins end when they are revoked.
type revocable struct {
	mu      sync.Mutex
	revoked map[string]bool // guarded by mu
}

func (a *revocable) Authenticate(r *http.Request, source netip.Addr) (*Principal, error) {
	p, err := people.Authenticate(r, source)
	a.mu.Lock()
	defer a.mu.Unlock()
	if p != nil && a.revoked[p.UserName] {
		return nil, Unauthenticated("It was revoked.")
	}
	return p, err
}

func (a *revocable) revoke(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked[name] = true
}

// stream is an open event stream; lines holds its data lines and comments.
type stream struct {
	t     *testing.T
	lines chan string
	done  context.CancelFunc
}

func openStream(t *testing.T, s *httptest.Server, token string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/api/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("event stream: %d %s", res.StatusCode, res.Header.Get("Content-Type"))
	}
	st := &stream{t, make(chan string, 1000), cancel}
	go func() {
		defer close(st.lines)
		defer res.Body.Close()
		sc := bufio.NewScanner(res.Body)
		for sc.Scan() {
			if line := sc.Text(); line != "" {
				st.lines <- line
			}
		}
	}()
	st.want("retry: 3000")
	t.Cleanup(func() {
		cancel()
		for range st.lines { // until the reader has ended
		}
	})
	return st
}

// want reads lines until one equals text; heartbeats are passed over.
func (s *stream) want(text string) {
	s.t.Helper()
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				s.t.Fatalf("the stream ended before %q", text)
			}
			if line == text {
				return
			}
			if line != ": alive" && !strings.HasPrefix(line, "event: ") {
				s.t.Fatalf("got %q before %q", line, text)
			}
		case <-time.After(time.Minute):
			s.t.Fatalf("no %q", text)
		}
	}
}

func (s *stream) ended() {
	s.t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case _, ok := <-s.lines:
			if !ok {
				return
			}
		case <-deadline:
			s.t.Fatal("the stream goes on")
		}
	}
}

func eventFrame(t *testing.T, d *db.DB, auth Authenticator, heartbeat time.Duration) (*Frame, *httptest.Server) {
	t.Helper()
	f, err := New(Config{Auth: auth, DB: d, Log: slog.New(slog.DiscardHandler), Heartbeat: heartbeat})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(f.Handler())
	t.Cleanup(s.Close)
	t.Cleanup(f.Close)
	return f, s
}

func notify(t *testing.T, d *db.DB, topic, id string) {
	t.Helper()
	if err := d.Tx(t.Context(), func(tx *db.Tx) error { return tx.Notify(t.Context(), topic, id) }); err != nil {
		t.Fatal(err)
	}
}

func TestEventsByPermission(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		f, s := eventFrame(t, d, people, time.Hour)
		admin, viewer, nothing := openStream(t, s, "admin"), openStream(t, s, "viewer"), openStream(t, s, "nothing")
		waitListening(t, d)
		notify(t, d, "target", "tgt_1")
		notify(t, d, "user", "usr_1")
		notify(t, d, "secret", "sec_1") // nobody here may see it
		notify(t, d, "user", "usr_2")
		for _, id := range []string{"usr_1", "usr_2"} {
			viewer.want(`data: {"topic":"user","id":"` + id + `"}`)
		}
		admin.want(`data: {"topic":"target","id":"tgt_1"}`)
		admin.want(`data: {"topic":"user","id":"usr_1"}`)
		admin.want(`data: {"topic":"user","id":"usr_2"}`)
		f.Publish(Event{Topic: "connection", ID: "con_1", UserID: "usr_nothing", Data: []byte(`{"bytes":7}`)})
		nothing.want(`data: {"topic":"connection","id":"con_1","data":{"bytes":7}}`)
		f.Publish(Event{Topic: db.TopicResync})
		for _, st := range []*stream{admin, viewer, nothing} {
			st.want("data: {}")
		}
	})
}

// waitListening returns when notes reach subscribers: the listener of a fresh
// PostgreSQL database may still be connecting.
func waitListening(t *testing.T, d *db.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ch := d.Subscribe(ctx)
	for {
		notify(t, d, "ready", "")
		wait, stop := context.WithTimeout(ctx, 50*time.Millisecond)
		select {
		case n := <-ch:
			stop()
			if n.Topic == "ready" {
				return
			}
		case <-wait.Done():
			stop()
		}
		if ctx.Err() != nil {
			t.Fatal("no note arrives")
		}
	}
}

func TestEventsEndWithTheLogin(t *testing.T) {
	t.Run("on a change", func(t *testing.T) {
		d, auth := dbtest.SQLite(t), &revocable{revoked: map[string]bool{}}
		_, s := eventFrame(t, d, auth, time.Hour)
		st := openStream(t, s, "admin")
		auth.revoke("admin")
		notify(t, d, "token", "tok_1")
		st.ended()
	})
	t.Run("at a heartbeat", func(t *testing.T) {
		d, auth := dbtest.SQLite(t), &revocable{revoked: map[string]bool{}}
		_, s := eventFrame(t, d, auth, time.Millisecond)
		st := openStream(t, s, "admin")
		st.want(": alive")
		auth.revoke("admin")
		st.ended()
	})
	t.Run("at shutdown", func(t *testing.T) {
		f, s := eventFrame(t, dbtest.SQLite(t), people, time.Hour)
		st := openStream(t, s, "admin")
		f.Close()
		st.ended()
		res, body := call1(t, f, "GET", "/api/v1/events", sent{token: "admin"})
		if res.StatusCode != 503 {
			t.Errorf("a stream opened after Close: %d %s", res.StatusCode, body)
		}
	})
}

func TestEventsAreBounded(t *testing.T) {
	h := newHub()
	slow, problem := h.add("usr_1")
	if problem != nil {
		t.Fatal(problem)
	}
	for i := range streamQueue + 10 {
		h.publish(Event{Topic: "connection", ID: itoa(i)})
	}
	first := <-slow
	if first.Topic != db.TopicResync || len(slow) != 9 {
		t.Errorf("a slow stream holds %+v and %d more, want a resync and what came after it", first, len(slow))
	}
	for range streamsPerUser - 1 {
		if _, problem := h.add("usr_1"); problem != nil {
			t.Fatal(problem)
		}
	}
	if _, problem := h.add("usr_1"); problem == nil || problem.Status != 429 {
		t.Errorf("too many streams of one user: %+v", problem)
	}
	if _, problem := h.add("usr_2"); problem != nil {
		t.Errorf("another user: %+v", problem)
	}
	h.remove(slow)
	h.remove(slow)
	if _, problem := h.add("usr_1"); problem != nil {
		t.Errorf("after one closed: %+v", problem)
	}
}

func TestStreamsLeakNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	d, err := db.Open(t.Context(), db.Config{Engine: db.SQLite, Path: t.TempDir() + "/core.db"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := New(Config{Auth: people, DB: d, Log: slog.New(slog.DiscardHandler), Heartbeat: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(f.Handler())
	defer s.Close()
	defer s.Client().CloseIdleConnections()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/api/v1/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer admin")
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		cancel()
		res.Body.Close()
	}
	f.Close()
	s.Close()
	if n := len(f.events.streams); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// deadlines is an answer that remembers its last write deadline.
type deadlines struct {
	*httptest.ResponseRecorder
	last time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.last = t; return nil }
func (d *deadlines) FlushError() error {
	if d.last.IsZero() {
		return errors.New("written without a deadline")
	}
	return nil
}

// Over HTTP/2 a deadline that passes ends the stream, written to or not: none
// may be left between two events.
func TestEventsLeaveNoDeadline(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	out := &eventWriter{w: w, rc: http.NewResponseController(w)}
	if err := out.send(": alive\n\n"); err != nil {
		t.Fatal(err)
	}
	if !w.last.IsZero() {
		t.Errorf("the stream ends at %s", w.last)
	}
}

// What belongs to a user he hears about without a permission; others do not.
func TestOwnEvents(t *testing.T) {
	me, other := &Principal{UserID: "usr_1"}, &Principal{UserID: "usr_2"}
	viewer := &Principal{UserID: "usr_3", Permissions: map[Permission]bool{ConnectionsView: true, UsersView: true}}
	for _, tc := range []struct {
		note              db.Note
		topic, id         string
		me, other, viewer bool
	}{
		{db.Note{Topic: "connection", ID: "con_1"}, "connection", "con_1", false, false, true},
		{db.Note{Topic: "connection.own", ID: "usr_1"}, "connection", "", true, false, false},
		{db.Note{Topic: "user", ID: "usr_1"}, "user", "usr_1", true, false, true},
		{db.Note{Topic: "preference", ID: "usr_1"}, "preference", "usr_1", true, false, false},
	} {
		e := noted(tc.note)
		if e.Topic != tc.topic || e.ID != tc.id {
			t.Errorf("%v: event %+v", tc.note, e)
		}
		for _, who := range []struct {
			p    *Principal
			want bool
		}{{me, tc.me}, {other, tc.other}, {viewer, tc.viewer}} {
			if got := visible(who.p, e); got != who.want {
				t.Errorf("%v to %s: visible %v, want %v", tc.note, who.p.UserID, got, who.want)
			}
		}
	}
}
