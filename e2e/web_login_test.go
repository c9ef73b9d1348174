package e2e

import (
	"fmt"
	"image/color"
	"slices"
	"strings"
	"testing"

	"caponier/e2e/sites"
)

// Every kind of login that people meet: the site receives the real credential,
// letter for letter, and shows the page of somebody signed in.
func TestWebLogins(t *testing.T) {
	w := web(t)
	for _, kind := range []sites.Kind{sites.Form, sites.Multi, sites.JSON, sites.Pages, sites.Basic, sites.Digest, sites.Bearer, sites.CSRF, sites.Frame, sites.Foreign, sites.Hashed, sites.TOTP} {
		t.Run(string(kind), func(t *testing.T) {
			cfg := sites.Config{Kind: kind, Color: color.RGBA{0x20, 0x80, 0xa0, 0xff}}
			o := siteOptions{}
			asked := (*webSite)(nil)
			switch kind {
			case sites.Bearer:
				cfg.Password = "token-0123456789abcdef"
			case sites.Basic:
				cfg.Password = "p:w& =+/ü"
			case sites.TOTP:
				cfg.Seed = "JBSWY3DPEHPK3PXP"
				o.auth = func(s *webSite) (string, string) {
					return "json", fmt.Sprintf(`{"username":%q,"password":%q,"totp":%q}`, s.Config.Username, s.Config.Password, s.Config.Seed)
				}
			case sites.Foreign:
				asked = w.site(t, sites.Config{Kind: sites.Form, Password: "p&w=ü/+ foreign"}, siteOptions{noTarget: true})
				cfg.Other, cfg.Password = asked.origin, asked.Config.Password
				o.change = allowHosts(asked.origin)
			}
			s := w.site(t, cfg, o)
			if asked == nil {
				asked = s
			}
			u := w.open(t, s)
			u.signedIn(t)
			got := asked.Logins()
			if len(got) == 0 || !got[len(got)-1].OK {
				t.Fatalf("the site received %+v", got)
			}
			switch kind {
			case sites.Digest, sites.Hashed:
				if strings.Contains(fmt.Sprint(got), s.Config.Password) {
					t.Error("the password itself arrived")
				}
			default:
				if !slices.ContainsFunc(got, func(l sites.Login) bool { return l.Password == s.Config.Password }) {
					t.Errorf("the site received %+v", got)
				}
			}
			for _, l := range got {
				if l.Password != "" && l.Code == "" && !l.OK {
					t.Errorf("an attempt with a wrong credential: %+v", l)
				}
			}
			u.end(t)
		})
	}
	w.nothingLeft(t)
}

// The content policy may stand in the page itself, too.
func TestWebLoginMetaPolicy(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.CSRF, MetaPolicy: true}, siteOptions{})
	u := w.open(t, s)
	if err := u.Screen.Shows(t.Context(), patience, "the page after signing in", s.Color()); err != nil {
		t.Fatal(err)
	}
}
