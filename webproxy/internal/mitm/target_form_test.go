package mitm

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"caponier/shared/webrule"
)

// A request target that is neither a path nor the URL of the tunnel's own
// origin (RFC 9112 §3.2) would leave as it came: servers must take an absolute
// one for what was asked, whatever Host says.
func TestRequestTargets(t *testing.T) {
	r := newRig(t)
	var hits atomic.Int64
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		hits.Add(1)
		fmt.Fprint(w, "served ", req.RequestURI)
	}), nil)
	u, _ := url.Parse(at)
	r.put("con_1", 1, at, webrule.Policy{Deny: []webrule.Rule{{Host: u.Host, Path: "/admin"}}}, nil)
	ask := func(target string) int {
		t.Helper()
		c, err := r.dial(t.Context(), "nod_c", "con_1", testKey)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", u.Host, u.Host)
		if resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "CONNECT"}); err != nil || resp.StatusCode != 200 {
			t.Fatalf("CONNECT: %v %v", resp, err)
		}
		tc := tls.Client(c, &tls.Config{RootCAs: r.root.pool(), ServerName: "app.test"})
		fmt.Fprintf(tc, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, u.Host)
		resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil {
			t.Fatalf("GET %s: %v", target, err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, target := range []string{"x:" + at + "/admin", "https:admin", at + "/admin", "https:/admin", "/admin;v=1", "/x/..;/admin", "http://other.test/"} {
		if got := ask(target); got/100 != 4 {
			t.Errorf("GET %s: %d", target, got)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
	for _, target := range []string{at + "/x", "/x", "/administration", "/x;v=1"} {
		if got := ask(target); got != 200 {
			t.Errorf("GET %s: %d", target, got)
		}
	}
	if strings.Contains(r.log.String(), "panic") {
		t.Error(r.log.String())
	}
}
