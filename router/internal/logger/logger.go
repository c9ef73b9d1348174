// Package logger enforces nothing: it writes down what a router would do. It is
// for trying out targets and roles before a real router stands in the way.
package logger

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"caponier/router/internal/enforce"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// Backend is an enforce.Backend that only logs.
type Backend struct {
	log *slog.Logger

	mu   sync.Mutex
	held map[string]wire.RouterSession // guarded by mu
}

// New makes a Backend.
func New(log *slog.Logger) *Backend {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Backend{log: log, held: map[string]wire.RouterSession{}}
}

// Sync implements enforce.Backend.
func (b *Backend) Sync(_ context.Context, want []wire.RouterSession) (enforce.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := make(map[string]bool, len(want))
	for _, w := range want {
		keep[w.ID] = true
	}
	for id := range b.held {
		if !keep[id] {
			b.removeLocked(id)
		}
	}
	for _, w := range want {
		if had, ok := b.held[w.ID]; !ok || !had.Rules.Equal(w.Rules) {
			b.addLocked(w)
		}
	}
	return enforce.Result{}, nil
}

// Apply implements enforce.Backend.
func (b *Backend) Apply(_ context.Context, add []wire.RouterSession, remove []string) (enforce.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range remove {
		b.removeLocked(id)
	}
	for _, s := range add {
		b.addLocked(s)
	}
	return enforce.Result{}, nil
}

func (b *Backend) addLocked(s wire.RouterSession) {
	b.held[s.ID] = s
	to := make([]string, 0, min(len(s.Rules.Destinations), 20))
	for _, d := range s.Rules.Destinations[:cap(to)] {
		to = append(to, d.String())
	}
	b.log.Info("would open", telemetry.KeyConnection, s.ID, telemetry.KeyTarget, s.Target, telemetry.KeyUser, s.User,
		"client", s.Rules.Client.String(), "destinations", to, "of", len(s.Rules.Destinations), "snat", s.Rules.SNAT)
}

func (b *Backend) removeLocked(id string) {
	s, ok := b.held[id]
	if !ok {
		return
	}
	delete(b.held, id)
	b.log.Info("would close", telemetry.KeyConnection, id, telemetry.KeyTarget, s.Target, telemetry.KeyUser, s.User, "client", s.Rules.Client.String())
}

// Renew implements enforce.Backend.
func (b *Backend) Renew(context.Context, time.Duration) error { return nil }

// Counters implements enforce.Backend: nothing flows.
func (b *Backend) Counters(context.Context, []string) ([]wire.RouterCount, error) { return nil, nil }

// Check implements enforce.Backend.
func (b *Backend) Check(context.Context) error { return nil }

// Info implements enforce.Backend. Nothing outlives the process.
func (b *Backend) Info() enforce.Info { return enforce.Info{Type: "logger", Leased: true} }

// Close implements enforce.Backend.
func (b *Backend) Close() error { return nil }
