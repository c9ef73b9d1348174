package target

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/webrule"
)

func TestTargetLifecycle(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		notes := r.db.Subscribe(t.Context())
		r.site(t, "vpc-a")
		made := r.target(t, Target{Name: "db-1", Kind: SSH, Site: "vpc-a", Host: "DB1.Example.ORG.", Tags: []string{"env=prod", "db", "db"}}, "root", "deploy")
		if made.Host != "db1.example.org" || made.Port != 22 || made.HostKeyPolicy != HostKeyTOFU {
			t.Errorf("normalised to %+v", made)
		}
		got, err := r.Get(t.Context(), r.db, made.ID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(made, got); d != "" {
			t.Errorf("read back (-made +got):\n%s", d)
		}
		as, err := r.Accounts(t.Context(), r.db, made.ID)
		if err != nil {
			t.Fatal(err)
		}
		if len(as) != 2 || as[0].Name != "deploy" || as[1].Auth != AuthCertificate || as[1].Features != SSH.Features() {
			t.Errorf("accounts: %+v", as)
		}

		stale := func(v int64) error { return api.CheckMatch(api.ETag(v+1), v) }
		if _, err := r.Update(r.ctx, made.ID, stale, func(*Target) {}); err == nil {
			t.Error("an update with another version's ETag went through")
		}
		changed, err := r.Update(r.ctx, made.ID, nil, func(t *Target) { t.Port, t.Tags, t.Name = 2222, []string{"db"}, "db-one" })
		if err != nil {
			t.Fatal(err)
		}
		if changed.Version != 2 || changed.Address() != "db1.example.org:2222" || changed.FullAddress() != "vpc-a/db1.example.org:2222" {
			t.Errorf("after update: %+v", changed)
		}
		byTag, err := r.List(t.Context(), r.db, Filter{Tag: "env=prod", In: access.Everywhere()}, "", 10)
		if err != nil || len(byTag) != 0 {
			t.Errorf("old tag still finds %v, %v", byTag, err)
		}
		_, err = r.Update(r.ctx, made.ID, nil, func(t *Target) { t.Kind, t.HostKeyPolicy = TCP, "" })
		wantProblem(t, err, "invalid")

		if err := r.Delete(r.ctx, made.ID, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Get(t.Context(), r.db, made.ID); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("after delete: %v", err)
		}
		if got, want := r.events(t, made.ID), "target.created target.changed target.deleted"; got != want {
			t.Errorf("audit: %s, want %s", got, want)
		}
		for _, want := range []db.Note{{Topic: TopicSite, ID: "vpc-a"}, {Topic: TopicTarget, ID: made.ID}, {Topic: TopicTarget, ID: made.ID}, {Topic: TopicTarget, ID: made.ID}} {
			if n := <-notes; n != want {
				t.Errorf("notified %+v, want %+v", n, want)
			}
			if n, in := <-notes, (db.Note{Topic: want.Topic + api.GroupSuffix, ID: access.DefaultGroup}); n != in {
				t.Errorf("notified %+v, want %+v", n, in)
			}
		}
	})
}

func TestTargetProblems(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	ok := Target{Name: "x", Kind: SSH, Host: "10.0.0.5"}
	for _, c := range []struct {
		name   string
		change func(*Target)
		want   string
	}{
		{"empty name", func(t *Target) { t.Name = "" }, "name: "},
		{"upper case", func(t *Target) { t.Name = "DB" }, "name: "},
		{"percent", func(t *Target) { t.Name = "a%b" }, "name: "},
		{"slash", func(t *Target) { t.Name = "a/b" }, "name: "},
		{"like an ID", func(t *Target) { t.Name = "tgt_1" }, "name: names do not begin"},
		{"no kind", func(t *Target) { t.Kind = "" }, "kind: "},
		{"unknown kind", func(t *Target) { t.Kind = "vnc" }, "kind: "},
		{"web without its page", func(t *Target) { t.Kind = Web }, "web: "},
		{"no host", func(t *Target) { t.Host = "" }, "host: "},
		{"bad address", func(t *Target) { t.Host = "10.0.0.256" }, "host: "},
		{"short address", func(t *Target) { t.Host = "10.1" }, "host: "},
		{"number", func(t *Target) { t.Host = "167772165" }, "host: "},
		{"zone", func(t *Target) { t.Host = "fe80::1%eth0" }, "host: "},
		{"any", func(t *Target) { t.Host = "0.0.0.0" }, "host: "},
		{"mapped any", func(t *Target) { t.Host = "::ffff:0.0.0.0" }, "host: "},
		{"multicast", func(t *Target) { t.Host = "ff02::1" }, "host: "},
		{"space", func(t *Target) { t.Host = "a b" }, "host: "},
		{"newline", func(t *Target) { t.Host = "a\nb" }, "host: "},
		{"port too high", func(t *Target) { t.Port = 65536 }, "port: "},
		{"negative port", func(t *Target) { t.Port = -1 }, "port: "},
		{"tcp without port", func(t *Target) { t.Kind = TCP }, "port: "},
		{"unknown site", func(t *Target) { t.Site = "mars" }, "site: there is no site mars"},
		{"bad site", func(t *Target) { t.Site = "-a" }, "site: "},
		{"bad tag", func(t *Target) { t.Tags = []string{"Env=x"} }, "tags[0]: "},
		{"ca without key", func(t *Target) { t.HostKeyPolicy = HostKeyCA }, "host_key_ca: "},
		{"key without ca", func(t *Target) { t.HostKeyCA = "ssh-ed25519 AAAA" }, "host_key_ca: "},
		{"unknown policy", func(t *Target) { t.HostKeyPolicy = "none" }, "host_key_policy: "},
		{"tcp with policy", func(t *Target) { t.Kind, t.Port, t.HostKeyPolicy = TCP, 1, HostKeyTOFU }, "host_key_policy: "},
		{"long comment", func(t *Target) { t.Comment = strings.Repeat("x", 1001) }, "comment: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			tg := ok
			c.change(&tg)
			_, err := r.Create(r.ctx, tg, nil)
			if text := wantProblem(t, err, "invalid"); !strings.Contains(text, "\n"+c.want) {
				t.Errorf("problem %q does not say %q", text, c.want)
			}
		})
	}
	r.target(t, ok)
	_, err := r.Create(r.ctx, ok, nil)
	wantProblem(t, err, "name_taken")
}

func TestNormalHost(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.5": "10.0.0.5", "::ffff:10.0.0.5": "10.0.0.5", "2001:DB8:0:0::1": "2001:db8::1", "[2001:db8::1]": "2001:db8::1",
		"Host.": "host", "a-b.c_d.example": "a-b.c_d.example", "1host": "1host",
	} {
		if got, err := NormalHost(in); err != nil || got != want {
			t.Errorf("NormalHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// Equal addresses in two sites are two hosts (E5).
func TestResolve(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "a")
		r.site(t, "b")
		add := func(name, site, host string, port int, kind Kind) string {
			return r.target(t, Target{Name: name, Kind: kind, Site: site, Host: host, Port: port}).ID
		}
		a5 := add("db-a", "a", "10.0.0.5", 22, SSH)
		b5 := add("db-b", "b", "10.0.0.5", 22, SSH)
		b5pg := add("pg-b", "b", "10.0.0.5", 5432, TCP)
		own := add("own", "", "10.9.9.9", 22, SSH)
		add("far", "a", "10.9.9.9", 22, SSH)
		six := add("six", "a", "2001:db8::1", 22, SSH)
		named := add("web.example.org", "b", "10.0.0.7", 443, TCP)

		for _, c := range []struct{ ref, want string }{
			{a5, a5}, {"db-a", a5}, {"DB-A", a5}, {"db-a:22", a5}, {"a/db-a", a5}, {"a/db-a:22", a5},
			{"a/10.0.0.5", a5}, {"a/10.0.0.5:22", a5}, {"A/10.0.0.5", a5},
			{"b/10.0.0.5:22", b5}, {"b/10.0.0.5:5432", b5pg}, {"10.0.0.5:5432", b5pg},
			{"10.9.9.9", own}, // an address without a site is core's own network first
			{"six", six}, {"2001:db8::1", six}, {"a/2001:DB8::1", six}, {"[2001:db8::1]:22", six}, {"a/[2001:db8:0::1]", six},
			{"::ffff:10.9.9.9", own}, {"web.example.org", named}, {"WEB.example.org:443", named},
		} {
			got, err := r.Resolve(t.Context(), r.db, c.ref)
			if err != nil || got.ID != c.want {
				t.Errorf("Resolve(%q) = %v, %v; want %s", c.ref, got, err, c.want)
			}
		}
		for _, ref := range []string{"", "nobody", "a/10.0.0.6", "b/db-a", "db-a:23", "c/10.0.0.5", "10.0.0.5:99", "a/", "/x", "a/b/c", "x:0", "x:70000", "tgt_none", strings.Repeat("x", 500), "a/10.0.0.5:", "::1"} {
			if got, err := r.Resolve(t.Context(), r.db, ref); !errors.Is(err, db.ErrNotFound) {
				t.Errorf("Resolve(%q) = %v, %v; want not found", ref, got, err)
			}
		}
		for ref, want := range map[string][]string{"10.0.0.5:22": {"db-a", "db-b"}, "10.0.0.5": {"db-a", "db-b", "pg-b"}, "b/10.0.0.5": {"db-b", "pg-b"}} {
			_, err := r.Resolve(t.Context(), r.db, ref)
			e, ok := errors.AsType[*AmbiguousError](err)
			if !ok {
				t.Errorf("Resolve(%q): %v, want ambiguous", ref, err)
				continue
			}
			var names []string
			for _, c := range e.Candidates {
				names = append(names, c.Name)
				if !strings.Contains(e.Error(), c.FullAddress()) {
					t.Errorf("%q does not name %s", e.Error(), c.FullAddress())
				}
			}
			if d := cmp.Diff(want, names); d != "" {
				t.Errorf("Resolve(%q) (-want +got):\n%s", ref, d)
			}
		}
	})
}

func TestListPages(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "a")
		for _, n := range []string{"web-1", "web-2", "web-10", "db-1", "x_1", "x-1"} {
			tg := Target{Name: n, Kind: SSH, Host: n + ".example.org", Tags: []string{"all"}}
			if strings.HasPrefix(n, "web") {
				tg.Site = "a"
			}
			r.target(t, tg)
		}
		r.target(t, Target{Name: "port", Kind: TCP, Host: "10.1.1.1", Port: 80})
		names := func(f Filter, limit int) (all []string) {
			after := ""
			for {
				ts, err := r.List(t.Context(), r.db, f, after, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range ts {
					all = append(all, x.Name)
				}
				if len(ts) < limit {
					return all
				}
				after = ts[len(ts)-1].Name
			}
		}
		for _, c := range []struct {
			f    Filter
			want string
		}{
			{Filter{}, "db-1 port web-1 web-10 web-2 x-1 x_1"},
			{Filter{Prefix: "web-1"}, "web-1 web-10"},
			{Filter{Site: "a"}, "web-1 web-10 web-2"},
			{Filter{Kind: TCP}, "port"},
			{Filter{Tag: "all", Search: "WEB"}, "web-1 web-10 web-2"},
			{Filter{Search: "10.1."}, "port"},
			{Filter{Search: "x_"}, "x_1"}, // no wildcard
			{Filter{Search: "%"}, ""},
			{Filter{Search: `\`}, ""},
		} {
			c.f.In = access.Everywhere()
			if got := strings.Join(names(c.f, 2), " "); got != c.want {
				t.Errorf("%+v: %s, want %s", c.f, got, c.want)
			}
		}
	})
}

func TestSites(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "vpc-a")
		r.site(t, "edgy")
		_, err := r.CreateSite(r.ctx, Site{Name: "vpc-a"})
		wantProblem(t, err, "name_taken")
		for _, bad := range []string{"", "A", "a_b", "-a", "a-", "a/b", strings.Repeat("a", 64)} {
			_, err := r.CreateSite(r.ctx, Site{Name: bad})
			wantProblem(t, err, "invalid")
		}
		site, err := r.UpdateSite(r.ctx, "vpc-a", "first", "", nil)
		if err != nil || site.Version != 2 || site.Comment != "first" {
			t.Errorf("update: %+v, %v", site, err)
		}
		var last *Target
		for _, n := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} {
			last = r.target(t, Target{Name: n, Kind: SSH, Site: "vpc-a", Host: "h"})
		}
		text := wantProblem(t, r.DeleteSite(r.ctx, "vpc-a", nil), "site_in_use")
		if !strings.Contains(text, "target a, target b") || !strings.Contains(text, "2 more targets") {
			t.Errorf("refusal does not say what uses the site: %s", text)
		}
		if text := wantProblem(t, r.DeleteSite(r.ctx, "edgy", nil), "site_in_use"); !strings.Contains(text, "extender edge-1") {
			t.Errorf("refusal does not name the edge: %s", text)
		}
		if _, err := r.db.ExecContext(t.Context(), `delete from targets`); err != nil {
			t.Fatal(err)
		}
		r.target(t, Target{Name: "w", Kind: Web, Web: &WebSpec{StartURL: "https://w.test/", Policy: webrule.Policy{Allow: []webrule.Rule{{Host: "x.test", Site: "vpc-a"}}}}})
		_, err = r.Create(r.ctx, Target{Name: "v", Kind: Web, Web: &WebSpec{StartURL: "https://v.test/", Policy: webrule.Policy{Allow: []webrule.Rule{{Host: "x.test", Site: "nowhere"}}}}}, nil)
		wantProblem(t, err, "invalid")
		if text := wantProblem(t, r.DeleteSite(r.ctx, "vpc-a", nil), "site_in_use"); !strings.Contains(text, "target w.") {
			t.Errorf("refusal does not name the target whose rule leads through the site: %s", text)
		}
		if _, err := r.db.ExecContext(t.Context(), `delete from targets`); err != nil {
			t.Fatal(err)
		}
		if err := r.DeleteSite(r.ctx, "vpc-a", nil); err != nil {
			t.Errorf("delete of an unused site: %v", err)
		}
		if err := r.DeleteSite(r.ctx, "vpc-a", nil); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("second delete: %v", err)
		}
		if got := r.events(t, site.ID); got != "site.created site.changed site.deleted" {
			t.Errorf("audit: %s", got)
		}
		_ = last
	})
}

func TestAccounts(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		tg := r.target(t, Target{Name: "db", Kind: SSH, Host: "db"}, "root")
		port := r.target(t, Target{Name: "pg", Kind: TCP, Host: "db", Port: 5432})
		for _, c := range []struct {
			name string
			a    Account
			want string
		}{
			{"secret missing", Account{Name: "a", Auth: AuthPassword}, "secret: auth password needs"},
			{"secret unknown", Account{Name: "a", Auth: AuthKey, SecretID: "sec_none"}, "secret: there is no such secret"},
			{"secret unwanted", Account{Name: "a", Auth: AuthCertificate, SecretID: "sec_pw"}, "secret: auth certificate takes no"},
			{"percent", Account{Name: "a%b"}, "name: "},
			{"star", Account{Name: "*"}, "name: "},
			{"option", Account{Name: "-oX"}, "name: "},
			{"auth", Account{Name: "a", Auth: "magic"}, "auth: "},
			{"feature of another kind", Account{Name: "a", Features: access.Web | access.Shell}, "features: web makes no sense"},
		} {
			_, err := r.CreateAccount(r.ctx, tg.ID, c.a)
			if text := wantProblem(t, err, "invalid"); !strings.Contains(text, "\n"+c.want) {
				t.Errorf("%s: %q does not say %q", c.name, text, c.want)
			}
		}
		_, err := r.CreateAccount(r.ctx, port.ID, Account{Name: "a"})
		wantProblem(t, err, "invalid")
		_, err = r.CreateAccount(r.ctx, tg.ID, Account{Name: "root"})
		wantProblem(t, err, "name_taken")
		_, err = r.CreateAccount(r.ctx, "tgt_none", Account{Name: "root"})
		if !errors.Is(err, db.ErrNotFound) {
			t.Errorf("account of no target: %v", err)
		}

		a, err := r.CreateAccount(r.ctx, tg.ID, Account{Name: `DOM\svc`, Auth: AuthPassword, SecretID: "sec_pw", Features: access.Exec})
		if err != nil {
			t.Fatal(err)
		}
		uses, _, err := r.SecretUses(t.Context(), r.db, "sec_pw", access.Everywhere())
		if err != nil || len(uses) != 1 || uses[0] != `db/DOM\svc` {
			t.Errorf("uses of the secret: %v, %v", uses, err)
		}
		if uses, used, err := r.SecretUses(t.Context(), r.db, "", access.Everywhere()); err != nil || used || len(uses) != 0 {
			t.Errorf("uses of no secret: %v, %v", uses, err)
		}
		b, err := r.UpdateAccount(r.ctx, tg.ID, a.ID, nil, func(a *Account) { a.Auth, a.SecretID, a.Disabled = AuthAsk, "", true })
		if err != nil || b.Version != 2 || b.Features != access.Exec {
			t.Errorf("update: %+v, %v", b, err)
		}
		got, err := r.Account(t.Context(), r.db, tg.ID, `DOM\svc`)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b, got); d != "" {
			t.Errorf("read back (-updated +got):\n%s", d)
		}
		if _, err := r.AccountByID(t.Context(), r.db, port.ID, a.ID); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("account through another target: %v", err)
		}
		if err := r.DeleteAccount(r.ctx, tg.ID, a.ID, nil); err != nil {
			t.Fatal(err)
		}
		if got := r.events(t, tg.ID); got != "target.created account.created account.changed account.deleted" {
			t.Errorf("audit: %s", got)
		}
	})
}
