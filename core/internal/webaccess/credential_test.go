package webaccess

import (
	"encoding/base32"
	"encoding/json"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"
	"pgregory.net/rapid"

	"caponier/core/internal/vault"
	"caponier/shared/webrule"
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
