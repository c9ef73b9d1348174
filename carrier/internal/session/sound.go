package session

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

const (
	// soundStart is how long a session waits for its sound server before it
	// shows a page: a browser that finds none may not look again.
	soundStart = 5 * time.Second
	// soundTime bounds one block's way to core.
	soundTime = 10 * time.Second
	// soundPace is how many blocks a second are looked at: ten times those that
	// are played in one, for what was held up on the way.
	soundPace = 500
)

// audible reports whether anybody may listen to a session.
func audible(s wire.CarrierSession) bool { return s.Policy.Sound && !s.Locked }

// awaitSound waits until pages can be heard.
func (l *live) awaitSound() {
	ctx, cancel := context.WithTimeout(l.ctx, soundStart)
	defer cancel()
	if err := l.slot.Sounds(ctx); err != nil {
		l.log.Warn("sound", telemetry.KeyErr, err)
	}
}

// setHearing has the session be heard or not, as its spec says; who listens and
// may not any more hears nothing from now on.
func (l *live) setHearing() {
	l.mu.Lock()
	defer l.mu.Unlock()
	on := audible(l.spec)
	if on == (l.hearing != nil) {
		return
	}
	if on {
		l.hearing, l.hush = context.WithCancel(l.ctx)
		return
	}
	l.hush()
	l.hearing, l.hush = nil, nil
}

// listen serves somebody who hears the session until either leaves.
func (l *live) listen(ctx context.Context, s stream) {
	l.mu.Lock()
	hearing, locked := l.hearing, l.spec.Locked
	l.mu.Unlock()
	if hearing == nil {
		text := "This session has no sound."
		if locked {
			text = "The session is locked."
		}
		s.Refuse(wire.Errorf(wire.CodeRefused, "%s", text))
		return
	}
	if s.Confirm() != nil {
		return
	}
	defer s.Close() // nobody else does
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(hearing, stop)()
	if err := carrySound(ctx, s, l.slot.DialSound); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		l.log.Debug("sound", telemetry.KeyErr, err)
	}
}

// carrySound sends the blocks of dial's connection as they come, and none while
// wire.SoundAhead of them were not heard of: what cannot be heard in time is not
// sent at all. It returns when ctx or either side ends, also before dial did.
func carrySound(ctx context.Context, to net.Conn, dial func(context.Context) (net.Conn, error)) error {
	ctx, stop := context.WithCancel(ctx)
	var ahead atomic.Int64
	left := make(chan struct{})
	go func() {
		defer close(left)
		defer stop()
		buf := make([]byte, 64)
		for {
			n, err := to.Read(buf)
			for done := false; !done; { // more than he got buys nothing
				a := ahead.Load()
				done = ahead.CompareAndSwap(a, max(0, a-int64(n)))
			}
			if err != nil {
				return
			}
		}
	}()
	end := func() { _ = to.SetDeadline(time.Unix(1, 0)) }
	defer func() {
		stop()
		end()
		<-left
	}()
	defer context.AfterFunc(ctx, end)()
	from, err := dial(ctx)
	if err != nil {
		return err
	}
	defer from.Close()
	defer context.AfterFunc(ctx, func() { from.Close() })()
	// The container may send what it likes, sound comes no faster than this.
	pace := rate.NewLimiter(soundPace, soundPace)
	block := make([]byte, wire.SoundBlock)
	for {
		if _, err := io.ReadFull(from, block); err != nil {
			return err
		}
		if err := pace.Wait(ctx); err != nil {
			return err
		}
		if ahead.Load() >= wire.SoundAhead {
			continue
		}
		if err := to.SetWriteDeadline(time.Now().Add(soundTime)); err != nil {
			return err
		}
		if ctx.Err() != nil { // its deadline was replaced by this one
			return ctx.Err()
		}
		ahead.Add(1) // before he can say so
		if _, err := to.Write(block); err != nil {
			return err
		}
	}
}
