// Package session is the carrier's work: browser sessions that core asks for,
// each in a container of its own that is taken from a pool of parked ones.
//
// # Invariants
//
//   - A container serves one session and is removed with it; what is found with
//     this carrier's label and belongs to nothing is removed too, and nothing
//     else is touched.
//   - A session lives while core wants it, its browser runs, it is in use and
//     within its time; without a tunnel to core for as long as its lease says.
//   - What a session is, is on disk before its browser learns where to go: a
//     carrier that was killed takes its sessions over when it starts again.
//   - Nothing is started when memory is short: sessions that run go first.
package session

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/files"
	"caponier/carrier/internal/room"
	"caponier/carrier/internal/slot"
	"caponier/shared/control"
	"caponier/shared/spool"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Engine is what a Manager needs of Docker; *browser.Engine is one.
type Engine interface {
	slot.Engine
	Check(ctx context.Context, browser string) error
	List(ctx context.Context) ([]browser.Container, error)
	Starved(ctx context.Context, since time.Time, tell func(id string)) error
}

// Config is what a Manager needs.
type Config struct {
	Engine Engine
	// RunDir holds the slots' sockets, StateDir the sessions' files; both are
	// made with mode 0700.
	RunDir, StateDir string
	// Warm is how many parked browsers are kept, by the browser (wire.Firefox,
	// wire.Chromium); what is not in it is not offered.
	Warm map[string]int
	// Max is how many sessions there may be.
	Max  int
	Room room.Limits
	// Machine is the file system from / on, for memory; nil: this machine's.
	Machine fs.FS
	// ParkTime is how long a browser that is started ahead may take until it
	// waits; 0: 3 minutes. It has little of a busy machine.
	ParkTime time.Duration
	// Spool bounds the undelivered records of one session, in bytes; 0: 64 MiB.
	Spool int64

	// Credentials are this node's identity towards webproxies.
	Credentials func() (tls.Certificate, *x509.CertPool, error)
	// Connected reports whether there is a tunnel to core.
	Connected func() bool
	// Changed is called when there are more or fewer sessions or parked
	// browsers, and when what keeps browsers from being started comes or goes:
	// core chooses carriers by it. It must not block. May be nil.
	Changed func()
	// Authority asks core whom browsers must trust.
	Authority func(ctx context.Context) (wire.WebAuthority, error)
	// Post delivers records (see spool), Ended tells core of a session that
	// ended by itself.
	Post  func(ctx context.Context, session string, batch spool.Batch) (wire.WebRecordsAck, error)
	Ended func(ctx context.Context, e wire.WebEnded) error
	Scan  files.Scanner
	// ScanSpace bounds the files of all sessions that wait in RunDir while they
	// are scanned, in bytes; 0: 2 GiB.
	ScanSpace int64

	Log *slog.Logger     // nil: discard
	Now func() time.Time // nil: time.Now
}

// defaultScanSpace is where Config.ScanSpace says nothing, in bytes.
const defaultScanSpace = 2 << 30

// Manager has the sessions of this carrier. Safe for concurrent use.
type Manager struct {
	c   Config
	log *slog.Logger

	ctx  context.Context // ends with Run
	stop context.CancelFunc
	wg   sync.WaitGroup
	www  *fileServer
	scan *files.Space
	pool *pool
	size size // of screens

	sweepKick chan struct{}
	tellKick  chan struct{}
	adopted   chan struct{} // closed when sessions of a former process are known

	mu       sync.Mutex
	lives    map[string]*live         // guarded by mu
	opening  map[string]chan struct{} // guarded by mu; sessions being made
	ends     []wire.WebEnded          // guarded by mu; core does not know of them yet
	tails    map[string]*tail         // guarded by mu; records delivered after the end
	stopping bool                     // guarded by mu

	warm, cold, refused, failed, ended atomic.Uint64
}

// maxEnds bounds the ends that core was not told of; the oldest go first, core
// finds them by reconciling.
const maxEnds = 1000

// New makes a Manager and its directories.
func New(c Config) (*Manager, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.ParkTime == 0 {
		c.ParkTime = 3 * time.Minute
	}
	if c.Machine == nil {
		c.Machine = os.DirFS("/")
	}
	if c.Max < 1 || len(c.Warm) == 0 {
		return nil, errors.New("session: at least one session and one browser must be allowed")
	}
	for _, dir := range []string{c.RunDir, c.StateDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("session: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("session: %w", err)
		}
	}
	m := &Manager{c: c, log: c.Log, lives: map[string]*live{}, opening: map[string]chan struct{}{}, tails: map[string]*tail{},
		sweepKick: make(chan struct{}, 1), tellKick: make(chan struct{}, 1), adopted: make(chan struct{})}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.www = newFileServer(m)
	m.scan = files.NewSpace(c.RunDir, cmp.Or(c.ScanSpace, defaultScanSpace))
	m.pool = newPool(m)
	return m, nil
}

// Run takes over the sessions of a former process, keeps the pool filled and
// serves until ctx ends. Sessions then go on without this process; the next one
// takes them over.
func (m *Manager) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, m.stop)()
	m.wg.Go(m.www.run)
	m.wg.Go(func() {
		if !m.recover() {
			return
		}
		close(m.adopted)
		m.wg.Go(m.sweep)
		m.wg.Go(m.starved)
		m.pool.run()
	})
	m.wg.Go(m.deliverEnds)
	<-ctx.Done()
	m.leave()
	m.wg.Wait()
	return nil
}

// leave gives everything back but containers of sessions.
func (m *Manager) leave() {
	m.mu.Lock()
	m.stopping = true
	lives := make([]*live, 0, len(m.lives))
	for _, l := range m.lives {
		lives = append(lives, l)
	}
	tails := slices.Collect(maps.Values(m.tails))
	m.mu.Unlock()
	m.www.close()
	for _, rest := range tails {
		rest.stop()
	}
	var wg sync.WaitGroup
	for _, l := range lives {
		wg.Go(l.leave)
	}
	wg.Wait()
}

// leave stops what this process does for a session, after its records went out.
func (l *live) leave() {
	l.mu.Lock()
	ending := l.ending
	l.mu.Unlock()
	if ending {
		<-l.done
		return
	}
	l.cancel()
	l.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	if err := l.spool.Flush(ctx); err != nil {
		l.log.Warn("last records", telemetry.KeyErr, err)
	}
	l.records()
	l.mu.Lock()
	proxy := l.proxy
	l.mu.Unlock()
	proxy.Close()
	l.files.Close()
	l.slot.Leave()
}

// put makes or changes a session.
func (m *Manager) put(ctx context.Context, spec wire.CarrierSession) wire.CarrierAck {
	fail := func(code wire.Code, format string, args ...any) wire.CarrierAck {
		m.refused.Add(1)
		return wire.CarrierAck{Error: wire.Errorf(code, format, args...)}
	}
	spec.Engine = cmp.Or(spec.Engine, wire.Firefox)
	if err := check(spec); err != nil {
		return fail(wire.CodeBadRequest, "%v", err)
	}
	if _, ok := m.c.Warm[spec.Engine]; !ok {
		return fail(wire.CodeLimit, "The browser host has no %s.", spec.Engine)
	}
	select {
	case <-m.adopted:
	case <-ctx.Done():
		return fail(wire.CodeLimit, "The browser host is starting: %s.", m.problem("Docker does not answer"))
	}
	for {
		m.mu.Lock()
		if l := m.lives[spec.ID]; l != nil {
			m.mu.Unlock()
			if err := l.update(spec); err != nil {
				m.log.Error("change session", telemetry.KeySession, spec.ID, telemetry.KeyErr, err)
				return fail(wire.CodeInternal, "The session could not be changed.")
			}
			return wire.CarrierAck{Revision: l.revision()}
		}
		if other := m.opening[spec.ID]; other != nil {
			m.mu.Unlock()
			select {
			case <-other:
				continue
			case <-ctx.Done():
				return fail(wire.CodeTimeout, "The browser is still starting.")
			}
		}
		if _, over := m.overLocked()[spec.ID]; over {
			m.mu.Unlock()
			return fail(wire.CodeRefused, "The session has ended.")
		}
		if m.stopping {
			m.mu.Unlock()
			return fail(wire.CodeDraining, "The browser host is shutting down.")
		}
		if m.countLocked() >= m.c.Max {
			m.mu.Unlock()
			return fail(wire.CodeLimit, "The browser host has all the sessions it takes (%d).", m.c.Max)
		}
		made := make(chan struct{})
		m.opening[spec.ID] = made
		m.mu.Unlock()
		m.changed() // while it starts it counts
		l, warm, err := m.open(ctx, spec)
		m.mu.Lock()
		delete(m.opening, spec.ID)
		m.mu.Unlock()
		m.changed()
		if err == nil {
			m.pool.taken(l.slot)
		}
		close(made)
		if err != nil {
			if errors.Is(err, errStopping) {
				return fail(wire.CodeDraining, "The browser host is shutting down.")
			}
			m.failed.Add(1)
			m.log.Warn("open session", telemetry.KeySession, spec.ID, telemetry.KeyErr, err)
			if p, ok := errors.AsType[*browser.Problem](err); ok {
				return fail(wire.CodeLimit, "The browser host cannot start browsers: %s.", p.Text)
			}
			if p, ok := errors.AsType[*noRoom](err); ok {
				return fail(wire.CodeLimit, "The browser host has no room: %s.", p.why)
			}
			return fail(wire.CodeInternal, "The browser could not be started.")
		}
		if warm {
			m.warm.Add(1)
		} else {
			m.cold.Add(1)
		}
		m.log.Info("session", telemetry.KeySession, spec.ID, telemetry.KeyUser, spec.User, telemetry.KeyTarget, spec.Target, "warm", warm, "slot", l.slot.Name)
		return wire.CarrierAck{Revision: spec.Revision, Warm: warm}
	}
}

// countLocked is how many sessions there are and are being made; one that waits
// for its sound is both. m.mu is held.
func (m *Manager) countLocked() int {
	n := len(m.lives)
	for id := range m.opening {
		if m.lives[id] == nil {
			n++
		}
	}
	return n
}

// changed says that core is to hear how full this carrier is.
func (m *Manager) changed() {
	if m.c.Changed != nil {
		m.c.Changed()
	}
}

// noRoom says why nothing is started.
type noRoom struct{ why string }

func (n *noRoom) Error() string { return n.why }

// fit is how many more browsers fit now.
func (m *Manager) fit() (int, string) {
	s, err := room.Read(m.c.Machine)
	if err != nil {
		return 0, err.Error()
	}
	return m.c.Room.Fit(s)
}

// open takes a parked browser, or starts one.
func (m *Manager) open(ctx context.Context, spec wire.CarrierSession) (_ *live, warm bool, err error) {
	if n, why := m.fit(); n == 0 {
		return nil, false, &noRoom{why}
	}
	m.size.asked(spec.Width, spec.Height) // before the pool makes the next one
	sl, err := m.pool.take(ctx, spec.Engine, needs(spec))
	if err != nil {
		return nil, false, err
	}
	select {
	case <-sl.Door.Parked():
		warm = true
	default:
	}
	started := m.c.Now()
	if err = m.write(saved{Spec: spec, Slot: sl.Name, Container: sl.ID, Started: started.UnixMicro()}); err == nil {
		var l *live
		if l, err = m.begin(spec, sl, started, false); err == nil {
			return l, warm, nil
		}
	}
	err = errors.Join(err, m.forget(spec.ID))
	m.pool.remove(sl)
	return nil, false, err
}

// needs are what a session's browser must have from its start: bars, when its
// window shows some now and then at least, and developer tools.
func needs(s wire.CarrierSession) slot.Needs {
	return slot.Needs{Bars: s.Policy.Mode == "bar" || s.Policy.Mode == "auto", Tools: s.Policy.DevTools}
}

// check refuses what cannot be a session.
func check(s wire.CarrierSession) error {
	host, port, err := net.SplitHostPort(s.Proxy.Address)
	switch {
	case !named(s.ID):
		return errors.New("the session's ID is malformed")
	case !strings.HasPrefix(s.StartURL, "http://") && !strings.HasPrefix(s.StartURL, "https://"), strings.ContainsAny(s.StartURL, " \r\n\t\"<>"), len(s.StartURL) > 8<<10:
		return errors.New("the start URL is malformed")
	case err != nil, host == "", port == "", s.Proxy.NodeID == "":
		return errors.New("the webproxy's address is malformed")
	case strings.ContainsAny(s.Proxy.Key, " \r\n") || len(s.Proxy.Key) < 16 || len(s.Proxy.Key) > 128:
		return errors.New("the session's key is malformed")
	case len(s.Policy.Watermark) > 16:
		return errors.New("the watermark has too many lines")
	case s.Engine != "" && s.Engine != wire.Firefox && s.Engine != wire.Chromium:
		return errors.New("the browser is unknown")
	case len(s.TimeZone) > 64:
		return errors.New("the time zone is malformed")
	}
	return nil
}

// named reports whether id can name a file.
func named(id string) bool {
	return id != "" && len(id) <= wire.MaxConnection && strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

func (l *live) revision() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spec.Revision
}

// end begins a session's end; kind "" is not told to core. It does not wait.
func (m *Manager) end(l *live, kind reason, text, detail string) {
	m.mu.Lock()
	l.mu.Lock()
	begun := l.ending
	l.ending = l.ending || !m.stopping // the next process looks again
	mine := l.ending && !begun
	l.mu.Unlock()
	m.mu.Unlock()
	if !mine {
		return
	}
	m.wg.Go(func() {
		l.finish(kind, text, detail)
		m.ended.Add(1)
		m.mu.Lock()
		delete(m.lives, l.id)
		m.mu.Unlock()
		if err := m.forget(l.id); err != nil {
			m.log.Error("session", telemetry.KeySession, l.id, telemetry.KeyErr, err)
		}
		m.changed()
		close(l.done) // its file is gone too: who waits for the end finds nothing
		m.pool.refill()
	})
}

// delete ends a session and waits until nothing of it is left.
func (m *Manager) delete(ctx context.Context, id string) error {
	m.mu.Lock()
	l, opening := m.lives[id], m.opening[id]
	m.mu.Unlock()
	if opening != nil {
		select {
		case <-opening:
			return m.delete(ctx, id)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if l != nil {
		m.end(l, "", "", "core asked")
		select {
		case <-l.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	rest := m.tails[id]
	m.mu.Unlock()
	if rest == nil {
		return nil
	}
	select {
	case <-rest.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tail is the delivery of what a session that has ended still had to tell.
type tail struct {
	stop context.CancelFunc
	ends bool          // core is told of the end after it
	over chan struct{} // closed when it is delivered, or never will be
}

// follow goes on delivering the records of a session that has ended, then tells
// core of the end.
func (m *Manager) follow(l *live, kind reason, text string) {
	ctx, stop := context.WithTimeout(m.ctx, tailTime)
	rest := &tail{stop, kind != "", make(chan struct{})}
	m.mu.Lock()
	m.tails[l.id] = rest
	m.mu.Unlock()
	m.wg.Go(func() {
		defer stop()
		defer close(rest.over)
		if err := l.spool.Flush(ctx); err != nil && !errors.Is(err, context.Canceled) {
			l.log.Warn("records of an ended session", telemetry.KeyErr, err)
		}
		l.records()
		if kind != "" {
			m.tell(wire.WebEnded{Session: l.id, Reason: string(kind), Text: text})
		}
		m.mu.Lock()
		delete(m.tails, l.id) // after tell: states has it all the time
		m.mu.Unlock()
	})
}

// leaveTime bounds the delivery of records when the process ends.
const leaveTime = 2 * time.Second

// tailTime bounds how long records of an ended session are kept.
const tailTime = 10 * time.Minute

// tell tells core of an end, now or when it can be reached.
func (m *Manager) tell(e wire.WebEnded) {
	m.mu.Lock()
	if len(m.ends) >= maxEnds {
		m.ends = m.ends[1:]
	}
	m.ends = append(m.ends, e)
	m.mu.Unlock()
	select {
	case m.tellKick <- struct{}{}:
	default:
	}
}

func (m *Manager) deliverEnds() {
	for {
		m.mu.Lock()
		var e wire.WebEnded
		n := len(m.ends)
		if n > 0 {
			e = m.ends[0]
		}
		m.mu.Unlock()
		if n == 0 {
			select {
			case <-m.tellKick:
				continue
			case <-m.ctx.Done():
				return
			}
		}
		ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
		err := m.c.Ended(ctx, e)
		cancel()
		if m.ctx.Err() != nil {
			return
		}
		var answered *control.StatusError
		if err != nil && (!errors.As(err, &answered) || answered.Status >= 500) {
			pause(m.ctx, 500*time.Millisecond)
			continue
		}
		if err != nil { // core does not know it: nothing to tell
			m.log.Debug("end of session", telemetry.KeySession, e.Session, telemetry.KeyErr, err)
		}
		m.mu.Lock()
		if len(m.ends) > 0 && m.ends[0] == e {
			m.ends = m.ends[1:]
		}
		m.mu.Unlock()
	}
}

// overLocked are the sessions that have ended and of which core does not know
// yet; m.mu is held.
func (m *Manager) overLocked() map[string]wire.WebState {
	over := map[string]wire.WebState{}
	for _, e := range m.ends {
		over[e.Session] = wire.WebState{ID: e.Session, Ending: true}
	}
	for id, rest := range m.tails {
		if rest.ends {
			over[id] = wire.WebState{ID: id, Ending: true}
		}
	}
	return over
}

// states lists the sessions, those too of whose end core is still to be told.
func (m *Manager) states() wire.WebStates {
	m.mu.Lock()
	all := m.overLocked()
	lives := slices.Collect(maps.Values(m.lives))
	m.mu.Unlock()
	for _, l := range lives {
		l.mu.Lock()
		all[l.id] = wire.WebState{ID: l.id, Revision: l.spec.Revision, Ending: l.ending}
		l.mu.Unlock()
	}
	out := wire.WebStates{Sessions: slices.AppendSeq([]wire.WebState{}, maps.Values(all))}
	slices.SortFunc(out.Sessions, func(a, b wire.WebState) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// find returns a session that has not begun to end.
func (m *Manager) find(id string) *live {
	m.mu.Lock()
	l := m.lives[id]
	m.mu.Unlock()
	if l == nil || l.ctx.Err() != nil {
		return nil
	}
	return l
}

// stream is what viewers and files come in on.
type stream = tunnel.Stream
