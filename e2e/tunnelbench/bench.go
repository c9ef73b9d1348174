package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// subject is a pair of processes under test.
type subject struct {
	name  string
	entry string
	procs []*child
}

type bench struct {
	options
	figures  *regexp.Regexp
	dir      string
	target   *target
	subjects []*subject // the hop first
	children []*child
	mu       sync.Mutex // guards children
	passed   int
	judged   int
}

type child struct {
	cmd   *exec.Cmd
	stdin interface{ Close() error }
	words []string
}

// spawn starts this program in a role and waits until it is ready.
func (b *bench) spawn(role string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// Under a name of its own, which perf and top show.
	name := filepath.Join(b.dir, "bench-"+role)
	if err := os.Symlink(self, name); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	cmd := exec.Command(name, append([]string{"role=" + role}, args...)...)
	cmd.Stderr = os.Stderr
	if b.profile != "" {
		b.mu.Lock()
		cmd.Env = append(os.Environ(), "TUNNELBENCH_PROFILE="+filepath.Join(b.profile, fmt.Sprintf("%d-%s.prof", len(b.children), role)))
		b.mu.Unlock()
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, stdin: in}
	b.mu.Lock()
	b.children = append(b.children, c)
	b.mu.Unlock()
	line, err := readLine(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", role, err)
	}
	c.words = strings.Fields(line)
	return c, nil
}

func (c *child) end() {
	_ = c.stdin.Close()
	done := make(chan struct{})
	go func() { _ = c.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		_ = c.cmd.Process.Kill()
		<-done
	}
}

func (b *bench) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range slices.Backward(b.children) {
		c.end()
	}
	b.children = nil
	if b.target != nil {
		b.target.close()
	}
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}

func (b *bench) keyFile() string { return filepath.Join(b.dir, "keys.json") }

func (b *bench) start() error {
	var err error
	if b.dir, err = os.MkdirTemp("", "tunnelbench"); err != nil {
		return err
	}
	if err := writeKeys(b.keyFile()); err != nil {
		return err
	}
	if b.target, err = newTarget(); err != nil {
		return err
	}
	b.subjects, err = b.pairs(0)
	return err
}

// pairs starts the hop and the subjects, rtt apart.
func (b *bench) pairs(rtt time.Duration) ([]*subject, error) {
	hop, err := b.hop(rtt)
	if err != nil {
		return nil, err
	}
	all := []*subject{hop}
	for name := range strings.SplitSeq(b.options.subjects, ",") {
		if name == "" {
			continue
		}
		s, err := b.tunnel(name, rtt)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func (b *bench) hop(rtt time.Duration) (*subject, error) {
	far, err := b.spawn("far", b.target.addr)
	if err != nil {
		return nil, err
	}
	addr := far.words[0]
	if rtt > 0 {
		p, err := b.spawn("proxy", addr, rtt.String())
		if err != nil {
			return nil, err
		}
		addr = p.words[0]
	}
	near, err := b.spawn("near", b.keyFile(), addr)
	if err != nil {
		return nil, err
	}
	return &subject{"hop", near.words[0], []*child{near, far}}, nil
}

func (b *bench) tunnel(transport string, rtt time.Duration) (*subject, error) {
	core, err := b.spawn("core", b.keyFile(), b.target.addr)
	if err != nil {
		return nil, err
	}
	addr := core.words[1]
	if transport == "quic" {
		addr = core.words[2]
	}
	if rtt > 0 {
		p, err := b.spawn("proxy", strings.TrimPrefix(addr, "https://"), rtt.String())
		if err != nil {
			return nil, err
		}
		addr = "https://" + p.words[0]
		if transport == "quic" {
			addr = p.words[1]
		}
	}
	edge, err := b.spawn("edge", b.keyFile(), transport, addr)
	if err != nil {
		return nil, err
	}
	return &subject{transport, core.words[0], []*child{core, edge}}, nil
}

// cpu is the CPU time of the subject's processes so far.
func (s *subject) cpu() time.Duration {
	var ticks int64
	for _, p := range s.procs {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			continue
		}
		// Fields 14 and 15, counted after the name, which may hold spaces.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		for _, i := range []int{11, 12} {
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// rss is the child's resident memory in KB after it gave back what it could.
func (c *child) rss() float64 {
	_ = c.cmd.Process.Signal(syscall.SIGUSR1)
	time.Sleep(500 * time.Millisecond) // the collector has no other end to wait for
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return n
		}
	}
	return 0
}

// dial connects to the subject's entry and tells the target what to do.
func (s *subject) dial(command byte) (net.Conn, error) {
	nc, err := net.Dial("tcp", s.entry)
	if err != nil {
		return nil, err
	}
	_, err = nc.Write([]byte{command})
	return nc, err
}

// each measures f for every subject in turn, rounds times, and returns the
// medians of each value f returns.
func (b *bench) each(subjects []*subject, f func(*subject) ([]float64, error)) (map[string][]float64, error) {
	all := map[string][][]float64{}
	for range b.rounds {
		for _, s := range subjects {
			v, err := f(s)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			all[s.name] = append(all[s.name], v)
		}
	}
	out := map[string][]float64{}
	for name, rounds := range all {
		for i := range rounds[0] {
			var v []float64
			for _, r := range rounds {
				v = append(v, r[i])
			}
			out[name] = append(out[name], median(v))
		}
	}
	return out, nil
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

func percentile(v []float64, p float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[min(int(p*float64(len(v))), len(v)-1)]
}

// goal judges a figure, or its ratio to the hop's.
type goal struct {
	max, min float64 // of the value; 0 is none
	ratio    bool    // judge the ratio to the hop
	text     string
}

// print shows value i of a row.
func (b *bench) print(label, unit string, m map[string][]float64, i int, g goal) {
	cell := func(name string) string {
		v, ok := m[name]
		if !ok {
			return "-"
		}
		text := format(v[i])
		if h, ok := m["hop"]; ok && name != "hop" && h[i] > 0 {
			text += fmt.Sprintf(" (%.2f×)", v[i]/h[i])
		}
		return text
	}
	verdict := ""
	if v, ok := m["wss"]; ok && g.text != "" {
		x := v[i]
		if g.ratio {
			x /= m["hop"][i]
		}
		b.judged++
		verdict = "short"
		if (g.max == 0 || x <= g.max) && (g.min == 0 || x >= g.min) {
			verdict = "pass"
			b.passed++
		}
		verdict = g.text + ": " + verdict
	}
	fmt.Printf("%-46s %10s %18s %18s   %s\n", label+", "+unit, cell("hop"), cell("wss"), cell("quic"), verdict)
}

func format(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
