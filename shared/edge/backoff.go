package edge

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"time"

	"caponier/shared/tunnel"
)

const (
	// firstWait is the bound of the first wait; it doubles.
	firstWait = 300 * time.Millisecond
	// quickCap bounds the wait while failing is cheap for core (nobody
	// listens, or a load balancer says that there is nobody).
	quickCap = 4 * time.Second
	// resetCap bounds it while somebody listens and hangs up: a core that has
	// too many handshakes to make.
	resetCap = 10 * time.Second
	// slowCap bounds it otherwise: a core that does not answer in time may be
	// overwhelmed.
	slowCap = 30 * time.Second
	// refusedCap is for a refusal that may be forged (it came before core had
	// proven itself) or needs a person.
	refusedCap = time.Minute
)

// backoff is exponential with full jitter. The zero value is fresh.
type backoff struct{ n int }

// next returns how long to wait after err.
func (b *backoff) next(err error) time.Duration {
	limit := slowCap
	ref, refused := errors.AsType[*tunnel.RefusedError](err)
	switch {
	case refused && ref.RetryAfter > 0:
		// Core's word, spread by half so that a herd does not stay together.
		b.n++
		at := min(ref.RetryAfter, 2*time.Minute)
		return at/2 + rand.N(at)
	case refused && ref.Wire != nil && !tunnel.Retryable(err):
		limit = refusedCap
	case refused, errors.Is(err, syscall.ECONNREFUSED):
		limit = quickCap
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		limit = resetCap
	}
	bound := firstWait << min(b.n, 12)
	b.n++
	return rand.N(min(bound, limit)) + 10*time.Millisecond
}

// sleep waits; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
