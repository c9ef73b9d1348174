package e2e

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"caponier/e2e/harness"
)

// status reads a line of /proc/PID/status.
func status(t *testing.T, p *harness.Proc, key string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.Fields(v)
		}
	}
	t.Fatalf("no %s in /proc", key)
	return nil
}

// The extender needs no root: as nobody, without a capability, it does its
// work. What it tells of itself is what the kernel of its host counts.
func TestExtenderWithoutRootTellsTheTruth(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}, nobody: true})
	ext := w.ext["a"].Proc
	if uid := status(t, ext, "Uid"); !slices.Equal(uid, []string{"65534", "65534", "65534", "65534"}) {
		t.Errorf("user IDs %v", uid)
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapBnd", "CapAmb"} {
		if c := status(t, ext, set); strings.Trim(c[0], "0") != "" {
			t.Errorf("%s is %s", set, c[0])
		}
	}
	if kb, err := strconv.Atoi(status(t, ext, "RssAnon")[0]); err != nil || kb > 10<<10 {
		t.Errorf("the idle extender holds %d KB of memory of its own, want at most 10 MB", kb)
	} else {
		t.Logf("the idle extender holds %d KB of memory of its own", kb)
	}
	const sessions = 3
	for range sessions {
		w.shell(t, dbA)
	}
	until(t, patience, "status and kernel agree", func() error {
		list, err := w.core.Admin.Edges(t.Context(), "vpc-a")
		if err != nil {
			return err
		}
		r := w.runIn(t, "ext-a", "", nil, "ss", "-Htn", "state", "established", "dport = :22")
		if sockets := strings.Count(r.out, "\n"); len(list) != 1 || list[0].Tunnel == nil || list[0].Tunnel.Relayed != sessions || sockets != sessions {
			return fmt.Errorf("%d sessions, %d sockets, core shows %+v", sessions, sockets, list)
		}
		return nil
	})
	list, err := w.core.Admin.Edges(t.Context(), "vpc-a")
	if err != nil || len(list) != 1 || list[0].Tunnel == nil {
		t.Fatal(list, err)
	}
	tun := list[0].Tunnel
	st, err := os.Stat("/proc/" + strconv.Itoa(ext.PID()))
	if err != nil {
		t.Fatal(err)
	}
	// Its clock and the kernel's are the same, but for a tick of the latter.
	if tun.StartedAt.Before(st.ModTime().Add(-time.Second)) || tun.StartedAt.After(time.Now()) {
		t.Errorf("started at %v, the process at %v", tun.StartedAt, st.ModTime())
	}
	if !strings.HasPrefix(tun.Remote, "203.0.113.101") || tun.RTTMS <= 0 || tun.Build == "" {
		t.Errorf("tunnel shown as %+v", tun)
	}
}

// Metrics of a core at work are well-formed and move; no value of a label
// names a person or a host.
func TestMetricsMove(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	scrape := func() (string, map[string]float64) {
		t.Helper()
		r := w.runIn(t, "core", "", nil, "curl", "-sS", "-m", "50", "http://127.0.0.1:9464/metrics")
		if r.code != 0 {
			t.Fatal(r)
		}
		values := map[string]float64{}
		for line := range strings.Lines(r.out) {
			if name, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
				name, _, _ = strings.Cut(name, "{")
				n, err := strconv.ParseFloat(v[strings.LastIndex(v, " ")+1:], 64)
				if err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				values[name] += n
			}
		}
		return r.out, values
	}
	_, before := scrape()
	w.shell(t, dbA)
	text, during := scrape()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	for name, want := range map[string]float64{"caponier_core_connections_live": 1, "caponier_core_recordings_live": 1, "caponier_core_edges_connected_nodes": 1} {
		if during[name] != want {
			t.Errorf("%s is %v, want %v", name, during[name], want)
		}
	}
	for _, name := range []string{"caponier_core_dial_seconds_count", "caponier_core_recordings_started_total"} {
		if during[name] != before[name]+1 {
			t.Errorf("%s went from %v to %v with one session", name, before[name], during[name])
		}
	}
	if during["caponier_core_api_request_duration_seconds_count"] < 10 {
		t.Error("requests are not counted")
	}
	if m := regexp.MustCompile(`(?m)^caponier_.*"(demo|admin|root|db-a|10\.10\.0\.5)".*$`).FindString(text); m != "" {
		t.Errorf("a label tells: %s", m)
	}
}

// A session port exists as long as its session does, for one client address.
func TestSessionPort(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	l, err := w.net.Listen("host-a", "tcp", harness.Hosts[3]+":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveHello(l)
	if _, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: "web-a", Kind: "tcp", Site: "vpc-a", Host: harness.Hosts[3], Port: 8080}); err != nil {
		t.Fatal(err)
	}
	port := regexp.MustCompile(`:(40[0-2][0-9])$`)
	open := func() (found []string) {
		t.Helper()
		all, err := w.net.Listening("core")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if m := port.FindStringSubmatch(a); m != nil {
				found = append(found, m[1])
			}
		}
		return found
	}
	if before := open(); len(before) > 0 {
		t.Errorf("before any session core listens on %v", before)
	}
	demo, err := w.as(t.Context(), "demo", w.demo)
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		ID      string `json:"connection_id"`
		Address string `json:"address"`
	}
	if err := demo.Do(t.Context(), http.MethodPost, "/port-sessions", map[string]string{"target": "web-a", "client_ip": harness.UserAddr}, &s); err != nil {
		t.Fatal(err)
	}
	if during := open(); len(during) != 1 || !strings.HasSuffix(s.Address, ":"+during[0]) {
		t.Errorf("session at %s, core listens on %v", s.Address, during)
	}
	get := func(from string) result {
		return w.runIn(t, "user", "", nil, "curl", "-sS", "-m", "50", "--interface", from, "http://"+s.Address+"/")
	}
	if r := get(harness.UserAddr); r.code != 0 || r.out != "hello from inside" {
		t.Errorf("the client itself: %v", r)
	}
	if r := get("203.0.113.51"); r.code == 0 || r.out != "" {
		t.Errorf("another address: %v", r)
	}
	w.audited(t, "type=port.denied", "the other address", func(e harness.Event) bool {
		return e.Connection == s.ID && strings.Contains(fmt.Sprint(e.Fields), "203.0.113.51")
	})
	if err := demo.Delete(t.Context(), "/port-sessions/"+s.ID); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the port closes", func() error {
		if after := open(); len(after) > 0 {
			return fmt.Errorf("core listens on %v", after)
		}
		return nil
	})
	if r := get(harness.UserAddr); r.code == 0 {
		t.Errorf("after its end: %v", r)
	}
}
