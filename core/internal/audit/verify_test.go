package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// key is a signing key made from a name.
type key struct{ ed25519.PrivateKey }

func newKey(name string) key {
	seed := sha256.Sum256([]byte(name))
	return key{ed25519.NewKeyFromSeed(seed[:])}
}

func (k key) Sign(m []byte) (string, []byte, error) {
	return "test", ed25519.Sign(k.PrivateKey, m), nil
}

func (k key) Verify(id string, m, sig []byte) bool {
	return id == "test" && ed25519.Verify(k.Public().(ed25519.PublicKey), m, sig)
}

type fixture struct {
	*Log
	t    *testing.T
	db   *db.DB
	k    Keeper
	tick time.Time
}

func newFixture(t *testing.T, d *db.DB) *fixture {
	x := &fixture{t: t, db: d, tick: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	x.Log = New(d, func() time.Time { x.tick = x.tick.Add(time.Second); return x.tick })
	x.k = Keeper{Keys: newKey("ours"), Log: slog.New(slog.DiscardHandler), HeadFile: filepath.Join(t.TempDir(), "heads")}
	return x
}

func (x *fixture) write(n int) {
	x.t.Helper()
	for i := range n {
		err := x.Write(x.t.Context(), Event{
			Type: TargetChanged, Actor: Actor{Kind: "user", ID: fmt.Sprintf("usr_%d", i%3), Name: "ada", Source: "192.0.2.1"},
			Object: Object{Kind: "target", ID: fmt.Sprintf("tgt_%d", i), Name: "db"}, Fields: map[string]string{"n": fmt.Sprint(i)},
		})
		if err != nil {
			x.t.Fatal(err)
		}
	}
}

func (x *fixture) sign() {
	x.t.Helper()
	if h, err := x.SignHead(x.t.Context(), x.k); err != nil || h == nil {
		x.t.Fatalf("sign head: %v, %v", h, err)
	}
}

func (x *fixture) exec(query string, args ...any) {
	x.t.Helper()
	if _, err := x.db.ExecContext(x.t.Context(), query, args...); err != nil {
		x.t.Fatal(err)
	}
}

func (x *fixture) verify() Report {
	x.t.Helper()
	r, err := x.Verify(x.t.Context(), x.k.Keys, x.k.HeadFile)
	if err != nil {
		x.t.Fatal(err)
	}
	if r.OK != (len(r.Findings) == 0) {
		x.t.Fatalf("report contradicts itself: %+v", r)
	}
	return r
}

func (r Report) has(seq int64, kind FindingKind) bool {
	for _, f := range r.Findings {
		if f.Seq == seq && f.Kind == kind && strings.Contains(f.Text, fmt.Sprint(seq)) || f.Seq == seq && f.Kind == kind && kind == Truncated {
			return true
		}
	}
	return false
}

func TestCleanLogVerifies(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		if r := x.verify(); !r.OK || r.Events != 0 {
			t.Errorf("empty log: %+v", r)
		}
		if h, err := x.SignHead(t.Context(), x.k); h != nil || err != nil {
			t.Errorf("head of an empty log: %v, %v", h, err)
		}
		x.write(7)
		x.sign()
		x.sign() // nothing new: the same head
		x.write(4)
		r := x.verify()
		if !r.OK || r.Events != 11 || r.Heads != 1 || r.Signed != 7 || r.First != 1 || r.Last != 11 {
			t.Errorf("%+v", r)
		}
		x.write(verifyPage)
		x.sign()
		if r := x.verify(); !r.OK || r.Signed != 11+verifyPage {
			t.Errorf("over several pages: %+v", r)
		}
	})
}

// TestTamperingIsFound damages a log of 12 events with heads at 5 and 10 in
// every way a database user can, and wants the place named.
func TestTamperingIsFound(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for _, c := range tamperings() {
			t.Run(c.name, func(t *testing.T) {
				x := newFixture(t, d)
				x.exec(`delete from audit_events`)
				x.exec(`delete from audit_heads`)
				x.write(5)
				x.sign()
				x.write(5)
				x.sign()
				x.write(2)
				if r := x.verify(); !r.OK {
					t.Fatalf("before the damage: %+v", r)
				}
				c.damage(x)
				r := x.verify()
				if !r.has(c.seq, c.kind) {
					t.Errorf("want %s at %d, got %+v", c.kind, c.seq, r.Findings)
				}
			})
		}
	})
}

type tampering struct {
	name   string
	damage func(x *fixture)
	seq    int64
	kind   FindingKind
}

func tamperings() []tampering {
	return []tampering{
		{"outcome edited", func(x *fixture) { x.exec(`update audit_events set outcome = 'denied' where seq = 3`) }, 3, Edited},
		{"time edited", func(x *fixture) { x.exec(`update audit_events set at = at + 1 where seq = 4`) }, 4, Edited},
		{"type edited", func(x *fixture) { x.exec(`update audit_events set type = 'target.deleted' where seq = 4`) }, 4, Edited},
		{"id edited", func(x *fixture) { x.exec(`update audit_events set id = 'aud_x' where seq = 4`) }, 4, Edited},
		{"actor edited", func(x *fixture) { x.exec(`update audit_events set actor_id = 'usr_9' where seq = 6`) }, 6, Edited},
		{"name edited", func(x *fixture) { x.exec(`update audit_events set actor_name = 'bob' where seq = 6`) }, 6, Edited},
		{"address edited", func(x *fixture) { x.exec(`update audit_events set actor_source = '' where seq = 6`) }, 6, Edited},
		{"fields edited", func(x *fixture) { x.exec(`update audit_events set fields = '{"n":"99"}' where seq = 7`) }, 7, Edited},
		{"fields made unreadable", func(x *fixture) { x.exec(`update audit_events set fields = '{' where seq = 7`) }, 7, Edited},
		{"connection edited", func(x *fixture) { x.exec(`update audit_events set connection_id = 'con_1' where seq = 7`) }, 7, Edited},
		{"the last event edited", func(x *fixture) { x.exec(`update audit_events set outcome = 'denied' where seq = 12`) }, 12, Edited},
		{"one deleted", func(x *fixture) { x.exec(`delete from audit_events where seq = 4`) }, 4, Deleted},
		{"some deleted", func(x *fixture) { x.exec(`delete from audit_events where seq between 3 and 8`) }, 3, Deleted},
		{"the first deleted", func(x *fixture) { x.exec(`delete from audit_events where seq = 1`) }, 1, Deleted},
		{"deleted and closed up", func(x *fixture) {
			x.exec(`delete from audit_events where seq = 4`)
			for s := 5; s <= 12; s++ {
				x.exec(`update audit_events set seq = $1 where seq = $2`, s-1, s)
			}
		}, 4, Edited},
		{"two swapped", func(x *fixture) {
			x.exec(`update audit_events set seq = 100 where seq = 3`)
			x.exec(`update audit_events set seq = 3 where seq = 4`)
			x.exec(`update audit_events set seq = 4 where seq = 100`)
		}, 3, Relinked},
		{"cut", func(x *fixture) { x.exec(`delete from audit_events where seq > 8`) }, 9, Truncated},
		{"cut with its heads", func(x *fixture) {
			x.exec(`delete from audit_events where seq > 8`)
			x.exec(`delete from audit_heads where seq > 8`)
		}, 9, Truncated},
		{"all deleted", func(x *fixture) {
			x.exec(`delete from audit_events`)
			x.exec(`delete from audit_heads`)
		}, 1, Truncated},
		{"rewritten from 3 on", func(x *fixture) { x.rewrite(3) }, 5, Rewritten},
		{"rewritten with its heads", func(x *fixture) {
			x.rewrite(3)
			x.exec(`delete from audit_heads`)
		}, 10, Rewritten},
		{"rewritten and signed by another key", func(x *fixture) {
			x.rewrite(3)
			x.exec(`delete from audit_heads`)
			other := x.k
			other.Keys, other.HeadFile = newKey("theirs"), ""
			if _, err := x.SignHead(x.t.Context(), other); err != nil {
				x.t.Fatal(err)
			}
		}, 12, Forged},
		{"a head moved", func(x *fixture) { x.exec(`update audit_heads set seq = 6 where seq = 5`) }, 6, Forged},
		{"a name removed without an erasure", func(x *fixture) {
			x.exec(`update audit_events set actor_name = '', actor_source = '', actor_salt = null where seq = 2`)
		}, 2, Unerased},
		{"details removed without an erasure", func(x *fixture) {
			x.exec(`update audit_events set object_name = '', fields = '', detail_salt = null where seq = 2`)
		}, 2, Unerased},
		{"a false checkpoint", func(x *fixture) {
			h := Head{Seq: 3, Kind: Checkpoint, Hash: make([]byte, 32), At: x.tick, KeyID: "test", Signature: make([]byte, 64)}
			if err := x.db.Tx(x.t.Context(), func(tx *db.Tx) error { return addHead(x.t.Context(), tx, h) }); err != nil {
				x.t.Fatal(err)
			}
			x.exec(`delete from audit_events where seq <= 3`)
		}, 3, Forged},
	}
}

// rewrite changes an event and computes all hashes from there on anew, as
// somebody would who knows the code and can write the database.
func (x *fixture) rewrite(from int64) {
	x.t.Helper()
	rows, err := readRows(x.t.Context(), x.db, afterSQL, from-1, 100)
	if err != nil {
		x.t.Fatal(err)
	}
	prev := rows[0].prev
	for i := range rows {
		r := &rows[i]
		if i == 0 {
			r.Outcome = Denied
		}
		r.prev = prev
		r.seal()
		prev = r.hash
		x.exec(`update audit_events set outcome = $1, prev_hash = $2, hash = $3, actor_commit = $4, detail_commit = $5 where seq = $6`,
			string(r.Outcome), r.prev[:], r.hash[:], r.actorCommit[:], r.detailCommit[:], r.Seq)
	}
}

func TestBrokenChainIsNotSigned(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		x.write(4)
		x.sign()
		x.write(4)
		x.exec(`update audit_events set outcome = 'denied' where seq = 6`)
		if _, err := x.SignHead(t.Context(), x.k); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "event 6") {
			t.Errorf("signed over an edited event: %v", err)
		}
		if _, err := x.Prune(t.Context(), x.k.Keys, x.tick); !errors.Is(err, ErrBroken) {
			t.Errorf("pruned an edited event: %v", err)
		}
	})
}

func TestPrune(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		x.write(6)
		middle := x.tick.Add(500 * time.Millisecond)
		x.sign()
		x.write(6)
		x.sign()
		n, err := x.Prune(t.Context(), x.k.Keys, middle)
		if err != nil || n != 6 {
			t.Fatalf("pruned %d, %v", n, err)
		}
		r := x.verify()
		if !r.OK || r.First != 7 || r.Last != 13 || r.Pruned != 6 || r.Events != 7 {
			t.Errorf("after pruning: %+v", r)
		}
		if n, err := x.Prune(t.Context(), x.k.Keys, middle); err != nil || n != 0 {
			t.Errorf("pruning again removed %d, %v", n, err)
		}
		// Everything is old: the last event stays, so that the chain goes on.
		if n, err := x.Prune(t.Context(), x.k.Keys, x.tick.Add(time.Hour)); err != nil || n != 6 {
			t.Errorf("pruning all removed %d, %v", n, err)
		}
		x.write(3)
		x.sign()
		if r := x.verify(); !r.OK || r.Pruned != 12 || r.Signed != 17 {
			t.Errorf("after going on: %+v", r)
		}
		x.exec(`delete from audit_events where seq = 13`)
		if r := x.verify(); !r.has(13, Deleted) {
			t.Errorf("deleted after the checkpoint: %+v", r)
		}
	})
}

func TestEraseKeepsTheChain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		ctx := t.Context()
		for _, e := range []Event{
			{Type: UserCreated, Actor: Actor{Kind: "user", ID: "usr_admin", Name: "admin"}, Object: Object{Kind: "user", ID: "usr_eve", Name: "eve-canary"}, Fields: map[string]string{"email": "eve-canary@example.org"}},
			{Type: LoginSucceeded, Actor: Actor{Kind: "user", ID: "usr_eve", Name: "eve-canary", Source: "203.0.113.77"}, Fields: map[string]string{"agent": "eve-canary's laptop"}},
			{Type: TargetChanged, Actor: Actor{Kind: "user", ID: "usr_eve", Name: "eve-canary", Source: "203.0.113.77"}, Object: Object{Kind: "target", ID: "tgt_1", Name: "db-1"}},
			{Type: TargetChanged, Actor: Actor{Kind: "user", ID: "usr_admin", Name: "admin", Source: "192.0.2.1"}, Object: Object{Kind: "target", ID: "tgt_1", Name: "db-1"}},
		} {
			if err := x.Write(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		x.sign()
		err := d.Tx(ctx, func(tx *db.Tx) error {
			return x.Erase(ctx, tx, "usr_eve", Actor{Kind: "user", ID: "usr_admin", Name: "admin"})
		})
		if err != nil {
			t.Fatal(err)
		}
		x.sign()
		r := x.verify()
		if !r.OK || r.Erased != 3 || r.Events != 5 {
			t.Errorf("after erasing: %+v", r)
		}
		events, err := x.After(ctx, d, Filter{}, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%+v", events)
		if strings.Contains(text, "canary") || strings.Contains(text, "203.0.113.77") {
			t.Errorf("something of the user is left: %s", text)
		}
		if events[2].Object.Name != "db-1" || events[3].Actor.Name != "admin" || events[1].Actor.ID != "usr_eve" || !events[1].Erased {
			t.Errorf("too much is gone: %s", text)
		}
		// The record of the erasure is what makes it good.
		x.exec(`update audit_events set type = 'user.changed' where type = 'user.erased'`)
		if r := x.verify(); !r.has(2, Unerased) {
			t.Errorf("an erasure without its event: %+v", r)
		}
	})
}

func TestRunSignsAtTheEndAndWhenDue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		x.k.Every = time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- New(d, nil).Run(ctx, x.k) }()
		x.write(3)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if r := x.verify(); !r.OK || r.Signed != 3 {
			t.Errorf("after the end: %+v", r)
		}
	})
	x := newFixture(t, dbtest.SQLite(t))
	x.k.Every = time.Hour
	x.appended.Store(headEvery - 1)
	x.write(1)
	select {
	case <-x.due:
	default:
		t.Error("no head is due after many events")
	}
}

func TestHeadFile(t *testing.T) {
	x := newFixture(t, dbtest.SQLite(t))
	x.write(2)
	x.sign()
	x.write(2)
	x.sign()
	st, err := os.Stat(x.k.HeadFile)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("head file: %v, %v", st, err)
	}
	h, err := lastFiled(x.k.HeadFile)
	if err != nil || h == nil || h.Seq != 4 {
		t.Fatalf("last head: %+v, %v", h, err)
	}
	f, err := os.OpenFile(x.k.HeadFile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"seq":99,"ki`); err != nil { // core died while writing
		t.Fatal(err)
	}
	f.Close()
	if r := x.verify(); !r.OK {
		t.Errorf("half a line: %+v", r)
	}
	if err := os.WriteFile(x.k.HeadFile, []byte(`{"seq":3,"kind":"head","hash":"AAAA","signature":"AAAA"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := x.verify(); !r.has(3, Forged) {
		t.Errorf("a forged head file: %+v", r)
	}
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
