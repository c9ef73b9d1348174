package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// HeadKind is what a signed head says.
type HeadKind string

// The kinds of head: the chain had this hash at this event; and: everything
// up to this event was removed by retention.
const (
	HeadOfChain HeadKind = "head"
	Checkpoint  HeadKind = "checkpoint"
)

// Head is a signed statement about the chain.
type Head struct {
	Seq       int64     `json:"seq"`
	Kind      HeadKind  `json:"kind"`
	Hash      []byte    `json:"hash"`
	At        time.Time `json:"at"`
	KeyID     string    `json:"key_id"`
	Signature []byte    `json:"signature"`
}

// message is what the signature covers.
func (h Head) message() []byte {
	var e encoder
	e.text(domainHead)
	e.text(string(h.Kind))
	e.uint64(uint64(h.Seq))
	e.text(string(h.Hash))
	e.uint64(uint64(h.At.UnixMicro()))
	return e.b
}

func (h Head) valid(keys Keys) bool {
	return len(h.Hash) == len(digest{}) && keys.Verify(h.KeyID, h.message(), h.Signature)
}

// headEvery is after how many events a head is signed at the latest.
const headEvery = 1000

// Keeper says how Run keeps the log.
type Keeper struct {
	// Keys sign. Required.
	Keys Keys
	// Every is the longest an event stays without a signed head; 0 = 1 min.
	Every time.Duration
	// HeadFile, when set, receives every signed head as a line of JSON. It
	// stands outside the database, so that cutting the log together with its
	// heads is found; keep it on another disk or ship it away.
	HeadFile string
	// Retention is asked once an hour and removes events older than it says;
	// 0 keeps all, and so does nil.
	Retention func() time.Duration
	// Log receives what an operator must see. Required.
	Log *slog.Logger
}

// ErrBroken means the chain does not verify, so no head is signed over it.
var ErrBroken = errors.New("audit chain is broken")

// Run signs heads and applies retention until ctx ends, then signs a last head.
func (l *Log) Run(ctx context.Context, k Keeper) error {
	if k.Keys == nil || k.Log == nil {
		return errors.New("audit: Keeper needs Keys and Log")
	}
	if k.Every == 0 {
		k.Every = time.Minute
	}
	sign := func(ctx context.Context) {
		if _, err := l.SignHead(ctx, k); err != nil && ctx.Err() == nil {
			k.Log.LogAttrs(ctx, slog.LevelError, "cannot sign the audit log", slog.String("err", err.Error()))
		}
	}
	var tell sync.WaitGroup
	tell.Go(func() { l.tellNews(ctx, k.Log) })
	defer tell.Wait()
	heads, prune := time.NewTicker(k.Every), time.NewTicker(time.Hour)
	defer heads.Stop()
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			sign(last)
			return nil
		case <-heads.C:
			sign(ctx)
		case <-l.due:
			sign(ctx)
		case <-prune.C:
			keep := time.Duration(0)
			if k.Retention != nil {
				keep = k.Retention()
			}
			if keep == 0 {
				continue
			}
			if _, err := l.Prune(ctx, k.Keys, l.now().Add(-keep)); err != nil && ctx.Err() == nil {
				k.Log.LogAttrs(ctx, slog.LevelError, "cannot prune the audit log", slog.String("err", err.Error()))
			}
		}
	}
}

// TopicAudit is the notification topic: "there are new events", without an ID;
// auditors of access groups get it for events of their groups.
const TopicAudit = "audit"

// newsEvery bounds how often readers are told of new events: once for all
// that came since, not once for each.
const newsEvery = time.Second

// tellNews notifies readers of new events until ctx ends.
func (l *Log) tellNews(ctx context.Context, log *slog.Logger) {
	wait := time.NewTimer(newsEvery)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.news:
		}
		// Their transactions commit meanwhile.
		wait.Reset(newsEvery)
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		l.mu.Lock()
		groups := slices.Collect(maps.Keys(l.groups))
		clear(l.groups)
		l.mu.Unlock()
		err := l.db.Tx(ctx, func(tx *db.Tx) error { return api.Notify(ctx, tx, TopicAudit, "", groups...) })
		if err != nil && ctx.Err() == nil {
			log.LogAttrs(ctx, slog.LevelWarn, "readers of the audit log are not told", slog.String("err", err.Error()))
		}
	}
}

// SignHead verifies the events since the last signed head and signs the tail.
// It returns the newest head, nil while the log is empty, and ErrBroken when
// the chain does not hold.
func (l *Log) SignHead(ctx context.Context, k Keeper) (*Head, error) {
	var head *Head
	err := l.db.View(ctx, func(tx *db.Tx) error {
		seq, hash, err := tail(ctx, tx)
		if err != nil || seq == 0 {
			return err
		}
		last, err := readHeads(ctx, tx, lastHeadSQL, string(HeadOfChain))
		if err != nil {
			return err
		}
		from := int64(0)
		if len(last) == 1 {
			if last[0].Seq == seq && last[0].valid(k.Keys) && bytes.Equal(last[0].Hash, hash[:]) {
				head = &last[0]
				return nil
			}
			from = last[0].Seq - 1
		}
		v := verifier{keys: k.Keys, limit: 1}
		if err := v.run(ctx, tx, max(from, 0)); err != nil {
			return err
		}
		if len(v.report.Findings) > 0 {
			f := v.report.Findings[0]
			return fmt.Errorf("%w at event %d: %s", ErrBroken, f.Seq, f.Kind)
		}
		h := Head{Seq: seq, Kind: HeadOfChain, Hash: hash[:], At: l.now().UTC().Truncate(time.Microsecond)}
		if h.KeyID, h.Signature, err = k.Keys.Sign(h.message()); err != nil {
			return fmt.Errorf("sign head: %w", err)
		}
		head = &h
		return nil
	})
	if err != nil || head == nil {
		return nil, err
	}
	fresh := false
	err = l.db.Tx(ctx, func(tx *db.Tx) error {
		have, err := readHeads(ctx, tx, headAtSQL, head.Seq, string(HeadOfChain))
		fresh = len(have) == 0
		if err != nil || !fresh {
			return err
		}
		return addHead(ctx, tx, *head)
	})
	if err != nil {
		return nil, err
	}
	if fresh && k.HeadFile != "" {
		if err := appendHead(k.HeadFile, *head); err != nil {
			return nil, err
		}
	}
	return head, nil
}

func appendHead(path string, h Head) error {
	line, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write head file: %w", err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write head file: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// lastFiled returns the last whole line of a head file; nil when there is none.
// Only the end of the file is read.
func lastFiled(path string) (*Head, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read head file: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("read head file: %w", err)
	}
	buf := make([]byte, min(size, 16<<10))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read head file: %w", err)
	}
	lines := bytes.Split(buf, []byte("\n"))
	for i := len(lines) - 2; i >= 0; i-- { // what follows the last newline is not whole
		var h Head
		if json.Unmarshal(lines[i], &h) == nil && h.Seq > 0 {
			return &h, nil
		}
	}
	return nil, nil
}

// Prune removes the longest prefix of events that are all older than before,
// leaving a signed checkpoint, and returns how many it removed. What does not
// verify is not removed.
func (l *Log) Prune(ctx context.Context, keys Keys, before time.Time) (int64, error) {
	var removed int64
	err := l.db.Tx(ctx, func(tx *db.Tx) error {
		removed = 0
		if err := tx.Lock(ctx, chainLock); err != nil {
			return err
		}
		h := Head{Kind: Checkpoint, At: l.now().UTC().Truncate(time.Microsecond)}
		rows, err := tx.QueryContext(ctx, pruneToSQL, before.UnixMicro())
		if err != nil {
			return err
		}
		found := rows.Next()
		if found {
			err = rows.Scan(&h.Seq, &h.Hash)
		}
		if err := errors.Join(err, rows.Err(), rows.Close()); err != nil || !found {
			return err
		}
		v := verifier{keys: keys, limit: 1, until: h.Seq}
		if err := v.run(ctx, tx, 0); err != nil {
			return err
		}
		if len(v.report.Findings) > 0 {
			return fmt.Errorf("%w at event %d: %s", ErrBroken, v.report.Findings[0].Seq, v.report.Findings[0].Kind)
		}
		if h.KeyID, h.Signature, err = keys.Sign(h.message()); err != nil {
			return fmt.Errorf("sign checkpoint: %w", err)
		}
		if err := addHead(ctx, tx, h); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, pruneSQL, h.Seq)
		if err != nil {
			return err
		}
		if removed, err = res.RowsAffected(); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, pruneHeadsSQL, h.Seq, string(Checkpoint)); err != nil {
			return err
		}
		return l.Append(ctx, tx, Event{
			Type: AuditPruned, Outcome: OK, Actor: System, Object: Object{Kind: "audit"},
			Fields: map[string]string{"through": fmt.Sprint(h.Seq), "events": fmt.Sprint(removed)},
		})
	})
	if err != nil {
		return 0, fmt.Errorf("prune audit log: %w", err)
	}
	return removed, nil
}

// Erase clears in tx the texts that name a user: name and address where the
// user acted, name and details where the user was acted on. The chain still
// verifies, as long as the log holds the user.erased event written here.
func (l *Log) Erase(ctx context.Context, tx *db.Tx, userID string, by Actor) error {
	if userID == "" {
		return errors.New("erase from audit log: no user")
	}
	if err := tx.Lock(ctx, chainLock); err != nil {
		return err
	}
	for _, q := range []string{eraseActorSQL, eraseObjectSQL, eraseLoginsSQL} {
		if _, err := tx.ExecContext(ctx, q, userID); err != nil {
			return fmt.Errorf("erase from audit log: %w", err)
		}
	}
	return l.Append(ctx, tx, Event{Type: UserErased, Outcome: OK, Actor: by, Object: Object{Kind: "user", ID: userID}})
}
