package access

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestScope(t *testing.T) {
	a, ab, b := Within("grp_a"), Within("grp_b", "grp_a", "grp_a", ""), Within("grp_b")
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"everywhere has all", Everywhere().Has("grp_x"), true},
		{"everywhere has what is in none", Everywhere().Has(""), true},
		{"nowhere has none", Scope{}.Has("grp_a"), false},
		{"limited lacks what is in none", a.Has(""), false},
		{"limited has its own", a.Has("grp_a"), true},
		{"limited lacks others", a.Has("grp_b"), false},
		{"no prefix", Within("grp_ab").Has("grp_a"), false},
		{"nowhere", Within().Nowhere() && Within("").Nowhere() && !a.Nowhere() && !Everywhere().Nowhere(), true},
		{"covers", Everywhere().Covers(ab) && ab.Covers(a) && a.Covers(Scope{}), true},
		{"covers not", a.Covers(ab) || a.Covers(b) || ab.Covers(Everywhere()) || Scope{}.Covers(a), false},
		{"and", a.And(b).Text(), ab.Text()},
		{"and everywhere", a.And(Everywhere()).All() && Everywhere().And(a).All(), true},
		{"text", Everywhere().Text() + " " + Scope{}.Text() + " " + ab.Text(), "*  ,grp_a,grp_b,"},
		{"groups", strings.Join(ab.Groups(), " "), "grp_a grp_b"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	g := ab.Groups()
	g[0] = "grp_x"
	if ab.Has("grp_x") {
		t.Error("a scope can be changed from outside")
	}
}

func TestAdminister(t *testing.T) {
	a, b, all, none := Within("a"), Within("b"), Everywhere(), Scope{}
	for _, c := range []struct {
		name         string
		view, manage Scope
		change       Change
		want         Verdict
	}{
		{"nothing", all, all, Change{}, Hidden},
		{"change", a, a, Change{From: "a", To: "a"}, Granted},
		{"managing includes seeing", none, a, Change{From: "a", To: "a"}, Granted},
		{"change with view only", a, none, Change{From: "a", To: "a"}, Forbidden},
		{"change of another's", a, a, Change{From: "b", To: "b"}, Hidden},
		{"seen there, managed here", Within("a", "b"), a, Change{From: "b", To: "b"}, Forbidden},
		{"no rights", none, none, Change{From: "a", To: "a"}, Hidden},
		{"make", a, a, Change{To: "a"}, Granted},
		{"make elsewhere", a, a, Change{To: "b"}, Unlinked},
		{"make with view only", a, none, Change{To: "a"}, Unlinked},
		{"remove", a, a, Change{From: "a"}, Granted},
		{"remove another's", a, a, Change{From: "b"}, Hidden},
		{"give away", a, a, Change{From: "a", To: "b"}, Unlinked},
		{"take over", a, a, Change{From: "b", To: "a"}, Hidden},
		{"move between one's own", none, Within("a", "b"), Change{From: "a", To: "b"}, Granted},
		{"everywhere", all, all, Change{From: "a", To: "b"}, Granted},
		{"with a link of one's own", a, a, Change{From: "a", To: "a", Links: []Link{{a, "a"}}}, Granted},
		{"with a link to another's", a, a, Change{From: "a", To: "a", Links: []Link{{a, "a"}, {a, "b"}}}, Unlinked},
		{"with a link of another right", a, a, Change{From: "a", To: "a", Links: []Link{{b, "a"}}}, Unlinked},
		{"with a link to nothing", a, all, Change{From: "a", To: "a", Links: []Link{{all, ""}}}, Unlinked},
		{"hidden before unlinked", a, a, Change{From: "b", To: "b", Links: []Link{{a, "b"}}}, Hidden},
	} {
		if got := Administer(c.view, c.manage, c.change); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	var zero Verdict
	if zero != Hidden {
		t.Error("the zero verdict does not hide")
	}
}

func TestPlace(t *testing.T) {
	for _, c := range []struct {
		manage      Scope
		asked, want string
	}{
		{Everywhere(), "", DefaultGroup}, {Everywhere(), "a", "a"}, {Within("a"), "", "a"}, {Within("a"), "b", "b"},
		{Within("a", "b"), "", ""}, {Within("a", DefaultGroup), "", DefaultGroup}, {Scope{}, "", ""},
	} {
		if got := Place(c.manage, c.asked); got != c.want {
			t.Errorf("in %q, asked %q: %q, want %q", c.manage.Text(), c.asked, got, c.want)
		}
	}
}

var someGroups = []string{"a", "b", "c", DefaultGroup}

func drawScope(t *rapid.T, name string) Scope {
	if rapid.IntRange(0, 5).Draw(t, name+" kind") == 0 {
		return Everywhere()
	}
	return Within(rapid.SliceOfDistinct(rapid.SampledFrom(someGroups), rapid.ID[string]).Draw(t, name)...)
}

// TestNobodyReachesOut: whatever an administrator of groups is granted lies in
// his groups on every side, and no series of granted changes brings an object
// out of another's group, into one, or in touch with one.
func TestNobodyReachesOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		manage := Within(rapid.SliceOfNDistinct(rapid.SampledFrom(someGroups), 0, 3, rapid.ID[string]).Draw(t, "mine")...)
		// Objects: where each is, and what it refers to.
		type object struct{ at, to string }
		objects := make([]object, 6)
		for i := range objects {
			objects[i] = object{rapid.SampledFrom(someGroups).Draw(t, "at"), rapid.SampledFrom(someGroups).Draw(t, "to")}
		}
		before := slices.Clone(objects)
		for range 30 {
			i := rapid.IntRange(0, len(objects)-1).Draw(t, "which")
			c := Change{From: objects[i].at, To: rapid.SampledFrom(append(someGroups, "")).Draw(t, "move")}
			link := rapid.SampledFrom(someGroups).Draw(t, "link")
			if c.From == "" || link != objects[i].to { // a new one refers to all anew
				c.Links = []Link{{manage, link}}
			}
			if Administer(drawScope(t, "view"), manage, c) != Granted {
				continue
			}
			if c.From != "" && !manage.Has(c.From) || c.To != "" && !manage.Has(c.To) {
				t.Fatalf("with %q: %+v was granted", manage.Text(), c)
			}
			objects[i] = object{c.To, link}
		}
		for i, o := range objects {
			switch was := before[i]; {
			case !manage.Has(was.at) && o != was:
				t.Fatalf("another's object changed from %+v to %+v", was, o)
			case manage.Has(was.at) && o.at != "" && !manage.Has(o.at):
				t.Fatalf("an object was given away: %+v, was %+v", o, was)
			case o.to != was.to && !manage.Has(o.to):
				t.Fatalf("an object came to refer to another's: %+v, was %+v", o, was)
			}
		}
	})
}

// TestTextSelectsWhatHasDoes: the condition of the queries and Has agree.
func TestTextSelectsWhatHasDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, g := drawScope(t, "scope"), rapid.SampledFrom(append(someGroups, "ab", "x")).Draw(t, "group")
		text := s.Text()
		if selects := text == "*" || strings.Contains(text, ","+g+","); selects != s.Has(g) {
			t.Fatalf("%q selects %s: %v", text, g, selects)
		}
	})
}

// TestScopeIsAnOrder: what covers is transitive, joins cover their parts, and
// giving within one's scope never yields more than one had.
func TestScopeIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawScope(t, "a"), drawScope(t, "b"), drawScope(t, "c")
		if !a.And(b).Covers(a) || !a.And(b).Covers(b) {
			t.Fatalf("%q and %q do not cover their parts", a.Text(), b.Text())
		}
		if a.Covers(b) && b.Covers(c) && !a.Covers(c) {
			t.Fatal("covering is not transitive")
		}
		if a.Covers(b) && a.And(b).Text() != a.Text() {
			t.Fatalf("%q given within %q makes more of it", b.Text(), a.Text())
		}
	})
}
