package db

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Note tells that something changed: a topic such as "user", "role",
// "target", "grant", "edge", "connection" and the ID of what changed.
type Note struct {
	Topic string `json:"t"`
	ID    string `json:"i"`
}

// TopicResync is published when notifications may have been missed (a lost
// listener connection, a full subscriber): re-read everything.
const TopicResync = "resync"

// channel is the PostgreSQL notification channel; payloads are Notes in JSON.
const channel = "caponier"

// Notify queues a Note that subscribers receive after the commit.
// Topic and id together must stay below 7,000 bytes.
func (t *Tx) Notify(ctx context.Context, topic, id string) error {
	if t.engine == SQLite {
		t.notes = append(t.notes, Note{topic, id})
		return nil
	}
	payload, err := json.Marshal(Note{topic, id})
	if err != nil {
		return fmt.Errorf("notify %s: %w", topic, err)
	}
	if _, err := t.ExecContext(ctx, `select pg_notify($1, $2)`, channel, string(payload)); err != nil {
		return fmt.Errorf("notify %s: %w", topic, err)
	}
	return nil
}

// Subscribe returns a channel of Notes, closed when ctx ends or the DB closes.
// It holds 256 notes; a subscriber that falls behind loses them and receives
// one TopicResync instead.
func (d *DB) Subscribe(ctx context.Context) <-chan Note { return d.bus.subscribe(ctx) }

const subscriberQueue = 256

type subscriber struct{ ch chan Note }

type bus struct {
	mu     sync.Mutex
	subs   map[*subscriber]struct{} // guarded by mu
	closed bool                     // guarded by mu
}

func newBus() *bus { return &bus{subs: map[*subscriber]struct{}{}} }

func (b *bus) subscribe(ctx context.Context) <-chan Note {
	s := &subscriber{ch: make(chan Note, subscriberQueue)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(s.ch)
		return s.ch
	}
	b.subs[s] = struct{}{}
	context.AfterFunc(ctx, func() { b.remove(s) })
	return s.ch
}

func (b *bus) remove(s *subscriber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.subs[s]; ok {
		delete(b.subs, s)
		close(s.ch)
	}
}

func (b *bus) publish(n Note) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		select {
		case s.ch <- n:
		default:
			// Full: everything queued is replaced by one resync note, which
			// arrives even if nothing else is ever published.
			for len(s.ch) > 0 {
				select {
				case <-s.ch:
				default:
				}
			}
			s.ch <- Note{Topic: TopicResync}
		}
	}
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		delete(b.subs, s)
		close(s.ch)
	}
}

// listen feeds the bus from PostgreSQL until ctx ends, reconnecting with a
// pause; after every reconnect it publishes TopicResync. It closes heard when
// it listens for the first time.
func listen(ctx context.Context, url string, b *bus, heard chan<- struct{}) {
	listening := func() {
		if heard == nil {
			b.publish(Note{Topic: TopicResync})
			return
		}
		close(heard)
		heard = nil
	}
	for ctx.Err() == nil {
		err := listenOnce(ctx, url, b, listening)
		if err != nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

func listenOnce(ctx context.Context, url string, b *bus, listening func()) error {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	if _, err := c.Exec(ctx, `listen `+channel); err != nil {
		return err
	}
	listening()
	for {
		// A bounded wait, then a round trip, so that a dead server is noticed.
		wctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		n, err := c.WaitForNotification(wctx)
		cancel()
		if err != nil {
			if ctx.Err() != nil || wctx.Err() == nil || c.IsClosed() {
				return err
			}
			pctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			err = c.Ping(pctx)
			cancel()
			if err != nil {
				return err
			}
			continue
		}
		var note Note
		if json.Unmarshal([]byte(n.Payload), &note) == nil {
			b.publish(note)
		}
	}
}
