package webaccess

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/core/internal/vault"
	"caponier/shared/control"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// A session is opened on both nodes with what was decided, recorded, shown to
// its owner alone, and cleared away with its end.
func TestOpenAndClose(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
		k.wiki(func(t *target.Target) { t.Web.Browser.Watermark = "{user}" })
		s := k.open("eve", "wiki", map[string]any{"account": "alice", "width": 1000, "height": 700, "time_zone": "Europe/Helsinki"})
		if s.State != Open || !s.Recorded || s.Carrier != "c1" || s.WebProxy != "p1" || !s.Warm || !s.Own || s.RecordingID == "" || s.Account != "alice" {
			t.Errorf("opened %+v", s)
		}
		if s.Policy.ClipboardIn != 16<<20 || s.Policy.UploadMax != 1<<30 || len(s.Policy.Watermark) != 1 || s.Policy.Watermark[0] != "eve" {
			t.Errorf("policy %+v", s.Policy)
		}
		c, _ := carrier.forCarrier(s.ID)
		p, _ := proxy.forProxy(s.ID)
		if raw, err := base64.RawURLEncoding.DecodeString(c.Proxy.Key); err != nil || len(raw) != 32 || c.Proxy.Key != p.Key {
			t.Errorf("keys %q and %q", c.Proxy.Key, p.Key)
		}
		if c.Width != 1000 || c.Height != 700 || c.TimeZone != "Europe/Helsinki" || c.StartURL != "https://wiki.example/start" || c.User != "eve" || !c.Recorded ||
			c.LeaseS != 60 || c.Proxy.NodeID != proxy.id || c.Proxy.Address != "p1.test:18443" {
			t.Errorf("the carrier has %+v", c)
		}
		var rules webrule.Policy
		must(t, json.Unmarshal(p.Policy, &rules))
		if p.Carrier != carrier.id || p.Site != "plant" || p.Account != "alice" || len(rules.Recipe.Injections) != 1 || rules.Allow[0].Host != "cdn.example" {
			t.Errorf("the webproxy has %+v", p)
		}
		if got := k.tapes.of(s.ID).meta; got.Width != 1000 || got.UserName != "eve" || got.TargetName != "wiki" || got.Account != "alice" {
			t.Errorf("recording of %+v", got)
		}

		// Others do not see it, unless they may see connections.
		if code := k.do("mallory", "GET", "/web-sessions/"+s.ID, nil, nil); code != 404 {
			t.Errorf("somebody else reads it with %d", code)
		}
		if got := k.get("auditor", s.ID); got.Own {
			t.Error("an auditor's own")
		}
		var list struct{ Items []Session }
		k.do("eve", "GET", "/web-sessions", nil, &list)
		if len(list.Items) != 1 || list.Items[0].ID != s.ID {
			t.Errorf("listed %+v", list)
		}
		k.do("mallory", "GET", "/web-sessions", nil, &list)
		if len(list.Items) != 0 {
			t.Errorf("listed to somebody else %+v", list)
		}

		if code := k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil); code != 204 {
			t.Fatalf("closed with %d", code)
		}
		eventually(t, "the session ends", func() bool { return k.get("eve", s.ID).State == Ended })
		if got := k.get("eve", s.ID); got.EndReason != string(conn.EndedByUser) || got.EndedAt == nil || got.EndText != "You closed the session." {
			t.Errorf("ended %+v", got)
		}
		if carrier.count()+proxy.count() != 0 || !carrier.ended[s.ID] || !proxy.ended[s.ID] {
			t.Errorf("nodes have %d and %d sessions", carrier.count(), proxy.count())
		}
		if !k.tapes.of(s.ID).closed {
			t.Error("the recording is open")
		}
		if k.svc.Count() != 0 {
			t.Errorf("%d sessions are kept", k.svc.Count())
		}
		eventually(t, "the connection is closed", func() bool { return k.conns.Count() == 0 })
		if n := k.audited(audit.WebSessionOpened, s.ID, audit.OK) + k.audited(audit.WebSessionClosed, s.ID, audit.OK); n != 2 {
			t.Errorf("%d events", n)
		}
	})
}

// What does not work is told in words, and leaves nothing behind.
func TestRefusals(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		k.wiki(nil)
		refused := func(want int, code, text string) {
			t.Helper()
			var p api.Problem
			got := k.do("eve", "POST", "/web-sessions", map[string]any{"target_id": "wiki", "account": "alice"}, &p)
			if got != want || p.Code != code || !strings.Contains(p.Detail, text) {
				t.Errorf("%d %s %q, want %d %s %q", got, p.Code, p.Detail, want, code, text)
			}
			if n := k.svc.Count(); n != 0 {
				t.Errorf("%d sessions are left", n)
			}
		}
		refused(503, "no_carrier", "No carrier is online.")
		carrier := k.node(wire.Carrier, "c1")
		refused(503, "no_webproxy", "No webproxy is online.")
		proxy := k.node(wire.WebProxy, "p1")

		w.law.change(func(l *law) { l.reason = true })
		refused(403, "reason_needed", "reason")
		w.law.change(func(l *law) { l.reason = false; l.denied["eve"] = true })
		refused(403, "denied", "no target")
		w.law.change(func(l *law) { l.denied["eve"] = false })

		w.tapes.fail = errors.New("disk on fire")
		refused(503, "no_recording", "must be recorded")
		w.tapes.fail = nil
		carrier.set(func(b *box) { b.refuse = wire.Errorf(wire.CodeLimit, "no memory") })
		refused(503, "no_room", "no memory")
		carrier.set(func(b *box) { b.refuse = wire.Errorf(wire.CodeBadRequest, "what is this") })
		refused(503, "carrier_failed", "what is this")
		carrier.set(func(b *box) { b.refuse = nil })
		proxy.set(func(b *box) { b.refuse = wire.Errorf(wire.CodeBadRequest, "a rule it does not know") })
		refused(503, "webproxy_failed", "a rule it does not know")
		proxy.set(func(b *box) { b.refuse = nil })
		eventually(t, "nodes forget", func() bool { return carrier.count()+proxy.count() == 0 })
		eventually(t, "connections are closed", func() bool { return k.conns.Count() == 0 })

		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		if s.State != Open {
			t.Errorf("%+v", s)
		}
	})
}

// Another carrier is tried when the first has no room, and the webproxy is told
// whose connections to take.
func TestAnotherCarrier(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	full := k.node(wire.Carrier, "full", func(b *box) { b.capacity.Max, b.capacity.Room = 100, 100 })
	full.set(func(b *box) { b.refuse = wire.Errorf(wire.CodeLimit, "no memory") })
	free := k.node(wire.Carrier, "free", func(b *box) { b.capacity.Live = 5 })
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	if s.Carrier != "free" {
		t.Errorf("on %s", s.Carrier)
	}
	if p, _ := proxy.forProxy(s.ID); p.Carrier != free.id {
		t.Errorf("the webproxy expects %s, not %s", p.Carrier, free.id)
	}
	eventually(t, "the full carrier forgets", func() bool {
		full.mu.Lock()
		defer full.mu.Unlock()
		_, told := full.ended[s.ID]
		return told
	})
}

// A browser that waited may ask for its page, and for its credential, before
// core has heard from its carrier.
func TestQuickBrowser(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	proxy := k.node(wire.WebProxy, "p1")
	var given wire.WebCredential
	carrier := k.node(wire.Carrier, "c1", func(b *box) {
		b.started = func(id string) {
			given = proxy.credential(wire.WebCredentialAsk{Session: id, Injection: "pw", URL: "https://wiki.example/login"})
		}
	})
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	if given.Error != nil || given.Password != "correct horse" {
		t.Errorf("refused: %v", given.Error)
	}
	if _, ok := carrier.forCarrier(s.ID); !ok {
		t.Error("it was not started")
	}
}

// What changes is pushed: rules and limits of the target, files with the
// grant, locks; rules reach the webproxy before anything else.
func TestHotChanges(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
		tg := k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})

		began := time.Now()
		k.update(tg.ID, func(t *target.Target) {
			web := *t.Web
			web.Policy.Allow = []webrule.Rule{{Host: "other.example"}}
			web.Browser.ClipboardOut = new(int64(0))
			t.Web = &web
		})
		eventually(t, "new rules on both nodes", func() bool {
			p, _ := proxy.forProxy(s.ID)
			c, _ := carrier.forCarrier(s.ID)
			return strings.Contains(string(p.Policy), "other.example") && c.Policy.ClipboardOut == 0
		})
		t.Logf("the change took %s", time.Since(began))
		if got := k.get("eve", s.ID).Policy.ClipboardOut; got != 0 {
			t.Errorf("shown: copies of %d bytes", got)
		}

		w.law.change(func(l *law) { l.features = access.Web })
		k.notify("grant", "gnt_1")
		eventually(t, "no files", func() bool {
			c, _ := carrier.forCarrier(s.ID)
			return c.Policy.UploadMax == 0 && c.Policy.DownloadMax == 0
		})
		must(t, k.conns.Lock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor", UserName: "auditor"}, "Stop that.", conn.BlockTarget))
		eventually(t, "locked", func() bool {
			c, _ := carrier.forCarrier(s.ID)
			return c.Locked && c.LockText == "Stop that."
		})
		if got := k.get("eve", s.ID); !got.Locked || got.LockText != "Stop that." {
			t.Errorf("shown %+v", got)
		}
		var p api.Problem
		if code := k.do("eve", "POST", "/web-sessions", map[string]any{"target_id": "wiki", "account": "alice"}, &p); code != 403 || p.Code != "locked" {
			t.Errorf("another session: %d %+v", code, p)
		}
		must(t, k.conns.Unlock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor", UserName: "auditor"}))
		eventually(t, "unlocked", func() bool { c, _ := carrier.forCarrier(s.ID); return !c.Locked })
	})
}

// A role that is lost ends the session, with a reason. How soon is measured
// end to end, see TestWebRoleRevoked.
func TestRevoked(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		other := k.open("bob", "wiki", map[string]any{"account": "alice"})
		began := time.Now()
		w.law.change(func(l *law) { l.denied["eve"] = true })
		k.notify("role", "rol_1")
		eventually(t, "it ends on both nodes", func() bool {
			_, c := carrier.forCarrier(s.ID)
			_, p := proxy.forProxy(s.ID)
			return !c && !p
		})
		t.Logf("it took %s", time.Since(began))
		eventually(t, "it has ended", func() bool { return k.get("eve", s.ID).State == Ended })
		if got := k.get("eve", s.ID); got.EndReason != string(conn.EndedByAccess) || !strings.Contains(got.EndText, "withdrawn") {
			t.Errorf("ended %+v", got)
		}
		if got := k.get("bob", other.ID); got.State != Open {
			t.Errorf("the other session is %s", got.State)
		}
	})
}

// Times: the strictest holds, a session may be extended where its target
// allows, and one its carrier does not end is ended by core.
func TestTimes(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	now := time.Now()
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(func(t *target.Target) {
		t.Web.Browser.IdleS, t.Web.Browser.MaxS, t.Web.Browser.Extend = 600, 3600, true
	})
	w.law.change(func(l *law) { l.idle, l.longest = 300*time.Second, 5000*time.Second })
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	ends := func(s *Session, want time.Duration) {
		t.Helper()
		if s.EndsAt == nil || s.EndsAt.Sub(now) < want || s.EndsAt.Sub(now) > want+time.Minute {
			t.Errorf("ends at %v, want %s from %v", s.EndsAt, want, now)
		}
	}
	ends(s, time.Hour)
	if s.IdleS != 300 || !s.Extend || s.NoticeS != 60 {
		t.Errorf("%+v", s)
	}
	var more Session
	if code := k.do("eve", "POST", "/web-sessions/"+s.ID+"/extend", map[string]any{}, &more); code != 200 {
		t.Fatalf("extend: %d", code)
	}
	ends(&more, 5000*time.Second) // the grant's
	if more.Extend {
		t.Error("it could be extended past what the grant allows")
	}
	eventually(t, "the carrier knows", func() bool { c, _ := carrier.forCarrier(s.ID); return c.Policy.MaxS == 5000 && c.Policy.IdleS == 300 })
	if code := k.do("eve", "POST", "/web-sessions/"+s.ID+"/extend", map[string]any{}, nil); code != 409 {
		t.Errorf("extended again: %d", code)
	}
	if code := k.do("mallory", "POST", "/web-sessions/"+s.ID+"/extend", map[string]any{}, nil); code != 404 {
		t.Errorf("extended by another: %d", code)
	}
	// The carrier says that it was idle.
	must(t, control.Call(t.Context(), carrier.Session(), "POST", wire.PathWebEnded, wire.WebEnded{Session: s.ID, Reason: "idle", Text: "Nobody was there."}, nil))
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
	if got := k.get("eve", s.ID); got.EndReason != "idle" || got.EndText != "Nobody was there." {
		t.Errorf("%+v", got)
	}
}

// screen opens a session's picture as somebody.
func (k *core) screen(who, id, query string) (*websocket.Conn, error) {
	c, resp, err := websocket.Dial(k.t.Context(), "ws"+strings.TrimPrefix(k.api.URL, "http")+api.Prefix+"/web-sessions/"+id+"/screen"+query,
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		_, _, err := c.Read(ctx)
		if e, ok := errors.AsType[websocket.CloseError](err); ok {
			return e.Code, e.Reason
		}
		if err != nil {
			t.Fatalf("not closed in order: %v", err)
		}
	}
}

func expect(t *testing.T, c *websocket.Conn, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
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

// Records are kept in order and once, only from the session's own nodes, also
// of a node that repeats itself, and storage that fails ends the session.
func TestRecords(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
		stranger := k.node(wire.WebProxy, "p2", func(b *box) { b.capacity.Live = 9 })
		tg := k.wiki(func(t *target.Target) { t.Web.Policy.Learn = true })
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		event := func(seq uint64, typ string, fields map[string]string) wire.WebRecord {
			b, err := json.Marshal(wire.WebEventBody{Type: typ, Fields: fields})
			must(t, err)
			return wire.WebRecord{Seq: seq, At: time.Now().UnixMicro(), Kind: wire.WebEvent, Payload: b}
		}
		send := func(b *box, session string, recs ...wire.WebRecord) (wire.WebRecordsAck, error) {
			t.Helper()
			return sendRecords(t, b, session, recs...)
		}
		notes := k.db.Subscribe(t.Context())
		blocked := map[string]string{"method": "GET", "url": "https://fonts.example/a.css?token=secret", "reason": "no_rule", "proposal": `{"host":"fonts.example","scheme":"https"}`}
		ack, err := send(proxy, s.ID, event(1, "request", map[string]string{"url": "https://wiki.example/"}), event(2, "blocked", blocked))
		must(t, err)
		if ack.Next != 3 {
			t.Errorf("ack %+v", ack)
		}
		// Who looks at the timeline is told of more, the user too.
		told := map[string]string{}
		for late := time.After(20 * time.Second); len(told) < 2; {
			select {
			case n := <-notes:
				if strings.HasPrefix(n.Topic, topicTimeline) && !strings.HasSuffix(n.Topic, api.GroupSuffix) {
					told[n.Topic] = n.ID
				}
			case <-late:
				t.Fatalf("of more events were told: %v", told)
			}
		}
		if own := k.get("eve", s.ID); told[topicTimeline] != own.RecordingID || told[topicTimeline+api.OwnSuffix] != own.UserID {
			t.Errorf("told %v, want the recording %s and the user %s", told, own.RecordingID, own.UserID)
		}
		ack, err = send(proxy, s.ID, event(2, "blocked", blocked), event(3, "blocked", blocked), event(4, "navigation", map[string]string{"url": "https://wiki.example/start?x=1"}))
		must(t, err)
		if ack.Next != 5 {
			t.Errorf("ack %+v", ack)
		}
		ack, err = send(carrier, s.ID, wire.WebRecord{Seq: 1, At: 1, Kind: wire.WebFrame, Payload: []byte("picture")}, event(2, "upload", map[string]string{"path": "a.txt", "size": "5", "outcome": "ok"}))
		must(t, err)
		if ack.Next != 3 {
			t.Errorf("ack %+v", ack)
		}
		ack, err = send(carrier, s.ID, event(7, "viewer", nil))
		must(t, err)
		if ack.Next != 3 {
			t.Errorf("after a gap %+v", ack)
		}
		if _, err := send(stranger, s.ID, event(1, "blocked", blocked)); err == nil {
			t.Error("a webproxy delivers for another's session")
		}
		if _, err := send(proxy, s.ID, wire.WebRecord{Seq: 5, At: 1, Kind: wire.WebFrame, Payload: []byte("forged")}); err == nil {
			t.Error("a webproxy delivers pictures")
		}
		if ack, err := send(stranger, "con_none", event(1, "blocked", blocked)); err != nil || !ack.Gone {
			t.Errorf("an unknown session: %+v, %v", ack, err)
		}
		x := k.tapes.of(s.ID)
		x.mu.Lock()
		if len(x.recs) != 6 || !strings.HasPrefix(x.recs[0], "webproxy "+proxy.id+" e ") || x.recs[4] != "carrier "+carrier.id+" f picture" {
			t.Errorf("kept %q", x.recs)
		}
		x.mu.Unlock()

		var out struct{ Proposals []Proposal }
		if code := k.do("admin", "GET", "/targets/wiki/web-proposals", nil, &out); code != 200 || len(out.Proposals) != 1 {
			t.Fatalf("proposals %d %+v", code, out)
		}
		if p := out.Proposals[0]; p.Count != 2 || p.Rule.Host != "fonts.example" || p.ExampleURL != "https://fonts.example/a.css" {
			t.Errorf("proposal %+v", p)
		}
		if code := k.do("eve", "GET", "/targets/wiki/web-proposals", nil, nil); code != 403 {
			t.Errorf("a user reads proposals with %d", code)
		}
		if code := k.do("admin", "DELETE", "/targets/"+tg.ID+"/web-proposals", nil, nil); code != 204 {
			t.Errorf("cleared with %d", code)
		}
		k.do("admin", "GET", "/targets/wiki/web-proposals", nil, &out)
		if len(out.Proposals) != 0 {
			t.Errorf("left %+v", out)
		}
		if b, u := k.audited(audit.WebRequestBlocked, s.ID, audit.Denied), k.audited(audit.WebFileUploaded, s.ID, audit.OK); b != 1 || u != 1 {
			t.Errorf("audited %d blocked hosts, %d uploads", b, u)
		}

		// A webproxy that makes pages up fills its own recording, and nobody's
		// list of what waits for the database.
		flood := make([]wire.WebRecord, 1000)
		for i := range flood {
			flood[i] = event(uint64(5+i), "navigation", map[string]string{"url": "https://wiki.example/made-up"})
		}
		if ack, err := send(proxy, s.ID, flood...); err != nil || ack.Next != 1005 {
			t.Errorf("a flood: %+v, %v", ack, err)
		}
		var listed struct {
			Items []struct{ Kind string }
			Next  string
		}
		eventually(t, "visits are listed", func() bool {
			k.do("admin", "GET", "/connections/"+s.ID+"/channels?limit=500", nil, &listed)
			return len(listed.Items) >= 200
		})
		if len(listed.Items) > 300 || listed.Next != "" {
			t.Errorf("%d visits are listed, and more: %q", len(listed.Items), listed.Next)
		}

		x.mu.Lock()
		x.fail = errors.New("disk on fire")
		x.mu.Unlock()
		if ack, err := send(carrier, s.ID, event(3, "viewer", nil)); err != nil || !ack.Retry {
			t.Errorf("after a failure: %+v, %v", ack, err)
		}
		eventually(t, "the session ends", func() bool { return k.get("eve", s.ID).State == Ended })
		if got := k.get("eve", s.ID); !strings.Contains(got.EndText, "could not be recorded") {
			t.Errorf("ended %+v", got)
		}
		if ack, err := send(carrier, s.ID, event(3, "viewer", nil)); err != nil || !ack.Gone {
			t.Errorf("after the end: %+v, %v", ack, err)
		}
	})
}

// A carrier that reports files without end does not fill the audit log with
// them: a burst is listed, the others are counted.
func TestFilesWithoutEnd(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start(func(_ *core, c *Config) { c.Now = func() time.Time { return time.Unix(1_800_000_000, 0) } }) // no tokens come back
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	const extra = 25
	b, err := json.Marshal(wire.WebEventBody{Type: "upload", Fields: map[string]string{"path": "f", "outcome": "ok"}})
	must(t, err)
	var recs []wire.WebRecord
	for i := range uint64(filesBurst + extra) {
		recs = append(recs, wire.WebRecord{Seq: i + 1, At: time.Now().UnixMicro(), Kind: wire.WebEvent, Payload: b})
	}
	if ack, err := sendRecords(t, carrier, s.ID, recs...); err != nil || ack.Next != uint64(len(recs))+1 {
		t.Fatalf("%+v, %v", ack, err)
	}
	if n := k.audited(audit.WebFileUploaded, s.ID, audit.OK); n != filesBurst {
		t.Errorf("%d files are listed, want %d", n, filesBurst)
	}
	if n := k.audited(audit.WebFilesUnlisted, s.ID, audit.OK); n != 0 {
		t.Errorf("the others are counted %d times already", n)
	}
	k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil)
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
	found, err := k.audit.After(t.Context(), k.db, audit.Filter{Type: string(audit.WebFilesUnlisted)}, 0, 10)
	must(t, err)
	if len(found) != 1 || found[0].Connection != s.ID || found[0].Fields["more"] != strconv.Itoa(extra) {
		t.Errorf("counted as %+v", found)
	}
	if n := len(w.tapes.of(s.ID).recs); n != len(recs) {
		t.Errorf("the recording has %d of them", n)
	}
	// More than anybody moves ends a session.
	x := k.svc.find(k.open("bob", "wiki", map[string]any{"account": "alice"}).ID)
	for range maxUnlisted {
		x.unlist()
	}
	if reason, text := x.live.Ended(); reason != conn.EndedByError || !strings.Contains(text, "more files") {
		t.Errorf("it goes on: %s %s", reason, text)
	}
}

func sendRecords(t *testing.T, b *box, session string, recs ...wire.WebRecord) (wire.WebRecordsAck, error) {
	t.Helper()
	var body []byte
	var err error
	for _, r := range recs {
		body, err = wire.AppendWebRecord(body, r)
		must(t, err)
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://tunnel"+wire.PathWebRecords+"?session="+session, strings.NewReader(string(body)))
	must(t, err)
	resp, err := control.RoundTrip(t.Context(), b.Session(), r)
	if err != nil {
		return wire.WebRecordsAck{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return wire.WebRecordsAck{}, errors.New(resp.Status)
	}
	var ack wire.WebRecordsAck
	return ack, json.NewDecoder(resp.Body).Decode(&ack)
}

// A credential goes to the session's own webproxy, for what the recipe says,
// a bounded number of times, and every use is in the audit log.
func TestCredential(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		stranger := k.node(wire.WebProxy, "p2", func(b *box) { b.capacity.Live = 9 })
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		ask := func(b *box, session, url string) wire.WebCredential {
			t.Helper()
			return b.credential(wire.WebCredentialAsk{Session: session, Injection: "pw", URL: url})
		}
		const login = "https://wiki.example/login"
		if c := ask(proxy, s.ID, login); c.Error != nil || c.Password != "correct horse" || c.Username != "" {
			t.Errorf("given %#v, error %v", c, c.Error)
		}
		for name, c := range map[string]wire.WebCredential{
			"another webproxy": ask(stranger, s.ID, login),
			"another path":     ask(proxy, s.ID, "https://wiki.example/logins"),
			"another origin":   ask(proxy, s.ID, "https://evil.example/login"),
			"another session":  ask(proxy, "con_none", login),
		} {
			if c.Error == nil || c.Password != "" {
				t.Errorf("%s is given the password", name)
			}
		}
		if used := k.audited(audit.WebCredentialUsed, s.ID, audit.OK); used != 1 {
			t.Errorf("%d uses audited", used)
		}
		if refused := k.audited(audit.WebCredentialUsed, s.ID, audit.Denied); refused != 2 {
			t.Errorf("%d refusals audited", refused)
		}
		if n := k.audited(audit.SecretUsed, s.ID, audit.OK); n != 1 {
			t.Errorf("%d uses of the secret audited", n)
		}
		must(t, k.conns.Lock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}, "no", conn.BlockNone))
		if c := ask(proxy, s.ID, login); c.Error == nil {
			t.Error("a locked session is given the password")
		}
		must(t, k.conns.Unlock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}))
		ask(proxy, s.ID, login)
		// What was counted counts after a restart of core.
		k.stop()
		k = w.start()
		eventually(t, "the webproxy is back", func() bool { _, on := k.svc.onlineNode(wire.WebProxy, proxy.id); return on && proxy.Session() != nil })
		if c := ask(proxy, s.ID, login); c.Password == "" {
			t.Errorf("not given a third time: %v", c.Error)
		}
		if c := ask(proxy, s.ID, login); c.Error == nil {
			t.Error("given a fourth time")
		}
		k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil)
		eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
		if c := ask(proxy, s.ID, login); c.Error == nil {
			t.Error("given after the end")
		}
	})
}

// Secrets with several properties give what an injection needs and no more.
func TestJSONSecret(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	k.node(wire.Carrier, "c1")
	proxy := k.node(wire.WebProxy, "p1")
	ctx := api.WithPrincipal(t.Context(), &api.Principal{UserID: "usr_admin", Permissions: w.law.perms["admin"]})
	secret := k.secret(vault.JSON, "full", `{"username":"root","password":"p","totp":"GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ","token":"tok"}`)
	_, err := k.targets.Create(ctx, target.Target{Name: "app", Kind: target.Web, Web: &target.WebSpec{StartURL: "https://app.example/", Policy: webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{
		{ID: "user", Kind: webrule.JSON, Origin: "https://app.example", Path: "/login", Field: "u", Value: webrule.Username},
		{ID: "code", Kind: webrule.JSON, Origin: "https://app.example", Path: "/login", Field: "c", Value: webrule.TOTP},
		{ID: "basic", Kind: webrule.Basic, Origin: "https://app.example"},
		{ID: "bearer", Kind: webrule.Bearer, Origin: "https://api.example"},
		{ID: "cert", Kind: webrule.ClientCert, Origin: "https://app.example"},
	}}, Allow: []webrule.Rule{{Host: "api.example"}}}}}, []target.Account{{Name: "alice", SecretID: secret}})
	must(t, err)
	s := k.open("eve", "app", map[string]any{"account": "alice"})
	for injection, want := range map[string]wire.WebCredential{
		"user": {Username: "root"}, "basic": {Username: "root", Password: "p"}, "bearer": {Password: "tok"},
	} {
		url := "https://app.example/login"
		if injection == "bearer" {
			url = "https://api.example/x"
		}
		c := proxy.credential(wire.WebCredentialAsk{Session: s.ID, Injection: injection, URL: url})
		if c.Error != nil || c != want {
			t.Errorf("%s: %#v error %v", injection, struct{ a, b, c string }{c.Username, c.Password, c.TOTP}, c.Error)
		}
	}
	c := proxy.credential(wire.WebCredentialAsk{Session: s.ID, Injection: "code", URL: "https://app.example/login"})
	if len(c.TOTP) != 6 || c.Password != "" {
		t.Errorf("code %q, error %v", c.TOTP, c.Error)
	}
	c = proxy.credential(wire.WebCredentialAsk{Session: s.ID, Injection: "cert", URL: "https://app.example/"})
	if c.Error == nil || !strings.Contains(c.Error.Public, "certificate") {
		t.Errorf("a certificate that is not there: %v", c.Error)
	}
}

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
		st.SetDeadline(time.Now().Add(20 * time.Second))
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
	st.SetReadDeadline(time.Now().Add(20 * time.Second))
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

// Files go both ways within what policy allows.
func TestFiles(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(func(t *target.Target) {
		t.Web.Browser.UploadMax, t.Web.Browser.DownloadMax = new(int64(1000)), new(int64(100))
	})
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	base := "/web-sessions/" + s.ID + "/files"
	carrier.set(func(b *box) {
		b.files["big"], b.files["sub/folder"] = strings.Repeat("x", 101), strings.Repeat("t", 500)
	})
	for _, tc := range []struct {
		who, method, path, body string
		want                    int
	}{
		{"eve", "PUT", base + "/a%20b.txt", "hello", 204},
		{"eve", "PUT", base + "/dir%2Fc.txt", "deep", 204},
		{"eve", "PUT", base + "/huge", strings.Repeat("x", 1001), 403},
		{"eve", "PUT", base + "/eicar", "virus", 403},
		{"eve", "PUT", base + "/..%2Fetc%2Fpasswd", "x", 422},
		{"eve", "PUT", base + "?tar=1", strings.Repeat("t", 5000), 204},
		{"eve", "PUT", base, "x", 422},
		{"eve", "GET", base + "/none", "", 404},
		{"mallory", "GET", base + "/dir%2Fc.txt", "", 404},
		{"auditor", "GET", base + "/dir%2Fc.txt", "", 404},
		{"eve", "GET", base + "/big", "", 403},
	} {
		var text string
		var body any
		if tc.method == "PUT" {
			body = tc.body
		}
		if got := k.do(tc.who, tc.method, tc.path, body, &text); got != tc.want {
			t.Errorf("%s %s as %s: %d, want %d: %s", tc.method, tc.path, tc.who, got, tc.want, text)
		}
	}
	var text string
	if code := k.do("eve", "GET", base+"/dir%2Fc.txt", nil, &text); code != 200 || text != "deep" {
		t.Errorf("%d %q", code, text)
	}
	if code := k.do("eve", "GET", base+"/sub%2Ffolder", nil, &text); code != 200 || len(text) != 500 {
		t.Errorf("a folder: %d, %d bytes", code, len(text))
	}
	var list wire.WebFiles
	if code := k.do("eve", "GET", base, nil, &list); code != 200 || len(list.Files) != 5 || list.Files[0].Path != "a b.txt" {
		t.Errorf("%d %+v", code, list)
	}
	// While the session is locked its user sees no names either.
	must(t, k.conns.Lock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}, "no", conn.BlockNone))
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		path := base + "/dir%2Fc.txt"
		if method == "GET" {
			path = base
		}
		if code := k.do("eve", method, path, nil, &text); code != 409 || strings.Contains(text, "a b.txt") {
			t.Errorf("%s while locked: %d %s", method, code, text)
		}
	}
	must(t, k.conns.Unlock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}))
	if code := k.do("eve", "DELETE", base+"/a%20b.txt", nil, nil); code != 204 {
		t.Errorf("deleted with %d", code)
	}
	if _, ok := carrier.files["a b.txt"]; ok || carrier.files["dir/c.txt"] != "deep" {
		t.Errorf("the carrier has %v", carrier.files)
	}
	// Without the feature there are no files, and losing it ends who used it.
	w.law.change(func(l *law) { l.features = access.Web })
	other := k.open("bob", "wiki", map[string]any{"account": "alice"})
	if other.Policy.UploadMax != 0 || k.do("bob", "GET", "/web-sessions/"+other.ID+"/files", nil, nil) != 403 {
		t.Error("files without the feature")
	}
	k.notify("grant", "gnt_1")
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
}
