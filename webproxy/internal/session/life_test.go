package session

import (
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/control"
	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = strings.Repeat("k", 43)

// fleet is a manager with the tunnel to a core that takes all records.
type fleet struct {
	*Manager
	t    *testing.T
	up   atomic.Bool // the tunnel
	gone atomic.Bool // core does not know its sessions any more

	mu    sync.Mutex
	next  map[string]uint64 // guarded by mu; records core has, by session
	ended []wire.WebEnded   // guarded by mu
}

// newFleet runs a manager; everything of it ends with the test, or by the
// function it returns. Use it inside a bubble.
func newFleet(t *testing.T, change func(*Config)) (*fleet, func()) {
	f := &fleet{t: t, next: map[string]uint64{}}
	f.up.Store(true)
	near, far := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	c := Config{Max: 3, Address: "proxy.test:18443", Resolver: net.DefaultResolver, System: x509.NewCertPool(), Log: slog.New(slog.DiscardHandler),
		Tunnel: func() tunnel.Session {
			if f.up.Load() {
				return near
			}
			return nil
		}}
	if change != nil {
		change(&c)
	}
	f.Manager = NewManager(c)
	ctx, stop := context.WithCancel(t.Context())
	cctx, stopCore := context.WithCancel(t.Context())
	var manager, core sync.WaitGroup
	manager.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	l, srv := control.NewListener(), &http.Server{Handler: f.core()}
	core.Go(func() { srv.Serve(l) })
	core.Go(func() {
		for {
			s, err := far.Accept(cctx)
			if err != nil {
				return
			}
			s.Confirm()
			l.Push(s)
		}
	})
	end := sync.OnceFunc(func() {
		stop()
		manager.Wait() // sessions deliver their last records
		stopCore()
		srv.Close()
		l.Close()
		near.Close(nil)
		far.Close(nil)
		core.Wait()
	})
	t.Cleanup(end)
	return f, end
}

func (f *fleet) core() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.PathWebRecords, func(w http.ResponseWriter, r *http.Request) {
		b, err := plain(r)
		if err != nil {
			f.t.Error(err)
		}
		list, err := wire.ParseWebRecords(b)
		if err != nil {
			f.t.Error(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		id := r.URL.Query().Get("session")
		f.next[id] += uint64(len(list))
		control.Reply(w, wire.WebRecordsAck{Next: f.next[id] + 1, Gone: f.gone.Load()})
	})
	mux.HandleFunc("POST "+wire.PathWebEnded, func(w http.ResponseWriter, r *http.Request) {
		var e wire.WebEnded
		if !control.Read(w, r, &e) {
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ended = append(f.ended, e)
	})
	return mux
}

// told is what core was told of ends.
func (f *fleet) told() []wire.WebEnded {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]wire.WebEnded{}, f.ended...)
}

func (f *fleet) put(id string, revision uint64, change func(*wire.WebProxySession, *webrule.Policy)) wire.WebAck {
	f.t.Helper()
	in, p := wire.WebProxySession{ID: id, Revision: revision, User: "ann", Target: "wiki", StartURL: "https://wiki.example/", Carrier: "nod_c", Key: key, LeaseS: 60}, webrule.Policy{}
	if change != nil {
		change(&in, &p)
	}
	if in.Policy == nil {
		b, err := json.Marshal(p)
		if err != nil {
			f.t.Fatal(err)
		}
		in.Policy = b
	}
	return f.Put(in)
}

// opened is a session that is there.
func (f *fleet) opened(id string) *Session {
	f.t.Helper()
	if ack := f.put(id, 1, nil); ack.Error != nil {
		f.t.Fatal(ack.Error)
	}
	return f.Find(id)
}

// What is no session is refused, says why, and leaves nothing.
func TestPutRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		for name, x := range map[string]struct {
			change func(*wire.WebProxySession, *webrule.Policy)
			code   wire.Code
		}{
			"no ID":         {func(s *wire.WebProxySession, _ *webrule.Policy) { s.ID = "" }, wire.CodeBadRequest},
			"long ID":       {func(s *wire.WebProxySession, _ *webrule.Policy) { s.ID = strings.Repeat("x", wire.MaxConnection+1) }, wire.CodeBadRequest},
			"short key":     {func(s *wire.WebProxySession, _ *webrule.Policy) { s.Key = key[:31] }, wire.CodeBadRequest},
			"no revision":   {func(s *wire.WebProxySession, _ *webrule.Policy) { s.Revision = 0 }, wire.CodeBadRequest},
			"unknown rules": {func(s *wire.WebProxySession, _ *webrule.Policy) { s.Policy = json.RawMessage(`{"allow_all":true}`) }, wire.CodeVersion},
			"no rules":      {func(s *wire.WebProxySession, _ *webrule.Policy) { s.Policy = json.RawMessage(`nothing`) }, wire.CodeVersion},
			"bad start":     {func(s *wire.WebProxySession, _ *webrule.Policy) { s.StartURL = "file:///etc/passwd" }, wire.CodeBadRequest},
			"bad scanner":   {func(s *wire.WebProxySession, _ *webrule.Policy) { s.ScanURL = "gopher://scan" }, wire.CodeBadRequest},
			"bad anchors":   {func(_ *wire.WebProxySession, p *webrule.Policy) { p.TLS.Anchors = "no certificate" }, wire.CodeBadRequest},
		} {
			if ack := f.put("con_1", 1, x.change); ack.Error == nil || ack.Error.Code != x.code || ack.Error.Public == "" {
				t.Errorf("%s: %+v, want a refusal of code %v", name, ack.Error, x.code)
			}
			if len(f.States().Sessions) != 0 {
				t.Fatalf("%s: there is a session", name)
			}
		}
	})
}

// A number of sessions fits; who leaves makes room.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		for i := range 3 {
			f.opened(fmt.Sprint("con_", i))
		}
		if ack := f.put("con_3", 1, nil); ack.Error == nil || ack.Error.Code != wire.CodeLimit {
			t.Errorf("a fourth: %+v", ack)
		}
		var st wire.Status
		if f.Status(&st); st.Web == nil || st.Web.Live != 3 || st.Web.Max != 3 || st.Web.Room != 0 || st.Web.Address != "proxy.test:18443" {
			t.Errorf("status %+v", st.Web)
		}
		if ack := f.put("con_2", 2, nil); ack.Error != nil {
			t.Errorf("a revision of one that is there: %+v", ack)
		}
		if ack := f.End(t.Context(), "con_1"); ack.Error != nil {
			t.Errorf("end: %+v", ack)
		}
		if ack := f.put("con_3", 1, nil); ack.Error != nil {
			t.Errorf("after one has ended: %+v", ack)
		}
		if f.Status(&st); st.Web.Room != 0 {
			t.Errorf("room %d, want none", st.Web.Room)
		}
	})
}

// Revisions come in any order; the highest holds, and nothing goes back.
func TestRevisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		other := func(s *wire.WebProxySession, _ *webrule.Policy) { s.Carrier = "nod_other" }
		if ack := f.put("con_1", 5, nil); ack.Revision != 5 || ack.Error != nil {
			t.Fatalf("first: %+v", ack)
		}
		s := f.Find("con_1")
		for _, old := range []uint64{1, 4, 5} {
			if ack := f.put("con_1", old, other); ack.Revision != 5 || ack.Error != nil || s.Revision().Number != 5 || !s.Admits("nod_c", key) {
				t.Errorf("revision %d after 5: %+v, holds %d", old, ack, s.Revision().Number)
			}
		}
		if ack := f.put("con_1", 9, other); ack.Revision != 9 || !s.Admits("nod_other", key) || s.Admits("nod_c", key) {
			t.Errorf("revision 9: %+v", ack)
		}
		if s.Admits("nod_other", key+"x") || s.Admits("", key) {
			t.Error("another key or no carrier is admitted")
		}
		if f.Find("con_1") != s {
			t.Error("a revision made another session")
		}
	})
}

// New rules cut what they do not allow and nothing else; another carrier or key
// cuts the connections.
func TestRevisionCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		s := f.opened("con_1")
		request := func(path string) webrule.Meant {
			return webrule.Meant{Request: webrule.Request{Scheme: "https", Host: "wiki.example", Method: "GET", Path: path}}
		}
		track := func(path string) context.Context {
			ctx, live, ok := s.Track(t.Context(), request(path))
			if !ok {
				t.Fatal("not tracked")
			}
			t.Cleanup(live.Done)
			return ctx
		}
		page, admin := track("/page"), track("/admin")
		closed := 0
		leave, ok := s.Enter(func() { closed++ })
		if !ok {
			t.Fatal("not entered")
		}
		defer leave()
		deny := func(_ *wire.WebProxySession, p *webrule.Policy) {
			p.Deny = []webrule.Rule{{Host: "wiki.example", Path: "/admin"}}
		}
		if ack := f.put("con_1", 2, deny); ack.Error != nil {
			t.Fatal(ack.Error)
		}
		if !errors.Is(context.Cause(admin), ErrRevoked) || page.Err() != nil || closed != 0 {
			t.Errorf("/admin %v, /page %v, %d connections closed", context.Cause(admin), context.Cause(page), closed)
		}
		f.put("con_1", 3, func(in *wire.WebProxySession, p *webrule.Policy) {
			deny(in, p)
			in.Key = strings.Repeat("n", 43)
		})
		if closed != 1 || page.Err() != nil {
			t.Errorf("another key: %d connections closed, /page %v", closed, page.Err())
		}
	})
}

// Connections and requests are bounded, and an end takes them along; it returns
// when they have left.
func TestEndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		s := f.opened("con_1")
		closed := make(chan struct{})
		leave, ok := s.Enter(func() { close(closed) })
		if !ok {
			t.Fatal("not entered")
		}
		for range MaxConns - 1 {
			l, ok := s.Enter(func() {})
			if !ok {
				t.Fatal("not entered")
			}
			defer l()
			l() // and once more by defer: it counts once
		}
		ctx, live, _ := s.Track(t.Context(), webrule.Meant{Request: webrule.Request{Scheme: "https", Host: "wiki.example", Method: "GET", Path: "/"}})
		over := make(chan wire.WebAck, 2)
		for range 2 { // both wait for the same end
			go func() { over <- f.End(t.Context(), "con_1") }()
		}
		<-closed
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), ErrEnded) {
			t.Errorf("the request ended by %v", context.Cause(ctx))
		}
		if _, ok := s.Enter(func() {}); ok {
			t.Error("a connection is taken while the session ends")
		}
		if _, _, ok := s.Track(t.Context(), webrule.Meant{}); ok {
			t.Error("a request is taken while the session ends")
		}
		synctest.Wait()
		if len(over) != 0 {
			t.Error("over while a connection is there")
		}
		leave()
		live.Done()
		for range 2 {
			if ack := <-over; ack.Error != nil || ack.Revision != 1 {
				t.Errorf("end: %+v", ack)
			}
		}
		if f.Find("con_1") != nil || s.Context().Err() == nil || len(f.told()) != 0 {
			t.Errorf("it is still there, or core was told of an end it asked for: %v", f.told())
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		s := f.opened("con_1")
		for range MaxConns {
			leave, ok := s.Enter(func() {})
			if !ok {
				t.Fatal("not entered")
			}
			defer leave()
		}
		if _, ok := s.Enter(func() {}); ok {
			t.Errorf("more than %d connections", MaxConns)
		}
	})
}

// Without core a session lives as long as its lease, and core hears of the end
// when it is back. A tunnel that comes back in time changes nothing.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		long := f.opened("con_long")
		if ack := f.put("con_short", 1, func(s *wire.WebProxySession, _ *webrule.Policy) { s.LeaseS = 10 }); ack.Error != nil {
			t.Fatal(ack.Error)
		}
		f.up.Store(false)
		<-time.After(9 * time.Second)
		f.up.Store(true)
		<-time.After(2 * leaseTick)
		f.up.Store(false)
		<-time.After(9 * time.Second)
		if f.Find("con_short") == nil {
			t.Fatal("ended within its lease")
		}
		<-time.After(2 * time.Second)
		if f.Find("con_short") != nil && f.States().Sessions[1].Ending == false {
			t.Error("it lives after its lease")
		}
		if f.Find("con_long") != long || long.Context().Err() != nil {
			t.Error("the other one ended too")
		}
		if len(f.told()) != 0 {
			t.Errorf("core was told %v without a tunnel", f.told())
		}
		f.up.Store(true)
		<-time.After(time.Minute)
		if told := f.told(); len(told) != 1 || told[0].Session != "con_short" || told[0].Reason != "error" || told[0].Text == "" {
			t.Errorf("core was told %+v", told)
		}
	})
}

// A session that core has ended meanwhile goes, and core is told nothing.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet(t, nil)
		s := f.opened("con_1")
		f.gone.Store(true)
		if err := s.Event("request", nil); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Second)
		if f.Find("con_1") != nil || len(f.told()) != 0 {
			t.Errorf("it is there: %v; told %v", f.Find("con_1") != nil, f.told())
		}
	})
}

// A stop ends all sessions with their records, and takes none after it.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := newFleet(t, nil)
		var all []*Session
		for i := range 3 {
			s := f.opened(fmt.Sprint("con_", i))
			if err := s.Event("request", map[string]string{"url": "https://wiki.example/"}); err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.Drain(ctx)
		if ctx.Err() != nil {
			t.Error("Drain waits after Run has returned")
		}
		for i, s := range all {
			if f.next[s.ID] != 1 || s.Context().Err() == nil {
				t.Errorf("session %d: core has %d records, the session ended by %v", i, f.next[s.ID], s.Context().Err())
			}
		}
		if ack := f.put("con_9", 1, nil); ack.Error == nil || ack.Error.Code != wire.CodeDraining {
			t.Errorf("a session after the stop: %+v", ack)
		}
	})
}

// plain reads a batch of records.
func plain(r *http.Request) ([]byte, error) {
	if r.Header.Get("Content-Encoding") != "gzip" {
		return io.ReadAll(r.Body)
	}
	z, err := gzip.NewReader(r.Body)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
