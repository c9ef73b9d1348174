package edge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/metrics"
	"sync"
	"time"

	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

const (
	// stable is how long a tunnel must live before the next failure starts
	// with short waits again.
	stable = 10 * time.Second
	// copies is how often in a row core may say that the identity is in use
	// elsewhere before we believe to be the copy. A tunnel that died unnoticed
	// is gone after tunnel.DeadAfter.
	copies = 4
	// helloTimeout bounds Hello and Welcome.
	helloTimeout = 15 * time.Second
)

// connect keeps a tunnel until ctx ends or core refuses for good.
func (e *Edge) connect(ctx context.Context) error {
	var b backoff
	attempt, inUse := 0, 0
	for {
		attempt++
		began := time.Now()
		err := e.once(ctx, attempt)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > stable {
			b, attempt, inUse = backoff{}, 0, 0
		}
		e.setError(err)
		if ref, ok := errors.AsType[*RefusedError](err); ok {
			switch ref.Wire.Code {
			case wire.CodeUnauthorized, wire.CodeVersion, wire.CodeBadRequest:
				return err
			case wire.CodeIdentityInUse:
				if inUse++; inUse >= copies {
					return err
				}
			}
		}
		if end := e.identity().leaf.NotAfter; e.c.Now().After(end) {
			return fmt.Errorf("connect: the node's certificate ended at %s; remove the state directory and enrol again", end.UTC().Format(time.RFC3339))
		}
		wait := b.next(err)
		if la, ok := errors.AsType[*laterError](err); ok {
			wait = la.after/2 + rand.N(la.after)
		}
		if inUse > 0 {
			wait = 1500*time.Millisecond + rand.N(time.Second)
		}
		e.log.Warn("no tunnel, trying again", "core", e.c.URL, "in", wait.Round(time.Millisecond), telemetry.KeyErr, err)
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// laterError is core asking to come back later.
type laterError struct {
	after time.Duration
	wire  *wire.Error
}

func (e *laterError) Error() string { return "core: " + e.wire.Public }
func (e *laterError) Unwrap() error { return e.wire }

func (e *Edge) identity() *identity {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.id
}

// prefer is the transport that won the last race.
func (e *Edge) prefer() tunnel.Transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.won
}

// once dials, says hello and serves until the tunnel has ended; the error says
// why it has.
func (e *Edge) once(ctx context.Context, attempt int) error {
	id := e.identity()
	s, err := e.c.Dial(ctx, tunnel.DialConfig{
		URL:       e.c.URL,
		Identity:  tunnel.Identity{Certificate: id.certificate(), Roots: id.pool},
		Transport: e.c.Transport, Prefer: e.prefer(), QUICAddr: e.c.QUICAddr, Limits: e.c.Limits, Logger: e.log,
	})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer s.Close(nil)
	w, err := e.hello(ctx, s, attempt)
	if err != nil {
		return err
	}
	if e.c.Welcomed != nil {
		if err := e.c.Welcomed(*w); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	e.mu.Lock()
	e.session, e.welcome = s, *w
	e.mu.Unlock()
	info := s.Info()
	e.mu.Lock()
	e.won = info.Transport
	e.mu.Unlock()
	e.log.Info("connected", telemetry.KeyNode, w.Name, "site", w.Site, "core", w.Core.Name, "transport", string(info.Transport), "binding", string(info.Binding))
	e.serve(ctx, s, w)
	e.mu.Lock()
	e.session = nil
	e.mu.Unlock()
	err = s.Err()
	if err == nil {
		err = errors.New("the tunnel was closed")
	}
	if ctx.Err() == nil {
		e.log.Warn("tunnel ended", "core", w.Core.Name, telemetry.KeyErr, err)
	}
	if we, ok := errors.AsType[*wire.Error](err); ok && we.Code == wire.CodeUnauthorized {
		// Said inside an authenticated tunnel: revoked.
		return &RefusedError{Doing: "connected", Wire: we}
	}
	return fmt.Errorf("tunnel to %s: %w", w.Core.Name, err)
}

func (e *Edge) hello(ctx context.Context, s tunnel.Session, attempt int) (*wire.Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	e.mu.Lock()
	last := e.lastError
	e.mu.Unlock()
	var w wire.Welcome
	err := control.Call(ctx, s, "POST", wire.PathHello, wire.Hello{Version: wire.Version, Kind: e.c.Kind, Build: e.c.Build,
		Host: e.place, Process: e.process, StartedAt: e.started.UnixMicro(), Clock: e.c.Now().UnixMicro(),
		Attempt: attempt, LastError: last, Finding: "url", Deploy: e.c.Deploy}, &w)
	if err != nil {
		// Core may have closed the tunnel with a reason instead of answering.
		if we, ok := errors.AsType[*wire.Error](s.Err()); ok {
			return nil, &RefusedError{Doing: "connect", Wire: we}
		}
		return nil, fmt.Errorf("hello: %w", err)
	}
	switch {
	case w.Error != nil && w.RetryAfterMS > 0:
		return nil, &laterError{after: min(time.Duration(w.RetryAfterMS)*time.Millisecond, 2*time.Minute), wire: w.Error}
	case w.Error != nil:
		return nil, &RefusedError{Doing: "connect", Wire: w.Error}
	case !wire.Compatible(w.Version):
		return nil, &RefusedError{Doing: "connect", Wire: wire.Errorf(wire.CodeVersion,
			"core speaks protocol version %d, this binary %d: install the same release", w.Version, wire.Version)}
	}
	return &w, nil
}

// serve hands out streams until the tunnel has ended, or ctx has and the
// grace period is over.
func (e *Edge) serve(ctx context.Context, s tunnel.Session, w *wire.Welcome) {
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { e.report(sctx, s, w) })
	wg.Go(func() { e.leave(ctx, sctx, s) })
	for {
		st, err := s.Accept(sctx)
		if err != nil {
			break
		}
		switch kind := st.Preface().Kind; {
		case kind == wire.StreamHTTP:
			if st.Confirm() == nil && !e.streams.Push(st) {
				st.Close()
			}
		case kind == wire.StreamDial && e.c.Stream != nil && ctx.Err() == nil:
			e.open.Add(1)
			e.serving.Go(func() {
				defer e.open.Add(-1)
				e.c.Stream(sctx, st)
			})
		case ctx.Err() != nil:
			st.Refuse(wire.Errorf(wire.CodeDraining, "the node is shutting down"))
		default:
			st.Refuse(wire.Errorf(wire.CodeRefused, "a node of kind %s serves no such stream", e.c.Kind))
		}
	}
	<-s.Done()
}

// leave waits for the end of ctx, tells core, and closes the tunnel when its
// streams have ended or the grace period has.
func (e *Edge) leave(ctx, sctx context.Context, s tunnel.Session) {
	select {
	case <-sctx.Done():
		return
	case <-ctx.Done():
	}
	dctx, cancel := context.WithTimeout(sctx, e.c.Grace)
	defer cancel()
	if _, err := e.sendStatus(dctx, s); err != nil {
		e.log.Debug("status", telemetry.KeyErr, err)
	}
	if e.c.Drain != nil {
		e.c.Drain(dctx)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for e.open.Load() > 0 && dctx.Err() == nil {
		select {
		case <-tick.C:
		case <-dctx.Done():
		}
	}
	s.Close(wire.Errorf(wire.CodeDraining, "the node is shutting down"))
}

// report sends the status from time to time, and renews the certificate when
// it is due.
func (e *Edge) report(ctx context.Context, s tunnel.Session, w *wire.Welcome) {
	every := time.Duration(w.StatusEveryMS) * time.Millisecond
	// Nodes enrolled together do not renew together.
	early := time.Duration(rand.Float64() * 0.1 * float64(time.Duration(w.RenewBeforeS)*time.Second))
	for first := true; ; first = false {
		every = min(max(every, 500*time.Millisecond), 10*time.Minute)
		wait := every - every/8 + rand.N(every/4)
		if first {
			wait = rand.N(min(every, 2*time.Second))
		}
		if !e.pause(ctx, wait) {
			return
		}
		r, err := e.sendStatus(ctx, s)
		if err != nil {
			if ctx.Err() == nil {
				e.log.Debug("status", telemetry.KeyErr, err)
			}
			continue
		}
		every = time.Duration(r.StatusEveryMS) * time.Millisecond
		due := e.identity().leaf.NotAfter.Add(-time.Duration(w.RenewBeforeS)*time.Second - early)
		if r.Renew || e.c.Now().After(due) {
			if err := e.renew(ctx, s); err != nil && ctx.Err() == nil {
				e.log.Warn("certificate not renewed, trying again", telemetry.KeyErr, err)
			}
		}
	}
}

// pause waits until the next status is due, or changed and not sent within the
// last half second. It returns false when ctx ended.
func (e *Edge) pause(ctx context.Context, d time.Duration) bool {
	least := min(d, 500*time.Millisecond)
	if !sleep(ctx, least) {
		return false
	}
	t := time.NewTimer(d - least)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-e.c.Changed:
	case <-t.C:
	}
	return true
}

func (e *Edge) sendStatus(ctx context.Context, s tunnel.Session) (*wire.StatusReply, error) {
	memory := []metrics.Sample{{Name: "/memory/classes/total:bytes"}} // unlike MemStats it stops nothing
	metrics.Read(memory)
	st := wire.Status{Clock: e.c.Now().UnixMicro(), Mode: wire.ModeActive, Streams: int(e.open.Load()), MemoryBytes: memory[0].Value.Uint64()}
	select {
	case <-e.drained:
		st.Mode = wire.ModeDraining
	default:
	}
	e.mu.Lock()
	st.LastError, st.CertNotAfter = e.lastError, e.id.leaf.NotAfter.Unix()
	e.mu.Unlock()
	if e.c.Status != nil {
		e.c.Status(&st)
	}
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	var r wire.StatusReply
	if err := control.Call(ctx, s, "POST", wire.PathStatus, st, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// renew gets a new certificate for the node's key. The live tunnel goes on
// with the old one; the next uses the new.
func (e *Edge) renew(ctx context.Context, s tunnel.Session) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	old := e.identity()
	csr, err := old.request()
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	var r wire.RenewResponse
	if err := control.Call(ctx, s, "POST", wire.PathRenew, wire.RenewRequest{CSR: csr}, &r); err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	id := &identity{NodeID: old.NodeID, Name: old.Name, Kind: old.Kind, Site: old.Site, Key: old.Key, Cert: r.Certificate, Roots: r.Roots}
	if err := id.parse(); err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	if err := e.store.save(id); err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	e.mu.Lock()
	e.id = id
	e.mu.Unlock()
	e.log.Info("certificate renewed", telemetry.KeyNode, id.Name, "not_after", id.leaf.NotAfter)
	return nil
}
