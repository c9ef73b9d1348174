package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"caponier/core/internal/access"
	"caponier/shared/wire"
)

// Summary is the fleet at a glance.
type Summary struct {
	Total    int         `json:"total" doc:"nodes that are not revoked"`
	Online   int         `json:"online"`
	Kinds    []KindCount `json:"kinds" nullable:"false"`
	Trouble  []Trouble   `json:"trouble" nullable:"false" doc:"worst first"`
	Troubles int         `json:"troubles" doc:"how many there are, also those not listed"`
	Streams  int         `json:"streams" doc:"streams open in all tunnels now"`
}

// KindCount counts the nodes of a kind.
type KindCount struct {
	Kind   string `json:"kind"`
	Total  int    `json:"total"`
	Online int    `json:"online"`
}

// Trouble is a node, or a site, that needs somebody.
type Trouble struct {
	ID    string    `json:"id,omitempty" doc:"of the node; empty for a site"`
	Name  string    `json:"name"`
	Kind  string    `json:"kind" doc:"extender, …, or site"`
	Site  string    `json:"site,omitempty"`
	Level string    `json:"level" enum:"error,warning"`
	Why   string    `json:"why"`
	Since time.Time `json:"since,omitzero"`
}

// A node that was enrolled this long ago and never connected needs somebody.
const neverGrace = 10 * time.Minute

const qSummary = `select id, kind, name, site, cordoned, seen_at, last_error, created_at, cert_not_after from edges where revoked_at = 0
		and ($1 = '*' or $1 like '%,' || ` + groupOfRow + ` || ',%')`

// Summary looks at every node of a scope of access groups; limit bounds the
// list of those in trouble.
func (f *Fleet) Summary(ctx context.Context, in access.Scope, limit int) (Summary, error) {
	rows, err := collect(ctx, f.c.DB, "summarise edges", func(s scanner) (e nodeRow, err error) {
		var seen, created, end int64
		err = s.Scan(&e.ID, &e.Kind, &e.Name, &e.Site, &e.Cordoned, &seen, &e.LastError, &created, &end)
		e.SeenAt, e.CreatedAt, e.CertNotAfter = fromMicros(seen), fromMicros(created), fromMicros(end)
		return e, err
	}, qSummary, in.Text())
	if err != nil {
		return Summary{}, err
	}
	now := f.now()
	kinds, sites := map[string]*KindCount{}, map[string]bool{} // site → an extender takes connections
	s := Summary{Total: len(rows), Kinds: []KindCount{}, Trouble: []Trouble{}}
	for i := range rows {
		e := &rows[i]
		k := kinds[string(e.Kind)]
		if k == nil {
			k = &KindCount{Kind: string(e.Kind)}
			kinds[k.Kind] = k
		}
		k.Total++
		n := f.get(e.ID)
		if n != nil {
			s.Online, k.Online, s.Streams = s.Online+1, k.Online+1, s.Streams+n.session.Stats().Streams
		}
		if e.Kind == wire.Extender {
			sites[e.Site] = sites[e.Site] || n != nil && !e.Cordoned && !n.leaving.Load()
		}
		if t, bad := f.trouble(e, n, now); bad {
			s.Trouble = append(s.Trouble, t)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sites)) {
		if !sites[name] {
			s.Trouble = append(s.Trouble, Trouble{Name: name, Kind: "site", Site: name, Level: "error",
				Why: "no extender of the site takes connections: its targets cannot be reached"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		s.Kinds = append(s.Kinds, *kinds[name])
	}
	rank := map[string]int{"error": 0, "warning": 1}
	slices.SortStableFunc(s.Trouble, func(a, b Trouble) int {
		return cmp.Or(cmp.Compare(rank[a.Level], rank[b.Level]), b.Since.Compare(a.Since), cmp.Compare(a.Name, b.Name))
	})
	s.Troubles = len(s.Trouble)
	s.Trouble = s.Trouble[:min(len(s.Trouble), limit)]
	return s, nil
}

// trouble says what is wrong with a node, the worst of it.
func (f *Fleet) trouble(e *nodeRow, n *node, now time.Time) (Trouble, bool) {
	t := Trouble{ID: e.ID, Name: e.Name, Kind: string(e.Kind), Site: e.Site, Level: "warning"}
	if n == nil {
		switch {
		case !e.CertNotAfter.IsZero() && !now.Before(e.CertNotAfter):
			t.Level, t.Since, t.Why = "error", e.CertNotAfter, "its certificate has ended: enrol it again"
		case e.SeenAt.IsZero() && now.Sub(e.CreatedAt) > neverGrace:
			t.Since, t.Why = e.CreatedAt, "it was enrolled and never connected"
		case e.SeenAt.IsZero():
			return t, false
		default:
			t.Level, t.Since, t.Why = "error", e.SeenAt, "it is offline"
			if e.LastError != "" {
				t.Why += ": " + e.LastError
			}
		}
		return t, true
	}
	skew := time.Duration(n.skew.Load()) * time.Microsecond
	switch st := n.status.Load(); {
	case skew.Abs() > f.c.MaxSkew:
		t.Why = fmt.Sprintf("its clock differs from core's by %s: set up time synchronisation", skew.Round(time.Second))
	case e.CertNotAfter.Before(now.Add(f.c.RenewBefore / 2)):
		t.Since, t.Why = e.CertNotAfter, "its certificate ends soon and was not renewed: look at its log"
	case st != nil && now.Sub(st.at) > 4*f.statusEvery():
		t.Since, t.Why = st.at, "it has stopped reporting although its tunnel is up"
	case n.leaving.Load():
		t.Why = "it drains: it was told to stop"
	case st != nil && st.Web != nil && st.Web.Problem != "":
		t.Level, t.Why = "error", "it takes no web sessions: "+limit(st.Web.Problem, 300)
	default:
		return t, false
	}
	return t, true
}
