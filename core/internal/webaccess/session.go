package webaccess

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"caponier/core/internal/access"
	"golang.org/x/time/rate"

	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/shared/webrule"
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
	clients  int       // connections of API clients
	lastAsk  time.Time // when an API client last asked for anything
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
		told: map[wire.NodeKind]want{}, away: map[string]time.Time{}, next: map[string]uint64{}, streams: map[string]*sync.Mutex{}, gaps: map[string]int{}, uses: map[string]int{}, hosts: map[string]bool{},
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

// extensible reports whether one more maximum of the target would be longer.
func (x *session) extensible(d access.Decision) bool {
	limits := x.s.cfg.Limits()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.spec == nil || !x.spec.Web.Browser.Extend || x.state != Open {
		return false
	}
	_, now := times(&x.spec.Web.Browser, d, limits, x.extended)
	_, then := times(&x.spec.Web.Browser, d, limits, x.extended+1)
	return then != now
}

// wanted is what nodes are to be told now.
func (x *session) wanted() want {
	d := x.live.Decision()
	o, _ := x.live.Oversight()
	limits, scan, issuer := x.s.cfg.Limits(), x.s.cfg.ScanURL(), x.s.authority.generation()
	x.mu.Lock()
	defer x.mu.Unlock()
	w := want{features: d.Features & access.FileTransfer, locked: o.Locked, text: o.Text, carrier: x.carrier.ID, address: x.address, scan: scan, issuer: issuer}
	w.idle, w.max = times(&x.spec.Web.Browser, d, limits, x.extended)
	w.version, w.anchors = x.spec.Version, x.anchors
	return w
}

// policy is what the person in front of the browser may do now.
func (x *session) policy(w want) wire.BrowserPolicy {
	x.mu.Lock()
	t := x.spec
	x.mu.Unlock()
	p := t.Web.BrowserPolicy(x.row.UserName, t.Name, x.row.Account, sourceText(x.live), x.s.cfg.Now())
	if w.features&access.FileTransfer == 0 {
		p.UploadMax, p.DownloadMax = 0, 0
	}
	p.IdleS, p.MaxS = int64(w.idle/time.Second), int64(w.max/time.Second)
	if p.ScanURL == "" {
		p.ScanURL = w.scan
	}
	return p
}

func sourceText(l *conn.Live) string {
	if a := l.Spec().Source; a.IsValid() {
		return a.String()
	}
	return ""
}

// forCarrier is the session as its carrier is told.
func (x *session) forCarrier(w want, revision uint64) wire.CarrierSession {
	p := x.policy(w)
	x.mu.Lock()
	defer x.mu.Unlock()
	c := wire.CarrierSession{
		ID: x.row.ID, Revision: revision, User: x.row.UserName, Target: x.spec.Name, StartURL: x.spec.Web.StartURL,
		Width: x.row.Width, Height: x.row.Height, TimeZone: x.row.TimeZone, Policy: p,
		Engine: x.spec.Web.Browser.Engine,
		Proxy:  wire.WebProxyAddress{NodeID: x.proxy.ID, Address: w.address, Key: x.key},
		LeaseS: x.lease(), Recorded: x.row.Recorded, Locked: w.locked,
	}
	if w.locked {
		c.LockText = w.text
	}
	return c
}

// forProxy is the session as its webproxy is told.
func (x *session) forProxy(w want, revision uint64) (wire.WebProxySession, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	rules, err := json.Marshal(x.spec.Web.Policy)
	if err != nil {
		return wire.WebProxySession{}, fmt.Errorf("encode rules: %w", err)
	}
	scan := x.spec.Web.ScanURL
	if scan == "" {
		scan = w.scan
	}
	return wire.WebProxySession{
		ID: x.row.ID, Revision: revision, User: x.row.UserName, Target: x.spec.Name, StartURL: x.spec.Web.StartURL,
		Carrier: x.carrier.ID, Key: x.key, Site: x.spec.Site, Policy: rules, Account: x.injected(), LeaseS: x.lease(), ScanURL: scan, Issuer: w.issuer,
	}, nil
}

// injected is the account whose credential is injected; empty when its user
// signs in by himself.
func (x *session) injected() string {
	r := &x.spec.Web.Policy.Recipe
	if len(r.Injections) == 0 && r.Login == nil {
		return ""
	}
	return x.row.Account
}

func (x *session) lease() int64 { return int64(x.s.cfg.Limits().Lease / time.Second) }

// nextRevision is higher than every one before, also of earlier runs.
func (x *session) nextRevision() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.revision = max(x.revision+1, uint64(x.s.cfg.Now().UnixMicro()))
	return x.revision
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

// sync tells the nodes what is wanted, unless they know; the one of the kind
// given is told again. Rules go first: what became forbidden is forbidden
// before anything else. It reports whether all that are there know.
func (x *session) sync(ctx context.Context, again wire.NodeKind) bool {
	// Nothing is told any more of a session that ends: finish waits its turn.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(x.live.Context(), cancel)
	defer stop()
	select {
	case x.order <- struct{}{}:
		defer func() { <-x.order }()
	case <-ctx.Done():
		return true
	}
	if ctx.Err() != nil || x.live.Context().Err() != nil {
		return true
	}
	carrier, proxy := x.pair()
	proxyNode, proxyOn := x.present(wire.WebProxy, proxy)
	carrierOn := false
	if !x.forClients() {
		_, carrierOn = x.present(wire.Carrier, carrier)
	}
	if c := proxyNode.Status.Web; c != nil && c.Address != "" {
		x.mu.Lock()
		x.address = c.Address
		x.mu.Unlock()
	}
	w, told := x.wanted(), true
	if proxyOn && (again == wire.WebProxy || !x.knows(wire.WebProxy, w)) {
		told = x.noteTold(ctx, wire.WebProxy, w, x.tellProxy(ctx, proxy, w, x.nextRevision()))
	}
	if carrierOn && w.address != "" && (again == wire.Carrier || !x.knows(wire.Carrier, w)) {
		_, err := x.tellCarrier(ctx, carrier, w, x.nextRevision())
		told = x.noteTold(ctx, wire.Carrier, w, err) && told
	}
	return told
}

func (x *session) knows(kind wire.NodeKind, w want) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	have, ok := x.told[kind]
	return ok && have == w
}

// noteTold notes that a node was told w, or what came of it: what helps later
// is tried again, what does not ends the session. It reports whether there is
// nothing to try again.
func (x *session) noteTold(ctx context.Context, kind wire.NodeKind, w want, err error) bool {
	if err == nil {
		x.mu.Lock()
		x.told[kind] = w
		x.mu.Unlock()
		return true
	}
	if we, ok := errors.AsType[*wire.Error](err); ok && !passing(we.Code) {
		// What it must enforce it will not: then it enforces nothing.
		x.live.End(conn.EndedByError, "The session was closed because what was changed could not be put into force: "+sentence(we.Public))
		return true
	}
	// It may have been started anew: what it was told before does not count.
	x.mu.Lock()
	delete(x.told, kind)
	x.mu.Unlock()
	if errors.Is(err, fleet.ErrOffline) {
		return true // its return is noticed
	}
	if ctx.Err() == nil {
		x.s.cfg.Log.Warn("a web session's node not told; tried again", "session", x.row.ID, "err", err)
	}
	return false
}

// passing reports whether trying again later may help.
func passing(c wire.Code) bool {
	switch c {
	case wire.CodeTunnelLost, wire.CodeTimeout, wire.CodeReplaced, wire.CodeDraining, wire.CodeLimit, wire.CodeInternal:
		return true
	}
	return false
}

// present finds a node of the session and notes whether it is there.
func (x *session) present(kind wire.NodeKind, id string) (fleet.Online, bool) {
	n, on := x.s.onlineNode(kind, id)
	x.seen(id, on)
	return n, on
}

func (x *session) seen(id string, on bool) {
	now := x.s.cfg.Now()
	x.mu.Lock()
	_, was := x.away[id]
	switch {
	case on:
		delete(x.away, id)
	case !was:
		x.away[id] = now
	}
	x.mu.Unlock()
	if was == on {
		x.announce(x.s.hard)
	}
}

// tellProxy registers the session with a webproxy, or changes it there.
func (x *session) tellProxy(ctx context.Context, id string, w want, revision uint64) error {
	p, err := x.forProxy(w, revision)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var ack wire.WebAck
	if err := x.s.cfg.Fleet.Ask(ctx, id, "PUT", wire.PathWebProxySessions+"/"+x.row.ID, p, &ack); err != nil {
		return fmt.Errorf("tell webproxy %s: %w", id, err)
	}
	if ack.Error != nil {
		return ack.Error
	}
	return nil
}

// tellCarrier starts the session on a carrier, or changes it there.
func (x *session) tellCarrier(ctx context.Context, id string, w want, revision uint64) (warm bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var ack wire.CarrierAck
	if err := x.s.cfg.Fleet.Ask(ctx, id, "PUT", wire.PathCarrierSessions+"/"+x.row.ID, x.forCarrier(w, revision), &ack); err != nil {
		return false, fmt.Errorf("tell carrier %s: %w", id, err)
	}
	if ack.Error != nil {
		return false, ack.Error
	}
	return ack.Warm, nil
}

// finish ends the session on both nodes, completes its recording and closes
// the record.
func (x *session) finish(ctx context.Context) {
	reason, text := x.live.Ended()
	x.mu.Lock()
	x.state, x.endText = Ending, text
	x.mu.Unlock()
	x.giveUp(ctx, reason)
	x.s.cfg.Log.Info("web session ends", "session", x.row.ID, "reason", string(reason))
	// A stopping core has the time its group gives; nodes end by themselves.
	ectx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	select {
	case x.order <- struct{}{}: // for good
	case <-ectx.Done():
	}
	carrier, proxy := x.pair()
	var g sync.WaitGroup
	var missing [2]bool
	g.Go(func() { missing[0] = !x.end(ectx, wire.Carrier, carrier) })
	g.Go(func() { missing[1] = !x.end(ectx, wire.WebProxy, proxy) })
	g.Wait()
	if rec := x.recording(); rec != nil {
		if err := rec.Event("session-ended", map[string]string{"reason": string(reason), "text": text}); err != nil {
			x.s.cfg.Log.Error("end of a web session not in its recording", "session", x.row.ID, "err", err)
		}
		if err := complete(rec, missing[0], missing[1]); err != nil {
			x.s.cfg.Log.Error("recording of a web session not closed", "session", x.row.ID, "err", err)
		}
	}
	x.countUnlisted(ectx, x.s.cfg.Now(), 0)
	x.close(ctx, reason, text)
}

// close writes the end down and forgets the session. A row that cannot be
// written is found by the next run of core.
func (x *session) close(ctx context.Context, reason conn.EndReason, text string) {
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	if err := x.s.writeEnd(wctx, &x.row, reason, text); err != nil {
		x.s.cfg.Log.Error("end of a web session not written", "session", x.row.ID, "err", err)
	}
	x.mu.Lock()
	x.state = Ended
	x.mu.Unlock()
	x.live.Close(reason, nil)
	x.s.mu.Lock()
	delete(x.s.sessions, x.row.ID)
	x.s.mu.Unlock()
	x.s.metrics.ended.WithLabelValues(endLabel(reason)).Inc()
	close(x.ended)
}

// complete closes a recording as what it is: a node that did not say that
// nothing is left may have had more to tell.
func complete(rec Recording, carrier, proxy bool) error {
	switch {
	case carrier:
		return rec.CloseIncomplete("the carrier did not deliver the end of the session")
	case proxy:
		return rec.CloseIncomplete("the webproxy did not deliver the end of the session")
	}
	return rec.Close()
}

// end has a node clear the session away and deliver what it has to tell of it.
// A node that is away is waited for; it ends the session by itself when its
// lease is over. It reports whether nothing is left there.
func (x *session) end(ctx context.Context, kind wire.NodeKind, id string) bool {
	if id == "" {
		return true
	}
	path := wire.PathCarrierSessions
	if kind == wire.WebProxy {
		path = wire.PathWebProxySessions
	}
	for {
		changed := x.s.cfg.Fleet.Changed()
		var ack wire.WebAck
		err := x.s.cfg.Fleet.Ask(ctx, id, "DELETE", path+"/"+x.row.ID, nil, &ack)
		if err == nil && ack.Error != nil {
			err = ack.Error
		}
		if err == nil || ctx.Err() != nil {
			if err != nil {
				x.s.cfg.Log.Warn("web session not ended on a node; it ends with its lease", "session", x.row.ID, "node", id, "err", err)
			}
			return err == nil
		}
		if !errors.Is(err, fleet.ErrOffline) {
			x.s.cfg.Log.Warn("web session not ended on a node; tried again", "session", x.row.ID, "node", id, "err", err)
		}
		wait := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-wait.C:
		}
		wait.Stop()
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

// rules are a target's rules, ready for decisions.
type rules struct {
	target *target.Target
	all    *webrule.Compiled
	// bySite are the rules that lead to another site than the target's.
	bySite map[string]*webrule.Compiled
	// never are hosts to which every request is denied.
	never *webrule.Compiled
}

// compile makes a target's rules ready.
func compile(t *target.Target) (*rules, error) {
	p := t.Web.Policy
	all, err := p.Compile(t.Web.StartURL)
	if err != nil {
		return nil, err
	}
	r := &rules{target: t, all: all, bySite: map[string]*webrule.Compiled{}}
	part := func(list []webrule.Rule) (*webrule.Compiled, error) {
		return webrule.Policy{Allow: list, Own: true}.Compile(t.Web.StartURL)
	}
	bySite := map[string][]webrule.Rule{}
	for _, a := range p.Allow {
		bySite[a.Site] = append(bySite[a.Site], a)
	}
	for site, list := range bySite {
		if r.bySite[site], err = part(list); err != nil {
			return nil, err
		}
	}
	never := slices.DeleteFunc(slices.Clone(p.Deny), func(d webrule.Rule) bool { return len(d.Methods) > 0 || d.Path != "" })
	r.never, err = part(never)
	return r, err
}

// endLabel is a reason as a metric's label.
func endLabel(r conn.EndReason) string {
	switch r {
	case conn.EndedByUser, conn.EndedByAdmin, conn.EndedByAccess, conn.EndedByIdle, conn.EndedByDuration, conn.EndedByRoute, conn.EndedByError, conn.EndedByLogin:
		return string(r)
	}
	return "other"
}

// sentence ends a text with a full stop.
func sentence(t string) string {
	for len(t) > 0 && (t[len(t)-1] == '.' || t[len(t)-1] == ' ') {
		t = t[:len(t)-1]
	}
	return t + "."
}
