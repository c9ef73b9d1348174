package webaccess

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// plays reads n blocks that count on, and says so of each.
func plays(t *testing.T, c *websocket.Conn, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range n {
		kind, p, err := c.Read(ctx)
		if err != nil || kind != websocket.MessageBinary || len(p) != wire.SoundBlock || p[0] != byte(i+1) {
			t.Fatalf("block %d: %v of %d bytes, %v", i, kind, len(p), err)
		}
		must(t, c.Write(ctx, websocket.MessageBinary, []byte{1}))
	}
}

// Its user hears a session, and who may watch it; both are on record. Nobody
// hears one that has no sound, is locked or has ended.
func TestSound(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	tg := k.wiki(func(t *target.Target) { t.Web.Browser.Sound = true })
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	if !s.Policy.Sound {
		t.Error("the session does not say that it has sound")
	}
	var sockets []*websocket.Conn
	hear := func(who, query string) *websocket.Conn {
		t.Helper()
		c, err := k.socket(who, s.ID, "/sound"+query)
		must(t, err)
		sockets = append(sockets, c)
		t.Cleanup(func() { c.CloseNow() })
		return c
	}
	refused := func(who, query string, want websocket.StatusCode, says string) {
		t.Helper()
		code, text := closed(t, hear(who, query))
		if code != want || text == "" || says != "" && text != says {
			t.Errorf("%s %s: closed with %d %q", who, query, code, text)
		}
	}
	owner := hear("eve", "")
	plays(t, owner, 100)
	second := hear("eve", "")
	plays(t, second, 3)
	second.CloseNow()
	if n := k.audited(audit.WebSessionHeard, s.ID, audit.OK); n != 1 {
		t.Errorf("one listener was audited %d times", n)
	}
	refused("mallory", "", closeNoSession, "")
	refused("mallory", "?watch=1", closeNotAllowed, "")
	refused("eve/another-login", "", closeNotAllowed, "")
	watcher := hear("auditor", "?watch=1")
	plays(t, watcher, 3)
	if n := k.audited(audit.WebSessionHeard, s.ID, audit.OK); n != 2 {
		t.Errorf("two listeners were audited %d times", n)
	}
	if n := k.audited(audit.ConnectionWatched, s.ID, audit.OK); n != 1 {
		t.Errorf("watching was audited %d times", n)
	}
	if n := w.tapes.of(s.ID).count("sound"); n != 2 {
		t.Errorf("the recording tells of %d listeners", n)
	}

	auditor := &api.Principal{UserID: "usr_auditor", UserName: "auditor"}
	must(t, k.conns.Lock(t.Context(), s.ID, auditor, "Stop that.", conn.BlockNone))
	for who, c := range map[string]*websocket.Conn{"the owner": owner, "the watcher": watcher} {
		if code, text := answered(t, c, []byte{1}); code != closeNotAllowed || text != "The session is locked." {
			t.Errorf("%s of a locked session: %d %q", who, code, text)
		}
	}
	refused("eve", "", closeNotAllowed, "The session is locked.")
	must(t, k.conns.Unlock(t.Context(), s.ID, auditor))
	eventually(t, "the unlocked session is heard", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, _, err := hear("eve", "").Read(ctx)
		return err == nil
	})

	owner = hear("eve", "")
	plays(t, owner, 3)
	k.update(tg.ID, func(t *target.Target) {
		web := *t.Web
		web.Browser.Sound = false
		t.Web = &web
	})
	if code, text := answered(t, owner, []byte{1}); code != closeNotAllowed || text != "This session has no sound." {
		t.Errorf("after it was switched off: %d %q", code, text)
	}
	refused("eve", "", closeNotAllowed, "This session has no sound.")
	for _, c := range sockets {
		c.CloseNow()
	}
	eventually(t, "sockets are gone", func() bool {
		k.svc.mu.Lock()
		defer k.svc.mu.Unlock()
		return k.svc.sockets == 0
	})
}

// sockets are both ends of a websocket.
func sockets(t *testing.T) (server, client *websocket.Conn) {
	t.Helper()
	accepted := make(chan *websocket.Conn, 1)
	over := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
		}
		accepted <- c
		<-over
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(over) })
	client, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	must(t, err)
	t.Cleanup(func() { client.CloseNow() })
	server = <-accepted
	t.Cleanup(func() { server.CloseNow() })
	return server, client
}

// What is to be sent when a socket's time is over does not cut it: its viewer
// is told why.
func TestLastMessage(t *testing.T) {
	server, client := sockets(t)
	v := &viewer{c: server}
	v.ctx, v.cancel = context.WithCancelCause(t.Context())
	must(t, v.send([]byte("one")))
	v.cancel(errHushed)
	if err := v.send([]byte("two")); !errors.Is(err, errHushed) {
		t.Errorf("sent after the end: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Close(errHushed.code, errHushed.text) }()
	_, p, err := client.Read(t.Context())
	if err != nil || string(p) != "one" {
		t.Errorf("read %q, %v", p, err)
	}
	_, _, err = client.Read(t.Context())
	if e, ok := errors.AsType[websocket.CloseError](err); !ok || e.Code != errHushed.code || e.Reason != errHushed.text {
		t.Errorf("closed with %v", err)
	}
	<-ended
}

// told is a stream that keeps what is written.
type told struct {
	tunnel.Stream
	b []byte
}

func (s *told) SetWriteDeadline(time.Time) error { return nil }

func (s *told) Write(p []byte) (int, error) {
	s.b = append(s.b, p...)
	return len(p), nil
}

// A page that says it heard more than it got says it to nobody else.
func TestHeardAhead(t *testing.T) {
	server, client := sockets(t)
	v := &viewer{c: server, ahead: 3}
	v.ctx, v.cancel = context.WithCancelCause(t.Context())
	var st told
	ended := make(chan error, 1)
	go func() { ended <- v.acks(&st) }()
	for range 100 {
		must(t, client.Write(t.Context(), websocket.MessageBinary, []byte{1}))
	}
	must(t, client.Write(t.Context(), websocket.MessageBinary, make([]byte, 500)))
	_ = client.Close(websocket.StatusNormalClosure, "") // acks tells
	if err := <-ended; err == nil {
		t.Error("it ended without a reason")
	}
	if len(st.b) != 3 {
		t.Errorf("the carrier was told of %d blocks, 3 were sent", len(st.b))
	}
}
