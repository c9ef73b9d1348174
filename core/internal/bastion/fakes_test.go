package bastion

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
	"caponier/core/internal/sshca"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
	"caponier/shared/wire"
)

// guard is the lock of a fake, which the bastion uses while the test runs.
type guard struct{ mu sync.Mutex }

// change lets a test write, or read, the fields of a fake.
func (g *guard) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// people are the users of a test.
type people struct {
	guard
	password map[string]string
	code     map[string]string // second factor; asked for with the password
	stepUp   map[string]string // second factor taken with a key, never asked for
	keys     map[string][]ssh.PublicKey
	gone     map[string]bool
	failures int
	limit    int // refusals before LimitError; 0 = none
	attempts []user.Credentials
}

func (p *people) Login(_ context.Context, c user.Credentials) (*api.Principal, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts = append(p.attempts, c)
	if p.limit > 0 && p.failures >= p.limit {
		return nil, &user.LimitError{RetryAfter: time.Minute}
	}
	bad := func() (*api.Principal, error) {
		p.failures++
		return nil, user.ErrBadCredentials
	}
	pr := &api.Principal{UserID: "usr_" + c.Name, UserName: c.Name, Source: c.Source, Via: c.Via, Session: "ses"}
	if c.Key != nil {
		if !p.hasLocked(c.Name, c.Key) {
			return bad()
		}
		pr.Methods = []string{"publickey"}
	} else {
		want, ok := p.password[c.Name]
		if !ok || want != c.Password {
			return bad()
		}
		pr.Methods = []string{"password"}
	}
	if code, ok := p.code[c.Name]; ok && c.Key == nil {
		if c.Code == "" {
			return nil, user.ErrNeedCode
		}
		if c.Code != code {
			return bad()
		}
		pr.MFA = true
	}
	if c.Code != "" && !pr.MFA {
		if c.Code != p.stepUp[c.Name] {
			return bad()
		}
		pr.MFA = true
	}
	return pr, nil
}

func (p *people) hasLocked(name string, key ssh.PublicKey) bool {
	return slices.ContainsFunc(p.keys[name], func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) })
}

func (p *people) AcceptsKey(_ context.Context, name string, key ssh.PublicKey, _ netip.Addr) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hasLocked(name, key), nil
}

func (p *people) StillValid(_ context.Context, pr *api.Principal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone[pr.UserName] {
		return user.ErrEnded
	}
	return nil
}

// right is what one user may do with one account.
type right struct {
	user       string
	target     *target.Target
	account    *target.Account // nil for kinds without accounts
	features   access.Features
	record     bool
	needMFA    bool
	needReason bool
}

type rules struct {
	guard
	rights []right
	err    error
}

const denied = "There is no such target, or you have no role for it."

func (r *rules) Decide(_ context.Context, q policy.Query) (policy.Verdict, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return policy.Verdict{}, r.err
	}
	best := policy.Verdict{Decision: access.Decision{Reason: access.NoRole}, Public: denied}
	for _, x := range r.rights {
		if x.user != q.Principal.UserName || !ref(q.Target, x.target) {
			continue
		}
		if q.Account != "" && (x.account == nil || x.account.Name != q.Account) || q.Account == "" && x.account != nil && q.Want != access.Forward {
			continue
		}
		switch {
		case x.features&q.Want == 0:
			best = policy.Verdict{Decision: access.Decision{Reason: access.NoFeature}, Public: "Your role does not allow " + q.Want.String() + " on " + x.target.Name + "."}
		case x.needMFA && !q.Principal.MFA:
			best = policy.Verdict{Decision: access.Decision{Reason: access.NeedMFA}, Public: "A second factor is needed."}
		case x.needReason && q.Reason == "":
			best = policy.Verdict{Decision: access.Decision{Reason: access.NeedReason}, Public: "A reason is needed."}
		default:
			return policy.Verdict{
				Decision: access.Decision{Reason: access.Allowed, Features: x.features, Record: x.record},
				Target:   x.target, Account: x.account,
			}, nil
		}
	}
	return best, nil
}

// ref resolves as the target room does: name, ID or address.
func ref(q string, t *target.Target) bool {
	site, host := splitSite(q)
	return q == t.Name || q == t.ID || site == t.Site && (host == t.Host || host == addressOf(t))
}

func (r *rules) List(_ context.Context, p *api.Principal, _ netip.Addr, search, after string, limit int) ([]policy.Entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []policy.Entry
	for _, x := range r.rights {
		if x.user != p.UserName || !strings.Contains(x.target.Name, search) || x.target.Name <= after {
			continue
		}
		e := policy.Entry{Target: *x.target, Features: x.features, Record: x.record, NeedMFA: x.needMFA, NeedReason: x.needReason}
		if x.account != nil {
			e.Account = x.account.Name
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b policy.Entry) int {
		if c := strings.Compare(a.Target.Name, b.Target.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Account, b.Account)
	})
	return out[:min(len(out), limit)], nil
}

// record is one connection of a test.
type record struct {
	spec   conn.Spec
	id     string
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu        sync.Mutex
	connected int
	in, out   int64
	events    []string
	recording string
	closed    bool
	reason    conn.EndReason
	err       error
	oversight conn.Oversight
	changed   chan struct{}
}

func (l *record) Context() context.Context { return l.ctx }
func (l *record) Connected(fleet.Route) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected++
}
func (l *record) Oversight() (conn.Oversight, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.oversight, l.changed
}

func (l *record) oversee(o conn.Oversight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.oversight = o
	if l.changed != nil {
		close(l.changed)
	}
	l.changed = make(chan struct{})
}
func (l *record) Use(f access.Feature) bool { return l.spec.Decision.Features&f == f }
func (l *record) In(n int)                  { l.add(&l.in, n) }
func (l *record) Out(n int)                 { l.add(&l.out, n) }
func (l *record) add(to *int64, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*to += int64(n)
}
func (l *record) Channel(kind, detail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, kind+" "+detail)
}
func (l *record) Recording(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recording = id
}
func (l *record) Close(r conn.EndReason, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed, l.reason, l.err = true, r, err
	}
}

func (l *record) ended() (bool, conn.EndReason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed, l.reason
}

func (l *record) saw(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.events, func(e string) bool { return strings.Contains(e, part) })
}

type records struct {
	guard
	all  []*record
	fail error
}

func (r *records) Open(_ context.Context, s conn.Spec) (string, Live, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return "", nil, r.fail
	}
	l := &record{spec: s, id: fmt.Sprintf("con_%d", len(r.all))}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	r.all = append(r.all, l)
	return l.id, l, nil
}

func (r *records) list() []*record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// tape is one recording of a test.
type tape struct {
	guard
	meta recording.Meta

	out, in bytes.Buffer
	sizes   []string
	events  []string
	files   []*taped
	closed  bool
	fail    error
}

// taped is the copy of one file.
type taped struct {
	name   string // direction and path
	got    bytes.Buffer
	lost   bool
	closed bool
}

func (f *taped) Write(p []byte) (int, error) { return f.got.Write(p) }
func (f *taped) Abandon()                    { f.lost = true }
func (f *taped) Close(context.Context) (recording.File, error) {
	f.closed = true
	return recording.File{}, nil
}

func (t *tape) File(_ context.Context, d recording.Direction, path string) (FileCopy, error) {
	f := &taped{name: string(d) + " " + path}
	err := t.put(func() { t.files = append(t.files, f) })
	return f, err
}

// file returns the copy of a file; nil when there is none.
func (t *tape) file(name string) *taped {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.files {
		if f.name == name {
			return f
		}
	}
	return nil
}

var quiet = slog.New(slog.DiscardHandler)

func (t *tape) Output(p []byte) error { return t.put(func() { t.out.Write(p) }) }
func (t *tape) Input(p []byte) error  { return t.put(func() { t.in.Write(p) }) }
func (t *tape) Resize(w, h int) error {
	return t.put(func() { t.sizes = append(t.sizes, fmt.Sprintf("%dx%d", w, h)) })
}
func (t *tape) Event(kind string, f map[string]string) error {
	return t.put(func() {
		s := kind
		for _, k := range slices.Sorted(func(yield func(string) bool) {
			for k := range f {
				if !yield(k) {
					return
				}
			}
		}) {
			s += " " + k + "=" + f[k]
		}
		t.events = append(t.events, s)
	})
}
func (t *tape) Close() error { return t.put(func() { t.closed = true }) }
func (t *tape) put(f func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return t.fail
	}
	if t.closed {
		return errors.New("closed")
	}
	f()
	return nil
}
func (t *tape) output() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.String()
}
func (t *tape) saw(part string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.events, func(e string) bool { return strings.Contains(e, part) })
}

type tapes struct {
	guard
	all  []*tape
	fail error
}

func (r *tapes) Create(_ context.Context, m recording.Meta) (string, Recorder, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return "", nil, r.fail
	}
	t := &tape{meta: m}
	r.all = append(r.all, t)
	return fmt.Sprintf("rec_%d", len(r.all)), t, nil
}

func (r *tapes) list() []*tape {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// direct dials destinations from the test's own machine.
type direct struct {
	guard
	to    map[string]string // "site/host:port" → real address; others are dialled as they are
	fail  map[string]error
	asked []fleet.DialRequest
	conns []net.Conn
}

func (d *direct) Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error) {
	key := r.Address
	if r.Site != "" {
		key = r.Site + "/" + key
	}
	d.mu.Lock()
	d.asked = append(d.asked, r)
	to, err := d.to[key], d.fail[key]
	d.mu.Unlock()
	if err != nil {
		return nil, fleet.Route{}, err
	}
	if to == "" {
		to = r.Address
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, fleet.Route{}, wire.Errorf(wire.CodeConnRefused, "%s does not accept connections.", r.Address)
	}
	d.mu.Lock()
	d.conns = append(d.conns, c)
	d.mu.Unlock()
	return c.(*net.TCPConn), fleet.Route{Transport: "direct"}, nil
}

// authority signs certificates.
type authority struct {
	guard
	signer ssh.Signer
	serial uint64
	last   *ssh.Certificate
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	return &authority{signer: newKey(t)}
}

func (a *authority) TargetSigner(_ context.Context, r sshca.UserRequest) (ssh.Signer, *ssh.Certificate, error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, nil, err
	}
	sg, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.serial++
	now := time.Now()
	cert := &ssh.Certificate{
		Key: key, Serial: 7000 + a.serial, CertType: ssh.UserCert, KeyId: r.KeyID, ValidPrincipals: r.Principals,
		ValidAfter: uint64(now.Add(-2 * time.Minute).Unix()), ValidBefore: uint64(now.Add(r.TTL).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{
			"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "", "permit-X11-forwarding": ""}},
	}
	if err := cert.SignCert(rand.Reader, a.signer); err != nil {
		return nil, nil, err
	}
	a.last = cert
	cs, err := ssh.NewCertSigner(cert, sg)
	return cs, cert, err
}

func (a *authority) Algorithms(_ context.Context, _, _, rule string) (sshca.Algorithms, error) {
	ch, err := sshca.ParseTargetRule(rule)
	if err != nil {
		return sshca.Algorithms{}, err
	}
	return sshca.DefaultAlgorithms().With(ch)
}

func newKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// safe holds stored credentials.
type safe struct {
	guard
	secrets map[string]string
}

func (s *safe) put(id, secret string) { s.change(func() { s.secrets[id] = secret }) }

func (s *safe) Reveal(_ context.Context, id, _, _ string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.secrets[id]
	if !ok {
		return nil, errors.New("no such secret")
	}
	return []byte(v), nil
}

// book keeps host keys: trust on first use.
type book struct {
	guard
	keys   map[string][]target.HostKey
	strict bool
	filed  []target.HostKey // changed keys
}

func (b *book) HostKeys(_ context.Context, id string) ([]target.HostKey, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.keys[id]), nil
}

func (b *book) SawHostKey(_ context.Context, id string, k target.HostKey) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.keys[id], func(h target.HostKey) bool { return h.Key == k.Key }) {
		return nil
	}
	if b.strict || len(b.keys[id]) > 0 {
		b.filed = append(b.filed, k)
		return target.ErrHostKeyChanged
	}
	b.keys[id] = []target.HostKey{k}
	return nil
}

type journal struct {
	guard
	all []audit.Event
}

func (j *journal) Write(_ context.Context, e audit.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all = append(j.all, e)
	return nil
}

func (j *journal) list() []audit.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.all)
}
