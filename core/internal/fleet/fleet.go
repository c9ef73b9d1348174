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
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
	"caponier/shared/dial"
	"caponier/shared/wire"
)

// Sealer seals the CA's key at rest; *vault.Vault is the real one.
type Sealer interface {
	Seal(p vault.Place, plaintext []byte) ([]byte, error)
	Open(p vault.Place, sealed []byte) ([]byte, error)
}

// UserCA gives the key that hosts trust for logins; *sshca.CA is the real one.
type UserCA interface {
	PublicKey(ctx context.Context) (string, error)
}

// HostRegistrar takes hosts that register themselves through an extender and
// makes targets of them. It runs inside tx; the same host with the same data
// changes nothing and returns changed=false.
type HostRegistrar interface {
	RegisterHost(ctx context.Context, tx *db.Tx, h Host) (targetID string, changed bool, err error)
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
type Fleet struct{}

// New opens the fleet: it makes the edge CA on first use. Call Run to work.
func New(ctx context.Context, c Config) (*Fleet, error) { panic("contract") }

// Dial connects to a destination through the least loaded live extender of
// the site (or directly) and waits until it is connected or refused. Errors
// are *wire.Error with public text: no extender online, refused by rule, DNS,
// unreachable, timeout. A refusal by the edge's rules is audited.
func (f *Fleet) Dial(ctx context.Context, r DialRequest) (Conn, Route, error) { panic("contract") }

// Probe tries a destination step by step and leaves nothing open.
func (f *Fleet) Probe(ctx context.Context, r DialRequest) []DialStage { panic("contract") }

// Handler serves /edge/v1/… : tunnels, enrolment, CA and CRL.
func (f *Fleet) Handler() http.Handler { panic("contract") }

// Run accepts QUIC tunnels and does periodic work until ctx ends, then drains.
func (f *Fleet) Run(ctx context.Context) error { panic("contract") }

// Routes registers /edges and /enrolment-tokens.
func (f *Fleet) Routes(fr *api.Frame) { panic("contract") }

// TokenSpec describes a new enrolment token.
type TokenSpec struct {
	Kind        string // extender, carrier, webproxy, router, or host for host deployment
	Site        string // for extenders and hosts
	Labels      map[string]string
	Comment     string
	MaxUses     int           // 0: 1
	TTL         time.Duration // 0: 24 h
	AllowRepeat bool          // the same name may register again and replaces its former identity
	Rules       wire.DialRules
}

// CreateToken makes an enrolment token and returns its text, which is not
// stored and cannot be shown again.
func (f *Fleet) CreateToken(ctx context.Context, by audit.Actor, s TokenSpec) (id, text string, err error) {
	panic("contract")
}

// DialRequest asks for a byte pipe to a destination.
type DialRequest struct {
	Site       string // empty = core dials by itself
	Address    string // host:port as the site knows it
	Class      wire.Class
	Connection string // audited connection ID, goes along to the edge
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
