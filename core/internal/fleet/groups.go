package fleet

import (
	"context"
	"errors"
	"fmt"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Nodes and tokens are in the access group of their site; those without a site
// are in the default group.

// inScope is the condition that the site of a row is in a scope ($n, see
// access.Scope.Text).
const (
	groupOfRow   = `coalesce((select s.group_id from sites s where s.name = site), '` + access.DefaultGroup + `')`
	qSiteGroup   = `select group_id from sites where name = $1`
	qEdgeGroup   = `select ` + groupOfRow + ` from edges where id = $1`
	qEdgesGroups = `select distinct ` + groupOfRow + ` from edges where revoked_at = 0 limit 1000`
)

// siteGroup is the access group of a site; of none, and of one that is gone,
// the default one.
func siteGroup(ctx context.Context, q db.Querier, site string) (string, error) {
	if site == "" {
		return access.DefaultGroup, nil
	}
	return groupBy(ctx, q, qSiteGroup, site)
}

// edgeGroup is the access group of a node.
func edgeGroup(ctx context.Context, q db.Querier, id string) (string, error) {
	return groupBy(ctx, q, qEdgeGroup, id)
}

func groupBy(ctx context.Context, q db.Querier, query, key string) (group string, err error) {
	err = db.Classify(q.QueryRowContext(ctx, query, key).Scan(&group))
	if errors.Is(err, db.ErrNotFound) {
		return access.DefaultGroup, nil
	}
	if err != nil {
		return "", fmt.Errorf("read access group of %.64s: %w", key, err)
	}
	return group, nil
}

func guardedEdge(id string) api.Guarded {
	return api.Guarded{Kind: "edge", ID: id, View: api.EdgesView, Manage: api.EdgesManage}
}

func guardedToken(id string) api.Guarded {
	return api.Guarded{Kind: "enrolment token", ID: id, View: api.EdgesView, Manage: api.EdgesManage}
}

// seen reads a node that exists for the caller.
func (f *Fleet) seen(ctx context.Context, q db.Querier, id string) (nodeRow, string, error) {
	e, err := getEdge(ctx, q, id)
	if errors.Is(err, db.ErrNotFound) {
		return e, "", api.Missing("edge", id)
	}
	if err != nil {
		return e, "", err
	}
	g, err := siteGroup(ctx, q, e.Site)
	if err != nil {
		return e, "", err
	}
	return e, g, guardedEdge(id).See(ctx, g)
}

// siteLink is the link of a node to the site it is to be in.
func siteLink(ctx context.Context, q db.Querier, site string) (api.Link, error) {
	g, err := siteGroup(ctx, q, site)
	return api.Link{Field: "site", Message: "must be a site of your access groups", Permission: api.EdgesManage, Group: g}, err
}
