// Package policy puts a decision together: it reads user, memberships,
// target, account and grants in one snapshot, asks access.Decide, and returns
// the verdict with what it was made from. Every front door asks here and
// nowhere else; running connections are re-decided here.
package policy

import (
	"context"
	"net/netip"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/target"
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

// Service answers queries. Safe for concurrent use.
type Service struct{}

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
