package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKEKFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kek")
	k := GenerateKEK()
	if err := WriteKEK(path, k); err != nil {
		t.Fatal(err)
	}
	got, err := LoadKEK(path)
	if err != nil || got != k {
		t.Fatalf("read back: %v, %v", got, err)
	}
	if err := WriteKEK(path, GenerateKEK()); !errors.Is(err, os.ErrExist) {
		t.Errorf("an existing key file was overwritten: %v", err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644, 0o660, 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKEK(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if _, err := LoadKEK(dir); err == nil {
		t.Error("a directory is a key")
	}
	if _, err := LoadKEK(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestKEKText(t *testing.T) {
	k := GenerateKEK()
	if got, err := ParseKEK("  " + k.Text() + "\n"); err != nil || got != k {
		t.Errorf("%v, %v", got, err)
	}
	secret := strings.TrimPrefix(k.Text(), kekPrefix)
	for _, bad := range []string{"", secret, kekPrefix, kekPrefix + secret[:40], k.Text() + "AA", kekPrefix + "!" + secret[1:], "caponier-kek-2:" + secret} {
		if _, err := ParseKEK(bad); !errors.Is(err, ErrKEK) || bad != "" && len(bad) > 20 && strings.Contains(err.Error(), bad[len(bad)-20:]) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestKEKFromEnvLeavesNothingBehind(t *testing.T) {
	k := GenerateKEK()
	t.Setenv("CAPONIER_TEST_KEK", k.Text())
	got, err := KEKFromEnv("CAPONIER_TEST_KEK")
	if err != nil || got != k {
		t.Fatalf("%v, %v", got, err)
	}
	if _, ok := os.LookupEnv("CAPONIER_TEST_KEK"); ok {
		t.Error("the key is still in the environment")
	}
	if _, err := KEKFromEnv("CAPONIER_TEST_KEK"); !errors.Is(err, ErrKEK) {
		t.Errorf("an unset variable: %v", err)
	}
}

func TestKEKDoesNotPrint(t *testing.T) {
	k := GenerateKEK()
	b, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	out := string(b)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
		out += fmt.Sprintf(verb+verb, k, &k)
		out += fmt.Sprintf(verb, struct{ K KEK }{k})
	}
	raw := fmt.Sprintf("%x", k.key)
	dec := strings.Trim(fmt.Sprintf("%d", k.key), "[]")
	for _, leak := range []string{raw[:16], strings.ToUpper(raw[:16]), dec[:20], strings.TrimPrefix(k.Text(), kekPrefix)[:16]} {
		if strings.Contains(out, leak) {
			t.Errorf("printing shows key material: %s", out)
		}
	}
	if !strings.Contains(out, k.ID()) {
		t.Error("printing does not show the ID")
	}
}

func FuzzParseKEK(f *testing.F) {
	f.Add(GenerateKEK().Text())
	f.Add(kekPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKEK(s)
		if err == nil && k.Text() != strings.TrimSpace(s) {
			t.Fatalf("two texts of one key: %q", s)
		}
	})
}
