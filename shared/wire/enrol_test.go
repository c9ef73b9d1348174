package wire

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestToken(t *testing.T) {
	t.Parallel()
	tok := Token{ID: "tok_abc", Secret: "s3cretcanary", Pin: sha256.Sum256([]byte("ca"))}
	got, err := ParseToken(" " + tok.Text() + "\n")
	if err != nil || got != tok {
		t.Errorf("ParseToken(%q) = %v, %v", tok.Text(), got, err)
	}
	for _, s := range []string{fmt.Sprint(tok), fmt.Sprintf("%+v", tok), fmt.Sprintf("%#v", tok), tok.String()} {
		if strings.Contains(s, tok.Secret) {
			t.Errorf("printed: %q", s)
		}
	}
	text := tok.Text()
	for _, bad := range []string{"", "cap1", "cap2" + text[4:], text + "x", text[:len(text)-1], strings.ToUpper(text), "cap1.a b.c.d",
		strings.Replace(text, "tok_abc", "../../x", 1), strings.Repeat("a", 1000), strings.Replace(text, ".", "", 1)} {
		if _, err := ParseToken(bad); !errors.Is(err, ErrToken) {
			t.Errorf("ParseToken(%q) = %v", bad, err)
		} else if len(bad) > 10 && strings.Contains(err.Error(), bad) {
			t.Errorf("the error repeats the token")
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{ID: "tok_abc", Secret: "secret", Pin: sha256.Sum256(nil)}.Text())
	f.Add("cap1...")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if tok.Text() != strings.TrimSpace(s) {
			t.Errorf("%q became %q", s, tok.Text())
		}
	})
}

// A later release's messages carry fields we do not know: they are ignored.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	t.Parallel()
	for _, v := range []any{&Hello{}, &Welcome{}, &Status{}, &StatusReply{}, &EnrolRequest{}, &EnrolResponse{}, &DialRules{}, &ProbeResponse{}} {
		if err := json.Unmarshal([]byte(`{"version":1,"of_a_later_release":{"x":[1]}}`), v); err != nil {
			t.Errorf("%T: %v", v, err)
		}
	}
}
