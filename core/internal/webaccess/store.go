package webaccess

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
)

// State of a session.
type State string

// The states.
const (
	Opening State = "opening"
	Open    State = "open"
	// Ending: it is over for the user; its nodes are clearing it away.
	Ending State = "ending"
	Ended  State = "ended"
)

// row is a session as stored.
type row struct {
	ID, CoreID             string
	State                  State
	UserID, UserName       string
	TargetID, TargetName   string
	Account                string
	CarrierID, CarrierName string
	ProxyID, ProxyName     string
	SealedKey              []byte
	Recorded               bool
	RecordingID            string
	Width, Height          int
	TimeZone               string
	Warm                   bool
	Extended               int // times
	OpenedAt, EndedAt      time.Time
	EndReason              conn.EndReason
	EndText                string
}

const columns = `w.id, w.core_id, w.state, w.user_id, w.user_name, w.target_id, w.target_name, w.account, w.carrier_id, w.carrier_name,
  w.webproxy_id, w.webproxy_name, w.sealed_key, w.recorded, w.recording_id, w.width, w.height, w.time_zone, w.warm, w.extended,
  w.opened_at, w.ended_at, w.end_reason, w.end_text`

const (
	insertSQL = `insert into web_sessions (id, core_id, state, user_id, user_name, target_id, target_name, account, carrier_id, carrier_name,
  webproxy_id, webproxy_name, sealed_key, recorded, recording_id, width, height, time_zone, warm, extended, opened_at, ended_at, end_reason, end_text)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, 0, $20, 0, '', '')`
	openSQL = `update web_sessions set state = 'open', carrier_id = $2, carrier_name = $3, webproxy_id = $4, webproxy_name = $5,
  recording_id = $6, warm = $7 where id = $1 and ended_at = 0`
	extendSQL  = `update web_sessions set extended = $2 where id = $1 and ended_at = 0`
	endSQL     = `update web_sessions set state = 'ended', ended_at = $2, end_reason = $3, end_text = $4 where id = $1 and ended_at = 0`
	unendedSQL = `select ` + columns + ` from web_sessions w where w.core_id = $1 and w.ended_at = 0 order by w.opened_at, w.id`
	getSQL     = `select ` + columns + ` from web_sessions w where w.id = $1`
	listSQL    = `select ` + columns + ` from web_sessions w
where (w.user_id = $1 or $7 = '*' or $7 like '%,' || (select c.group_id from connections c where c.id = w.id) || ',%') and (w.ended_at = 0 or $2 = 1) and (w.target_id = $3 or w.target_name = $3 or $3 = '')
  and (w.opened_at < $4 or w.opened_at = $4 and w.id < $5)
order by w.opened_at desc, w.id desc limit $6`
	exportSQL = `select ` + columns + ` from web_sessions w where w.user_id = $1 order by w.opened_at, w.id`
	eraseSQL  = `update web_sessions set user_name = $2 where user_id = $1`
	// useSQL counts one use of an injection.
	useSQL = `insert into web_credential_uses (session_id, injection, uses) values ($1, $2, 1)
on conflict (session_id, injection) do update set uses = web_credential_uses.uses + 1`
	usesSQL     = `select injection, uses from web_credential_uses where session_id = $1 order by injection`
	dropUsesSQL = `delete from web_credential_uses where session_id = $1`
	// ownerSQL is which core has a session, and whether it lives.
	ownerSQL = `select core_id, ended_at from web_sessions where id = $1`
)

// keyPlace binds a session's key to its row.
func keyPlace(id string) vault.Place {
	return vault.Place{Table: "web_sessions", Column: "sealed_key", Row: id}
}

func scanRow(r db.Scanner) (*row, error) {
	var w row
	var opened, ended int64
	err := r.Scan(&w.ID, &w.CoreID, &w.State, &w.UserID, &w.UserName, &w.TargetID, &w.TargetName, &w.Account, &w.CarrierID, &w.CarrierName,
		&w.ProxyID, &w.ProxyName, &w.SealedKey, &w.Recorded, &w.RecordingID, &w.Width, &w.Height, &w.TimeZone, &w.Warm, &w.Extended,
		&opened, &ended, &w.EndReason, &w.EndText)
	if err != nil {
		return nil, db.Classify(err)
	}
	w.OpenedAt = time.UnixMicro(opened).UTC()
	if ended != 0 {
		w.EndedAt = time.UnixMicro(ended).UTC()
	}
	return &w, nil
}

func insertRow(ctx context.Context, tx *db.Tx, w *row) error {
	_, err := tx.ExecContext(ctx, insertSQL, w.ID, w.CoreID, string(w.State), w.UserID, w.UserName, w.TargetID, w.TargetName, w.Account,
		w.CarrierID, w.CarrierName, w.ProxyID, w.ProxyName, w.SealedKey, w.Recorded, w.RecordingID, w.Width, w.Height, w.TimeZone, w.Warm,
		w.OpenedAt.UnixMicro())
	if err != nil {
		return fmt.Errorf("record web session: %w", err)
	}
	return nil
}

// readUses is how often each injection of a session was used in earlier runs.
func readUses(ctx context.Context, q db.Querier, id string) (map[string]int, error) {
	type counted struct {
		injection string
		uses      int
	}
	list, err := db.Collect(ctx, q, func(r db.Scanner) (c counted, err error) { return c, r.Scan(&c.injection, &c.uses) }, usesSQL, id)
	if err != nil {
		return nil, fmt.Errorf("read uses of the credential: %w", db.Classify(err))
	}
	uses := map[string]int{}
	for _, c := range list {
		uses[c.injection] = c.uses
	}
	return uses, nil
}

// writeEnd notes that a session is over.
func (s *Service) writeEnd(ctx context.Context, w *row, reason conn.EndReason, text string) error {
	now := s.cfg.Now()
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, endSQL, w.ID, now.UnixMicro(), string(reason), text); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, dropUsesSQL, w.ID); err != nil {
			return err
		}
		if err := tell(ctx, tx, w.ID, w.UserID); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.WebSessionClosed, Outcome: audit.OK, Actor: audit.System, Connection: w.ID,
			Object: audit.Object{Kind: "target", ID: w.TargetID, Name: w.TargetName},
			Fields: map[string]string{"user": w.UserName, "reason": string(reason), "text": text,
				"seconds": strconv.FormatFloat(now.Sub(w.OpenedAt).Seconds(), 'f', 1, 64)},
		})
	})
	if err != nil {
		return fmt.Errorf("end web session %s: %w", w.ID, err)
	}
	return nil
}
