package fleet

import (
	"context"
	"log/slog"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/telemetry"
)

// note is something that happened to a node and is written soon, many in one
// transaction: a thousand nodes that come back at once cost a few commits.
type note struct {
	query string
	args  []any
	event *audit.Event // nil: no event
}

// eventWriter writes notes in order. Its queue is bounded; when the database
// is away for so long that it fills, further notes are dropped and counted.
type eventWriter struct {
	db    *db.DB
	audit *audit.Log
	log   *slog.Logger
	queue chan note
}

const (
	noteQueue = 32 << 10
	noteBatch = 256
)

func newEventWriter(d *db.DB, a *audit.Log, log *slog.Logger) *eventWriter {
	return &eventWriter{db: d, audit: a, log: log, queue: make(chan note, noteQueue)}
}

func (w *eventWriter) put(n note) {
	select {
	case w.queue <- n:
	default:
		w.log.Error("edge event dropped: the database does not keep up")
	}
}

// run writes until ctx ends, then what is queued.
func (w *eventWriter) run(ctx context.Context) {
	for {
		select {
		case n := <-w.queue:
			w.write(ctx, w.batch(n))
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			for {
				select {
				case n := <-w.queue:
					w.write(last, w.batch(n))
				default:
					return
				}
			}
		}
	}
}

func (w *eventWriter) batch(first note) []note {
	b := []note{first}
	for len(b) < noteBatch {
		select {
		case n := <-w.queue:
			b = append(b, n)
		default:
			return b
		}
	}
	return b
}

// announce tells who watches nodes, everywhere or in their access groups, and
// fills in the group of events about nodes.
func (w *eventWriter) announce(ctx context.Context, tx *db.Tx, b []note) error {
	var groups []string
	any := false
	for _, n := range b {
		if n.event == nil {
			continue
		}
		any = true
		if n.event.Object.Kind != "edge" || n.event.Group != "" {
			continue
		}
		g, err := edgeGroup(ctx, tx, n.event.Object.ID)
		if err != nil {
			return err
		}
		n.event.Group = g
		groups = append(groups, g)
	}
	if !any {
		return nil
	}
	return api.Notify(ctx, tx, "edge", "", groups...)
}

// write keeps at it while the database is away; a note that fails while the
// database answers is dropped alone.
func (w *eventWriter) write(ctx context.Context, b []note) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := w.tx(ctx, b)
		if err == nil {
			return
		}
		if w.db.Ping(ctx) == nil {
			if len(b) == 1 {
				w.log.Error("edge event not written", telemetry.KeyErr, err)
				return
			}
			for _, n := range b {
				w.write(ctx, []note{n})
			}
			return
		}
		select {
		case <-ctx.Done():
			w.log.Error("edge events not written: the database is away", "events", len(b), telemetry.KeyErr, err)
			return
		case <-time.After(wait):
		}
	}
}

func (w *eventWriter) tx(ctx context.Context, b []note) error {
	return w.db.Tx(ctx, func(tx *db.Tx) error {
		// Once for all of them: "some came or went".
		if err := w.announce(ctx, tx, b); err != nil {
			return err
		}
		for _, n := range b {
			if n.query != "" {
				if _, err := tx.ExecContext(ctx, n.query, n.args...); err != nil {
					return err
				}
			}
			if n.event != nil {
				if err := w.audit.Append(ctx, tx, *n.event); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
