package fleet

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// admission lets tunnels in at a pace core can stand: when a herd returns at
// once, some wait a moment, and the rest is told when to come back.
type admission struct {
	limiter *rate.Limiter
	slots   chan struct{} // handshakes running
	waiting atomic.Int64
	rate    float64
}

const (
	// handshakes is how many run at once. Their pace is the limiter's; this
	// bounds the memory of those that do not go on, of which anybody can start
	// as many as their time-out lasts: it must take a flood to fill it.
	handshakes = 2048
	// maxWaiting bounds those that wait for their turn.
	maxWaiting = 1024
	// maxWait is how long one waits.
	maxWait = 5 * time.Second
)

func newAdmission(perSecond float64) *admission {
	return &admission{
		limiter: rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond/4))),
		slots:   make(chan struct{}, handshakes),
		rate:    perSecond,
	}
}

// enter waits for a turn. With ok the caller must call leave; without, it
// should come back after retry.
func (a *admission) enter(ctx context.Context) (retry time.Duration, ok bool) {
	n := a.waiting.Add(1)
	defer a.waiting.Add(-1)
	if n > maxWaiting {
		return a.later(n), false
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	if a.limiter.Wait(ctx) != nil {
		return a.later(n), false
	}
	select {
	case a.slots <- struct{}{}:
		return 0, true
	case <-ctx.Done():
		return a.later(n), false
	}
}

func (a *admission) leave() { <-a.slots }

// later spreads n comers over the time the queue needs, and as much again.
func (a *admission) later(n int64) time.Duration {
	base := time.Duration(float64(n) / a.rate * float64(time.Second))
	return time.Second + base + time.Duration(rand.Int64N(int64(base)+int64(2*time.Second)))
}
