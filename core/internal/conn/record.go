package conn

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/db"
)

// Record is a connection as it is kept and shown (FEATURES R1).
type Record struct {
	ID              string    `json:"id"`
	Kind            string    `json:"kind" doc:"ssh, sftp, exec, tcp, socks, web, network"`
	State           State     `json:"state" enum:"requested,connecting,connected,disconnecting,disconnected,failed"`
	UserID          string    `json:"user_id"`
	UserName        string    `json:"user_name"`
	UserRoles       []string  `json:"user_roles"`
	UserAgent       string    `json:"user_agent,omitempty"`
	AuthMethods     []string  `json:"auth_methods"`
	MFA             bool      `json:"mfa"`
	Via             string    `json:"via" doc:"front door: api, console, bastion, socks"`
	Source          string    `json:"source" doc:"network address of the user"`
	TargetID        string    `json:"target_id"`
	TargetName      string    `json:"target_name"`
	TargetAddress   string    `json:"target_address"`
	Site            string    `json:"site,omitempty"`
	Group           string    `json:"group" doc:"access group the target was in when it was opened"`
	Account         string    `json:"account,omitempty"`
	Reason          string    `json:"reason,omitempty" doc:"given by the user"`
	RoleID          string    `json:"role_id,omitempty" doc:"role that allowed it"`
	GrantID         string    `json:"grant_id,omitempty" doc:"grant that allowed it"`
	Recorded        bool      `json:"recorded" doc:"whether it must be recorded"`
	CoreID          string    `json:"core_id"`
	NodeID          string    `json:"node_id,omitempty"`
	NodeName        string    `json:"node_name,omitempty"`
	Transport       string    `json:"transport,omitempty" doc:"wss, quic or direct"`
	Binding         string    `json:"binding,omitempty"`
	RecordingID     string    `json:"recording_id,omitempty"`
	RecordingState  string    `json:"recording_state,omitempty"`
	RequestedAt     time.Time `json:"requested_at"`
	ConnectedAt     time.Time `json:"connected_at,omitzero"`
	EndedAt         time.Time `json:"ended_at,omitzero"`
	LastActivityAt  time.Time `json:"last_activity_at"`
	Seconds         float64   `json:"duration_s" doc:"since it was requested"`
	BytesIn         int64     `json:"bytes_in" doc:"from the user"`
	BytesOut        int64     `json:"bytes_out" doc:"to the user"`
	EndReason       EndReason `json:"end_reason,omitempty"`
	EndDetail       string    `json:"end_detail,omitempty" doc:"what the user was told"`
	TerminatedAt    time.Time `json:"terminated_at,omitzero"`
	TerminatedBy    string    `json:"terminated_by,omitempty"`
	TerminatedByID  string    `json:"terminated_by_id,omitempty"`
	TerminationText string    `json:"termination_text,omitempty"`
	Lockable        bool      `json:"lockable" doc:"whether its input can be frozen"`
	LockedAt        time.Time `json:"locked_at,omitzero" doc:"set while it is locked"`
	LockedBy        string    `json:"locked_by,omitempty"`
	LockedByID      string    `json:"locked_by_id,omitempty"`
	LockText        string    `json:"lock_text,omitempty" doc:"shown to the user"`
	LockBlock       Block     `json:"lock_block,omitempty" doc:"new connections of the user that are refused: none, target, user"`
	Tags            []string  `json:"tags"`
}

const recordColumns = `id, kind, state, user_id, user_name, user_roles, user_agent, auth_methods, mfa, via, remote_addr,
  target_id, target_name, target_address, site, account, reason, role_id, grant_id, recorded, core_id, node_id, node_name,
  transport, binding, recording_id, requested_at, connected_at, ended_at, last_activity_at, bytes_in, bytes_out,
  end_reason, end_detail, terminated_at, terminated_by_name, terminated_by_id, terminated_text,
  lockable, locked_at, locked_by_name, locked_by_id, lock_text, lock_block, group_id`

const (
	getSQL      = `select ` + recordColumns + ` from connections where id = $1`
	tagsSQL     = `select connection_id, tag from connection_tags where connection_id in (%s) order by tag`
	channelsSQL = `select seq, at, kind, detail from connection_channels
where connection_id = $1 and seq > $2 order by seq limit $3`
	liveIDsSQL = `select id from connections where (user_id = $1 or $1 = '') and (target_id = $2 or $2 = '')
and ($3 = '*' or $3 like '%,' || group_id || ',%') and ` + liveStates
	addTagSQL     = `insert into connection_tags (connection_id, tag) values ($1, $2) on conflict do nothing`
	dropTagsSQL   = `delete from connection_tags where connection_id = $1`
	pruneSQL      = `delete from connections where id in (select id from connections where requested_at < $1 and locked_at = 0 and state in ('disconnected', 'failed') limit 1000)`
	eraseUserSQL  = `update connections set user_name = $2, user_agent = '', remote_addr = '', reason = '' where user_id = $1`
	eraseOrderSQL = `update connections set terminated_by_name = $2 where terminated_by_id = $1`
	eraseLockSQL  = `update connections set locked_by_name = $2 where locked_by_id = $1`
	exportSQL     = `select ` + recordColumns + ` from connections where user_id = $1 order by requested_at, id`
)

type scanner interface{ Scan(dest ...any) error }

func (m *Manager) scanRecord(r scanner) (*Record, error) {
	var x Record
	var roles, methods string
	var requested, connected, end, activity, terminated, locked int64
	err := r.Scan(&x.ID, &x.Kind, &x.State, &x.UserID, &x.UserName, &roles, &x.UserAgent, &methods, &x.MFA, &x.Via, &x.Source,
		&x.TargetID, &x.TargetName, &x.TargetAddress, &x.Site, &x.Account, &x.Reason, &x.RoleID, &x.GrantID, &x.Recorded,
		&x.CoreID, &x.NodeID, &x.NodeName, &x.Transport, &x.Binding, &x.RecordingID, &requested, &connected, &end, &activity,
		&x.BytesIn, &x.BytesOut, &x.EndReason, &x.EndDetail, &terminated, &x.TerminatedBy, &x.TerminatedByID, &x.TerminationText,
		&x.Lockable, &locked, &x.LockedBy, &x.LockedByID, &x.LockText, &x.LockBlock, &x.Group)
	if err != nil {
		return nil, db.Classify(err)
	}
	x.UserRoles, x.AuthMethods, x.Tags = listJSON(roles), listJSON(methods), []string{}
	x.RequestedAt, x.ConnectedAt, x.EndedAt = db.FromMicro(requested), db.FromMicro(connected), db.FromMicro(end)
	x.LastActivityAt, x.TerminatedAt, x.LockedAt = db.FromMicro(activity), db.FromMicro(terminated), db.FromMicro(locked)
	until := x.EndedAt
	if until.IsZero() {
		until = m.cfg.Now()
	}
	x.Seconds = until.Sub(x.RequestedAt).Seconds()
	// What this core carries is newer than the row.
	if l := m.find(x.ID); l != nil {
		x.BytesIn, x.BytesOut = l.Bytes()
		x.LastActivityAt = db.FromMicro(l.lastAny.Load())
	}
	return &x, nil
}

// records runs a query of recordColumns and completes the rows.
func (m *Manager) records(ctx context.Context, q db.Querier, query string, args ...any) ([]*Record, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	defer rows.Close()
	out := []*Record{}
	for rows.Next() {
		x, err := m.scanRecord(rows)
		if err != nil {
			return nil, fmt.Errorf("list connections: %w", err)
		}
		out = append(out, x)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	rows.Close()
	return out, m.complete(ctx, q, out)
}

// complete adds tags and the states of recordings.
func (m *Manager) complete(ctx context.Context, q db.Querier, xs []*Record) error {
	if len(xs) == 0 {
		return nil
	}
	byID := map[string]*Record{}
	var args []any
	var marks, recs []string
	for _, x := range xs {
		byID[x.ID] = x
		args = append(args, x.ID)
		marks = append(marks, "$"+strconv.Itoa(len(args)))
		if x.RecordingID != "" {
			recs = append(recs, x.RecordingID)
		}
	}
	for part := range slices.Chunk(xs, 500) {
		marks, args := marks[:len(part)], make([]any, len(part))
		for i, x := range part {
			args[i] = x.ID
		}
		rows, err := q.QueryContext(ctx, fmt.Sprintf(tagsSQL, strings.Join(marks, ", ")), args...)
		if err != nil {
			return fmt.Errorf("read tags: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, tag string
			if err := rows.Scan(&id, &tag); err != nil {
				return fmt.Errorf("read tags: %w", err)
			}
			byID[id].Tags = append(byID[id].Tags, tag)
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("read tags: %w", err)
		}
		rows.Close()
	}
	if m.cfg.RecordingStatus == nil || len(recs) == 0 {
		return nil
	}
	states, err := m.cfg.RecordingStatus(ctx, recs)
	if err != nil {
		return fmt.Errorf("read states of recordings: %w", err)
	}
	for _, x := range xs {
		x.RecordingState = states[x.RecordingID]
	}
	return nil
}

// Get returns a connection's record; db.ErrNotFound when there is none.
func (m *Manager) Get(ctx context.Context, id string) (*Record, error) {
	xs, err := m.records(ctx, m.cfg.DB, getSQL, id)
	if err != nil {
		return nil, err
	}
	if len(xs) == 0 {
		return nil, fmt.Errorf("read connection %s: %w", id, db.ErrNotFound)
	}
	return xs[0], nil
}

// Name implements the keeper of personal data (FEATURES C29).
func (m *Manager) Name() string { return "connections" }

// Export returns all that is kept about a user's connections.
func (m *Manager) Export(ctx context.Context, q db.Querier, userID string) (any, error) {
	return m.records(ctx, q, exportSQL, userID)
}

// Erase replaces a user's name in past connections and removes what else
// tells about the person; what happened stays.
func (m *Manager) Erase(ctx context.Context, tx *db.Tx, userID, pseudonym string) error {
	if _, err := tx.ExecContext(ctx, eraseUserSQL, userID, pseudonym); err != nil {
		return fmt.Errorf("erase user from connections: %w", err)
	}
	if _, err := tx.ExecContext(ctx, eraseOrderSQL, userID, pseudonym); err != nil {
		return fmt.Errorf("erase user from connections: %w", err)
	}
	for _, query := range []string{eraseLockSQL, eraseWatcherSQL} {
		if _, err := tx.ExecContext(ctx, query, userID, pseudonym); err != nil {
			return fmt.Errorf("erase user from connections: %w", err)
		}
	}
	return nil
}

// prune removes rows whose retention is over.
func (m *Manager) prune(ctx context.Context) error {
	keep := m.cfg.Limits().Retention
	if keep <= 0 {
		return nil
	}
	for {
		res, err := m.cfg.DB.ExecContext(ctx, pruneSQL, m.cfg.Now().Add(-keep).UnixMicro())
		if err != nil {
			return fmt.Errorf("remove old connections: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n < 1000 {
			return err
		}
	}
}
