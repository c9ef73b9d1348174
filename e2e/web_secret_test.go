package e2e

import (
	"context"
	"errors"
	"fmt"
	"image"
	"maps"
	"slices"
	"strings"
	"testing"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// A page that carries what was filled in to other places: another origin, path,
// method, field, into a query, a header, a cookie, through a redirect, twice.
// Only the login itself ever gets the password, and only once.
func TestWebPlaceholderElsewhere(t *testing.T) {
	w := web(t)
	other := w.site(t, sites.Config{Kind: sites.Form}, siteOptions{noTarget: true})
	s := w.site(t, sites.Config{Kind: sites.Form, Other: other.origin}, siteOptions{change: func(x *harness.WebTarget, p *webrule.Policy) {
		allowHosts(other.origin)(x, p)
		startAt("/login?trap=all")(x, p)
		p.Recipe.Fills[0].Submit = ""
	}})
	u := w.open(t, s)
	until(t, patience, "the page has tried everything", func() error {
		if !slices.ContainsFunc(s.Requests(), func(r sites.Request) bool { return r.Query == "done=1" }) {
			return errors.New("it has not")
		}
		return nil
	})
	real := s.Config.Password
	if got := other.Requests(); len(got) == 0 {
		t.Error("nothing arrived at the other origin: the test tests nothing")
	}
	for _, r := range other.Requests() {
		if r.Contains(real) || holds(r, real) {
			t.Errorf("the other origin received the password: %+v", r)
		}
	}
	right := 0
	for _, r := range s.Requests() {
		if !holds(r, real) {
			continue
		}
		if r.Method == "POST" && r.Path == "/login" && strings.Contains(r.Body, "password=") && r.Query == "" && !strings.Contains(r.Body, "note=") {
			right++
			continue
		}
		t.Errorf("the password arrived where it does not belong: %+v", r)
	}
	if right != 1 {
		t.Errorf("the login received the password %d times, want once", right)
	}
	// What did arrive elsewhere is the placeholder, the same everywhere.
	var holder string
	for _, r := range s.Requests() {
		if r.Path == "/collect" && r.Header.Get("X-Password") != "" {
			holder = r.Header.Get("X-Password")
		}
	}
	if holder == "" || strings.Contains(holder, real) {
		t.Fatalf("placeholder %q", holder)
	}
	u.end(t)
}

// What session A was given to fill in is worthless in session B of the same
// person at the same target, though nobody has used it yet; B's own, used in
// the same way, signs in.
func TestWebPlaceholderOfAnother(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Form}, siteOptions{change: func(_ *harness.WebTarget, p *webrule.Policy) { p.Recipe.Fills[0].Submit = "" }})
	asking := func(script string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		got, err := s.Run(ctx, "", script) // nobody has signed in
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	filled := func() string {
		t.Helper()
		var got string
		until(t, patience, "the page is filled in", func() error {
			if got = asking("return document.querySelector('[name=password]').value"); got == "" {
				return errors.New("it is not")
			}
			return nil
		})
		return got
	}
	a := w.open(t, s)
	ofA := filled()
	// One page at a time waits for orders: A's leaves, its session stays.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Drive(ctx, "", "about:blank"); err != nil {
		t.Fatal(err)
	}
	if err := a.Screen.Wait(t.Context(), patience, "A's page is left", func(p *image.RGBA) error {
		if harness.Share(p, sites.Asking) > 0.01 {
			return errors.New("it is not")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.open(t, s)
	ofB := filled()
	if ofA == ofB || strings.Contains(ofA+ofB, s.Config.Password) {
		t.Fatalf("A was given %q, B %q", ofA, ofB)
	}
	for _, x := range []struct {
		whose, holder, arrives string
		ok                     bool
	}{{"A's", ofA, ofA, false}, {"B's own", ofB, s.Config.Password, true}} {
		asking(fmt.Sprintf("await fetch('/login', {method: 'POST', redirect: 'manual', body: new URLSearchParams({username: 'ann', password: %q})}); return 1", x.holder))
		got := s.Logins()
		if len(got) == 0 || got[len(got)-1].Password != x.arrives || got[len(got)-1].OK != x.ok {
			t.Errorf("%s in B: the site received %+v", x.whose, got)
		}
	}
	if got, err := a.api.WebSession(t.Context(), a.ID); err != nil || got.State != "open" {
		t.Errorf("session A is %+v %v", got, err)
	}
}

// holds says whether a request has the password in any of the ways it could be
// written in it.
func holds(r sites.Request, password string) bool {
	for _, form := range written(password) {
		if r.Contains(form) {
			return true
		}
	}
	return false
}

// Pages that give back what they were sent, in every encoding: the browser
// sees a mask. The same page finds a text that is not masked.
func TestWebEchoes(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Form}, siteOptions{})
	u := w.open(t, s)
	u.signedIn(t)
	ask := func(path string) map[string]bool {
		s.Forget()
		u.drive(t, path)
		until(t, patience, path+" has asked", func() error {
			if got := s.Leaks(); len(got) != len(sites.EchoModes) {
				return fmt.Errorf("it found %v", got)
			}
			return nil
		})
		return s.Leaks()
	}
	control := ask("/echo?say=a-text-of-the-page-itself")
	for _, mode := range sites.EchoModes {
		// An encoding that the proxy cannot look into is refused.
		if !control[mode] && mode != "deflate" {
			t.Errorf("%s: the page does not find what is there", mode)
		}
	}
	found := ask("/echo")
	for _, mode := range slices.Sorted(maps.Keys(found)) {
		if found[mode] {
			t.Errorf("%s: the page found the password", mode)
		}
	}
	if len(found) == 0 {
		t.Error("nothing was asked")
	}
	if err := u.Screen.Shows(t.Context(), patience, "the page is not red", s.Color()); err != nil {
		t.Error(err)
	}
}
