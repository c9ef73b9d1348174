package fleet

import (
	"context"
	"errors"
	"io"

	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/dial"
	"caponier/shared/edge"
	"caponier/shared/wire"
)

// greeting dials through the fleet and reads the first bytes.
func (k *core) greeting(r DialRequest) (string, Route, error) {
	c, route, err := k.Dial(k.t.Context(), r)
	if err != nil {
		return "", route, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 64)
	n, err := c.Read(b)
	return string(b[:n]), route, err
}

func TestDialThroughExtender(t *testing.T) {
	// Core's clock stands still: what was seen last was seen just now.
	begin := time.Now()
	k := newCore(t, func(c *Config) { c.Now = func() time.Time { return begin } })
	x := testEdge(t, k.url, k.token(nil), state(t), nil)
	k.up(1)
	at := banner(t, "db-1")
	text, route, err := k.greeting(DialRequest{Site: "vpc-a", Address: at, Connection: "con_1"})
	if err != nil || text != "db-1" {
		t.Fatalf("greeting = %q, %v", text, err)
	}
	if route.Node != "ext" || route.Transport != "wss" || route.Binding != "bound" || route.Site != "vpc-a" {
		t.Errorf("route = %+v", route)
	}
	// Both directions, half-close kept.
	c, _, err := k.Dial(t.Context(), DialRequest{Site: "vpc-a", Address: at})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "ping")
	c.CloseWrite()
	b, err := io.ReadAll(c)
	c.Close()
	if string(b) != "db-1ping" || err != nil {
		t.Errorf("echo after half-close = %q, %v", b, err)
	}
	// Optimistic: usable at once, refused by the first read.
	c, _, err = k.Dial(t.Context(), DialRequest{Site: "vpc-a", Address: "169.254.169.254:80", Optimistic: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	c.Close()
	if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused {
		t.Errorf("optimistic dial to metadata: %v", err)
	}
	k.audited(audit.EdgeDialRefused)
	for _, c := range []struct {
		address string
		code    wire.Code
	}{
		{"169.254.169.254:80", wire.CodeRefused}, {"[fe80::1]:22", wire.CodeRefused}, {"0.0.0.0:22", wire.CodeRefused},
		{"127.0.0.99:1", wire.CodeConnRefused}, {"no.such.name.invalid:22", wire.CodeDNS}, {"x", wire.CodeBadRequest},
	} {
		_, _, err := k.greeting(DialRequest{Site: "vpc-a", Address: c.address})
		if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != c.code {
			t.Errorf("Dial(%s) = %v, want code %d", c.address, err, c.code)
		}
	}
	_, _, err = k.greeting(DialRequest{Site: "vpc-b", Address: at})
	if err == nil || !strings.Contains(err.Error(), "no extender of site vpc-b is connected: none was ever enrolled") {
		t.Errorf("unknown site: %v", err)
	}
	x.stop()
	k.up(0)
	_, _, err = k.greeting(DialRequest{Site: "vpc-a", Address: at})
	if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeUnreachable ||
		we.Public != "no extender of site vpc-a is connected (last seen just now: ext)" {
		t.Errorf("stopped extender: %v", err)
	}
	k.audited(audit.EdgeConnected)
	k.audited(audit.EdgeDisconnected)
}

func TestDialDirect(t *testing.T) {
	exempt, err := dial.ParsePrefixes("exempt", []string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	at := banner(t, "near")
	k := newCore(t, func(c *Config) { c.Direct = dial.Rules{Exempt: exempt} })
	if text, route, err := k.greeting(DialRequest{Address: at}); text != "near" || route.Transport != "direct" || err != nil {
		t.Errorf("greeting = %q, %+v, %v", text, route, err)
	}
	strict := newCore(t, nil)
	_, _, err = strict.greeting(DialRequest{Address: at})
	if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused {
		t.Errorf("direct dial to loopback: %v", err)
	}
	strict.audited(audit.EdgeDialRefused)
}

func TestProbe(t *testing.T) {
	k := newCore(t, nil)
	last := func(r DialRequest) DialStage {
		s := k.Probe(t.Context(), r)
		return s[len(s)-1]
	}
	if s := last(DialRequest{Site: "vpc-a", Address: "x:1"}); s.Name != "tunnel" || s.OK || s.Fix == "" {
		t.Errorf("without extender: %+v", s)
	}
	testEdge(t, k.url, k.token(nil), state(t), nil)
	k.up(1)
	if s := last(DialRequest{Site: "vpc-a", Address: "x:1"}); s.Name != "policy" || s.OK {
		t.Errorf("an edge that serves no probe: %+v", s)
	}
}

func TestTwoExtenders(t *testing.T) {
	k := newCore(t, nil)
	tok := k.token(nil)
	named := func(name string) func(*edge.Config) { return func(c *edge.Config) { c.Name = name } }
	one := testEdge(t, k.url, tok, state(t), named("ext-1"))
	testEdge(t, k.url, tok, state(t), named("ext-2"))
	k.up(2)
	at := banner(t, "db-1")
	// Least connections: twenty open ones spread evenly.
	per := map[string][]Conn{}
	for range 20 {
		c, route, err := k.Dial(t.Context(), DialRequest{Site: "vpc-a", Address: at})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		per[route.Node] = append(per[route.Node], c)
	}
	if len(per["ext-1"]) < 8 || len(per["ext-2"]) < 8 {
		t.Errorf("connections: ext-1 %d, ext-2 %d", len(per["ext-1"]), len(per["ext-2"]))
	}
	// Killed: its tunnel breaks, what runs over the other is not touched.
	k.get(one.Info().NodeID).session.Close(nil)
	one.cancel()
	for _, c := range per["ext-2"] {
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "x")
		if b, err := readN(c, len("db-1x")); b != "db-1x" || err != nil {
			t.Fatalf("a connection over the survivor: %q, %v", b, err)
		}
	}
	for _, c := range per["ext-1"] {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a connection over the killed extender ended with %v", err)
		}
	}
	one.stop()
	k.up(1)
	for range 5 {
		if _, route, err := k.greeting(DialRequest{Site: "vpc-a", Address: at}); err != nil || route.Node != "ext-2" {
			t.Fatalf("after the kill: %+v, %v", route, err)
		}
	}
}

func readN(r io.Reader, n int) (string, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return string(b), err
}

func TestSites(t *testing.T) {
	k := newCore(t, nil)
	testEdge(t, k.url, k.token(func(s *TokenSpec) { s.Site = "vpc-a" }), state(t), nil)
	testEdge(t, k.url, k.token(func(s *TokenSpec) { s.Site = "vpc-b" }), state(t), nil)
	k.up(2)
	at := banner(t, "x")
	for _, site := range []string{"vpc-a", "vpc-b"} {
		if _, route, err := k.greeting(DialRequest{Site: site, Address: at}); err != nil || route.Site != site {
			t.Errorf("site %s: %+v, %v", site, route, err)
		}
	}
}

func TestRevoke(t *testing.T) {
	for _, forget := range []bool{false, true} {
		k := newCore(t, nil)
		dir := state(t)
		x := testEdge(t, k.url, k.token(nil), dir, nil)
		k.up(1)
		c, _, err := k.Dial(t.Context(), DialRequest{Site: "vpc-a", Address: banner(t, "x")})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := k.Revoke(t.Context(), audit.System, x.Info().NodeID, forget); err != nil {
			t.Fatal(err)
		}
		// It ends at once, not with the minute's check of all nodes.
		c.SetDeadline(time.Now().Add(patience / 2))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the live connection goes on")
		}
		// The node stops for good and says why.
		why := "revoked"
		if forget {
			why = "does not know this node"
		}
		err = <-x.ended
		x.ended <- err
		if ref, ok := errors.AsType[*edge.RefusedError](err); !ok || ref.Wire.Code != wire.CodeUnauthorized || !strings.Contains(err.Error(), why) {
			t.Errorf("revoked edge ended with %v", err)
		}
		x.stop()
		// A new process with the same identity is refused too.
		y := testEdge(t, k.url, "", dir, nil)
		err = <-y.ended
		y.ended <- err
		if ref, ok := errors.AsType[*edge.RefusedError](err); !ok || ref.Wire.Code != wire.CodeUnauthorized {
			t.Errorf("revoked edge came back: %v", err)
		}
		k.up(0)
		if list := crl(t, k.Fleet); len(list.RevokedCertificateEntries) != 1 {
			t.Errorf("revocation list has %d entries", len(list.RevokedCertificateEntries))
		}
	}
}

// A revocation written by another core reaches this one by notification.
func TestRevokeElsewhere(t *testing.T) {
	d := dbtest.Postgres(t)
	v := newVault(t, d)
	k := startCore(t, d, v, "", nil)
	other, err := New(t.Context(), Config{DB: d, Audit: audit.New(d, time.Now), Vault: v, CoreID: "cor_b"})
	if err != nil {
		t.Fatal(err)
	}
	x := testEdge(t, k.url, k.token(nil), state(t), nil)
	k.up(1)
	start := time.Now()
	if err := other.Revoke(t.Context(), audit.System, x.Info().NodeID, false); err != nil {
		t.Fatal(err)
	}
	k.up(0)
	if d := time.Since(start); d > patience/2 { // the check of all nodes comes every minute
		t.Errorf("tunnel died after %s", d)
	}
}

func TestCopiedIdentity(t *testing.T) {
	k := newCore(t, nil)
	dir := state(t)
	x := testEdge(t, k.url, k.token(nil), dir, nil)
	k.up(1)
	first := k.get(x.Info().NodeID)
	stolen := state(t)
	data, err := os.ReadFile(filepath.Join(dir, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stolen, "identity.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	y := testEdge(t, k.url, "", stolen, nil)
	err = <-y.ended
	y.ended <- err
	if ref, ok := errors.AsType[*edge.RefusedError](err); !ok || ref.Wire.Code != wire.CodeIdentityInUse {
		t.Errorf("the copy ended with %v", err)
	}
	if k.get(x.Info().NodeID) != first {
		t.Error("the copy took over the tunnel")
	}
	k.audited(audit.EdgeCopied)
	// When the first is gone, the identity may move, and that is on record.
	x.stop()
	y.stop()
	k.up(0)
	testEdge(t, k.url, "", stolen, nil)
	k.up(1)
	k.audited(audit.EdgeMoved)
}

// A node that comes back replaces its own old tunnel at once, even if the old
// one has not noticed its end.
func TestReturningNodeReplacesItself(t *testing.T) {
	k := newCore(t, nil)
	dir := state(t)
	x := testEdge(t, k.url, k.token(nil), dir, nil)
	k.up(1)
	id := x.Info().NodeID
	old := k.get(id)
	// The same place, another process: as after kill -9 whose end nobody saw.
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	testEdge(t, k.url, "", dir, nil)
	eventually(t, "replaced", func() bool { n := k.get(id); return n != nil && n != old })
	t.Logf("replaced after %s", time.Since(start))
	x.cancel()
}

func TestWrongCore(t *testing.T) {
	k := newCore(t, nil)
	evil := newCore(t, nil)
	// The token of one core shown to another: its key is not the pinned one.
	x := testEdge(t, evil.url, k.token(nil), state(t), nil)
	err := <-x.ended
	x.ended <- err
	if !errors.Is(err, edge.ErrWrongCore) {
		t.Errorf("enrolment at the wrong core: %v", err)
	}
	// An enrolled node does not talk to another core, and does not stop either:
	// whoever is in between may go away.
	dir := state(t)
	y := testEdge(t, k.url, k.token(nil), dir, nil)
	k.up(1)
	y.stop()
	z := testEdge(t, evil.url, "", dir, nil)
	eventually(t, "an error", func() bool { return z.Info().LastError != "" })
	if evil.connected() != 0 {
		t.Error("connected to the wrong core")
	}
	select {
	case err := <-z.ended:
		t.Errorf("the node stopped: %v", err)
	default:
	}
}

func TestTokenRefusalsStopTheNode(t *testing.T) {
	k := newCore(t, nil)
	once := k.token(func(s *TokenSpec) { s.MaxUses = 1 })
	testEdge(t, k.url, once, state(t), nil)
	k.up(1)
	x := testEdge(t, k.url, once, state(t), nil)
	err := <-x.ended
	x.ended <- err
	if ref, ok := errors.AsType[*edge.RefusedError](err); !ok || !strings.Contains(ref.Wire.Public, "was used 1 of 1 times") {
		t.Errorf("reused token: %v", err)
	}
	k.audited(audit.EnrolmentRefused)
	y := testEdge(t, k.url, "", state(t), nil)
	err = <-y.ended
	y.ended <- err
	if !errors.Is(err, edge.ErrNoToken) {
		t.Errorf("no token: %v", err)
	}
}

// Short lifetimes: the certificate is renewed under a live connection, more
// than once, and a reconnect uses the new one.
func TestRenewal(t *testing.T) {
	k := newCore(t, func(c *Config) {
		// A node that stands still for less than RenewBefore does not lose its identity.
		c.NodeLife, c.RenewBefore, c.StatusEvery = 12*time.Second, 10*time.Second, 500*time.Millisecond
	})
	dir := state(t)
	x := testEdge(t, k.url, k.token(nil), dir, nil)
	k.up(1)
	tunnelBefore := k.get(x.Info().NodeID)
	c, _, err := k.Dial(t.Context(), DialRequest{Site: "vpc-a", Address: banner(t, "live")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	firstEnd := x.Info().CertNotAfter
	eventually(t, "renewed twice, past the first certificate's end", func() bool {
		return x.Info().CertNotAfter.After(firstEnd.Add(2*time.Second)) && time.Now().After(firstEnd.Add(500*time.Millisecond))
	})
	k.audited(audit.EdgeRenewed)
	k.recheckAll(t.Context())
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "!")
	if b, err := readN(c, 5); b != "live!" || err != nil {
		t.Errorf("live connection after renewals: %q, %v", b, err)
	}
	if k.get(x.Info().NodeID) != tunnelBefore {
		t.Error("the renewal dropped the tunnel")
	}
	tunnelBefore.session.Close(nil)
	eventually(t, "reconnected", func() bool { n := k.get(x.Info().NodeID); return n != nil && n != tunnelBefore })
	if got := k.get(x.Info().NodeID).session.Info().Peer.NotAfter; !got.After(firstEnd) {
		t.Error("the new tunnel uses the first certificate")
	}
}

func TestCoreRestart(t *testing.T) {
	d := dbtest.SQLite(t)
	v := newVault(t, d)
	k := startCore(t, d, v, "", nil)
	x := testEdge(t, k.url, k.token(nil), state(t), nil)
	k.up(1)
	k.stop()
	eventually(t, "the edge notices", func() bool { return !x.Info().Connected })
	start := time.Now()
	again := startCore(t, d, v, k.addr, nil)
	again.up(1)
	t.Logf("back after %s", time.Since(start))
}

func TestCordonAndRules(t *testing.T) {
	k := newCore(t, nil)
	rules := make(chan wire.DialRules, 4)
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+wire.PathEdgeRules, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if strings.Contains(string(b), `"22"`) {
			rules <- wire.DialRules{Ports: []string{"22"}}
		}
		w.WriteHeader(204)
	})
	x := testEdge(t, k.url, k.token(nil), state(t), func(c *edge.Config) { c.Control = mux })
	k.up(1)
	id, at := x.Info().NodeID, banner(t, "x")
	ctx := context.Background()
	if _, err := k.apiDrainEdge(ctx, &idIn{ID: id}); err != nil {
		t.Fatal(err)
	}
	_, _, err := k.greeting(DialRequest{Site: "vpc-a", Address: at})
	if err == nil || !strings.Contains(err.Error(), "ext is cordoned") {
		t.Errorf("cordoned: %v", err)
	}
	e, err := k.change(ctx, id, audit.EdgeChanged, func(e *nodeRow, fields map[string]string) error {
		e.Cordoned, e.Rules = false, wire.DialRules{Ports: []string{"22"}}
		fields["rules"] = "ports 22"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-rules:
	case <-time.After(patience):
		t.Fatal("the edge was not told its rules")
	}
	if out := k.show(e); out.Health != healthOnline || out.Tunnel == nil || out.Tunnel.Core != "cor_a" || out.Tunnel.Build != "test" {
		t.Errorf("shown as %+v", out)
	}
	if _, _, err := k.greeting(DialRequest{Site: "vpc-a", Address: at}); err != nil {
		t.Errorf("uncordoned: %v", err)
	}
	eventually(t, "reported", func() bool { n := k.get(id); return n != nil && n.status.Load() != nil })
}

func TestClockSkew(t *testing.T) {
	k := newCore(t, nil)
	x := testEdge(t, k.url, k.token(nil), state(t), func(c *edge.Config) { c.Now = func() time.Time { return time.Now().Add(120 * time.Second) } })
	k.up(1)
	k.audited(audit.EdgeClockSkew)
	out, err := k.apiGetEdge(t.Context(), &idIn{ID: x.Info().NodeID})
	if err != nil || len(out.Body.Warnings) != 1 || !strings.Contains(out.Body.Warnings[0], "clock differs") {
		t.Errorf("shown as %+v, %v", out, err)
	}
}

// A load balancer that ends TLS: inner TLS takes over, and nothing in the
// middle sees the token or what flows.
func TestTLSEndedInBetween(t *testing.T) {
	k := newCore(t, nil)
	lb := terminator(t, k.addr)
	tok := k.token(nil)
	testEdge(t, lb.url, tok, state(t), nil)
	k.up(1)
	secret := "plain-canary-7f3a"
	at := banner(t, "hello")
	c, route, err := k.Dial(t.Context(), DialRequest{Site: "vpc-a", Address: at})
	if err != nil {
		t.Fatal(err)
	}
	if route.Binding != "inner" {
		t.Errorf("binding = %s, want inner", route.Binding)
	}
	io.WriteString(c, secret)
	if b, err := readN(c, len("hello"+secret)); err != nil || b != "hello"+secret {
		t.Errorf("through the terminator: %q, %v", b, err)
	}
	c.Close()
	seen := lb.seen()
	if !strings.Contains(seen, "/edge/v1/tunnel") {
		t.Fatal("the terminator saw no request: the capture is of no use")
	}
	for _, canary := range []string{secret, strings.Split(tok, ".")[2], "/v1/hello", at} {
		if strings.Contains(seen, canary) {
			t.Errorf("the terminator saw %q", canary)
		}
	}
}
