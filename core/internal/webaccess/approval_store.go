package webaccess

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/wire"
)

// topicApprovals: a request waits for a second person, or was decided on.
const topicApprovals = "web_approvals"

// approvalRow is a request that needs approval, as stored.
type approvalRow struct {
	ID, Session, Hold    string
	UserID, UserName     string
	TargetID, TargetName string
	Account              string
	ProxyID, ProxyName   string
	Method, URL          string
	// RuleMethod is the method that the rule saw, if it is not Method.
	RuleMethod string
	// PreviewKind and Preview are the body made readable. They are written with
	// the row and go with the decision; reading a row leaves them out.
	PreviewKind, Preview string
	ContentType          string
	Length               int64
	Digest, Rule, Why    string
	State                wire.ApprovalState
	AskedAt, ExpiresAt   time.Time
	DecidedAt            time.Time // zero while it waits
	DeciderID            string
	DeciderName, Reason  string
	TakenAt              time.Time // when its webproxy took the approval, to send it; else zero

	Group        string // of the session
	Over, Locked bool   // the session's
}

// unsent reports whether it is approved, and its webproxy does not have that yet.
func (a *approvalRow) unsent() bool { return a.State == wire.ApprovalApproved && a.TakenAt.IsZero() }

// open reports whether something can become of it yet.
func (a *approvalRow) open() bool { return a.State == wire.ApprovalWaiting || a.unsent() }

const approvalColumns = `a.id, a.session_id, a.hold, a.user_id, a.user_name, a.target_id, a.target_name, a.account, a.webproxy_id, a.webproxy_name,
  a.method, a.url, a.content_type, a.length, a.digest, a.rule, a.why, a.state, a.asked_at, a.expires_at, a.decided_at, a.decider_id,
  a.decider_name, a.reason, a.rule_method, a.taken_at, c.group_id, w.ended_at, c.locked_at`

const approvalFrom = ` from web_approvals a join web_sessions w on w.id = a.session_id join connections c on c.id = a.session_id `

const (
	insertApprovalSQL = `insert into web_approvals (id, session_id, hold, user_id, user_name, target_id, target_name, account, webproxy_id, webproxy_name,
  method, url, content_type, length, digest, rule, why, state, asked_at, expires_at, decided_at, decider_id, decider_name, reason,
  rule_method, preview_kind, preview)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, 'waiting', $18, $19, 0, '', '', '', $20, $21, $22)`
	decideApprovalSQL = `update web_approvals set state = $2, decided_at = $3, decider_id = $4, decider_name = $5, reason = $6, preview_kind = '', preview = ''
where id = $1 and state = 'waiting'`
	// What was approved keeps who did.
	loseApprovalSQL = `update web_approvals set state = 'lost', decided_at = $2, reason = $3, preview_kind = '', preview = ''
where id = $1 and (state = 'waiting' or state = 'approved' and taken_at = 0)`
	takeApprovalSQL  = `update web_approvals set taken_at = $2 where id = $1 and state = 'approved' and taken_at = 0`
	previewSQL       = `select preview_kind, preview from web_approvals where id = $1`
	approvalSQL      = `select ` + approvalColumns + approvalFrom + `where a.id = $1`
	heldSQL          = `select ` + approvalColumns + approvalFrom + `where a.session_id = $1 and a.hold = $2`
	openApprovalsSQL = `select ` + approvalColumns + approvalFrom + `where a.session_id = $1 and (a.state = 'waiting' or a.state = 'approved' and a.taken_at = 0) order by a.asked_at, a.id`
	// strandedSQL are those that nothing waits with any more.
	strandedSQL = `select ` + approvalColumns + approvalFrom + `where (a.state = 'waiting' or a.state = 'approved' and a.taken_at = 0)
  and (w.ended_at <> 0 or a.expires_at < $1) order by a.asked_at limit 1000`
	// approvalsSQL lists those of a user, and of the groups given.
	approvalsSQL = `select ` + approvalColumns + approvalFrom + `where (a.user_id = $1 or $2 = '*' or $2 like '%,' || c.group_id || ',%')
  and ($3 = '' or a.state = $3 or $3 = 'decided' and a.state <> 'waiting') and ($4 = '' or a.session_id = $4)
  and (a.asked_at < $5 or a.asked_at = $5 and a.id < $6)
order by a.asked_at desc, a.id desc limit $7`
	exportApprovalsSQL = `select ` + approvalColumns + approvalFrom + `where a.user_id = $1 or a.decider_id = $1 order by a.asked_at, a.id`
	eraseAskerSQL      = `update web_approvals set user_name = $2 where user_id = $1`
	eraseDeciderSQL    = `update web_approvals set decider_name = $2 where decider_id = $1`
)

func scanApproval(r db.Scanner) (*approvalRow, error) {
	var a approvalRow
	var asked, expires, decided, taken, ended, locked int64
	err := r.Scan(&a.ID, &a.Session, &a.Hold, &a.UserID, &a.UserName, &a.TargetID, &a.TargetName, &a.Account, &a.ProxyID, &a.ProxyName,
		&a.Method, &a.URL, &a.ContentType, &a.Length, &a.Digest, &a.Rule, &a.Why, &a.State, &asked, &expires, &decided, &a.DeciderID,
		&a.DeciderName, &a.Reason, &a.RuleMethod, &taken, &a.Group, &ended, &locked)
	if err != nil {
		return nil, db.Classify(err)
	}
	a.AskedAt, a.ExpiresAt = time.UnixMicro(asked).UTC(), time.UnixMicro(expires).UTC()
	if decided != 0 {
		a.DecidedAt = time.UnixMicro(decided).UTC()
	}
	if taken != 0 {
		a.TakenAt = time.UnixMicro(taken).UTC()
	}
	a.Over, a.Locked = ended != 0, locked != 0
	return &a, nil
}

func (a *approvalRow) object() audit.Object {
	return audit.Object{Kind: "target", ID: a.TargetID, Name: a.TargetName}
}

// fields are what the audit log and the timeline say of it.
func (a *approvalRow) fields() map[string]string {
	f := map[string]string{"id": a.ID, "state": string(a.State), "user": a.UserName, "method": a.Method, "url": clip(a.URL, 500), "rule": clip(a.Rule, 300)}
	for k, v := range map[string]string{"why": a.Why, "by": a.DeciderName, "reason": a.Reason, "digest": a.Digest, "rule_method": a.RuleMethod} {
		if v != "" {
			f[k] = v
		}
	}
	return f
}

// insertApproval writes a new one down.
func (s *Service) insertApproval(ctx context.Context, a *approvalRow, by audit.Actor) error {
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.ExecContext(ctx, insertApprovalSQL, a.ID, a.Session, a.Hold, a.UserID, a.UserName, a.TargetID, a.TargetName, a.Account, a.ProxyID, a.ProxyName,
			a.Method, a.URL, a.ContentType, a.Length, a.Digest, a.Rule, a.Why, a.AskedAt.UnixMicro(), a.ExpiresAt.UnixMicro(),
			a.RuleMethod, a.PreviewKind, a.Preview)
		if err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, groupSQL, a.Session).Scan(&a.Group); err != nil {
			return fmt.Errorf("read access group: %w", db.Classify(err))
		}
		if err := noteApproval(ctx, tx, a); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{Type: audit.WebApprovalAsked, Outcome: audit.OK, Actor: by, Connection: a.Session,
			Object: a.object(), Fields: a.fields()})
	})
	if err != nil {
		return fmt.Errorf("record request for approval: %w", err)
	}
	return nil
}

func noteApproval(ctx context.Context, tx *db.Tx, a *approvalRow) error {
	if err := api.Notify(ctx, tx, topicApprovals, a.ID, a.Group); err != nil {
		return err
	}
	return tx.Notify(ctx, topicApprovals+api.OwnSuffix, a.UserID)
}

// finals are the final states and how they are audited.
var finals = map[wire.ApprovalState]struct {
	typ     audit.Type
	outcome audit.Outcome
}{
	wire.ApprovalApproved:  {audit.WebApprovalApproved, audit.OK},
	wire.ApprovalDenied:    {audit.WebApprovalDenied, audit.Denied},
	wire.ApprovalExpired:   {audit.WebApprovalExpired, audit.Denied},
	wire.ApprovalWithdrawn: {audit.WebApprovalWithdrawn, audit.Denied},
	wire.ApprovalLost:      {audit.WebApprovalLost, audit.Denied},
}

// writeFinal gives a waiting one its final state, which a already has, in tx;
// lost may also be what is approved and not sent. false: it had one before.
func (s *Service) writeFinal(ctx context.Context, tx *db.Tx, a *approvalRow, by audit.Actor) (bool, error) {
	final, ok := finals[a.State]
	if !ok {
		return false, fmt.Errorf("%q is no final state", a.State)
	}
	var res sql.Result
	var err error
	if a.State == wire.ApprovalLost {
		res, err = tx.ExecContext(ctx, loseApprovalSQL, a.ID, a.DecidedAt.UnixMicro(), a.Reason)
	} else {
		res, err = tx.ExecContext(ctx, decideApprovalSQL, a.ID, string(a.State), a.DecidedAt.UnixMicro(), a.DeciderID, a.DeciderName, a.Reason)
	}
	if err != nil {
		return false, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return false, err
	}
	if err := noteApproval(ctx, tx, a); err != nil {
		return false, err
	}
	f := a.fields()
	f["waited_s"] = seconds(a.DecidedAt.Sub(a.AskedAt))
	return true, s.cfg.Audit.Append(ctx, tx, audit.Event{Type: final.typ, Outcome: final.outcome, Actor: by, Connection: a.Session, Object: a.object(), Fields: f})
}

// writeTaken notes that the webproxy took the approval, in tx; false: it was
// taken or lost before.
func (s *Service) writeTaken(ctx context.Context, tx *db.Tx, a *approvalRow, by audit.Actor) (bool, error) {
	res, err := tx.ExecContext(ctx, takeApprovalSQL, a.ID, a.TakenAt.UnixMicro())
	if err != nil {
		return false, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return false, err
	}
	if err := noteApproval(ctx, tx, a); err != nil {
		return false, err
	}
	return true, s.cfg.Audit.Append(ctx, tx, audit.Event{Type: audit.WebApprovalSent, Outcome: audit.OK, Actor: by, Connection: a.Session,
		Object: a.object(), Fields: a.fields()})
}
