package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/shared/config"
)

func load(t *testing.T, text string, environ ...string) (Config, error) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "core.toml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(f, environ)
}

func TestDefaultsAreValidAndComplete(t *testing.T) {
	t.Parallel()
	c, err := Load("", []string{"CAPONIER_STATE_DIR=/srv/pam", "CAPONIER_LISTEN_HTTPS=127.0.0.1:8443"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Database.Path != "/srv/pam/core.db" || c.Recording.Dir != "/srv/pam/recordings" || c.Listen.QUIC != "127.0.0.1:8443" {
		t.Errorf("got %+v", c)
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	t.Parallel()
	_, err := load(t, `
state_dir = ""
grace = "soon"
[listen]
https = "off"
sesions = "1-2"
`)
	// Keys, types and values in one go.
	if p, ok := errors.AsType[*config.Problems](err); !ok || len(p.List) != 4 {
		t.Fatalf("got %v, want four problems", err)
	}
	_, err = load(t, `
state_dir = ""
[listen]
https = "off"
[public]
url = "http://pam"
[tls]
cert_file = "/nonexistent/c.pem"
[database]
engine = "oracle"
[proxy]
trusted = ["10.0.0.1"]
hops = 0
[log]
level = "loud"
`)
	for _, want := range []string{"state_dir", "listen.https", "public.url", "tls: cert_file and key_file go together", "tls.cert_file", "database.engine", "proxy.trusted[0]", "proxy.hops", "log:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in %v", want, err)
		}
	}
}

func TestPostgresNeedsOneURL(t *testing.T) {
	t.Parallel()
	if _, err := load(t, "[database]\nengine = \"postgres\"\n"); err == nil || !strings.Contains(err.Error(), "database.url") {
		t.Errorf("got %v", err)
	}
	c, err := load(t, "[database]\nengine = \"postgres\"\n", "CAPONIER_DATABASE_URL=postgres://u:hunter2@localhost/x")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := c.database(); err != nil || d.URL != "postgres://u:hunter2@localhost/x" {
		t.Errorf("got %q, %v", d.URL, err)
	}
}
