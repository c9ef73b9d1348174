package netaccess

import (
	"context"
	"errors"
	"fmt"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/target"
	"caponier/shared/netrule"
)

// Simulated is what saving a network target would do to others.
type Simulated struct {
	// Targets overlap with it: one client cannot use both at a time, and
	// exclusive ones shut each other out.
	Targets []SimulatedTarget `json:"targets"`
	// Sessions are live ones that would be affected.
	Sessions []SimulatedSession `json:"sessions"`
	// Truncated: more targets overlap than are shown.
	Truncated bool `json:"truncated,omitempty"`
}

// SimulatedTarget is a target with overlapping destinations.
type SimulatedTarget struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Exclusive bool     `json:"exclusive"`
	Disabled  bool     `json:"disabled"`
	Overlaps  []string `json:"overlaps" doc:"its destinations that overlap, the first 20"`
	Effect    string   `json:"effect" enum:"not_both,one_at_a_time" doc:"not_both: one client cannot have both open; one_at_a_time: nobody can while somebody else does"`
}

// SimulatedSession is a live session that would be affected.
type SimulatedSession struct {
	ID         string    `json:"id"`
	UserName   string    `json:"user_name"`
	TargetID   string    `json:"target_id"`
	TargetName string    `json:"target_name"`
	Client     string    `json:"client_ip"`
	OpenedAt   time.Time `json:"opened_at"`
	Effect     string    `json:"effect" enum:"closed,blocks,kept" doc:"closed: it ends when this is saved; blocks: nobody else can open the target while it lasts; kept: its own client cannot open both"`
}

// Bounds of a simulation.
const (
	simulateTargets  = 200
	simulateOverlaps = 20
	simulatePage     = 200
)

func (s *Service) simulateRoutes(f *api.Frame) {
	api.Register(f, api.Op{Method: "POST", Path: "/network-targets/simulate", ID: "simulate-network-target", Tag: "targets",
		Who: api.Needs(api.TargetsManage), MaxBody: 2 << 20,
		Summary: "If this network target were saved: which targets would it overlap, which live sessions would be closed or block it"},
		func(ctx context.Context, in *struct {
			Body struct {
				ID      string             `json:"id,omitempty" maxLength:"64" doc:"of the target that is edited; left out for a new one"`
				Site    string             `json:"site,omitempty" maxLength:"63"`
				Network target.NetworkText `json:"network"`
			}
		}) (*struct{ Body *Simulated }, error) {
			n, err := in.Body.Network.Read()
			if err != nil {
				return nil, err
			}
			out, err := s.Simulate(ctx, &target.Target{ID: in.Body.ID, Site: in.Body.Site, Kind: target.Network, Network: n})
			return &struct{ Body *Simulated }{out}, err
		})
}

// Simulate tells what saving t would do. It changes nothing.
func (s *Service) Simulate(ctx context.Context, t *target.Target) (*Simulated, error) {
	mine := arrange(t.Network.Destinations)
	out := &Simulated{Targets: []SimulatedTarget{}, Sessions: []SimulatedSession{}}
	saved := map[string]*target.Target{}
	for after := ""; !out.Truncated; {
		page, err := s.cfg.Targets.List(ctx, s.cfg.DB, target.Filter{Kind: target.Network, In: access.Everywhere()}, after, simulatePage)
		if err != nil {
			return nil, fmt.Errorf("simulate: %w", err)
		}
		for i := range page {
			o := &page[i]
			after = o.Name
			if o.Network == nil {
				continue
			}
			if o.ID == t.ID || o.Name == t.ID {
				saved[o.ID] = o
				continue
			}
			hits := hit(o.Network.Destinations, mine)
			if len(hits) == 0 {
				continue
			}
			if len(out.Targets) == simulateTargets {
				out.Truncated = true
				break
			}
			v := SimulatedTarget{ID: o.ID, Name: o.Name, Exclusive: o.Network.Exclusive, Disabled: o.Disabled, Overlaps: hits, Effect: "not_both"}
			if o.Network.Exclusive || t.Network.Exclusive {
				v.Effect = "one_at_a_time"
			}
			out.Targets = append(out.Targets, v)
		}
		if len(page) < simulatePage {
			break
		}
	}
	type live struct {
		SimulatedSession
		exclusive bool
		selectors string
	}
	rows, err := db.Collect(ctx, s.cfg.DB, func(r db.Scanner) (live, error) {
		var x live
		var opened int64
		err := r.Scan(&x.ID, &x.UserName, &x.TargetID, &x.TargetName, &x.Client, &x.exclusive, &x.selectors, &opened)
		x.OpenedAt = time.UnixMicro(opened).UTC()
		return x, err
	}, onTargetSQL)
	if err != nil {
		return nil, fmt.Errorf("simulate: %w", err)
	}
	for _, x := range rows {
		if old := saved[x.TargetID]; old != nil {
			if definition(old) != definition(t) {
				x.Effect = "closed"
				out.Sessions = append(out.Sessions, x.SimulatedSession)
			}
			continue
		}
		m, err := s.matchesOf(ctx, s.cfg.DB, x.selectors)
		if errors.Is(err, db.ErrNotFound) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		if !m.overlaps(mine) {
			continue
		}
		x.Effect = "kept"
		if x.exclusive || t.Network.Exclusive {
			x.Effect = "blocks"
		}
		out.Sessions = append(out.Sessions, x.SimulatedSession)
	}
	return out, nil
}

// hit names the destinations that overlap, at most 20.
func hit(ds []netrule.Destination, with *selectors) []string {
	var out []string
	for i := range ds {
		if len(out) == simulateOverlaps {
			break
		}
		if arrange(ds[i : i+1]).overlaps(with) {
			out = append(out, ds[i].String())
		}
	}
	return out
}
