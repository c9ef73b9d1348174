package webaccess

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// candidate is a node a session may be given to.
type candidate struct {
	ID, Name string
	Labels   map[string]string
	Cordoned bool
	// Web is what it reported last; nil: nothing yet.
	Web *wire.WebCapacity
	// Since is how many sessions it was given since it reported.
	Since int
}

// demand is what a target asks of its nodes.
type demand struct {
	Kind   wire.NodeKind
	Site   string
	Labels map[string]string
	Engine string // the browser, of carriers; empty: any
}

// siteLabel marks nodes that serve one site: they are preferred for its
// targets and not used for those of other sites.
const siteLabel = "site"

// demandOf reads a target's tags: "carrier/zone=eu" demands carriers with the
// label zone=eu.
func demandOf(kind wire.NodeKind, t *target.Target) demand {
	d := demand{Kind: kind, Site: t.Site, Labels: map[string]string{}}
	if kind == wire.Carrier && t.Web != nil {
		d.Engine = cmp.Or(t.Web.Browser.Engine, wire.Firefox)
	}
	for _, tag := range t.Tags {
		if label, ok := strings.CutPrefix(tag, string(kind)+"/"); ok {
			k, v, _ := strings.Cut(label, "=")
			d.Labels[k] = v
		}
	}
	return d
}

func (c *candidate) fits(d demand) bool {
	if site := c.Labels[siteLabel]; site != "" && site != d.Site {
		return false
	}
	for k, v := range d.Labels {
		if have, ok := c.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// room is how many more sessions it takes.
func (c *candidate) room() int {
	return min(c.Web.Room-c.Since, c.Web.Max-c.Web.Live-c.Since)
}

// load is how full it is, in thousandths.
func (c *candidate) load() int { return 1000 * (c.Web.Live + c.Since) / max(c.Web.Max, 1) }

// warm reports whether a browser of d's waits there.
func (c *candidate) warm(d demand) bool {
	if d.Kind != wire.Carrier {
		return false
	}
	if d.Engine == "" {
		return c.Web.Warm > c.Since
	}
	e, _ := c.Web.Engine(d.Engine)
	return e.Warm > c.Since
}

// lacks is why the node has no browser of d's; empty: it has.
func (c *candidate) lacks(d demand) string {
	if d.Engine == "" {
		return ""
	}
	e, ok := c.Web.Engine(d.Engine)
	if !ok {
		return "it has no " + browserName(d.Engine)
	}
	return e.Problem
}

func browserName(engine string) string {
	if engine == wire.Chromium {
		return "Chromium"
	}
	return "Firefox"
}

// choose orders the nodes that can take a session, best first: those of the
// target's site before others, with a browser that waits before without, then
// the least loaded. Without any it says why.
func choose(all []candidate, d demand) ([]candidate, *Refused) {
	var good []candidate
	var cordoned, silent int
	var full, troubled []string
	for _, c := range all {
		switch {
		case !c.fits(d):
		case c.Cordoned:
			cordoned++
		case c.Web == nil:
			silent++
		case c.Web.Problem != "":
			troubled = append(troubled, c.Name+": "+c.Web.Problem)
		case c.lacks(d) != "":
			troubled = append(troubled, c.Name+": "+c.lacks(d))
		case d.Kind == wire.WebProxy && c.Web.Address == "":
			troubled = append(troubled, c.Name+": it says no address for carriers")
		case c.room() <= 0:
			full = append(full, fmt.Sprintf("%s has %d of %d", c.Name, c.Web.Live+c.Since, c.Web.Max))
		default:
			good = append(good, c)
		}
	}
	if len(good) > 0 {
		slices.SortFunc(good, func(a, b candidate) int {
			return cmp.Or(
				-compareBool(a.Labels[siteLabel] == d.Site && d.Site != "", b.Labels[siteLabel] == d.Site && d.Site != ""),
				-compareBool(a.warm(d), b.warm(d)),
				cmp.Compare(a.load(), b.load()),
				-cmp.Compare(a.room(), b.room()),
				cmp.Compare(a.ID, b.ID),
			)
		})
		return good, nil
	}
	return nil, unavailable(d, len(all), cordoned, silent, full, troubled)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// unavailable words why no node can take a session.
func unavailable(d demand, online, cordoned, silent int, full, troubled []string) *Refused {
	kind := string(d.Kind)
	r := &Refused{Status: 503, Code: "no_" + kind}
	const admin = " An administrator finds out more under Fleet."
	switch {
	case len(troubled) > 0:
		slices.Sort(troubled)
		what := "a session"
		if d.Engine == wire.Chromium {
			what = "a session in Chromium"
		}
		r.Public = fmt.Sprintf("No %s can take %s (%s).", kind, what, clip(strings.Join(troubled, "; "), 400))
	case len(full) > 0:
		slices.Sort(full)
		r.Code = "no_room"
		r.Public = fmt.Sprintf("All %s are full (%s). Try again when others have closed their sessions.", plural(kind), clip(strings.Join(full, "; "), 300))
	case silent > 0:
		r.Public = fmt.Sprintf("The %s has only just connected. Try again in a moment.", kind)
	case cordoned > 0:
		r.Public = fmt.Sprintf("No %s takes new sessions: they are cordoned or draining.", kind) + admin
	case online > 0:
		r.Public = fmt.Sprintf("No %s that is online serves this target%s.", kind, d.text()) + admin
	default:
		r.Public = fmt.Sprintf("No %s is online.", kind) + admin
	}
	return r
}

func plural(kind string) string {
	if kind == string(wire.WebProxy) {
		return "webproxies"
	}
	return kind + "s"
}

// text says what is demanded.
func (d demand) text() string {
	var parts []string
	if d.Site != "" {
		parts = append(parts, "site "+d.Site)
	}
	for _, k := range slices.Sorted(maps.Keys(d.Labels)) {
		parts = append(parts, "label "+k+"="+d.Labels[k])
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// candidates are the nodes of a kind as they are now.
func (s *Service) candidates(kind wire.NodeKind) []candidate {
	online := s.cfg.Fleet.Online(kind)
	since := map[string]int{}
	at := map[string]int64{}
	for _, o := range online {
		at[o.ID] = o.At.UnixMicro()
	}
	for _, x := range s.snapshot() {
		carrier, proxy := x.pair()
		id := carrier
		if kind == wire.WebProxy {
			id = proxy
		}
		if reported, ok := at[id]; ok && x.row.OpenedAt.UnixMicro() > reported {
			since[id]++
		}
	}
	out := make([]candidate, 0, len(online))
	for _, o := range online {
		out = append(out, candidate{ID: o.ID, Name: o.Name, Labels: o.Labels, Cordoned: o.Cordoned, Web: o.Status.Web, Since: since[o.ID]})
	}
	return out
}

// onlineNode finds a node that is connected now.
func (s *Service) onlineNode(kind wire.NodeKind, id string) (fleet.Online, bool) {
	for _, o := range s.cfg.Fleet.Online(kind) {
		if o.ID == id {
			return o, true
		}
	}
	return fleet.Online{}, false
}

// clip bounds a text for people.
func clip(t string, n int) string {
	if len(t) <= n {
		return t
	}
	return strings.ToValidUTF8(t[:n], "") + "…"
}
