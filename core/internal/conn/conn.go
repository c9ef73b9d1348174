// Package conn is the connection manager: it knows every live and past
// connection of every kind, keeps the record (FEATURES R1), counts bytes,
// ends connections by decision and re-makes the decision for live ones on
// every change, at window ends and periodically (DESIGN invariant 11).
package conn

import (
	"context"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/fleet"
)

// State of a connection.
type State string

// The states (FEATURES R1).
const (
	Requested     State = "requested"
	Connecting    State = "connecting"
	Connected     State = "connected"
	Disconnecting State = "disconnecting"
	Disconnected  State = "disconnected"
	Failed        State = "failed"
)

// Spec is what a front door knows when it starts a connection.
type Spec struct {
	Kind                                      string // ssh, sftp, exec, tcp, socks, web, network
	Principal                                 *api.Principal
	TargetID, TargetName, TargetAddress, Site string
	Account                                   string
	Want                                      access.Feature
	Source                                    netip.Addr
	UserAgent                                 string // client version string, cut at 200 bytes
	Reason                                    string
	Decision                                  access.Decision
}

// Authorizer re-makes the decision of a live connection; policy is the real one.
type Authorizer interface {
	Reauthorize(ctx context.Context, s Spec) (access.Decision, error)
}

// Manager is the room's entry. Safe for concurrent use.
type Manager struct{}

// Open records a new connection in state requested and registers it as live
// (audited). It fails closed when the record cannot be written, when the
// manager drains, or when a limit is reached.
func (m *Manager) Open(ctx context.Context, s Spec) (*Live, error) { panic("contract") }

// EndReason says why a connection ended; stored and shown.
type EndReason string

// The reasons.
const (
	EndedByUser     EndReason = "user"
	EndedByTarget   EndReason = "target"
	EndedByAdmin    EndReason = "terminated"
	EndedByAccess   EndReason = "access_lost"
	EndedByIdle     EndReason = "idle"
	EndedByDuration EndReason = "max_duration"
	EndedByRoute    EndReason = "route_lost" // tunnel or extender gone
	EndedByShutdown EndReason = "shutdown"
	EndedByError    EndReason = "error"
	EndedByCrash    EndReason = "core_lost" // found at start-up
)

// Terminated is the cause of a Live's context when it was ended by decision;
// Public is for the user's eyes.
type Terminated struct {
	Reason EndReason
	Public string
}

// Error implements error.
func (t *Terminated) Error() string { return t.Public }

// Live is a running connection. Its context ends when it must end; the
// context's cause is then a *Terminated.
type Live struct {
	ID string
}

// Context ends when the connection must end.
func (l *Live) Context() context.Context { panic("contract") }

// Connected marks the connection established over a route.
func (l *Live) Connected(r fleet.Route) { panic("contract") }

// In and Out count bytes from and to the user; both also count as activity.
func (l *Live) In(n int)  { panic("contract") }
func (l *Live) Out(n int) { panic("contract") }

// Channel records a channel or request inside the connection (shell, exec
// with its command, sftp operation, forward), audited and listed per connection.
func (l *Live) Channel(kind, detail string) { panic("contract") }

// Recording links the recording.
func (l *Live) Recording(id string) { panic("contract") }

// Close ends the record: disconnected, or failed when err is not nil and it
// never got to connected. Idempotent; also called with the context's cause.
func (l *Live) Close(r EndReason, err error) { panic("contract") }

// Terminate ends a live connection, on whatever core it runs, and returns when
// the order is given. by is who, public is shown to the user.
func (m *Manager) Terminate(ctx context.Context, id string, by *api.Principal, public string) error {
	panic("contract")
}

// Run does the periodic and event-driven work until ctx ends; then it ends
// all live connections with EndedByShutdown and waits for them, at most grace.
func (m *Manager) Run(ctx context.Context, grace time.Duration) error { panic("contract") }
