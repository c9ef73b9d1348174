package user

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// otherCore is the room as another core, or this one after a restart, has it:
// the same database, nothing in memory.
func (r *room) otherCore() *room {
	r.t.Helper()
	s, err := New(Config{DB: r.d, Audit: r.log, Sealer: placeSealer{}, Now: r.clock.Now, Settings: r.settings})
	if err != nil {
		r.t.Fatal(err)
	}
	s.hasher.memory, s.hasher.dummy.memory = 64, 64
	return &room{s, r.t, r.d, r.log, r.clock, r.settings}
}

func TestLimitsHoldOnEveryCore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		r.person("jane")
		limited := func(r *room, from netip.Addr) bool {
			t.Helper()
			_, err := r.login("jane", "not the password", "", from)
			_, limit := errors.AsType[*LimitError](err)
			if !limit && !errors.Is(err, ErrBadCredentials) {
				t.Fatal(err)
			}
			return limit
		}
		for i := range 5 { // each on a core that has just started
			if limited(r.otherCore(), office) {
				t.Fatalf("failure %d was refused", i+1)
			}
		}
		if !limited(r.otherCore(), office) || !limited(r, office) {
			t.Error("the sixth failure was admitted by a core that did not see the first five")
		}
		if limited(r.otherCore(), home) {
			t.Error("another address is limited, too")
		}
		// A success is not stopped by other cores' successes, and forgiveness is one.
		r.clock.Add(time.Minute)
		if limited(r.otherCore(), office) || !limited(r.otherCore(), office) {
			t.Error("a minute later not exactly one more failure is admitted")
		}
		// The clock of a core may be behind.
		r.clock.Add(-30 * time.Second)
		if !limited(r.otherCore(), office) {
			t.Error("a core whose clock is behind admits more")
		}
		r.clock.Add(24 * time.Hour)
		if _, err := r.tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		var rows int
		if err := d.QueryRowContext(t.Context(), `select count(*) from login_failures`).Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%d rows a day later, %v", rows, err)
		}
	})
}

// TestSixHasOneAllowance: who has a /64 has no more guesses than who has one address.
func TestSixHasOneAllowance(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	r.person("jane")
	a := netip.MustParseAddr("2001:db8:1:2::1")
	for range 5 {
		if _, err := r.login("jane", "not the password", "", a); !errors.Is(err, ErrBadCredentials) {
			t.Fatal(err)
		}
		a = a.Next()
	}
	if _, err := r.login("jane", "not the password", "", a); errors.Is(err, ErrBadCredentials) {
		t.Error("a sixth address of the same /64 has a guess of its own")
	}
	if _, err := r.login("jane", goodPassword, "", netip.MustParseAddr("2001:db8:1:3::1")); err != nil {
		t.Errorf("the next /64: %v", err)
	}
}

// TestSessionOfAStaleLogin: signing out everywhere also stops what is halfway in.
func TestSessionOfAStaleLogin(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	u := r.person("jane")
	p := r.must(r.login("jane", goodPassword, "", office))
	if err := r.SignOut(t.Context(), tester, u.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.OpenSession(t.Context(), p, CookieSession, ""); !errors.Is(err, ErrBadCredentials) {
		t.Errorf("a session for a login from before the sign-out: %v", err)
	}
	arrived, err := r.Arrive(t.Context(), Arrival{UserID: u.ID, Methods: []string{"passkey"}, MFA: true, Source: office, Via: "console"})
	if err != nil || !arrived.MFA {
		t.Fatalf("arrived %+v, %v", arrived, err)
	}
	off := true
	if _, err := r.Update(t.Context(), tester, u.ID, any64, Change{Locked: &off}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.OpenSession(t.Context(), arrived, CookieSession, ""); !errors.Is(err, ErrBadCredentials) {
		t.Errorf("a session for a locked account: %v", err)
	}
	if _, err := r.Arrive(t.Context(), Arrival{UserID: u.ID, Methods: []string{"passkey"}, Source: office}); !errors.Is(err, ErrBadCredentials) {
		t.Errorf("a locked account arrived: %v", err)
	}
}
