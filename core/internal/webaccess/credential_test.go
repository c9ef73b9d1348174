package webaccess

import (
	"encoding/base32"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"
	"pgregory.net/rapid"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/core/internal/vault"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// The codes of RFC 6238 appendix B.
func TestCode(t *testing.T) {
	const seed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
	const seed256 = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZA"
	for _, tc := range []struct {
		seed string
		at   int64
		want string
	}{
		{"otpauth://totp/x?secret=" + seed + "&digits=8", 59, "94287082"},
		{"otpauth://totp/x?secret=" + seed + "&digits=8&period=30&algorithm=SHA1", 1111111109, "07081804"},
		{"otpauth://totp/x?secret=" + seed256 + "&digits=8&algorithm=SHA256", 59, "46119246"},
		{seed, 59, "287082"},
		{"gezd gnbv-gy3t qojq gezd gnbv gy3t qojq", 59, "287082"},
		{"otpauth://hotp/x?secret=" + seed, 59, ""},
		{"otpauth://totp/x?secret=" + seed + "&period=1", 59, ""},
		{"not base32!", 59, ""},
		{"", 59, ""},
	} {
		got, err := login{"totp": appendQuoted(nil, []byte(tc.seed))}.code(time.Unix(tc.at, 0))
		if string(got) != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s at %d: %q, %v; want %q", tc.seed, tc.at, got, err, tc.want)
		}
	}
}

// Codes are those that authenticators show.
func TestCodesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 10, 64).Draw(t, "key")
		seed := base32.StdEncoding.EncodeToString(key)
		at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "at"), 0)
		period := rapid.IntRange(5, 300).Draw(t, "period")
		sum := rapid.SampledFrom([]otp.Algorithm{otp.AlgorithmSHA1, otp.AlgorithmSHA256, otp.AlgorithmSHA512}).Draw(t, "algorithm")
		digits := rapid.SampledFrom([]otp.Digits{otp.DigitsSix, otp.DigitsEight}).Draw(t, "digits")
		want, err := totp.GenerateCodeCustom(seed, at, totp.ValidateOpts{Period: uint(period), Digits: digits, Algorithm: sum})
		if err != nil {
			t.Fatal(err)
		}
		u := url.URL{Scheme: "otpauth", Host: "totp", Path: "/Wiki:ann", RawQuery: url.Values{"secret": {seed}, "issuer": {"Wiki"},
			"period": {strconv.Itoa(period)}, "digits": {digits.String()}, "algorithm": {sum.String()}}.Encode()}
		raw, err := json.Marshal(u.String()) // with & as \u0026
		if err != nil {
			t.Fatal(err)
		}
		if got, err := (login{"totp": raw}).code(at); err != nil || string(got) != want {
			t.Fatalf("%s: %q, %v; want %q", u.String(), got, err, want)
		}
	})
}

// Whatever a password holds arrives as it is.
func TestQuoted(t *testing.T) {
	for _, s := range []string{"", "plain", `a"b\c`, "tab\tnull\x00nl\n", "ünï & = + / 密码", "\x1f\x7f"} {
		var got string
		if err := json.Unmarshal(appendQuoted(nil, []byte(s)), &got); err != nil || got != s {
			t.Errorf("%q came back as %q, %v", s, got, err)
		}
	}
}

func TestParseLogin(t *testing.T) {
	password := use{kind: webrule.Basic, values: []webrule.Value{webrule.Username, webrule.Password}}
	for _, tc := range []struct {
		name        string
		kind        vault.Kind
		value, want string // want empty: refused
	}{
		{"password", vault.Password, `p"w`, `{"username":"alice","password":"p\"w"}`},
		{"json", vault.JSON, `{"password":"pw"}`, `{"username":"alice","password":"pw"}`},
		{"json with a name", vault.JSON, `{"username":"root","password":"p\u00e4"}`, `{"username":"root","password":"p\u00e4"}`},
		{"json without", vault.JSON, `{"username":"root"}`, ""},
		{"a number", vault.JSON, `{"password":17}`, ""},
		{"nested", vault.JSON, `{"password":{"a":"b"}}`, ""},
		{"a key", vault.Key, "-----BEGIN PRIVATE KEY-----", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := parseLogin(tc.kind, []byte(tc.value), "alice")
			var got []byte
			if err == nil {
				got, err = l.give(password, time.Now())
			}
			if string(got) != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("%s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

// A credential goes to the session's own webproxy, for what the recipe says,
// a bounded number of times, and every use is in the audit log.
func TestCredential(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		stranger := k.node(wire.WebProxy, "p2", func(b *box) { b.capacity.Live = 9 })
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		ask := func(b *box, session, url string) wire.WebCredential {
			t.Helper()
			return b.credential(wire.WebCredentialAsk{Session: session, Injection: "pw", URL: url})
		}
		const login = "https://wiki.example/login"
		if c := ask(proxy, s.ID, login); c.Error != nil || c.Password != "correct horse" || c.Username != "" {
			t.Errorf("given %#v, error %v", c, c.Error)
		}
		for name, c := range map[string]wire.WebCredential{
			"another webproxy": ask(stranger, s.ID, login),
			"another path":     ask(proxy, s.ID, "https://wiki.example/logins"),
			"another origin":   ask(proxy, s.ID, "https://evil.example/login"),
			"another session":  ask(proxy, "con_none", login),
		} {
			if c.Error == nil || c.Password != "" {
				t.Errorf("%s is given the password", name)
			}
		}
		if used := k.audited(audit.WebCredentialUsed, s.ID, audit.OK); used != 1 {
			t.Errorf("%d uses audited", used)
		}
		if refused := k.audited(audit.WebCredentialUsed, s.ID, audit.Denied); refused != 2 {
			t.Errorf("%d refusals audited", refused)
		}
		if n := k.audited(audit.SecretUsed, s.ID, audit.OK); n != 1 {
			t.Errorf("%d uses of the secret audited", n)
		}
		must(t, k.conns.Lock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}, "no", conn.BlockNone))
		if c := ask(proxy, s.ID, login); c.Error == nil {
			t.Error("a locked session is given the password")
		}
		must(t, k.conns.Unlock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}))
		ask(proxy, s.ID, login)
		// What was counted counts after a restart of core.
		k.stop()
		k = w.start()
		eventually(t, "the webproxy is back", func() bool { _, on := k.svc.onlineNode(wire.WebProxy, proxy.id); return on && proxy.Session() != nil })
		if c := ask(proxy, s.ID, login); c.Password == "" {
			t.Errorf("not given a third time: %v", c.Error)
		}
		if c := ask(proxy, s.ID, login); c.Error == nil {
			t.Error("given a fourth time")
		}
		k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil)
		eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
		if c := ask(proxy, s.ID, login); c.Error == nil {
			t.Error("given after the end")
		}
	})
}

// Secrets with several properties give what an injection needs and no more.
func TestJSONSecret(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	k.node(wire.Carrier, "c1")
	proxy := k.node(wire.WebProxy, "p1")
	ctx := api.WithPrincipal(t.Context(), &api.Principal{UserID: "usr_admin", Permissions: w.law.perms["admin"]})
	secret := k.secret(vault.JSON, "full", `{"username":"root","password":"p","totp":"GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ","token":"tok"}`)
	_, err := k.targets.Create(ctx, target.Target{Name: "app", Kind: target.Web, Web: &target.WebSpec{StartURL: "https://app.example/", Policy: webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{
		{ID: "user", Kind: webrule.JSON, Origin: "https://app.example", Path: "/login", Field: "u", Value: webrule.Username},
		{ID: "code", Kind: webrule.JSON, Origin: "https://app.example", Path: "/login", Field: "c", Value: webrule.TOTP},
		{ID: "basic", Kind: webrule.Basic, Origin: "https://app.example"},
		{ID: "bearer", Kind: webrule.Bearer, Origin: "https://api.example"},
		{ID: "cert", Kind: webrule.ClientCert, Origin: "https://app.example"},
	}}, Allow: []webrule.Rule{{Host: "api.example"}}}}}, []target.Account{{Name: "alice", SecretID: secret}})
	must(t, err)
	s := k.open("eve", "app", map[string]any{"account": "alice"})
	for injection, want := range map[string]wire.WebCredential{
		"user": {Username: "root"}, "basic": {Username: "root", Password: "p"}, "bearer": {Password: "tok"},
	} {
		url := "https://app.example/login"
		if injection == "bearer" {
			url = "https://api.example/x"
		}
		c := proxy.credential(wire.WebCredentialAsk{Session: s.ID, Injection: injection, URL: url})
		if c.Error != nil || c != want {
			t.Errorf("%s: %#v error %v", injection, struct{ a, b, c string }{c.Username, c.Password, c.TOTP}, c.Error)
		}
	}
	c := proxy.credential(wire.WebCredentialAsk{Session: s.ID, Injection: "code", URL: "https://app.example/login"})
	if len(c.TOTP) != 6 || c.Password != "" {
		t.Errorf("code %q, error %v", c.TOTP, c.Error)
	}
	c = proxy.credential(wire.WebCredentialAsk{Session: s.ID, Injection: "cert", URL: "https://app.example/"})
	if c.Error == nil || !strings.Contains(c.Error.Public, "certificate") {
		t.Errorf("a certificate that is not there: %v", c.Error)
	}
}
