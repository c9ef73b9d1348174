package mitm

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/control"
	"caponier/shared/tlsconn"
	"caponier/shared/tunnel"
	"caponier/shared/tunnel/tunneltest"
	"caponier/shared/webrule"
	"caponier/shared/wire"
	"caponier/webproxy/internal/session"
)

// A server lingers half a second after it refused a body.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// authority is a test CA of web servers, or core's root for browsers.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{strings.ReplaceAll(name, " ", "-")}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{c, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// issue makes a certificate; change may be nil.
func (a *authority) issue(t testing.TB, change func(*x509.Certificate), names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// local resolves every name to this machine.
type local struct{}

func (local) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// rig is a webproxy with its real listener for carriers and a core that the
// test plays.
type rig struct {
	t        testing.TB
	proxy    *Server
	sessions *session.Manager
	addr     string // of 18443
	clear    string // of 18080
	fleet    *tunneltest.CA
	root     *authority // whom browsers trust
	web      *authority // of servers
	core     tunnel.Session
	log      *lockedBuffer

	mu      sync.Mutex
	secrets map[string]wire.WebCredential // guarded by mu; by injection
	asks    []wire.WebCredentialAsk       // guarded by mu
	records []wire.WebRecord              // guarded by mu
	ended   []wire.WebEnded               // guarded by mu
	next    map[string]uint64             // guarded by mu; by session
	changed chan struct{}                 // guarded by mu; closed when something of the above changes
	tunnel  tunnel.Session                // guarded by mu; the webproxy's end
	dests   []string                      // guarded by mu; of streams through core
	cut     bool                          // guarded by mu; records are not taken
	held    []wire.WebApprovalAsk         // guarded by mu; each hold once
	decided map[string]wire.WebApproval   // guarded by mu; by hold
	gone    map[string]bool               // guarded by mu; by hold
	taken   map[string]int                // guarded by mu; how often, by hold
	onTaken func(hold string)             // guarded by mu; called before taken counts
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	ca, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, fleet: ca, root: newAuthority(t, "Caponier web CA"), web: newAuthority(t, "Test CA"), log: &lockedBuffer{},
		decided: map[string]wire.WebApproval{}, gone: map[string]bool{}, taken: map[string]int{}, secrets: map[string]wire.WebCredential{}, next: map[string]uint64{}, changed: make(chan struct{})}
	logger := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	edge, core := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	r.core, r.tunnel = core, edge
	node, err := ca.Edge("webproxy", "nod_w")
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAuthority(AuthorityConfig{Log: logger, Ask: func(ctx context.Context, in wire.WebAuthorityAsk) (out wire.WebAuthority, err error) {
		err = control.Call(ctx, edge, http.MethodPost, wire.PathWebAuthority, in, &out)
		return out, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.sessions = session.NewManager(session.Config{Max: 50, Address: "proxy.test:18443", Problem: a.Problem, Scanners: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Resolver: local{}, System: x509.NewCertPool(), Log: logger,
		Tunnel: func() tunnel.Session {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.tunnel
		}})
	c := Config{Sessions: r.sessions, Authority: a, MaxConns: 500, Log: logger,
		Left: time.Minute, Credentials: func() (tls.Certificate, *x509.CertPool, error) { return node.Certificate, node.Roots, nil }}
	for _, f := range change {
		f(&c)
	}
	r.proxy = New(c)
	ctx, cancel := context.WithCancel(context.Background())
	cctx, stopCore := context.WithCancel(context.Background())
	var wg, parts sync.WaitGroup
	run := func(f func(context.Context) error) {
		parts.Go(func() {
			if err := f(ctx); err != nil {
				t.Errorf("part: %v", err)
			}
		})
	}
	listen := func(f func(context.Context, net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		run(func(ctx context.Context) error { return f(ctx, l) })
		return l.Addr().String()
	}
	r.addr, r.clear = listen(r.proxy.ListenCarriers), listen(r.proxy.ListenClear)
	run(r.proxy.Run)
	run(a.Run)
	run(r.sessions.Run)
	srv := &http.Server{Handler: r.serveCore(), ErrorLog: log.New(io.Discard, "", 0)}
	l := control.NewListener()
	wg.Go(func() { srv.Serve(l) })
	wg.Go(func() {
		for {
			s, err := core.Accept(cctx)
			if err != nil {
				return
			}
			switch s.Preface().Kind {
			case wire.StreamHTTP:
				s.Confirm()
				l.Push(s)
			default:
				wg.Go(func() { r.dialled(s) })
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		parts.Wait() // sessions deliver their last records
		stopCore()
		l.Close()
		srv.Close()
		core.Close(nil)
		edge.Close(nil)
		wg.Wait()
	})
	until(t, "an issuing certificate", func() bool { return a.Problem() == "" })
	return r
}

// until waits for a condition that nobody announces.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// dialled plays core's side of a connection through a site.
func (r *rig) dialled(s tunnel.Stream) {
	defer s.Close()
	dest := s.Preface().Dest
	r.mu.Lock()
	r.dests = append(r.dests, dest)
	r.mu.Unlock()
	if site, rest, ok := strings.Cut(dest, "/"); ok {
		if site != "vpc-b" {
			s.Refuse(wire.Errorf(wire.CodeRefused, "there is no site %s", site))
			return
		}
		dest = rest
	}
	_, port, err := net.SplitHostPort(dest)
	if err != nil {
		s.Refuse(wire.Errorf(wire.CodeBadRequest, "host:port"))
		return
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		s.Refuse(wire.Errorf(wire.CodeConnRefused, "%s refused the connection", dest))
		return
	}
	defer c.Close()
	s.Confirm()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(c, s)
		c.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(s, c)
	s.Close()
	<-done
}

func (r *rig) serveCore() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.PathWebAuthority, func(w http.ResponseWriter, req *http.Request) {
		var in wire.WebAuthorityAsk
		if !control.Read(w, req, &in) {
			return
		}
		csr, err := x509.ParseCertificateRequest(in.CSR)
		if err != nil || csr.CheckSignature() != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "Caponier issuing"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign}
		der, err := x509.CreateCertificate(rand.Reader, c, r.root.cert, csr.PublicKey, r.root.key)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		control.Reply(w, wire.WebAuthority{Root: r.root.cert.Raw, Certificate: der})
	})
	mux.HandleFunc("POST "+wire.PathWebCredential, func(w http.ResponseWriter, req *http.Request) {
		var in wire.WebCredentialAsk
		if !control.Read(w, req, &in) {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asks = append(r.asks, in)
		defer r.tellLocked()
		c, ok := r.secrets[in.Injection]
		switch {
		case !ok:
			control.Reply(w, wire.WebCredentialSealed{Error: wire.Errorf(wire.CodeRefused, "the session may not use it")})
			return
		case c.Error != nil:
			control.Reply(w, wire.WebCredentialSealed{Error: c.Error})
			return
		}
		plain, err := json.Marshal(c)
		if err == nil {
			plain, err = wire.SealWebCredential(in, plain)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		control.Reply(w, wire.WebCredentialSealed{Sealed: plain})
	})
	mux.HandleFunc("POST "+wire.PathWebApproval, r.serveApproval)
	mux.HandleFunc("POST "+wire.PathWebRecords, func(w http.ResponseWriter, req *http.Request) {
		var body io.Reader = req.Body
		if req.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(req.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		list, err := wire.ParseWebRecords(b)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.cut {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		id := req.URL.Query().Get("session")
		for _, x := range list {
			if x.Seq == r.next[id]+1 {
				r.next[id]++
				x.Payload = bytes.Clone(x.Payload)
				r.records = append(r.records, x)
			}
		}
		control.Reply(w, wire.WebRecordsAck{Next: r.next[id] + 1})
		r.tellLocked()
	})
	mux.HandleFunc("POST "+wire.PathWebEnded, func(w http.ResponseWriter, req *http.Request) {
		var in wire.WebEnded
		if !control.Read(w, req, &in) {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = append(r.ended, in)
		r.tellLocked()
	})
	return mux
}

func (r *rig) tellLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// wait waits until f, called with the lock held, is true.
func (r *rig) wait(what string, f func() bool) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for {
		r.mu.Lock()
		ok, ch := f(), r.changed
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-ch:
		case <-deadline:
			r.t.Fatalf("%s: not within a minute", what)
		}
	}
}

// events returns what was recorded so far of one type.
func (r *rig) eventsLocked(kind string) (out []map[string]string) {
	for _, x := range r.records {
		var b wire.WebEventBody
		if json.Unmarshal(x.Payload, &b) == nil && b.Type == kind {
			out = append(out, b.Fields)
		}
	}
	return out
}

// event waits for an event of a type with these fields.
func (r *rig) event(kind string, want map[string]string) (found map[string]string) {
	r.t.Helper()
	r.wait(fmt.Sprintf("event %s %v", kind, want), func() bool {
		for _, e := range r.eventsLocked(kind) {
			match := true
			for k, v := range want {
				match = match && e[k] == v
			}
			if match {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func (r *rig) secret(injection string, c wire.WebCredential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[injection] = c
}

const testKey = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"

// put makes or changes a session; servers of the rig are believed and reachable.
func (r *rig) put(id string, revision uint64, start string, p webrule.Policy, change func(*wire.WebProxySession)) {
	r.t.Helper()
	if p.TLS.Anchors == "" {
		p.TLS.Anchors = r.web.pem()
	}
	if p.Private == nil {
		p.Private = []string{"127.0.0.0/8"}
	}
	b, err := json.Marshal(p)
	if err != nil {
		r.t.Fatal(err)
	}
	in := wire.WebProxySession{ID: id, Revision: revision, User: "alice", Target: "app", StartURL: start, Carrier: "nod_c", Key: testKey, Policy: b, LeaseS: 60}
	if change != nil {
		change(&in)
	}
	if ack := r.sessions.Put(in); ack.Error != nil || ack.Revision != revision {
		r.t.Fatalf("put session: %+v", ack)
	}
}

// dial connects as a carrier does.
func (r *rig) dial(ctx context.Context, carrier, id, key string) (net.Conn, error) {
	ident, err := r.fleet.Edge("carrier", carrier)
	if err != nil {
		return nil, err
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", r.addr)
	if err != nil {
		return nil, err
	}
	c := tlsconn.Client(raw, &tls.Config{ServerName: "webproxy", DynamicRecordSizingDisabled: true, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ident.Certificate}, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			kind, node, err := Peer(cs.PeerCertificates, ident.Roots)
			if err == nil && (kind != "webproxy" || node != "nod_w") {
				err = fmt.Errorf("reached %s %s", kind, node)
			}
			return err
		}})
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "CAPONIER/1 %s %s\r\n", id, key); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// browser is a client of a session that follows no redirects.
func (r *rig) browser(id string, h2 bool) *http.Client {
	tr := &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.test:1"}),
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx, "nod_c", id, testKey) },
		TLSClientConfig:   &tls.Config{RootCAs: r.root.pool()},
		ForceAttemptHTTP2: h2,
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 5 * time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// origin is a web server of the test; its URL has the given name.
func (r *rig) origin(name string, h http.Handler, change func(*httptest.Server)) string {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{r.web.issue(r.t, nil, name)}}
	srv.EnableHTTP2 = true
	if change != nil {
		change(srv)
	}
	srv.StartTLS()
	r.t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	return "https://" + name + ":" + port
}

type answer struct {
	status int
	header http.Header
	body   string
	proto  string
}

func (r *rig) do(c *http.Client, method, to, body string, header ...string) answer {
	r.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, to, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	resp, err := c.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v\n%s", method, to, err, r.log.String())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, to, err)
	}
	return answer{resp.StatusCode, resp.Header, string(b), resp.Proto}
}
