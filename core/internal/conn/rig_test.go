package conn

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// clock is a clock tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now().UTC().Truncate(time.Microsecond)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// judge is policy and login check in one.
type judge struct {
	mu     sync.Mutex
	reason map[string]access.Reason // by role; Allowed when absent
	err    error
	login  error
	made   int
	until  time.Time
	lost   access.Features
}

func (j *judge) Reauthorize(_ context.Context, s Spec) (access.Decision, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.made++
	if j.err != nil {
		return access.Decision{}, j.err
	}
	d := s.Decision
	d.Until = j.until
	d.Features &^= j.lost
	if r, ok := j.reason[d.Role]; ok {
		d.Reason = r
	}
	return d, nil
}

func (j *judge) StillValid(context.Context, *api.Principal) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.login
}

func (j *judge) set(f func(*judge)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(j)
}

func (j *judge) decisions() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.made
}

// rig is a running manager.
type rig struct {
	*Manager
	t      *testing.T
	db     *db.DB
	clock  *clock
	judge  *judge
	limits Limits
	stop   func() error
}

func newRig(t *testing.T, d *db.DB, change ...func(*Config, *rig)) *rig {
	t.Helper()
	r := &rig{t: t, db: d, clock: newClock(), judge: &judge{reason: map[string]access.Reason{}}, limits: DefaultLimits()}
	c := Config{
		DB: d, Audit: audit.New(d, r.clock.now), Authorizer: r.judge, Logins: r.judge, CoreID: "cor_test",
		Limits: func() Limits { return r.limits }, FlushEvery: 50 * time.Millisecond,
		RoleNames: func(context.Context, string) ([]string, error) { return []string{"operators"}, nil },
		Now:       r.clock.now, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&c, r)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.Manager = m
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, 5*time.Second) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { r.stop() })
	return r
}

func spec(user, target, role string) Spec {
	return Spec{
		Kind: "ssh", Principal: &api.Principal{
			UserID: "usr_" + user, UserName: user, Session: "ses_" + user, Methods: []string{"password", "totp"}, MFA: true,
			Source: netip.MustParseAddr("192.0.2.7"), Via: "bastion",
		},
		TargetID: "tgt_" + target, TargetName: target, TargetAddress: "10.10.0.5:22", Site: "vpc-a", Account: "root",
		Want: access.Shell, Source: netip.MustParseAddr("192.0.2.7"), UserAgent: "SSH-2.0-OpenSSH_9.2", Reason: "ticket 17",
		Decision: access.Decision{Reason: access.Allowed, Role: role, Grant: "grt_1", Features: access.Shell | access.FileTransfer, Record: true},
	}
}

func (r *rig) open(s Spec) *Live {
	r.t.Helper()
	l, err := r.Open(r.t.Context(), s)
	if err != nil {
		r.t.Fatal(err)
	}
	// A front door closes what it opened once the context ends.
	go func() {
		<-l.Context().Done()
		l.Close(EndedByUser, context.Cause(l.Context()))
	}()
	return l
}

// patience is how long what must happen may take on a busy machine. The
// clock of a rig stands still meanwhile: no timer does what a note should.
const patience = time.Minute

// ended waits for l to end and returns why.
func (r *rig) ended(l *Live) *Terminated {
	r.t.Helper()
	select {
	case <-l.Context().Done():
	case <-time.After(patience):
		r.t.Fatalf("connection %s still live after %s", l.ID, patience)
	}
	t, ok := errors.AsType[*Terminated](context.Cause(l.Context()))
	if !ok {
		r.t.Fatalf("cause is %v, want *Terminated", context.Cause(l.Context()))
	}
	return t
}

// until waits for a condition.
func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			r.t.Fatalf("not in %s: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// record waits until the row is in a state and returns it.
func (r *rig) record(id string, want State) *Record {
	r.t.Helper()
	var x *Record
	r.until("record in state "+string(want), func() bool {
		var err error
		if x, err = r.Get(context.Background(), id); err != nil {
			r.t.Fatal(err)
		}
		return x.State == want
	})
	return x
}

func (r *rig) notify(topic, id string) {
	r.t.Helper()
	if err := r.db.Tx(context.Background(), func(tx *db.Tx) error { return tx.Notify(context.Background(), topic, id) }); err != nil {
		r.t.Fatal(err)
	}
}
