package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"caponier/core/internal/db"
)

// FindingKind is what is wrong at a place of the chain.
type FindingKind string

// The findings.
const (
	Edited    FindingKind = "edited"     // the event's content does not match its hash
	Deleted   FindingKind = "deleted"    // one or more events are missing from here on
	Relinked  FindingKind = "relinked"   // the event does not follow the one before it
	Truncated FindingKind = "truncated"  // a signed head knows of events beyond the tail
	Rewritten FindingKind = "rewritten"  // a signed head disagrees with the event's hash
	Forged    FindingKind = "forged"     // a head's signature is not ours
	Unerased  FindingKind = "bad_erased" // texts are missing without an erasure on record
)

// Finding is one thing that is wrong.
type Finding struct {
	Seq  int64       `json:"seq"`
	Kind FindingKind `json:"kind"`
	Text string      `json:"text"`
}

// Report is the outcome of a verification.
type Report struct {
	OK bool `json:"ok"`
	// First and Last are the events looked at; Pruned is the last one that
	// retention removed under a signed checkpoint.
	First  int64 `json:"first"`
	Last   int64 `json:"last"`
	Pruned int64 `json:"pruned"`
	Events int64 `json:"events"`
	Heads  int64 `json:"heads"`
	// Signed is the last event under a signed head. Those after it are chained
	// but could be rewritten together by somebody who can write the database.
	Signed int64 `json:"signed"`
	// Erased is how many events had texts erased on a person's request.
	Erased   int64     `json:"erased"`
	Findings []Finding `json:"findings"`
}

// maxFindings bounds a report; more would not say more.
const maxFindings = 100

// verifyPage is how many rows are held at once.
const verifyPage = 500

// Verify reads the whole log in one snapshot and reports what is wrong with
// it. headFile may be empty; see Keeper.
func (l *Log) Verify(ctx context.Context, keys Keys, headFile string) (Report, error) {
	return l.verify(ctx, keys, headFile, nil)
}

// verify is Verify; progress, when set, hears how many events were looked at,
// once for each page of them.
func (l *Log) verify(ctx context.Context, keys Keys, headFile string, progress func(events int64)) (Report, error) {
	v := verifier{keys: keys, limit: maxFindings, progress: progress}
	err := l.db.View(ctx, func(tx *db.Tx) error {
		if err := v.run(ctx, tx, 0); err != nil {
			return err
		}
		if headFile == "" {
			return nil
		}
		h, err := lastFiled(headFile)
		if err != nil || h == nil {
			return err
		}
		return v.filed(ctx, tx, *h)
	})
	if err != nil {
		return Report{}, fmt.Errorf("verify audit log: %w", err)
	}
	v.report.OK = len(v.report.Findings) == 0
	if v.report.Findings == nil {
		v.report.Findings = []Finding{}
	}
	return v.report, nil
}

// verifier walks events and heads side by side.
type verifier struct {
	keys  Keys
	limit int
	until int64 // 0 = to the end
	// erased holds who was erased by a user.erased event.
	erased   map[string]bool
	report   Report
	progress func(events int64)
}

func (v *verifier) found(seq int64, kind FindingKind, format string, args ...any) {
	if len(v.report.Findings) < v.limit {
		v.report.Findings = append(v.report.Findings, Finding{seq, kind, fmt.Sprintf(format, args...)})
	}
}

const erasedSQL = `select distinct object_id from audit_events where type = $1`

// run verifies the events after from, which must have been verified before
// unless it is 0.
func (v *verifier) run(ctx context.Context, tx *db.Tx, from int64) error {
	if err := v.readErased(ctx, tx); err != nil {
		return err
	}
	last, prev, err := v.start(ctx, tx, from)
	if err != nil {
		return err
	}
	heads := headCursor{tx: tx, after: last}
	for len(v.report.Findings) < v.limit {
		rows, err := readRows(ctx, tx, afterSQL, last, verifyPage)
		if err != nil {
			return err
		}
		for i := range rows {
			r := &rows[i]
			if v.until > 0 && r.Seq > v.until {
				return nil
			}
			v.event(r, last, prev)
			if v.report.First == 0 {
				v.report.First = r.Seq
			}
			v.report.Events++
			if err := v.headsUpTo(ctx, &heads, r); err != nil {
				return err
			}
			last, prev = r.Seq, r.hash
		}
		v.report.Last = last
		if len(rows) < verifyPage {
			break
		}
		if v.progress != nil {
			v.progress(v.report.Events)
		}
	}
	if v.until > 0 || len(v.report.Findings) >= v.limit {
		return nil
	}
	for {
		h, ok, err := heads.next(ctx)
		if err != nil || !ok {
			return err
		}
		v.beyond(h, last)
	}
}

func (v *verifier) readErased(ctx context.Context, tx *db.Tx) error {
	v.erased = map[string]bool{}
	rows, err := tx.QueryContext(ctx, erasedSQL, string(UserErased))
	if err != nil {
		return fmt.Errorf("read erasures: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("read erasures: %w", err)
		}
		v.erased[id] = true
	}
	return rows.Err()
}

// start finds what the first event must follow: nothing, the event at from, or
// a signed checkpoint.
func (v *verifier) start(ctx context.Context, tx *db.Tx, from int64) (int64, digest, error) {
	if from > 0 {
		rows, err := readRows(ctx, tx, afterSQL, from-1, 1)
		if err != nil || len(rows) == 0 || rows[0].Seq != from {
			return 0, digest{}, err
		}
		return from, rows[0].hash, nil
	}
	points, err := readHeads(ctx, tx, lastHeadSQL, string(Checkpoint))
	if err != nil || len(points) == 0 {
		return 0, digest{}, err
	}
	p := points[0]
	if !p.valid(v.keys) {
		v.found(p.Seq, Forged, "the checkpoint at event %d is not signed by a key of ours", p.Seq)
		return 0, digest{}, nil
	}
	v.report.Pruned, v.report.Signed = p.Seq, p.Seq
	v.report.Heads++
	return p.Seq, digest(p.Hash), nil
}

// event checks one event against the one before it.
func (v *verifier) event(r *row, last int64, prev digest) {
	switch {
	case r.Seq != last+1:
		if r.Seq == last+2 {
			v.found(last+1, Deleted, "event %d is missing", last+1)
		} else {
			v.found(last+1, Deleted, "events %d to %d are missing", last+1, r.Seq-1)
		}
	case r.prev != prev:
		v.found(r.Seq, Relinked, "event %d does not follow event %d", r.Seq, last)
	}
	actor, detail := r.commitments()
	if r.actorErased {
		actor = r.actorCommit
		if !v.erased[r.Actor.ID] || r.Actor.Name != "" || r.Actor.Source != "" {
			v.found(r.Seq, Unerased, "the actor of event %d is missing without an erasure on record", r.Seq)
		}
	}
	if r.detailErased {
		detail = r.detailCommit
		subject := v.erased[r.Object.ID] && r.Object.Kind == "user" || v.erased[r.Actor.ID] && r.Actor.Kind == "user"
		if !subject || r.Object.Name != "" || len(r.Fields) > 0 {
			v.found(r.Seq, Unerased, "the details of event %d are missing without an erasure on record", r.Seq)
		}
	}
	if r.actorErased || r.detailErased {
		v.report.Erased++
	}
	if actor != r.actorCommit || detail != r.detailCommit || sha256.Sum256(r.canonical()) != r.hash {
		v.found(r.Seq, Edited, "event %d was changed after it was written", r.Seq)
	} else if !r.placed() {
		v.found(r.Seq, Edited, "event %d was moved to another access group after it was written", r.Seq)
	}
}

// headsUpTo checks the heads that speak of r.
func (v *verifier) headsUpTo(ctx context.Context, heads *headCursor, r *row) error {
	for {
		h, ok, err := heads.peek(ctx)
		if err != nil || !ok || h.Seq > r.Seq {
			return err
		}
		heads.pop()
		v.report.Heads++
		switch {
		case !h.valid(v.keys):
			v.found(h.Seq, Forged, "the head at event %d is not signed by a key of ours", h.Seq)
		case h.Seq < r.Seq:
			// The event is missing, which event has said.
		case !bytes.Equal(h.Hash, r.hash[:]):
			v.found(h.Seq, Rewritten, "the signed head at event %d has another hash: the chain up to it was rewritten", h.Seq)
		default:
			v.report.Signed = h.Seq
		}
	}
}

// beyond judges a head past the last event.
func (v *verifier) beyond(h Head, last int64) {
	v.report.Heads++
	if !h.valid(v.keys) {
		v.found(h.Seq, Forged, "the head at event %d is not signed by a key of ours", h.Seq)
		return
	}
	v.found(last+1, Truncated, "the log ends at event %d, but a signed head knows of event %d", last, h.Seq)
}

// filed checks the newest head kept outside the database.
func (v *verifier) filed(ctx context.Context, tx *db.Tx, h Head) error {
	if !h.valid(v.keys) {
		v.found(h.Seq, Forged, "the head file's last head, at event %d, is not signed by a key of ours", h.Seq)
		return nil
	}
	if h.Seq > v.report.Last {
		v.found(v.report.Last+1, Truncated, "the log ends at event %d, but the head file knows of event %d", v.report.Last, h.Seq)
		return nil
	}
	if h.Seq <= v.report.Pruned {
		return nil
	}
	rows, err := readRows(ctx, tx, afterSQL, h.Seq-1, 1)
	if err != nil {
		return err
	}
	if len(rows) == 1 && rows[0].Seq == h.Seq && !bytes.Equal(rows[0].hash[:], h.Hash) {
		v.found(h.Seq, Rewritten, "the head file has another hash for event %d: the chain up to it was rewritten", h.Seq)
	}
	return nil
}

// headCursor pages through the heads after a place, in order.
type headCursor struct {
	tx    *db.Tx
	after int64
	page  []Head
	done  bool
}

func (c *headCursor) peek(ctx context.Context) (Head, bool, error) {
	if len(c.page) == 0 && !c.done {
		page, err := readHeads(ctx, c.tx, headsSQL, c.after, verifyPage)
		if err != nil {
			return Head{}, false, err
		}
		// Both kinds may stand at one event, and a page must not part them.
		if c.done = len(page) < verifyPage; !c.done {
			lastSeq := page[len(page)-1].Seq
			for page[len(page)-1].Seq == lastSeq && page[0].Seq != lastSeq {
				page = page[:len(page)-1]
			}
		}
		if len(page) > 0 {
			c.after = page[len(page)-1].Seq
		}
		c.page = page
	}
	if len(c.page) == 0 {
		return Head{}, false, nil
	}
	return c.page[0], true, nil
}

func (c *headCursor) pop() { c.page = c.page[1:] }

func (c *headCursor) next(ctx context.Context) (Head, bool, error) {
	h, ok, err := c.peek(ctx)
	if ok {
		c.pop()
	}
	return h, ok, err
}
