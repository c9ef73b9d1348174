package node

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/shared/config"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

type own struct {
	Config
	Size int `toml:"size"`
}

func (c *own) Validate() []config.Problem {
	ps := c.Config.Validate()
	if c.Size > 10 {
		ps = append(ps, config.Problem{Key: "size", Text: "must be at most 10"})
	}
	return ps
}

func binary(build func(context.Context, *own, *Parts) error) *Program[own] {
	return &Program[own]{Name: "caponier-test", Kind: wire.Extender, Text: "A test.", Does: "Connect and test",
		Defaults: func(c *own) { c.Size = 3 },
		Node:     func(c *own) *Config { return &c.Config },
		Build:    build,
		Commands: []Command[own]{{Name: "measure", Help: "Measure.", Run: func(_ context.Context, c *own, log *slog.Logger) error {
			if c.Size != 4 {
				return errors.New("no size was read")
			}
			return nil
		}}},
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "test.toml")
	if err := os.WriteFile(file, []byte("size = 4\nstate = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		want    string
	}{
		{"help", nil, []string{"--help"}, 0, "measure"},
		{"help has examples", nil, []string{"--help"}, 0, " caponier-test run --config /etc/caponier/test.toml\n"},
		{"and of further commands", nil, []string{"--help"}, 0, " caponier-test measure --config /etc/caponier/test.toml\n"},
		{"run's help", nil, []string{"run", "--help"}, 0, "Connect and test; enrols first"},
		{"version", nil, []string{"version"}, 0, "caponier-test dev"},
		{"own key and common key", []string{"CAPONIER_SIZE=11", "CAPONIER_TRANSPORT=pigeon"}, []string{"config", "check", "--core", "https://core.test"}, 3, "size: must be at most 10"},
		{"common key", []string{"CAPONIER_TRANSPORT=pigeon"}, []string{"config", "check", "--core", "https://core.test"}, 3, "transport: must be wss, quic or auto"},
		{"core is needed", nil, []string{"config", "check", "--config", file}, 3, "core: is missing"},
		{"a command needs no core", nil, []string{"measure", "--config", file}, 0, ""},
		{"and fails with its error", nil, []string{"measure"}, 1, "no size was read"},
		{"unknown key", []string{"CAPONIER_SIZZE=1"}, []string{"config", "check", "--core", "https://core.test"}, 3, "CAPONIER_SIZE"},
		{"no token", nil, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state")}, 1, "no enrolment token"},
	} {
		var out, errs strings.Builder
		code := binary(func(_ context.Context, c *own, p *Parts) error {
			_, err := p.Edge(c.Edge(wire.Extender, p.Log))
			return err
		}).Main(c.args, c.environ, &out, &errs)
		if code != c.code || !strings.Contains(out.String()+errs.String(), c.want) {
			t.Errorf("%s: exit %d, want %d and %q\n%s%s", c.name, code, c.code, c.want, out.String(), errs.String())
		}
	}
}

func TestDefaults(t *testing.T) {
	c := defaultConfig("caponier-test", []string{"STATE_DIRECTORY=/var/lib/a:/var/lib/b"})
	if e := c.Edge(wire.Router, nil); e.State != "/var/lib/a" || e.Transport != tunnel.WSS || e.Kind != wire.Router {
		t.Errorf("with STATE_DIRECTORY: %+v", e)
	}
	c = defaultConfig("caponier-test", nil)
	c.Transport = transportAuto
	if e := c.Edge(wire.Router, nil); e.State != "/var/lib/caponier-test" || e.Transport != "" {
		t.Errorf("auto: %+v", e)
	}
}

// What was opened is closed in the opposite order, also when a later part of
// the start fails.
func TestClosesWhatWasOpened(t *testing.T) {
	var closed []string
	note := func(name string) func() error {
		return func() error { closed = append(closed, name); return nil }
	}
	var errs strings.Builder
	code := binary(func(_ context.Context, _ *own, p *Parts) error {
		p.Close(note("first"))
		p.Close(note("second"))
		p.Health.Add("never", true, func(context.Context) error { return http.ErrServerClosed })
		return nil
	}).Main([]string{"run", "--core", "https://core.test"}, []string{"CAPONIER_DEBUG=192.0.2.1:1", "CAPONIER_TOKEN=x"}, &errs, &errs)
	if code != 1 || !strings.Contains(errs.String(), "debug listener") || strings.Join(closed, " ") != "second first" {
		t.Errorf("exit %d, closed %v: %s", code, closed, errs.String())
	}
}
