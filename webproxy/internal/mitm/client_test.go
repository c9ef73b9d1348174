package mitm

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// API clients come through core, one stream for each connection. The stream's
// session is the only one whose key is worth anything there.
func TestClientsThroughCore(t *testing.T) {
	r := newRig(t)
	at := r.origin("api.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if h := req.Header; h.Get("Proxy-Authorization") != "" || h.Get("Via") != "" || h.Get("X-Forwarded-For") != "" || h.Get("Forwarded") != "" {
			t.Errorf("the server is told %v", h)
		}
		fmt.Fprint(w, req.Header.Get("Authorization"))
	}), nil)
	api := func(s *wire.WebProxySession) { s.Carrier = "" }
	bearer := webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "tok", Kind: webrule.Bearer, Origin: at, Path: "/v1"}}}}
	r.secret("tok", wire.WebCredential{Password: "s3cret-of-the-api"})
	r.put("con_api", 1, at, bearer, api)
	r.put("con_other", 1, at, webrule.Policy{}, api)
	r.put("con_browser", 1, at, webrule.Policy{}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			st, err := r.tunnel.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() { r.proxy.ServeStream(ctx, st) })
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	open := func(session, dest string) (net.Conn, error) {
		st, err := r.core.Open(ctx, wire.Preface{Kind: wire.StreamDial, Network: "tcp", Connection: session, Dest: dest})
		return st, err
	}
	get := func(stream, user, key, path string) (int, string) {
		tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.test:1", User: url.UserPassword(user, key)}), TLSClientConfig: &tls.Config{RootCAs: r.root.pool()},
			DialContext: func(context.Context, string, string) (net.Conn, error) { return open(stream, wire.SessionProxy) }}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get(at + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		var b [200]byte
		n, _ := resp.Body.Read(b[:])
		return resp.StatusCode, string(b[:n])
	}
	// The server echoes the token, which is masked on its way back.
	if code, body := get("con_api", "con_api", testKey, "/v1/things"); code != 200 || body != "Bearer ********" {
		t.Errorf("with a token: %d %q", code, body)
	}
	if code, body := get("con_api", "con_api", testKey, "/v2"); code != 200 || body != "" {
		t.Errorf("where no rule puts it: %d %q", code, body)
	}
	for _, c := range [][3]string{{"con_api", "con_api", "wrong"}, {"con_api", "con_other", testKey}, {"con_browser", "con_browser", testKey}, {"con_none", "con_none", testKey}} {
		if code, body := get(c[0], c[1], c[2], "/v1"); code != 0 {
			t.Errorf("%v: %d %q", c, code, body)
		}
	}
	if st, err := open("con_api", "files"); err == nil {
		if _, err := st.Read(make([]byte, 1)); err == nil {
			t.Error("another destination is served")
		}
		st.Close()
	}
	r.event("request", map[string]string{"status": "200", "injected": "tok"})
	// What ends the session ends its connections.
	st, err := open("con_other", wire.SessionProxy)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	u, _ := url.Parse(at)
	fmt.Fprintf(st, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Basic %s\r\n\r\n", u.Host, basic("con_other", testKey))
	if _, err := st.Read(make([]byte, 200)); err != nil {
		t.Fatal(err)
	}
	if ack := r.sessions.End(t.Context(), "con_other"); ack.Error != nil {
		t.Fatal(ack.Error)
	}
	if n, err := st.Read(make([]byte, 1)); err == nil {
		t.Errorf("after the end %d bytes come", n)
	}
}

func basic(user, key string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + key))
}
