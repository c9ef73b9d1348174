// Package fleet keeps the edge nodes: enrolment tokens, identities and their
// CA, accepted tunnels, node health, and the choice of a node for a
// destination. It opens streams; what flows in them is not its business.
//
// A node is known by the Ed25519 key it proved at enrolment and by a
// certificate of our CA on it. A tunnel counts as live once its Hello was
// accepted; there is at most one live tunnel per node. Revoking a node, or
// deleting it, ends its tunnel at once (by notification, on every core).
package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
	"caponier/shared/control"
	"caponier/shared/dial"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Sealer seals the CA's key at rest; *vault.Vault is the real one.
type Sealer interface {
	Seal(p vault.Place, plaintext []byte) ([]byte, error)
	Open(p vault.Place, sealed []byte) ([]byte, error)
}

// UserCA gives the key that hosts trust for logins; *sshca.CA is the real one.
type UserCA interface {
	// PublicKey gives those of an access group, a line each.
	PublicKey(ctx context.Context, group string) (string, error)
}

// HostRegistrar takes hosts that register themselves through an extender and
// makes targets of them. It runs inside tx; the same host with the same data
// changes nothing and returns changed=false.
type HostRegistrar interface {
	RegisterHost(ctx context.Context, tx *db.Tx, h Host) (targetID string, changed bool, err error)
}

// SiteMaker makes sites that do not exist; made tells that it did.
type SiteMaker interface {
	EnsureSite(ctx context.Context, tx *db.Tx, name string) (made bool, err error)
}

// Config is what a Fleet needs. DB, Audit, Vault and CoreID are required.
type Config struct {
	DB    *db.DB
	Audit *audit.Log
	Vault Sealer
	// CoreID and CoreName name this core to edges.
	CoreID, CoreName string
	// Addresses are URLs under which edges reach this very core, past any
	// load balancer; may be empty.
	Addresses []string
	// QUIC is the UDP socket for QUIC tunnels; nil: none. Fleet closes it.
	QUIC net.PacketConn
	// Direct says what core itself may dial when a target has no site.
	Direct dial.Rules
	// Resolver resolves names for direct dials; nil: the system's.
	Resolver dial.Resolver
	// Hosts and UserCA serve host deployment; nil: its routes answer 404.
	Hosts  HostRegistrar
	UserCA UserCA
	// Sites makes the site of a new token when there is none; nil: nobody does.
	Sites SiteMaker
	// Streams serves the streams that webproxies open; it must answer and close
	// them, and returns when it has. nil: they are refused.
	Streams func(ctx context.Context, p Peer, s tunnel.Stream)
	// Control serves further requests of edges, by the pattern of
	// http.ServeMux. The caller is PeerFrom the context.
	Control map[string]http.Handler

	// NodeLife, CALife and RenewBefore are certificate times; 0: 730, 1825 and
	// 30 days. CRLLife is how long a revocation list is valid; 0: 24 h.
	NodeLife, CALife, RenewBefore, CRLLife time.Duration
	// MaxNodes bounds tunnels on this core; 0: 20,000.
	MaxNodes int
	// HandshakeRate bounds tunnel handshakes per second; 0: 400.
	HandshakeRate float64
	// StatusEvery is how often an edge reports; 0: 15 s, stretched for large fleets.
	StatusEvery time.Duration
	// MaxSkew is the clock difference that is warned about; 0: 30 s.
	MaxSkew time.Duration

	Log     *slog.Logger          // nil: discard
	Now     func() time.Time      // nil: time.Now
	Metrics prometheus.Registerer // nil: none
}

// Fleet is the room's entry. Safe for concurrent use.
type Fleet struct {
	c       Config
	log     *slog.Logger
	now     func() time.Time
	ca      *authority
	dialer  *dial.Dialer
	metrics *metrics
	admit   *admission
	control *http.Server
	streams *control.Listener
	events  *eventWriter
	enrols  *rate.Limiter
	// reported is set when a node has reported, and taken back by pulse.
	reported atomic.Bool

	serving  sync.WaitGroup // tunnels
	draining chan struct{}  // closed when no new tunnels are accepted

	mu      sync.Mutex
	live    map[string]*node            // guarded by mu; by node ID
	sites   map[string]map[string]*node // guarded by mu; live extenders by site and ID
	tunnels map[*node]struct{}          // guarded by mu; all, also before their Hello
	stopped bool                        // guarded by mu
	serials uint64                      // guarded by mu; tunnels registered so far
	changed chan struct{}               // guarded by mu; closed and replaced when live changes
}

// New opens the fleet: it makes the edge CA on first use. Call Run to work.
func New(ctx context.Context, c Config) (*Fleet, error) {
	if c.DB == nil || c.Audit == nil || c.Vault == nil || c.CoreID == "" {
		return nil, errors.New("fleet: DB, Audit, Vault and CoreID are required")
	}
	c.defaults()
	f := &Fleet{
		c: c, log: c.Log, now: c.Now,
		live: map[string]*node{}, sites: map[string]map[string]*node{}, tunnels: map[*node]struct{}{},
		draining: make(chan struct{}), changed: make(chan struct{}),
		enrols: rate.NewLimiter(200, 400),
	}
	var err error
	if f.ca, err = openAuthority(ctx, c); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	f.dialer = dial.New(dial.Config{Rules: c.Direct, Resolver: c.Resolver})
	f.metrics = newMetrics(c.Metrics, f)
	f.admit = newAdmission(c.HandshakeRate)
	f.events = newEventWriter(c.DB, c.Audit, c.Log)
	f.streams = control.NewListener()
	f.control = f.newControlServer()
	return f, nil
}

func (c *Config) defaults() {
	day := 24 * time.Hour
	setDefault(&c.NodeLife, 730*day)
	setDefault(&c.CALife, 1825*day)
	setDefault(&c.RenewBefore, 30*day)
	setDefault(&c.CRLLife, day)
	setDefault(&c.StatusEvery, 15*time.Second)
	setDefault(&c.MaxSkew, 30*time.Second)
	setDefault(&c.MaxNodes, 20_000)
	setDefault(&c.HandshakeRate, 400)
	if c.CoreName == "" {
		c.CoreName = c.CoreID
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// DialRequest asks for a byte pipe to a destination.
type DialRequest struct {
	Site       string // empty = core dials by itself
	Address    string // host:port as the site knows it
	Class      wire.Class
	Connection string // audited connection ID, goes along to the edge
	// Optimistic returns before the edge has connected: bytes written travel
	// with the open, and a refusal is the first Read's error (*wire.Error).
	// For entries that carry what they do not understand, where a round trip counts.
	Optimistic bool

	network string // udp for DialUDP; empty: tcp
}

// Route tells which way a connection goes.
type Route struct {
	Site      string `json:"site,omitempty"`
	NodeID    string `json:"node_id,omitempty"`
	Node      string `json:"node,omitempty"`
	Transport string `json:"transport,omitempty"` // wss, quic, direct
	Binding   string `json:"binding,omitempty"`
}

// Conn is a dialled destination. CloseWrite half-closes.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// DialStage is one timed step of a dial, for explain.
type DialStage struct {
	Name string // tunnel, policy, dns, tcp
	OK   bool
	MS   float64
	Text string // public
	Fix  string // what to do about it
}

// Host is what a host tells about itself when it registers.
type Host struct {
	Site      string
	Name      string   // host name
	Address   string   // as the extender sees it
	Port      int      // of its sshd
	MachineID string   // /etc/machine-id, hashed by the script
	HostKeys  []string // authorized_keys form
	Accounts  []string // logins that accept our certificates
	Token     string   // ID of the deployment token
}

// member describes this core to edges.
func (f *Fleet) member() wire.Member {
	return wire.Member{ID: f.c.CoreID, Name: f.c.CoreName, Addresses: f.c.Addresses}
}

// Roots returns the CA certificates that edges and core trust for tunnels.
func (f *Fleet) Roots() []*x509.Certificate { return f.ca.certificates() }

// addrText renders a peer's address for people.
func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
