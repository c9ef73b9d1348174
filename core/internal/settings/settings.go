// Package settings keeps what operators change while core runs: typed values
// with a default, limits and a meaning, stored only where they differ from the
// default. Rooms read them through a Key, from memory:
//
//	idle := settings.SessionIdle.Get(svc)
//
// A change is validated as a whole, audited with old and new value, and
// reaches every core by notification. What a core needs before it has a
// database (addresses, paths, port ranges, keys) is configuration, not a
// setting. No setting is a secret.
package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Topic is the notification topic; the note's ID is the setting's name.
const Topic = "setting"

// Definition describes a setting to people and programs.
type Definition struct {
	// Name is "section.name".
	Name        string
	Type        string // integer, duration, boolean, string, networks, names
	Description string
	Default     any
	Minimum     any      // of integer and duration
	Maximum     any      // of integer and duration
	Enum        []string // permitted strings
	// RestartRequired says that a change acts only after core was restarted.
	RestartRequired bool

	parse parser
}

// Config is what a Service needs. All fields but Log are required.
type Config struct {
	DB    *db.DB
	Audit *audit.Log
	Now   func() time.Time
	// Log hears of values in the database this build does not understand.
	Log *slog.Logger
}

// Service reads and writes settings. Safe for concurrent use.
type Service struct {
	db    *db.DB
	audit *audit.Log
	now   func() time.Time
	log   *slog.Logger
	defs  map[string]Definition

	current atomic.Pointer[snapshot]
}

// snapshot is all stored values at one moment. Never changed once stored.
type snapshot struct {
	version int64
	values  map[string]any
	raw     map[string]row
}

// New makes the service and reads all values, so that Get never waits.
func New(ctx context.Context, c Config) (*Service, error) {
	if c.DB == nil || c.Audit == nil || c.Now == nil {
		return nil, errors.New("settings: DB, Audit and Now are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{db: c.DB, audit: c.Audit, now: c.Now, log: c.Log, defs: map[string]Definition{}}
	for _, d := range All() {
		s.defs[d.Name] = d
	}
	s.current.Store(&snapshot{})
	if err := s.Reload(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// refreshEvery bounds how long a lost notification leaves a value stale.
const refreshEvery = time.Minute

// Run follows changes made on other cores until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	notes := s.db.Subscribe(ctx)
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case n, ok := <-notes:
			if !ok {
				return nil
			}
			if n.Topic != Topic && n.Topic != db.TopicResync {
				continue
			}
		}
		if err := s.Reload(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("settings keep their last values", "err", err)
		}
	}
}

// Reload reads all values from the database. A stored value that this build
// does not accept (written by another release) counts as the default.
func (s *Service) Reload(ctx context.Context) error {
	var next *snapshot
	err := s.db.View(ctx, func(tx *db.Tx) error {
		var err error
		next, err = s.read(ctx, tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	s.install(next)
	return nil
}

// install makes next current unless something newer is already.
func (s *Service) install(next *snapshot) {
	for {
		old := s.current.Load()
		if old.version > next.version || s.current.CompareAndSwap(old, next) {
			return
		}
	}
}

func (s *Service) read(ctx context.Context, q db.Querier) (*snapshot, error) {
	version, err := storedVersion(ctx, q)
	if err != nil {
		return nil, err
	}
	rows, err := storedRows(ctx, q)
	if err != nil {
		return nil, err
	}
	return s.decode(version, rows), nil
}

func (s *Service) decode(version int64, rows map[string]row) *snapshot {
	snap := &snapshot{version: version, values: map[string]any{}, raw: map[string]row{}}
	for name, r := range rows {
		d, known := s.defs[name]
		if !known {
			continue
		}
		v, err := d.parse(json.RawMessage(r.value))
		if err != nil {
			s.log.Warn("stored setting is not valid, its default counts", "setting", name, "err", err)
			continue
		}
		snap.values[name], snap.raw[name] = v, r
	}
	return snap
}

// Change sets the named settings, all or none; a null value goes back to the
// default. version is the one the caller has seen (0 = any). Bad values are an
// *api.Problem that names each. restart reports that one of the changed
// settings acts only after a restart.
func (s *Service) Change(ctx context.Context, by audit.Actor, version int64, values map[string]json.RawMessage) (restart bool, err error) {
	if err := s.check(values); err != nil {
		return false, err
	}
	var next *snapshot
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		restart = false
		if err := tx.Lock(ctx, "settings"); err != nil {
			return err
		}
		old, err := s.read(ctx, tx)
		if err != nil {
			return err
		}
		if version != 0 && version != old.version {
			return fmt.Errorf("settings changed since version %d: %w", version, db.ErrConflict)
		}
		rows := maps.Clone(old.raw)
		for _, name := range slices.Sorted(maps.Keys(values)) {
			changed, err := s.changeOne(ctx, tx, by, old, rows, name, values[name])
			if err != nil {
				return err
			}
			restart = restart || changed && s.defs[name].RestartRequired
		}
		if err := storeVersion(ctx, tx, old.version+1); err != nil {
			return err
		}
		next = s.decode(old.version+1, rows)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("change settings: %w", err)
	}
	s.install(next)
	return restart, nil
}

// check reports every bad name and value at once.
func (s *Service) check(values map[string]json.RawMessage) error {
	var bad []api.FieldError
	for _, name := range slices.Sorted(maps.Keys(values)) {
		d, known := s.defs[name]
		if !known {
			bad = append(bad, api.FieldError{Field: "values." + name, Message: "there is no such setting; see GET /settings/schema"})
			continue
		}
		if isNull(values[name]) {
			continue
		}
		if _, err := d.parse(values[name]); err != nil {
			bad = append(bad, api.FieldError{Field: "values." + name, Message: err.Error()})
		}
	}
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

func (s *Service) changeOne(ctx context.Context, tx *db.Tx, by audit.Actor, old *snapshot, rows map[string]row, name string, raw json.RawMessage) (bool, error) {
	before := s.text(old, name)
	var after string
	if isNull(raw) {
		delete(rows, name)
		after = s.text(&snapshot{}, name)
		if err := deleteRow(ctx, tx, name); err != nil {
			return false, err
		}
	} else {
		v, err := compact(raw)
		if err != nil {
			return false, fmt.Errorf("setting %s: %w", name, err)
		}
		r := row{value: v, changedAt: s.now().UnixMicro(), changedBy: by.ID}
		rows[name], after = r, v
		if err := storeRow(ctx, tx, name, r); err != nil {
			return false, err
		}
	}
	if before == after {
		return false, nil
	}
	if err := tx.Notify(ctx, Topic, name); err != nil {
		return false, err
	}
	return true, s.audit.Append(ctx, tx, audit.Event{
		Type: audit.SettingChanged, Outcome: audit.OK, Actor: by,
		Object: audit.Object{Kind: "setting", ID: name, Name: name},
		Fields: map[string]string{"old": before, "new": after, "restart": strconv.FormatBool(s.defs[name].RestartRequired)},
	})
}

// text is the setting's value in snap as compact JSON.
func (s *Service) text(snap *snapshot, name string) string {
	if r, ok := snap.raw[name]; ok {
		return r.value
	}
	b, err := json.Marshal(s.defs[name].Default)
	if err != nil {
		return ""
	}
	return string(b)
}
