package webaccess

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/control"
	"caponier/shared/wire"
)

// A restart of core takes live sessions over: the nodes keep them, records go
// on without a gap, what was decided meanwhile is put into force, and what ends
// does end everywhere.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		kept := k.open("eve", "wiki", map[string]any{"account": "alice"})
		lost := k.open("bob", "wiki", map[string]any{"account": "alice"})
		before, _ := carrier.forCarrier(kept.ID)
		event := func(seq uint64) wire.WebRecord {
			b, err := json.Marshal(wire.WebEventBody{Type: "request"})
			must(t, err)
			return wire.WebRecord{Seq: seq, At: time.Now().UnixMicro(), Kind: wire.WebEvent, Payload: b}
		}
		if ack, err := sendRecords(t, carrier, kept.ID, event(1), event(2)); err != nil || ack.Next != 3 {
			t.Fatalf("%+v, %v", ack, err)
		}
		k.stop()
		if n := len(carrier.ended); n != 0 {
			t.Fatalf("%d sessions were ended by the stop", n)
		}
		// While core is away one session is lost by its carrier, a right is taken
		// away by nobody yet, and a stray appears.
		carrier.set(func(b *box) {
			delete(b.carrier, lost.ID)
			b.carrier["con_stray"] = wire.CarrierSession{ID: "con_stray", Revision: 1}
		})
		k = w.start(func(_ *core, c *Config) { c.Fleet = &asksLate{c.Fleet, 10 * c.Tick} })
		eventually(t, "both nodes are back and told again", func() bool {
			c, _ := carrier.forCarrier(kept.ID)
			p, _ := proxy.forProxy(kept.ID)
			return c.Revision > before.Revision && p.Revision > before.Revision && c.Proxy.Key == before.Proxy.Key && p.Key == before.Proxy.Key
		})
		eventually(t, "the stray is ended", func() bool {
			carrier.mu.Lock()
			defer carrier.mu.Unlock()
			_, told := carrier.ended["con_stray"]
			return told
		})
		eventually(t, "the lost one has ended", func() bool { return k.get("bob", lost.ID).State == Ended })
		if got := k.get("bob", lost.ID); got.EndReason != string(conn.EndedByRoute) {
			t.Errorf("the lost one ended by %s: %s", got.EndReason, got.EndText)
		}
		eventually(t, "nothing is wrong with it", func() bool { s := k.get("eve", kept.ID); return s.State == Open && s.Problem == "" })
		if ack, err := sendRecords(t, carrier, kept.ID, event(2), event(3)); err != nil || ack.Next != 4 {
			t.Errorf("records go on with %+v, %v", ack, err)
		}
		if n := len(w.tapes.of(kept.ID).recs); n != 3 {
			t.Errorf("%d records", n)
		}
		c, err := k.screen("eve", kept.ID, "")
		must(t, err)
		defer c.CloseNow()
		expect(t, c, "RFB "+wire.ScreenControl)
		if got := proxy.credential(wire.WebCredentialAsk{Session: kept.ID, Injection: "pw", URL: "https://wiki.example/login"}); got.Password != "correct horse" {
			t.Errorf("no credential after the restart: %v", got.Error)
		}
		w.law.change(func(l *law) { l.denied["eve"] = true })
		k.notify("role", "rol_1")
		eventually(t, "it ends", func() bool { return k.get("eve", kept.ID).State == Ended })
		if code, text := closed(t, c); code != closeEnded || !strings.Contains(text, "withdrawn") {
			t.Errorf("the socket closed with %d %q", code, text)
		}
		if carrier.count()+proxy.count() != 0 || !w.tapes.of(kept.ID).closed {
			t.Error("something is left")
		}
		if n := k.audited(audit.WebSessionClosed, kept.ID, audit.OK); n != 1 {
			t.Errorf("its end was audited %d times", n)
		}
	})
}

// asksLate is a fleet in which it takes a while to ask a carrier what it has.
type asksLate struct {
	Fleet
	by time.Duration
}

func (f *asksLate) Ask(ctx context.Context, nodeID, method, path string, in, out any) error {
	if method == "GET" && path == wire.PathCarrierSessions {
		<-time.After(f.by)
	}
	return f.Fleet.Ask(ctx, nodeID, method, path, in, out)
}

// What was taken away while core was stopped ends at its start, before the
// nodes are back; records that come before that are kept by their node.
func TestRightLostDuringRestart(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	k.stop()
	w.law.change(func(l *law) { l.denied["eve"] = true })
	k = w.start()
	eventually(t, "both nodes have ended it", func() bool { return carrier.count()+proxy.count() == 0 })
	eventually(t, "it has ended", func() bool { return k.get("eve", s.ID).State == Ended })
}

// A node that does not come back within the lease ends the session; one that
// comes back in time does not.
func TestNodeAway(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	var ahead atomic.Int64 // time goes on when the test says so
	began := time.Now()
	k := w.start(func(_ *core, c *Config) { c.Now = func() time.Time { return began.Add(time.Duration(ahead.Load())) } })
	carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	c, err := k.screen("eve", s.ID, "")
	must(t, err)
	expect(t, c, "RFB "+wire.ScreenControl)
	carrier.down()
	if code, text := closed(t, c); code != closeAway || text == "" {
		t.Errorf("closed with %d %q", code, text)
	}
	eventually(t, "it is told what is wrong", func() bool { return strings.Contains(k.get("eve", s.ID).Problem, "carrier") })
	c, err = k.screen("eve", s.ID, "")
	must(t, err)
	if code, _ := closed(t, c); code != closeAway {
		t.Errorf("while it is away: %d", code)
	}
	carrier.up(k.url, "")
	eventually(t, "it is back", func() bool { return k.get("eve", s.ID).Problem == "" })
	if got := k.get("eve", s.ID).State; got != Open {
		t.Fatalf("state %s", got)
	}
	proxy.down()
	eventually(t, "it is told what is wrong", func() bool { return strings.Contains(k.get("eve", s.ID).Problem, "webproxy") })
	ahead.Add(int64(k.limits.Lease))
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State != Open })
	eventually(t, "the carrier cleared it away", func() bool { return carrier.count() == 0 })
	proxy.up(k.url, "")
	eventually(t, "the webproxy, too", func() bool { return proxy.count() == 0 })
	eventually(t, "it has ended", func() bool { return k.get("eve", s.ID).State == Ended })
	if got := k.get("eve", s.ID); got.EndReason != string(conn.EndedByRoute) || !strings.Contains(got.EndText, "webproxy") {
		t.Errorf("%s: %s", got.EndReason, got.EndText)
	}
}

// What a carrier that was started again has lost ends with the reason that the
// carrier gives, not as one that nobody knows about.
func TestCarrierTellsWhy(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	lost, kept := k.open("eve", "wiki", map[string]any{"account": "alice"}), k.open("eve", "wiki", map[string]any{"account": "alice"})
	carrier.down()
	eventually(t, "it is told what is wrong", func() bool { return k.get("eve", kept.ID).Problem != "" })
	carrier.set(func(b *box) { b.ending = map[string]bool{lost.ID: true} })
	carrier.up(k.url, "")
	eventually(t, "core has compared what the carrier has", func() bool { return k.get("eve", kept.ID).Problem == "" })
	if got := k.get("eve", lost.ID); got.State != Open {
		t.Errorf("before the carrier has said why: %+v", got)
	}
	must(t, control.Call(t.Context(), carrier.Session(), "POST", wire.PathWebEnded, wire.WebEnded{Session: lost.ID, Reason: "error", Text: "The browser was lost."}, nil))
	eventually(t, "it ends", func() bool { return k.get("eve", lost.ID).State == Ended })
	if got := k.get("eve", lost.ID); got.EndReason != "error" || got.EndText != "The browser was lost." {
		t.Errorf("%+v", got)
	}
	if got := k.get("eve", kept.ID); got.State != Open {
		t.Errorf("the other one: %+v", got)
	}
}

// A webproxy that was started anew is told its sessions, and changes made
// while it was away.
func TestWebProxyRestarted(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	k.node(wire.Carrier, "c1")
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	proxy.down()
	proxy.set(func(b *box) { b.proxy = map[string]wire.WebProxySession{} })
	proxy.up(k.url, "")
	eventually(t, "it has its session", func() bool { p, ok := proxy.forProxy(s.ID); return ok && p.Key != "" && p.Account == "alice" })
	if got := k.get("eve", s.ID).State; got != Open {
		t.Errorf("state %s", got)
	}
}

// Records that arrive before core knows its sessions again are kept by the node.
func TestRecordsBeforeRestore(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	k.stop() // nothing runs any more; only its answers are asked for
	known := k.svc.restored
	k.svc.restored = make(chan struct{})
	if ack := k.svc.nobodys(t.Context(), "con_x"); !ack.Retry || ack.Gone {
		t.Errorf("%+v", ack)
	}
	k.svc.restored = known
	if ack := k.svc.nobodys(t.Context(), "con_x"); ack.Retry || !ack.Gone {
		t.Errorf("%+v", ack)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ack := k.svc.nobodys(ctx, "con_x"); !ack.Retry || ack.Gone {
		t.Errorf("when the database does not answer: %+v", ack)
	}
}

// The root is one and the same over restarts, and issues for webproxies what
// browsers believe, for nobody else.
func TestAuthority(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
		var root wire.WebAuthority
		must(t, control.Call(t.Context(), carrier.Session(), "GET", wire.PathWebAuthority, nil, &root))
		csr, key := request(t, "P-256")
		var issued wire.WebAuthority
		must(t, control.Call(t.Context(), proxy.Session(), "POST", wire.PathWebAuthority, wire.WebAuthorityAsk{CSR: csr}, &issued))
		if string(issued.Root) != string(root.Root) {
			t.Error("two roots")
		}
		believed(t, issued, key)
		if err := control.Call(t.Context(), carrier.Session(), "POST", wire.PathWebAuthority, wire.WebAuthorityAsk{CSR: csr}, &issued); err == nil {
			t.Error("a carrier is issued a certificate")
		}
		for name, bad := range map[string][]byte{"rubbish": []byte("x"), "another curve": first(request(t, "P-384"))} {
			if err := control.Call(t.Context(), proxy.Session(), "POST", wire.PathWebAuthority, wire.WebAuthorityAsk{CSR: bad}, &issued); err == nil {
				t.Errorf("issued for %s", name)
			}
		}
		if n := k.audited(audit.WebIssuerIssued, "", audit.OK); n != 1 {
			t.Errorf("%d certificates audited", n)
		}
		k.stop()
		k = w.start()
		if string(k.svc.authority.rootDER()) != string(root.Root) {
			t.Error("another root after a restart")
		}
		// Long before it ends, another takes its place.
		w.stopAndAge(k, rootLife-rootRenew+time.Hour)
	})
}
