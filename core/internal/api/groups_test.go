package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// teams are administrators of groups.
var teams = tokens{
	"all":    {UserID: "usr_all", UserName: "all", Permissions: map[Permission]bool{TargetsView: true}},
	"a":      {UserID: "usr_a", UserName: "a", Scoped: map[Permission][]string{TargetsManage: {"grp_a"}, AuditView: {"grp_a"}}},
	"b":      {UserID: "usr_b", UserName: "b", Scoped: map[Permission][]string{TargetsView: {"grp_b"}}},
	"nobody": {UserID: "usr_n", UserName: "nobody"},
}

func TestScopeOfPrincipal(t *testing.T) {
	a, all := teams["a"], teams["all"]
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"limited is not everywhere", a.Can(TargetsManage) || a.Can(TargetsView), false},
		{"managing includes viewing, in the group", a.Scope(TargetsView).Text(), ",grp_a,"},
		{"viewing does not include managing", teams["b"].Scope(TargetsManage).Nowhere(), true},
		{"everywhere", all.Scope(TargetsView).All(), true},
		{"another permission", a.Scope(EdgesView).Nowhere(), true},
		{"nobody", (*Principal)(nil).Scope(TargetsView).Nowhere(), true},
		{"anywhere", a.Anywhere().Text() + all.Anywhere().Text() + teams["nobody"].Anywhere().Text(), ",grp_a,*"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestGuardOfGroups(t *testing.T) {
	f, err := New(Config{Auth: teams, DB: dbtest.SQLite(t), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	type out struct{ Body string }
	ok := func(context.Context, *struct{}) (*out, error) { return &out{"ok"}, nil }
	Register(f, Op{Method: "GET", Path: "/everywhere", ID: "everywhere", Who: Needs(TargetsView)}, ok)
	Register(f, Op{Method: "GET", Path: "/somewhere", ID: "somewhere", Who: NeedsSomewhere(TargetsView)}, ok)
	for token, want := range map[string][2]int{"all": {200, 200}, "a": {403, 200}, "b": {403, 200}, "nobody": {403, 403}} {
		for i, path := range []string{"/everywhere", "/somewhere"} {
			r := httptest.NewRequest("GET", "https://core.test"+Prefix+path, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			f.Handler().ServeHTTP(w, r)
			if w.Code != want[i] {
				t.Errorf("%s as %s: %d, want %d", path, token, w.Code, want[i])
			}
		}
	}
}

func TestGuarded(t *testing.T) {
	g := Guarded{Kind: "target", ID: "tgt_1", View: TargetsView, Manage: TargetsManage}
	as := func(who string) context.Context { return WithPrincipal(t.Context(), teams[who]) }
	status := func(err error) int {
		if err == nil {
			return 200
		}
		p, ok := errors.AsType[*Problem](err)
		if !ok {
			t.Fatalf("%v is no problem", err)
		}
		return p.Status
	}
	link := func(group string) Link {
		return Link{Field: "site", Message: "there is no site x", Permission: TargetsManage, Group: group}
	}
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"one's own", g.Administer(as("a"), "grp_a", "grp_a"), 200},
		{"another's", g.Administer(as("a"), "grp_b", "grp_b"), 404},
		{"seen, not managed", g.Administer(as("b"), "grp_b", "grp_b"), 403},
		{"into another's group", g.Administer(as("a"), "grp_a", "grp_b"), 422},
		{"with a link", g.Administer(as("a"), "grp_a", "grp_a", link("grp_a")), 200},
		{"with a link outside", g.Administer(as("a"), "grp_a", "grp_a", link("grp_a"), link("grp_b")), 422},
		{"core itself", g.Administer(t.Context(), "grp_a", "grp_b"), 200},
		{"see one's own", g.See(as("a"), "grp_a"), 200},
		{"see another's", g.See(as("a"), "grp_b"), 404},
		{"see what is in none", g.See(as("all"), ""), 404},
		{"see as core", g.See(t.Context(), "grp_a"), 200},
	} {
		if got := status(c.err); got != c.want {
			t.Errorf("%s: %d (%v), want %d", c.name, got, c.err, c.want)
		}
	}
	if p, _ := errors.AsType[*Problem](g.Administer(as("a"), "grp_a", "grp_a", link("grp_b"))); p.Fields[0] != (FieldError{"site", "there is no site x"}) {
		t.Errorf("what is outside is not told like what is not there: %+v", p.Fields)
	}
	if _, err := PlaceNew(as("b"), TargetsManage, ""); status(err) != 422 {
		t.Errorf("a place for who manages nothing: %v", err)
	}
	for who, want := range map[string]string{"a": "grp_a"} {
		if got, err := PlaceNew(as(who), TargetsManage, ""); err != nil || got != want {
			t.Errorf("place of %s: %q, %v", who, got, err)
		}
	}
	if got, err := PlaceNew(t.Context(), TargetsManage, ""); err != nil || got != access.DefaultGroup {
		t.Errorf("place of core: %q, %v", got, err)
	}
}

// TestEventsOfGroups: an administrator of a group hears of what is in it,
// without IDs, and of nothing else.
func TestEventsOfGroups(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		f, s := eventFrame(t, d, teams, time.Hour)
		all, a, b := openStream(t, s, "all"), openStream(t, s, "a"), openStream(t, s, "b")
		waitListening(t, d)
		tell := func(topic, id string, groups ...string) {
			t.Helper()
			if err := d.Tx(t.Context(), func(tx *db.Tx) error { return Notify(t.Context(), tx, topic, id, groups...) }); err != nil {
				t.Fatal(err)
			}
		}
		tell("target", "tgt_a", "grp_a")
		tell("target", "tgt_b", "grp_b", "grp_b", "")
		tell("edge", "edg_a", "grp_a") // nobody here may see nodes
		tell("target", "tgt_moved", "grp_b", "grp_a")
		tell("target", "tgt_none")
		for _, id := range []string{"tgt_a", "tgt_b", "tgt_moved", "tgt_none"} {
			all.want(`data: {"topic":"target","id":"` + id + `"}`)
		}
		// Every stream has its notes before the first thing is published: the two
		// come by ways of their own.
		a.want(`data: {"topic":"target"}`)
		a.want(`data: {"topic":"target"}`)
		b.want(`data: {"topic":"target"}`)
		b.want(`data: {"topic":"target"}`)
		f.Publish(Event{Topic: "target", ID: "tgt_p"})
		all.want(`data: {"topic":"target","id":"tgt_p"}`)
		f.Publish(Event{Topic: "target", ID: "tgt_q", Group: "grp_a"})
		all.want(`data: {"topic":"target","id":"tgt_q"}`)
		a.want(`data: {"topic":"target","id":"tgt_q"}`)
		f.Publish(Event{Topic: db.TopicResync})
		b.want("data: {}")
	})
}
