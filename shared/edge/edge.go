// Package edge is what every edge binary does: it keeps an identity in a
// state directory, enrols with a token, connects to core and stays connected,
// answers core's control requests, and hands streams to the binary's own work.
//
// It only dials out (DESIGN invariant 1). What the network says before core
// has proven its key is never taken for final: such a refusal is tried again,
// slowly. Only a refusal inside an authenticated tunnel, or an identity that
// has ended by its own date, stops the node.
package edge

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caponier/shared/config"
	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// News are changes of a node's status that core should hear of at once. Made
// with a place for one: many changes are told as one.
type News chan struct{}

// Tell says that there is one. It does not block.
func (n News) Tell() {
	select {
	case n <- struct{}{}:
	default:
	}
}

// Config is what an Edge needs. URL, State and Kind are required.
type Config struct {
	// URL is core's or its load balancer's address, "https://core.example".
	URL string
	// State is the directory of the identity, made with mode 0700.
	State string
	// Token enrols a node that has no identity yet; else it is ignored.
	Token config.Secret
	Kind  wire.NodeKind
	// Name is proposed at enrolment; default the host name.
	Name string
	// Build is the binary's version.
	Build string
	// Transport is wss or quic; empty races both.
	Transport tunnel.Transport
	// QUICAddr is host:port for QUIC; empty means that of URL.
	QUICAddr string
	Limits   tunnel.Limits
	// Deploy is told to core; nil: there is no deployment listener.
	Deploy *wire.DeployListener

	// Stream serves one stream opened by core; the call's return ends it. ctx
	// ends with the tunnel. nil refuses.
	Stream func(ctx context.Context, s tunnel.Stream)
	// Control serves core's requests; nil answers 404.
	Control http.Handler
	// Welcomed is called with each Welcome before streams are served; an error
	// ends the tunnel. May be nil.
	Welcomed func(wire.Welcome) error
	// Status fills the binary's own counts. May be nil.
	Status func(*wire.Status)
	// Changed has a token when core should hear the status now rather than when
	// it is due: of a change that decides whether core uses the node. May be nil.
	Changed News
	// Drain is called when Run's context has ended; the tunnel is not closed
	// before it returns or its context, the grace period, ends. May be nil.
	Drain func(ctx context.Context)
	// Grace is how long live streams may go on after Run's context ended; 0: 20 s.
	Grace time.Duration

	Log *slog.Logger     // nil: discard
	Now func() time.Time // nil: time.Now
	// Dial replaces tunnel.Dial, for tests.
	Dial func(ctx context.Context, c tunnel.DialConfig) (tunnel.Session, error)
}

// Edge is a node of the fleet. Safe for concurrent use.
type Edge struct {
	c       Config
	log     *slog.Logger
	store   *store
	place   string
	process string
	started time.Time

	control *http.Server
	streams *control.Listener
	serving sync.WaitGroup // streams
	open    atomic.Int64   // streams served now
	drained chan struct{}  // closed when Run's context ended

	mu        sync.Mutex
	id        *identity        // guarded by mu; nil until enrolled
	session   tunnel.Session   // guarded by mu; nil while not welcomed
	welcome   wire.Welcome     // guarded by mu; of session
	lastError string           // guarded by mu
	won       tunnel.Transport // guarded by mu; of the last working tunnel
}

// New locks the state directory and reads the identity in it. Close gives
// both back.
func New(c Config) (*Edge, error) {
	if !c.Kind.Valid() {
		return nil, fmt.Errorf("edge: unknown kind %q", c.Kind)
	}
	if _, err := withPath(c.URL, ""); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Dial == nil {
		c.Dial = tunnel.Dial
	}
	if c.Grace == 0 {
		c.Grace = 20 * time.Second
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname() // core names a node without one
	}
	st, err := openStore(c.State)
	if err != nil {
		return nil, err
	}
	e := &Edge{c: c, log: c.Log, store: st, process: strings.ToLower(rand.Text()), started: c.Now(),
		streams: control.NewListener(), drained: make(chan struct{})}
	if e.place, err = st.place(); err == nil {
		e.id, err = st.load()
	}
	if err != nil {
		st.close()
		return nil, err
	}
	if e.id != nil && e.id.NodeID == "" {
		e.id = nil
	}
	h := c.Control
	if h == nil {
		h = http.NotFoundHandler()
	}
	e.control = &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: 40 * time.Second, MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)}
	e.control.SetKeepAlivesEnabled(false)
	return e, nil
}

// Close releases the state directory. Call it after Run has returned.
func (e *Edge) Close() error { return e.store.close() }

// Info is what is known of the node now, for health checks and people.
type Info struct {
	NodeID, Name, Site string
	Enrolled           bool
	Connected          bool
	Core               wire.Member
	Transport          tunnel.Transport
	Binding            tunnel.Binding
	RTT                time.Duration
	LastError          string
	CertNotAfter       time.Time
}

// Info returns the node's present state.
func (e *Edge) Info() Info {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := Info{LastError: e.lastError}
	if e.id != nil {
		i.Enrolled, i.NodeID, i.Name, i.Site, i.CertNotAfter = true, e.id.NodeID, e.id.Name, e.id.Site, e.id.leaf.NotAfter
	}
	if e.session != nil {
		si := e.session.Info()
		i.Connected, i.Core, i.Transport, i.Binding, i.RTT = true, e.welcome.Core, si.Transport, si.Binding, e.session.Stats().RTT
	}
	return i
}

// Credentials returns the node's present certificate with its key, and the
// roots it accepts peers from. Ask for each handshake: both change with
// renewal. Before enrolment it fails.
func (e *Edge) Credentials() (tls.Certificate, *x509.CertPool, error) {
	id := e.identity()
	if id == nil {
		return tls.Certificate{}, nil, errors.New("the node is not enrolled yet")
	}
	return id.certificate(), id.pool, nil
}

// Session returns the live tunnel, or nil.
func (e *Edge) Session() tunnel.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.session
}

// Run enrols if need be, then keeps a tunnel to core until ctx ends (nil) or
// core refuses the node for good (*RefusedError). At the end it lets live
// streams go on for the grace period.
func (e *Edge) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		// It ends by Close below.
		if err := e.control.Serve(e.streams); !errors.Is(err, http.ErrServerClosed) {
			e.log.Debug("control server", telemetry.KeyErr, err)
		}
	})
	defer func() {
		e.streams.Close()
		e.control.Close()
		e.serving.Wait()
		wg.Wait()
	}()
	id, err := e.enrol(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	e.mu.Lock()
	e.id = id
	e.mu.Unlock()
	context.AfterFunc(ctx, func() { close(e.drained) })
	return e.connect(ctx)
}

func (e *Edge) setError(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastError = err.Error()
	if len(e.lastError) > 200 {
		e.lastError = strings.ToValidUTF8(e.lastError[:200], "?")
	}
}
