package webaccess

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// Explanations say which node would take a session, or why none; and whether
// the target's certificate is believed as a session would, with the fix.
func TestExplain(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	k := w.start(func(k *core, c *Config) {
		c.Fleet = &dialledAt{Fleet: c.Fleet, at: strings.TrimPrefix(srv.URL, "https://")}
	})
	tg := k.wiki(nil)
	stages := k.svc.ProbeNodes(t.Context(), tg)
	if len(stages) != 2 || stages[0].Name != "carrier" || stages[0].OK || stages[0].Fix == "" || stages[1].Name != "webproxy" || stages[1].OK {
		t.Errorf("without nodes: %+v", stages)
	}
	if got := k.svc.Problem(); got == "" {
		t.Error("no problem without nodes")
	}
	k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	stages = k.svc.ProbeNodes(t.Context(), tg)
	if !stages[0].OK || !stages[1].OK || !strings.Contains(stages[0].Text, "c1 would take the session: 0 of 10 in use, Firefox, 2 browsers waiting") {
		t.Errorf("with nodes: %+v", stages)
	}
	if got := k.svc.Problem(); got != "" {
		t.Errorf("problem %q", got)
	}
	anchor := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	for _, tc := range []struct {
		name      string
		change    func(*target.WebSpec)
		ok        bool
		text, fix string
	}{
		{"unknown authority", func(w *target.WebSpec) { w.Policy.TLS.ServerName = "example.com" }, false, "authority that is not believed", "policy.tls.anchors"},
		{"with its anchor, another name", func(w *target.WebSpec) { w.Policy.TLS.Anchors = anchor }, false, "certificate is for example.com, *.example.com, not for wiki.example", "server_name"},
		{"with anchor and name", func(w *target.WebSpec) { w.Policy.TLS.Anchors, w.Policy.TLS.ServerName = anchor, "example.com" }, true, "TLS 1.3, certificate for example.com", ""},
		{"not checked", func(w *target.WebSpec) { w.Policy.TLS.Unchecked = true }, true, "not checked, so nothing is injected", ""},
		{"too old", func(w *target.WebSpec) {
			w.Policy.TLS.Unchecked, w.Policy.TLS.Min, w.Policy.TLS.Max = true, "1.0", "1.1"
		}, false, "handshake failed", "policy.tls.min"},
		{"http", func(w *target.WebSpec) { w.StartURL, w.Insecure = "http://wiki.example/", true }, true, "nothing is encrypted", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, web := *tg, *tg.Web
			c.Web = &web
			if tc.change != nil {
				tc.change(&web)
			}
			st := k.svc.ProbeTLS(t.Context(), &c)
			if len(st) != 1 || st[0].OK != tc.ok || !strings.Contains(st[0].Text, tc.text) || !strings.Contains(st[0].Fix, tc.fix) {
				t.Errorf("%+v", st)
			}
		})
	}
	// What the access group believes counts, too.
	w.setAnchors([]*x509.Certificate{srv.Certificate()})
	c, web := *tg, *tg.Web
	c.Web, web.Policy.TLS.ServerName = &web, "example.com"
	if st := k.svc.ProbeTLS(t.Context(), &c); !st[0].OK {
		t.Errorf("with the group's anchor: %+v", st)
	}
	if c.Web.Policy.TLS.Anchors != "" {
		t.Error("the target was changed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if st := k.svc.ProbeTLS(ctx, &c); st[0].OK || st[0].Fix == "" {
		t.Errorf("in no time: %+v", st)
	}
}

// The anchors of the access group reach the webproxy, also when they change.
func TestGroupAnchors(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	srv := httptest.NewTLSServer(nil)
	t.Cleanup(srv.Close)
	k := w.start()
	k.node(wire.Carrier, "c1")
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	if p, _ := proxy.forProxy(s.ID); strings.Contains(string(p.Policy), "CERTIFICATE") {
		t.Error("anchors nobody gave")
	}
	w.setAnchors([]*x509.Certificate{srv.Certificate()})
	k.notify("group", "grp_1")
	eventually(t, "the webproxy believes it", func() bool {
		p, _ := proxy.forProxy(s.ID)
		return strings.Contains(string(p.Policy), "CERTIFICATE")
	})
}
