package webaccess

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// law stands for users, roles and logins: everybody may everything but what
// was taken from him.
type law struct {
	mu       sync.Mutex
	targets  *target.Service
	db       *db.DB
	features access.Features                    // guarded by mu
	denied   map[string]bool                    // guarded by mu; by user
	reason   bool                               // guarded by mu: a reason is needed
	record   bool                               // guarded by mu
	idle     time.Duration                      // guarded by mu
	longest  time.Duration                      // guarded by mu
	perms    map[string]map[api.Permission]bool // by user
}

func (l *law) change(f func(*law)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

func (l *law) decision() access.Decision {
	return access.Decision{Reason: access.Allowed, Role: "rol_1", Grant: "gnt_1", Features: l.features, Record: l.record, Idle: l.idle, MaxDuration: l.longest}
}

func (l *law) Decide(ctx context.Context, q policy.Query) (policy.Verdict, error) {
	ts, err := l.targets.Candidates(ctx, l.db, q.Target)
	if err != nil {
		return policy.Verdict{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(ts) == 0 || l.denied[q.Principal.UserName]:
		return policy.Verdict{Decision: access.Decision{Reason: access.NoRole}, Public: "There is no target that you may use."}, nil
	case l.reason && q.Reason == "":
		return policy.Verdict{Decision: access.Decision{Reason: access.NeedReason}, Target: &ts[0], Public: "A reason is needed."}, nil
	}
	v := policy.Verdict{Decision: l.decision(), Target: &ts[0]}
	if q.Account != "" {
		v.Account, err = l.targets.Account(ctx, l.db, ts[0].ID, q.Account)
	}
	return v, err
}

func (l *law) Reauthorize(_ context.Context, s conn.Spec) (access.Decision, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.denied[s.Principal.UserName] {
		return access.Decision{Reason: access.NoRole}, nil
	}
	return l.decision(), nil
}

func (l *law) StillValid(context.Context, *api.Principal) error { return nil }

// Authenticate takes "Bearer name" or "Bearer name/login".
func (l *law) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	login := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if login == "" {
		return nil, nil
	}
	name, _, _ := strings.Cut(login, "/")
	return &api.Principal{UserID: "usr_" + name, UserName: name, Session: "ses_" + login, Source: source, Via: "console", Permissions: l.perms[name]}, nil
}

func (l *law) RoleName(context.Context, db.Querier, string) (string, error) { return "role", nil }

func (l *law) RoleGroup(context.Context, db.Querier, string) (string, error) {
	return access.DefaultGroup, nil
}

// tape is a recording in memory that outlives the run that writes it.
type tape struct {
	mu     sync.Mutex
	id     string
	meta   recording.Meta
	next   map[string]uint64
	recs   []string // "source kind payload"
	events []string
	fields []map[string]string // of events
	closed bool
	lacks  string // why it was closed as incomplete
	fail   error
}

func (x *tape) Next(source string) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return max(x.next[source], 1)
}

func (x *tape) Append(source string, _ time.Duration, recs []wire.WebRecord) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fail != nil {
		return x.fail
	}
	for _, r := range recs {
		switch next := max(x.next[source], 1); {
		case r.Seq < next:
			continue
		case r.Seq > next:
			return &recording.GapError{Source: source, Want: next, Got: r.Seq}
		}
		x.next[source] = r.Seq + 1
		x.recs = append(x.recs, source+" "+string(rune(r.Kind))+" "+string(r.Payload))
	}
	return nil
}

func (x *tape) Event(kind string, fields map[string]string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.events, x.fields = append(x.events, kind), append(x.fields, fields)
	return nil
}

// count counts core's own events of a kind.
func (x *tape) count(kind string) (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.events {
		if e == kind {
			n++
		}
	}
	return n
}

// last are the fields of the last of core's own events of a kind.
func (x *tape) last(kind string) map[string]string {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, e := range slices.Backward(x.events) {
		if e == kind {
			return x.fields[i]
		}
	}
	return nil
}

func (x *tape) File(context.Context, recording.Direction, string) (*recording.FileWriter, error) {
	return nil, errors.New("no copies are kept here")
}

func (x *tape) CloseIncomplete(why string) error {
	x.mu.Lock()
	x.lacks = why
	x.mu.Unlock()
	return x.Close()
}

func (x *tape) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	return nil
}

// shelf holds tapes.
type shelf struct {
	mu    sync.Mutex
	tapes map[string]*tape
	fail  error
}

func (s *shelf) Create(_ context.Context, m recording.Meta) (Recording, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, "", s.fail
	}
	x := &tape{id: "rec_" + m.ConnectionID, meta: m, next: map[string]uint64{}}
	s.tapes[x.id] = x
	return x, x.id, nil
}

func (s *shelf) Resume(_ context.Context, id string) (Recording, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.tapes[id]; x != nil && !x.closed {
		return x, nil
	}
	return nil, recording.ErrNotResumable
}

func (s *shelf) of(session string) *tape {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tapes["rec_"+session]
}
