package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"caponier/shared/node"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/tunnel/tunneltest"
	"caponier/shared/wire"
	"caponier/webproxy/internal/session"
)

func command(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	code = binary().Main(args, environ, &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const core = "core = \"https://core.test\"\n"
	bad := file("bad.toml", core+"address = \"here\"\nresolver = \"dns:53\"\nmax_sessions = 0\nmax_connections = 0\ndeny = [\"10.0.0.0/40\"]\n[listen]\ncarriers = \"off\"\n")
	wide := file("wide.toml", core+"[listen]\nclear = \"0.0.0.0:18080\"\n")
	empty := file("empty.pem", "nothing")
	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		want    []string
	}{
		{"version", nil, []string{"version"}, 0, []string{"caponier-webproxy dev"}},
		{"example", nil, []string{"config", "check", "--config", "../deploy/config/webproxy.toml"}, 0, []string{"is valid"}},
		{"clear on loopback", []string{"CAPONIER_LISTEN_CLEAR=127.0.0.1:18080"}, []string{"config", "check", "--core", "https://core.test"}, 0, []string{"is valid"}},
		{"clear on all addresses", nil, []string{"config", "check", "--config", wide}, 3, []string{"listen.clear", "neither a loopback address nor that of a bridge"}},
		{"values", nil, []string{"config", "check", "--config", bad}, 3, []string{"address: must be host:port", "resolver", "max_sessions", "max_connections", "deny[0]", "listen.carriers"}},
		{"no core", nil, []string{"config", "check"}, 3, []string{"core: is missing"}},
		{"no token", []string{"CAPONIER_LISTEN_CARRIERS=127.0.0.1:0", "CAPONIER_ADDRESS=proxy.test:18443"}, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state")}, 1, []string{"no enrolment token", "--kind webproxy"}},
		{"no roots", []string{"CAPONIER_ROOTS=" + empty}, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state2")}, 1, []string{"holds no certificates"}},
	} {
		code, stdout, stderr := command(t, c.environ, c.args...)
		if code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", c.name, code, c.code, stdout, stderr)
		}
		for _, w := range c.want {
			if !strings.Contains(stdout+stderr, w) {
				t.Errorf("%s: %q is missing in\n%s%s", c.name, w, stdout, stderr)
			}
		}
	}
}

func TestAddress(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ address, carriers, want string }{
		{"", ":18443", host + ":18443"}, {"", "0.0.0.0:1", host + ":1"}, {"", "10.0.0.1:1", "10.0.0.1:1"}, {"a:1", ":18443", "a:1"}, {"", "off", ""},
	} {
		var cfg Config
		cfg.Address = c.address
		if err := cfg.Listen.Carriers.UnmarshalText([]byte(c.carriers)); err != nil {
			t.Fatal(err)
		}
		if got, err := cfg.address(); got != c.want || err != nil {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// Cores may use the control port, other nodes and strangers may not.
func TestMayControl(t *testing.T) {
	fleet, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	operators, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	chain := func(c tls.Certificate) (out []*x509.Certificate) {
		for _, der := range c.Certificate {
			x, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, x)
		}
		return out
	}
	core, err := fleet.Core("core_1")
	if err != nil {
		t.Fatal(err)
	}
	carrier, err := fleet.Edge("carrier", "nod_1")
	if err != nil {
		t.Fatal(err)
	}
	operator, err := operators.Edge("operator", "bob")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		chain   []*x509.Certificate
		clients *x509.CertPool
		want    bool
	}{
		"core": {chain(core.Certificate), nil, true}, "carrier": {chain(carrier.Certificate), nil, false}, "nobody": {nil, operators.Roots(), false},
		"operator": {chain(operator.Certificate), operators.Roots(), true}, "operator not named": {chain(operator.Certificate), nil, false},
		"carrier beside operators": {chain(carrier.Certificate), operators.Roots(), false},
	} {
		if err := mayControl(c.chain, fleet.Roots(), c.clients); (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The control port serves a core and nobody else.
func TestControlPort(t *testing.T) {
	fleet, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	own, err := fleet.Edge("webproxy", "nod_w")
	if err != nil {
		t.Fatal(err)
	}
	sessions := session.NewManager(session.Config{Max: 5, Tunnel: func() tunnel.Session { return nil }, Log: slog.New(slog.DiscardHandler)})
	const key = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
	if ack := sessions.Put(wire.WebProxySession{ID: "con_1", Revision: 7, StartURL: "https://app.test", Key: key, Policy: []byte("{}"), User: "alice"}); ack.Error != nil {
		t.Fatal(ack.Error)
	}
	parts := &node.Parts{Log: slog.New(slog.DiscardHandler), Registry: telemetry.NewRegistry("webproxy", "test"), Health: telemetry.NewHealth()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() {
		done <- serveControl(ctx, l, parts, sessions, func() (tls.Certificate, *x509.CertPool, error) { return own.Certificate, own.Roots, nil }, nil)
	}()
	go func() { done <- sessions.Run(ctx) }()
	get := func(cert *tls.Certificate, path string) (string, error) {
		c := &tls.Config{InsecureSkipVerify: true}
		if cert != nil {
			c.Certificates = []tls.Certificate{*cert}
		}
		tr := &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + l.Addr().String() + path)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	core, err := fleet.Core("core_1")
	if err != nil {
		t.Fatal(err)
	}
	carrier, err := fleet.Edge("carrier", "nod_c")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/healthz": "", "/metrics": "caponier_build_info", wire.PathWebProxySessions: `"id":"con_1","revision":7`} {
		got, err := get(&core.Certificate, path)
		if err != nil || !strings.Contains(got, want) || strings.Contains(got, key) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		for name, cert := range map[string]*tls.Certificate{"a carrier": &carrier.Certificate, "nobody": nil} {
			if got, err := get(cert, path); err == nil {
				t.Errorf("%s gets %s: %q", name, path, got)
			}
		}
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Core is asked as soon as it is connected, not when somebody looks again.
func TestAwaitTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
		defer near.Close(nil)
		defer far.Close(nil)
		began := time.Now()
		live := func() tunnel.Session {
			if time.Since(began) < time.Second {
				return nil
			}
			return near
		}
		if s, err := awaitTunnel(t.Context(), live); err != nil || s != near || time.Since(began) > 1100*time.Millisecond {
			t.Errorf("%v, %v after %v", s, err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := awaitTunnel(ctx, func() tunnel.Session { return nil }); err == nil {
			t.Error("a tunnel out of nothing")
		}
	})
}
