package session

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/room"
	"caponier/e2e/harness"
	"caponier/shared/rfb"
	"caponier/shared/spool"
	"caponier/shared/tunnel"
	"caponier/shared/tunnel/tunneltest"
	"caponier/shared/wire"
)

// docker is the daemon of this package's tests: the one DOCKER_HOST names, or
// one of their own.
var docker struct {
	host string
	own  *harness.Docker
	err  error
	once sync.Once
}

func TestMain(m *testing.M) {
	code := m.Run()
	if docker.own != nil {
		if err := docker.own.Close(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// images are the names of the browsers' images.
var images = map[string]string{wire.Firefox: "caponier-browser", wire.Chromium: "caponier-chromium"}

// host returns the engine's address with the images of this very tree in it.
func host(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts browsers in Docker")
	}
	docker.once.Do(func() {
		if docker.host = os.Getenv("DOCKER_HOST"); docker.host != "" {
			return
		}
		ctx := context.Background()
		if docker.own, docker.err = harness.StartDocker(ctx, harness.DockerRoot(), false); docker.err != nil {
			return
		}
		docker.host = docker.own.Host
		docker.err = docker.own.Image(ctx, "../../..", func(line string) { fmt.Fprintln(os.Stderr, line) },
			wire.Firefox, wire.Chromium)
	})
	if docker.err != nil {
		harness.Lacks(t, "no Docker: %v", docker.err)
	}
	return docker.host
}

// rig is a carrier's manager with a webproxy and a core that are not ours.
type rig struct {
	t     *testing.T
	dir   string // of sockets and state
	node  string
	ca    *tunneltest.CA
	self  tunnel.Identity
	root  []byte // that browsers trust
	web   *web
	core  *core
	conf  func(*Config)
	limit browser.Limits
	what  string // the browser

	engine *browser.Engine
	m      *Manager
	stop   func()
}

var nodes struct {
	sync.Mutex
	n int
}

func newRig(t *testing.T) *rig { return newRigOf(t, wire.Firefox) }

// each runs a test with every browser.
func each(t *testing.T, f func(t *testing.T, r *rig)) {
	for _, what := range []string{wire.Firefox, wire.Chromium} {
		t.Run(what, func(t *testing.T) { f(t, newRigOf(t, what)) })
	}
}

func newRigOf(t *testing.T, what string) *rig {
	t.Helper()
	h := host(t)
	ca, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	// Sockets need a short path.
	dir, err := os.MkdirTemp("/tmp", "capc")
	if err != nil {
		t.Fatal(err)
	}
	nodes.Lock()
	nodes.n++
	id := fmt.Sprintf("nod_t%d_%d", os.Getpid(), nodes.n)
	nodes.Unlock()
	r := &rig{t: t, what: what, dir: dir, node: id, ca: ca, conf: func(*Config) {}, core: newCore(),
		limit: browser.Limits{Memory: 1200 << 20, Shm: 256 << 20, Tmp: 512 << 20, Files: 256 << 20, Pids: 400, CPUs: 2}}
	if r.self, err = ca.Edge(string(wire.Carrier), id); err != nil {
		t.Fatal(err)
	}
	r.root = newRoot(t)
	r.web = newWeb(t, ca)
	r.engine, err = browser.New(browser.Config{Host: h, Images: images, Node: id, Limits: r.limit, Log: slogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.stop != nil {
			r.stop()
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		list, err := r.engine.List(ctx)
		for _, c := range list {
			err = errors.Join(err, r.engine.Remove(ctx, c.ID))
		}
		if err = errors.Join(err, r.engine.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return r
}

func slogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newRoot(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "root of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// start runs a manager on the rig's directory; stop or crash ends it.
func (r *rig) start() {
	r.t.Helper()
	c := Config{Engine: r.engine, RunDir: filepath.Join(r.dir, "run"), StateDir: filepath.Join(r.dir, "state"), Warm: map[string]int{r.what: 1}, Max: 20,
		Room:        room.Limits{Free: 256 << 20, Session: 100 << 20},
		Credentials: func() (tls.Certificate, *x509.CertPool, error) { return r.self.Certificate, r.self.Roots, nil },
		Connected:   func() bool { return r.core.up() }, Authority: func(context.Context) (wire.WebAuthority, error) {
			return wire.WebAuthority{Root: r.core.rootOr(r.root)}, nil
		},
		Post: r.core.post, Ended: r.core.endedBy, Log: slogger(r.t)}
	r.conf(&c)
	var err error
	if r.m, err = New(c); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.m.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		r.stop = nil
	}
	r.until(patience, "core says whom browsers trust", func() error {
		if c := r.m.Capacity(); c.Problem == errNoRoot.Error() {
			return errNoRoot
		}
		return nil
	})
}

// patience is how long anything may take that must happen at all: it keeps a
// test from hanging on a busy machine, and is no claim.
const patience = 2 * time.Minute

// until waits for a condition.
func (r *rig) until(limit time.Duration, what string, f func() error) {
	r.t.Helper()
	if err := harness.Until(r.t.Context(), limit, what, f); err != nil {
		r.t.Fatal(err)
	}
}

// warm waits for n parked browsers.
func (r *rig) warm(n int) {
	r.t.Helper()
	r.until(4*time.Minute, "parked browsers", func() error {
		if c := r.m.Capacity(); c.Warm != n {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

// spec is a session as core would ask for it.
func (r *rig) spec(id string) wire.CarrierSession {
	return wire.CarrierSession{ID: id, Revision: 1, Engine: r.what, User: "alice", Target: "wiki", StartURL: "http://target.test/" + id, Width: 1280, Height: 800,
		Proxy:  wire.WebProxyAddress{NodeID: r.web.node, Address: r.web.address, Key: "key-of-" + id + "-0123456789"},
		Policy: wire.BrowserPolicy{ClipboardIn: 1 << 20, ClipboardOut: 1 << 20, UploadMax: 8 << 20, DownloadMax: 8 << 20}, LeaseS: 60, Recorded: true}
}

// open opens a session and returns it.
func (r *rig) open(s wire.CarrierSession) *live {
	r.t.Helper()
	ack := r.m.put(r.t.Context(), s)
	if ack.Error != nil {
		r.t.Fatalf("open %s: %v", s.ID, ack.Error)
	}
	l := r.m.find(s.ID)
	if l == nil {
		r.t.Fatalf("%s is not there", s.ID)
	}
	return l
}

// shows waits until a large part of the picture has a colour.
func (r *rig) shows(l *live, c color.RGBA, limit time.Duration) {
	r.t.Helper()
	r.until(limit, fmt.Sprintf("picture of colour %v", c), func() error {
		p := l.screen.Snapshot()
		if p == nil {
			return errors.New("no picture")
		}
		if s := harness.Share(p, c); s < 0.5 {
			return fmt.Errorf("share %.2f, corner %v", s, p.At(600, 700))
		}
		return nil
	})
}

// replay is the last picture of what core has of a session's recording.
func (r *rig) replay(session string) (*image.RGBA, error) {
	var replay rfb.Replay
	for i, f := range r.core.frames(session) {
		if err := replay.Apply(f.Payload); err != nil {
			return nil, fmt.Errorf("frame %d: %w", i, err)
		}
	}
	if replay.Picture == nil {
		return nil, errors.New("nothing was recorded")
	}
	return replay.Picture.Image(), nil
}

// colour is what the web server of the rig fills the page of a path with.
func colour(path string) color.RGBA {
	var sum byte
	for i := range len(path) {
		sum = sum*31 + path[i]
	}
	return color.RGBA{sum | 1, 160, 255 - sum, 255}
}

// containers are the carrier's, running or not.
func (r *rig) containers() []browser.Container {
	r.t.Helper()
	list, err := r.engine.List(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// web is a webproxy that answers every request with a page of a colour.
type web struct {
	node, address string
	ln            net.Listener
	handler       http.HandlerFunc // answers in place of the page, if set

	mu       sync.Mutex
	lines    []string // guarded by mu; first lines of connections
	requests []string // guarded by mu
	conns    map[net.Conn]bool
}

func newWeb(t *testing.T, ca *tunneltest.CA) *web {
	t.Helper()
	w := &web{node: "nod_proxy", conns: map[net.Conn]bool{}}
	id, err := ca.Edge(string(wire.WebProxy), w.node)
	if err != nil {
		t.Fatal(err)
	}
	w.ln, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.Certificate},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: id.Roots})
	if err != nil {
		t.Fatal(err)
	}
	w.address = w.ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := w.ln.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns[c] = true
			w.mu.Unlock()
			wg.Go(func() {
				w.serve(c)
				w.mu.Lock()
				delete(w.conns, c)
				w.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		w.ln.Close()
		w.mu.Lock()
		for c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		wg.Wait()
	})
	return w
}

func (w *web) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	w.mu.Lock()
	w.lines = append(w.lines, strings.TrimSpace(line))
	w.mu.Unlock()
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		req.Body = io.NopCloser(bytes.NewReader(body))
		w.mu.Lock()
		w.requests = append(w.requests, req.Method+" "+req.URL.String())
		h := w.handler
		w.mu.Unlock()
		a := answer{head: http.Header{}}
		if req.Method == http.MethodConnect {
			a.WriteHeader(http.StatusForbidden)
		} else if h != nil && req.URL.Path != "/favicon.ico" {
			h(&a, req)
		} else {
			k := colour(req.URL.Path)
			a.head.Set("Content-Type", "text/html")
			fmt.Fprintf(&a, `<!doctype html><title>%s</title><body style="margin:0;background:rgb(%d,%d,%d)">%[1]s</body>`, req.URL.Path, k.R, k.G, k.B)
		}
		resp := http.Response{StatusCode: cmp.Or(a.status, 200), ProtoMajor: 1, ProtoMinor: 1, Header: a.head, ContentLength: int64(a.Len()), Body: io.NopCloser(&a.Buffer)}
		if resp.Write(c) != nil {
			return
		}
	}
}

// answer is an http.ResponseWriter.
type answer struct {
	bytes.Buffer
	head   http.Header
	status int
}

func (a *answer) Header() http.Header    { return a.head }
func (a *answer) WriteHeader(status int) { a.status = status }

func (w *web) seen() (lines, requests []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines), slices.Clone(w.requests)
}

// core takes records and ends.
type core struct {
	mu      sync.Mutex
	down    bool
	root    []byte
	records map[string][]wire.WebRecord
	ends    []wire.WebEnded
	gone    map[string]bool
	lost    int // answers that did not reach the carrier
}

func newCore() *core {
	return &core{records: map[string][]wire.WebRecord{}, gone: map[string]bool{}}
}

func (c *core) up() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.down
}

func (c *core) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *core) rootOr(other []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root != nil {
		return c.root
	}
	return other
}

func (c *core) post(_ context.Context, session string, batch spool.Batch) (ack wire.WebRecordsAck, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return ack, errors.New("core is down")
	}
	if c.gone[session] {
		return wire.WebRecordsAck{Gone: true}, nil
	}
	list, err := wire.ParseWebRecords(bytes.Clone(batch.Bytes))
	if err != nil {
		return ack, err
	}
	have := c.records[session]
	for _, r := range list {
		switch next := uint64(len(have)) + 1; {
		case r.Seq < next:
		case r.Seq == next:
			have = append(have, r)
		default:
			return ack, fmt.Errorf("record %d after %d", r.Seq, len(have))
		}
	}
	c.records[session] = have
	if c.lost > 0 {
		c.lost--
		return ack, errors.New("the answer was lost")
	}
	return wire.WebRecordsAck{Next: uint64(len(have)) + 1}, nil
}

func (c *core) endedBy(_ context.Context, e wire.WebEnded) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return errors.New("core is down")
	}
	c.ends = append(c.ends, e)
	return nil
}

func (c *core) end(session string) (wire.WebEnded, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.ends {
		if e.Session == session {
			return e, true
		}
	}
	return wire.WebEnded{}, false
}

// events are those of a session that core has.
func (c *core) events(session, kind string) (list []map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records[session] {
		var b wire.WebEventBody
		if r.Kind == wire.WebEvent && json.Unmarshal(r.Payload, &b) == nil && b.Type == kind {
			list = append(list, b.Fields)
		}
	}
	return list
}

// frames are the pictures of a session that core has.
func (c *core) frames(session string) (list []wire.WebRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records[session] {
		if r.Kind == wire.WebFrame {
			list = append(list, r)
		}
	}
	return list
}

// same reports how two pictures differ, in pixels.
func differ(a, b *image.RGBA) int {
	if a == nil || b == nil || a.Rect != b.Rect {
		return -1
	}
	n := 0
	for i := 0; i < len(a.Pix); i += 4 {
		if !bytes.Equal(a.Pix[i:i+3], b.Pix[i:i+3]) {
			n++
		}
	}
	return n
}

func colourOf(r, g, b byte) color.RGBA { return color.RGBA{r, g, b, 255} }

// share is how much of a picture has a colour; nothing of no picture.
func share(p *image.RGBA, c color.RGBA) float64 {
	if p == nil {
		return 0
	}
	return harness.Share(p, c)
}

// save writes a picture for people to look at.
func save(t *testing.T, file string, p *image.RGBA) {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// keep writes a picture where CAPONIER_SCREENSHOTS says, if it does.
func keep(t *testing.T, name string, p *image.RGBA) {
	if dir := os.Getenv("CAPONIER_SCREENSHOTS"); dir != "" {
		save(t, filepath.Join(dir, name), p)
	}
}

// pictures replays a session's recording and returns the pictures from the
// given one on.
func (r *rig) pictures(session string, from int) (list []*image.RGBA) {
	r.t.Helper()
	var replay rfb.Replay
	for i, f := range r.core.frames(session) {
		if err := replay.Apply(f.Payload); err != nil {
			r.t.Fatalf("frame %d: %v", i, err)
		}
		if i >= from {
			list = append(list, replay.Picture.Image())
		}
	}
	return list
}
