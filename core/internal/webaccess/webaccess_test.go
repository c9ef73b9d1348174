package webaccess

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
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
	// A maximum is extended when its end is near, not many times ahead.
	w.law.change(func(l *law) { l.longest = 0 })
	free := k.open("eve", "wiki", map[string]any{"account": "alice"})
	n := 0
	for ; n < 10 && k.do("eve", "POST", "/web-sessions/"+free.ID+"/extend", map[string]any{}, &more) == 200; n++ {
	}
	if n != 1 || more.Extend {
		t.Errorf("extended %d times at once: %+v", n, more)
	}
	x := k.svc.find(free.ID)
	if later := x.row.OpenedAt.Add(time.Hour); !x.extensibleAt(x.live.Decision(), later) || x.extensibleAt(x.live.Decision(), later.Add(-2*time.Minute)) {
		t.Error("it is not extensible when a maximum has passed, or is before")
	}
	// The carrier says that it was idle.
	must(t, control.Call(t.Context(), carrier.Session(), "POST", wire.PathWebEnded, wire.WebEnded{Session: s.ID, Reason: "idle", Text: "Nobody was there."}, nil))
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
	if got := k.get("eve", s.ID); got.EndReason != "idle" || got.EndText != "Nobody was there." {
		t.Errorf("%+v", got)
	}
}
