package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// statusOf is a field of /proc/PID/status.
func statusOf(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// The cage, as the kernel shows it from outside: no network but loopback, no
// capability, no new privileges, a system call filter, read-only root, nobody's
// user; and as tried from inside.
func TestWebCage(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	inside := w.caged(t, u)
	// Its proxy serves this session and nobody else, whoever one says to be.
	speak := func(say string) string {
		return inside(fmt.Sprintf(`use Socket; socket(my $s, PF_INET, SOCK_STREAM, 6); connect($s, sockaddr_in(18080, inet_aton("127.0.0.1"))) or die; syswrite($s, "%s"); alarm 30; my $a; sysread($s, $a, 200); print $a`, say))
	}
	own := strings.TrimPrefix(s.origin, "https://")
	if got := speak(fmt.Sprintf(`CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n`, own)); !strings.Contains(got, " 200 ") {
		t.Errorf("the target through the proxy: %q", got)
	}
	// A connection to the target carries requests to the target alone, whatever
	// host they name inside.
	inner := w.trap(t, "host-a", harness.HostAddr+":8996")
	door := w.tunnel(t, u, own)
	for _, x := range []struct {
		host string
		want func(status int) bool
	}{
		{own, func(status int) bool { return status == http.StatusOK }},
		{harness.HostAddr + ":8996", func(status int) bool {
			return status == http.StatusForbidden || status == http.StatusMisdirectedRequest
		}},
		{harness.CoreAddr, func(status int) bool {
			return status == http.StatusForbidden || status == http.StatusMisdirectedRequest
		}},
	} {
		if got := door(x.host); !x.want(got) {
			t.Errorf("inside a connection to %s a request to %s: %d", own, x.host, got)
		}
	}
	if n := inner.Load(); n != 0 {
		t.Errorf("%d connections to the host named inside", n)
	}
	asked := func(to string) string {
		return inside(fmt.Sprintf(`use Socket; socket(my $s, PF_INET, SOCK_STREAM, 6); connect($s, sockaddr_in(18080, inet_aton("127.0.0.1"))) or die;
			syswrite($s, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n"); alarm 30; my $a; sysread($s, $a, 200);
			syswrite($s, "GET / HTTP/1.1\r\nHost: %[1]s\r\nConnection: close\r\n\r\n"); sysread($s, $a, 400); print $a`, to))
	}
	// What it says to CONNECT is not what counts: nobody is dialled, and what is
	// said through it reaches nobody.
	dialled := w.trap(t, "host-a", harness.HostAddr+":8998")
	atProxy := w.trap(t, "webproxy", "127.0.0.1:8997")
	for _, to := range []string{harness.HostAddr + ":8998", "127.0.0.1:8997", "localhost:8997", harness.CoreAddr + ":443", "127.0.0.1:18443", "169.254.169.254:80"} {
		got := speak(fmt.Sprintf(`CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\nGET / HTTP/1.0\r\n\r\n`, to))
		if strings.Count(got, " 200 ") > 1 || strings.Contains(got, "trapped") {
			t.Errorf("through CONNECT %s: %q", to, got)
		}
		// What is asked for inside is refused, in the clear as within TLS.
		if got := asked(to); !strings.Contains(got, " 403 ") || strings.Contains(got, "trapped") {
			t.Errorf("inside CONNECT %s: %q", to, got)
		}
		if got := speak(fmt.Sprintf(`GET http://%[1]s/ HTTP/1.1\r\nHost: %[1]s\r\n\r\n`, to)); strings.Contains(got, " 200 ") {
			t.Errorf("GET http://%s/: %q", to, got)
		}
	}
	if n := dialled.Load() + atProxy.Load(); n != 0 {
		t.Errorf("%d connections to what no rule allows", n)
	}
	if got := speak(fmt.Sprintf(`CAPONIER/1 %s AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\nGET http://x/ HTTP/1.1\r\n\r\n`, u.ID)); strings.Contains(got, " 200 ") {
		t.Errorf("somebody else's session: %q", got)
	}
}

// caged looks at a session's container from outside and tries it from inside;
// inside runs Perl there.
func (w *webWorld) caged(t *testing.T, u *webUse) (inside func(script string) string) {
	t.Helper()
	id := w.containerOf(t, u)
	pids := w.pidsOf(t, id)
	if len(pids) < 5 {
		t.Fatalf("only %d processes in the container", len(pids))
	}
	for _, pid := range pids {
		name := statusOf(t, pid, "Name")
		if name == "" {
			continue // gone
		}
		for field, want := range map[string]string{"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
			if got := statusOf(t, pid, field); got != want {
				t.Errorf("%s of %s is %s, want %s", field, name, got, want)
			}
		}
		if uid := strings.Fields(statusOf(t, pid, "Uid")); len(uid) != 4 || slices.Contains(uid, "0") {
			t.Errorf("%s runs as %v", name, uid)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		options := strings.Split(f[3], ",")
		switch {
		case f[1] == "/" || f[1] == "/run/caponier":
			if !slices.Contains(options, "ro") {
				t.Errorf("%s is writable: %s", f[1], line)
			}
		case slices.Contains([]string{"/tmp", "/files", "/dev/shm"}, f[1]):
			for _, o := range []string{"noexec", "nosuid", "nodev"} {
				if !slices.Contains(options, o) {
					t.Errorf("%s is not %s: %s", f[1], o, line)
				}
			}
		}
		if strings.Contains(line, "docker.sock") {
			t.Errorf("Docker's socket is inside: %s", line)
		}
	}
	devs, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(devs)) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
			t.Errorf("there is a network device %s", name)
		}
	}
	// From inside: perl is in every Debian.
	inside = func(script string) string {
		out, err := w.docker.Docker(t.Context(), "exec", id, "perl", "-e", script)
		if err != nil {
			return "error: " + err.Error()
		}
		return out
	}
	connect := `use Socket; my ($h, $p) = split /:/, "%s"; socket(my $s, PF_INET, %s) or print("no socket"), exit;
		connect($s, sockaddr_in($p, inet_aton($h))) and (%s) and print("through") or print("closed: $!")`
	stream := func(to string) string { return inside(fmt.Sprintf(connect, to, "SOCK_STREAM, 6", "1")) }
	if got := stream("127.0.0.1:18080"); got != "through" {
		t.Fatalf("the probe does not reach what is there: %s", got)
	}
	for _, to := range []string{
		harness.CoreAddr + ":443", harness.CoreAddr + ":2222", carrierAddr + ":9471", webproxyAddr + ":18443", webproxyAddr + ":18080", harness.HostAddr + ":9001",
		"169.254.169.254:80", "172.17.0.1:22", "8.8.8.8:53", "127.0.0.1:9471", "127.0.0.1:18443",
	} {
		if got := stream(to); !strings.HasPrefix(got, "closed") {
			t.Errorf("%s: %s", to, got)
		}
	}
	if got := inside(fmt.Sprintf(connect, "8.8.8.8:53", "SOCK_DGRAM, 17", `send($s, "x", 0)`)); !strings.HasPrefix(got, "closed") {
		t.Errorf("DNS: %s", got)
	}
	if got := inside(`use Socket; print socket(my $s, PF_INET, SOCK_RAW, 1) ? "open" : "closed"`); got != "closed" {
		t.Errorf("a raw socket: %s", got)
	}
	for _, path := range []string{"/x", "/etc/x", "/usr/bin/x", "/run/caponier/x", "/var/x"} {
		if got := inside(fmt.Sprintf(`print open(my $f, ">", "%s") ? "open" : "closed"`, path)); got != "closed" {
			t.Errorf("writing %s: %s", path, got)
		}
	}
	if got := inside(`open(my $f, ">", "/tmp/x") or die; print $f "#!/usr/bin/perl\nprint 1"; close $f; chmod 0755, "/tmp/x"; print system("/tmp/x") == 0 ? "ran" : "closed"; unlink "/tmp/x"`); got != "closed" {
		t.Errorf("a program in /tmp: %s", got)
	}
	return inside
}

// tunnel speaks through a session's own way out, as its browser would: CONNECT
// to a host, TLS, then requests that name any host.
func (w *webWorld) tunnel(t *testing.T, u *webUse, to string) func(host string) (status int) {
	t.Helper()
	return func(host string) int {
		t.Helper()
		raw, err := net.Dial("unix", filepath.Join(w.runDir, w.slotOf(t, u), "egress.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(raw, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", to); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(raw), nil)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("CONNECT %s: %+v %v", to, res, err)
		}
		name, _, _ := net.SplitHostPort(to)
		c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true}) // who answers is not the question
		if _, err := fmt.Fprintf(c, "GET /plain HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
			t.Fatal(err)
		}
		if res, err = http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
}

// trap listens where nobody should connect and counts who does.
func (w *webWorld) trap(t *testing.T, ns, addr string) *atomic.Int32 {
	t.Helper()
	l, err := w.net.Listen(ns, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int32
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			c.Write([]byte("trapped\n"))
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); done.Wait() })
	return &n
}

// Eating everything up hurts nobody else.
func TestWebGreed(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	other := w.site(t, sites.Config{Kind: sites.Open, Title: "bystander"}, siteOptions{})
	bystander := w.open(t, other)
	bystander.shows(t, "the bystander's page")
	for name, script := range map[string]string{
		"a fork bomb": `for (1..5000) { my $p = fork; if (!defined $p) { print "refused at $_"; last } if (!$p) { sleep 60; exit } } kill 9, 0`,
		"full memory": `my @a; for (1..10000) { push @a, "x" x (1 << 20) } print "got it all"`,
		"full tmp":    `open(my $f, ">", "/tmp/fill") or die; my $n = 0; while (defined(syswrite($f, "x" x (1 << 20)))) { last if ++$n > 10000 } print "stopped at $n MB"; unlink "/tmp/fill"`,
	} {
		t.Run(name, func(t *testing.T) {
			u := w.open(t, s)
			u.shows(t, "the page")
			out, err := w.docker.Docker(t.Context(), "exec", w.containerOf(t, u), "perl", "-e", script)
			if strings.Contains(out, "got it all") || strings.Contains(out, "stopped at 10001") {
				t.Errorf("nothing stopped it: %s", out)
			}
			t.Logf("%s %v", out, err)
			if got := bystander.run(t, "return 1 + 1"); got != "2" {
				t.Errorf("the bystander's page says %q", got)
			}
			if got, err := bystander.api.WebSession(t.Context(), bystander.ID); err != nil || got.State != "open" {
				t.Errorf("the bystander's session: %+v %v", got, err)
			}
			w.core.Admin.EndWeb(t.Context(), u.ID)
		})
	}
	if got := bystander.run(t, "return document.title"); got != "bystander" {
		t.Errorf("the bystander's page says %q", got)
	}
}

// A page that wants more memory than a session may have ends with its session,
// and its user is told why; nobody else notices.
func TestWebHungryPage(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	other := w.site(t, sites.Config{Kind: sites.Open, Title: "bystander"}, siteOptions{})
	bystander := w.open(t, other)
	bystander.shows(t, "the bystander's page")
	u := w.open(t, s)
	u.shows(t, "the page")
	u.run(t, "setTimeout(() => { const all = []; for (;;) all.push(new Uint8Array(32 << 20).fill(1)) }, 500); return 1")
	why, err := u.Screen.Ended(t.Context(), patience)
	if err != nil || why.Code != 4000 || !strings.Contains(why.Reason, "memory") {
		t.Errorf("the user was told %+v %v", why, err)
	}
	if got := u.ended(t, patience); got.EndReason != "error" || !strings.Contains(got.EndText, "more memory") {
		t.Errorf("it ended as %+v", got)
	}
	if got := bystander.run(t, "return document.title"); got != "bystander" {
		t.Errorf("the bystander's page says %q", got)
	}
}
