package webaccess

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

const (
	// maxHeardInput bounds a message of somebody who listens: a byte for each
	// block that he heard.
	maxHeardInput = 1 << 10
	// maxEars bounds sockets of one session that play its sound.
	maxEars = 8
	// maxHeard bounds users who are remembered to have listened.
	maxHeard = 1000
)

var (
	errNoSound = &over{closeNotAllowed, "This session has no sound."}
	errHushed  = &over{closeNotAllowed, "The session is locked."}
)

// handleSound serves GET /web-sessions/{id}/sound: whoever may see the session
// may hear it, where its target has sound, and nobody while it is locked.
func (s *Service) handleSound(w http.ResponseWriter, r *http.Request) {
	s.socket(w, r, maxHeardInput, s.hear)
}

// hear plays a session on a socket until either ends.
func (s *Service) hear(r *http.Request, c *websocket.Conn) error {
	x, watch, err := s.shownTo(r)
	if err != nil {
		return err
	}
	if err := x.audible(); err != nil {
		return err
	}
	if !x.enter(&x.ears, maxEars) {
		return &over{closeNotAllowed, "Too many windows play this session."}
	}
	defer x.leave(&x.ears)
	v := &viewer{s: s, x: x, c: c, watch: watch}
	v.ctx, v.cancel = context.WithCancelCause(s.hard)
	defer v.cancel(nil)
	p := api.PrincipalFrom(r.Context())
	if watch {
		done, err := v.onRecord(p)
		if err != nil {
			return err
		}
		defer done()
	}
	if err := x.noteHeard(v.ctx, p); err != nil {
		s.cfg.Log.Error("hear a web session", "session", x.row.ID, "err", err)
		return &over{closeAway, "Listening could not be put on record."}
	}
	return v.hear(r)
}

// audible says why nobody may hear the session; nil when they may.
func (x *session) audible() error {
	if o, _ := x.live.Oversight(); o.Locked {
		return errHushed
	}
	x.mu.Lock()
	spec := x.spec
	x.mu.Unlock()
	if spec == nil || !spec.Web.Browser.Sound {
		return errNoSound
	}
	return nil
}

// noteHeard puts on record that somebody listens, once for each user.
func (x *session) noteHeard(ctx context.Context, p *api.Principal) error {
	x.mu.Lock()
	known := x.heard[p.UserID]
	x.mu.Unlock()
	if known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := x.s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		return x.s.cfg.Audit.Append(ctx, tx, audit.Event{Type: audit.WebSessionHeard, Outcome: audit.OK, Actor: audit.By(p), Connection: x.row.ID,
			Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName}})
	})
	if err != nil {
		return err
	}
	x.mu.Lock()
	if len(x.heard) >= maxHeard {
		clear(x.heard)
	}
	x.heard[p.UserID] = true
	x.mu.Unlock()
	if rec := x.recording(); rec != nil {
		if err := rec.Event("sound", map[string]string{"user": p.UserName}); err != nil {
			x.s.cfg.Log.Warn("listener not in the recording", "session", x.row.ID, "err", err)
		}
	}
	return nil
}

// hear carries sound to the viewer, and back what he heard of it.
func (v *viewer) hear(r *http.Request) error {
	carrier, _ := v.x.pair()
	st, err := v.s.cfg.Fleet.OpenStream(v.ctx, carrier, wire.Preface{Kind: wire.StreamDial, Class: wire.Interactive, Network: "tcp", Connection: v.x.row.ID, Dest: wire.SessionSound})
	if err != nil {
		return v.hushed(err)
	}
	defer v.endWithSession()()
	unblock := context.AfterFunc(v.ctx, func() { st.SetDeadline(time.Unix(1, 0)) })
	defer unblock()
	var wg sync.WaitGroup
	wg.Go(func() { v.cancel(v.acks(st)) })
	wg.Go(func() { v.cancel(v.ping()) })
	wg.Go(func() { v.cancel(v.check(r)) })
	wg.Go(func() { v.cancel(v.watchLock()) })
	v.cancel(v.play(st))
	cause := v.close(st)
	wg.Wait()
	return cause
}

// play passes blocks on, each in a message. What is late is left out by the
// carrier: nothing is kept here.
func (v *viewer) play(st tunnel.Stream) error {
	block := make([]byte, wire.SoundBlock)
	for {
		if _, err := io.ReadFull(st, block); err != nil {
			return v.hushed(err)
		}
		if why := v.x.audible(); why != nil { // the carrier may not know yet
			return why
		}
		v.mu.Lock()
		v.ahead++ // before he can say so
		v.mu.Unlock()
		if err := v.send(block); err != nil {
			return err
		}
		if !v.watch {
			v.x.live.Moved(0, len(block))
		}
	}
}

// acks passes on what the viewer heard; more than he got is not said to anybody.
func (v *viewer) acks(st tunnel.Stream) error {
	for {
		_, said, err := v.c.Read(context.WithoutCancel(v.ctx)) // see input
		if err != nil {
			return err
		}
		v.mu.Lock()
		n := min(len(said), v.ahead)
		v.ahead -= n
		v.mu.Unlock()
		if n == 0 {
			continue
		}
		if err := st.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return v.hushed(err)
		}
		if v.ctx.Err() != nil { // its deadline was replaced by this one
			return context.Cause(v.ctx)
		}
		if _, err := st.Write(said[:n]); err != nil {
			return v.hushed(err)
		}
	}
}

// watchLock waits for a lock: it silences who listens already.
func (v *viewer) watchLock() error {
	for {
		o, overseen := v.x.live.Oversight()
		if o.Locked {
			return errHushed
		}
		select {
		case <-overseen:
		case <-v.ctx.Done():
			return nil
		}
	}
}

// hushed says why the carrier's stream ended.
func (v *viewer) hushed(err error) error {
	if reason, text := v.x.live.Ended(); reason != "" {
		return &over{closeEnded, text}
	}
	if why := v.x.audible(); why != nil {
		return why
	}
	if we, ok := errors.AsType[*wire.Error](err); ok && we.Code == wire.CodeBadRequest {
		return &over{closeNotAllowed, "The session's carrier is too old for sound."}
	}
	return &over{closeAway, "The sound was lost. One moment."}
}
