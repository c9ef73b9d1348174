package e2e

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/e2e/harness"
)

func ipsOf(names []string) (ips []net.IP) {
	for _, n := range names {
		if a, err := netip.ParseAddr(n); err == nil {
			ips = append(ips, a.AsSlice())
		}
	}
	return ips
}

// Load balancers between extender and core, with the example configurations of
// deploy/: TLS passed through binds the proof to it, TLS ended in the middle
// makes extender and core run TLS inside; either way sessions work, and the
// middle never sees payload.
func TestLoadBalancers(t *testing.T) {
	needRig(t)
	w := newWorld(t, options{vpcs: []string{"a"}, core: ""})
	// The name core's own certificate is checked for. Examples say pam.example.org;
	// in this world it is core's configured name, for nginx checks no addresses.
	const inner, name = "pam.example.org", "core1"
	const limits = "maxconn 20000" // more files than a test may open
	coreHTTPS := harness.CoreAddr + ":443"
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, key := selfSigned(t, dir, harness.MiddleAddr)
	both := filepath.Join(dir, "both.pem")
	c, err1 := os.ReadFile(cert)
	k, err2 := os.ReadFile(key)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := os.WriteFile(both, append(c, k...), 0o600); err != nil {
		t.Fatal(err)
	}
	// The middle has one address; examples listen on all of them.
	ca := w.core.Ready.CAFile
	nginxFrame := "daemon off;\npid " + filepath.Join(dir, "nginx.pid") + ";\nerror_log stderr;\nuser root;\nevents {}\n"
	for _, lb := range []struct {
		name, file, text, binding string
		args                      []string
	}{
		{"haproxy, passed through", "h1.cfg", example(t, "haproxy/passthrough.cfg", "192.0.2.11", harness.CoreAddr, limits, "maxconn 500"), "bound", []string{"haproxy", "-db", "-f"}},
		{"haproxy, ended", "h2.cfg", example(t, "haproxy/terminate.cfg", "192.0.2.11:443", coreHTTPS, "/etc/haproxy/pam.pem", both, "/etc/haproxy/core-ca.pem", ca,
			inner, name, limits, "maxconn 500"), "inner", []string{"haproxy", "-db", "-f"}},
		{"nginx, passed through", "n1.conf", "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n" + nginxFrame + example(t, "nginx/passthrough.conf", "192.0.2.11", harness.CoreAddr), "bound", []string{"nginx", "-c"}},
		{"nginx, ended", "n2.conf", nginxFrame + "http { access_log off;\n" + example(t, "nginx/terminate.conf", "192.0.2.11:443", coreHTTPS, "/etc/nginx/pam.crt", cert, "/etc/nginx/pam.key", key,
			"/etc/nginx/core-ca.pem", ca, "proxy_ssl_name "+inner, "proxy_ssl_name "+name, "server_name "+inner, "server_name _") + "}\n", "inner", []string{"nginx", "-c"}},
	} {
		t.Run(lb.name, func(t *testing.T) {
			file := filepath.Join(dir, lb.file)
			if err := os.WriteFile(file, []byte(lb.text), 0o644); err != nil {
				t.Fatal(err)
			}
			p, err := harness.Start(lb.args[0], t.TempDir(), w.net.Command(t.Context(), "middle", lb.args[0], append(lb.args[1:], file)...), false)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Kill()
			until(t, patience, "the load balancer listens", func() error {
				c, err := w.net.Dial(t.Context(), "middle", "tcp", harness.MiddleAddr+":443")
				if err != nil {
					return &harness.Status{Body: err.Error() + "\n" + p.Output()}
				}
				return c.Close()
			})
			// A capture of everything that passes between the middle and core.
			dump := filepath.Join(t.TempDir(), "dump.pcap")
			tcpdump, err := harness.Start("tcpdump", t.TempDir(), w.net.Command(t.Context(), "middle", "tcpdump", "-i", "any", "-U", "-w", dump, "--immediate-mode"), false)
			if err != nil {
				t.Fatal(err)
			}
			defer tcpdump.Kill()
			if err := tcpdump.WaitOutput(t.Context(), patience, "listening on"); err != nil {
				t.Fatal(err)
			}

			// A new extender of the same site that dials the middle only.
			w.ext["a"].Proc.Kill()
			if err := os.RemoveAll(w.ext["a"].Dir); err != nil {
				t.Fatal(err)
			}
			if err := w.extender(t.Context(), "a", options{edge: "https://" + harness.MiddleAddr}); err != nil {
				t.Fatal(err)
			}
			edge, err := w.core.Admin.Online(t.Context(), patience, "vpc-a", w.ext["a"].Proc)
			if err != nil {
				t.Fatal(err)
			}
			if edge.Tunnel.Transport != "wss" || edge.Tunnel.Binding != lb.binding {
				t.Errorf("tunnel over %s, %s; want wss, %s", edge.Tunnel.Transport, edge.Tunnel.Binding, lb.binding)
			}
			if got := strings.TrimSpace(w.mustSSH(t, dbA, "echo plain-payload-$((6*7)); hostname")); !strings.HasSuffix(got, "db-a") {
				t.Errorf("through the load balancer: %q", got)
			}
			tcpdump.Kill()
			b, err := os.ReadFile(dump)
			if err != nil || len(b) < 1000 {
				t.Fatalf("the capture is %d bytes, %v", len(b), err)
			}
			// OpenSSH's greeting is the first thing a target says, in clear.
			for _, plain := range []string{"SSH-2.0-OpenSSH", "plain-payload"} {
				if strings.Contains(string(b), plain) {
					t.Errorf("the capture shows %q in clear", plain)
				}
			}
		})
	}
}
