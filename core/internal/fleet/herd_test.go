package fleet

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
	"caponier/e2e/harness"
	"caponier/shared/edge"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// herd is how many edges TestHerd connects. The figures of DESIGN §11 are for
// -herd=10000.
var herd = flag.Int("herd", 200, "simulated edges in TestHerd")

// envHerd makes the test binary one of TestHerd's processes:
// "core <dir> <n> <addr>" or "edges <dir> <from> <to> <url>".
const envHerd = "CAPONIER_TEST_HERD"

// perProcess bounds the edges of one process: each holds two descriptors.
const perProcess = 2500

// TestHerd connects many idle edges over real TLS sockets to a core in a
// process of its own, measures core's memory, kills core, starts it again and
// waits until all are back.
func TestHerd(t *testing.T) {
	n := *herd
	dir := t.TempDir()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(harness.FreePort(t)))
	core := herdProcess(t, "core", dir, strconv.Itoa(n), addr)
	core.expect(t, "ready")
	empty := core.rss(t)
	start := time.Now()
	var edges []*process
	for from := 0; from < n; from += perProcess {
		edges = append(edges, herdProcess(t, "edges", dir, strconv.Itoa(from), strconv.Itoa(min(n, from+perProcess)), "https://"+addr))
	}
	core.waitConnected(t, n)
	connected := time.Since(start)
	// Let every edge report once, so that what a report leaves behind counts.
	core.send(t, "settle")
	core.expect(t, "settled")
	full := core.rss(t)
	core.kill(t)
	start = time.Now()
	core = herdProcess(t, "core", dir, "0", addr)
	core.expect(t, "ready")
	up := time.Since(start)
	core.waitConnected(t, n)
	back := time.Since(start)
	again := core.rss(t)
	per := float64(full-empty) / float64(n)
	t.Logf("%d edges: connected in %.1f s; core %d KB empty, %d KB with all of them (%.1f KB each), %d KB after the restart; core up again in %.1f s, all back %.1f s after it was killed",
		n, connected.Seconds(), empty, full, per, again, up.Seconds(), back.Seconds())
	limit := 60 * time.Second
	if n < 2000 {
		limit = 3 * time.Minute // that few tell more of the machine than of core
	}
	if back > limit {
		t.Errorf("all back after %s, want %s", back, limit)
	}
	if most := int64(2 << 20); full > most || again > most {
		t.Errorf("core takes %d KB, want %d", max(full, again), most)
	}
	if n >= 2000 && per > 80 {
		t.Errorf("%.1f KB per edge, want 80", per)
	}
	for _, e := range edges {
		e.kill(t)
	}
	core.kill(t)
}

// process is one of TestHerd's processes, spoken to by lines.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func herdProcess(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envHerd+"="+strings.Join(args, " "))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() { p.kill(t) })
	return p
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Kill()
		p.cmd.Wait() // says "killed", as intended
	}
}

func (p *process) send(t *testing.T, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		t.Fatal(err)
	}
}

func (p *process) expect(t *testing.T, prefix string) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatalf("a process of the herd ended: %v", p.out.Err())
	}
	rest, ok := strings.CutPrefix(p.out.Text(), prefix)
	if !ok {
		t.Fatalf("a process of the herd said %q, want %q", p.out.Text(), prefix)
	}
	return strings.TrimSpace(rest)
}

func (p *process) waitConnected(t *testing.T, n int) {
	t.Helper()
	p.send(t, "wait "+strconv.Itoa(n))
	p.expect(t, "all")
}

// rss asks for the process's resident memory in KB.
func (p *process) rss(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// herdMain is the main function of TestHerd's processes.
func herdMain() {
	args := strings.Fields(os.Getenv(envHerd))
	var err error
	switch args[0] {
	case "core":
		err = herdCore(args[1], args[2], args[3])
	case "edges":
		err = herdEdges(args[1], args[2], args[3], args[4])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "herd:", err)
		os.Exit(1)
	}
}

func herdCore(dir, count, addr string) error {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{Engine: db.SQLite, Path: filepath.Join(dir, "core.db")})
	if err != nil {
		return err
	}
	if _, err := d.Migrate(ctx); err != nil {
		return err
	}
	kekPath := filepath.Join(dir, "kek")
	if _, err := os.Stat(kekPath); err != nil {
		if err := vault.WriteKEK(kekPath, vault.GenerateKEK()); err != nil {
			return err
		}
	}
	kek, err := vault.LoadKEK(kekPath)
	if err != nil {
		return err
	}
	log := audit.New(d, time.Now)
	v, err := vault.New(ctx, vault.Config{DB: d, Audit: log, Log: slog.New(slog.DiscardHandler), KEK: kek})
	if err != nil {
		return err
	}
	f, err := New(ctx, Config{DB: d, Audit: log, Vault: v, CoreID: "cor_herd", StatusEvery: 5 * time.Second})
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	if err := f.stampHerd(ctx, dir, n); err != nil {
		return err
	}
	cert, err := herdCert()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: f.Handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go srv.Serve(tls.NewListener(tunnel.Listener(l), &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}))
	go f.Run(ctx)
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		cmd, arg, _ := strings.Cut(in.Text(), " ")
		switch cmd {
		case "wait":
			want, err := strconv.Atoi(arg)
			if err != nil {
				return err
			}
			poll(func() bool { return f.connected() >= want })
			fmt.Println("all")
		case "settle":
			for _, n := range f.all() {
				poll(func() bool { return n.status.Load() != nil || isDone(n.session) })
			}
			fmt.Println("settled")
		}
	}
	return in.Err()
}

// poll waits for a condition; the test's own time-out bounds it.
func poll(ok func() bool) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		<-tick.C
	}
}

// stampHerd writes n enrolled identities, without n enrolments.
func (f *Fleet) stampHerd(ctx context.Context, dir string, n int) error {
	return f.c.DB.Tx(ctx, func(tx *db.Tx) error {
		for i := range n {
			pub, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			spki, err := x509.MarshalPKIXPublicKey(pub)
			if err != nil {
				return err
			}
			pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(spki)
			e := nodeRow{ID: db.NewID("edg_"), Kind: wire.Extender, Name: fmt.Sprintf("herd-%05d", i), Site: "herd", KeyHash: sum[:], CreatedAt: f.now(), Version: 1}
			cert, err := f.ca.issueNode(pub, e.Kind, e.ID, e.Name)
			if err != nil {
				return err
			}
			if err := insertEdge(ctx, tx, e); err != nil {
				return err
			}
			if err := storeCert(ctx, tx, e.ID, cert); err != nil {
				return err
			}
			data, err := json.Marshal(map[string]any{"node_id": e.ID, "name": e.Name, "kind": e.Kind, "site": e.Site,
				"key": pkcs8, "certificate": cert.Raw, "roots": f.ca.rootsDER()})
			if err != nil {
				return err
			}
			home := filepath.Join(dir, e.Name)
			if err := os.Mkdir(home, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(home, "identity.json"), data, 0o600); err != nil {
				return err
			}
		}
		return nil
	})
}

func herdCert() (tls.Certificate, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: serial(), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func herdEdges(dir, from, to, url string) error {
	a, err := strconv.Atoi(from)
	if err != nil {
		return err
	}
	b, err := strconv.Atoi(to)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the test has gone
		os.Exit(1)
	}()
	// A real edge has a processor of its own; these share one, so they take
	// turns in what costs.
	turns := make(chan struct{}, 16)
	inTurn := func(ctx context.Context, c tunnel.DialConfig) (tunnel.Session, error) {
		turns <- struct{}{}
		defer func() { <-turns }()
		return tunnel.Dial(ctx, c)
	}
	var wg sync.WaitGroup
	var failed atomic.Int64
	for i := a; i < b; i++ {
		e, err := edge.New(edge.Config{URL: url, State: filepath.Join(dir, fmt.Sprintf("herd-%05d", i)), Kind: wire.Extender, Build: "herd", Transport: tunnel.WSS, Dial: inTurn})
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := e.Run(context.Background()); err != nil {
				failed.Add(1)
				fmt.Fprintln(os.Stderr, "edge:", err)
			}
		})
	}
	wg.Wait()
	return fmt.Errorf("%d edges stopped", failed.Load())
}

// Some handshakes that never go on, which need no identity to be begun, keep
// nobody else out.
func TestStalledHandshakes(t *testing.T) {
	a := newAdmission(1e6)
	for range 500 {
		if _, ok := a.enter(t.Context()); !ok {
			t.Fatal("a handshake was put off behind stalled ones")
		}
	}
}
