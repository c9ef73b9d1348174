package webterm

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/recording"
	"caponier/core/internal/webterm/screen"
)

// WatchState is what a watcher is told about the connection, whole, at every
// change; Event is something that happened in it just now.
type WatchState struct {
	Connection *conn.Record   `json:"connection,omitempty"`
	Watchers   []conn.Watcher `json:"watchers,omitempty"`
	Event      *WatchEvent    `json:"event,omitempty"`
	// Text says why nothing more comes.
	Ended bool   `json:"ended,omitempty"`
	Text  string `json:"text,omitempty"`
}

// WatchEvent is an entry of the timeline that is not output: a command, a
// file, a lock.
type WatchEvent struct {
	At     float64           `json:"at" doc:"seconds since the recording began"`
	Kind   string            `json:"kind"`
	Fields map[string]string `json:"fields,omitempty"`
}

// handleWatch serves GET /connections/{id}/watch.
func (s *Service) handleWatch(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	p := api.PrincipalFrom(ctx)
	x, err := s.cfg.Connections.Get(ctx, r.PathValue("id"))
	if errors.Is(err, db.ErrNotFound) {
		err = api.Missing("connection", r.PathValue("id"))
	}
	if err == nil && !p.Scope(api.ConnectionsView).Has(x.Group) && !p.Scope(api.ConnectionsWatch).Has(x.Group) && x.UserID != p.UserID {
		err = api.Missing("connection", x.ID)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if ok, text := conn.MayOversee(p, x.UserID, x.Group, conn.OrderWatch); !ok {
		s.fail(w, r, api.Denied("not_permitted", text))
		return
	}
	if problem := watchable(x); problem != nil {
		s.fail(w, r, problem)
		return
	}
	rec, err := s.cfg.Recordings.Recording(ctx, x.RecordingID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if err := s.admitWatcher(); err != nil {
		s.fail(w, r, err)
		return
	}
	defer s.dropWatcher()
	c, err := s.accept(w, r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if c == nil {
		return
	}
	k := s.newSocket(c, func(p *api.Principal) bool { return p.Scope(api.ConnectionsWatch).Has(x.Group) })
	defer k.cancel(nil)
	// On the record, and told to the user, before the first byte is shown.
	leave, err := s.cfg.Connections.Watch(k.ctx, x.ID, p)
	if err != nil {
		s.cfg.Log.Error("watch", "session", x.ID, "err", err)
		_ = c.Close(closeProtocol, "watching could not be put on record")
		return
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := leave(ctx); err != nil {
			s.cfg.Log.Error("end of watching", "session", x.ID, "err", err)
		}
	}()
	v := &viewer{k: k, id: x.ID, rec: rec}
	k.serve(r, v.read, v.run)
}

// watchable reports why x cannot be watched.
func watchable(x *conn.Record) *api.Problem {
	switch {
	case x.State.Over():
		return api.Conflict("not_live", "The connection has ended. Its recording can be played.")
	case x.Kind == "web":
		return api.Conflict("web_session", "This is a web session: watch its picture at /web/"+x.ID+"?watch=1.")
	case !x.Recorded:
		return api.Conflict("not_recorded", "This connection is not recorded, so it cannot be watched.")
	case x.RecordingID == "":
		return api.Conflict("not_ready", "The connection shows nothing yet. Try again in a moment.")
	}
	return nil
}

func (s *Service) admitWatcher() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return api.Unavailable("draining", "This core is shutting down.")
	case s.watchers >= s.limits.Watchers:
		return api.Unavailable("watcher_limit", "Too many connections are being watched on this core. Try again later.")
	}
	s.watchers++
	s.wg.Add(1)
	return nil
}

func (s *Service) dropWatcher() {
	s.mu.Lock()
	s.watchers--
	s.mu.Unlock()
	s.wg.Done()
}

// viewer is one watcher's picture of a connection.
type viewer struct {
	k   *socket
	id  string
	rec *recording.Recording

	screen *screen.Screen // until the first picture is sent
	next   uint64         // bytes sent
}

// read takes messages from the watcher: acknowledgements only.
func (v *viewer) read(m message) error {
	if m.kind != msgAck {
		return errMessage
	}
	v.k.mu.Lock()
	v.k.acked = max(v.k.acked, m.offset)
	v.k.mu.Unlock()
	v.k.poke()
	return nil
}

// run sends the picture as it is, then everything as it comes.
func (v *viewer) run() error {
	if err := v.tell(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(v.k.ctx)
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		if err := v.states(ctx); err != nil {
			v.k.cancel(err)
		}
	})
	select {
	case v.k.svc.replays <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(v.k.ctx)
	}
	release := sync.OnceFunc(func() { <-v.k.svc.replays })
	defer release()
	v.screen = screen.New(v.rec.Width, v.rec.Height)
	state, err := v.k.svc.cfg.Recordings.FollowLive(ctx, v.rec, recording.Follower{
		Item: v.item,
		Caught: func() error {
			release()
			return v.picture()
		},
	})
	if cause := context.Cause(v.k.ctx); cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	release()
	if err := v.picture(); err != nil {
		return err
	}
	text := "The connection has ended."
	if state.Status == recording.Damaged || state.Status == recording.Incomplete {
		text = "The recording ends here: " + state.Text
	}
	if err := v.state(WatchState{Ended: true, Text: text}); err != nil {
		return err
	}
	return &ended{closeEnded, "the connection has ended"}
}

// picture sends the screen once.
func (v *viewer) picture() error {
	if v.screen == nil {
		return nil
	}
	sc := v.screen
	v.screen = nil
	if err := v.k.send(helloMessage(0, 0, true)); err != nil {
		return err
	}
	if err := v.k.send(sizeMessage(sc.Size())); err != nil {
		return err
	}
	return v.k.send(offsetMessage(msgScreen, 0, sc.Draw()))
}

func (v *viewer) item(it recording.Item) error {
	switch {
	case it.Kind == recording.ItemOutput && v.screen != nil:
		_, err := v.screen.Write(it.Data)
		return err
	case it.Kind == recording.ItemResize && v.screen != nil:
		v.screen.Resize(it.Width, it.Height)
	case it.Kind == recording.ItemOutput:
		return v.output(it.Data)
	case it.Kind == recording.ItemResize:
		return v.k.send(sizeMessage(it.Width, it.Height))
	case it.Kind == recording.ItemEvent && v.screen == nil:
		return v.state(WatchState{Event: &WatchEvent{At: it.At.Seconds(), Kind: it.Event, Fields: it.Fields}})
	}
	return nil
}

// output sends bytes within the watcher's window; a slow watcher falls behind
// on the file, not in memory.
func (v *viewer) output(p []byte) error {
	for len(p) > 0 {
		v.k.mu.Lock()
		room := int(v.k.acked + window - v.next)
		v.k.mu.Unlock()
		if room <= 0 {
			select {
			case <-v.k.wake:
			case <-v.k.ctx.Done():
				return context.Cause(v.k.ctx)
			}
			continue
		}
		n := min(room, len(p), outputPiece)
		if err := v.k.send(offsetMessage(msgOutput, v.next, p[:n])); err != nil {
			return err
		}
		v.next += uint64(n)
		p = p[n:]
	}
	return nil
}

func (v *viewer) state(st WatchState) error {
	msg, err := jsonMessage(st)
	if err != nil {
		return err
	}
	return v.k.send(msg)
}

// states tells the connection's record and its watchers when they change, and
// ends the watching of somebody who may no longer.
func (v *viewer) states(ctx context.Context) error {
	var told string
	notes := v.k.svc.cfg.Notes.Subscribe(ctx)
	for {
		st, err := v.look(ctx)
		if err != nil && ctx.Err() == nil {
			v.k.svc.cfg.Log.Debug("look at a watched connection", "session", v.id, "err", err)
		}
		if err == nil {
			// Counters change all the time; they are for the page to ask.
			c := *st.Connection
			c.BytesIn, c.BytesOut, c.Seconds, c.LastActivityAt = 0, 0, 0, time.Time{}
			key, err := jsonMessage(WatchState{Connection: &c, Watchers: st.Watchers})
			if err != nil {
				return err
			}
			if string(key) != told {
				told = string(key)
				if err := v.state(st); err != nil {
					return err
				}
			}
		}
		for relevant := false; !relevant; {
			n, ok := <-notes
			if !ok {
				return nil
			}
			switch n.Topic {
			case "user", "role", "session", "token":
				v.k.check()
			case conn.TopicConnection:
				relevant = n.ID == v.id
			case db.TopicResync:
				v.k.check()
				relevant = true
			}
		}
	}
}

func (v *viewer) look(ctx context.Context) (WatchState, error) {
	x, err := v.k.svc.cfg.Connections.Get(ctx, v.id)
	if err != nil {
		return WatchState{}, err
	}
	ws, err := v.k.svc.cfg.Connections.Watchers(ctx, v.id)
	return WatchState{Connection: x, Watchers: ws}, err
}

// tell sends the first state.
func (v *viewer) tell() error {
	st, err := v.look(v.k.ctx)
	if err != nil {
		return err
	}
	return v.state(st)
}
