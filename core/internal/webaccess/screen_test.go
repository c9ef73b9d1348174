package webaccess

import (
	"bytes"
	"context"
	"errors"
	"image"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coder/websocket"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/rfb"
	"caponier/shared/wire"
)

// Keys, pointer and pastes are signs of a user; a viewer that only shows the
// picture gives none, however its bytes are cut.
func TestSigns(t *testing.T) {
	hello := append([]byte("RFB 003.008\n"), 1, 1)
	shows := rfb.AppendRequest(rfb.AppendSetEncodings(rfb.AppendSetPixelFormat(nil), 7, 1, -223), true, image.Rect(0, 0, 800, 600))
	shows = append(shows, 248, 0, 0, 0, 0, 0, 0, 1, 2, 'a', 'b') // a fence
	key := []byte{4, 1, 0, 0, 0, 0, 0, 'x'}
	pointer := []byte{5, 0, 0, 9, 0, 9}
	paste := append([]byte{6, 0, 0, 0, 0, 0, 0, 5}, "hello"...)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name string
		sent []byte
		want int
	}{
		{"nothing", nil, 0},
		{"half a handshake", hello[:5], 0},
		{"only shows", join(hello, shows, shows, shows), 0},
		{"a key", join(hello, shows, key, shows), 1},
		{"key, pointer, paste", join(hello, shows, key, pointer, shows, paste), 3},
		{"cut in the middle", join(hello, shows, key[:3]), 0},
		{"not understood", join(hello, []byte{99}, make([]byte, 40)), 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := 0
			signs(bytes.NewReader(tc.sent), func() { n++ })
			if tc.name == "not understood" && n > 0 {
				n = 1 // each read is one
			}
			if n != tc.want {
				t.Errorf("%d signs, want %d", n, tc.want)
			}
			if n = 0; tc.name != "not understood" {
				if signs(iotest.OneByteReader(bytes.NewReader(tc.sent)), func() { n++ }); n != tc.want {
					t.Errorf("byte by byte %d signs, want %d", n, tc.want)
				}
			}
		})
	}
}

// screen opens a session's picture as somebody.
func (k *core) screen(who, id, query string) (*websocket.Conn, error) {
	return k.socket(who, id, "/screen"+query)
}

func (k *core) socket(who, id, what string) (*websocket.Conn, error) {
	c, resp, err := websocket.Dial(k.t.Context(), "ws"+strings.TrimPrefix(k.api.URL, "http")+api.Prefix+"/web-sessions/"+id+what,
		&websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + who}}, Subprotocols: []string{"binary"}})
	if resp != nil && resp.Body != nil && err != nil {
		resp.Body.Close()
	}
	if c != nil {
		c.SetReadLimit(1 << 20)
	}
	return c, err
}

// closed reads until the socket is closed and returns code and reason.
func closed(t *testing.T, c *websocket.Conn) (websocket.StatusCode, string) {
	t.Helper()
	return answered(t, c, nil)
}

// answered is closed of a socket whose messages are each answered, with nothing
// if answer is nil.
func answered(t *testing.T, c *websocket.Conn, answer []byte) (websocket.StatusCode, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, _, err := c.Read(ctx)
		if e, ok := errors.AsType[websocket.CloseError](err); ok {
			return e.Code, e.Reason
		}
		if err != nil {
			t.Fatalf("not closed in order: %v", err)
		}
		if answer != nil {
			_ = c.Write(ctx, websocket.MessageBinary, answer) // Read tells why it fails
		}
	}
}

func expect(t *testing.T, c *websocket.Conn, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got := ""
	for len(got) < len(want) {
		kind, p, err := c.Read(ctx)
		if err != nil || kind != websocket.MessageBinary {
			t.Fatalf("read %v: %v", kind, err)
		}
		got += string(p)
	}
	if got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

// The owner controls, those who may watch watch and are named, nobody else
// gets in, and the end is told with its reason.
func TestScreen(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	owner, err := k.screen("eve", s.ID, "")
	must(t, err)
	defer owner.CloseNow()
	if owner.Subprotocol() != "binary" {
		t.Errorf("subprotocol %q", owner.Subprotocol())
	}
	expect(t, owner, "RFB "+wire.ScreenControl)
	big := strings.Repeat("a key and a click ", 20_000)
	must(t, owner.Write(t.Context(), websocket.MessageBinary, []byte(big)))
	expect(t, owner, big)

	for _, tc := range []struct {
		who, id, query string
		code           websocket.StatusCode
	}{
		{"mallory", s.ID, "", closeNoSession},
		{"mallory", s.ID, "?watch=1", closeNotAllowed},
		{"eve/another-login", s.ID, "", closeNotAllowed},
		{"eve", "con_none", "", closeNoSession},
	} {
		c, err := k.screen(tc.who, tc.id, tc.query)
		must(t, err)
		if code, text := closed(t, c); code != tc.code || text == "" {
			t.Errorf("%s %s: closed with %d %q", tc.who, tc.query, code, text)
		}
	}
	watcher, err := k.screen("auditor", s.ID, "?watch=1")
	must(t, err)
	defer watcher.CloseNow()
	expect(t, watcher, "RFB "+wire.ScreenWatch)
	eventually(t, "the owner sees who watches", func() bool {
		ws := k.get("eve", s.ID).Watchers
		return len(ws) == 1 && ws[0] == "auditor"
	})
	if n := k.audited(audit.ConnectionWatched, s.ID, audit.OK); n != 1 {
		t.Errorf("watching was audited %d times", n)
	}
	eventually(t, "bytes are counted", func() bool {
		r, err := k.conns.Get(t.Context(), s.ID)
		return err == nil && r.BytesIn >= int64(len(big)) && r.BytesOut >= int64(len(big))
	})

	// A page of another origin does not get in with the cookie's help.
	r, err := http.NewRequestWithContext(t.Context(), "GET", k.api.URL+api.Prefix+"/web-sessions/"+s.ID+"/screen", nil)
	must(t, err)
	r.Header = http.Header{"Authorization": {"Bearer eve"}, "Origin": {"https://evil.example"}, "Upgrade": {"websocket"}, "Connection": {"Upgrade"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	resp, err := k.api.Client().Do(r)
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Errorf("another origin: %d", resp.StatusCode)
	}

	must(t, k.conns.Terminate(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor", UserName: "auditor"}, "That is enough."))
	if code, text := closed(t, owner); code != closeEnded || text != "That is enough." {
		t.Errorf("the owner's socket: %d %q", code, text)
	}
	if code, _ := closed(t, watcher); code != closeEnded {
		t.Errorf("the watcher's socket: %d", code)
	}
	late, err := k.screen("eve", s.ID, "")
	must(t, err)
	if code, text := closed(t, late); code != closeEnded || text != "That is enough." {
		t.Errorf("a late socket: %d %q", code, text)
	}
	eventually(t, "sockets are gone", func() bool {
		k.svc.mu.Lock()
		defer k.svc.mu.Unlock()
		return k.svc.sockets == 0
	})
}
