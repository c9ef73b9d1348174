package conn

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// topicOversight: who watches a connection or whether it is locked changed.
const topicOversight = "connection.oversight"

// Block says which new connections of the user a lock refuses.
type Block string

// The blocks.
const (
	BlockNone   Block = "none"
	BlockTarget Block = "target" // new ones to the same target
	BlockUser   Block = "user"   // all new ones
)

// Oversight is what others do to a live connection: the part its user sees.
type Oversight struct {
	// Locked: what the user sends goes nowhere; Text is why.
	Locked bool
	Text   string
	// Watchers are the names of those who watch, sorted, without the user
	// himself.
	Watchers []string
}

func (o Oversight) equal(p Oversight) bool {
	return o.Locked == p.Locked && o.Text == p.Text && slices.Equal(o.Watchers, p.Watchers)
}

// Oversight returns the present state and a channel that is closed when it
// changes.
func (l *Live) Oversight() (Oversight, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.oversight, l.overseen
}

func (l *Live) oversee(o Oversight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.oversight.equal(o) {
		return
	}
	l.oversight = o
	close(l.overseen)
	l.overseen = make(chan struct{})
}

// Order is what somebody may do to a connection of another.
type Order uint8

// The orders; the zero value may nobody.
const (
	OrderLock Order = iota + 1
	OrderUnlock
	OrderWatch
)

// MayOversee decides whether p may give an order about a connection of owner
// in an access group. Locking and unlocking need connections:manage, and nobody unlocks what locks
// himself; watching needs connections:watch. The text is for people.
func MayOversee(p *api.Principal, owner, group string, o Order) (ok bool, text string) {
	switch {
	case p == nil || owner == "":
		return false, "This is not permitted."
	case o == OrderWatch && p.Scope(api.ConnectionsWatch).Has(group):
		return true, ""
	case o == OrderWatch:
		return false, "Watching needs the permission " + string(api.ConnectionsWatch) + "."
	case o != OrderLock && o != OrderUnlock:
		return false, "This is not permitted."
	case !p.Scope(api.ConnectionsManage).Has(group):
		return false, "Locking needs the permission " + string(api.ConnectionsManage) + "."
	case p.UserID == owner:
		return false, "You cannot lock or unlock a connection of your own. Ask somebody else."
	}
	return true, ""
}

// BlockedError refuses a new connection because one of the user is locked.
type BlockedError struct{ Public string }

// Error implements error.
func (e *BlockedError) Error() string { return e.Public }

// ErrNotLockable: the kind of connection has no input that could be frozen.
var ErrNotLockable = errors.New("the connection cannot be locked")

const (
	lockSQL = `update connections set locked_at = $2, locked_by_id = $3, locked_by_name = $4, lock_text = $5, lock_block = $6
where id = $1 and locked_at = 0 and lockable and ` + liveStates

	unlockSQL = `update connections set locked_at = 0, locked_by_id = '', locked_by_name = '', lock_text = '', lock_block = ''
where id = $1 and locked_at > 0`

	lockStateSQL = `select state, lockable, locked_at from connections where id = $1`

	blockedSQL = `select target_name, lock_block, lock_text from connections where user_id = $1 and locked_at > 0
and (lock_block = 'user' or lock_block = 'target' and target_id = $2) order by locked_at limit 1`

	locksSQL = `select id, lock_text from connections where core_id = $1 and locked_at > 0 and ` + liveStates

	watchersOfCoreSQL = `select w.connection_id, w.user_name, w.user_id from connection_watchers w
join connections c on c.id = w.connection_id where c.core_id = $1 order by w.user_name`

	insertWatcherSQL  = `insert into connection_watchers (id, connection_id, user_id, user_name, core_id, since) values ($1, $2, $3, $4, $5, $6)`
	deleteWatcherSQL  = `delete from connection_watchers where id = $1`
	deleteWatchersSQL = `delete from connection_watchers where core_id = $1 and id not like $2`
	watchersSQL       = `select user_id, user_name, since from connection_watchers where connection_id = $1 order by since, id limit 100`
	eraseWatcherSQL   = `update connection_watchers set user_name = $2 where user_id = $1`
)

// blocked reports, in the transaction of a new connection, whether a lock
// refuses it.
func blocked(ctx context.Context, q db.Querier, s Spec) error {
	var name, text string
	var b Block
	err := db.Classify(q.QueryRowContext(ctx, blockedSQL, s.Principal.UserID, s.TargetID).Scan(&name, &b, &text))
	if errors.Is(err, db.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read locks of %s: %w", s.Principal.UserID, err)
	}
	public := "A connection of yours to " + name + " was locked: " + strings.TrimRight(text, ". ") + ". "
	if b == BlockTarget {
		public += "Until it is unlocked, you cannot connect to " + s.TargetName + "."
	} else {
		public += "Until it is unlocked, you cannot open new connections."
	}
	return &BlockedError{public}
}

// Lock freezes the input of a live connection, on whatever core it runs: what
// its user sends is dropped (terminal) or held back (data), output goes on.
// text is shown to the user, block says which new connections of the user are
// refused until Unlock. db.ErrNotFound: there is no such connection;
// db.ErrConflict: it has ended or is locked already; ErrNotLockable.
func (m *Manager) Lock(ctx context.Context, id string, by *api.Principal, text string, block Block) error {
	if text = cut(text, 512); text == "" {
		text = "An administrator locked the connection."
	}
	err := m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		res, err := tx.ExecContext(ctx, lockSQL, id, m.cfg.Now().UnixMicro(), by.UserID, by.UserName, text, string(block))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return lockRefused(ctx, tx, id)
		}
		return m.overseen(ctx, tx, id, audit.ConnectionLocked, by, map[string]string{"public": text, "block_new": string(block)})
	})
	if err != nil {
		return fmt.Errorf("lock connection %s: %w", id, err)
	}
	return m.readOversight(ctx)
}

func lockRefused(ctx context.Context, tx *db.Tx, id string) error {
	var s State
	var lockable bool
	var at int64
	if err := tx.QueryRowContext(ctx, lockStateSQL, id).Scan(&s, &lockable, &at); err != nil {
		return db.Classify(err)
	}
	if !s.Over() && at == 0 && !lockable {
		return ErrNotLockable
	}
	return db.ErrConflict
}

// Unlock lets input through again and lifts the block on new connections; also
// for a connection that has ended meanwhile. db.ErrConflict: it is not locked.
func (m *Manager) Unlock(ctx context.Context, id string, by *api.Principal) error {
	err := m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		res, err := tx.ExecContext(ctx, unlockSQL, id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return db.ErrConflict
		}
		return m.overseen(ctx, tx, id, audit.ConnectionUnlocked, by, nil)
	})
	if err != nil {
		return fmt.Errorf("unlock connection %s: %w", id, err)
	}
	return m.readOversight(ctx)
}

// overseen tells everybody and writes the audit event.
func (m *Manager) overseen(ctx context.Context, tx *db.Tx, id string, t audit.Type, by *api.Principal, fields map[string]string) error {
	if err := tx.Notify(ctx, topicOversight, id); err != nil {
		return err
	}
	var group string
	if err := tx.QueryRowContext(ctx, groupSQL, id).Scan(&group); err != nil {
		return db.Classify(err)
	}
	if err := api.Notify(ctx, tx, TopicConnection, id, group); err != nil {
		return err
	}
	return m.cfg.Audit.Append(ctx, tx, audit.Event{
		Type: t, Outcome: audit.OK, Actor: audit.By(by), Connection: id,
		Object: audit.Object{Kind: "connection", ID: id}, Fields: fields,
	})
}

// Watch notes that by watches a connection from now on (audited); leave notes
// the end. The caller has decided that by may.
func (m *Manager) Watch(ctx context.Context, id string, by *api.Principal) (leave func(context.Context) error, err error) {
	wid := m.watch + strings.ToLower(rand.Text())
	err = m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, insertWatcherSQL, wid, id, by.UserID, by.UserName, m.cfg.CoreID, m.cfg.Now().UnixMicro()); err != nil {
			return db.Classify(err)
		}
		return m.overseen(ctx, tx, id, audit.ConnectionWatched, by, nil)
	})
	if err != nil {
		return nil, fmt.Errorf("watch connection %s: %w", id, err)
	}
	if err := m.readOversight(ctx); err != nil {
		m.cfg.Log.Error("watchers not read; tried again shortly", "session", id, "err", err)
	}
	start := m.cfg.Now()
	return func(ctx context.Context) error {
		err := m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
			if _, err := tx.ExecContext(ctx, deleteWatcherSQL, wid); err != nil {
				return err
			}
			return m.overseen(ctx, tx, id, audit.ConnectionUnwatched, by, map[string]string{
				"seconds": fmt.Sprintf("%.0f", m.cfg.Now().Sub(start).Seconds())})
		})
		if err != nil {
			return fmt.Errorf("end watching connection %s: %w", id, err)
		}
		return m.readOversight(ctx)
	}, nil
}

// Watcher is somebody who watches a connection now.
type Watcher struct {
	UserID   string    `json:"user_id"`
	UserName string    `json:"user_name"`
	Since    time.Time `json:"since"`
}

// Watchers lists who watches a connection, on all cores.
func (m *Manager) Watchers(ctx context.Context, id string) ([]Watcher, error) {
	rows, err := m.cfg.DB.QueryContext(ctx, watchersSQL, id)
	if err != nil {
		return nil, fmt.Errorf("list watchers of %s: %w", id, err)
	}
	defer rows.Close()
	out := []Watcher{}
	for rows.Next() {
		var w Watcher
		var since int64
		if err := rows.Scan(&w.UserID, &w.UserName, &since); err != nil {
			return nil, fmt.Errorf("list watchers of %s: %w", id, err)
		}
		w.Since = db.FromMicro(since)
		out = append(out, w)
	}
	return out, rows.Err()
}

// readOversight brings the live connections of this core in step with the
// database. One reader at a time: an older state never replaces a newer one.
func (m *Manager) readOversight(ctx context.Context) error {
	select {
	case m.overseeing <- struct{}{}:
		defer func() { <-m.overseeing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, dbTimeout)
	defer cancel()
	found := map[string]Oversight{}
	err := m.eachRow(ctx, locksSQL, func(scan func(...any) error) error {
		var id, text string
		if err := scan(&id, &text); err != nil {
			return err
		}
		found[id] = Oversight{Locked: true, Text: text}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read locks: %w", err)
	}
	if m.cfg.TellWatched == nil || m.cfg.TellWatched() {
		err = m.eachRow(ctx, watchersOfCoreSQL, func(scan func(...any) error) error {
			var id, name, userID string
			if err := scan(&id, &name, &userID); err != nil {
				return err
			}
			o := found[id]
			if l := m.find(id); l != nil && l.spec.Principal.UserID != userID && !slices.Contains(o.Watchers, name) {
				o.Watchers = append(o.Watchers, name)
			}
			found[id] = o
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("read watchers: %w", err)
	}
	for _, l := range m.snapshot() {
		l.oversee(found[l.ID])
	}
	return nil
}

func (m *Manager) eachRow(ctx context.Context, query string, each func(scan func(...any) error) error) error {
	rows, err := m.cfg.DB.QueryContext(ctx, query, m.cfg.CoreID)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
