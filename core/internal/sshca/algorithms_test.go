package sshca

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"
)

func TestDefaultsAreModern(t *testing.T) {
	a := DefaultAlgorithms()
	if a.KeyExchanges[0] != "mlkem768x25519-sha256" {
		t.Errorf("first key exchange is %s", a.KeyExchanges[0])
	}
	insecure := ssh.InsecureAlgorithms()
	for _, l := range []struct{ have, bad []string }{
		{a.KeyExchanges, insecure.KeyExchanges}, {a.Ciphers, insecure.Ciphers}, {a.MACs, insecure.MACs}, {a.HostKeys, insecure.HostKeys},
	} {
		if len(l.have) == 0 {
			t.Error("an empty list of algorithms")
		}
		for _, bad := range l.bad {
			if slices.Contains(l.have, bad) {
				t.Errorf("%s is offered by default", bad)
			}
		}
	}
}

func TestRulesMatchInOrder(t *testing.T) {
	rules, err := ParseRules(`
# switches of the plant
plant/core-sw.example     kex=+diffie-hellman-group-exchange-sha1   # the first match counts
plant/*.example           kex=+diffie-hellman-group14-sha1 hostkeys=+ssh-rsa
*/10.9.0.0/16             ciphers=+aes128-cbc macs=-hmac-sha1
legacy.example            kex=diffie-hellman-group1-sha1
2001:db8::/32             hostkeys=^ssh-rsa
192.0.2.7                 macs=hmac-sha1
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(rules) != 6 {
		t.Fatalf("%d rules", len(rules))
	}
	d := DefaultAlgorithms()
	for _, c := range []struct {
		site, host string
		kex        string // the last one offered
		cipher     string // the last one
		firstKey   string
	}{
		{"plant", "core-sw.example", "diffie-hellman-group-exchange-sha1", "", ""},
		{"plant", "Other.Example.", "diffie-hellman-group14-sha1", "", ""},
		{"office", "other.example", "", "", ""},
		{"", "other.example", "", "", ""},
		{"plant", "10.9.1.1", "", "aes128-cbc", ""},
		{"office", "10.9.1.1", "", "aes128-cbc", ""},
		{"", "10.9.1.1", "", "aes128-cbc", ""},
		{"", "::ffff:10.9.1.1", "", "aes128-cbc", ""},
		{"", "10.10.1.1", "", "", ""},
		{"", "legacy.example", "diffie-hellman-group1-sha1", "", ""},
		{"plant", "legacy.example", "diffie-hellman-group14-sha1", "", ""},
		{"office", "legacy.example", "", "", ""},
		{"", "2001:db8::5", "", "", "ssh-rsa"},
	} {
		a, err := rules.For(c.site, c.host)
		if err != nil {
			t.Fatal(err)
		}
		want := func(what, got, special, normal string) {
			if special == "" {
				special = normal
			}
			if got != special {
				t.Errorf("%s/%s: %s %s, want %s", c.site, c.host, what, got, special)
			}
		}
		want("last key exchange", a.KeyExchanges[len(a.KeyExchanges)-1], c.kex, d.KeyExchanges[len(d.KeyExchanges)-1])
		want("last cipher", a.Ciphers[len(a.Ciphers)-1], c.cipher, d.Ciphers[len(d.Ciphers)-1])
		want("first host key", a.HostKeys[0], c.firstKey, d.HostKeys[0])
	}
	if a, err := rules.For("", "192.0.2.7"); err != nil || !slices.Equal(a.MACs, []string{"hmac-sha1"}) {
		t.Errorf("replaced MACs: %v, %v", a.MACs, err)
	}
	if got := DefaultAlgorithms(); !slices.Equal(got.KeyExchanges, d.KeyExchanges) || !slices.Equal(got.HostKeys, d.HostKeys) {
		t.Error("applying rules changed the defaults")
	}
}

func TestBadRules(t *testing.T) {
	for text, want := range map[string]string{
		"host":                              "has no change",
		"host kex":                          "want kex=",
		"host kexs=a":                       "want kex=",
		"host kex=+made-up":                 "unknown algorithm",
		"host kex=":                         "unknown algorithm",
		"host kex=+":                        "unknown algorithm",
		"host ciphers=hmac-sha1":            "unknown algorithm",
		"/host kex=curve25519-sha256":       "empty site",
		"site/a/b kex=curve25519-sha256":    "neither",
		"site/10.0.0.0/99 kex=+ssh-rsa":     "neither",
		"[a kex=curve25519-sha256":          "bad wildcard",
		"ok kex=curve25519-sha256\nbad x=y": "line 2",
		strings.Repeat("h kex=curve25519-sha256\n", maxRules+1): "at most",
	} {
		if _, err := ParseRules(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want something with %q", text, err, want)
		}
	}
	_, err := ParseRules("a x=1\nb kex=+made-up\nc kex=curve25519-sha256")
	if err == nil || !strings.Contains(err.Error(), "line 1") || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("want both bad lines, got %v", err)
	}
	rules, err := ParseRules("h macs=-" + strings.Join(DefaultAlgorithms().MACs, ","))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rules.For("", "h"); err == nil || !strings.Contains(err.Error(), "no macs") {
		t.Errorf("an empty list: %v", err)
	}
	if c, err := ParseTargetRule(""); err != nil || len(c) != 0 {
		t.Errorf("no rule: %v, %v", c, err)
	}
	if _, err := ParseTargetRule("host kex=+ssh-rsa"); err == nil {
		t.Error("a target's rule has no pattern")
	}
}

// TestChangesNeverDuplicate applies random changes to the defaults.
func TestChangesNeverDuplicate(t *testing.T) {
	all := append(slices.Clone(ssh.SupportedAlgorithms().Ciphers), ssh.InsecureAlgorithms().Ciphers...)
	rapid.Check(t, func(t *rapid.T) {
		var changes []Change
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			changes = append(changes, Change{
				Kind: "ciphers", Mode: rapid.SampledFrom([]byte("+-^")).Draw(t, "mode"),
				Names: rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, 3, rapid.ID[string]).Draw(t, "names"),
			})
		}
		a, err := DefaultAlgorithms().With(changes)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, c := range a.Ciphers {
			if seen[c] {
				t.Fatalf("%s twice in %v", c, a.Ciphers)
			}
			seen[c] = true
		}
		for i, c := range changes {
			if later := changes[i+1:]; c.Mode == '+' && len(later) == 0 && !seen[c.Names[0]] {
				t.Fatalf("added %s is not there", c.Names[0])
			} else if c.Mode == '-' && len(later) == 0 && seen[c.Names[0]] {
				t.Fatalf("removed %s is there", c.Names[0])
			}
		}
	})
}

func FuzzParseRules(f *testing.F) {
	f.Add("plant/*.example kex=+diffie-hellman-group14-sha1 hostkeys=+ssh-rsa", "plant", "a.example")
	f.Add("*/10.0.0.0/8 ciphers=-aes128-ctr", "", "10.1.1.1")
	f.Add("a/::/0 macs=^hmac-sha1", "a", "::1")
	f.Fuzz(func(t *testing.T, text, site, host string) {
		rules, err := ParseRules(text)
		if err != nil {
			return
		}
		for _, r := range rules {
			if len(r.Changes) == 0 || (r.Host == "") == !r.Network.IsValid() || r.Network.IsValid() && r.Network != r.Network.Masked() {
				t.Fatalf("odd rule %+v", r)
			}
		}
		a, err := rules.For(site, host)
		if err == nil && (len(a.KeyExchanges) == 0 || len(a.Ciphers) == 0 || len(a.MACs) == 0 || len(a.HostKeys) == 0) {
			t.Fatalf("an empty list: %+v", a)
		}
	})
}

func TestSourceAllowed(t *testing.T) {
	for _, c := range []struct {
		list, source string
		want         bool
	}{
		{"192.0.2.0/24", "192.0.2.9", true}, {"192.0.2.0/24", "192.0.3.9", false}, {"192.0.2.0/24", "::ffff:192.0.2.9", true},
		{"192.0.2.7", "192.0.2.7", true}, {"198.51.100.0/24, 192.0.2.0/24", "192.0.2.9", true}, {"2001:db8::/32", "2001:db8::1%eth0", true},
		{"", "192.0.2.9", false}, {"rubbish", "192.0.2.9", false}, {"0.0.0.0/0", "", false},
	} {
		if got := sourceAllowed(c.list, c.source); got != c.want {
			t.Errorf("%q in %q: %v", c.source, c.list, got)
		}
	}
}
