package webaccess

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"caponier/core/internal/access"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

const (
	// askTimeout bounds one request to a node.
	askTimeout = 10 * time.Second
	// endTimeout bounds how long nodes take to clear a session away, and how
	// long core waits for a node that is away to do so.
	endTimeout = 25 * time.Second
	// lateBy is how long after its end a session may still be shown by its
	// carrier before core ends it itself.
	lateBy = 5 * time.Second
	// maxHosts bounds hosts and routes of one session that are remembered so as
	// to note each once.
	maxHosts = 500
	// maxDoubts is how many more there may be of what a page cannot bring about:
	// refused uses and connections are noted however many hosts it asked for.
	maxDoubts = 100
	// filesRate per second, after filesBurst, is how many files that a carrier
	// reports are in the audit log one by one: each is a transaction of the chain.
	filesRate, filesBurst = 20, 2000
	// unlistedEvery is how often the others are counted there.
	unlistedEvery = time.Minute
	// maxUnlisted of them is more than a person moves: the carrier lies.
	maxUnlisted = 100_000
)

// session is one web session as long as it counts.
type session struct {
	s    *Service
	live *conn.Live
	key  string
	// row is as stored at the open, without what changes: see below.
	row row

	wakeup chan struct{} // one token: look again
	ended  chan struct{} // closed when it is over everywhere

	// order is held (by sending) while nodes are told.
	order chan struct{}
	// using is held while a use of the credential is decided and counted.
	using sync.Mutex
	// asks is held while a request for approval is looked up or made.
	asks   sync.Mutex
	asking *rate.Limiter
	// visits bounds the pages that are listed with the connection.
	visits *rate.Limiter

	// files bounds the files that are in the audit log one by one.
	files *rate.Limiter

	// mu guards everything below. No other lock is taken with it held.
	mu       sync.Mutex
	state    State
	spec     *target.Target // the target as it is enforced
	rules    *rules         // of spec
	anchors  [32]byte       // digest of those of its access group
	stale    bool           // the target may have changed
	carrier  node
	proxy    node
	extended int
	warm     bool
	revision uint64
	told     map[wire.NodeKind]want // what each node has
	address  string                 // of the webproxy, as last reported
	away     map[string]time.Time   // nodes that are away, since when
	next     map[string]uint64      // records wanted next, of a session without recording
	streams  map[string]*sync.Mutex
	gaps     map[string]int // batches in a row that left records out
	happened bool           // the timeline has more than was told: see tellTimelines
	uses     map[string]int // uses of each injection
	hosts    map[string]bool
	viewers  int
	ears     int             // sockets that hear it
	heard    map[string]bool // users who do or did; it is noted once
	clients  int             // connections of API clients
	lastAsk  time.Time       // when an API client last asked for anything
	endText  string
	held     []*held   // that wait for a second person, or were decided on a moment ago
	rec      Recording // nil: not recorded, or not yet
	// recordingID is that of rec.
	recordingID string
	// unlisted is how many files are not in the audit log since the last count
	// of them was, at counted; allUnlisted is how many there were in all.
	unlisted, allUnlisted int
	counted               time.Time
}

// node names a node of a session.
type node struct{ ID, Name string }

// want is everything that decides what nodes are told: another want, another
// revision.
type want struct {
	version  int64 // of the target
	anchors  [32]byte
	features access.Features
	idle     time.Duration
	max      time.Duration
	locked   bool
	text     string
	address  string // of the webproxy
	carrier  string
	scan     string
	issuer   string // what issuing certificates are like
}

func newSession(s *Service, r row, l *conn.Live) *session {
	return &session{
		s: s, live: l, row: r, visits: rate.NewLimiter(20, 200), files: rate.NewLimiter(filesRate, filesBurst), counted: s.cfg.Now(), asking: rate.NewLimiter(1, 60), wakeup: make(chan struct{}, 1), ended: make(chan struct{}), order: make(chan struct{}, 1),
		state: r.State, recordingID: r.RecordingID, carrier: node{r.CarrierID, r.CarrierName}, proxy: node{r.ProxyID, r.ProxyName}, extended: r.Extended, warm: r.Warm,
		told: map[wire.NodeKind]want{}, away: map[string]time.Time{}, next: map[string]uint64{}, streams: map[string]*sync.Mutex{}, gaps: map[string]int{}, uses: map[string]int{}, hosts: map[string]bool{}, heard: map[string]bool{},
	}
}

func (x *session) recording() Recording {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rec
}

func (x *session) poke() {
	select {
	case x.wakeup <- struct{}{}:
	default:
	}
}

func (x *session) targetChanged() {
	x.mu.Lock()
	x.stale = true
	x.mu.Unlock()
	x.poke()
}

// pair returns the IDs of carrier and webproxy.
func (x *session) pair() (carrier, proxy string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.carrier.ID, x.proxy.ID
}

// setTarget has the session enforce t from the next revision on.
func (x *session) setTarget(ctx context.Context, t *target.Target) error {
	if t.Web == nil {
		return nil
	}
	t, digest, err := x.s.anchored(ctx, t)
	if err != nil {
		return err
	}
	r, err := compile(t)
	if err != nil {
		// It was valid when it was stored; what is enforced stays.
		x.s.cfg.Log.Error("rules of a web target not understood", "session", x.row.ID, "target", t.ID, "err", err)
		return nil
	}
	x.mu.Lock()
	x.spec, x.rules, x.anchors = t, r, digest
	x.mu.Unlock()
	return nil
}

// anchored is t with what its access group believes added to its own anchors,
// and a digest of that.
func (s *Service) anchored(ctx context.Context, t *target.Target) (*target.Target, [32]byte, error) {
	list, err := s.cfg.Anchors(ctx, t.Group)
	if err != nil {
		return nil, [32]byte{}, fmt.Errorf("read anchors of %s: %w", t.Group, err)
	}
	if len(list) == 0 {
		return t, [32]byte{}, nil
	}
	text := []byte(t.Web.Policy.TLS.Anchors)
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	for _, c := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	out, web := *t, *t.Web
	web.Policy.TLS.Anchors = string(text)
	out.Web = &web
	return &out, sha256.Sum256(text), nil
}

// times are how long the session may be idle and last in all; 0: no limit.
// The strictest of target and grant hold; settings where neither says anything.
func times(b *target.WebBrowser, d access.Decision, limits conn.Limits, extended int) (idle, longest time.Duration) {
	granted := func(own, fallback time.Duration) time.Duration {
		if own == 0 {
			return fallback
		}
		return own
	}
	idle = strictest(time.Duration(b.IdleS)*time.Second, granted(d.Idle, limits.Idle))
	longest = strictest(time.Duration(b.MaxS)*time.Second*time.Duration(1+extended), granted(d.MaxDuration, limits.MaxDuration))
	return idle, longest
}

// strictest is the smaller of two limits of which 0 is none.
func strictest(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// extensible reports whether one more maximum of the target would be longer. It
// is asked for when the end is near, and not ahead: else a maximum were none.
func (x *session) extensible(d access.Decision) bool { return x.extensibleAt(d, x.s.cfg.Now()) }

func (x *session) extensibleAt(d access.Decision, at time.Time) bool {
	limits, gone := x.s.cfg.Limits(), at.Sub(x.row.OpenedAt)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.spec == nil || !x.spec.Web.Browser.Extend || x.state != Open {
		return false
	}
	b := &x.spec.Web.Browser
	_, now := times(b, d, limits, x.extended)
	_, then := times(b, d, limits, x.extended+1)
	// Who extends at the notice has that much more than one maximum then, and
	// may know that he can once more.
	soon := time.Duration(b.MaxS+*b.NoticeS) * time.Second
	return then != now && now-gone <= soon
}

// firstPause is how long after a try that failed for a while nodes are told
// again; it doubles up to the tick.
const firstPause = 250 * time.Millisecond

// pause is the time until the next try, after the one before it.
func pause(before, tick time.Duration) time.Duration {
	return min(max(2*before, firstPause), tick)
}

// drive keeps the nodes told until the session ends, and then ends it there.
func (x *session) drive(ctx context.Context) {
	t := time.NewTicker(x.s.cfg.Tick)
	defer t.Stop()
	var wait time.Duration
	for {
		_, overseen := x.live.Oversight()
		var again <-chan time.Time
		if x.live.Context().Err() == nil && !x.look(ctx) {
			wait = pause(wait, x.s.cfg.Tick)
			again = time.After(wait)
		} else {
			wait = 0
		}
		select {
		case <-again:
		case <-ctx.Done():
			return
		case <-x.live.Context().Done():
			x.finish(ctx)
			return
		case <-overseen:
			x.announce(ctx) // what waits is denied at the next look
		case <-x.wakeup:
		case <-t.C:
		}
	}
}

// look does what is due: the target as it is now, new revisions, times. It
// reports whether the nodes that are there know all.
func (x *session) look(ctx context.Context) bool {
	x.attend(ctx)
	x.refresh(ctx)
	x.mu.Lock()
	open, known := x.state == Open, x.spec != nil
	x.mu.Unlock()
	if !open || !known {
		return true
	}
	told := x.sync(ctx, "")
	now := x.s.cfg.Now()
	x.countUnlisted(ctx, now, unlistedEvery)
	idle, longest := x.limits()
	if x.forClients() && idle > 0 && x.idleFor(now) >= idle {
		x.live.End(conn.EndedByIdle, fmt.Sprintf("The session was not used for %s.", idle))
		return true
	}
	if longest > 0 && now.Sub(x.row.OpenedAt) >= longest+lateBy {
		x.live.End(conn.EndedByDuration, fmt.Sprintf("The session has reached its longest permitted time of %s.", longest))
		return true
	}
	lease := x.s.cfg.Limits().Lease
	x.mu.Lock()
	var lost string
	for id, since := range x.away {
		if now.Sub(since) >= lease {
			lost = "carrier"
			if id == x.proxy.ID {
				lost = "webproxy"
			}
		}
	}
	x.mu.Unlock()
	if lost != "" {
		x.live.End(conn.EndedByRoute, fmt.Sprintf("The session was closed because its %s was not heard of for %s.", lost, lease))
	}
	return told
}

func (x *session) limits() (idle, longest time.Duration) {
	d, limits := x.live.Decision(), x.s.cfg.Limits()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.spec == nil {
		return 0, 0
	}
	return times(&x.spec.Web.Browser, d, limits, x.extended)
}

// refresh reads the target again when it may have changed.
func (x *session) refresh(ctx context.Context) {
	x.mu.Lock()
	stale := x.stale
	x.stale = false
	x.mu.Unlock()
	if !stale {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	t, err := x.s.cfg.Targets.Get(ctx, x.s.cfg.DB, x.row.TargetID)
	if errors.Is(err, db.ErrNotFound) {
		return // the right to it is lost with it, which conn finds
	}
	if err == nil {
		err = x.setTarget(ctx, t)
	}
	if err != nil && ctx.Err() == nil {
		x.mu.Lock()
		x.stale = true
		x.mu.Unlock()
		x.s.cfg.Log.Error("target of a web session not read; tried again", "session", x.row.ID, "err", err)
	}
}

// announce lets consoles read the session again.
func (x *session) announce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := x.s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return tell(ctx, tx, x.row.ID, x.row.UserID) })
	if err != nil && ctx.Err() == nil {
		x.s.cfg.Log.Warn("consoles not told of a web session", "session", x.row.ID, "err", err)
	}
}
