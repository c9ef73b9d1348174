package e2e

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// openssl runs a command of it where the webproxy is.
func (w *webWorld) openssl(t *testing.T, args ...string) string {
	t.Helper()
	r := w.runIn(t, "webproxy", "", nil, "openssl", args...)
	return r.out + r.err
}

// The chain that browsers get, as openssl sees it: a leaf for the host, by the
// webproxy's issuing certificate, by core's root. That is published without
// TLS, with a revocation list that openssl believes. With permitted names the
// issuing certificate says so, and leaves are found again (P2, P14).
func TestProxyChain(t *testing.T) {
	w := proxies(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{still: true, change: forClients})
	u := w.serve(t, s.target)
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(u.key), 0o600); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(s.origin, "https://")
	chain := func() string {
		return w.openssl(t, "s_client", "-connect", host, "-proxy", "127.0.0.1:18080", "-proxy_user", u.user, "-proxy_pass", "file:"+key,
			"-CAfile", u.caFile, "-verify_ip", harness.HostAddr, "-showcerts")
	}
	shown := chain()
	if !strings.Contains(shown, "Verify return code: 0 (ok)") || strings.Count(shown, "-----BEGIN CERTIFICATE-----") != 2 {
		t.Fatalf("the chain:\n%s", shown)
	}
	// What core publishes on port 80.
	fetch := func(path string) []byte {
		t.Helper()
		file := filepath.Join(dir, filepath.Base(path))
		if r := w.runIn(t, "user", "", nil, "curl", "-sSf", "-m", "50", "-o", file, "http://"+harness.CoreAddr+path); r.code != 0 {
			t.Fatalf("%s: %v", path, r)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	root := fetch("/pki/web/ca.pem")
	if pinned, err := os.ReadFile(u.caFile); err != nil || string(pinned) != string(root) {
		t.Errorf("another root is published: %v", err)
	}
	certs := certificates(t, []byte(shown))
	issuer := certs[len(certs)-1]
	if len(issuer.CRLDistributionPoints) != 1 || len(issuer.IssuingCertificateURL) != 1 {
		t.Fatalf("the issuing certificate names %v and %v", issuer.CRLDistributionPoints, issuer.IssuingCertificateURL)
	}
	list := fetch(strings.TrimPrefix(issuer.CRLDistributionPoints[0], "http://"+harness.CoreAddr))
	fetch(strings.TrimPrefix(issuer.IssuingCertificateURL[0], "http://"+harness.CoreAddr))
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	verify := func(list []byte) string {
		return w.openssl(t, "verify", "-crl_check", "-CAfile", u.caFile, "-CRLfile", write("list.pem", "X509 CRL", list), write("issuer.pem", "CERTIFICATE", issuer.Raw))
	}
	if out := verify(list); !strings.Contains(out, ": OK") {
		t.Errorf("openssl verify: %s", out)
	}
	for _, path := range []string{"/edge/v1/ca", "/edge/v1/crl"} { // the fleet's own
		if len(fetch(path)) == 0 {
			t.Errorf("%s is empty", path)
		}
	}
	// Found again: many connections to one host, one certificate.
	before := w.counter(t, "cached_certificates")
	minted := w.counter(t, "minted_certificates")
	for range 20 {
		if code, body := u.get(t, s.origin+"/plain"); code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		u.client.CloseIdleConnections()
	}
	hits, made := w.counter(t, "cached_certificates")-before, w.counter(t, "minted_certificates")-minted
	if hits < 19 || made > 1 {
		t.Errorf("of 20 connections %v found a certificate and %v had one made", hits, made)
	}
	// Constrained, at once and for sessions that are open.
	set := func(names ...string) {
		t.Helper()
		if names == nil {
			names = []string{}
		}
		if err := w.core.Admin.Do(context.Background(), http.MethodPut, "/settings", map[string]any{"values": map[string]any{"web.permitted_names": names}}, nil, "If-Match", "*"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { set() })
	set("10.10.0.0/16", siteAddr+"/32")
	until(t, patience, "the issuing certificate is constrained", func() error {
		shown = chain()
		certs = certificates(t, []byte(shown))
		if len(certs) < 2 {
			return fmt.Errorf("the chain:\n%s", shown)
		}
		if c := certs[len(certs)-1]; !c.PermittedDNSDomainsCritical || len(c.PermittedIPRanges) != 2 {
			return fmt.Errorf("it permits %v, critical %v", c.PermittedIPRanges, c.PermittedDNSDomainsCritical)
		}
		return nil
	})
	if !strings.Contains(shown, "Verify return code: 0 (ok)") {
		t.Errorf("the constrained chain:\n%s", shown)
	}
	if text := w.openssl(t, "x509", "-noout", "-text", "-in", write("new.pem", "CERTIFICATE", certs[len(certs)-1].Raw)); !strings.Contains(text, "X509v3 Name Constraints: critical") {
		t.Errorf("openssl sees no constraints:\n%s", text)
	}
	// The former one is on the list, and openssl refuses it.
	until(t, 90*time.Second, "the former certificate is on the list", func() error {
		if out := verify(fetch(strings.TrimPrefix(issuer.CRLDistributionPoints[0], "http://"+harness.CoreAddr))); !strings.Contains(out, "certificate revoked") {
			return fmt.Errorf("openssl verify: %s", out)
		}
		return nil
	})
	set("example.net")
	err := w.user.Do(t.Context(), http.MethodPost, "/web-sessions", map[string]any{"target_id": s.target, "mode": "api"}, nil)
	if err == nil || !strings.Contains(err.Error(), "name_not_permitted") {
		t.Errorf("a target elsewhere: %v", err)
	}
}

// counter is a metric of the webproxy.
func (w *webWorld) counter(t *testing.T, name string) float64 {
	t.Helper()
	r := w.runIn(t, "webproxy", "", nil, "curl", "-sSf", "-m", "50", "http://127.0.0.1:9472/metrics")
	m := regexp.MustCompile(`(?m)^caponier_webproxy_` + name + `_total (\S+)$`).FindStringSubmatch(r.out)
	if m == nil {
		t.Fatalf("no metric %s: %v", name, r.err)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Servers that must not be believed: the page says why, and they receive
// nothing (P8).
func TestProxyBadServers(t *testing.T) {
	w := proxies(t)
	for _, c := range []struct {
		name, want string
		fault      sites.Fault
		change     func(*webrule.Policy)
	}{
		{"expired", "has expired", sites.Expired, nil},
		{"wrong host", "is for another name", sites.WrongHost, nil},
		{"self-signed", "is self-signed", sites.SelfSigned, nil},
		{"of another authority", "of an unknown authority", sites.Sound, func(p *webrule.Policy) { p.TLS.Anchors = strangerPEM(t) }},
		{"nobody says whether it was revoked", "could not be found out whether the certificate was revoked", sites.Sound, func(p *webrule.Policy) { p.TLS.Revocation = "hard" }},
		{"the same where that is permitted", "", sites.Sound, func(p *webrule.Policy) { p.TLS.Revocation = "soft" }},
		{"self-signed, unchecked", "", sites.SelfSigned, func(p *webrule.Policy) { p.TLS.Unchecked = true }},
		{"TLS 1.3 at most and 1.2 at least", "", sites.Sound, func(p *webrule.Policy) { p.TLS.Min, p.TLS.Max = "1.2", "1.3" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{fault: c.fault, still: true, change: func(x *harness.WebTarget, p *webrule.Policy) {
				forClients(x, p)
				if c.change != nil {
					c.change(p)
				}
			}})
			u := w.serve(t, s.target)
			code, body := u.get(t, s.origin+"/plain")
			if c.want == "" {
				if code != 200 {
					t.Errorf("%d %.600s", code, body)
				}
			} else if code != http.StatusBadGateway || !strings.Contains(body, "certificate is not accepted") || !strings.Contains(body, c.want) {
				t.Errorf("%d %.900s", code, body)
			}
			if got := s.Requests(); c.want != "" && len(got) != 0 {
				t.Errorf("the site received %+v", got)
			}
			if c.name != "the same where that is permitted" {
				return
			}
			until(t, patience, "the log says that it is not known", func() error {
				events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
				if err != nil {
					return err
				}
				for _, e := range events {
					if e.Kind == "request" && strings.HasPrefix(e.Fields["revocation"], "unknown: ") {
						return nil
					}
				}
				return fmt.Errorf("not among %d events", len(events))
			})
		})
	}
}

func strangerPEM(t *testing.T) string {
	t.Helper()
	a, err := sites.NewAuthority("Stranger")
	if err != nil {
		t.Fatal(err)
	}
	return a.PEM
}

// A real nginx that wants a client certificate gets the stored one from the
// webproxy, which nobody else holds; without it, it refuses (P9).
func TestProxyClientCertificate(t *testing.T) {
	w := proxies(t)
	if _, err := exec.LookPath("nginx"); err != nil {
		harness.Lacks(t, "nginx is missing: make setup")
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	server, err := w.ca.Certificate(sites.Sound, harness.HostAddr)
	must(err)
	der, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	must(err)
	serverKey := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	cert, key, err := w.ca.Client("robot of the tests")
	must(err)
	port := 9000 + w.port.Add(1)
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		must(os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	conf := write("nginx.conf", fmt.Sprintf(`
daemon off; pid %[1]s/pid; error_log %[1]s/error.log; worker_processes 1; user root;
events { worker_connections 64; }
http {
	access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server {
		listen %[2]s:%[3]d ssl;
		ssl_certificate %[4]s; ssl_certificate_key %[5]s;
		ssl_client_certificate %[6]s; ssl_verify_client on;
		location / { default_type text/plain; return 200 "$ssl_client_verify $ssl_client_s_dn\n"; }
	}
}
`, dir, harness.HostAddr, port, write("server.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]}))), write("server.key", serverKey), write("ca.pem", w.ca.PEM)))
	cmd := w.net.Command(t.Context(), "host-a", "nginx", "-c", conf, "-e", filepath.Join(dir, "error.log"))
	nginx, err := harness.Start("nginx", dir, cmd, false)
	must(err)
	t.Cleanup(nginx.Kill)
	at := fmt.Sprintf("https://%s:%d", harness.HostAddr, port)
	until(t, patience, "nginx listens", func() error {
		c, err := w.net.Dial(t.Context(), "host-a", "tcp", strings.TrimPrefix(at, "https://"))
		if err == nil {
			c.Close()
		}
		return err
	})
	value, err := json.Marshal(map[string]string{"certificate": cert, "key": key})
	must(err)
	secret, err := w.core.Admin.Secret(t.Context(), "robot "+strconv.Itoa(int(port)), "json", string(value))
	must(err)
	with := w.apiTarget(t, at, "vpc-a", func(x *harness.WebTarget, p *webrule.Policy) {
		p.Recipe.Injections = []webrule.Injection{{ID: "cert", Kind: webrule.ClientCert, Origin: at}}
		x.Accounts = []harness.Account{{Name: "robot", Auth: "password", Secret: secret}}
	})
	code, body := w.serve(t, with).get(t, at+"/")
	if code != 200 || !strings.Contains(body, "SUCCESS") || !strings.Contains(body, "robot of the tests") {
		t.Errorf("with the certificate: %d %.300s", code, body)
	}
	without := w.apiTarget(t, at, "vpc-a", nil)
	if code, body := w.serve(t, without).get(t, at+"/"); code != 400 || !strings.Contains(body, "No required SSL certificate") {
		t.Errorf("without: %d %.300s", code, body)
	}
	for _, log := range []string{w.core.Proc.Output(), w.proxy.Proc.Output()} {
		if strings.Contains(log, strings.Split(key, "\n")[1]) {
			t.Error("the key is in a log")
		}
	}
}

// A target without TLS works where that is permitted; nothing is put in for it
// unless the injection says so. One page that hashes passwords in script is
// signed in to by the webproxy itself, and its cookie is the client's (P9).
func TestProxyPlainAndLogin(t *testing.T) {
	w := proxies(t)
	plain := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{plain: true, still: true, change: forClients})
	if code, body := w.serve(t, plain.target).get(t, plain.origin+"/plain"); code != 200 {
		t.Errorf("without TLS: %d %.300s", code, body)
	}
	for _, insecure := range []bool{false, true} {
		s := w.site(t, sites.Config{Kind: sites.Bearer}, siteOptions{plain: true, still: true, change: func(x *harness.WebTarget, p *webrule.Policy) {
			forClients(x, p)
			for i := range p.Recipe.Injections {
				in := &p.Recipe.Injections[i]
				in.Insecure = insecure
				if !insecure { // what core would refuse to store
					in.Origin = strings.Replace(in.Origin, "http:", "https:", 1)
				}
			}
		}})
		code, _ := w.serve(t, s.target).get(t, s.origin+"/")
		if got := code == 200; got != insecure {
			t.Errorf("insecure %v: %d, logins %+v", insecure, code, s.Logins())
		}
	}
	s := w.site(t, sites.Config{Kind: sites.Hashed}, siteOptions{still: true, change: forClients})
	u := w.serve(t, s.target)
	resp, err := u.client.Get(s.origin + "/")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if l := s.Logins(); err != nil || len(l) != 1 || !l[0].OK || strings.Contains(string(b), s.Config.Password) {
		t.Errorf("signed in by the webproxy: %d, logins %+v, %v", resp.StatusCode, l, err)
	}
	if len(resp.Header["Set-Cookie"]) == 0 {
		t.Errorf("the client gets no cookie: %v", resp.Header)
	}
}
