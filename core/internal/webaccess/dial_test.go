package webaccess

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
	"caponier/shared/wire"
)

// A browser reaches its target's site through core, and nothing else; bytes
// and the way are on the connection's record.
func TestDialThroughSite(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start(func(k *core, c *Config) { c.Fleet = &dialledAt{Fleet: c.Fleet, at: echo(t)} })
	k.node(wire.Carrier, "c1")
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	dial := func(session, dest string) (string, error) {
		t.Helper()
		st, err := proxy.Session().Open(t.Context(), wire.Preface{Kind: wire.StreamDial, Network: "tcp", Connection: session, Dest: dest})
		must(t, err)
		defer st.Close()
		st.SetDeadline(time.Now().Add(patience))
		if err := st.Accepted(t.Context()); err != nil {
			return "", err
		}
		st.Write([]byte("hello"))
		st.CloseWrite()
		b, err := io.ReadAll(st)
		return string(b), err
	}
	for dest, ok := range map[string]bool{
		"wiki.example:443": true, "cdn.example:443": true,
		"evil.example:443": false, "wiki.example:22": false, "other/wiki.example:443": false, "plant/evil.example:443": false,
	} {
		got, err := dial(s.ID, dest)
		if (err == nil && got == "hello") != ok {
			t.Errorf("%s: %q, %v", dest, got, err)
		}
	}
	if _, err := dial("con_none", "wiki.example:443"); err == nil {
		t.Error("an unknown session dials")
	}
	eventually(t, "bytes are counted", func() bool {
		r, err := k.conns.Get(t.Context(), s.ID)
		return err == nil && r.BytesIn == 10 && r.BytesOut == 10
	})
	if n := k.audited(audit.WebDialRefused, s.ID, audit.Denied); n != 4 {
		t.Errorf("%d refusals audited", n)
	}
	// What flows ends with the session.
	st, err := proxy.Session().Open(t.Context(), wire.Preface{Kind: wire.StreamDial, Network: "tcp", Connection: s.ID, Dest: "wiki.example:443"})
	must(t, err)
	defer st.Close()
	must(t, st.Accepted(t.Context()))
	k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil)
	st.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(st); errors.Is(err, context.DeadlineExceeded) {
		t.Error("it flows on after the end")
	}
}

// dialledAt is a fleet whose sites are all one listener.
type dialledAt struct {
	Fleet
	at string
}

func (d *dialledAt) Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.at)
	if err != nil {
		return nil, fleet.Route{}, err
	}
	return c.(*net.TCPConn), fleet.Route{Site: r.Site, NodeID: "edg_ext", Node: "ext"}, nil
}

func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}
