package webterm

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// narrow has connections with small buffers: who does not read holds up who writes.
type narrow struct{ net.Listener }

func (l narrow) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		err = errors.Join(t.SetWriteBuffer(64<<10), t.SetReadBuffer(64<<10))
	}
	return c, err
}

// A browser that is being sent something when its socket ends reads that, and
// then why.
func TestEndWhileSending(t *testing.T) {
	limits := Limits{LastWrite: patience, Write: patience}
	svc := &Service{limits: limits.withDefaults(), hard: t.Context()}
	sockets := make(chan *socket, 1)
	sent := make(chan error, 1)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		k := svc.newSocket(c, nil)
		sockets <- k
		err = k.send(make([]byte, 4<<20))
		sent <- err
		if e, ok := errors.AsType[*ended](context.Cause(k.ctx)); ok {
			_ = c.Close(e.code, e.text)
		}
		_ = c.CloseNow()
	}))
	web.Listener = narrow{web.Listener}
	web.Start()
	defer web.Close()
	dial := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(64 << 10)
		}
		return c, err
	}}
	c, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(web.URL, "http"), &websocket.DialOptions{HTTPClient: &http.Client{Transport: dial}})
	must(t, err)
	defer c.CloseNow()
	c.SetReadLimit(8 << 20)
	// The first bytes are here, the others wait.
	_, rest, err := c.Reader(t.Context())
	must(t, err)
	_, err = rest.Read(make([]byte, 1))
	must(t, err)
	k := <-sockets
	k.cancel(&ended{closeTaken, "another tab has taken the session"})
	n, buf := 1, make([]byte, 64<<10)
	for err == nil {
		var m int
		m, err = rest.Read(buf)
		n += m
	}
	if n != 4<<20 {
		t.Errorf("%d bytes came, then %v", n, err)
	}
	must(t, <-sent)
	if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != closeTaken {
		t.Errorf("closed with %v", err)
	}
	if err := k.send([]byte("x")); err == nil {
		t.Error("a socket that has ended takes more")
	}
}
