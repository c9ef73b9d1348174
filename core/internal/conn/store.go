package conn

import (
	"context"
	"encoding/json"
	"fmt"

	"caponier/core/internal/db"
)

// liveStates is the condition on a row that is not over; it matches the
// partial index connections_live.
const liveStates = `state in ('requested', 'connecting', 'connected', 'disconnecting')`

const (
	insertSQL = `insert into connections
  (id, kind, state, user_id, user_name, user_roles, user_agent, auth_methods, mfa, session_id, via, remote_addr,
   target_id, target_name, target_address, site, account, reason, role_id, grant_id, features, recorded,
   core_id, lockable, requested_at, last_activity_at, group_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $25,
  coalesce((select t.group_id from targets t where t.id = $13), 'default'))
returning group_id`

	countLiveSQL = `select count(*) from connections where user_id = $1 and ` + liveStates

	// A row that is over stays as it is: a late writer never revives it.
	updateSQL = `update connections set state = $2, node_id = $3, node_name = $4, transport = $5, binding = $6,
  recording_id = $7, connected_at = $8, ended_at = $9, last_activity_at = $10, bytes_in = $11, bytes_out = $12,
  end_reason = $13, end_detail = $14
where id = $1 and ` + liveStates

	insertChannelSQL = `insert into connection_channels (connection_id, seq, at, kind, detail) values ($1, $2, $3, $4, $5)`

	orderSQL = `update connections set terminated_at = $2, terminated_by_id = $3, terminated_by_name = $4, terminated_text = $5
where id = $1 and terminated_at = 0 and ` + liveStates

	groupSQL = `select group_id from connections where id = $1`

	stateSQL = `select state from connections where id = $1`

	ordersSQL = `select id, terminated_at, terminated_by_id, terminated_by_name, terminated_text
from connections where core_id = $1 and terminated_at > 0 and ` + liveStates

	leftLiveSQL = `select id, user_id, user_name, target_id, target_name, connected_at, group_id
from connections where core_id = $1 and ` + liveStates

	closeCrashedSQL = `update connections set state = 'disconnected', ended_at = last_activity_at, end_reason = $2, end_detail = $3
where id = $1 and ` + liveStates
)

func countLive(ctx context.Context, q db.Querier, userID string) (int, error) {
	var n int
	if err := q.QueryRowContext(ctx, countLiveSQL, userID).Scan(&n); err != nil {
		return 0, fmt.Errorf("count connections of %s: %w", userID, err)
	}
	return n, nil
}

func insertConnection(ctx context.Context, tx *db.Tx, l *Live, roles []string, coreID string) error {
	s := l.spec
	p := s.Principal
	err := tx.QueryRowContext(ctx, insertSQL,
		l.ID, s.Kind, string(Requested), p.UserID, p.UserName, jsonList(roles), s.UserAgent, jsonList(p.Methods), p.MFA,
		p.Session, p.Via, s.Source.String(), s.TargetID, s.TargetName, s.TargetAddress, s.Site, s.Account, s.Reason,
		s.Decision.Role, s.Decision.Grant, int64(s.Decision.Features), s.Decision.Record, coreID, s.Lockable, l.started.UnixMicro()).Scan(&l.group)
	if err != nil {
		return fmt.Errorf("insert connection %s: %w", l.ID, db.Classify(err))
	}
	return nil
}

// row is what of a Live goes into its row.
type row struct {
	id                                   string
	state                                State
	nodeID, nodeName, transport, binding string
	recording                            string
	connectedAt, endedAt                 int64
	lastActivity, in, out                int64
	endReason                            EndReason
	endDetail                            string
	entries                              []entry
	// news says that more than counters changed.
	news    bool
	version int
}

func writeRow(ctx context.Context, tx *db.Tx, r row) error {
	_, err := tx.ExecContext(ctx, updateSQL, r.id, string(r.state), r.nodeID, r.nodeName, r.transport, r.binding,
		r.recording, r.connectedAt, r.endedAt, r.lastActivity, r.in, r.out, string(r.endReason), r.endDetail)
	if err != nil {
		return fmt.Errorf("update connection %s: %w", r.id, err)
	}
	for _, e := range r.entries {
		if e.seq == 0 {
			continue
		}
		if _, err := tx.ExecContext(ctx, insertChannelSQL, r.id, e.seq, e.at.UnixMicro(), e.kind, e.detail); err != nil {
			return fmt.Errorf("insert channel of %s: %w", r.id, err)
		}
	}
	return nil
}

func jsonList(s []string) string {
	if len(s) == 0 {
		return "[]"
	}
	b, err := json.Marshal(s)
	if err != nil { // a []string always marshals
		return "[]"
	}
	return string(b)
}

func listJSON(s string) []string {
	var out []string
	if json.Unmarshal([]byte(s), &out) != nil || out == nil {
		return []string{}
	}
	return out
}
