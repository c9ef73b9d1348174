package access

import (
	"slices"
	"strings"
)

// DefaultGroup is the access group of everything that is in no other one. It
// is always there.
const DefaultGroup = "default"

// Scope is where an administrative permission holds: in every access group or
// in some. The zero value holds nowhere.
type Scope struct {
	all    bool
	groups []string // sorted, distinct
}

// Everywhere is the scope of a permission that is not limited to groups.
func Everywhere() Scope { return Scope{all: true} }

// Within is the scope of a permission in some groups; without groups it holds
// nowhere.
func Within(groups ...string) Scope {
	g := slices.DeleteFunc(slices.Clone(groups), func(s string) bool { return s == "" })
	slices.Sort(g)
	return Scope{groups: slices.Compact(g)}
}

// All reports whether the scope is not limited to groups.
func (s Scope) All() bool { return s.all }

// Nowhere reports whether the scope holds nowhere.
func (s Scope) Nowhere() bool { return !s.all && len(s.groups) == 0 }

// Groups are the groups of a limited scope.
func (s Scope) Groups() []string { return slices.Clone(s.groups) }

// Has reports whether the scope holds in a group. Only an unlimited one holds
// for what is in no group.
func (s Scope) Has(group string) bool { return s.all || slices.Contains(s.groups, group) }

// Covers reports whether s holds wherever t does.
func (s Scope) Covers(t Scope) bool {
	if s.all {
		return true
	}
	return !t.all && !slices.ContainsFunc(t.groups, func(g string) bool { return !s.Has(g) })
}

// And is the scope of two permissions of one kind together.
func (s Scope) And(t Scope) Scope {
	if s.all || t.all {
		return Everywhere()
	}
	return Within(slices.Concat(s.groups, t.groups)...)
}

// Text is the scope as queries take it: "*" for everywhere, else the groups
// between commas (",a,b,"), empty for nowhere. A query selects by
//
//	($1 = '*' or $1 like '%,' || group_id || ',%')
func (s Scope) Text() string {
	switch {
	case s.all:
		return "*"
	case len(s.groups) == 0:
		return ""
	}
	return "," + strings.Join(s.groups, ",") + ","
}

// Change is what an administrator wants to do with one object. Its fields are
// groups; an object that is not there yet, or is to go, has one of the two.
type Change struct {
	// From is the group the object is in; empty = it is to be made.
	From string
	// To is the group it is in afterwards; empty = it is to be removed.
	To string
	// Links are the groups of the other objects it will refer to: the target
	// and role of a grant, the site of a target, the secret of an account.
	Links []Link
}

// Link is a reference of the changed object to another one.
type Link struct {
	// Scope is where the administrator may use objects of that kind.
	Scope Scope
	Group string
}

// Verdict is the answer to an administrator. The zero value hides.
type Verdict uint8

// The verdicts.
const (
	// Hidden: the object does not exist for him.
	Hidden Verdict = iota
	// Forbidden: he sees it, and may not do this.
	Forbidden
	// Unlinked: an object that it is to refer to does not exist for him.
	Unlinked
	// Granted: he may.
	Granted
)

// Administer is THE decision about administrators and access groups: may
// somebody who sees objects in the scope view, and changes them in the scope
// manage, make this change? It reads nothing but its arguments.
func Administer(view, manage Scope, c Change) Verdict {
	switch {
	case c.From == "" && c.To == "":
		return Hidden
	case c.From != "" && !view.Has(c.From) && !manage.Has(c.From):
		return Hidden
	case c.From != "" && !manage.Has(c.From):
		return Forbidden
	case c.To != "" && !manage.Has(c.To):
		return Unlinked // a group he does not know
	}
	for _, l := range c.Links {
		if l.Group == "" || !l.Scope.Has(l.Group) {
			return Unlinked
		}
	}
	return Granted
}

// Sees reports whether an object of the group exists for somebody who views
// in the one scope and manages in the other.
func Sees(view, manage Scope, group string) bool {
	return group != "" && (view.Has(group) || manage.Has(group))
}

// Place is the group of a new object: the one asked for, or, when none is, the
// only one the maker may manage, or the default group if that is one of
// several. It is empty when he must say which.
func Place(manage Scope, asked string) string {
	switch {
	case asked != "":
		return asked
	case manage.Has(DefaultGroup):
		return DefaultGroup
	case len(manage.groups) == 1:
		return manage.groups[0]
	}
	return ""
}
