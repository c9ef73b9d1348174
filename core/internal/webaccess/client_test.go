package webaccess

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// A session for API clients needs no carrier, is its owner's alone, and ends
// like every other.
func TestClientSession(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(func(t *target.Target) { t.Web.API = true })
		s := k.open("eve", "wiki", map[string]any{"account": "alice", "mode": "api"})
		if s.State != Open || s.Mode != "api" || s.Carrier != "" || s.WebProxy != "p1" || !s.Recorded {
			t.Errorf("opened %+v", s)
		}
		p, _ := proxy.forProxy(s.ID)
		if p.Carrier != "" || p.Account != "alice" || len(p.Key) < 40 {
			t.Errorf("the webproxy has %+v", p)
		}
		var login Login
		if code := k.do("eve", "GET", "/web-sessions/"+s.ID+"/proxy-login", nil, &login); code != 200 || login.Username != s.ID || login.Password != p.Key {
			t.Errorf("login: %d %+v", code, login)
		}
		b, _ := pem.Decode([]byte(login.CA))
		if b == nil || string(b.Bytes) != string(k.svc.authority.rootDER()) {
			t.Errorf("the authority is %q", login.CA)
		} else if _, err := x509.ParseCertificate(b.Bytes); err != nil {
			t.Error(err)
		}
		for _, who := range []string{"mallory", "auditor"} {
			if code := k.do(who, "GET", "/web-sessions/"+s.ID+"/proxy-login", nil, nil); code != 404 {
				t.Errorf("%s reads the key with %d", who, code)
			}
			if _, code := k.client(who, s.ID); code != 404 {
				t.Errorf("%s connects with %d", who, code)
			}
		}
		c, code := k.client("eve", s.ID)
		if code != 101 {
			t.Fatalf("connect: %d", code)
		}
		nc := websocket.NetConn(t.Context(), c, websocket.MessageBinary)
		fmt.Fprintf(nc, "hello\n")
		if line, err := bufio.NewReader(nc).ReadString('\n'); err != nil || line != "proxy hello\n" {
			t.Errorf("it says %q, %v", line, err)
		}
		// What has no browser has neither a picture nor files.
		if code := k.do("eve", "GET", "/web-sessions/"+s.ID+"/files", nil, nil); code != 409 {
			t.Errorf("files: %d", code)
		}
		if code := k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil); code != 204 {
			t.Fatalf("closed with %d", code)
		}
		if _, err := io.ReadAll(nc); err == nil {
			t.Log("the connection ended in order")
		}
		eventually(t, "the session ends", func() bool { return k.get("eve", s.ID).State == Ended })
		if proxy.count() != 0 || !k.tapes.of(s.ID).closed || k.svc.Count() != 0 {
			t.Error("something is left of it")
		}
		if code := k.do("eve", "GET", "/web-sessions/"+s.ID+"/proxy-login", nil, nil); code != 404 {
			t.Errorf("the key after the end: %d", code)
		}
		if n := k.audited(audit.WebSessionOpened, s.ID, audit.OK); n != 1 {
			t.Errorf("%d events", n)
		}
	})
}

// A target that does not permit it has no such sessions; a browser's has no
// such key.
func TestClientsRefused(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	var problem struct{ Code string }
	if code := k.do("eve", "POST", "/web-sessions", map[string]any{"target_id": "wiki", "account": "alice", "mode": "api"}, &problem); code != 403 || problem.Code != "no_api" {
		t.Errorf("opened with %d %s", code, problem.Code)
	}
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	if s.Mode != "browser" || s.Engine != wire.Firefox {
		t.Errorf("mode %s", s.Mode)
	}
	if code := k.do("eve", "GET", "/web-sessions/"+s.ID+"/proxy-login", nil, &problem); code != 409 || problem.Code != "not_api" {
		t.Errorf("a browser's key: %d %s", code, problem.Code)
	}
	if _, code := k.client("eve", s.ID); code != 409 {
		t.Errorf("a connection of a browser's session: %d", code)
	}
}

// Clients that ask for nothing lose their session after its idle time, which
// requests put off.
func TestClientsIdle(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(func(t *target.Target) {
		t.Web.API = true
		t.Web.Browser.IdleS = 60
	})
	s := k.open("eve", "wiki", map[string]any{"account": "alice", "mode": "api"})
	x := k.svc.find(s.ID)
	x.idleFor(time.Now())
	x.mu.Lock()
	x.lastAsk = time.Now().Add(-59 * time.Minute)
	x.mu.Unlock()
	x.noted(t.Context(), fleet.Peer{ID: proxy.id, Kind: wire.WebProxy}, wire.WebEventBody{Type: "request", Fields: map[string]string{"url": "https://wiki.example/"}})
	if d := x.idleFor(time.Now()); d > time.Minute {
		t.Fatalf("a request does not count: idle for %s", d)
	}
	x.mu.Lock()
	x.lastAsk = time.Now().Add(-61 * time.Second)
	x.mu.Unlock()
	x.poke()
	eventually(t, "the session ends", func() bool { return k.get("eve", s.ID).State == Ended })
	if got := k.get("eve", s.ID); got.EndReason != string(conn.EndedByIdle) {
		t.Errorf("ended %+v", got)
	}
}

// A lock of a session for API clients reaches its webproxy, which is all there
// is to lock; of a browser's session the webproxy hears nothing: its carrier does.
func TestClientsLocked(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(func(t *target.Target) { t.Web.API = true })
	for mode, want := range map[string]bool{"api": true, "browser": false} {
		s := k.open("eve", "wiki", map[string]any{"account": "alice", "mode": mode})
		lock := func(what string) {
			t.Helper()
			var said string
			if code := k.do("auditor", "POST", "/connections/"+s.ID+"/"+what, map[string]any{}, &said); code/100 != 2 {
				t.Fatalf("%s: %d %s", what, code, said)
			}
		}
		lock("lock")
		if want {
			eventually(t, "the webproxy locks it", func() bool { p, _ := proxy.forProxy(s.ID); return p.Locked })
		} else {
			eventually(t, "the carrier locks it", func() bool { c, _ := carrier.forCarrier(s.ID); return c.Locked })
			if p, _ := proxy.forProxy(s.ID); p.Locked {
				t.Error("a page that is only looked at loads no more")
			}
		}
		lock("unlock")
		eventually(t, "it is unlocked", func() bool {
			p, _ := proxy.forProxy(s.ID)
			c, _ := carrier.forCarrier(s.ID)
			return !p.Locked && !c.Locked
		})
	}
}

// client connects to a session's proxy and returns the status.
func (k *core) client(who, id string) (*websocket.Conn, int) {
	k.t.Helper()
	c, resp, err := websocket.Dial(k.t.Context(), "ws"+strings.TrimPrefix(k.api.URL, "http")+"/api/v1/web-sessions/"+id+"/proxy",
		&websocket.DialOptions{HTTPClient: k.api.Client(), HTTPHeader: http.Header{"Authorization": {"Bearer " + who}}})
	if err != nil {
		if resp != nil {
			return nil, resp.StatusCode
		}
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { c.CloseNow() })
	return c, 101
}
