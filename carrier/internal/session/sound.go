package session

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

const (
	// soundStart is how long a session waits for its sound server before it
	// shows a page: a browser that finds none may not look again.
	soundStart = 5 * time.Second
	// soundTime bounds one block's way to core.
	soundTime = 10 * time.Second
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

// setHearing says whether anybody may listen; who does and may not any more
// hears nothing from now on.
func (l *live) setHearing(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
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
	from, err := l.slot.DialSound(ctx)
	if err == nil {
		err = carrySound(ctx, s, from)
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		l.log.Debug("sound", telemetry.KeyErr, err)
	}
}

// carrySound sends blocks as they come, and none while wire.SoundAhead of them
// were not heard of: what cannot be heard in time is not sent at all. It returns
// when ctx or either side ends; from is closed then.
func carrySound(ctx context.Context, to, from net.Conn) error {
	end := func() {
		from.Close()
		_ = to.SetDeadline(time.Unix(1, 0))
	}
	defer context.AfterFunc(ctx, end)()
	var heard atomic.Int64
	left := make(chan struct{})
	go func() {
		defer close(left)
		defer from.Close()
		buf := make([]byte, 64)
		for {
			n, err := to.Read(buf)
			heard.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		end()
		<-left
	}()
	block := make([]byte, wire.SoundBlock)
	for sent := int64(0); ; {
		if _, err := io.ReadFull(from, block); err != nil {
			return err
		}
		if sent-heard.Load() >= wire.SoundAhead {
			continue
		}
		if err := to.SetWriteDeadline(time.Now().Add(soundTime)); err != nil {
			return err
		}
		if ctx.Err() != nil { // its deadline was replaced by this one
			return ctx.Err()
		}
		if _, err := to.Write(block); err != nil {
			return err
		}
		sent++
	}
}
