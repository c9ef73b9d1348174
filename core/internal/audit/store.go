package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"caponier/core/internal/db"
)

const (
	tailSQL = `select seq, hash from audit_events order by seq desc limit 1`

	insertSQL = `insert into audit_events (seq, id, at, type_number, type, outcome,
  actor_kind, actor_id, actor_via, actor_name, actor_source, actor_salt, actor_commit,
  object_kind, object_id, object_name, fields, detail_salt, detail_commit, connection_id, prev_hash, hash, group_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)`

	// A refused connection names its target only as the user did.
	targetGroupSQL     = `select group_id from targets where id = $1 or ($1 = '' and name = $2)`
	connectionGroupSQL = `select group_id from connections where id = $1`

	columns = `seq, id, at, type, outcome,
  actor_kind, actor_id, actor_via, actor_name, actor_source, actor_salt, actor_commit,
  object_kind, object_id, object_name, fields, detail_salt, detail_commit, connection_id, prev_hash, hash, group_id`

	afterSQL = `select ` + columns + ` from audit_events where seq > $1 order by seq limit $2`

	headsSQL    = `select seq, kind, hash, at, key_id, signature from audit_heads where seq > $1 order by seq, kind limit $2`
	lastHeadSQL = `select seq, kind, hash, at, key_id, signature from audit_heads where kind = $1 order by seq desc limit 1`
	headAtSQL   = `select seq, kind, hash, at, key_id, signature from audit_heads where seq = $1 and kind = $2`
	addHeadSQL  = `insert into audit_heads (seq, kind, hash, at, key_id, signature) values ($1, $2, $3, $4, $5, $6)
on conflict (seq, kind) do nothing`

	// pruneToSQL is the last event of the longest prefix that is all older
	// than a time; the last event of the log always stays.
	pruneToSQL = `select seq, hash from audit_events
where seq < coalesce((select min(seq) from audit_events where at >= $1), (select max(seq) from audit_events))
order by seq desc limit 1`
	pruneSQL      = `delete from audit_events where seq <= $1`
	pruneHeadsSQL = `delete from audit_heads where seq < $1 or (seq = $1 and kind <> $2)`

	eraseActorSQL = `update audit_events set actor_name = '', actor_source = '', actor_salt = null
where actor_kind = 'user' and actor_id = $1 and actor_salt is not null`
	eraseObjectSQL = `update audit_events set object_name = '', fields = '', detail_salt = null
where object_kind = 'user' and object_id = $1 and detail_salt is not null`
	eraseLoginsSQL = `update audit_events set object_name = '', fields = '', detail_salt = null
where actor_kind = 'user' and actor_id = $1 and type like 'login.%' and detail_salt is not null`
)

func insert(ctx context.Context, tx *db.Tx, r *row) error {
	fields, err := fieldsText(r.Fields)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, insertSQL, r.Seq, r.ID, r.Time.UnixMicro(), int64(r.Type.Number()), string(r.Type), string(r.Outcome),
		r.Actor.Kind, r.Actor.ID, r.Actor.Via, r.Actor.Name, r.Actor.Source, r.actorSalt[:], r.actorCommit[:],
		r.Object.Kind, r.Object.ID, r.Object.Name, fields, r.detailSalt[:], r.detailCommit[:], r.Connection, r.prev[:], r.hash[:], r.Group)
	if err != nil {
		return fmt.Errorf("insert: %w", db.Classify(err))
	}
	return nil
}

// scan reads one row of columns. A field that does not have its form makes
// the row one that cannot verify, not an error: the log must be readable
// after somebody damaged it.
func scan(rows *sql.Rows) (row, error) {
	var (
		r                                                               row
		at                                                              int64
		fields                                                          string
		actorSalt, actorCommit, detailSalt, detailCommit, prev, theHash []byte
	)
	err := rows.Scan(&r.Seq, &r.ID, &at, &r.Type, &r.Outcome,
		&r.Actor.Kind, &r.Actor.ID, &r.Actor.Via, &r.Actor.Name, &r.Actor.Source, &actorSalt, &actorCommit,
		&r.Object.Kind, &r.Object.ID, &r.Object.Name, &fields, &detailSalt, &detailCommit, &r.Connection, &prev, &theHash, &r.Group)
	if err != nil {
		return row{}, fmt.Errorf("read event: %w", err)
	}
	r.Time = time.UnixMicro(at).UTC()
	r.actorErased, r.detailErased = actorSalt == nil, detailSalt == nil
	copy(r.actorSalt[:], actorSalt)
	copy(r.detailSalt[:], detailSalt)
	copy(r.actorCommit[:], actorCommit)
	copy(r.detailCommit[:], detailCommit)
	copy(r.prev[:], prev)
	copy(r.hash[:], theHash)
	if fields != "" && json.Unmarshal([]byte(fields), &r.Fields) != nil {
		r.Fields = map[string]string{"unreadable": cut(fields)}
	}
	return r, nil
}

func readRows(ctx context.Context, q db.Querier, query string, args ...any) ([]row, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	var out []row
	for rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return out, nil
}

func readHeads(ctx context.Context, q db.Querier, query string, args ...any) ([]Head, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	defer rows.Close()
	var out []Head
	for rows.Next() {
		var h Head
		var at int64
		if err := rows.Scan(&h.Seq, &h.Kind, &h.Hash, &at, &h.KeyID, &h.Signature); err != nil {
			return nil, fmt.Errorf("read head: %w", err)
		}
		h.At = time.UnixMicro(at).UTC()
		out = append(out, h)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	return out, nil
}

func addHead(ctx context.Context, tx *db.Tx, h Head) error {
	_, err := tx.ExecContext(ctx, addHeadSQL, h.Seq, string(h.Kind), h.Hash, h.At.UnixMicro(), h.KeyID, h.Signature)
	if err != nil {
		return fmt.Errorf("store head: %w", err)
	}
	return nil
}
