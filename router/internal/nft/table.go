// Package nft keeps one nftables table equal to a set of network sessions. It
// speaks netlink itself, one transaction per change, and reads back what the
// kernel has after a crash, a failure, or a change by somebody else.
//
// Invariants: nothing is forwarded that the table's chain permit has not marked
// (the latch in the rules of routing holds also without the table); a session
// is in the kernel whole or not at all; a mark is never used again while a flow
// may carry it; the lease is renewed only while the model and the kernel are
// known to agree.
package nft

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
	"caponier/shared/wire"
)

// Errors callers branch on.
var (
	ErrLocked        = errors.New("another router works in this network namespace")
	ErrNotReconciled = errors.New("the kernel's rules are not reconciled")
)

const (
	defaultMark     = 0x10000000
	defaultPriority = 10
	// batchElems is about how many elements one transaction of a
	// reconciliation has.
	batchElems = 20_000
	// maxLease is the longest lease.
	maxLease = time.Hour
)

// Config is what a table needs.
type Config struct {
	Log *slog.Logger
	// Table is the table's name; default "caponier".
	Table string
	// Mark is the bit of the packet mark that permitted packets carry; default
	// 0x10000000. Nothing else on the machine may use it.
	Mark uint32
	// RulePriority is the first of the four ip rule priorities of the latch;
	// default 10. Rules before it may bypass the latch.
	RulePriority uint32
	// ClientInterfaces are where clients come in; none means anywhere.
	ClientInterfaces []string
	// Now is the clock; default time.Now.
	Now func() time.Time
}

func (c Config) withDefaults() (Config, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Table == "" {
		c.Table = ruleset.Table
	}
	if c.Mark == 0 {
		c.Mark = defaultMark
	}
	if c.Mark&(c.Mark-1) != 0 {
		return c, fmt.Errorf("packet mark %#x: it must be one bit", c.Mark)
	}
	if c.RulePriority == 0 {
		c.RulePriority = defaultPriority
	}
	if c.RulePriority > 32000 {
		return c, fmt.Errorf("ip rule priority %d: the latch must come before the main table (at most 32000)", c.RulePriority)
	}
	for _, name := range c.ClientInterfaces {
		if name == "" || len(name) > 15 {
			return c, fmt.Errorf("%q is not the name of a network interface", name)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// Result is what became of a change. What is not named in Failed holds in the
// kernel; what was to be removed is gone.
type Result struct {
	Failed []wire.RouterFailure
	// Ended are the last counters of what was removed, as far as it was there.
	Ended []wire.RouterCount
}

// Table is the table. Its methods may be called from several goroutines.
type Table struct {
	cfg  Config
	held net.Listener // the lock on the network namespace

	// lock guards what follows; it is held over netlink calls and therefore a
	// channel one can wait on with a context.
	lock   chan struct{}
	sock   *socket
	route  *socket
	model  *ruleset.Model // nil before the first Replace
	agreed bool           // model and kernel are the same
	stored string         // the note in the kernel about the constant part
	depth  int            // layers the kernel has
	spent  []spent
	// carried was counted before elements were made again; last is what was
	// told last, for when there is nothing left to read.
	carried, last map[string][]wire.RouterDestCount

	// leaseLock guards lease: a renewal does not wait for a long change.
	leaseLock chan struct{}
	lease     *socket
	renewable atomic.Bool

	// commits is what the kernel's generation should be.
	commits atomic.Uint32

	flows *socket // of Run

	changed chan struct{}
	wake    chan struct{}
	sweep   atomic.Bool // flows with dead marks may be around: look at all
}

// spent is a removed session whose flows are still known to the kernel.
type spent struct {
	block  ruleset.Block
	client netip.Addr
	at     time.Time
}

// Open takes the network namespace's lock, sees to the latch and, where the
// table is missing, makes it empty: nothing passes. It touches nothing of a
// table that is there; Replace does.
func Open(ctx context.Context, cfg Config) (*Table, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &Table{
		cfg: cfg, lock: make(chan struct{}, 1), leaseLock: make(chan struct{}, 1), changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		carried: map[string][]wire.RouterDestCount{}, last: map[string][]wire.RouterDestCount{},
	}
	// An abstract socket belongs to the network namespace and dies with us.
	t.held, err = new(net.ListenConfig).Listen(ctx, "unix", "@caponier-router/"+cfg.Table)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, ErrLocked
	}
	if err != nil {
		return nil, fmt.Errorf("lock the network namespace: %w", err)
	}
	if err := t.open(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Table) open() (err error) {
	if t.sock, err = openSocket(unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if t.lease, err = openSocket(unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if t.flows, err = openSocket(unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if t.route, err = openSocket(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if _, err := ensureLatch(t.route, t.cfg.RulePriority, t.cfg.Mark); err != nil {
		return err
	}
	k, _, err := layoutOf(t.sock, t.cfg.Table)
	if err != nil {
		return err
	}
	if !k.there {
		if err := t.makeTable(false, ruleset.FirstLayers); err != nil {
			return err
		}
		// Whoever removed the table left flows behind that carry our marks.
		t.sweep.Store(true)
	}
	return nil
}

// Close leaves the rules to the lease.
func (t *Table) Close() error {
	var errs []error
	for _, s := range []*socket{t.sock, t.lease, t.flows, t.route} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(append(errs, t.held.Close())...)
}

func layoutOf(s *socket, table string) (kernel, []ruleset.Set, error) {
	type both struct {
		k    kernel
		sets []ruleset.Set
	}
	b, err := dumpAgain(func() (b both, err error) {
		b.k, b.sets, err = readLayout(s, table)
		return b, err
	})
	return b.k, b.sets, err
}

func (t *Table) options(depth int) ruleset.Options {
	return ruleset.Options{Mark: t.cfg.Mark, Interfaces: len(t.cfg.ClientInterfaces) > 0, Layers: depth}
}

// makeTable makes the table anew, in one transaction; without a lease nothing
// passes yet, and packets of known flows are dropped without a word.
func (t *Table) makeTable(replace bool, depth int) error {
	r := t.sock.requests()
	r.beginBatch()
	if replace {
		r.table(unix.NFT_MSG_DELTABLE, 0, t.cfg.Table)
	}
	r.table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, t.cfg.Table)
	if err := r.layout(t.cfg.Table, ruleset.NewLayout(t.options(depth))); err != nil {
		return err
	}
	if elems := t.interfaces(); len(elems) > 0 {
		r.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, t.cfg.Table, elems)
	}
	r.endBatch()
	if err := t.sock.do(r, nil); err != nil {
		return fmt.Errorf("make table %s: %w", t.cfg.Table, err)
	}
	t.commits.Add(1)
	t.stored = ""
	return t.stamp(depth)
}

func (t *Table) interfaces() []ruleset.Elem {
	var out []ruleset.Elem
	for _, name := range t.cfg.ClientInterfaces {
		out = append(out, ruleset.InterfaceElem(name))
	}
	return out
}

// stamp remembers in the kernel how the constant part looks now, and of which
// program's making it is.
func (t *Table) stamp(depth int) error {
	k, _, err := layoutOf(t.sock, t.cfg.Table)
	if err != nil {
		return err
	}
	note := t.note(k.sum, depth)
	r := t.sock.requests()
	r.beginBatch()
	if t.stored != "" {
		r.elements(unix.NFT_MSG_DELSETELEM, 0, t.cfg.Table, []ruleset.Elem{ruleset.LayoutElem(t.stored)})
	}
	r.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, t.cfg.Table, []ruleset.Elem{ruleset.LayoutElem(note)})
	r.endBatch()
	if err := t.sock.do(r, nil); err != nil {
		return fmt.Errorf("note the layout: %w", err)
	}
	t.commits.Add(1)
	t.stored, t.depth = note, depth
	return nil
}

// note is what the kernel keeps about a constant part that shows as sum.
func (t *Table) note(sum string, depth int) string { return t.source(depth) + "." + sum }

// source sums what this program writes as the constant part.
func (t *Table) source(depth int) string {
	r := (&socket{}).requests()
	if err := r.layout(t.cfg.Table, ruleset.NewLayout(t.options(depth))); err != nil {
		return err.Error() // equal to no sum
	}
	sum := sha256.Sum256(r.buf)
	return hex.EncodeToString(sum[:16])
}

func acquire(ctx context.Context, lock chan struct{}) error {
	select {
	case lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Changed receives when somebody else changed our rules, after which the lease
// is not renewed any more: answer with Replace.
func (t *Table) Changed() <-chan struct{} { return t.changed }

// Renew lets rules hold for d from now on.
func (t *Table) Renew(ctx context.Context, d time.Duration) error {
	until := time.Now().Add(min(d, maxLease))
	if err := acquire(ctx, t.leaseLock); err != nil {
		return err
	}
	defer func() { <-t.leaseLock }()
	if !t.renewable.Load() {
		return ErrNotReconciled
	}
	ms := time.Until(until).Milliseconds()
	if ms <= 0 {
		return fmt.Errorf("renew the lease: %w", context.DeadlineExceeded)
	}
	r := t.lease.requests()
	r.beginBatch()
	r.flushSet(t.cfg.Table, ruleset.Set{Kind: ruleset.Lease})
	r.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, t.cfg.Table, ruleset.LeaseElems(uint64(ms)))
	r.endBatch()
	if err := t.lease.do(r, nil); err != nil {
		t.renewable.Store(false)
		t.signal()
		return fmt.Errorf("renew the lease: %w", err)
	}
	t.commits.Add(1)
	return nil
}

func (t *Table) signal() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// commit writes a change of the model in one transaction and hands the removed
// elements, with their last counters, to f.
func (t *Table) commit(c *ruleset.Change, f func(*element)) error {
	if c.Empty() {
		return nil
	}
	byKind := func(a, b ruleset.Elem) int {
		if a.Kind != b.Kind {
			return int(a.Kind) - int(b.Kind)
		}
		return int(a.Layer) - int(b.Layer)
	}
	r := t.sock.requests()
	r.beginBatch()
	if len(c.Delete) > 0 {
		slices.SortStableFunc(c.Delete, func(a, b ruleset.Elem) int { return byKind(b, a) })
		var flags uint16
		if f != nil {
			flags = unix.NLM_F_ECHO
		}
		for all := c.Delete; len(all) > 0; {
			n := 1
			for n < len(all) && all[n].Kind == all[0].Kind {
				n++
			}
			echo := uint16(0)
			if k := all[0].Kind; k == ruleset.Out || k == ruleset.In {
				echo = flags
			}
			r.elements(unix.NFT_MSG_DELSETELEM, echo, t.cfg.Table, all[:n])
			all = all[n:]
		}
	}
	if c.Layers > 0 {
		if err := t.grow(r, c.Layers); err != nil {
			return err
		}
	}
	slices.SortStableFunc(c.Add, byKind)
	r.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, t.cfg.Table, c.Add)
	r.endBatch()
	err := t.sock.do(r, func(m message) error {
		if f != nil && m.kind == subsys|unix.NFT_MSG_DELSETELEM {
			decodeElements(m.data, f)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("change %d elements: %w", len(c.Delete)+len(c.Add), err)
	}
	t.commits.Add(1)
	if c.Layers > 0 {
		return t.stamp(c.Layers)
	}
	return nil
}

// grow adds layers: their sets, and one rule each behind the others.
func (t *Table) grow(r *requests, depth int) error {
	have := t.depth
	l := ruleset.NewLayout(t.options(depth))
	for i, s := range l.Sets {
		if (s.Kind == ruleset.Dst4 || s.Kind == ruleset.Dst6) && int(s.Layer) >= have {
			r.set(t.cfg.Table, uint32(i+1), s)
		}
	}
	for _, c := range l.Chains {
		if !ruleset.Layered(c.Name) {
			continue
		}
		for _, rule := range c.Rules[have*ruleset.LayerRules:] {
			if err := r.rule(t.cfg.Table, c.Name, rule); err != nil {
				return err
			}
		}
	}
	return nil
}
