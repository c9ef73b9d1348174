package session

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/display"
	"caponier/carrier/internal/slot"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// pool keeps parked browsers. One is started at a time, at low priority.
type pool struct {
	m    *Manager
	kick chan struct{}

	mu      sync.Mutex
	parked  []*slot.Slot                  // guarded by mu; oldest first
	making  map[string]bool               // guarded by mu; slots by name, also those taken until they are a session's
	stops   map[string]context.CancelFunc // guarded by mu; of who watches the parked ones
	screens map[string]*display.Screen    // guarded by mu; of the parked ones, by name
	quiet   time.Time                     // guarded by mu; no browser is started ahead before
	root    []byte                        // guarded by mu; whom browsers trust, DER; nil until core said
	problem string                        // guarded by mu; why nothing can be started
	told    string                        // guarded by mu; what was logged of that, until it is over
	doubted bool                          // guarded by mu; the engine was away: parked browsers may have ended with it
	lacks   map[string]string             // guarded by mu; by browser, why that one cannot
	slow    map[string]bool               // guarded by mu; by browser, the last one did not come up in time
}

func newPool(m *Manager) *pool {
	return &pool{m: m, kick: make(chan struct{}, 1), making: map[string]bool{}, stops: map[string]context.CancelFunc{}, screens: map[string]*display.Screen{},
		lacks: map[string]string{}, slow: map[string]bool{}, problem: errNoRoot.Error()}
}

// refill has run look whether there is something to do.
func (p *pool) refill() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// say remembers why nothing can be started, nil that it can. What somebody must
// do something about is logged, once for as long as it lasts.
func (p *pool) say(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stateLocked(words(err))
	if err == nil {
		if p.told != "" {
			p.m.log.Info("browsers can be started again")
			p.told = ""
		}
		return
	}
	if b, ok := errors.AsType[*browser.Problem](err); ok {
		err = b // one line, whatever was being done
	}
	_, full := errors.AsType[*noRoom](err)
	if !full && !errors.Is(err, errNoRoot) && p.m.ctx.Err() == nil && p.told != err.Error() {
		p.told = err.Error()
		p.m.log.Warn("browsers cannot be started", telemetry.KeyErr, err)
	}
}

// stateLocked sets the problem, and has core told whether there is one.
func (p *pool) stateLocked(problem string) {
	turned := (p.problem == "") != (problem == "")
	p.problem = problem
	if turned {
		p.m.changed()
	}
}

// words are what people are told of an error.
func words(err error) string {
	if err == nil {
		return ""
	}
	if b, ok := errors.AsType[*browser.Problem](err); ok {
		return b.Text
	}
	if n, ok := errors.AsType[*noRoom](err); ok {
		return n.why
	}
	if errors.Is(err, errNoRoot) {
		return errNoRoot.Error()
	}
	return "browsers cannot be started"
}

// names are the browsers of this carrier, in order.
func (p *pool) names() []string { return slices.Sorted(maps.Keys(p.m.c.Warm)) }

// Times of the pool.
const (
	pageTime  = 1500 * time.Millisecond // that a session has the host for its first page
	lookEvery = 5 * time.Second
	askEvery  = 5 * time.Minute // whom browsers trust
	maxWait   = 30 * time.Second
)

// errSlow: a browser that was started did not get to wait for its user.
var errSlow = errors.New("the browser did not come up in time")

var errNoRoot = errors.New("core has not said yet whom browsers must trust")

// run keeps the pool filled.
func (p *pool) run() {
	defer p.empty()
	var asked time.Time
	wait := time.Duration(0)
	for {
		if p.m.c.Connected() && (p.rootNow() == nil || time.Since(asked) > askEvery) {
			if p.ask() {
				asked = time.Now()
			}
		}
		again := lookEvery
		if p.rootNow() == nil {
			again = 200 * time.Millisecond
		}
		err := p.fill()
		p.say(err)
		if err != nil && !errors.Is(err, errNoRoot) {
			wait = min(max(2*wait, time.Second), maxWait)
			again = wait
		} else if err == nil {
			wait = 0
		}
		t := time.NewTimer(again)
		select {
		case <-t.C:
		case <-p.kick:
			t.Stop()
			if err != nil { // others are kicked too often for a failing engine
				pause(p.m.ctx, 200*time.Millisecond)
			}
		case <-p.m.ctx.Done():
			t.Stop()
			return
		}
	}
}

func (p *pool) rootNow() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.root
}

// ask asks core whom browsers trust; parked ones that trust another are
// replaced.
func (p *pool) ask() bool {
	ctx, cancel := context.WithTimeout(p.m.ctx, 10*time.Second)
	defer cancel()
	a, err := p.m.c.Authority(ctx)
	if err != nil || len(a.Root) == 0 || len(a.Root) > 64<<10 {
		if p.m.ctx.Err() == nil {
			p.m.log.Warn("authority of browsers", telemetry.KeyErr, err)
		}
		return false
	}
	p.mu.Lock()
	var old []*slot.Slot
	if p.root != nil && !bytes.Equal(p.root, a.Root) {
		old, p.parked = p.parked, nil
	}
	p.root = a.Root
	if p.problem == errNoRoot.Error() {
		p.stateLocked("")
	}
	p.mu.Unlock()
	for _, s := range old {
		p.remove(s)
	}
	return true
}

// fill starts browsers until there are enough of each. What keeps one browser
// alone from starting is no problem of the others.
func (p *pool) fill() error {
	names := p.names()
	var errs []error
	for _, name := range names {
		err := p.fillWith(name)
		p.mu.Lock()
		same := p.lackLocked(name, words(err)) || len(names) == 1 // which say tells
		p.mu.Unlock()
		_, full := errors.AsType[*noRoom](err)
		if full || errors.Is(err, errNoRoot) || p.m.ctx.Err() != nil {
			return err
		}
		if err != nil {
			errs = append(errs, err)
			if !same {
				p.m.log.Warn("pool", "browser", name, telemetry.KeyErr, err)
			}
		}
	}
	if len(errs) == len(names) {
		return errs[0]
	}
	return nil
}

// lackLocked sets why a browser cannot be started, and has core told when that
// is another reason; it reports whether it is the same. p.mu is held.
func (p *pool) lackLocked(name, why string) (same bool) {
	same = p.lacks[name] == why
	p.lacks[name] = why
	if !same {
		p.m.changed()
	}
	return same
}

// waiting is how many of a browser are parked; p.mu is held.
func (p *pool) waiting(name string) (n int) {
	for _, s := range p.parked {
		if s.Browser() == name {
			n++
		}
	}
	return n
}

func (p *pool) fillWith(name string) error {
	for p.m.ctx.Err() == nil {
		if err := p.verify(p.m.ctx); err != nil {
			return err
		}
		p.mu.Lock()
		n, all, root := p.waiting(name), len(p.parked), p.root
		p.mu.Unlock()
		p.m.mu.Lock()
		live := p.m.countLocked()
		p.m.mu.Unlock()
		if root == nil {
			return errNoRoot
		}
		if n >= p.m.c.Warm[name] || all >= p.m.c.Max-live {
			return p.m.c.Engine.Check(p.m.ctx, name)
		}
		if fit, why := p.m.fit(); fit == 0 {
			return &noRoom{why}
		}
		if wait := p.calm(time.Now()); wait > 0 {
			pause(p.m.ctx, wait)
			continue
		}
		s, err := p.start(p.m.ctx, name, slot.Needs{})
		if err != nil {
			return err
		}
		if err := p.up(s); err != nil {
			p.remove(s)
			if p.away() { // it ended with the engine
				continue
			}
			if errors.Is(err, errSlow) && p.forgive(name) {
				p.m.log.Warn("pool", telemetry.KeyErr, err)
				return nil
			}
			return err
		}
		p.mu.Lock()
		delete(p.slow, name)
		p.mu.Unlock()
		p.park(s)
	}
	return nil
}

// up waits until a browser that was started is parked.
func (p *pool) up(s *slot.Slot) error {
	ctx, stop := context.WithTimeout(p.m.ctx, p.m.c.ParkTime)
	defer stop()
	ended := make(chan struct{})
	alive, dead := context.WithCancel(ctx)
	defer dead()
	p.m.wg.Go(func() {
		for ctx.Err() == nil {
			_, err := s.Ended(ctx)
			if err == nil {
				close(ended)
				dead()
				return
			}
			if ctx.Err() != nil { // nobody waits any more
				return
			}
			p.doubt()
			pause(ctx, time.Second)
		}
	})
	var err error
	select {
	case <-s.Door.Parked():
		if err = s.Heeds(alive); err == nil {
			return p.look(ctx, s)
		}
		if alive.Err() != nil {
			err = errSlow
		}
	case <-ended:
		err = errors.New("the browser ended before it was up")
	case <-ctx.Done():
		err = errSlow
	}
	if p.m.ctx.Err() != nil {
		return p.m.ctx.Err()
	}
	if logs := s.Logs(p.m.ctx); logs != "" {
		p.m.log.Warn("container", "log", logs)
	}
	return err
}

// start starts a container that is known to the sweep from its beginning.
func (p *pool) start(ctx context.Context, browser string, needs slot.Needs) (*slot.Slot, error) {
	root := p.rootNow()
	if root == nil {
		return nil, errNoRoot
	}
	c := p.m.slotConfig(root, browser, needs)
	var name string
	c.Named = func(n string) {
		name = n
		p.mu.Lock()
		p.making[n] = true
		p.mu.Unlock()
	}
	s, err := slot.Start(ctx, c)
	if err != nil {
		p.mu.Lock()
		delete(p.making, name)
		p.mu.Unlock()
		return nil, err
	}
	return s, nil
}

// park puts a waiting browser into the pool, and watches it.
func (p *pool) park(s *slot.Slot) {
	ctx, stop := context.WithCancel(p.m.ctx)
	p.mu.Lock()
	p.parked = append(p.parked, s)
	p.stops[s.Name] = stop
	p.lackLocked(s.Browser(), "") // it is up
	p.mu.Unlock()
	p.m.changed()
	p.m.wg.Go(func() {
		for ctx.Err() == nil {
			_, err := s.Ended(ctx)
			if ctx.Err() != nil { // it was taken
				return
			}
			if err != nil {
				p.doubt()
				pause(ctx, time.Second)
				continue
			}
			if p.drop(s) {
				p.m.changed()
				p.m.log.Warn("a parked browser ended", "slot", s.Name)
				p.remove(s)
				p.refill()
			}
			return
		}
	})
}

// doubt says that the engine was away.
func (p *pool) doubt() {
	p.mu.Lock()
	p.doubted = true
	p.mu.Unlock()
	p.refill()
}

// forgive reports whether a browser may have been slow this once. On a busy
// machine those that are started ahead come last: no reason to refuse people.
// When none comes up two times running, none will.
func (p *pool) forgive(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.slow[name]
	p.slow[name] = true
	return first
}

// away reports whether the engine was away since verify looked.
func (p *pool) away() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doubted
}

// verify drops parked browsers that ended while the engine was away, before
// anybody is given one.
func (p *pool) verify(ctx context.Context) error {
	if !p.away() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found, err := p.m.c.Engine.List(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.doubted = false
	var ended []*slot.Slot
	p.parked = slices.DeleteFunc(p.parked, func(s *slot.Slot) bool {
		if slices.ContainsFunc(found, func(c browser.Container) bool { return c.ID == s.ID && c.Running }) {
			return false
		}
		ended = append(ended, s)
		return true
	})
	p.mu.Unlock()
	if len(ended) > 0 {
		p.m.changed()
	}
	for _, s := range ended {
		p.m.log.Warn("a parked browser ended with the engine", "slot", s.Name)
		p.m.wg.Go(func() { p.remove(s) }) // somebody may wait for another one
	}
	return nil
}

// drop takes a browser out of the pool if it is still there.
func (p *pool) drop(s *slot.Slot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.parked)
	p.parked = slices.DeleteFunc(p.parked, func(o *slot.Slot) bool { return o == s })
	return len(p.parked) < n
}

// take returns the browser of that name that has waited longest, or starts
// one: a parked Chromium has nothing that it must have from its start.
func (p *pool) take(ctx context.Context, name string, needs slot.Needs) (*slot.Slot, error) {
	defer p.refill()
	if err := p.verify(ctx); err != nil {
		return nil, err
	}
	if name != wire.Chromium || needs == (slot.Needs{}) {
		p.mu.Lock()
		if i := slices.IndexFunc(p.parked, func(s *slot.Slot) bool { return s.Browser() == name }); i >= 0 {
			s := p.parked[i]
			p.parked = slices.Delete(p.parked, i, i+1)
			stop := p.stops[s.Name]
			delete(p.stops, s.Name)
			p.quiet = time.Now().Add(pageTime)
			p.mu.Unlock()
			stop()
			return s, nil
		}
		p.mu.Unlock()
	}
	return p.start(ctx, name, needs)
}

// calm is how long no browser is started ahead: somebody waits for a page, and
// starting one takes the processors for a second. Only who takes a parked one
// makes it longer, so it ends.
func (p *pool) calm(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.quiet.Sub(now))
}

// taken says that a slot is a session's, or gone: the pool need not know it.
func (p *pool) taken(s *slot.Slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.making, s.Name)
}

// remove removes a browser that is not in the pool any more.
func (p *pool) remove(s *slot.Slot) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.m.ctx), 20*time.Second)
	defer cancel()
	p.mu.Lock()
	if stop := p.stops[s.Name]; stop != nil {
		stop()
		delete(p.stops, s.Name)
	}
	p.mu.Unlock()
	p.screen(s).Close()
	if err := s.Close(ctx); err != nil {
		p.m.log.Warn("pool", telemetry.KeyErr, err)
		p.m.sweepSoon()
	}
	p.taken(s)
}

// empty removes the parked browsers at the end of the process.
func (p *pool) empty() {
	p.mu.Lock()
	parked := p.parked
	p.parked = nil
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range parked {
		wg.Go(func() { p.remove(s) })
	}
	wg.Wait()
}

// known are the slots of the pool and those on their way to a session.
func (p *pool) known() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := map[string]bool{}
	for name := range p.making {
		known[name] = true
	}
	return known
}

// capacity is what the carrier reports.
func (m *Manager) capacity() *wire.WebCapacity {
	c := &wire.WebCapacity{Max: m.c.Max}
	m.mu.Lock()
	c.Live = m.countLocked()
	m.mu.Unlock()
	m.pool.mu.Lock()
	c.Warm, c.Problem = len(m.pool.parked), m.pool.problem
	for _, name := range m.pool.names() {
		c.Engines = append(c.Engines, wire.WebEngine{Name: name, Warm: m.pool.waiting(name), Problem: m.pool.lacks[name]})
	}
	m.pool.mu.Unlock()
	fit, why := m.fit()
	if fit == 0 && c.Problem == "" {
		c.Problem = why
	}
	if c.Problem == "" || c.Warm > 0 && fit > 0 {
		c.Room = max(0, min(c.Max-c.Live, fit+c.Warm))
	}
	return c
}

// problem is why nothing can be started, or other when that is not known.
func (m *Manager) problem(other string) string {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	if m.pool.problem != "" {
		return m.pool.problem
	}
	return other
}
