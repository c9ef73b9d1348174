package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/db"
)

// Event is something a console wants to know at once. Changes that rooms
// notify in their transactions become Events by themselves; Publish is for
// what changes no row (progress, counters).
type Event struct {
	Topic string `json:"topic"`
	ID    string `json:"id,omitempty"`
	// Data is optional JSON; it never holds secrets.
	Data json.RawMessage `json:"data,omitempty"`
	// UserID is whose thing it is: that user sees the event without the
	// topic's permission. Not sent.
	UserID string `json:"-"`
	// own: only that user sees it.
	own bool
	// Group is the access group it is about: those see it who hold the topic's
	// permission there. Not sent; empty = only those who hold it everywhere.
	Group string `json:"-"`
	// inGroup: only those see it who hold the permission in the group and not
	// everywhere.
	inGroup bool
}

// topicNeeds says who may see a topic. What is not listed only its own user sees.
func topicNeeds(topic string) (Permission, bool) {
	switch topic {
	case "user", "role":
		return UsersView, true
	case "target", "grant", "site", "web_proposals":
		return TargetsView, true
	case "edge", "token":
		return EdgesView, true
	case "connection", "network", "web":
		return ConnectionsView, true
	case "web_approvals":
		return WebApprove, true
	case "router":
		return EdgesView, true
	case "recording", "timeline":
		return RecordingsView, true
	case "secret":
		return SecretsManage, true
	case "group":
		return GroupsView, true
	case "setting", "sso_provider", "certificate_anchor":
		return SettingsView, true
	case "audit":
		return AuditView, true
	}
	return "", false
}

// OwnSuffix ends the topic of a note whose ID is that of the user a thing
// belongs to: that user's streams get an event of the topic before it, without
// an ID.
const OwnSuffix = ".own"

// GroupSuffix ends the topic of a note whose ID is that of the access group a
// changed thing is in: administrators of the group get an event of the topic
// before it, without an ID. See Notify.
const GroupSuffix = ".in"

// Notify announces, when tx commits, a change of a thing that is in the groups
// given (two when it moves). Rooms whose things are divided among access
// groups use it instead of tx.Notify.
func Notify(ctx context.Context, tx *db.Tx, topic, id string, groups ...string) error {
	if err := tx.Notify(ctx, topic, id); err != nil {
		return err
	}
	for i, g := range groups {
		if g == "" || slices.Contains(groups[:i], g) {
			continue
		}
		if err := tx.Notify(ctx, topic+GroupSuffix, g); err != nil {
			return err
		}
	}
	return nil
}

// noted makes the event of a note.
func noted(n db.Note) Event {
	if topic, in := strings.CutSuffix(n.Topic, GroupSuffix); in {
		return Event{Topic: topic, Group: n.ID, inGroup: true}
	}
	if topic, own := strings.CutSuffix(n.Topic, OwnSuffix); own {
		return Event{Topic: topic, UserID: n.ID, own: true}
	}
	e := Event{Topic: n.Topic, ID: n.ID}
	switch n.Topic {
	case "user", "preference": // of which the ID is a user's
		e.UserID = n.ID
	}
	return e
}

// visible reports whether p may see e.
func visible(p *Principal, e Event) bool {
	if e.Topic == db.TopicResync || e.UserID != "" && e.UserID == p.UserID {
		return true
	}
	if e.own {
		return false // somebody's own; those who may see the topic get it with its ID
	}
	need, ok := topicNeeds(e.Topic)
	switch {
	case !ok:
		return false
	case p.Can(need):
		return !e.inGroup // they get the note with its ID
	}
	return e.Group != "" && p.Scope(need).Has(e.Group)
}

// Bounds of the event streams.
const (
	streamsMax     = 2000
	streamsPerUser = 20
	streamQueue    = 128
	streamDeadline = 10 * time.Second
)

// hub hands published events to the open streams. A stream that is behind by
// its whole queue gets a resync instead.
type hub struct {
	mu      sync.Mutex
	streams map[chan Event]string // → user; guarded by mu
	perUser map[string]int        // guarded by mu
	closed  bool                  // guarded by mu
	done    chan struct{}
}

func newHub() *hub {
	return &hub{streams: map[chan Event]string{}, perUser: map[string]int{}, done: make(chan struct{})}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		close(h.done)
	}
}

func (h *hub) add(user string) (chan Event, *Problem) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, Unavailable("draining", "This core is shutting down.")
	case len(h.streams) >= streamsMax || h.perUser[user] >= streamsPerUser:
		return nil, Limited("Too many open event streams.", 30)
	}
	ch := make(chan Event, streamQueue)
	h.streams[ch] = user
	h.perUser[user]++
	return ch, nil
}

func (h *hub) remove(ch chan Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	user, ok := h.streams[ch]
	if !ok {
		return
	}
	delete(h.streams, ch)
	if h.perUser[user]--; h.perUser[user] == 0 {
		delete(h.perUser, user)
	}
}

func (h *hub) publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.streams {
		select {
		case ch <- e:
			continue
		default:
		}
		for len(ch) > 0 {
			select {
			case <-ch:
			default:
			}
		}
		ch <- Event{Topic: db.TopicResync}
	}
}

// Publish sends e to the open event streams of this core that may see it. It
// never blocks; a stream that is too far behind is told to resync.
func (f *Frame) Publish(e Event) { f.events.publish(e) }

// serveEvents streams changes as server-sent events (HTML §9.2): "change" with
// {topic, id, data}, and "resync" when some may have been missed. The caller's
// login is checked again with every heartbeat and whenever users, roles or
// tokens change; the stream ends when it is not good any more.
func (f *Frame) serveEvents(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	p := PrincipalFrom(ctx)
	published, problem := f.events.add(p.UserID)
	if problem != nil {
		writeProblem(w, r, problem)
		return
	}
	defer f.events.remove(published)
	f.metrics.streams.Inc()
	defer f.metrics.streams.Dec()
	notes := f.db.Subscribe(ctx)

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	out := &eventWriter{w: w, rc: http.NewResponseController(w)}
	if out.send("retry: 3000\n\n") != nil {
		return
	}
	beat := time.NewTicker(f.heartbeat)
	defer beat.Stop()
	for {
		var e Event
		select {
		case <-ctx.Done():
			return
		case <-f.events.done:
			return
		case <-beat.C:
			if p = f.again(r); p == nil || out.send(": alive\n\n") != nil {
				return
			}
			continue
		case n, ok := <-notes:
			if !ok {
				return
			}
			e = noted(n)
		case e = <-published:
		}
		switch e.Topic {
		case "user", "role", "token", db.TopicResync:
			if p = f.again(r); p == nil {
				return
			}
		}
		if visible(p, e) && out.event(e) != nil {
			return
		}
	}
}

// again authenticates an open stream's request anew; nil means it must end.
func (f *Frame) again(r *http.Request) *Principal {
	p, problem := f.authenticate(r, Self())
	if problem != nil {
		return nil
	}
	return p
}

type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (o *eventWriter) event(e Event) error {
	if e.Topic == db.TopicResync {
		return o.send("event: resync\ndata: {}\n\n")
	}
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return o.send("event: change\ndata: " + string(data) + "\n\n")
}

// send writes text within the deadline of one write. The deadline is taken
// back at once: over HTTP/2 it ends the stream when it passes, also one on which
// nothing is being written.
func (o *eventWriter) send(text string) error {
	if err := o.rc.SetWriteDeadline(time.Now().Add(streamDeadline)); err != nil {
		return err
	}
	if _, err := o.w.Write([]byte(text)); err != nil {
		return err
	}
	if err := o.rc.Flush(); err != nil {
		return err
	}
	return o.rc.SetWriteDeadline(time.Time{})
}
