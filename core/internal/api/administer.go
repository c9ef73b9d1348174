package api

import (
	"context"

	"caponier/core/internal/access"
)

// Guarded names a thing that is in an access group and the permissions that
// see and change things of its kind.
type Guarded struct {
	Kind, ID     string // for the answer to who may not see it
	View, Manage Permission
}

// Link is another thing that a change makes the guarded one refer to. What is
// outside the groups where the caller has the permission is answered like what
// does not exist: Message about Field.
type Link struct {
	Field, Message string
	Permission     Permission
	Group          string
}

// Administer decides by access.Administer whether the caller of the request
// may change the thing: from is the group it is in (empty: it is new), to the
// one it is in afterwards (empty: it goes). The error is the problem to show.
// A context without a principal is core itself, which may.
func (g Guarded) Administer(ctx context.Context, from, to string, links ...Link) error {
	p := PrincipalFrom(ctx)
	if p == nil {
		return nil
	}
	view, manage := p.Scope(g.View), p.Scope(g.Manage)
	c := access.Change{From: from, To: to}
	switch access.Administer(view, manage, c) {
	case access.Granted:
	case access.Forbidden:
		return Denied("permission_missing", "This needs the permission "+string(g.Manage)+" in its access group.")
	case access.Unlinked:
		return Invalid(FieldError{Field: "group", Message: "there is no such access group"})
	default:
		return Missing(g.Kind, g.ID)
	}
	for _, l := range links {
		c.Links = append(c.Links, access.Link{Scope: p.Scope(l.Permission), Group: l.Group})
		if access.Administer(view, manage, c) != access.Granted {
			return Invalid(FieldError{Field: l.Field, Message: l.Message})
		}
	}
	return nil
}

// See is Administer for reading: nil when the thing is in a group where the
// caller may see things of the kind.
func (g Guarded) See(ctx context.Context, group string) error {
	p := PrincipalFrom(ctx)
	if p == nil || access.Sees(p.Scope(g.View), p.Scope(g.Manage), group) {
		return nil
	}
	return Missing(g.Kind, g.ID)
}

// PlaceNew is the group for a new thing of the caller's (see access.Place);
// the caller's right to put it there is for Administer to check.
func PlaceNew(ctx context.Context, manage Permission, asked string) (string, error) {
	p := PrincipalFrom(ctx)
	if p == nil {
		if asked == "" {
			asked = access.DefaultGroup
		}
		return asked, nil
	}
	if g := access.Place(p.Scope(manage), asked); g != "" {
		return g, nil
	}
	return "", Invalid(FieldError{Field: "group", Message: "say in which of your access groups"})
}
