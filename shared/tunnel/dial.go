package tunnel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// headStart is how long the preferred transport is alone before the other is
// tried beside it.
const headStart = 300 * time.Millisecond

// Dial opens a tunnel to a core: over the transport named in cfg, or racing
// both: the preferred one gets a head start, and the first that stands is
// kept. A transport that fails at once lets the other start at once.
func Dial(ctx context.Context, cfg DialConfig) (Session, error) {
	timeout := cfg.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case cfg.Transport == QUIC:
		return dialQUIC(ctx, cfg)
	case cfg.Transport == WSS, cfg.QUICAddr == "" && strings.HasPrefix(cfg.URL, "http:"):
		return dialWSS(ctx, cfg)
	case cfg.Transport != "":
		return nil, fmt.Errorf("dial tunnel: unknown transport %.20q", cfg.Transport)
	}
	first, second := dialQUIC, dialWSS
	if cfg.Prefer == WSS {
		first, second = dialWSS, dialQUIC
	}
	return race(ctx, cfg, first, second)
}

type dialFunc func(context.Context, DialConfig) (Session, error)

func race(ctx context.Context, cfg DialConfig, first, second dialFunc) (Session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s   Session
		err error
	}
	results := make(chan result, 2)
	try := func(dial dialFunc) {
		s, err := dial(ctx, cfg)
		results <- result{s, err}
	}
	go try(first)
	under := 1
	timer := time.NewTimer(headStart)
	defer timer.Stop()
	startSecond := func() {
		if second != nil {
			go try(second)
			second = nil
			under++
		}
	}
	var errs []error
	for under > 0 {
		select {
		case <-timer.C:
			startSecond()
		case r := <-results:
			under--
			if r.err == nil {
				cancel() // the loser gives up; if it stands already, close it
				for range under {
					if late := <-results; late.s != nil {
						_ = late.s.Close(nil)
					}
				}
				return r.s, nil
			}
			errs = append(errs, r.err)
			if !Retryable(r.err) {
				second = nil // core itself said no
			}
			startSecond()
		}
	}
	return nil, errors.Join(errs...)
}
