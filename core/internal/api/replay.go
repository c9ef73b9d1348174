package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"time"

	"caponier/core/internal/db"
)

// Bounds of the store of answers: how long one is kept, how many of one user,
// and how large it may be to be kept. A request that has not ended after
// replayLost was lost with its core: it may be repeated.
const (
	replayFor    = 10 * time.Minute
	replayLost   = 2 * time.Minute
	replayUser   = 2000
	replayBody   = 64 << 10
	maxReplayKey = 128
	replayWrite  = 5 * time.Second
)

// replayStore keeps answers to POSTs that carried an Idempotency-Key in the
// database, so that a client that lost an answer may repeat its request at any
// core. What an operation did is never done twice: where the answer itself is
// not kept (it holds a secret, or is too large), a repetition is told so.
type replayStore struct {
	db  *db.DB
	log *slog.Logger
	now func() time.Time
}

const (
	replayClaimSQL = `insert into api_replays (key, user_id, request, at, status, kept, header, body)
values ($1, $2, $3, $4, 0, $5, '', $6) on conflict (key) do nothing`
	replayReadSQL  = `select request, at, status, kept, header, body from api_replays where key = $1`
	replayEndSQL   = `update api_replays set status = $3, kept = $4, header = $5, body = $6 where key = $1 and at = $2`
	replayDropSQL  = `delete from api_replays where key = $1 and at = $2`
	replayOldSQL   = `delete from api_replays where at <= $1 or (status = 0 and at <= $2)`
	replayCountSQL = `select count(*) from api_replays where user_id = $1`
)

// answer is a row.
type answer struct {
	request string // hash of path, query and body
	at      int64
	status  int
	kept    bool
	header  string
	body    []byte
}

// errReplaysFull: the user has too many keys in use.
var errReplaysFull = errors.New("too many idempotency keys")

// serve runs h, or answers from the store when the same caller has sent the
// same request with the same key before.
func (s *replayStore) serve(w http.ResponseWriter, r *http.Request, op Op, p *Principal, body []byte, h http.HandlerFunc) {
	key := r.Header.Get("Idempotency-Key")
	if key == "" || r.Method != http.MethodPost || p == nil {
		h(w, r)
		return
	}
	if len(key) > maxReplayKey {
		writeProblem(w, r, Invalid(FieldError{Field: "header.Idempotency-Key", Message: "at most 128 bytes"}))
		return
	}
	id := hash([]byte(p.UserID + "\x00" + op.ID + "\x00" + key))
	request := hash(append([]byte(r.URL.Path+"\x00"+r.URL.RawQuery+"\x00"), body...))
	at, before, err := s.begin(r.Context(), id, p.UserID, request)
	switch {
	case errors.Is(err, errReplaysFull):
		writeProblem(w, r, Limited("Too many requests with an Idempotency-Key.", int(replayFor.Seconds())))
	case err != nil:
		s.log.LogAttrs(r.Context(), slog.LevelError, "cannot look for a repeated request", slog.String("request", RequestID(r.Context())), slog.String("err", err.Error()))
		writeProblem(w, r, Unavailable("idempotency_unavailable", "Whether this is a repetition cannot be told now; nothing was done."))
	case before != nil:
		before.replay(w, r, request)
	default:
		c := &copier{ResponseWriter: w}
		defer func() {
			s.end(context.WithoutCancel(r.Context()), id, at, op, c)
			c.release()
		}()
		h(c, r)
	}
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// replay answers a repetition.
func (a *answer) replay(w http.ResponseWriter, r *http.Request, request string) {
	switch {
	case a.request != request:
		writeProblem(w, r, &Problem{Status: 422, Title: "This Idempotency-Key was used for another request.", Code: "idempotency_key_reused"})
	case a.status == 0:
		writeProblem(w, r, Conflict("in_progress", "The first request with this Idempotency-Key is still running."))
	case !a.kept:
		writeProblem(w, r, Conflict("answer_not_kept", "The first request with this Idempotency-Key was carried out. Its answer is not kept: it holds a secret, or is too large. Look up what was made."))
	default:
		var header http.Header
		if json.Unmarshal([]byte(a.header), &header) == nil {
			maps.Copy(w.Header(), header)
		}
		w.Header().Set("Idempotency-Replayed", "true")
		w.WriteHeader(a.status)
		w.Write(a.body)
	}
}

// begin claims a key, as of a moment that names the claim, or returns the
// answer that has it.
func (s *replayStore) begin(ctx context.Context, id, userID, request string) (at int64, before *answer, err error) {
	now := s.now()
	at = now.UnixMicro()
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		before = nil
		if _, err := tx.ExecContext(ctx, replayOldSQL, now.Add(-replayFor).UnixMicro(), now.Add(-replayLost).UnixMicro()); err != nil {
			return err
		}
		n, err := changedRows(tx.ExecContext(ctx, replayClaimSQL, id, userID, request, at, false, []byte{}))
		if err != nil {
			return err
		}
		if n == 0 {
			before = &answer{}
			return db.Classify(tx.QueryRowContext(ctx, replayReadSQL, id).Scan(&before.request, &before.at, &before.status, &before.kept, &before.header, &before.body))
		}
		var have int
		if err := tx.QueryRowContext(ctx, replayCountSQL, userID).Scan(&have); err != nil {
			return err
		}
		if have > replayUser {
			return errReplaysFull // the claim goes with the transaction
		}
		return nil
	})
	if err != nil {
		return 0, nil, fmt.Errorf("claim idempotency key: %w", err)
	}
	return at, before, nil
}

func changedRows(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, db.Classify(err)
	}
	return res.RowsAffected()
}

// end keeps the answer. A server error or a panic is forgotten, so that
// repeating runs the handler again.
func (s *replayStore) end(ctx context.Context, id string, at int64, op Op, c *copier) {
	ctx, cancel := context.WithTimeout(ctx, replayWrite)
	defer cancel()
	var err error
	if c.status == 0 || c.status >= 500 {
		_, err = s.db.ExecContext(ctx, replayDropSQL, id, at)
	} else {
		header, body, kept := "", []byte{}, false
		// What a failed request answered tells no secret: it may be said again.
		if !c.over && (!op.Sensitive || c.status >= 400) {
			names := http.Header{}
			for _, name := range []string{"Content-Type", "Etag", "Location"} {
				if v := c.Header().Values(name); len(v) > 0 {
					names[name] = v
				}
			}
			text, merr := json.Marshal(names)
			header, body, kept = string(text), c.body.Bytes(), merr == nil
		}
		if body == nil {
			body = []byte{}
		}
		_, err = s.db.ExecContext(ctx, replayEndSQL, id, at, c.status, kept, header, body)
	}
	if err != nil { // a repetition hears "still running" until the claim ends
		s.log.LogAttrs(ctx, slog.LevelError, "answer not kept for its idempotency key", slog.String("err", err.Error()))
	}
}

// copier holds an answer back until it is kept, so that who has it can have it
// again. One too large to be kept goes through.
type copier struct {
	http.ResponseWriter
	status   int
	body     bytes.Buffer
	over     bool
	released bool
}

// WriteHeader notes the status; what comes before it (1xx) goes out.
func (c *copier) WriteHeader(status int) {
	switch {
	case status < 200:
		c.ResponseWriter.WriteHeader(status)
	case c.status == 0:
		c.status = status
	}
}

func (c *copier) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	if !c.over && c.body.Len()+len(p) <= replayBody {
		return c.body.Write(p)
	}
	if !c.over {
		c.over = true
		c.release()
	}
	return c.ResponseWriter.Write(p)
}

// release sends what was held back. After a panic there is no status, and
// nothing to send: the frame answers.
func (c *copier) release() {
	if c.released || c.status == 0 {
		return
	}
	c.released = true
	c.ResponseWriter.WriteHeader(c.status)
	if c.body.Len() > 0 {
		c.ResponseWriter.Write(c.body.Bytes())
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (c *copier) Unwrap() http.ResponseWriter { return c.ResponseWriter }
