// Package policy puts a decision together: it reads user, memberships,
// target, account and grants in one snapshot, asks access.Decide, and returns
// the verdict with what it was made from. Every front door asks here and
// nowhere else; running connections are re-decided here.
package policy

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
)

// Query is one question as a front door asks it.
type Query struct {
	Principal *api.Principal
	// Target is a name, ID or address (see target.Service.Resolve).
	Target  string
	Account string // empty when the kind has no accounts (tcp)
	Want    access.Feature
	Reason  string // given by the user, may be empty
	Source  netip.Addr
}

// Verdict is the answer with everything a front door needs to go on. When the
// decision refuses, Target and Account may be nil, and Public is what the user
// is told (the same for "unknown target" and "no role", so that names cannot be probed).
type Verdict struct {
	access.Decision
	Target  *target.Target
	Account *target.Account
	Public  string
}

// Config is what the room needs; DB, Users, Targets and Audit are mandatory.
type Config struct {
	DB      *db.DB
	Users   *user.Service
	Targets *target.Service
	Audit   *audit.Log
	Network Network // for explain; *fleet.Fleet
	Prober  Prober  // for explain; see NewSSHProber
	Now     func() time.Time
	Log     *slog.Logger
}

// Network tries a destination step by step; *fleet.Fleet does.
type Network interface {
	Probe(ctx context.Context, r fleet.DialRequest) []fleet.DialStage
}

// Prober tries what comes after the TCP connection: banner, host key, login.
// It leaves nothing open and changes nothing.
type Prober interface {
	ProbeLogin(ctx context.Context, t *target.Target, a *target.Account) []fleet.DialStage
}

// Service answers queries. Safe for concurrent use.
type Service struct{ c Config }

// New makes the room.
func New(c Config) (*Service, error) { panic("contract") }

// Routes registers /me/targets and /targets/{id}/explain.
func (s *Service) Routes(f *api.Frame) { panic("contract") }

// Reauthorize answers again for a live connection (conn.Authorizer).
func (s *Service) Reauthorize(ctx context.Context, sp conn.Spec) (access.Decision, error) {
	panic("contract")
}

// Decide answers q, fresh from the database. A refusal is not an error; an
// error (database away) means: refuse.
func (s *Service) Decide(ctx context.Context, q Query) (Verdict, error) { panic("contract") }

// Entry is one (target, account) a user may use now.
type Entry struct {
	Target              target.Target
	Account             string
	Features            access.Features
	Record              bool
	NeedMFA, NeedReason bool
}

// List returns what the principal may reach now, ordered by target name then
// account, at most limit entries after the cursor target name.
func (s *Service) List(ctx context.Context, p *api.Principal, source netip.Addr, search, after string, limit int) ([]Entry, error) {
	panic("contract")
}
