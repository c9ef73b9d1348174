package user

import (
	"context"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

// actorOf is the caller of an operation as the audit log names him.
func actorOf(ctx context.Context) audit.Actor {
	p := api.PrincipalFrom(ctx)
	if p == nil {
		return audit.Actor{Kind: "anonymous", Source: addrText(api.SourceFrom(ctx)), Via: "api"}
	}
	return audit.By(p)
}

// ref is how a row remembers who made it: by ID, which stays when his name is
// erased.
func ref(by audit.Actor) string {
	if by.ID != "" {
		return by.ID
	}
	return by.Kind
}

func (u *User) object() audit.Object {
	return audit.Object{Kind: "user", ID: u.ID, Name: u.Name}
}
