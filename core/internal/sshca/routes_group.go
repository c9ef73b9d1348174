package sshca

import (
	"context"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

// GroupIn names an access group in a path.
type GroupIn struct {
	ID string `path:"id" maxLength:"64"`
}

// GroupKeyIn names a key of its authority.
type GroupKeyIn struct {
	ID  string `path:"id" maxLength:"64"`
	Key string `path:"key" maxLength:"64"`
}

type groupCAOut struct {
	Body struct {
		UserCA string `json:"user_ca" doc:"for TrustedUserCAKeys of the group's targets, one line per key"`
		Keys   []Key  `json:"keys" nullable:"false" doc:"all generations, newest first"`
	}
}

// groupRoutes registers what administrators of an access group do with the
// authority of its targets.
func (c *CA) groupRoutes(f *api.Frame) {
	const tag = "access-groups"
	view, manage := api.NeedsSomewhere(api.GroupsView), api.NeedsSomewhere(api.GroupsManage)
	api.Register(f, api.Op{Method: "GET", Path: "/access-groups/{id}/ssh-ca", ID: "get-group-ssh-ca", Tag: tag, Who: view,
		Summary: "The SSH authority of the group's targets"}, c.groupCA)
	api.Register(f, api.Op{Method: "POST", Path: "/access-groups/{id}/ssh-ca/keys", ID: "renew-group-ssh-ca", Tag: tag, Who: manage, Status: 201,
		Summary: "Make the next key of the group's authority; it is published and does not sign yet",
	}, func(ctx context.Context, in *GroupIn) (*keyOut, error) {
		if err := mayChange(ctx, in.ID); err != nil {
			return nil, err
		}
		return one(c.Renew(ctx, ForTargets, in.ID, audit.By(api.PrincipalFrom(ctx))))
	})
	api.Register(f, api.Op{Method: "POST", Path: "/access-groups/{id}/ssh-ca/keys/{key}/activate", ID: "activate-group-ssh-ca-key", Tag: tag, Who: manage,
		Summary: "Make the next key sign; the former one stays trusted until it is revoked",
	}, func(ctx context.Context, in *GroupKeyIn) (*keyOut, error) {
		if err := c.mayMove(ctx, in); err != nil {
			return nil, err
		}
		return one(c.Activate(ctx, in.ID, in.Key, audit.By(api.PrincipalFrom(ctx))))
	})
	api.Register(f, api.Op{Method: "POST", Path: "/access-groups/{id}/ssh-ca/keys/{key}/revoke", ID: "revoke-group-ssh-ca-key", Tag: tag, Who: manage,
		Summary: "End all trust in a key that does not sign any more",
	}, func(ctx context.Context, in *GroupKeyIn) (*keyOut, error) {
		if err := c.mayMove(ctx, in); err != nil {
			return nil, err
		}
		return one(c.RevokeKey(ctx, in.ID, in.Key, audit.By(api.PrincipalFrom(ctx))))
	})
}

func guarded(groupID string) api.Guarded {
	return api.Guarded{Kind: "access group", ID: groupID, View: api.GroupsView, Manage: api.GroupsManage}
}

func mayChange(ctx context.Context, groupID string) error {
	return guarded(groupID).Administer(ctx, groupID, groupID)
}

// mayMove refuses who may not change the group, and keys of core's other
// authorities, which are the installation's: see /ssh-ca/keys.
func (c *CA) mayMove(ctx context.Context, in *GroupKeyIn) error {
	if err := mayChange(ctx, in.ID); err != nil {
		return err
	}
	keys, err := queryKeys(ctx, c.c.DB, keyByIDSQL, in.Key)
	if err != nil {
		return err
	}
	if len(keys) == 0 || keys[0].Purpose != ForTargets {
		return api.Missing("authority key", in.Key)
	}
	return nil
}

func (c *CA) groupCA(ctx context.Context, in *GroupIn) (*groupCAOut, error) {
	if err := guarded(in.ID).See(ctx, in.ID); err != nil {
		return nil, err
	}
	out := &groupCAOut{}
	var err error
	if out.Body.Keys, err = readKeys(ctx, c.c.DB, ForTargets, in.ID); err != nil {
		return nil, err
	}
	if len(out.Body.Keys) == 0 { // every group has one
		return nil, api.Missing("access group", in.ID)
	}
	out.Body.UserCA, err = c.PublicKey(ctx, in.ID)
	return out, err
}
