package netaccess

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"caponier/core/internal/db"
	"caponier/shared/netrule"
)

// State of a session.
type State string

// The states. A session counts for overlaps until it has ended.
const (
	Opening State = "opening"
	Open    State = "open"
	// Ending: it is over for the user, but some router has not confirmed that
	// its rules are gone, and they may be in force until its lease runs out.
	Ending State = "ending"
	Ended  State = "ended"
)

// row is a session as stored.
type row struct {
	ID, CoreID           string
	State                State
	UserID, UserName     string
	TargetID, TargetName string
	// Definition is a digest of what the target said at the time.
	Definition string
	Client     netip.Addr
	Exclusive  bool
	// Selectors is a digest of what the rules match.
	Selectors string
	Rules     netrule.Rules
	Site      string
	Relays    []relayPort
	Provider  string
	Static    json.RawMessage
	// Routers may hold the rules.
	Routers                       []string
	Flows                         []routerFlow
	OpenedAt, PresenceAt, EndedAt time.Time
}

// Flow is what a session moved to and from one destination. Out is from the
// client to the target.
type Flow struct {
	Destination string `json:"destination"`
	BytesOut    uint64 `json:"bytes_out"`
	BytesIn     uint64 `json:"bytes_in"`
	PacketsOut  uint64 `json:"packets_out"`
	PacketsIn   uint64 `json:"packets_in"`
}

// routerFlow is what one router counted; without a destination it is all it
// counted. Stored, so that a later run of core goes on from it.
type routerFlow struct {
	Router string `json:"router"`
	// Base is what it had counted before it last began anew.
	Base bool `json:"base,omitempty"`
	Flow
}

const columns = `n.id, n.core_id, n.state, n.user_id, n.user_name, n.target_id, n.target_name, n.definition, n.client, n.exclusive,
  n.selectors, n.rules, n.site, n.relays, n.provider, n.static_config, n.routers, n.flows, n.opened_at, n.presence_at, n.ended_at`

const (
	insertSQL = `insert into network_sessions (id, core_id, state, user_id, user_name, target_id, target_name, definition, client,
  exclusive, selectors, rules, site, relays, provider, static_config, routers, flows, opened_at, presence_at, ended_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, 0)`

	// What may clash with a session that is not exclusive, and with one that is.
	heldSQL = `select id, user_id, client, exclusive, selectors from network_sessions
where state <> 'ended' and (client = $1 or exclusive)`
	heldAllSQL = `select id, user_id, client, exclusive, selectors from network_sessions where state <> 'ended'`
	rulesOfSQL = `select rules from network_sessions where selectors = $1 and state <> 'ended' limit 1`

	stateSQL = `update network_sessions set state = $2, routers = $3 where id = $1 and state <> 'ended'`
	endSQL   = `update network_sessions set state = 'ended', ended_at = $2, flows = $3, routers = '[]', end_reason = $4, end_text = $5
where id = $1 and state <> 'ended'`
	presenceSQL = `update network_sessions set presence_at = $2 where id = $1 and presence_at < $2`
	flowsSQL    = `update network_sessions set flows = $2 where id = $1 and state <> 'ended'`
	unendedSQL  = `select ` + columns + ` from network_sessions n where n.core_id = $1 and n.state <> 'ended' order by n.opened_at, n.id`

	// An end is told by whichever record has it already.
	shownColumns = columns + `, case when n.end_reason <> '' then n.end_reason else c.end_reason end,
  case when n.end_reason <> '' then n.end_text else c.end_detail end, c.bytes_in, c.bytes_out, c.group_id`
	groupSQL = `select group_id from connections where id = $1`
	getSQL   = `select ` + shownColumns + ` from network_sessions n join connections c on c.id = n.id where n.id = $1`
	listSQL  = `select ` + shownColumns + ` from network_sessions n join connections c on c.id = n.id
where (n.user_id = $1 or $7 = '*' or $7 like '%,' || c.group_id || ',%') and (n.state <> 'ended' or $2 = 1) and (n.target_id = $3 or n.target_name = $3 or $3 = '')
  and (n.opened_at < $4 or n.opened_at = $4 and n.id < $5)
order by n.opened_at desc, n.id desc limit $6`
	onTargetSQL = `select n.id, n.user_name, n.target_id, n.target_name, n.client, n.exclusive, n.selectors, n.opened_at
from network_sessions n where n.state <> 'ended' order by n.opened_at, n.id`

	eraseSQL  = `update network_sessions set user_name = $2 where user_id = $1`
	exportSQL = `select ` + columns + ` from network_sessions n where n.user_id = $1 order by n.opened_at, n.id`
)

const (
	settingsSQL  = `select edge_id, pools, sources, type, leased, changed_at, version from router_settings`
	settingSQL   = settingsSQL + ` where edge_id = $1`
	newSettings  = `insert into router_settings (edge_id, pools, sources, type, leased, changed_at, version) values ($1, $2, $3, '', $4, $5, $6)`
	setSettings  = `update router_settings set pools = $2, sources = $3, changed_at = $4, version = version + 1 where edge_id = $1 and version = $5`
	setTypeSQL   = `update router_settings set type = $2, leased = $3 where edge_id = $1`
	dropSettings = `delete from router_settings where edge_id = $1`
)

// routerRow is what an administrator said about a router, and what it said
// about itself last.
type routerRow struct {
	ID        string
	Pools     []netip.Prefix
	Sources   []netip.Prefix
	Type      string
	Leased    bool
	ChangedAt time.Time
	Version   int64
}

// serves reports whether a client's traffic passes the router.
func (r *routerRow) serves(client netip.Addr) bool { return contains(r.Pools, client) }

func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

func scanRouter(s db.Scanner) (*routerRow, error) {
	var r routerRow
	var pools, sources string
	var changed int64
	if err := s.Scan(&r.ID, &pools, &sources, &r.Type, &r.Leased, &changed, &r.Version); err != nil {
		return nil, db.Classify(err)
	}
	if err := json.Unmarshal([]byte(pools), &r.Pools); err != nil {
		return nil, fmt.Errorf("pools of router %s: %w", r.ID, err)
	}
	if err := json.Unmarshal([]byte(sources), &r.Sources); err != nil {
		return nil, fmt.Errorf("sources of router %s: %w", r.ID, err)
	}
	r.ChangedAt = time.UnixMicro(changed).UTC()
	return &r, nil
}

func routerSettings(ctx context.Context, q db.Querier) (map[string]*routerRow, error) {
	rows, err := q.QueryContext(ctx, settingsSQL)
	if err != nil {
		return nil, fmt.Errorf("read router settings: %w", err)
	}
	defer rows.Close()
	out := map[string]*routerRow{}
	for rows.Next() {
		r, err := scanRouter(rows)
		if err != nil {
			return nil, fmt.Errorf("read router settings: %w", err)
		}
		out[r.ID] = r
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read router settings: %w", err)
	}
	return out, nil
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain strings, numbers and addresses only
	}
	return string(b)
}

func insertRow(ctx context.Context, tx *db.Tx, r *row) error {
	_, err := tx.ExecContext(ctx, insertSQL, r.ID, r.CoreID, string(r.State), r.UserID, r.UserName, r.TargetID, r.TargetName,
		r.Definition, r.Client.String(), r.Exclusive, r.Selectors, toJSON(r.Rules), r.Site, list(r.Relays), r.Provider,
		string(r.Static), list(r.Routers), list(r.Flows), r.OpenedAt.UnixMicro(), r.PresenceAt.UnixMicro())
	if err != nil {
		return fmt.Errorf("insert network session %s: %w", r.ID, db.Classify(err))
	}
	return nil
}

// list renders a slice as JSON; nil as an empty list.
func list[T any](s []T) string {
	if s == nil {
		s = []T{}
	}
	return toJSON(s)
}

// scanRow reads columns, and what more the query asks for.
func scanRow(s db.Scanner, more ...any) (*row, error) {
	var r row
	var client, rules, relays, static, routers, flows string
	var opened, presence, ended int64
	err := s.Scan(append([]any{&r.ID, &r.CoreID, &r.State, &r.UserID, &r.UserName, &r.TargetID, &r.TargetName, &r.Definition, &client,
		&r.Exclusive, &r.Selectors, &rules, &r.Site, &relays, &r.Provider, &static, &routers, &flows, &opened, &presence, &ended}, more...)...)
	if err != nil {
		return nil, db.Classify(err)
	}
	if r.Client, err = netip.ParseAddr(client); err != nil {
		return nil, fmt.Errorf("network session %s: %w", r.ID, err)
	}
	for _, x := range []struct {
		text string
		to   any
	}{{rules, &r.Rules}, {relays, &r.Relays}, {routers, &r.Routers}, {flows, &r.Flows}} {
		if err := json.Unmarshal([]byte(x.text), x.to); err != nil {
			return nil, fmt.Errorf("network session %s: %w", r.ID, err)
		}
	}
	if static != "" {
		r.Static = json.RawMessage(static)
	}
	r.OpenedAt, r.PresenceAt = time.UnixMicro(opened).UTC(), time.UnixMicro(presence).UTC()
	if ended != 0 {
		r.EndedAt = time.UnixMicro(ended).UTC()
	}
	return &r, nil
}

// digest names a value by its content.
func digest(v any) string {
	sum := sha256.Sum256([]byte(toJSON(v)))
	return hex.EncodeToString(sum[:16])
}

// selectorDigest names what destinations match, whatever their translation.
func selectorDigest(ds []netrule.Destination) string {
	ss := make([]netrule.Selector, len(ds))
	for i := range ds {
		ss[i] = ds[i].Selector
	}
	return digest(ss)
}

// matchesOf returns the arranged selectors of a digest, from memory or from
// any session that has them.
func (s *Service) matchesOf(ctx context.Context, q db.Querier, name string) (*selectors, error) {
	s.cacheMu.Lock()
	m := s.cache[name]
	s.cacheMu.Unlock()
	if m != nil {
		return m, nil
	}
	var text string
	if err := q.QueryRowContext(ctx, rulesOfSQL, name).Scan(&text); err != nil {
		return nil, fmt.Errorf("read rules of a session: %w", db.Classify(err))
	}
	var r netrule.Rules
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("read rules of a session: %w", err)
	}
	m = arrange(r.Destinations)
	s.remember(name, m)
	return m, nil
}

// maxCached bounds remembered selectors, in digests.
const maxCached = 2000

func (s *Service) remember(name string, m *selectors) {
	s.cacheMu.Lock()
	defer s.cacheMu.Unlock()
	if len(s.cache) >= maxCached {
		clear(s.cache)
	}
	s.cache[name] = m
}

// heldBy reads the sessions that may clash with a session of a client.
func (s *Service) heldBy(ctx context.Context, tx *db.Tx, client netip.Addr, exclusive bool) ([]held, error) {
	type raw struct {
		held
		selectors string
	}
	query, args := heldSQL, []any{client.String()}
	if exclusive {
		query, args = heldAllSQL, nil
	}
	raws, err := db.Collect(ctx, tx, func(r db.Scanner) (raw, error) {
		var x raw
		var client string
		err := r.Scan(&x.id, &x.user, &client, &x.exclusive, &x.selectors)
		if err == nil {
			x.client, err = netip.ParseAddr(client)
		}
		return x, err
	}, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read network sessions: %w", err)
	}
	out := make([]held, len(raws))
	for i, x := range raws {
		if x.matches, err = s.matchesOf(ctx, tx, x.selectors); err != nil {
			return nil, err
		}
		out[i] = x.held
	}
	return out, nil
}
