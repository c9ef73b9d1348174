package conn

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// A connection whose traffic does not pass core can outlive a run of it. The
// run that stops leaves it (Leave), the next one adopts it (Adopt); in between
// its row stays live and nobody decides about it, which the front door bounds
// by a lease.

const adoptSQL = `select kind, state, user_id, user_name, user_agent, auth_methods, mfa, session_id, via, remote_addr,
  target_id, target_name, target_address, site, account, reason, role_id, grant_id, features, recorded,
  requested_at, connected_at, last_activity_at, bytes_in, bytes_out, end_reason, node_id, node_name, transport, binding
from connections where id = $1 and ` + liveStates

const lastChannelSQL = `select coalesce(max(seq), 0) from connection_channels where connection_id = $1`

// Adopt takes a connection over that an earlier run left live. The decision
// is made again at once. One that was being ended goes on ending: its context
// has ended already. db.ErrNotFound: it is over. Call it before Run.
func (m *Manager) Adopt(ctx context.Context, id string) (*Live, error) {
	p := &api.Principal{}
	s := Spec{Principal: p}
	l := newLive(m, s)
	l.ID = id
	var methods, remote string
	var requested, connected, activity, in, out int64
	err := m.cfg.DB.QueryRowContext(ctx, adoptSQL, id).Scan(&s.Kind, &l.state, &p.UserID, &p.UserName, &s.UserAgent, &methods,
		&p.MFA, &p.Session, &p.Via, &remote, &s.TargetID, &s.TargetName, &s.TargetAddress, &s.Site, &s.Account, &s.Reason,
		&s.Decision.Role, &s.Decision.Grant, &s.Decision.Features, &s.Decision.Record, &requested, &connected, &activity, &in, &out,
		&l.endReason, &l.route.NodeID, &l.route.Node, &l.route.Transport, &l.route.Binding)
	if err != nil {
		return nil, fmt.Errorf("adopt connection %s: %w", id, db.Classify(err))
	}
	if err := json.Unmarshal([]byte(methods), &p.Methods); err != nil {
		return nil, fmt.Errorf("adopt connection %s: methods: %w", id, err)
	}
	// An erased user's connection has no address any more.
	s.Source, _ = netip.ParseAddr(remote)
	p.Source = s.Source
	s.Want = wantOf(s.Kind)
	s.Decision.Reason = access.Allowed
	if err := m.cfg.DB.QueryRowContext(ctx, lastChannelSQL, id).Scan(&l.channels); err != nil {
		return nil, fmt.Errorf("adopt connection %s: %w", id, err)
	}
	l.spec, l.decision, l.used = s, s.Decision, s.Want
	l.started, l.connectedAt = db.FromMicro(requested), db.FromMicro(connected)
	l.in.Store(in)
	l.out.Store(out)
	l.writtenIn, l.writtenOut = in, out
	l.lastIn.Store(activity)
	l.lastAny.Store(activity)
	if l.state == Disconnecting {
		l.cancel(&Terminated{Reason: l.endReason, Public: "The connection is closed."})
	}
	m.mu.Lock()
	m.live[l.ID] = l
	m.open++
	m.mu.Unlock()
	l.mu.Lock()
	l.appendLocked(entry{event: l.event(audit.ConnectionReauthorized, audit.OK, map[string]string{"resumed_by": m.cfg.CoreID})})
	l.mu.Unlock()
	return l, nil
}

// wantOf is the use a kind of connection is opened with.
func wantOf(kind string) access.Feature {
	switch kind {
	case "network":
		return access.Network
	case "web":
		return access.Web
	}
	return access.Forward
}

// Leave gives the connection up without ending it: its row stays live for the
// next run of this core, which adopts it. Nothing is decided about it any more.
func (l *Live) Leave() {
	l.mu.Lock()
	left := !l.left && !l.state.Over() && !l.abandoned
	if left {
		l.left = true
	}
	l.mu.Unlock()
	if left {
		l.m.mu.Lock()
		l.m.closedLocked()
		l.m.mu.Unlock()
	}
}

// Ended tells why the connection is ending and what the user is told; the
// reason is empty while it goes on.
func (l *Live) Ended() (EndReason, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.endReason == "" {
		return "", ""
	}
	public := l.endDetail
	if t, ok := causeOf(l.ctx); ok && public == "" {
		public = t.Public
	}
	return l.endReason, public
}

func causeOf(ctx context.Context) (*Terminated, bool) {
	t, ok := context.Cause(ctx).(*Terminated)
	return t, ok
}

// Contact is when the database last answered the manager.
func (m *Manager) Contact() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.contact
}
