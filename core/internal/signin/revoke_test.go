package signin

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/user"
)

func (r *rig) ticket(from string, chain ...*x509.Certificate) string {
	r.t.Helper()
	kept, _, err := r.enter(r.t.Context(), chain, addr(from))
	if err != nil {
		r.t.Fatal(err)
	}
	return kept
}

// byCertificate is a browser that signed in with the certificates given.
func (r *rig) byCertificate(from string, chain ...*x509.Certificate) *browser {
	r.t.Helper()
	b := r.browser(from)
	b.cookies[TicketCookie] = r.ticket(from, chain...)
	b.call("POST", "/login/certificate", nil).want(200, "")
	return b
}

func (r *rig) load(a Anchor, lists ...string) {
	r.t.Helper()
	if _, err := r.setCRL(r.t.Context(), tester, a.ID, []byte(strings.Join(lists, ""))); err != nil {
		r.t.Fatal(err)
	}
}

// live checks who is signed in.
func live(t *testing.T, when string, want map[*browser]bool) {
	t.Helper()
	for b, in := range want {
		if a := b.call("GET", "/me", nil); (a.StatusCode == http.StatusOK) != in {
			t.Errorf("%s: browser at %s: %d", when, b.from, a.StatusCode)
		}
	}
}

// sessionOf is the login a connection would have that b opened.
func (b *browser) sessionOf() *api.Principal {
	b.t.Helper()
	var m struct {
		User    user.UserView
		Session string
	}
	b.call("GET", "/me", nil).want(200, "").into(&m)
	return &api.Principal{UserID: m.User.ID, Session: m.Session}
}

func awaitNote(t *testing.T, notes <-chan db.Note, topic, id string) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case n := <-notes:
			if n.Topic == topic && n.ID == id {
				return
			}
		case <-late:
			t.Fatalf("no note %s %s", topic, id)
		}
	}
}

func serial(n int64) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.SerialNumber = big.NewInt(n) }
}

func TestRevokedCertificateEndsItsSessions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		jane := r.person("jane")
		r.person("bob")
		root := newAuthority(t, "staff", nil)
		middle, sent := newAuthority(t, "middle", root), newAuthority(t, "sent along", root)
		namesake := newAuthority(t, "staff", nil)
		a := r.anchor(root, func(d *AnchorDraft) { d.Bundle += middle.pem() })
		r.anchor(namesake, func(d *AnchorDraft) { d.Name = "contractors" })
		card, phone, elsewhere := root.issue("jane", serial(7)), root.issue("jane", serial(8)), namesake.issue("jane", serial(7))
		bobs, others := middle.issue("bob", serial(7)), sent.issue("bob", serial(7))

		one, again := r.byCertificate(netOf(1), card.Leaf), r.byCertificate(netOf(2), card.Leaf)
		two, foreign := r.byCertificate(netOf(3), phone.Leaf), r.byCertificate(netOf(4), elsewhere.Leaf)
		bob, along := r.byCertificate(netOf(5), bobs.Leaf), r.byCertificate(netOf(6), others.Leaf, sent.cert)
		own := r.browser(netOf(7)).signIn("jane")
		connection := one.sessionOf()
		if err := r.users.StillValid(t.Context(), connection); err != nil {
			t.Fatal(err)
		}

		notes := d.Subscribe(t.Context())
		r.load(a, root.crl(1, time.Hour))
		live(t, "an empty list", map[*browser]bool{one: true, again: true, two: true, foreign: true, bob: true, along: true, own: true})
		r.load(a, root.crl(2, time.Hour, card))
		live(t, "a card is revoked", map[*browser]bool{one: false, again: false, two: true, foreign: true, bob: true, along: true, own: true})
		if err := r.users.StillValid(t.Context(), connection); !errors.Is(err, user.ErrEnded) {
			t.Errorf("a connection of the session that ended: %v", err)
		}
		awaitNote(t, notes, "user", jane.ID) // what sockets and connections end by
		if n := r.count(audit.AnchorEnded, "reason:revoked_certificate", "sessions:2", "serial:7", "user:"+jane.ID); n != 1 {
			t.Errorf("%d ends audited", n)
		}
		r.load(a, root.crl(2, time.Hour, card))
		r.load(a, root.crl(3, time.Hour, card))
		if n := r.count(audit.AnchorEnded); n != 1 {
			t.Errorf("%d ends audited after loading the list again", n)
		}
		live(t, "the same list again", map[*browser]bool{two: true, foreign: true, bob: true, along: true, own: true})

		r.load(a, root.crl(4, time.Hour, card, tls.Certificate{Leaf: middle.cert}))
		live(t, "an authority is revoked", map[*browser]bool{two: true, foreign: true, bob: false, along: true, own: true})
		r.load(a, root.crl(5, time.Hour, card, tls.Certificate{Leaf: sent.cert}))
		live(t, "an authority that the browser sent is revoked", map[*browser]bool{two: true, foreign: true, along: false, own: true})

		// What only keeps others out ends nothing.
		if _, err := r.putAnchor(t.Context(), tester, a.ID, func(int64) error { return nil },
			AnchorDraft{Name: "cards", Enabled: true, Bundle: a.Bundle, Config: AnchorConfig{Field: "subject_cn", RequireCRL: true}}); err != nil {
			t.Fatal(err)
		}
		r.load(a, root.crl(6, -time.Hour, card))
		if _, _, err := r.enter(t.Context(), []*x509.Certificate{phone.Leaf}, addr(office)); !errors.Is(err, errNoCRL) {
			t.Errorf("signing in under an outdated list: %v", err)
		}
		live(t, "an outdated list", map[*browser]bool{two: true, foreign: true, own: true})
		r.load(a, root.crl(7, -time.Hour, phone))
		live(t, "on an outdated list", map[*browser]bool{two: false, foreign: true, own: true})
	})
}

func TestFetchedListEndsSessions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.person("jane")
		ca := newAuthority(t, "staff", nil)
		card, phone := ca.issue("jane", nil), ca.issue("jane", nil)
		var list atomic.Value
		list.Store(ca.crl(1, 20*time.Hour, card))
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, list.Load()) }))
		t.Cleanup(srv.Close)
		r.anchor(ca, func(d *AnchorDraft) { d.Config.CRLURL = srv.URL })
		one, two := r.byCertificate(netOf(1), card.Leaf), r.byCertificate(netOf(2), phone.Leaf)
		r.fetchCRLs(t.Context())
		live(t, "fetched", map[*browser]bool{one: false, two: true})
		if n := r.count(audit.AnchorEnded, "sessions:1"); n != 1 {
			t.Errorf("%d ends audited", n)
		}
		// What reached its own limit does not count.
		r.clock.Add(9 * time.Hour)
		three := r.byCertificate(netOf(3), phone.Leaf)
		list.Store(ca.crl(2, 20*time.Hour, card, phone))
		r.fetchCRLs(t.Context())
		live(t, "fetched again", map[*browser]bool{three: false})
		if n := r.count(audit.AnchorEnded, "sessions:1"); n != 2 || r.count(audit.AnchorEnded) != 2 {
			t.Errorf("%d ends of one session audited", n)
		}
	})
}

// TestRevocationMeetsSignIn: what is revoked while a sign-in is under way does
// not open a session.
func TestRevocationMeetsSignIn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.person("jane")
		ca, other := newAuthority(t, "staff", nil), newAuthority(t, "staff", nil)
		any := func(int64) error { return nil }
		for i, c := range []struct {
			name   string
			meet   func(Anchor, tls.Certificate) error
			reason string // "" = it opens
		}{
			{"revoked", func(a Anchor, c tls.Certificate) error {
				_, err := r.setCRL(t.Context(), tester, a.ID, []byte(ca.crl(1, time.Hour, c)))
				return err
			}, "revoked_certificate"},
			{"another revoked", func(a Anchor, c tls.Certificate) error {
				_, err := r.setCRL(t.Context(), tester, a.ID, []byte(ca.crl(1, time.Hour, ca.issue("jane", nil))))
				return err
			}, ""},
			{"authority removed", func(a Anchor, c tls.Certificate) error {
				return r.deleteAnchor(t.Context(), tester, a.ID, any)
			}, "foreign_certificate"},
			{"authority off", func(a Anchor, c tls.Certificate) error {
				_, err := r.putAnchor(t.Context(), tester, a.ID, any, AnchorDraft{Name: a.Name, Bundle: a.Bundle, Config: a.Config})
				return err
			}, "foreign_certificate"},
			{"another bundle", func(a Anchor, c tls.Certificate) error {
				_, err := r.putAnchor(t.Context(), tester, a.ID, any, AnchorDraft{Name: a.Name, Enabled: true, Bundle: other.pem(), Config: a.Config})
				return err
			}, "foreign_certificate"},
		} {
			for _, redeemed := range []bool{false, true} {
				from := netOf(2 * i)
				a := r.anchor(ca, nil)
				card := ca.issue("jane", nil)
				before := r.count(audit.LoginFailed, "reason:"+c.reason)
				kept := r.ticket(from, card.Leaf)
				var tk ticket
				var p *api.Principal
				var err error
				if redeemed {
					if tk, p, err = r.redeem(t.Context(), kept, addr(from)); err != nil {
						t.Fatal(err)
					}
				}
				if err := c.meet(a, card); err != nil {
					t.Fatal(err)
				}
				if !redeemed {
					tk, p, err = r.redeem(t.Context(), kept, addr(from))
				}
				if err == nil {
					_, err = r.Service.openSession(t.Context(), tk, p, "test")
				}
				sessions, e := r.users.Sessions(t.Context(), tk.UserID)
				if e != nil {
					t.Fatal(e)
				}
				want, n := 0, r.count(audit.LoginFailed, "reason:"+c.reason)-before
				if c.reason == "" {
					want = 1
				}
				if (err == nil) != (want == 1) || err != nil && !errors.Is(err, errStale) || len(sessions) != want || want == 0 && n != 1 {
					t.Errorf("%s, redeemed before: %v: %v, %d sessions, %d refusals on record", c.name, redeemed, err, len(sessions), n)
				}
				if err := r.users.SignOut(t.Context(), tester, tk.UserID); err != nil {
					t.Fatal(err)
				}
				if err := r.deleteAnchor(t.Context(), tester, a.ID, any); err != nil && !errors.Is(err, db.ErrNotFound) {
					t.Fatal(err)
				}
			}
		}
	})
}

// TestRevocationAndSignInAtOnce: whichever is first, no session of a revoked
// certificate is left.
func TestRevocationAndSignInAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.person("jane")
		ca := newAuthority(t, "staff", nil)
		a := r.anchor(ca, nil)
		var revoked []tls.Certificate
		for i := range 8 {
			card := ca.issue("jane", nil)
			revoked = append(revoked, card)
			b := r.browser(netOf(i))
			b.cookies[TicketCookie] = r.ticket(b.from, card.Leaf)
			list := []byte(ca.crl(int64(i+1), time.Hour, revoked...))
			var wg sync.WaitGroup
			var opened got
			var err error
			wg.Go(func() { opened = b.call("POST", "/login/certificate", nil) })
			wg.Go(func() { _, err = r.setCRL(t.Context(), tester, a.ID, list) })
			wg.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if opened.StatusCode != http.StatusOK {
				opened.want(409, "sign_in_stale")
			}
			b.call("GET", "/me", nil).want(401, "unauthenticated")
		}
	})
}

func TestAnotherBundleEndsSessions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		u := r.person("jane")
		old, next := newAuthority(t, "staff", nil), newAuthority(t, "staff 2", nil)
		renewed := &authority{t: t, key: old.key, cert: old.again()}
		middle := newAuthority(t, "middle", old)
		a := r.anchor(old, nil)
		card, deep := old.issue("jane", nil), middle.issue("jane", nil)
		one, two := r.byCertificate(netOf(1), card.Leaf), r.byCertificate(netOf(2), deep.Leaf, middle.cert)
		bundle := func(when, pem string, want map[*browser]bool) {
			t.Helper()
			if _, err := r.putAnchor(t.Context(), tester, a.ID, func(int64) error { return nil },
				AnchorDraft{Name: "cards", Enabled: true, Bundle: pem, Config: AnchorConfig{Field: "subject_cn"}}); err != nil {
				t.Fatal(err)
			}
			live(t, when, want)
		}
		bundle("one more", old.pem()+next.pem(), map[*browser]bool{one: true, two: true})
		bundle("the same authority, renewed", renewed.pem()+next.pem(), map[*browser]bool{one: true, two: true})
		three := r.byCertificate(netOf(3), next.issue("jane", nil).Leaf)
		bundle("one less", next.pem(), map[*browser]bool{one: false, two: false, three: true})
		if n := r.count(audit.AnchorEnded, "reason:foreign_certificate", "sessions:1", "user:"+u.ID); n != 2 {
			t.Errorf("%d ends audited", n)
		}
	})
}

// again is the authority's certificate made anew.
func (a *authority) again() *x509.Certificate {
	a.t.Helper()
	tmpl := *a.cert
	tmpl.SerialNumber = new(big.Int).Add(tmpl.SerialNumber, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, a.key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// TestPathsAreBounded: the ticket fits into a cookie, and a path is refused
// before it does not.
func TestPathsAreBounded(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	r.person("jane")
	root := newAuthority(t, "authority 0", nil)
	r.anchor(root, nil)
	last, chain := root, []*x509.Certificate{nil} // the leaf comes first
	accepted := 0
	for i := range 40 {
		last = newAuthority(t, fmt.Sprintf("authority %d", i+1), last)
		chain = slices.Insert(chain, 1, last.cert)
		chain[0] = last.issue("jane", func(c *x509.Certificate) { c.SerialNumber.Lsh(big.NewInt(1), 158) }).Leaf
		kept, _, err := r.enter(t.Context(), chain, addr(netOf(i)))
		if err == nil {
			accepted = i + 1
		} else if !errors.Is(err, errLongPath) {
			t.Fatal(err)
		}
		if len(kept) > 3<<10 {
			t.Errorf("with %d authorities between, the ticket has %d bytes", i+1, len(kept))
		}
	}
	if accepted < 20 || accepted == 40 {
		t.Errorf("paths of up to %d authorities are accepted", accepted)
	}
	if n := r.count(audit.LoginFailed, "reason:certificate_path"); n != 40-accepted {
		t.Errorf("%d refusals on record, want %d", n, 40-accepted)
	}
}
