package target

import (
	"context"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Topics of notifications of this room.
const (
	TopicSite   = "site"
	TopicTarget = "target"
	TopicGrant  = "grant"
)

// actor is who acts by ctx; without a principal it is core itself.
func actor(ctx context.Context) audit.Actor {
	if p := api.PrincipalFrom(ctx); p != nil {
		return audit.By(p)
	}
	return audit.System
}

// wrote audits a change and tells the other rooms and cores of it, in the
// transaction that makes it. groups are the access group of the thing and, if
// it was moved, the one it was in.
func (s *Service) wrote(ctx context.Context, tx *db.Tx, e audit.Event, topic, id string, groups ...string) error {
	if len(groups) > 0 {
		e.Group = groups[0]
	}
	if e.Outcome == "" {
		e.Outcome = audit.OK
	}
	if e.Actor == (audit.Actor{}) {
		e.Actor = actor(ctx)
	}
	if err := s.c.Audit.Append(ctx, tx, e); err != nil {
		return err
	}
	return api.Notify(ctx, tx, topic, id, groups...)
}

func (t *Target) object() audit.Object { return audit.Object{Kind: "target", ID: t.ID, Name: t.Name} }
