package usercli

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The web target that is meant is found, its account where there is a choice,
// and its page in the console.
func TestWebTarget(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"items":[
 {"target":{"id":"tgt_1","name":"wiki","kind":"web"},"account":"alice"},
 {"target":{"id":"tgt_1","name":"wiki","kind":"web"},"account":"bob"},
 {"target":{"id":"tgt_2","name":"open","kind":"web"},"account":""},
 {"target":{"id":"tgt_3","name":"one","kind":"web"},"account":"alice"},
 {"target":{"id":"tgt_4","name":"db","kind":"ssh"},"account":"root"}]}`))
	}))
	t.Cleanup(srv.Close)
	e := &env{ctx: t.Context()}
	c := &client{base: srv.URL, http: srv.Client(), token: "t"}
	for _, tc := range []struct{ ref, account, want string }{
		{"wiki", "bob", "wiki bob"},
		{"bob@wiki", "", "wiki bob"},
		{"tgt_3", "", "one alice"},
		{"open", "", "open "},
		{"wiki", "", "!say which account of wiki: alice, bob"},
		{"wiki", "eve", "!you may not use the account"},
		{"db", "", "!is no web target"},
		{"none", "", "!you may not reach"},
	} {
		target, account, err := webTarget(e, c, tc.ref, tc.account)
		if text, refused := strings.CutPrefix(tc.want, "!"); refused {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %s", tc.ref, err, text)
			}
		} else if err != nil || target+" "+account != tc.want {
			t.Errorf("%s: %s %s, %v; want %s", tc.ref, target, account, err, tc.want)
		}
	}
	for _, tc := range [][4]string{
		{"https://pam.example/", "wiki", "a b&c", "https://pam.example/web?account=a+b%26c&target=wiki"},
		{"https://pam.example", "wiki", "", "https://pam.example/web?target=wiki"},
	} {
		if got := viewerURL(tc[0], tc[1], tc[2]); got != tc[3] {
			t.Errorf("%s, want %s", got, tc[3])
		}
	}
}
