package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// BenchmarkWeb measures web sessions as a person has them, by the pixels that
// arrive, and prints a table. Run it by make bench, with -benchtime 1x;
// BenchmarkWeb/click is the first part alone.
func BenchmarkWeb(b *testing.B) {
	w := web(b)
	s := w.site(b, sites.Config{Kind: sites.Form}, siteOptions{})
	fmt.Printf("\nweb sessions, %d cores, %s\n", runtime.NumCPU(), time.Now().UTC().Format("2006-01-02"))
	for _, part := range []struct {
		name string
		rows func(b *testing.B) []benchRow
	}{
		{"click", func(b *testing.B) []benchRow { return w.benchWarm(b, s, 12) }},
		{"idle", func(b *testing.B) []benchRow { return w.benchIdle(b, s, 10) }},
		{"cold", func(b *testing.B) []benchRow { return []benchRow{w.benchCold(b, s, 3)} }},
		{"killed", func(b *testing.B) []benchRow { return []benchRow{w.benchKilled(b, s)} }},
	} {
		b.Run(part.name, func(b *testing.B) {
			for b.Loop() {
				for _, r := range part.rows(b) {
					said := "pass"
					if r.value > r.most {
						said = "short"
					}
					fmt.Printf("  %-58s %10.3f %-9s wanted ≤ %-7g %s\n", r.what, r.value, r.unit, r.most, said)
				}
			}
		})
	}
}

// benchRow is a line of the table.
type benchRow struct {
	what  string
	value float64
	unit  string
	most  float64
}

// click opens a site and returns how long it took from the request to the
// first pixels of the target.
func (w *webWorld) click(b *testing.B, s *webSite) (*webUse, time.Duration) {
	b.Helper()
	began := time.Now()
	u := w.openAs(b, w.user, s)
	if err := u.Screen.Shows(b.Context(), 30*time.Second, "the target's first pixels", s.Color()); err != nil {
		b.Fatal(err)
	}
	return u, time.Since(began)
}

func (w *webWorld) parked(b *testing.B) {
	b.Helper()
	if _, err := w.core.Admin.WebReady(b.Context(), 60*time.Second, w.carrier, harness.HasRoom(webWarm)); err != nil {
		b.Fatal(err)
	}
}

// quantile of sorted durations, in seconds.
func quantile(d []time.Duration, q float64) float64 {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))].Seconds()
}

func (w *webWorld) benchWarm(b *testing.B, s *webSite, n int) []benchRow {
	plain := w.site(b, sites.Config{Kind: sites.Open}, siteOptions{still: true})
	var open, signed []time.Duration
	for len(open) < n || len(signed) < n {
		for _, x := range []struct {
			site *webSite
			to   *[]time.Duration
		}{{plain, &open}, {s, &signed}} {
			w.parked(b)
			u, took := w.click(b, x.site)
			if u.Warm { // what is reported is some seconds old: not every one is
				*x.to = append(*x.to, took)
			}
			u.end(b)
		}
	}
	return []benchRow{
		{"warm click to the target's first pixels, p50", quantile(open, 0.5), "s", 0.3},
		{"warm click to the target's first pixels, p95", quantile(open, 0.95), "s", 0.8},
		{"warm click to the page after signing in by form, p50", quantile(signed, 0.5), "s", 1.0},
		{"warm click to the page after signing in by form, p95", quantile(signed, 0.95), "s", 2.0},
	}
}

// benchIdle has n sessions open and nobody at them.
func (w *webWorld) benchIdle(b *testing.B, s *webSite, n int) []benchRow {
	plain := w.site(b, sites.Config{Kind: sites.Open}, siteOptions{still: true})
	var all []*webUse
	for range n {
		w.parked(b)
		u, _ := w.click(b, plain)
		all = append(all, u)
	}
	w.parked(b)
	ids, err := w.docker.Containers(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	pss := 0.0
	for _, id := range ids {
		pss += w.pss(b, id)
	}
	// Let pages settle, then look at nothing happening.
	quiet := time.NewTimer(20 * time.Second)
	<-quiet.C
	cpu, bytes, stored := w.cpu(b, ids), int64(0), w.stored(b)
	for _, u := range all {
		n, _ := u.Screen.Received()
		bytes += n
	}
	const span = 30 * time.Second
	quiet.Reset(span)
	<-quiet.C
	used := w.cpu(b, ids) - cpu
	for _, u := range all {
		n, _ := u.Screen.Received()
		bytes -= n
	}
	kept := w.stored(b) - stored
	for _, u := range all {
		u.end(b)
	}
	return []benchRow{
		{fmt.Sprintf("memory (PSS) of a browser, %d open and %d parked", n, webWarm), pss / float64(len(ids)) / (1 << 20), "MB", 200},
		{"idle CPU of a browser, of a core", 100 * used.Seconds() / span.Seconds() / float64(len(ids)), "%", 0.6},
		{"idle stream of a session", float64(-bytes) / span.Seconds() / float64(n), "B/s", 0},
		{"idle recording of a session", float64(kept) / span.Seconds() / float64(n), "B/s", 0},
	}
}

func (w *webWorld) benchCold(b *testing.B, s *webSite, n int) benchRow {
	plain := w.site(b, sites.Config{Kind: sites.Open}, siteOptions{still: true})
	w.pool(b, 0)
	defer w.pool(b, webWarm)
	var took []time.Duration
	for range n {
		u, d := w.click(b, plain)
		if u.Warm {
			b.Fatal("a parked browser was used")
		}
		took = append(took, d)
		u.end(b)
	}
	return benchRow{"cold click to the target's first pixels, p50", quantile(took, 0.5), "s", 4}
}

// pool restarts the carrier with another number of parked browsers.
func (w *webWorld) pool(b *testing.B, warm int) {
	b.Helper()
	if err := w.carrier.Proc.Stop(40 * time.Second); err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(w.carrier.Dir, "config.toml")
	text, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "warm = ") {
			lines[i] = fmt.Sprintf("warm = %d", warm)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := w.carrier.Start(); err != nil {
		b.Fatal(err)
	}
	if _, err := w.core.Admin.WebReady(b.Context(), 60*time.Second, w.carrier, func(e harness.WebEdge) error {
		if e.Web.Warm != warm || e.Web.Room == 0 {
			return fmt.Errorf("it has %+v", *e.Web)
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

// benchKilled kills the carrier's process under a moving picture.
func (w *webWorld) benchKilled(b *testing.B, s *webSite) benchRow {
	plain := w.site(b, sites.Config{Kind: sites.Open}, siteOptions{still: true, change: startAt("/canvas")})
	w.parked(b)
	u := w.open(b, plain)
	moving := func(updates int) error {
		_, n := u.Screen.Received()
		return harness.Until(b.Context(), 20*time.Second, "the picture moves", func() error {
			if _, m := u.Screen.Received(); m < n+updates {
				return fmt.Errorf("%d updates", m-n)
			}
			return nil
		})
	}
	// More than a page makes while it loads: what is cut then stays away.
	if err := moving(30); err != nil {
		b.Fatal(err)
	}
	w.carrier.Proc.Kill()
	began := time.Now()
	if err := w.carrier.Start(); err != nil {
		b.Fatal(err)
	}
	u.look(b)
	if err := moving(3); err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	u.end(b)
	return benchRow{"carrier killed and started: picture moves again", took.Seconds(), "s", 3}
}

// pss sums the proportional memory of a container's processes, in bytes.
func (w *webWorld) pss(b *testing.B, container string) float64 {
	b.Helper()
	total := 0.0
	for _, pid := range w.pidsOf(b, container) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kb, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					b.Fatal(err)
				}
				total += kb * 1024
			}
		}
	}
	return total
}

// cpu is the processor time that containers' processes have used.
func (w *webWorld) cpu(b *testing.B, containers []string) time.Duration {
	b.Helper()
	ticks := 0
	for _, id := range containers {
		for _, pid := range w.pidsOf(b, id) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				continue // ended
			}
			f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
			for _, i := range []int{11, 12} { // utime, stime; proc(5)
				n, err := strconv.Atoi(f[i])
				if err != nil {
					b.Fatal(err)
				}
				ticks += n
			}
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond // 100 ticks a second
}

// stored is how many bytes core's recordings take.
func (w *webWorld) stored(b *testing.B) int64 {
	b.Helper()
	var n int64
	filepath.WalkDir(filepath.Join(w.core.Dir, "state", "recordings"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if st, err := d.Info(); err == nil {
				n += st.Size()
			}
		}
		return nil
	})
	return n
}
