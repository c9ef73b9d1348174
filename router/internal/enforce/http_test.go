package enforce

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"caponier/shared/control"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// connect serves r's control plane over a tunnel and returns core's end.
func connect(t *testing.T, r *Router) tunnel.Session {
	t.Helper()
	near, far := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	l := control.NewListener()
	srv := &http.Server{Handler: r.Control(), ReadTimeout: 20 * time.Second, WriteTimeout: 40 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	ctx, cancel := context.WithCancel(context.Background())
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			st, err := far.Accept(ctx)
			if err != nil {
				return
			}
			if st.Confirm() == nil && !l.Push(st) {
				st.Close()
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		l.Close()
		srv.Close()
		near.Close(nil)
		far.Close(nil)
		<-done
		<-accepting
	})
	return near
}

// exchange sends a state over a real tunnel.
func exchange(t *testing.T, r *Router, in wire.RouterState) (ack wire.RouterAck) {
	t.Helper()
	s := connect(t, r)
	start := time.Now()
	if err := control.Exchange(t.Context(), s, "PUT", wire.PathRouterState, in, &ack, wire.MaxRouterBody); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sessions in %s", len(in.Sessions), time.Since(start).Round(time.Millisecond))
	return ack
}

func TestControl(t *testing.T) {
	f := newFake(true, 1)
	r := New(Config{Backend: f})
	s := connect(t, r)
	call := func(method, path string, in, out any) error {
		return control.Exchange(t.Context(), s, method, path, in, out, wire.MaxRouterBody)
	}
	var ack wire.RouterAck
	status := func(err error) int {
		if se, ok := errors.AsType[*control.StatusError](err); ok {
			return se.Status
		}
		return 0
	}
	if err := call("POST", wire.PathRouterChanges, wire.RouterChanges{Epoch: "e", From: 1, To: 2}, &ack); status(err) != http.StatusConflict {
		t.Errorf("changes before a state: %v", err)
	}
	if err := call("PUT", wire.PathRouterState, wire.RouterState{}, &ack); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("a state without an epoch: %v", err)
	}
	if err := call("PUT", wire.PathRouterState, wire.RouterState{Epoch: "e", Revision: 1, Sessions: sessions(1)}, &ack); err != nil || ack.Revision != 1 {
		t.Errorf("state: %+v, %v", ack, err)
	}
	if err := call("POST", wire.PathRouterChanges, wire.RouterChanges{Epoch: "e", From: 1, To: 2, Remove: []string{"con_001"}}, &ack); err != nil || len(ack.Ended) != 1 {
		t.Errorf("changes: %+v, %v", ack, err)
	}
	var leased wire.RouterLeased
	if err := call("POST", wire.PathRouterLease, wire.RouterLease{Epoch: "e", Revision: 2, ForMS: 1000}, &leased); err != nil || leased.Resync || leased.Revision != 2 {
		t.Errorf("lease: %+v, %v", leased, err)
	}
	var counters wire.RouterCounters
	if err := call("POST", wire.PathRouterCounters, wire.RouterCountersAsk{}, &counters); err != nil {
		t.Errorf("counters: %v", err)
	}
	f.rate = 1
	if err := call("PUT", wire.PathRouterState, wire.RouterState{Epoch: "e", Revision: 3}, &ack); status(err) != http.StatusInternalServerError || strings.Contains(err.Error(), "half a state") {
		t.Errorf("a state that fails: %v", err)
	}
}

// What does not fit is refused, compressed or not.
func TestBodies(t *testing.T) {
	r := New(Config{Backend: newFake(true, 1)})
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	blank := bytes.Repeat([]byte(" "), 1<<20)
	for range wire.MaxRouterBody>>20 + 1 {
		z.Write(blank)
	}
	z.Close()
	for name, c := range map[string]struct {
		body     []byte
		encoding string
		status   int
	}{
		"not JSON":      {[]byte("{"), "", http.StatusBadRequest},
		"not gzip":      {[]byte("{}"), "gzip", http.StatusBadRequest},
		"a gzip bomb":   {bomb.Bytes(), "gzip", http.StatusBadRequest},
		"other packing": {[]byte("{}"), "br", http.StatusUnsupportedMediaType},
	} {
		req := httptest.NewRequestWithContext(t.Context(), "PUT", wire.PathRouterState, bytes.NewReader(c.body))
		req.Header.Set("Content-Encoding", c.encoding)
		w := httptest.NewRecorder()
		control.ReadUpTo(w, req, &wire.RouterState{}, wire.MaxRouterBody)
		if w.Code != c.status {
			t.Errorf("%s: status %d, want %d", name, w.Code, c.status)
		}
	}
	if r.Status().Applied != 0 {
		t.Error("something was applied")
	}
}
