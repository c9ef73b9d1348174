package netaccess

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/shared/wire"
)

// Router is an edge node of kind router as the interface shows it.
type Router struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Health   string   `json:"health" enum:"online,draining,cordoned,offline,revoked,never_connected"`
	Pools    []string `json:"pools" doc:"client addresses whose traffic it forwards"`
	Sources  []string `json:"sources" doc:"its own addresses, as core sees packets it translates; empty: where its tunnel comes from"`
	Type     string   `json:"type,omitempty" doc:"nftables, exec, sshexec or logger, as it said last"`
	Leased   bool     `json:"leased" doc:"rules end by themselves when core is not heard of; false where the program behind exec cannot do that"`
	Synced   bool     `json:"synced" doc:"it has confirmed all that core wants"`
	Sessions int      `json:"sessions" doc:"that it is to hold"`
	Ending   int      `json:"ending" doc:"closed sessions whose rules it has not confirmed gone"`
	Problem  string   `json:"problem,omitempty"`
	// LeaseUntil is until when its rules hold without further news.
	LeaseUntil time.Time `json:"lease_until,omitzero"`
	LastSeen   time.Time `json:"last_seen,omitzero"`
	ChangedAt  time.Time `json:"changed_at,omitzero"`
	Version    int64     `json:"version"`
}

// limits of a router's settings.
const maxPrefixes = 256

func (s *Service) routerRoutes(f *api.Frame) {
	const tag = "routers"
	api.Register(f, api.Op{Method: "GET", Path: "/routers", ID: "list-routers", Tag: tag, Who: api.Needs(api.EdgesView),
		Summary: "List routers with their client address pools and health"}, s.handleRouters)
	api.Register(f, api.Op{Method: "GET", Path: "/routers/{id}", ID: "get-router", Tag: tag, Who: api.Needs(api.EdgesView),
		Summary: "Show a router"}, s.handleRouter)
	api.Register(f, api.Op{Method: "PATCH", Path: "/routers/{id}", ID: "patch-router", Tag: tag, Who: api.Needs(api.EdgesManage),
		Summary: "Change the client address pools and source addresses of a router"}, s.handlePatchRouter)
}

type routersOut struct{ Body api.Page[Router] }

type routerOut struct {
	ETag string `header:"ETag"`
	Body Router
}

func (s *Service) handleRouters(ctx context.Context, _ *struct{}) (*routersOut, error) {
	rs, err := s.routers(ctx)
	if err != nil {
		return nil, err
	}
	return &routersOut{Body: api.Page[Router]{Items: rs}}, nil
}

func (s *Service) handleRouter(ctx context.Context, in *api.ConnectionIDIn) (*routerOut, error) {
	return s.router(ctx, in.ID)
}

func (s *Service) router(ctx context.Context, id string) (*routerOut, error) {
	rs, err := s.routers(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(rs, func(r Router) bool { return r.ID == id || r.Name == id })
	if i < 0 {
		return nil, api.Missing("router", id)
	}
	return &routerOut{ETag: api.ETag(rs[i].Version), Body: rs[i]}, nil
}

// readRouters reads the nodes that are routers, and their settings.
func (s *Service) readRouters(ctx context.Context) (nodes []fleet.Node, rows map[string]*routerRow, err error) {
	err = s.cfg.DB.View(ctx, func(tx *db.Tx) (err error) {
		if nodes, err = s.cfg.Fleet.Nodes(ctx, tx, wire.Router); err != nil {
			return err
		}
		rows, err = routerSettings(ctx, tx)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read routers: %w", err)
	}
	return nodes, rows, nil
}

// routers reads all routers, ordered by name.
func (s *Service) routers(ctx context.Context) ([]Router, error) {
	nodes, rows, err := s.readRouters(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Router, len(nodes))
	for i, n := range nodes {
		r := rows[n.ID]
		if r == nil {
			r = &routerRow{ID: n.ID, Version: 1}
		}
		v := Router{ID: n.ID, Name: n.Name, Health: n.Health, Pools: texts(r.Pools), Sources: texts(r.Sources), Type: r.Type, Leased: r.Leased,
			LastSeen: n.SeenAt, Version: r.Version, Problem: n.LastError}
		if r.ChangedAt.UnixMicro() > 0 {
			v.ChangedAt = r.ChangedAt
		}
		if p := s.peer(n.ID); p != nil {
			p.mu.Lock()
			v.Sessions, v.Ending = len(p.want), len(p.ending)
			v.Synced = p.synced != 0 && len(p.fresh)+len(p.gone)+len(p.ending) == 0
			if p.problem != "" {
				v.Problem = p.problem
			}
			if p.synced != 0 && !p.heldUntil.IsZero() {
				v.LeaseUntil = p.heldUntil.UTC()
			}
			p.mu.Unlock()
		}
		out[i] = v
	}
	slices.SortFunc(out, func(a, b Router) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out, nil
}

func texts(ps []netip.Prefix) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return out
}

type patchRouterIn struct {
	ID      string `path:"id" maxLength:"64" doc:"id or name"`
	IfMatch string `header:"If-Match"`
	Body    struct {
		Pools   *[]string `json:"pools,omitempty" maxItems:"256" doc:"networks such as 10.8.0.0/24"`
		Sources *[]string `json:"sources,omitempty" maxItems:"256" doc:"addresses or networks"`
	}
}

func (s *Service) handlePatchRouter(ctx context.Context, in *patchRouterIn) (*routerOut, error) {
	found, err := s.router(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	var bad []api.FieldError
	read := func(field string, texts *[]string) []netip.Prefix {
		if texts == nil {
			return nil
		}
		out := make([]netip.Prefix, 0, len(*texts))
		for i, text := range *texts {
			p, err := parsePrefix(text)
			if err != nil || i >= maxPrefixes {
				bad = append(bad, api.FieldError{Field: fmt.Sprintf("%s[%d]", field, i), Message: fmt.Sprintf("%.64q is not a network such as 10.8.0.0/24", text)})
				continue
			}
			out = append(out, p)
		}
		slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Compare(b) })
		return slices.Compact(out)
	}
	pools, sources := read("pools", in.Body.Pools), read("sources", in.Body.Sources)
	if len(bad) > 0 {
		return nil, api.Invalid(bad...)
	}
	id, name := found.Body.ID, found.Body.Name
	err = s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		now := s.cfg.Now()
		if err := ensureSettings(ctx, tx, id, now); err != nil {
			return err
		}
		old, err := scanRouter(tx.QueryRowContext(ctx, settingSQL, id))
		if err != nil {
			return fmt.Errorf("read settings of router %s: %w", id, err)
		}
		if err := api.CheckMatch(in.IfMatch, old.Version); err != nil {
			return err
		}
		next := *old
		if in.Body.Pools != nil {
			next.Pools = pools
		}
		if in.Body.Sources != nil {
			next.Sources = sources
		}
		res, err := tx.ExecContext(ctx, setSettings, id, list(next.Pools), list(next.Sources), now.UnixMicro(), old.Version)
		if err != nil {
			return fmt.Errorf("write settings of router %s: %w", id, err)
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, db.ErrConflict)
		}
		if err := tx.Notify(ctx, topicRouter, id); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, changedRouter(actor(ctx), id, name, old, &next))
	})
	if err != nil {
		return nil, err
	}
	// The note would do the same a moment later; this way the caller sees it done.
	if err := s.reconcile(ctx); err != nil {
		s.cfg.Log.Warn("routers not read; tried again", "err", err)
	}
	return s.router(ctx, id)
}

// parsePrefix reads a network or one address.
func parsePrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, err
	}
	if p.Addr().Is4In6() || p != p.Masked() {
		return p, errors.New("bits after the prefix")
	}
	return p, nil
}
