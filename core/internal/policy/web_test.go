package policy

import (
	"context"
	"net"
	"strings"
	"testing"

	"caponier/core/internal/access"
	"caponier/core/internal/conn"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
)

// An account of a web target need not be named where there is one, or none at
// all; where there are several it must be.
func TestWebAccounts(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		p := w.user("eve")
		role := w.role("ops", p)
		web := func(name string, accounts ...string) *target.Target {
			tg := w.target(target.Target{Name: name, Kind: target.Web, Web: &target.WebSpec{StartURL: "https://" + name + ".example/"}}, accounts...)
			w.grant(access.Grant{Role: role, Target: tg.ID, Features: access.Web})
			return tg
		}
		none, one := web("none"), web("one", "alice")
		web("two", "alice", "bob")
		if v := w.ask(p, "none", "", access.Web); !v.OK() || v.Account != nil || !v.Record {
			t.Errorf("without accounts: %+v", v)
		}
		if v := w.ask(p, "one", "", access.Web); !v.OK() || v.Account == nil || v.Account.Name != "alice" {
			t.Errorf("with one: %+v", v)
		}
		if v := w.ask(p, "two", "", access.Web); v.OK() || v.Reason != access.NoAccount || !strings.Contains(v.Public, "alice") || !strings.Contains(v.Public, "bob") {
			t.Errorf("with two: %+v", v)
		}
		if v := w.ask(p, "two", "bob", access.Web); !v.OK() || v.Account.Name != "bob" {
			t.Errorf("one of two: %+v", v)
		}
		if v := w.ask(p, "none", "alice", access.Web); v.OK() {
			t.Errorf("an account that is not there: %+v", v)
		}
		if v := w.ask(w.user("mallory"), "none", "", access.Web); v.OK() || v.Reason != access.NoRole {
			t.Errorf("somebody else: %+v", v)
		}
		entries, err := w.List(t.Context(), p, p.Source, "", "", 10)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Target.Name+"/"+e.Account+" "+e.Features.String())
		}
		if s := strings.Join(got, ", "); s != "none/ web, one/alice web, two/alice web, two/bob web" {
			t.Errorf("listed %s", s)
		}
		// A live session is decided by what it was opened with.
		w.login(p)
		for _, spec := range []conn.Spec{
			{Principal: p, TargetID: none.ID, Want: access.Web, Source: p.Source},
			{Principal: p, TargetID: one.ID, Account: "alice", Want: access.Web, Source: p.Source},
		} {
			if d, err := w.Reauthorize(t.Context(), spec); err != nil || !d.OK() {
				t.Errorf("again for %s: %+v, %v", spec.TargetID, d, err)
			}
		}
	})
}

// webNodes stands for the room of web sessions.
type webNodes struct{ down string }

func (n *webNodes) ProbeNodes(context.Context, *target.Target) []fleet.DialStage {
	return []fleet.DialStage{{Name: "carrier", OK: n.down == "", Text: "carrier " + n.down}, {Name: "webproxy", OK: true}}
}

func (n *webNodes) ProbeTLS(context.Context, *target.Target) []fleet.DialStage {
	return []fleet.DialStage{{Name: "tls", OK: true}}
}

func (n *webNodes) Problem() string { return n.down }

// A web target is explained by its nodes, the way to it and its certificate.
func TestExplainWeb(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		nodes := &webNodes{}
		w.Service.c.Web = nodes
		p := w.user("eve")
		tg := w.target(target.Target{Name: "wiki", Kind: target.Web, Web: &target.WebSpec{StartURL: "https://" + ln.Addr().String() + "/"}})
		w.grant(access.Grant{Role: w.role("ops", p), Target: tg.ID, Features: access.Web})
		explain := func() (*Explanation, string) {
			t.Helper()
			e, err := w.Explain(t.Context(), Question{UserID: p.UserID, Target: *tg, Source: p.Source})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range e.Stages {
				name := s.Name
				switch {
				case s.Skipped:
					name += "?"
				case !s.OK:
					name += "!"
				}
				names = append(names, name)
			}
			return e, strings.Join(names, " ")
		}
		if e, got := explain(); !e.Works || got != "user policy carrier webproxy route tunnel edge_policy dns tcp tls" && got != "user policy carrier webproxy route tunnel dns edge_policy tcp tls" {
			t.Errorf("works %t: %s", e.Works, got)
		}
		nodes.down = "is away"
		if e, got := explain(); e.Works || !strings.HasPrefix(got, "user policy carrier! webproxy route") {
			t.Errorf("without a carrier: works %t: %s", e.Works, got)
		}
		nodes.down = ""
		ln.Close()
		if e, got := explain(); e.Works || !strings.HasSuffix(got, "tcp! tls?") {
			t.Errorf("without a server: works %t: %s", e.Works, got)
		}
	})
}
