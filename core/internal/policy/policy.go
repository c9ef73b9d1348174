// Package policy puts a decision together: it reads user, memberships,
// target, account and grants in one snapshot, asks access.Decide, and returns
// the verdict with what it was made from. Every front door asks here and
// nowhere else; running connections are re-decided here.
package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
)

// Query is one question as a front door asks it.
type Query struct {
	Principal *api.Principal
	// Target is a name, ID or address (see target.Service.Resolve).
	Target string
	// Account is empty when the kind has no accounts (tcp), or for Forward to
	// an SSH target without logging in there: then any account that may be
	// forwarded through will do.
	Account string
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

// Users is what the room needs of the user room; *user.Service is the real one.
type Users interface {
	Subject(ctx context.Context, q db.Querier, userID string, mfa bool) (access.Subject, error)
	StillValid(ctx context.Context, p *api.Principal) error
	MarkFirstUse(ctx context.Context, userID, roleID string, at time.Time) error
	// Get and ByName fail with db.ErrNotFound.
	Get(ctx context.Context, id string) (user.User, error)
	ByName(ctx context.Context, name string) (user.User, error)
	RoleName(ctx context.Context, q db.Querier, id string) (string, error)
}

// Config is what the room needs; DB, Users and Targets are mandatory.
type Config struct {
	DB      *db.DB
	Users   Users
	Targets *target.Service
	Network Network          // for explain; *fleet.Fleet
	Prober  Prober           // for explain; see NewSSHProber
	Web     WebProber        // for explain of web targets; *webaccess.Service
	Now     func() time.Time // nil = time.Now
	Log     *slog.Logger     // nil = discarded
}

// Service answers queries. Safe for concurrent use.
type Service struct {
	c     Config
	zones access.Zones
	slots chan struct{} // bounds explanations that run at once
}

// New makes the room.
func New(c Config) (*Service, error) {
	if c.DB == nil || c.Users == nil || c.Targets == nil {
		return nil, errors.New("policy: DB, Users and Targets are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{c: c, slots: make(chan struct{}, maxExplaining)}, nil
}

// Decide answers q, fresh from the database, and starts a floating membership
// that the answer rests on. A refusal is not an error; an error (database
// away) means: refuse.
func (s *Service) Decide(ctx context.Context, q Query) (Verdict, error) {
	if q.Principal == nil {
		return Verdict{}, errors.New("decide: nobody asks")
	}
	now := s.c.Now()
	var v Verdict
	err := s.c.DB.View(ctx, func(tx *db.Tx) error {
		sub, err := s.c.Users.Subject(ctx, tx, q.Principal.UserID, q.Principal.MFA)
		if err != nil {
			return err
		}
		v, err = s.decide(ctx, tx, &sub, q, now)
		return err
	})
	if errors.Is(err, db.ErrNotFound) { // the user is gone
		v, err = Verdict{Decision: access.Decision{Reason: access.UserDisabled}}, nil
	}
	if err != nil {
		return Verdict{}, fmt.Errorf("decide: %w", err)
	}
	if v.OK() && v.StartsFloating {
		if err := s.c.Users.MarkFirstUse(ctx, q.Principal.UserID, v.Role, now); err != nil {
			return Verdict{}, fmt.Errorf("decide: %w", err)
		}
	}
	if v.Public == "" {
		v.Public = public(&v, q)
	}
	return v, nil
}

// decide answers q in one snapshot, without effects.
func (s *Service) decide(ctx context.Context, q db.Querier, sub *access.Subject, ask Query, now time.Time) (Verdict, error) {
	found, err := s.c.Targets.Candidates(ctx, q, ask.Target)
	if err != nil {
		return Verdict{}, err
	}
	var seen []Verdict
	for i := range fitting(found, ask.Want) {
		v, err := s.decideTarget(ctx, q, sub, &found[i], ask, now)
		if err != nil {
			return Verdict{}, err
		}
		if v.Reason != access.NoRole && v.Reason != access.Refused {
			seen = append(seen, v)
		}
	}
	switch len(seen) {
	case 0:
		return s.nothing(sub, ask, now), nil
	case 1:
		return seen[0], nil
	}
	// Several targets have this address: if only one is allowed, it is meant.
	pick := -1
	for i, v := range seen {
		if v.OK() && pick >= 0 {
			e := target.AmbiguousError{Ref: ask.Target}
			for _, v := range seen {
				e.Candidates = append(e.Candidates, *v.Target)
			}
			return Verdict{Public: sentence(e.Error())}, nil
		}
		if v.OK() {
			pick = i
		}
	}
	return seen[max(pick, 0)], nil
}

// fitting moves the targets whose kind knows the use to the front and returns
// them; if there are none, it returns all.
func fitting(found []target.Target, want access.Feature) []target.Target {
	n := 0
	for i := range found {
		if found[i].Kind.Features()&want != 0 {
			found[n], found[i] = found[i], found[n]
			n++
		}
	}
	if n == 0 {
		return found
	}
	return found[:n]
}

// nothing is the answer about a target that does not exist: the same that
// somebody without a role for an existing one receives.
func (s *Service) nothing(sub *access.Subject, ask Query, now time.Time) Verdict {
	return Verdict{Decision: access.Decide(access.Request{
		Subject: *sub, Target: access.Target{ID: "none"}, Mask: access.AllFeatures, Want: ask.Want, Now: now})}
}

// decideTarget answers for one target.
func (s *Service) decideTarget(ctx context.Context, q db.Querier, sub *access.Subject, t *target.Target, ask Query, now time.Time) (Verdict, error) {
	grants, err := s.c.Targets.GrantsFor(ctx, q, t, roles(sub))
	if err != nil {
		return Verdict{}, err
	}
	r := access.Request{
		Subject: *sub, Target: shown(t), Mask: t.Kind.Features(), Want: ask.Want, HasReason: ask.Reason != "",
		Source: ask.Source, Now: now, Grants: grants, Zones: &s.zones,
	}
	if !t.Kind.HasAccounts() {
		return Verdict{Decision: access.Decide(r), Target: t}, nil
	}
	accounts, err := s.c.Targets.Accounts(ctx, q, t.ID)
	if err != nil {
		return Verdict{}, err
	}
	if open(t, accounts) && ask.Account == "" {
		return Verdict{Decision: access.Decide(r), Target: t}, nil
	}
	if ask.Account == "" {
		return anyAccount(t, accounts, r), nil
	}
	for i := range accounts {
		if accounts[i].Name == ask.Account {
			return Verdict{Decision: access.Decide(limited(r, &accounts[i])), Target: t, Account: &accounts[i]}, nil
		}
	}
	// An account that does not exist is decided like one that is not granted.
	r.Account, r.Mask = ask.Account, 0
	v := Verdict{Decision: access.Decide(r), Target: t}
	if v.Reason > access.TargetDisabled {
		v.Decision = access.Decision{Reason: access.NoAccount}
	}
	return v, nil
}

// open reports whether a target is used without an account: a web application
// that nobody signs in to, or everybody by himself.
func open(t *target.Target, accounts []target.Account) bool {
	return t.Kind == target.Web && len(accounts) == 0
}

// anyAccount answers for a target with accounts when none is named. Raw
// forwarding is allowed by any account that may forward, a web session by the
// only account the user has; every other use needs an account, and the answer
// names those the user has.
func anyAccount(t *target.Target, accounts []target.Account, r access.Request) Verdict {
	best := Verdict{Target: t}
	var may []string
	var only Verdict
	for i := range accounts {
		one := limited(r, &accounts[i])
		d := access.Decide(one)
		if d.OK() && r.Want == access.Forward {
			return Verdict{Decision: d, Target: t}
		}
		if access.Survey(one).Features != 0 {
			may = append(may, accounts[i].Name)
			only = Verdict{Decision: d, Target: t, Account: &accounts[i]}
		}
		if d.Reason != access.Allowed && d.Reason > best.Reason {
			best.Decision = d
		}
	}
	if len(accounts) == 0 {
		r.Mask = 0
		best.Decision = access.Decide(r)
	}
	if r.Want == access.Forward || best.Reason == access.UserDisabled || best.Reason == access.UserLocked {
		return best
	}
	if len(may) == 1 && r.Want == access.Web {
		return only
	}
	if len(may) > 0 {
		best.Decision = access.Decision{Reason: access.NoAccount}
		best.Public = sentence(fmt.Sprintf("say which account of %s; you may use %s", t.Name, list(may)))
	}
	return best
}

// limited is r for one account: its switches and state.
func limited(r access.Request, a *target.Account) access.Request {
	r.Account, r.AccountDisabled = a.Name, a.Disabled
	r.Mask &= a.Features
	return r
}

// shown is the target as the decision sees it.
func shown(t *target.Target) access.Target {
	return access.Target{ID: t.ID, Site: t.Site, Kind: string(t.Kind), Disabled: t.Disabled, Tags: t.Tags, Group: t.Group}
}

func roles(sub *access.Subject) []string {
	out := make([]string, len(sub.Memberships))
	for i := range sub.Memberships {
		out[i] = sub.Memberships[i].Role
	}
	return out
}

// Reauthorize answers again for a live connection (conn.Authorizer): the
// login must still be good and the decision the same kind of yes. It starts
// no floating membership.
func (s *Service) Reauthorize(ctx context.Context, sp conn.Spec) (access.Decision, error) {
	if sp.Principal == nil {
		return access.Decision{}, errors.New("decide again: nobody asks")
	}
	now := s.c.Now()
	var v Verdict
	err := s.c.DB.View(ctx, func(tx *db.Tx) error {
		sub, err := s.c.Users.Subject(ctx, tx, sp.Principal.UserID, sp.Principal.MFA)
		if err != nil {
			return err
		}
		t, err := s.c.Targets.Get(ctx, tx, sp.TargetID)
		if errors.Is(err, db.ErrNotFound) {
			v = Verdict{Decision: access.Decision{Reason: access.NoRole}}
			return nil
		}
		if err != nil {
			return err
		}
		ask := Query{Principal: sp.Principal, Account: sp.Account, Want: sp.Want, Reason: sp.Reason, Source: sp.Source}
		v, err = s.decideTarget(ctx, tx, &sub, t, ask, now)
		return err
	})
	if errors.Is(err, db.ErrNotFound) {
		return access.Decision{Reason: access.UserDisabled}, nil
	}
	if err != nil {
		return access.Decision{}, fmt.Errorf("decide again: %w", err)
	}
	if !v.OK() {
		return v.Decision, nil
	}
	if err := s.c.Users.StillValid(ctx, sp.Principal); err != nil {
		if ctx.Err() != nil || !ended(err) {
			return access.Decision{}, fmt.Errorf("decide again: %w", err)
		}
		return access.Decision{Reason: access.LoginEnded}, nil
	}
	return v.Decision, nil
}

// ended reports whether a login is over for good, as opposed to a check that
// could not be made.
func ended(err error) bool {
	return errors.Is(err, user.ErrEnded) || errors.Is(err, db.ErrNotFound)
}
