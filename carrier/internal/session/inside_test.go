package session

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/e2e/harness"
	"caponier/shared/wire"
)

// inside runs a shell command in a session's container, as its user.
func (r *rig) inside(l *live, script string) string {
	r.t.Helper()
	out, _ := r.docker("exec", l.slot.ID, "/bin/sh", "-c", script) // its status is the test's business
	return out
}

func (r *rig) docker(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.WaitDelay = time.Second // what runs inside may hold the pipes
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+docker.host)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What the kernel says of the running container, not what Docker was asked for.
func TestHardening(t *testing.T) { each(t, testHardening) }

func testHardening(t *testing.T, r *rig) {
	r.start()
	r.warm(1)
	l := r.open(r.spec("con_hard"))
	out, err := r.docker("inspect", "-f", "{{.State.Pid}}", l.slot.ID)
	if err != nil {
		t.Fatal(out)
	}
	pid := strings.TrimSpace(out)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Uid": "10001\t10001\t10001\t10001", "Gid": "10001\t10001\t10001\t10001"} {
		m := regexp.MustCompile(`(?m)^` + key + `:\t(.*)$`).FindSubmatch(status)
		if m == nil || string(m[1]) != want {
			t.Errorf("%s is %q, want %q", key, m, want)
		}
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"/": {"ro"}, "/tmp": {"noexec", "nosuid", "nodev"}, browser.FilesDir: {"noexec", "nosuid", "nodev"},
		browser.SharedDir: {"ro"}, "/dev/shm": {"noexec", "nosuid", "nodev"}}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		for _, opt := range want[f[4]] {
			if !strings.Contains(","+f[5]+",", ","+opt+",") {
				t.Errorf("%s lacks %s: %s", f[4], opt, f[5])
			}
		}
		delete(want, f[4])
	}
	if len(want) > 0 {
		t.Errorf("not mounted: %v", want)
	}
	for _, ns := range []string{"net", "pid", "ipc", "mnt", "uts"} {
		theirs, err1 := os.Readlink("/proc/" + pid + "/ns/" + ns)
		ours, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err1 != nil || err2 != nil || theirs == ours {
			t.Errorf("namespace %s is ours", ns)
		}
	}
	limits, err := os.ReadFile("/proc/" + pid + "/limits")
	if err != nil || !regexp.MustCompile(`Max core file size +0 +0`).Match(limits) {
		t.Errorf("core files are possible: %v", err)
	}
	out, err = r.docker("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}} {{.HostConfig.NetworkMode}} {{.HostConfig.Privileged}}", l.slot.ID)
	if want := "1258291200 1258291200 400 none false"; err != nil || strings.TrimSpace(out) != want {
		t.Errorf("limits %q, want %q", out, want)
	}
	// Nothing of the container names the person, and nothing secret is in its
	// environment or arguments.
	out, _ = r.docker("inspect", l.slot.ID)
	for _, word := range []string{"alice", "key-of-", "target.test"} {
		if strings.Contains(out, word) {
			t.Errorf("the container's description has %q", word)
		}
	}
}

// From inside there is loopback and nothing else: no name resolves, no address
// answers, and the directory of sockets cannot be written.
func TestNoWayOut(t *testing.T) { each(t, testNoWayOut) }

func testNoWayOut(t *testing.T, r *rig) {
	r.start()
	r.warm(1)
	l := r.open(r.spec("con_esc"))
	r.shows(l, colour("/con_esc"), patience)
	if links := strings.Fields(r.inside(l, "ls /sys/class/net")); len(links) != 1 || links[0] != "lo" {
		t.Errorf("links %q", links)
	}
	probe := func(network, addr string, port int) string {
		kind := "SOCK_STREAM"
		if network == "udp" {
			kind = "SOCK_DGRAM"
		}
		return r.inside(l, `perl -MSocket -e '
			socket(my $s, PF_INET, `+kind+`, 0) or die "socket: $!\n";
			connect($s, sockaddr_in(`+strconv.Itoa(port)+`, inet_aton("`+addr+`"))) or die "connect: $!\n";
			print "CONNECTED\n"' 2>&1`)
	}
	if got := probe("tcp", "127.0.0.1", 18080); !strings.Contains(got, "CONNECTED") {
		t.Fatalf("the probe does not even reach the proxy: %q", got) // the positive control
	}
	for _, p := range []struct {
		network, addr string
		port          int
	}{{"tcp", "172.17.0.1", 22}, {"tcp", "169.254.169.254", 80}, {"tcp", "10.0.0.1", 443}, {"tcp", "192.0.2.1", 80}, {"udp", "8.8.8.8", 53},
		{"udp", "172.17.0.1", 53}, {"tcp", "127.0.0.1", 2375}, {"tcp", "127.0.0.1", 22}} {
		if got := probe(p.network, p.addr, p.port); strings.Contains(got, "CONNECTED") || !strings.Contains(got, "connect:") {
			t.Errorf("%s %s:%d: %q", p.network, p.addr, p.port, got)
		}
	}
	for _, script := range []string{
		"getent hosts example.org",
		"touch " + browser.SharedDir + "/x", "ln -s /etc/passwd " + browser.SharedDir + "/y", "rm " + browser.SharedDir + "/egress.sock",
		"touch /usr/x", "touch /etc/x",
		"cp /bin/true /tmp/t && /tmp/t", "cp /bin/true /files/t && /files/t", "cp /bin/true /dev/shm/t && /dev/shm/t",
		"unshare -Ur true", "mount -t tmpfs none /mnt", "mknod /tmp/sda b 8 0",
		"perl -e 'socket(my $s, 17, 3, 3) or exit 1'", // AF_PACKET
		"ls /run/docker.sock /var/run/docker.sock",
	} {
		if got := r.inside(l, "("+script+") >/dev/null 2>&1 && echo WORKED"); strings.Contains(got, "WORKED") {
			t.Errorf("%s: it worked", script)
		}
	}
	// What is in the directory is the container's own.
	want := "ca.pem\negress.sock\nfiles.sock\nrfb.sock\nsession.json\nx11.sock\n"
	if r.what == wire.Chromium {
		want = "ca.pem\negress.sock\nfiles.sock\npolicies\nrfb.sock\nx11.sock\n"
	}
	if got := r.inside(l, "ls -A "+browser.SharedDir); got != want {
		t.Errorf("the container sees %q", got)
	}
	if got := r.inside(l, "grep -r key-of- /tmp /files "+browser.SharedDir+" 2>/dev/null"); strings.Contains(got, "key-of-") {
		t.Errorf("the session's key is in the container: %q", got)
	}
}

// One container that uses up all it can hurts itself alone.
func TestGreedyContainer(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	calm := r.open(r.spec("con_calm"))
	r.shows(calm, colour("/con_calm"), patience)
	r.warm(1)
	for name, script := range map[string]string{
		"fork bomb":  `bomb() { bomb | bomb & }; bomb; sleep 3; true`,
		"memory":     `perl -e 'my @a; push @a, "x" x (64 << 20) for 1 .. 160; print "ALL OF IT\n"'`,
		"full disks": `dd if=/dev/zero of=/tmp/full bs=1M count=10000 2>/dev/null; dd if=/dev/zero of=/files/full bs=1M count=10000 2>/dev/null; echo FULL`,
	} {
		id := "con_" + strings.ReplaceAll(name, " ", "_")
		greedy := r.open(r.spec(id))
		out := r.inside(greedy, script)
		if strings.Contains(out, "ALL OF IT") {
			t.Errorf("%s: 10 GB were allocated", name)
		}
		if calm.ctx.Err() != nil {
			t.Fatalf("%s: the other session ended", name)
		}
		if got := r.inside(calm, "echo alive"); got != "alive\n" {
			t.Errorf("%s: the other session says %q", name, got)
		}
		if share := harness.Share(calm.screen.Snapshot(), colour("/con_calm")); share < 0.5 {
			t.Errorf("%s: the other session shows something else (%.2f)", name, share)
		}
		if err := r.m.delete(t.Context(), id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, c := range r.containers() {
			if c.ID == greedy.slot.ID {
				t.Errorf("%s: the container is still there", name)
			}
		}
	}
	if fi, err := os.Stat(filepath.Join(r.dir, "run")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("run directory: %v, %v", fi, err)
	}
}

// A page that takes all the memory there is for a session ends it, and its user
// and core are told why: the browser alone would show an empty window.
func TestHungryPage(t *testing.T) {
	r := newRig(t)
	r.web.handler = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><body style="background:#fff"><script>
			setTimeout(() => { const all = []; for (;;) all.push(new Uint8Array(32 << 20).fill(1)) }, 500)</script>`)
	}
	r.start()
	r.warm(1)
	r.open(r.spec("con_hungry"))
	r.until(patience, "the end", func() error {
		if e, ok := r.core.end("con_hungry"); !ok || e.Reason != "error" || e.Text != textStarved {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
}
