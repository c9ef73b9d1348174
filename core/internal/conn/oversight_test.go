package conn

import (
	"errors"
	"sync/atomic"
	"testing"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func TestMayOversee(t *testing.T) {
	who := func(id string, perms ...api.Permission) *api.Principal {
		p := &api.Principal{UserID: id, Permissions: map[api.Permission]bool{}}
		for _, x := range perms {
			p.Permissions[x] = true
		}
		return p
	}
	for _, c := range []struct {
		name  string
		p     *api.Principal
		owner string
		order Order
		want  bool
	}{
		{"nobody", nil, "usr_a", OrderWatch, false},
		{"no order", who("usr_b", api.ConnectionsManage, api.ConnectionsWatch), "usr_a", 0, false},
		{"no owner", who("usr_b", api.ConnectionsManage), "", OrderLock, false},
		{"lock with manage", who("usr_b", api.ConnectionsManage), "usr_a", OrderLock, true},
		{"unlock with manage", who("usr_b", api.ConnectionsManage), "usr_a", OrderUnlock, true},
		{"lock with view", who("usr_b", api.ConnectionsView), "usr_a", OrderLock, false},
		{"lock one's own", who("usr_a", api.ConnectionsManage), "usr_a", OrderLock, false},
		{"unlock oneself", who("usr_a", api.ConnectionsManage), "usr_a", OrderUnlock, false},
		{"watch", who("usr_b", api.ConnectionsWatch), "usr_a", OrderWatch, true},
		{"watch with manage only", who("usr_b", api.ConnectionsManage), "usr_a", OrderWatch, false},
		{"watch one's own without the permission", who("usr_a"), "usr_a", OrderWatch, false},
		{"unknown order", who("usr_b", api.ConnectionsManage, api.ConnectionsWatch), "usr_a", 99, false},
	} {
		if got, text := MayOversee(c.p, c.owner, "grp_a", c.order); got != c.want || !got && text == "" {
			t.Errorf("%s: %v %q", c.name, got, text)
		}
	}
}

// TestLockBlocks: who is refused new connections by a lock, and until when.
func TestLockBlocks(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		admin := &api.Principal{UserID: "usr_admin", UserName: "admin"}
		lockable := func(user, target string) Spec {
			s := spec(user, target, "rol_ops")
			s.Lockable = true
			return s
		}
		a := r.open(lockable("alice", "db-1"))
		plain := r.open(spec("alice", "db-2", "rol_ops"))
		if err := r.Lock(t.Context(), plain.ID, admin, "x", BlockNone); !errors.Is(err, ErrNotLockable) {
			t.Errorf("locking what cannot be: %v", err)
		}
		if err := r.Lock(t.Context(), "con_none", admin, "x", BlockNone); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("locking nothing: %v", err)
		}
		if err := r.Lock(t.Context(), a.ID, admin, "Stop.", BlockTarget); err != nil {
			t.Fatal(err)
		}
		if o, _ := a.Oversight(); !o.Locked || o.Text != "Stop." {
			t.Fatalf("the live connection: %+v", o)
		}
		if err := r.Lock(t.Context(), a.ID, admin, "x", BlockNone); !errors.Is(err, db.ErrConflict) {
			t.Errorf("locking twice: %v", err)
		}
		refused := func(user, target string, want bool) {
			t.Helper()
			l, err := r.Open(t.Context(), lockable(user, target))
			if _, blocked := errors.AsType[*BlockedError](err); blocked != want || !blocked && err != nil {
				t.Errorf("%s to %s: %v", user, target, err)
			}
			if l != nil {
				l.Close(EndedByUser, nil)
			}
		}
		refused("alice", "db-1", true)
		refused("alice", "db-3", false)
		refused("bob", "db-1", false)
		a.Close(EndedByUser, nil)
		r.record(a.ID, Disconnected)
		refused("alice", "db-1", true) // the block outlives the connection
		if err := r.Unlock(t.Context(), a.ID, admin); err != nil {
			t.Fatal(err)
		}
		refused("alice", "db-1", false)
		if err := r.Unlock(t.Context(), a.ID, admin); !errors.Is(err, db.ErrConflict) {
			t.Errorf("unlocking twice: %v", err)
		}
		b := r.open(lockable("alice", "db-1"))
		if err := r.Lock(t.Context(), b.ID, admin, "", BlockUser); err != nil {
			t.Fatal(err)
		}
		refused("alice", "db-9", true)
		if x, err := r.Get(t.Context(), b.ID); err != nil || x.LockedBy != "admin" || x.LockBlock != BlockUser || x.LockText == "" {
			t.Errorf("%+v, %v", x, err)
		}
	})
}

// TestWatchersAreTold: the watched connection learns names, not its own
// user's, and nothing when the setting says so.
func TestWatchersAreTold(t *testing.T) {
	var quiet atomic.Bool
	r := newRig(t, dbtest.SQLite(t), func(c *Config, _ *rig) { c.TellWatched = func() bool { return !quiet.Load() } })
	l := r.open(spec("alice", "db-1", "rol_ops"))
	watch := func(name string) func() {
		t.Helper()
		leave, err := r.Watch(t.Context(), l.ID, &api.Principal{UserID: "usr_" + name, UserName: name})
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := leave(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, changed := l.Oversight()
	bob := watch("bob")
	<-changed
	self := watch("alice")
	o, _ := l.Oversight()
	if len(before.Watchers) != 0 || len(o.Watchers) != 1 || o.Watchers[0] != "bob" {
		t.Errorf("told %+v", o)
	}
	if all, err := r.Watchers(t.Context(), l.ID); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	self()
	bob()
	if o, _ := l.Oversight(); len(o.Watchers) != 0 {
		t.Errorf("told %+v", o)
	}
	quiet.Store(true)
	watch("bob")
	if o, _ := l.Oversight(); len(o.Watchers) != 0 {
		t.Errorf("told %+v though nobody should be", o)
	}
}

// What an earlier run left in the list of watchers goes; who watches since this
// one began stays, however late it looks.
func TestWatchersOfEarlierRun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		l := r.open(spec("alice", "db-1", "rol_ops"))
		dead, err := New(r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		for who, m := range map[string]*Manager{"bob": dead, "carol": r.Manager} {
			if _, err := m.Watch(t.Context(), l.ID, &api.Principal{UserID: "usr_" + who, UserName: who}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.recoverCrashed(t.Context()); err != nil {
			t.Fatal(err)
		}
		if all, err := r.Watchers(t.Context(), l.ID); err != nil || len(all) != 1 || all[0].UserName != "carol" {
			t.Errorf("watchers %+v, %v; want carol", all, err)
		}
	})
}
