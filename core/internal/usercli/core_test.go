package usercli

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"caponier/core/internal/server"
	"caponier/core/internal/vault"
	"caponier/shared/config"
)

// startCore runs a core of its own on SQLite, with the administrator root.
func startCore(t *testing.T) (at server.Addresses, password string) {
	t.Helper()
	state := t.TempDir()
	if err := vault.WriteKEK(filepath.Join(state, "kek"), vault.GenerateKEK()); err != nil {
		t.Fatal(err)
	}
	const anywhere = "127.0.0.1:0"
	c, err := server.Load("", []string{"CAPONIER_STATE_DIR=" + state, "CAPONIER_GRACE=1s",
		"CAPONIER_LISTEN_HTTPS=" + anywhere, "CAPONIER_LISTEN_HTTP=" + anywhere, "CAPONIER_LISTEN_QUIC=" + anywhere,
		"CAPONIER_LISTEN_BASTION=" + anywhere, "CAPONIER_LISTEN_SOCKS=" + anywhere, "CAPONIER_LISTEN_METRICS=" + anywhere})
	if err != nil {
		t.Fatal(err)
	}
	if password, err = server.BootstrapAdmin(t.Context(), c, nil, "root", ""); err != nil {
		t.Fatal(err)
	}
	s, err := server.New(t.Context(), c, server.Deps{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ready := filepath.Join(state, "ready")
	r, w := io.Pipe()
	go func() {
		done <- s.Run(ctx, server.RunOptions{Stdout: w, ReadyFile: ready})
		w.Close()
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	out := bufio.NewReader(r)
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	data, err := os.ReadFile(ready)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &at); err != nil {
		t.Fatal(err)
	}
	return at, password
}

// TestCoreScript runs the commands against a real core.
func TestCoreScript(t *testing.T) {
	at, password := startCore(t)
	c, err := connect(&profile{URL: at.URL, CAFile: at.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	var in loginAnswer
	if err := c.do(t.Context(), "POST", "/login", map[string]string{"username": "root", "password": password}, &in); err != nil {
		t.Fatal(err)
	}
	c.token = config.Secret(in.Token)
	for _, made := range []struct{ path, body string }{
		{"/roles", `{"name":"plant-admins","permissions":["targets:view"],"comment":"shift"}`},
		{"/secrets", `{"name":"plc password","kind":"password","value":"x"}`},
		{"/targets", `{"name":"plc-3","kind":"ssh","host":"10.0.0.9","comment":"line 3","tags":["plant=3"]}`},
		{"/targets", `{"name":"hmi","kind":"web","web":{"start_url":"https://hmi.example/start"}}`},
		{"/targets", `{"name":"bus","kind":"network","network":{"destinations":[{"addrs":"10.20.0.0/24","proto":"tcp","ports":"502"}]}}`},
	} {
		if err := c.do(t.Context(), "POST", made.path, json.RawMessage(made.body), nil); err != nil {
			t.Fatalf("%s %s: %v", made.path, made.body, err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/core",
		Setup: func(env *testscript.Env) error {
			env.Setenv("CAPONIER_CONFIG_DIR", env.WorkDir+"/config")
			env.Setenv("CAPONIER_PASSWORD", password)
			env.Setenv("CORE", at.URL)
			env.Setenv("CA", at.CAFile)
			return nil
		},
	})
}
