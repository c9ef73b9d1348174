package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Name   string            `toml:"name"`
	Count  int               `toml:"count"`
	Wait   Duration          `toml:"wait"`
	Pass   Secret            `toml:"pass"`
	Tags   []string          `toml:"tags"`
	Labels map[string]string `toml:"labels"`
	Listen struct {
		HTTPS Addr      `toml:"https"`
		Ports PortRange `toml:"ports"`
		On    bool      `toml:"on"`
	} `toml:"listen"`
}

func (s *sample) Validate() []Problem {
	if s.Count > 10 {
		return []Problem{{Key: "count", Text: "must be at most 10"}}
	}
	return nil
}

func write(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLoadFileAndEnvironment(t *testing.T) {
	t.Parallel()
	f := write(t, "name = \"a\"\nwait = \"90d\"\ntags = [\"x\",\"y\"]\nlabels = {zone=\"a\"}\n[listen]\nhttps = \":443\"\nports = \"4000-6000\"\n")
	var s sample
	s.Count = 3
	err := Load(&s, f, []string{"CAPONIER_LISTEN_HTTPS=127.0.0.1:0", "CAPONIER_PASS=hunter2", "CAPONIER_TAGS=q, r", "CAPONIER_LISTEN_ON=true", "HOME=/x"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "a" || s.Count != 3 || s.Wait.Std() != 90*24*time.Hour || s.Listen.HTTPS != "127.0.0.1:0" ||
		s.Pass.Reveal() != "hunter2" || fmt.Sprint(s.Tags) != "[q r]" || s.Listen.Ports != (PortRange{4000, 6000}) || !s.Listen.On || s.Labels["zone"] != "a" {
		t.Errorf("got %+v", s)
	}
}

func TestLoadReportsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	f := write(t, "nmae = \"a\"\ncount = \"many\"\nwait = \"soon\"\n[listen]\nhttps = \"nowhere\"\nports = \"9-1\"\n")
	var s sample
	err := Load(&s, f, []string{"CAPONIER_COUNTS=1"})
	p, ok := errors.AsType[*Problems](err)
	if !ok {
		t.Fatalf("got %v, want *Problems", err)
	}
	for _, want := range []string{"nmae: unknown key", "did you mean name?", "count: must be a whole number", "wait: \"soon\" is not a duration",
		"listen.https", "listen.ports", "CAPONIER_COUNTS", "6 problems"} {
		if !strings.Contains(p.Error(), want) {
			t.Errorf("missing %q in:\n%s", want, p)
		}
	}
}

func TestLoadMissingFileAndValidate(t *testing.T) {
	t.Parallel()
	var s sample
	if err := Load(&s, filepath.Join(t.TempDir(), "no.toml"), nil); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("got %v", err)
	}
	if err := Load(&s, write(t, "count = 11"), nil); err == nil || !strings.Contains(err.Error(), "count: must be at most 10") {
		t.Errorf("got %v", err)
	}
	// Keys and values in one go; a value that could not be taken, once.
	if err := Load(&s, write(t, "count = 11\nnam = \"x\""), nil); err == nil || !strings.Contains(err.Error(), "count: must be at most 10") || !strings.Contains(err.Error(), "nam: ") {
		t.Errorf("got %v", err)
	}
	if err := Load(&sample{Count: 11}, write(t, "count = \"many\""), nil); err == nil || strings.Count(err.Error(), "count: ") != 1 {
		t.Errorf("got %v", err)
	}
	if err := Load(&s, write(t, "count = ["), nil); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("got %v", err)
	}
}

func TestSecretNeverShows(t *testing.T) {
	t.Parallel()
	s := Secret("hunter2")
	js, _ := json.Marshal(map[string]any{"s": s})
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "s", s, "in", struct{ S Secret }{s})
	out := fmt.Sprintf("%v %s %+v %#v %q %x", s, s, struct{ S Secret }{s}, s, s, s) + string(js) + b.String()
	if strings.Contains(out, "hunter2") || strings.Contains(out, fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("the secret shows: %s", out)
	}
}

func TestDurationRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range []string{"30s", "5m0s", "12h0m0s", "90d", "0s"} {
		var d Duration
		if err := d.UnmarshalText([]byte(want)); err != nil || d.String() != want {
			t.Errorf("%s: got %s, %v", want, d, err)
		}
	}
	for _, bad := range []string{"", "5", "-1s", "x", "-3d"} {
		var d Duration
		if err := d.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was accepted as %s", bad, d)
		}
	}
}

type Common struct {
	Core string `toml:"core"`
	Deep struct {
		Size int `toml:"size"`
	} `toml:"deep"`
}

type around struct {
	Common
	Own string `toml:"own"`
}

// The keys of an embedded struct stand beside those of the struct around it.
func TestEmbeddedStruct(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(file, []byte("core = \"a\"\nown = \"b\"\n[deep]\nsize = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var c around
	if err := Load(&c, file, []string{"CAPONIER_OWN=c", "CAPONIER_CORE=d"}); err != nil || c.Core != "d" || c.Own != "c" || c.Deep.Size != 3 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := os.WriteFile(file, []byte("cor = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Load(&c, file, nil); err == nil || !strings.Contains(err.Error(), "did you mean core?") {
		t.Errorf("a misspelt key: %v", err)
	}
}

func TestNumbersWithFractions(t *testing.T) {
	type numbers struct {
		Share float64 `toml:"share"`
	}
	for text, want := range map[string]float64{"share = 1.5": 1.5, "share = 95": 95} {
		var c numbers
		if err := Load(&c, write(t, text), nil); err != nil || c.Share != want {
			t.Errorf("%s: %v %v", text, c.Share, err)
		}
	}
	for _, text := range []string{`share = "x"`, "share = nan", "share = inf"} {
		var c numbers
		if err := Load(&c, write(t, text), nil); err == nil || !strings.Contains(err.Error(), "share: must be a number") {
			t.Errorf("%s: %v", text, err)
		}
	}
	var c numbers
	if err := Load(&c, "", []string{"CAPONIER_SHARE=2.5"}); err != nil || c.Share != 2.5 {
		t.Errorf("environment: %v %v", c.Share, err)
	}
}
