package session

import (
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/shared/control"
	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// A webproxy that cannot issue certificates takes no session, so that core
// finds another; one it has keeps getting its rules.
func TestPutWhileItCannotServe(t *testing.T) {
	var problem atomic.Value
	problem.Store("no issuing certificate yet")
	m := NewManager(Config{Max: 2, Address: "proxy.test:18443", Problem: func() string { return problem.Load().(string) }, Resolver: net.DefaultResolver,
		System: x509.NewCertPool(), Log: slog.New(slog.DiscardHandler), Tunnel: func() tunnel.Session { return nil }})
	t.Cleanup(func() { m.End(t.Context(), "con_1") })
	rules, err := json.Marshal(webrule.Policy{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func(revision uint64) wire.WebAck {
		return m.Put(wire.WebProxySession{ID: "con_1", Revision: revision, StartURL: "https://wiki.example/", Key: strings.Repeat("k", 43), Policy: rules})
	}
	if ack := put(1); ack.Error == nil || ack.Error.Code != wire.CodeLimit || m.Find("con_1") != nil {
		t.Errorf("%+v while it cannot serve", ack)
	}
	problem.Store("")
	if ack := put(2); ack.Error != nil || m.Find("con_1") == nil {
		t.Errorf("%+v when it can", ack)
	}
	problem.Store("the issuing certificate has run out")
	if ack := put(3); ack.Error != nil || ack.Revision != 3 {
		t.Errorf("%+v for a session it has", ack)
	}
}

// An ended session's records reach core however long core does not take them:
// before, the session is not over.
func TestEndDelivers(t *testing.T) {
	near, far := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	var up atomic.Bool
	m := NewManager(Config{Max: 2, Resolver: net.DefaultResolver, System: x509.NewCertPool(), Log: slog.New(slog.DiscardHandler),
		Tunnel: func() tunnel.Session {
			if up.Load() {
				return near
			}
			return nil
		}})
	ctx, stop := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	var took atomic.Int64
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Errorf("body: %v", err)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Errorf("body: %v", err)
		}
		recs, err := wire.ParseWebRecords(b)
		if err != nil {
			t.Errorf("records: %v", err)
		}
		control.Reply(w, wire.WebRecordsAck{Next: uint64(took.Add(int64(len(recs)))) + 1})
	})}
	l := control.NewListener()
	parts.Go(func() { srv.Serve(l) })
	parts.Go(func() {
		for {
			s, err := far.Accept(ctx)
			if err != nil {
				return
			}
			s.Confirm()
			l.Push(s)
		}
	})
	t.Cleanup(func() { stop(); srv.Close(); near.Close(nil); far.Close(nil); parts.Wait() })

	rules, err := json.Marshal(webrule.Policy{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	if ack := m.Put(wire.WebProxySession{ID: "con_1", Revision: 1, StartURL: "https://wiki.example/", Key: strings.Repeat("k", 43), Policy: rules}); ack.Error != nil {
		t.Fatal(ack.Error)
	}
	s := m.Find("con_1")
	for range 3 {
		if err := s.Event("request", nil); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithCancel(t.Context())
	defer cancel()
	over := make(chan wire.WebAck, 1)
	go func() { over <- m.End(short, "con_1") }()
	if err := harness.Until(t.Context(), time.Minute, "it is ending", func() error {
		if st := m.States(); len(st.Sessions) != 1 || !st.Sessions[0].Ending {
			return fmt.Errorf("%+v", st)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	cancel() // nobody waits any longer
	if ack := <-over; ack.Error == nil || ack.Error.Code != wire.CodeTimeout {
		t.Errorf("over with records that nobody has: %+v", ack)
	}
	up.Store(true)
	if ack := m.End(t.Context(), "con_1"); ack.Error != nil || m.Find("con_1") != nil || took.Load() != 3 {
		t.Errorf("%+v, core has %d records", ack, took.Load())
	}
	if ack := m.End(t.Context(), "con_1"); ack.Error != nil {
		t.Errorf("the end of what is over: %+v", ack)
	}
}
