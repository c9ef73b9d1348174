package recording

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Recording is one row: what is known without opening the file.
type Recording struct {
	ID           string    `json:"id"`
	ConnectionID string    `json:"connection_id"`
	CoreID       string    `json:"core_id"`
	Status       Status    `json:"status" enum:"recording,complete,incomplete,damaged,expired"`
	Kind         string    `json:"kind"`
	UserID       string    `json:"user_id"`
	UserName     string    `json:"user_name"`
	TargetID     string    `json:"target_id"`
	TargetName   string    `json:"target_name"`
	Group        string    `json:"group" doc:"access group the target was in"`
	Account      string    `json:"account"`
	Title        string    `json:"title,omitempty"`
	Width        int       `json:"width"`
	Height       int       `json:"height"`
	StartedAt    time.Time `json:"started_at"`
	EndedAt      time.Time `json:"ended_at,omitzero"`
	Seconds      float64   `json:"duration_s"`
	Size         int64     `json:"size"`
	Blocks       int64     `json:"blocks"`
	SHA256       string    `json:"sha256,omitempty"`
	Indexed      bool      `json:"indexed"`
	Problem      string    `json:"problem,omitempty"`
	VerifiedAt   time.Time `json:"verified_at,omitzero"`
	ExpiresAt    time.Time `json:"expires_at"`

	sealedKey string
}

const columns = `id, connection_id, core_id, status, kind, user_id, user_name, target_id, target_name, account, title,
  width, height, sealed_key, started_at, ended_at, duration, size, blocks, sha256, indexed, problem, verified_at, expires_at, group_id`

const (
	insertSQL = `insert into recordings
  (id, connection_id, core_id, status, kind, user_id, user_name, target_id, target_name, account, title, width, height,
   sealed_key, started_at, expires_at, group_id)
values ($1, $2, $3, 'recording', $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
  coalesce((select c.group_id from connections c where c.id = $2), (select t.group_id from targets t where t.id = $7), 'default'))
returning group_id`

	groupSQL = `select group_id from recordings where id = $1`

	getSQL = `select ` + columns + ` from recordings where id = $1`

	endSQL = `update recordings set status = $2, ended_at = $3, duration = $4, size = $5, blocks = $6, sha256 = $7, problem = $8
where id = $1 and status = 'recording'`

	leftSQL = `select ` + columns + ` from recordings where core_id = $1 and status = 'recording' order by id`

	dueSQL = `select ` + columns + ` from recordings where expires_at <= $1 and status not in ('expired', 'recording')
order by expires_at limit 100`

	unverifiedSQL = `select ` + columns + ` from recordings where status = 'complete' and verified_at <= $1
order by verified_at limit $2`

	verifiedSQL = `update recordings set verified_at = $2, status = $3, problem = $4 where id = $1 and status <> 'expired'`

	expireSQL = `update recordings set status = 'expired', indexed = $2, size = 0 where id = $1 and status <> 'expired'`

	indexedSQL = `update recordings set indexed = $2 where id = $1 and status <> 'expired'`

	unindexedSQL = `select ` + columns + ` from recordings
where indexed = $1 and status in ('complete', 'incomplete') and ended_at >= $2 order by ended_at limit 20`
)

type scanRow interface{ Scan(dest ...any) error }

func scanRecording(r scanRow) (*Recording, error) {
	var x Recording
	var started, end, duration, verified, expires int64
	err := r.Scan(&x.ID, &x.ConnectionID, &x.CoreID, &x.Status, &x.Kind, &x.UserID, &x.UserName, &x.TargetID, &x.TargetName,
		&x.Account, &x.Title, &x.Width, &x.Height, &x.sealedKey, &started, &end, &duration, &x.Size, &x.Blocks, &x.SHA256,
		&x.Indexed, &x.Problem, &verified, &expires, &x.Group)
	if err != nil {
		return nil, db.Classify(err)
	}
	x.StartedAt, x.EndedAt, x.VerifiedAt, x.ExpiresAt = db.FromMicro(started), db.FromMicro(end), db.FromMicro(verified), db.FromMicro(expires)
	x.Seconds = time.Duration(duration * 1000).Seconds()
	return &x, nil
}

// Get returns a recording's row.
func (s *Store) Get(ctx context.Context, q db.Querier, id string) (*Recording, error) {
	r, err := scanRecording(q.QueryRowContext(ctx, getSQL, id))
	if err != nil {
		return nil, fmt.Errorf("read recording %s: %w", id, err)
	}
	return r, nil
}

// list runs a query of the columns.
func (s *Store) list(ctx context.Context, q db.Querier, query string, args ...any) ([]*Recording, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list recordings: %w", err)
	}
	defer rows.Close()
	var out []*Recording
	for rows.Next() {
		r, err := scanRecording(rows)
		if err != nil {
			return nil, fmt.Errorf("list recordings: %w", err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list recordings: %w", err)
	}
	return out, nil
}

// Statuses tells the status of recordings by id, for lists of connections.
func (s *Store) Statuses(ctx context.Context, ids []string) (map[string]string, error) {
	out := map[string]string{}
	for _, id := range ids {
		r, err := s.Get(ctx, s.cfg.DB, id)
		if err != nil {
			continue // a recording that is gone has no status
		}
		out[id] = string(r.Status)
	}
	return out, nil
}

func (s *Store) insert(ctx context.Context, id string, m Meta, sealed []byte, now time.Time) error {
	return s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		var group string
		err := tx.QueryRowContext(ctx, insertSQL, id, m.ConnectionID, s.cfg.CoreID, m.Kind, m.UserID, m.UserName, m.TargetID,
			m.TargetName, m.Account, m.Title, m.Width, m.Height, base64.StdEncoding.EncodeToString(sealed), now.UnixMicro(),
			now.Add(s.cfg.Limits().Retention).UnixMicro()).Scan(&group)
		if err != nil {
			return fmt.Errorf("insert recording: %w", db.Classify(err))
		}
		if err := api.Notify(ctx, tx, TopicRecording, id, group); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.RecordingStarted, Outcome: audit.OK, Group: group, Connection: m.ConnectionID,
			Actor:  audit.Actor{Kind: "user", ID: m.UserID, Name: m.UserName},
			Object: audit.Object{Kind: "recording", ID: id},
			Fields: map[string]string{"target": m.TargetName, "account": m.Account, "kind": m.Kind},
		})
	})
}

// saveEnded writes the rows of finished recordings; what fails stays for later.
func (s *Store) saveEnded(ctx context.Context) error {
	for {
		s.mu.Lock()
		if len(s.unsaved) == 0 {
			s.mu.Unlock()
			return nil
		}
		e := s.unsaved[0]
		s.mu.Unlock()
		err := s.saveOne(ctx, e)
		if err != nil {
			return fmt.Errorf("end recording %s: %w", e.id, err)
		}
		s.mu.Lock()
		// Another caller may have saved it meanwhile.
		if len(s.unsaved) > 0 && s.unsaved[0].id == e.id {
			s.unsaved = s.unsaved[1:]
			if len(s.toIndex) < maxUnsaved {
				s.toIndex = append(s.toIndex, e.id)
			}
		}
		s.mu.Unlock()
	}
}

func (s *Store) saveOne(ctx context.Context, e ended) error {
	return s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		res, err := tx.ExecContext(ctx, endSQL, e.id, string(e.status), e.at.UnixMicro(), e.duration.Microseconds(), e.size,
			e.blocks, e.sha256, e.problem)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err // ended already: nothing to say twice
		}
		what, outcome := audit.RecordingCompleted, audit.OK
		if e.status != Complete {
			what, outcome = audit.RecordingFailed, audit.Failed
		}
		var group string
		if err := tx.QueryRowContext(ctx, groupSQL, e.id).Scan(&group); err != nil {
			return db.Classify(err)
		}
		if err := api.Notify(ctx, tx, TopicRecording, e.id, group); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: what, Outcome: outcome, Actor: audit.System, Group: group, Connection: e.conn,
			Object: audit.Object{Kind: "recording", ID: e.id},
			Fields: map[string]string{
				"status": string(e.status), "sha256": e.sha256, "bytes": strconv.FormatInt(e.size, 10),
				"seconds": strconv.FormatFloat(e.duration.Seconds(), 'f', 3, 64), "user": e.user,
			},
		})
	})
}

const (
	userSQL  = `select ` + columns + ` from recordings where user_id = $1 order by started_at, id`
	eraseSQL = `update recordings set user_name = $2, title = '' where user_id = $1`
)

// Name implements the keeper of personal data (FEATURES C29).
func (s *Store) Name() string { return "recordings" }

// Export returns the rows of a user's recordings.
func (s *Store) Export(ctx context.Context, q db.Querier, userID string) (any, error) {
	rs, err := s.list(ctx, q, userSQL, userID)
	if rs == nil {
		rs = []*Recording{}
	}
	return rs, err
}

// Erase replaces a user's name in the rows of recordings. What was recorded
// is evidence and stays until its retention ends.
func (s *Store) Erase(ctx context.Context, tx *db.Tx, userID, pseudonym string) error {
	if _, err := tx.ExecContext(ctx, eraseSQL, userID, pseudonym); err != nil {
		return fmt.Errorf("erase user from recordings: %w", err)
	}
	return nil
}
