package netaccess

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/target"
	"caponier/shared/netrule"
	"caponier/shared/wire"
)

// openTimeout bounds the wait for routers. Programs behind exec routers have
// 10 s each.
const openTimeout = 20 * time.Second

// maxRules bounds the destinations one router is given, over all sessions.
const maxRules = 200_000

// Open makes the checks in their order, records the session, has the routers
// enforce it and returns when all of them confirmed that they do.
func (s *Service) Open(ctx context.Context, p *api.Principal, r Request) (*session, error) {
	began := time.Now()
	x, err := s.open(ctx, p, r)
	if refused, ok := errors.AsType[*Refused](err); ok {
		s.metrics.refused.WithLabelValues(refused.Code).Inc()
		if err := s.denied(ctx, p, r, refused); err != nil {
			return nil, err
		}
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	s.metrics.opened.Inc()
	s.metrics.open.Observe(time.Since(began).Seconds())
	return x, nil
}

func (s *Service) open(ctx context.Context, p *api.Principal, r Request) (*session, error) {
	r.Client = r.Client.Unmap().WithZone("")
	// 1: a router forwards this client's traffic.
	routers, err := s.forwarding(ctx, r.Client)
	if err != nil {
		return nil, err
	}
	if len(routers) == 0 {
		return nil, &Refused{Status: 403, Code: "client_not_in_pool",
			Public: fmt.Sprintf("Your address %s is not in the client address pool of any router. Connect to the right network or VPN first.", r.Client)}
	}
	// 2: the target exists.
	t, err := s.cfg.Targets.ByName(ctx, s.cfg.DB, r.Target)
	if errors.Is(err, db.ErrNotFound) || err == nil && t.Network == nil {
		return nil, &Refused{Status: 404, Code: "no_such_target", Public: fmt.Sprintf("There is no network target %q.", cut(r.Target, 64))}
	}
	if err != nil {
		return nil, fmt.Errorf("open network session: %w", err)
	}
	// 3: the user may.
	v, err := s.decide(ctx, p, r, t)
	if err != nil {
		return nil, err
	}
	// The client can send there, and somebody is there to let it.
	rules := netrule.Rules{Client: r.Client, Destinations: v.Target.Network.Destinations, SNAT: v.Target.Network.SNAT}
	if !slices.ContainsFunc(rules.Destinations, rules.Reaches) {
		return nil, &Refused{Status: 409, Code: "wrong_family",
			Public: fmt.Sprintf("%s opens no address of the IP version of %s.", t.Name, r.Client)}
	}
	online, err := s.online(ctx, routers)
	if err != nil {
		return nil, err
	}
	return s.record(ctx, p, r, v, rules, online)
}

// forwarding finds the routers whose pools have the client.
func (s *Service) forwarding(ctx context.Context, client netip.Addr) ([]string, error) {
	nodes, rows, err := s.readRouters(ctx)
	if err != nil {
		return nil, fmt.Errorf("open network session: %w", err)
	}
	var out []string
	for _, n := range nodes {
		if r := rows[n.ID]; r != nil && r.serves(client) {
			out = append(out, n.ID)
		}
	}
	return out, nil
}

// online picks the routers that can be told now. Those that are away get the
// session with the whole state when they return.
func (s *Service) online(ctx context.Context, routers []string) ([]*peer, error) {
	var out []*peer
	cordoned := false
	for _, o := range s.cfg.Fleet.Online(wire.Router) {
		if !slices.Contains(routers, o.ID) {
			continue
		}
		if o.Cordoned {
			cordoned = true
			continue
		}
		p := s.peer(o.ID)
		if p == nil { // it was enrolled or given its pool this moment
			if err := s.reconcile(ctx); err != nil {
				return nil, err
			}
			if p = s.peer(o.ID); p == nil {
				continue
			}
		}
		p.mu.Lock()
		n := 0
		for _, w := range p.want {
			n += len(w.Rules.Destinations)
		}
		p.mu.Unlock()
		if n >= maxRules {
			return nil, &Refused{Status: 503, Code: "router_full", Public: "A router has all the rules it can take. Try again when others have closed their sessions."}
		}
		out = append(out, p)
	}
	if len(out) > 0 {
		return out, nil
	}
	text := "The router that forwards your traffic is not connected at present. Try again in a moment; an administrator finds it under Routers."
	if cordoned {
		text = "The router that forwards your traffic takes no new sessions at present."
	}
	return nil, &Refused{Status: 503, Code: "no_router", Public: text}
}

// decide asks for the client's address and, where it is another one, for the
// caller's too.
func (s *Service) decide(ctx context.Context, p *api.Principal, r Request, t *target.Target) (policy.Verdict, error) {
	sources := []netip.Addr{r.Client}
	if from := p.Source.Unmap(); from.IsValid() && from != r.Client {
		sources = append(sources, from)
	}
	var first policy.Verdict
	for i, from := range sources {
		v, err := s.cfg.Policy.Decide(ctx, policy.Query{Principal: p, Target: t.ID, Want: access.Network, Reason: r.Reason, Source: from})
		if err != nil {
			return v, fmt.Errorf("open network session: %w", err)
		}
		if !v.OK() {
			text := v.Public
			if v.Reason == access.NoRole {
				text = fmt.Sprintf("None of your roles opens %s. Ask an administrator for access.", t.Name)
			}
			return v, &Refused{Status: 403, Code: "access_denied", Public: text}
		}
		if v.Target == nil || v.Target.Network == nil {
			return v, fmt.Errorf("open network session: the decision about %s names no network target", t.ID)
		}
		if i == 0 {
			first = v
		}
	}
	return first, nil
}

// record makes the last check and writes the session down in one transaction,
// then has the routers enforce it.
func (s *Service) record(ctx context.Context, p *api.Principal, r Request, v policy.Verdict, rules netrule.Rules, online []*peer) (*session, error) {
	t := v.Target
	now := s.cfg.Now()
	w := row{
		CoreID: s.cfg.Conns.CoreID(), State: Opening, UserID: p.UserID, UserName: p.UserName, TargetID: t.ID, TargetName: t.Name,
		Definition: definition(t), Client: r.Client, Exclusive: t.Network.Exclusive, Site: t.Site,
		Provider: string(t.Network.Provider), Static: t.Network.Static, OpenedAt: now, PresenceAt: now,
	}
	for _, q := range online {
		w.Routers = append(w.Routers, q.id)
	}
	x := newSession(s, w, nil)
	for _, id := range w.Routers {
		x.holders[id] = true
	}
	if t.Site != "" {
		x.relay = s.newRelay(t.Site, x.mayEnter)
		ds, ports, err := s.rewrite(ctx, x.relay, rules.Destinations, r.Client)
		if errors.Is(err, errRelayFull) {
			return nil, &Refused{Status: 503, Code: "relay_ports_exhausted", Public: "All ports for targets behind a site are in use. Try again later."}
		}
		if err != nil {
			return nil, err
		}
		rules.Destinations, x.row.Relays = ds, ports
	}
	x.row.Rules = rules
	x.row.Selectors = selectorDigest(rules.Destinations)
	mine := arrange(rules.Destinations)
	s.remember(x.row.Selectors, mine)

	live, err := s.cfg.Conns.Open(ctx, conn.Spec{
		Kind: "network", Principal: p, TargetID: t.ID, TargetName: t.Name, TargetAddress: brief(t.Network.Destinations), Site: t.Site,
		Want: access.Network, Source: r.Client, UserAgent: r.UserAgent, Reason: r.Reason, Decision: v.Decision,
		Along: func(ctx context.Context, tx *db.Tx, id string) error {
			if err := tx.Lock(ctx, "network sessions"); err != nil {
				return err
			}
			all, err := s.heldBy(ctx, tx, r.Client, x.row.Exclusive)
			if err != nil {
				return err
			}
			c, other := judge(held{user: p.UserID, client: r.Client, exclusive: x.row.Exclusive, matches: mine}, all)
			if c != noClash {
				return clashText(c, t.Name, r.Client, other)
			}
			w := x.row
			w.ID = id
			if err := insertRow(ctx, tx, &w); err != nil {
				return err
			}
			return s.tell(ctx, tx, id, p.UserID)
		},
	})
	if err != nil {
		if x.relay != nil {
			x.relay.close()
		}
		if refused, ok := errors.AsType[*Refused](err); ok {
			return nil, refused
		}
		return nil, err
	}
	x.live, x.row.ID = live, live.ID
	if x.relay != nil {
		x.relay.begin(live.ID)
	}
	return x, s.enforce(ctx, x, online)
}

// clashText words a refusal by the last check. Whose session is in the way is
// an administrator's business.
func clashText(c clash, name string, client netip.Addr, other *held) *Refused {
	switch c {
	case clientInUse:
		return &Refused{Status: 409, Code: "client_in_use",
			Public: fmt.Sprintf("Another user has a network session from %s. One address serves one user at a time.", client)}
	case ownOverlap:
		return &Refused{Status: 409, Code: "destinations_overlap",
			Public: fmt.Sprintf("You have an open session (%s) whose destinations overlap those of %s. Close it first.", other.id, name)}
	case exclusiveHeld:
		return &Refused{Status: 409, Code: "exclusive_in_use",
			Public: fmt.Sprintf("Somebody has exclusive use of destinations of %s at present. Try again when they are done.", name)}
	default:
		return &Refused{Status: 409, Code: "exclusive_busy",
			Public: fmt.Sprintf("%s is for exclusive use, and some of its destinations are in use at present. Try again when they are free.", name)}
	}
}

// enforce has the routers hold a recorded session. When one cannot, all give
// it up again.
func (s *Service) enforce(ctx context.Context, x *session, online []*peer) error {
	s.mu.Lock()
	closing := s.left || s.run == nil
	if !closing {
		s.sessions[x.row.ID] = x
	}
	s.mu.Unlock()
	if closing {
		x.holders = map[string]bool{}
		if x.relay != nil {
			x.relay.close()
		}
		x.live.Close(conn.EndedByError, wire.Errorf(wire.CodeDraining, "core is shutting down"))
		return conn.ErrDraining
	}
	s.watch(x)
	x.live.Connecting()
	// The caller may go away; the outcome is waited for all the same.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
	defer cancel()
	answers := make([]<-chan error, len(online))
	for i, p := range online {
		answers[i] = p.add(x.wire())
	}
	var failed error
	for i, c := range answers {
		var err error
		select {
		case err = <-c:
		case <-wctx.Done():
			err = wire.Errorf(wire.CodeTimeout, "it did not answer in time")
		}
		if err != nil && failed == nil {
			failed = fmt.Errorf("router %s: %w", online[i].label(), err)
		}
	}
	if failed == nil {
		failed = s.opened(wctx, x, online)
	}
	if failed == nil {
		return nil
	}
	if ended, text := x.live.Ended(); ended != "" {
		s.finish(x, nil)
		return &Refused{Status: 409, Code: "ended", Public: text}
	}
	s.cfg.Log.Warn("network session not opened", "session", x.row.ID, "err", failed)
	text := "A router did not take the session: " + publicText(failed)
	s.finish(x, wire.Errorf(wire.CodeUnreachable, "%s", text))
	return &Refused{Status: 503, Code: "router_failed", Public: text}
}

// publicText is what of a router's failure a user may read.
func publicText(err error) string {
	if w, ok := errors.AsType[*wire.Error](err); ok {
		return strings.TrimSuffix(w.Public, ".") + "."
	}
	switch {
	case errors.Is(err, errOffline), errors.Is(err, fleet.ErrOffline):
		return "it is not connected."
	case errors.Is(err, context.DeadlineExceeded):
		return "it did not answer in time."
	}
	return "it does not answer as it should; the log of core has the cause."
}

// opened marks a session open that every router holds.
func (s *Service) opened(ctx context.Context, x *session, online []*peer) error {
	x.mu.Lock()
	if x.over {
		x.mu.Unlock()
		return errGone
	}
	routers := slices.Clone(x.row.Routers)
	x.mu.Unlock()
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, stateSQL, x.row.ID, string(Open), list(routers)); err != nil {
			return err
		}
		return s.tell(ctx, tx, x.row.ID, x.row.UserID)
	})
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	x.mu.Lock()
	if x.over {
		x.mu.Unlock()
		return errGone
	}
	x.state = Open
	x.mu.Unlock()
	names := make([]string, len(online))
	for i, p := range online {
		names[i] = p.label()
	}
	slices.Sort(names)
	x.live.Connected(fleet.Route{Site: x.row.Site, NodeID: online[0].id, Node: strings.Join(names, ", "), Transport: "router"})
	// Routers of the pool that are away get it when they return.
	s.place(x, s.allPeers())
	return nil
}

// denied audits a refusal.
func (s *Service) denied(ctx context.Context, p *api.Principal, r Request, why *Refused) error {
	e := audit.Event{
		Type: audit.ConnectionDenied, Outcome: audit.Denied, Actor: audit.By(p),
		Object: audit.Object{Kind: "target", Name: cut(r.Target, 64)},
		Fields: map[string]string{"kind": "network", "client": r.Client.String(), "code": why.Code},
	}
	if err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return s.cfg.Audit.Append(ctx, tx, e) }); err != nil {
		return fmt.Errorf("open network session: %w", err)
	}
	return nil
}
