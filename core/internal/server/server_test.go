package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/vault"
	"caponier/shared/config"
	"caponier/shared/daemon"
)

// testConfig is a core on loopback with every port chosen by the kernel.
func testConfig(t *testing.T) Config {
	t.Helper()
	c := Default()
	c.StateDir = t.TempDir()
	c.Listen = Listen{HTTPS: "127.0.0.1:0", HTTP: "127.0.0.1:0", QUIC: "127.0.0.1:0", Bastion: "127.0.0.1:0", SOCKS: "127.0.0.1:0", Metrics: "127.0.0.1:0", Sessions: config.PortRange{Low: 4000, High: 6000}}
	c.Grace = config.Duration(time.Second)
	c.complete()
	if err := vault.WriteKEK(filepath.Join(c.StateDir, "kek"), vault.GenerateKEK()); err != nil {
		t.Fatal(err)
	}
	return c
}

type running struct {
	Addresses
	client *http.Client
	stop   func() error
}

// start runs a core and waits until it is up.
func start(t *testing.T, c Config) *running {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := New(t.Context(), c, Deps{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	r, w := io.Pipe()
	go func() {
		done <- s.Run(ctx, RunOptions{Stdout: w, ReadyFile: filepath.Join(c.StateDir, "ready")})
		w.Close()
	}()
	line := make([]byte, 256)
	if n, err := r.Read(line); err != nil || !strings.Contains(string(line[:n]), "is ready at https://127.0.0.1:") {
		t.Fatalf("ready line %q, %v; %v", line[:n], err, <-done)
	}
	go io.Copy(io.Discard, r)
	run := &running{}
	data, err := os.ReadFile(filepath.Join(c.StateDir, "ready"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &run.Addresses); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(run.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	run.client = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	run.stop = func() error {
		cancel()
		err := <-done
		tr.CloseIdleConnections()
		return err
	}
	return run
}

func (r *running) get(t *testing.T, url string) (int, http.Header, string) {
	t.Helper()
	resp, err := r.client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func TestCoreStartsServesAndStops(t *testing.T) {
	defer goleak.VerifyNone(t)
	c := testConfig(t)
	for round := range 2 { // the second start finds what the first one left
		r := start(t, c)
		if code, _, body := r.get(t, r.URL+"/readyz"); code != 200 {
			t.Errorf("round %d: readyz: %d %s", round, code, body)
		}
		code, h, body := r.get(t, r.URL+"/")
		if code != 200 || body == "" || h.Get("Strict-Transport-Security") == "" || h.Get("Content-Security-Policy") == "" {
			t.Errorf("console: %d %v", code, h)
		}
		if code, _, _ := r.get(t, r.URL+"/api/v1/me"); code != 401 {
			t.Errorf("anonymous /me: %d", code)
		}
		if code, h, _ := r.get(t, "http://"+r.HTTP+"/x?y=1"); code != 301 || h.Get("Location") != r.URL+"/x?y=1" {
			t.Errorf("redirect: %d %v", code, h)
		}
		if code, _, body := r.get(t, "http://"+r.Metrics+"/metrics"); code != 200 || !strings.Contains(body, `caponier_build_info{component="core"`) {
			t.Errorf("metrics: %d", code)
		}
		if err := r.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	text, err := VerifyAudit(t.Context(), c, nil)
	var events, heads, signed int
	if _, serr := fmt.Sscanf(text, "the audit log verifies: %d events, %d signed heads, signed up to event %d", &events, &heads, &signed); err != nil || serr != nil || signed != events {
		t.Errorf("audit: %q, %v", text, err)
	}
}

func TestCoreSaysWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	t.Run("port taken", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c := testConfig(t)
		c.Listen.Bastion = config.Addr(l.Addr().String())
		_, err = New(t.Context(), c, Deps{Log: log})
		if h, ok := errors.AsType[*daemon.Hinted](err); !ok || !strings.Contains(err.Error(), "listen.bastion") || h.Hint == "" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no key", func(t *testing.T) {
		t.Parallel()
		c := testConfig(t)
		if err := os.Remove(filepath.Join(c.StateDir, "kek")); err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), c, Deps{Log: log}); err == nil || !strings.Contains(err.Error(), "no key-encryption key") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("wrong key", func(t *testing.T) {
		t.Parallel()
		c := testConfig(t)
		if _, err := BootstrapAdmin(t.Context(), c, nil, "root", ""); err != nil {
			t.Fatal(err)
		}
		other := "CAPONIER_KEK=" + vault.GenerateKEK().Text()
		_, err := New(t.Context(), c, Deps{Log: log, Environ: []string{other}})
		if _, ok := errors.AsType[*vault.SealedError](err); !ok {
			t.Errorf("got %v, want a SealedError", err)
		}
	})
	t.Run("old schema on PostgreSQL", func(t *testing.T) {
		t.Parallel()
		c := testConfig(t)
		c.Database.Engine, c.Database.URL = "postgres", config.Secret(dbtest.PostgresURL(t))
		_, err := New(t.Context(), c, Deps{Log: log})
		if h, ok := errors.AsType[*daemon.Hinted](err); !ok || !strings.Contains(h.Hint, "migrate") {
			t.Errorf("got %v", err)
		}
	})
}

func TestCoreRunsOnPostgres(t *testing.T) {
	c := testConfig(t)
	c.Database.Engine, c.Database.URL = "postgres", config.Secret(dbtest.PostgresURL(t))
	if _, err := Migrate(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r := start(t, c)
	if code, _, body := r.get(t, r.URL+"/readyz"); code != 200 {
		t.Errorf("readyz: %d %s", code, body)
	}
	if err := r.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestBuiltinCertificate(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	log := slog.New(slog.DiscardHandler)
	b, err := openBase(t.Context(), c, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	defer b.db.Close()
	now := time.Now()
	clock := func() time.Time { return now }
	builtin, err := builtinCerts(filepath.Join(c.StateDir, "tls"), []string{"localhost"}, b.vault, clock)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := builtin.get(nil)
	again, err := builtinCerts(filepath.Join(c.StateDir, "tls"), []string{"localhost"}, b.vault, clock)
	if err != nil {
		t.Fatal(err)
	}
	second, _ := again.get(nil)
	if string(first.Certificate[1]) != string(second.Certificate[1]) {
		t.Error("the built-in CA changed over a restart")
	}
	now = now.Add(builtinLeafLife - renewBefore + time.Minute)
	if third, _ := again.get(nil); string(third.Certificate[0]) == string(second.Certificate[0]) {
		t.Error("the certificate was not renewed in time")
	}
	sealed, err := os.ReadFile(filepath.Join(c.StateDir, "tls", "ca.key.sealed"))
	if err != nil || strings.Contains(string(sealed), "PRIVATE KEY") {
		t.Errorf("CA key at rest: %v", err)
	}
}
