package user

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"caponier/core/internal/settings"
)

// limiter bounds failed logins, per user and address and per subnet. Only
// failures use up the allowance, so people and programs with the right
// password are never slowed, however many log in at once. Failures are kept in
// the database (see failures.go), so that they count on every core and outlive
// it; what is here in memory, bounded, is what is under way on this core.
type limiter struct {
	now func() time.Time

	// most bounds the buckets; a sweep makes room for a quarter of them.
	most int

	mu      sync.Mutex
	buckets map[bucketKey]*bucket // guarded by mu; at most most
}

// maxBuckets bounds the memory of a limiter: about 20 MB.
const maxBuckets = 100_000

// maxWaiters bounds logins that wait for others of the same bucket.
const maxWaiters = 256

// bucketKey is (name, address) or ("", subnet).
type bucketKey struct {
	name string
	net  netip.Prefix
}

// rate is the allowance of a bucket: burst failures, then one per every.
type rate struct {
	burst int
	every time.Duration
}

// bucket counts failures that have not been forgiven yet.
type bucket struct {
	failures float64
	at       time.Time // when failures was right
	inFlight int
	waiters  int
	changed  chan struct{} // closed when inFlight falls
	told     time.Time     // when a refusal was last to be audited
}

// limits are what the settings say now.
type limits struct {
	user, subnet rate
	allow        []netip.Prefix
}

func currentLimits(s *settings.Service) limits {
	return limits{
		user:   rate{settings.LoginBurst.Get(s), time.Minute / time.Duration(settings.LoginPerMinute.Get(s))},
		subnet: rate{settings.LoginSubnetBurst.Get(s), time.Minute / time.Duration(settings.LoginSubnetPerMinute.Get(s))},
		allow:  settings.LoginAllow.Get(s),
	}
}

// exempts reports that logins from source are not limited.
func (l *limits) exempts(source netip.Addr) bool {
	return slices.ContainsFunc(l.allow, func(p netip.Prefix) bool { return p.Contains(source) })
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, most: maxBuckets, buckets: map[bucketKey]*bucket{}}
}

// begin admits one attempt, or returns a *LimitError. While as many attempts
// are under way as could still fail, it waits for one of them to end. The
// caller calls done exactly once.
func (l *limiter) begin(ctx context.Context, lim limits, name string, source netip.Addr) (done func(failed bool), err error) {
	source = source.Unmap()
	if lim.exempts(source) {
		return func(bool) {}, nil
	}
	keys := bucketsOf(name, source)
	rates := [2]rate{lim.user, lim.subnet}
	for {
		wait, err := l.tryBegin(keys, rates)
		if err != nil {
			return nil, err
		}
		if wait == nil {
			return func(failed bool) { l.end(keys, rates, failed) }, nil
		}
		select {
		case <-wait.changed:
			l.leave(wait.key)
		case <-ctx.Done():
			l.leave(wait.key)
			return nil, context.Cause(ctx)
		}
	}
}

// waiting names the bucket that is full of attempts under way.
type waiting struct {
	key     bucketKey
	changed <-chan struct{}
}

func (l *limiter) tryBegin(keys [2]bucketKey, rates [2]rate) (*waiting, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for i, k := range keys {
		b := l.bucketLocked(k, rates[i], now)
		left := float64(rates[i].burst) - b.failures
		if left < 1 {
			first := now.Sub(b.told) >= time.Minute
			if first {
				b.told = now
			}
			return nil, &LimitError{RetryAfter: time.Duration((1 - left) * float64(rates[i].every)), first: first}
		}
		if left-float64(b.inFlight) < 1 {
			if b.waiters >= maxWaiters {
				return nil, &LimitError{RetryAfter: time.Second}
			}
			b.waiters++
			return &waiting{k, b.changed}, nil
		}
	}
	for i, k := range keys {
		l.bucketLocked(k, rates[i], now).inFlight++
	}
	return nil, nil
}

func (l *limiter) leave(k bucketKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.buckets[k]; b != nil {
		b.waiters--
	}
}

func (l *limiter) end(keys [2]bucketKey, rates [2]rate, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for i, k := range keys {
		b := l.bucketLocked(k, rates[i], now)
		b.inFlight--
		if failed {
			b.failures++
		}
		close(b.changed)
		b.changed = make(chan struct{})
		if b.idle() {
			delete(l.buckets, k)
		}
	}
}

// bucketLocked returns the bucket of k with forgiveness applied up to now.
func (l *limiter) bucketLocked(k bucketKey, r rate, now time.Time) *bucket {
	b := l.buckets[k]
	if b == nil {
		if len(l.buckets) >= l.most {
			l.sweepLocked(now)
		}
		b = &bucket{at: now, changed: make(chan struct{})}
		l.buckets[k] = b
		return b
	}
	if passed := now.Sub(b.at); passed > 0 {
		b.failures = max(0, b.failures-float64(passed)/float64(r.every))
		b.at = now
	}
	return b
}

// idle reports that forgetting the bucket changes nothing.
func (b *bucket) idle() bool { return b.failures == 0 && b.inFlight == 0 && b.waiters == 0 }

// sweepLocked makes room: the quarter of the buckets that were quiet for
// longest goes. Subnet buckets stay longer than those of single names, so that
// inventing names does not wash away the memory of where they came from.
func (l *limiter) sweepLocked(now time.Time) {
	type old struct {
		key bucketKey
		age time.Duration
	}
	var list []old
	for k, b := range l.buckets {
		if b.inFlight > 0 || b.waiters > 0 {
			continue
		}
		age := now.Sub(b.at)
		if k.name == "" {
			age /= 4
		}
		list = append(list, old{k, age})
	}
	slices.SortFunc(list, func(a, b old) int { return int(min(max(b.age-a.age, -1), 1)) })
	for _, o := range list[:min(len(list), l.most/4)] {
		delete(l.buckets, o.key)
	}
}

// prune forgets buckets whose failures are all forgiven.
func (l *limiter) prune(lim limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for k, b := range l.buckets {
		r := lim.user
		if k.name == "" {
			r = lim.subnet
		}
		if l.bucketLocked(k, r, now); b.idle() {
			delete(l.buckets, k)
		}
	}
}

// bucketsOf are the buckets of an attempt. One IPv6 host has a whole /64 to
// choose addresses from, so that counts as one address.
func bucketsOf(name string, source netip.Addr) [2]bucketKey {
	return [2]bucketKey{{name, hostOf(source)}, {"", subnetOf(source)}}
}

// hostOf is the network one host has: an IPv4 address, an IPv6 /64.
func hostOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// raise lifts the failures of an attempt's buckets to what other cores, or this
// one before it restarted, have counted.
func (l *limiter) raise(lim limits, keys [2]bucketKey, failures [2]float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for i, r := range [2]rate{lim.user, lim.subnet} {
		if failures[i] > 0 {
			b := l.bucketLocked(keys[i], r, now)
			b.failures = max(b.failures, failures[i])
		}
	}
}

// subnetOf is the network that shares an allowance: IPv4 /24, IPv6 /56.
func subnetOf(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 56
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
