package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

var (
	proxyOnce  sync.Once
	proxyWhole *webWorld
	proxyErr   error
)

// proxies is a world of API clients: a webproxy and web applications, and no
// browser.
func proxies(t testing.TB) *webWorld {
	t.Helper()
	needRig(t)
	proxyOnce.Do(func() { proxyWhole, proxyErr = makeProxies(context.Background(), t) })
	if proxyErr != nil {
		if proxyWhole != nil && proxyWhole.world != nil {
			t.Cleanup(func() { proxyWhole.showLogs(t) })
		}
		t.Fatal(proxyErr)
	}
	t.Cleanup(func() { proxyWhole.showLogs(t) })
	return proxyWhole
}

func makeProxies(ctx context.Context, t testing.TB) (*webWorld, error) {
	w := &webWorld{key: []byte(rand.Text())}
	var err error
	if w.ca, err = sites.NewAuthority("Sites of the tests"); err != nil {
		return w, err
	}
	w.world, err = makeWorld(ctx, t, options{bare: true, http: true, before: func(n *harness.Net) error {
		return errors.Join(n.Add("webproxy", "site"),
			n.Plug("webproxy", "eth0", "core", "br0", webproxyAddr+"/24"), n.Plug("site", "eth0", "core", "br0", siteAddr+"/24"))
	}})
	if err != nil {
		return w, err
	}
	toml := fmt.Sprintf("address = %q\ndebug = \"127.0.0.1:9472\"\n[listen]\ncontrol = %q\nclear = \"127.0.0.1:18080\"\n", webproxyAddr+":18443", webproxyAddr+":18444")
	if w.proxy, err = w.edge(ctx, "webproxy", "proxy-1", w.bin.WebProxy, toml); err != nil {
		return w, err
	}
	if w.user, err = w.as(ctx, "demo", w.demo); err != nil {
		return w, err
	}
	_, err = w.core.Admin.WebReady(ctx, patience, w.proxy, harness.HasRoom(0))
	return w, err
}

// siteAddr is a host that the webproxy reaches by itself.
const siteAddr = "203.0.113.40"

// forClients permits API clients.
func forClients(x *harness.WebTarget, _ *webrule.Policy) { x.Web.API = true }

// apiUse is a session for API clients.
type apiUse struct {
	harness.WebSession
	user, key string
	roots     *x509.CertPool
	caFile    string
	client    *http.Client // on the webproxy's own machine
}

// serve opens a session for API clients of a target.
func (w *webWorld) serve(t testing.TB, target string) *apiUse {
	t.Helper()
	u := &apiUse{roots: x509.NewCertPool(), caFile: filepath.Join(t.TempDir(), "ca.pem")}
	if err := w.user.Do(t.Context(), http.MethodPost, "/web-sessions", map[string]any{"target_id": target, "mode": "api"}, &u.WebSession); err != nil {
		t.Fatal(err)
	}
	var raw map[string]string
	if err := w.user.Do(t.Context(), http.MethodGet, "/web-sessions/"+u.ID+"/proxy-login", nil, &raw); err != nil {
		t.Fatal(err)
	}
	u.user, u.key = raw["username"], raw["password"]
	if !u.roots.AppendCertsFromPEM([]byte(raw["ca_pem"])) {
		t.Fatalf("no authority: %v", raw)
	}
	if err := os.WriteFile(u.caFile, []byte(raw["ca_pem"]), 0o600); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:18080", User: url.UserPassword(u.user, u.key)}),
		DialContext: func(ctx context.Context, n, addr string) (net.Conn, error) {
			return w.net.Dial(ctx, "webproxy", n, addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: u.roots}, ForceAttemptHTTP2: true, DisableCompression: true,
	}
	u.client = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		err := w.core.Admin.EndWeb(context.Background(), u.ID)
		if s, ok := errors.AsType[*harness.Status](err); err != nil && (!ok || s.Code != http.StatusConflict) {
			t.Error(err)
		}
	})
	return u
}

// get returns status and body.
func (u *apiUse) get(t testing.TB, to string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := u.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// origin serves h at siteAddr, which the webproxy dials by itself, and makes a
// target of it.
func (w *webWorld) origin(t testing.TB, h http.Handler, change func(*harness.WebTarget, *webrule.Policy)) (at, target string) {
	t.Helper()
	port := 9000 + w.port.Add(1)
	l, err := w.net.Listen("site", "tcp", fmt.Sprintf("%s:%d", siteAddr, port))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := w.ca.Certificate(sites.Sound, siteAddr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
	at = fmt.Sprintf("https://%s:%d", siteAddr, port)
	return at, w.apiTarget(t, at, "", change)
}

// apiTarget makes a target for API clients of what is at an origin.
func (w *webWorld) apiTarget(t testing.TB, at, site string, change func(*harness.WebTarget, *webrule.Policy)) string {
	t.Helper()
	p := &webrule.Policy{TLS: webrule.TLS{Anchors: w.ca.PEM, Only: true}}
	x := harness.WebTarget{Name: "api-" + strings.ToLower(rand.Text()[:8]), Kind: "web", Site: site, Web: harness.Web{StartURL: at + "/", API: true, Policy: p}}
	if change != nil {
		change(&x, p)
	}
	id, err := w.core.Admin.Create(t.Context(), "/targets", x)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.core.Admin.Delete(context.Background(), "/targets/"+id); err != nil {
			t.Error(err)
		}
	})
	if _, err := w.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: w.role, Target: id, Accounts: []string{"*"}, Features: []string{"all"}}); err != nil {
		t.Fatal(err)
	}
	return id
}

// What a webproxy listens on, as nmap sees it from another machine, and who is
// let in (FEATURES P1).
func TestProxyPorts(t *testing.T) {
	w := proxies(t)
	if _, err := exec.LookPath("nmap"); err != nil {
		harness.Lacks(t, "nmap is missing: make setup")
	}
	// Every socket there is, from the kernel, so that nmap need not try each port.
	listening, err := w.net.Listening("webproxy")
	if err != nil {
		t.Fatal(err)
	}
	if slices.Sort(listening); !slices.Equal(listening, []string{"*:18443", "127.0.0.1:18080", "127.0.0.1:9472", webproxyAddr + ":18444"}) {
		t.Errorf("it listens on %v", listening)
	}
	r := w.runIn(t, "user", "", nil, "nmap", "-n", "-Pn", "-sT", "-p", "22,80,443,2222,8080,8443,9464-9480,18000-18500", "-oG", "-", webproxyAddr)
	var open []string
	for line := range strings.Lines(r.out) {
		if _, ports, ok := strings.Cut(line, "Ports: "); ok {
			for p := range strings.SplitSeq(ports, ", ") {
				if f := strings.Split(p, "/"); len(f) > 1 && f[1] == "open" {
					open = append(open, strings.TrimSpace(f[0]))
				}
			}
		}
	}
	if slices.Sort(open); !slices.Equal(open, []string{"18443", "18444"}) {
		t.Errorf("open from another machine: %v\n%s", open, r.out)
	}
	// The cleartext port is there, for its own machine alone.
	for ns, want := range map[string]bool{"webproxy": true, "user": false} {
		for _, addr := range []string{"127.0.0.1:18080", webproxyAddr + ":18080"} {
			c, err := w.net.Dial(t.Context(), ns, "tcp", addr)
			if err == nil {
				c.Close()
			}
			if got := err == nil; got != (want && addr == "127.0.0.1:18080") {
				t.Errorf("%s from %s: %v", addr, ns, err)
			}
		}
	}
	c, err := w.net.Dial(t.Context(), "webproxy", "tcp", "127.0.0.1:18080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "CONNECT %[1]s:443 HTTP/1.1\r\nHost: %[1]s:443\r\n\r\n", siteAddr)
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, " 407 ") {
		t.Errorf("without a key: %q %v", line, err)
	}
	// Both TLS ports want a certificate, and not any.
	stranger, err := sites.NewAuthority("Stranger")
	if err != nil {
		t.Fatal(err)
	}
	foreign := clientPair(t, stranger)
	for _, port := range []string{":18443", ":18444"} {
		for what, certs := range map[string][]tls.Certificate{"none": nil, "a stranger's": {foreign}} {
			if said := w.knocks(t, webproxyAddr+port, certs, tls.VersionTLS13); said != "" {
				t.Errorf("%s with %s certificate says %q", port, what, said)
			}
		}
		if said := w.knocks(t, webproxyAddr+port, nil, tls.VersionTLS12); said != "" {
			t.Errorf("%s with TLS 1.2 says %q", port, said)
		}
	}
}

// knocks says something to a port and returns the answer.
func (w *webWorld) knocks(t *testing.T, addr string, certs []tls.Certificate, version uint16) string {
	t.Helper()
	raw, err := w.net.Dial(t.Context(), "user", "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: certs, MaxVersion: version})
	fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		return "end in order"
	}
	return string(b)
}

func clientPair(t *testing.T, a *sites.Authority) tls.Certificate {
	t.Helper()
	cert, key, err := a.Client("carrier")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// Two gigabytes down and up, and the webproxy does not grow by 100 MB (P10).
func TestProxyBigBodies(t *testing.T) {
	w := proxies(t)
	const size = 2 << 30
	piece := make([]byte, 1<<20)
	took := make(chan int64, 1)
	at, target := w.origin(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			n, _ := io.Copy(io.Discard, r.Body)
			took <- n
			return
		}
		rw.Header().Set("Content-Length", strconv.Itoa(size))
		for range size / len(piece) {
			if _, err := rw.Write(piece); err != nil {
				return
			}
		}
	}), nil)
	u := w.serve(t, target)
	if code, _ := u.get(t, at+"/"+strings.Repeat("x", 10)+"?size=0"); code != 200 {
		t.Fatalf("the origin answers %d", code)
	}
	before := w.peak(t)
	began := time.Now()
	resp, err := u.client.Get(at + "/big")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil || n != size {
		t.Errorf("%d bytes came: %v", n, err)
	}
	down := time.Since(began)
	began = time.Now()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, at+"/big", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	if resp, err = u.client.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := <-took; n != size || resp.StatusCode != 200 {
		t.Errorf("%d bytes arrived, %d", n, resp.StatusCode)
	}
	grown := w.peak(t) - before
	t.Logf("2 GiB down in %.1f s, up in %.1f s; the webproxy's peak grew by %d kB from %d", down.Seconds(), time.Since(began).Seconds(), grown, before)
	if grown > 100<<10 {
		t.Errorf("the webproxy grew by %d kB", grown)
	}
}

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// peak is the most memory the webproxy has had, in kB.
func (w *webWorld) peak(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSuffix(statusOf(t, w.proxy.Proc.PID(), "VmHWM"), " kB"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Events come one by one, each after the one before was read; the origin is
// spoken to by HTTP/2, and is told nothing of the proxy (P10).
func TestProxyStreams(t *testing.T) {
	w := proxies(t)
	read := make(chan struct{})
	seen := make(chan string, 10)
	at, target := w.origin(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var leaked []string
		for _, h := range []string{"Via", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "Proxy-Authorization", "Proxy-Connection", "X-Real-Ip"} {
			if v := r.Header.Get(h); v != "" {
				leaked = append(leaked, h+"="+v)
			}
		}
		seen <- r.Proto + strings.Join(leaked, ",")
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(rw, "data: %d\n\n", i)
			rw.(http.Flusher).Flush()
			select {
			case <-read:
			case <-r.Context().Done():
				return
			}
		}
	}), nil)
	u := w.serve(t, target)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := u.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := <-seen; got != "HTTP/2.0" || resp.Proto != "HTTP/2.0" {
		t.Errorf("the origin sees %q, the client %s", got, resp.Proto)
	}
	lines := bufio.NewScanner(resp.Body)
	for i := range 5 {
		for lines.Scan() && lines.Text() == "" {
		}
		if got, want := lines.Text(), fmt.Sprintf("data: %d", i); got != want {
			t.Fatalf("event %q, want %q: %v", got, want, lines.Err())
		}
		read <- struct{}{} // only now the next is sent
	}
}

// A program whose session is locked sends nothing, what it has under way is cut,
// and it goes on when the session is unlocked.
func TestProxyLock(t *testing.T) {
	w := proxies(t)
	var cut atomic.Bool
	at, target := w.origin(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			http.NewResponseController(rw).Flush()
			<-r.Context().Done()
			cut.Store(true)
			return
		}
		fmt.Fprint(rw, "served")
	}), forClients)
	u := w.serve(t, target)
	if code, body := u.get(t, at+"/"); code != 200 || body != "served" {
		t.Fatalf("%d %s", code, body)
	}
	stream, err := u.client.Get(at + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	order := func(what string) {
		t.Helper()
		if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/connections/"+u.ID+"/"+what, map[string]string{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	answers := func(want int) {
		t.Helper()
		until(t, patience, fmt.Sprintf("requests are answered with %d", want), func() error {
			if code, body := u.get(t, at+"/"); code != want || (want == 200) != (body == "served") {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
	}
	order("lock")
	answers(http.StatusLocked)
	until(t, patience, "what was under way is cut", func() error {
		if !cut.Load() {
			return errors.New("it goes on")
		}
		return nil
	})
	order("unlock")
	answers(200)
}

// Addresses that must not be dialled are refused even where a rule allows
// them: in every form, by name, by the webproxy and by a site's extender (P13).
func TestProxyForbiddenAddresses(t *testing.T) {
	w := proxies(t)
	dialled := w.trap(t, "webproxy", "127.0.0.1:8997").Load
	inSite := w.trap(t, "ext-a", "127.0.0.1:8997").Load
	own := w.trap(t, "webproxy", webproxyAddr+":8997").Load
	ownExt := w.trap(t, "ext-a", harness.ExtAddr+":8997").Load
	forbidden := []string{
		"127.0.0.1:8997", "127.1.2.3:8997", "localhost:8997", "0.0.0.0:8997", "[::1]:8997", "[::ffff:127.0.0.1]:8997", "[64:ff9b::7f00:1]:8997", "[2002:7f00:1::]:8997",
		"169.254.169.254:80", "[::ffff:169.254.169.254]:80", "[fd00:ec2::254]:80", "100.100.100.200:80", "[fe80::1]:80", "224.0.0.1:80", "255.255.255.255:80",
	}
	allow := func(hosts []string) func(*harness.WebTarget, *webrule.Policy) {
		return func(_ *harness.WebTarget, p *webrule.Policy) {
			for _, h := range hosts {
				p.Allow = append(p.Allow, webrule.Rule{Host: h})
			}
		}
	}
	direct := slices.Concat(forbidden, []string{webproxyAddr + ":8997", harness.CoreAddr + ":443"})
	_, target := w.origin(t, http.NotFoundHandler(), allow(direct))
	through := slices.Concat(forbidden, []string{harness.ExtAddr + ":8997"})
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{still: true, change: func(x *harness.WebTarget, p *webrule.Policy) {
		forClients(x, p)
		allow(through)(x, p)
	}})
	for what, c := range map[string]struct {
		target string
		hosts  []string
	}{"by the webproxy": {target, direct}, "through a site": {s.target, through}} {
		u := w.serve(t, c.target)
		for _, host := range c.hosts {
			for _, scheme := range []string{"https", "http"} {
				code, body := u.get(t, scheme+"://"+host+"/")
				if code != http.StatusForbidden || !strings.Contains(body, "This address may not be reached") {
					t.Errorf("%s: %s://%s/: %d %.300s", what, scheme, host, code, body)
				}
			}
		}
	}
	if n := dialled() + inSite() + own() + ownExt(); n != 0 {
		t.Errorf("%d connections where nobody may connect", n)
	}
	// What no rule allows is not even looked at.
	u := w.serve(t, target)
	for _, host := range []string{"127.0.0.2:8997", harness.HostAddr + ":9001", "elsewhere.test"} {
		if code, body := u.get(t, "https://"+host+"/"); code != http.StatusForbidden || !strings.Contains(body, "not part of your session") {
			t.Errorf("%s: %d %.300s", host, code, body)
		}
	}
}

// Curl and programs use a session from the user's machine, by the command
// line: the token is put in for them, seen by nobody, and the session ends with
// the right to it (P15).
func TestProxyCommandLine(t *testing.T) {
	w := proxies(t)
	token := "tok-" + rand.Text()
	s := w.site(t, sites.Config{Kind: sites.Bearer, Password: token}, siteOptions{still: true, change: forClients})
	c := w.cli(t, "demo", w.demo)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := w.net.Command(ctx, "user", w.bin.CLI, "--output", "json", "web", "--proxy", s.name)
	cmd.Env = []string{"CAPONIER_CONFIG_DIR=" + c.dir, "PATH=/usr/bin:/bin", "HOME=" + c.dir}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var raw map[string]string
	if err := json.NewDecoder(out).Decode(&raw); err != nil {
		cmd.Wait()
		t.Fatalf("%v: %s", err, errs.String())
	}
	curl := func(args ...string) result {
		return w.runIn(t, "user", "", nil, "curl", append([]string{"-sS", "-m", "50", "--cacert", raw["ca_file"]}, args...)...)
	}
	r := curl("--proxy", raw["proxy"], "-w", "%{http_code}", s.origin+"/")
	if r.code != 0 || !strings.HasSuffix(r.out, "200") || strings.Contains(r.out, token) {
		t.Errorf("curl: %v\nlogins %+v", r, s.Logins())
	}
	if l := s.Logins(); len(l) == 0 || !l[len(l)-1].OK {
		t.Errorf("the site saw %+v", l)
	}
	// The proxy wants the session's key, on the user's machine too.
	open, err := url.Parse(raw["proxy"])
	if err != nil {
		t.Fatal(err)
	}
	if r := curl("--proxy", "http://"+open.Host, s.origin+"/"); r.code == 0 || !strings.Contains(r.err, "407") {
		t.Errorf("without the key: %v", r)
	}
	// A program that takes its proxy from the environment, as kubectl does.
	pool := x509.NewCertPool()
	b, err := os.ReadFile(raw["ca_file"])
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatal(err)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(open), TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, n, addr string) (net.Conn, error) { return w.net.Dial(ctx, "user", n, addr) }}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.origin+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	// What it has itself is not what counts.
	req.Header.Set("Authorization", "Bearer nothing")
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("a program: %d", resp.StatusCode)
	}
	if r := curl("--proxy", raw["proxy"], "-o", "/dev/null", "-w", "%{http_code}", "https://"+harness.HostAddr+":1/"); r.out != "403" {
		t.Errorf("what no rule allows: %v", r)
	}
	var session harness.WebSession
	if err := w.user.Do(t.Context(), http.MethodGet, "/web-sessions/"+raw["session"], nil, &session); err == nil {
		until(t, patience, "the requests are on record", func() error {
			events, err := w.core.Admin.Timeline(t.Context(), session.RecordingID)
			if err != nil {
				return err
			}
			for _, e := range events {
				if e.Kind == "request" && e.Fields["injected"] != "" && e.Fields["status"] == "200" {
					return nil
				}
			}
			return fmt.Errorf("not among %d", len(events))
		})
	} else {
		t.Error(err)
	}
	// An administrator ends it, and the program says so.
	if err := w.core.Admin.EndWeb(t.Context(), raw["session"]); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(errs.String(), "session has ended") {
			t.Errorf("it ends with %v: %s", err, errs.String())
		}
	case <-time.After(patience):
		cancel()
		t.Error("it goes on without its session")
	}
	if strings.Contains(w.core.Proc.Output()+w.proxy.Proc.Output()+errs.String(), token) {
		t.Error("the token is in a log")
	}
}

// certificates reads PEM.
func certificates(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return out
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
}
