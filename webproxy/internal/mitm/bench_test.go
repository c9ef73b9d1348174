package mitm

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/elazarl/goproxy"
	"golang.org/x/sys/unix"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// BenchmarkProxy compares proxies before one server in one run: goproxy that
// forwards plain http:// (nobody has TLS), goproxy that tunnels CONNECT (client
// and server have TLS, it reads none), goproxy that opens TLS and does nothing
// else, this webproxy on its cleartext port, on its port for carriers (one more
// TLS), and there with a credential to search every answer for. Client, proxy
// and server share this process and its processors.
func BenchmarkProxy(b *testing.B) {
	r := newRig(b)
	big := bytes.Repeat([]byte("an ordinary line of an ordinary answer, 64 bytes of it all told\n"), 1<<20/64)
	serve := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/small" {
			w.Write(big[:1024])
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		for range 16 {
			w.Write(big)
		}
	})
	at := r.origin("app.test", serve, nil)
	bare := httptest.NewServer(serve)
	b.Cleanup(bare.Close)
	armed := webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "x", Kind: webrule.Header, Origin: "https://none.test", Field: "X-A"}}}}
	r.put("con_plain", 1, at, webrule.Policy{}, nil)
	r.put("con_armed", 1, at, armed, nil)
	if err := r.sessions.Find("con_armed").Values.Add("correct horse battery staple"); err != nil {
		b.Fatal(err)
	}
	r.put("con_clear", 1, at, webrule.Policy{}, func(s *wire.WebProxySession) { s.Carrier = "" })
	dial := func(_ context.Context, network, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return net.Dial(network, "127.0.0.1:"+port)
	}
	// other starts a goproxy and returns its URL.
	other := func(mitm bool) *url.URL {
		p := goproxy.NewProxyHttpServer()
		p.Logger = log.New(io.Discard, "", 0)
		p.AllowHTTP2 = true
		p.Tr = &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: r.web.pool()}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64}
		p.ConnectDial = func(network, addr string) (net.Conn, error) { return dial(b.Context(), network, addr) }
		if mitm {
			ca := tls.Certificate{Certificate: [][]byte{r.root.cert.Raw}, PrivateKey: r.root.key, Leaf: r.root.cert}
			p.CertStore = &leafStore{m: map[string]*tls.Certificate{}}
			action := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&ca)}
			p.OnRequest().HandleConnect(goproxy.FuncHttpsHandler(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) { return action, host }))
		}
		front := httptest.NewServer(p)
		b.Cleanup(front.Close)
		b.Cleanup(p.Tr.CloseIdleConnections)
		u, err := url.Parse(front.URL)
		if err != nil {
			b.Fatal(err)
		}
		return u
	}
	blind, opening := other(false), other(true)
	both := r.web.pool()
	both.AddCert(r.root.cert)
	via := func(u *url.URL, h2 bool) *http.Client {
		tr := &http.Transport{Proxy: http.ProxyURL(u), TLSClientConfig: &tls.Config{RootCAs: both}, ForceAttemptHTTP2: h2}
		b.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	clear := &url.URL{Scheme: "http", Host: r.clear, User: url.UserPassword("con_clear", testKey)}
	for _, h2 := range []bool{false, true} {
		for _, c := range []struct {
			name string
			c    *http.Client
			at   string
		}{{"goproxy-http", via(blind, false), bare.URL}, {"goproxy-blind", via(blind, h2), at}, {"goproxy-mitm", via(opening, h2), at}, {"webproxy", via(clear, h2), at},
			{"webproxy-carrier", r.browser("con_plain", h2), at}, {"webproxy-searching", r.browser("con_armed", h2), at}} {
			if h2 && c.name == "goproxy-http" {
				continue // no such thing
			}
			proto := map[bool]string{false: "h1", true: "h2"}[h2]
			b.Run(fmt.Sprintf("small/%s/%s", proto, c.name), func(b *testing.B) { benchGet(b, c.c, c.at+"/small", 1024) })
			b.Run(fmt.Sprintf("big/%s/%s", proto, c.name), func(b *testing.B) { benchGet(b, c.c, c.at+"/big", 16<<20) })
		}
	}
}

// leafStore keeps goproxy's certificates, as ours are kept.
type leafStore struct {
	mu sync.Mutex
	m  map[string]*tls.Certificate
}

// Fetch implements goproxy.CertStorage.
func (s *leafStore) Fetch(host string, gen func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.m[host]; c != nil {
		return c, nil
	}
	c, err := gen()
	if err == nil {
		s.m[host] = c
	}
	return c, err
}

func benchGet(b *testing.B, c *http.Client, to string, size int64) {
	b.SetBytes(size)
	b.ReportAllocs()
	spent := processor(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := c.Get(to)
			if err != nil {
				b.Error(err)
				return
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if n != size || err != nil {
				b.Errorf("%d bytes, %v", n, err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric(float64((processor(b)-spent).Microseconds())/float64(b.N), "cpu-µs/op")
}

// processor is the processor time this process has used: client, proxy and
// server. It says more than the clock when the machine has other work.
func processor(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLeaf is the cost of a host's first connection, and of the next.
func BenchmarkLeaf(b *testing.B) {
	r := newRig(b)
	a := r.proxy.c.Authority
	b.Run("minted", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			if _, err := a.Leaf(b.Context(), fmt.Sprint("h", i, ".test")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cached", func(b *testing.B) {
		for b.Loop() {
			if _, err := a.Leaf(b.Context(), "same.test"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
