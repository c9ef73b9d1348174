package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/room"
	"caponier/carrier/internal/slot"
	"caponier/e2e/harness"
	"caponier/shared/wire"
)

// sleepers is an engine whose containers run and do nothing.
type sleepers struct{ started atomic.Int32 }

func (e *sleepers) Start(context.Context, browser.Spec) (string, error) {
	return fmt.Sprintf("container-%d", e.started.Add(1)), nil
}
func (e *sleepers) Raise(context.Context, string) error  { return nil }
func (e *sleepers) Remove(context.Context, string) error { return nil }
func (e *sleepers) Inspect(_ context.Context, id string) (browser.Container, bool, error) {
	return browser.Container{ID: id, Running: true}, true, nil
}
func (e *sleepers) Ended(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}
func (e *sleepers) Logs(context.Context, string) string               { return "" }
func (e *sleepers) Check(context.Context, string) error               { return nil }
func (e *sleepers) List(context.Context) ([]browser.Container, error) { return nil, nil }
func (e *sleepers) Starved(ctx context.Context, _ time.Time, _ func(id string)) error {
	<-ctx.Done()
	return ctx.Err()
}

// asleep is a manager of sleepers; nothing runs yet.
func asleep(t *testing.T, e *sleepers, changed func()) *Manager {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "capc") // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m, err := New(Config{Engine: e, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), Warm: map[string]int{wire.Firefox: 1}, Max: 5,
		Room: room.Limits{Session: 1}, ParkTime: 200 * time.Millisecond, Connected: func() bool { return true }, Changed: changed,
		Authority: func(context.Context) (wire.WebAuthority, error) { return wire.WebAuthority{Root: []byte("root")}, nil }, Log: slogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Core hears at once of a browser that waits, and no more of what kept it from
// being started.
func TestParkedIsTold(t *testing.T) {
	told := 0
	m := asleep(t, &sleepers{}, func() { told++ })
	m.pool.root, m.pool.problem, m.pool.lacks[wire.Firefox] = []byte("root"), "", errNoRoot.Error()
	s, err := m.pool.start(t.Context(), wire.Firefox, slot.Needs{})
	if err != nil {
		t.Fatal(err)
	}
	m.pool.park(s)
	c := m.Capacity()
	if e, _ := c.Engine(wire.Firefox); told == 0 || c.Warm != 1 || c.Problem != "" || e.Warm != 1 || e.Problem != "" {
		t.Errorf("core was told %d times of %+v", told, c)
	}
	m.stop()
	m.pool.empty()
	m.wg.Wait()
}

// A browser that does not come up in time is no reason to refuse people; two of
// them running are.
func TestSlowBrowsers(t *testing.T) {
	var e sleepers
	m := asleep(t, &e, nil)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	if err := harness.Until(t.Context(), time.Minute, "it says that none comes up", func() error {
		c, n := m.Capacity(), e.started.Load()
		switch {
		case c.Problem == "" || c.Problem == errNoRoot.Error():
			return fmt.Errorf("it says %+v at browser %d", c, n)
		case n < 2:
			return fmt.Errorf("%w: after one slow browser it says %+v", harness.ErrGone, c)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A session that is there before it has all that it needs is one, not two: it
// takes nobody else's place.
func TestSessionsCountOnce(t *testing.T) {
	m := asleep(t, &sleepers{}, nil)
	for i := range m.c.Max - 1 {
		m.lives[fmt.Sprint("con_", i)] = &live{}
	}
	m.opening["con_0"], m.opening["con_new"] = make(chan struct{}), make(chan struct{})
	if c := m.Capacity(); c.Live != m.c.Max {
		t.Errorf("%d sessions, want %d", c.Live, m.c.Max)
	}
	delete(m.opening, "con_new")
	if c := m.Capacity(); c.Live != m.c.Max-1 {
		t.Errorf("%d sessions, want %d", c.Live, m.c.Max-1)
	}
}
