package session

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/slot"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// recover takes over what a former process left: sessions whose browser still
// runs go on, all else of this carrier is removed. It waits for Docker; false
// means that Run's context ended meanwhile.
func (m *Manager) recover() bool {
	var found []browser.Container
	for {
		ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
		list, err := m.c.Engine.List(ctx)
		cancel()
		if err == nil {
			found = list
			break
		}
		m.pool.say(err)
		pause(m.ctx, time.Second)
		if m.ctx.Err() != nil {
			return false
		}
	}
	running := map[string]browser.Container{}
	for _, c := range found {
		if c.Running {
			running[c.ID] = c
		}
	}
	old, err := m.saved()
	if err != nil {
		m.log.Error("sessions of a former process", telemetry.KeyErr, err)
	}
	for _, s := range old {
		c, ok := running[s.Container]
		if ok && c.Slot == s.Slot {
			err = m.adopt(s)
		}
		if ok && c.Slot == s.Slot && err == nil {
			m.log.Info("session taken over", telemetry.KeySession, s.Spec.ID, "slot", s.Slot)
			continue
		}
		m.log.Warn("session of a former process is lost", telemetry.KeySession, s.Spec.ID, telemetry.KeyErr, err)
		if err := m.forget(s.Spec.ID); err != nil {
			m.log.Error("session", telemetry.KeySession, s.Spec.ID, telemetry.KeyErr, err)
		}
		m.tell(wire.WebEnded{Session: s.Spec.ID, Reason: string(byError), Text: "The browser host was restarted and the browser was lost."})
	}
	m.clean(m.ctx)
	return m.ctx.Err() == nil
}

func (m *Manager) adopt(s saved) error {
	sl, err := slot.Adopt(m.slotConfig(nil, cmp.Or(s.Spec.Engine, wire.Firefox), needs(s.Spec)), s.Slot, s.Container)
	if err != nil {
		return err
	}
	if _, err = m.begin(s.Spec, sl, time.UnixMicro(s.Started), true); err != nil {
		sl.Leave()
	}
	return err
}

func (m *Manager) slotConfig(root []byte, browser string, needs slot.Needs) slot.Config {
	return slot.Config{Engine: m.c.Engine, Dir: m.c.RunDir, Root: root, Screen: m.size.next(), Browser: browser, Needs: needs, Log: m.log}
}

// sweepEvery is how often what belongs to nothing is looked for.
const sweepEvery = 30 * time.Second

// sweepSoon has sweep look now.
func (m *Manager) sweepSoon() {
	select {
	case m.sweepKick <- struct{}{}:
	default:
	}
}

func (m *Manager) sweep() {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-m.sweepKick:
			pause(m.ctx, time.Second)
		case <-m.ctx.Done():
			return
		}
		m.clean(m.ctx)
	}
}

// clean removes containers with this carrier's label and directories of slots
// that belong to no session and no place of the pool.
func (m *Manager) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// What is listed before what is known: something that is made meanwhile is
	// known but not listed.
	found, err := m.c.Engine.List(ctx)
	if err != nil {
		if _, known := errors.AsType[*browser.Problem](err); !known && ctx.Err() == nil { // the pool tells of those
			m.log.Warn("sweep", telemetry.KeyErr, err)
		}
		return
	}
	dirs, err := os.ReadDir(m.c.RunDir)
	if err != nil {
		m.log.Error("sweep", telemetry.KeyErr, err)
	}
	known := m.known()
	for _, c := range found {
		if known[c.Slot] {
			continue
		}
		m.log.Info("container of nobody removed", "slot", c.Slot)
		if err := m.c.Engine.Remove(ctx, c.ID); err != nil {
			m.log.Warn("sweep", telemetry.KeyErr, err)
		}
	}
	for _, d := range dirs {
		if d.IsDir() && slot.Named(d.Name()) && !known[d.Name()] {
			if err := os.RemoveAll(filepath.Join(m.c.RunDir, d.Name())); err != nil {
				m.log.Warn("sweep", telemetry.KeyErr, err)
			}
		}
	}
}

// known are the slots in use.
func (m *Manager) known() map[string]bool {
	known := m.pool.known()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lives {
		known[l.slot.Name] = true
	}
	return known
}
