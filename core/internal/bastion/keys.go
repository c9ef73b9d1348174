package bastion

import (
	"context"
	"time"
)

// Keys beyond the bytes 0–255.
const (
	keyUp = 256 + iota
	keyDown
	keyLeft
	keyRight
	keyPageUp
	keyPageDown
	keyIgnored
	keyResized
)

// keys reads what the user types while the bastion itself talks with him. It
// reads only when a key is wanted, so that what is typed ahead stays for the
// target.
type keys struct {
	pending []byte
	reading chan read // an outstanding read; nil when none
}

type read struct {
	data []byte
	err  error
}

// next returns the next key, or an error when the session ends or nothing
// comes within idle.
func (k *keys) next(s *session, idle time.Duration) (int, error) {
	for len(k.pending) == 0 {
		if k.reading == nil {
			k.reading = make(chan read, 1)
			got := k.reading
			s.l.wg.Go(func() {
				buf := make([]byte, 256)
				n, err := s.ch.Read(buf)
				got <- read{buf[:n], err}
			})
		}
		t := time.NewTimer(idle)
		select {
		case r := <-k.reading:
			t.Stop()
			k.reading = nil
			if len(r.data) == 0 && r.err != nil {
				return 0, errUserGone
			}
			k.pending = r.data
		case <-s.resized:
			t.Stop()
			return keyResized, nil
		case <-s.ctx.Done():
			t.Stop()
			return 0, context.Cause(s.ctx)
		case <-t.C:
			return 0, refused("usage", "Nothing was typed for %s; goodbye.", idle)
		}
	}
	key, n := decodeKey(k.pending)
	k.pending = k.pending[n:]
	return key, nil
}

// decodeKey reads one key from p, which is not empty: a byte, or an escape
// sequence of a cursor key (ECMA-48 §5.4, as xterm sends them).
func decodeKey(p []byte) (key, n int) {
	if p[0] != 0x1b || len(p) == 1 {
		return int(p[0]), 1
	}
	if p[1] != '[' && p[1] != 'O' {
		return keyIgnored, 2
	}
	for i := 2; i < len(p); i++ {
		if p[i] < 0x40 || p[i] > 0x7e {
			continue
		}
		switch {
		case p[i] == 'A':
			return keyUp, i + 1
		case p[i] == 'B':
			return keyDown, i + 1
		case p[i] == 'C':
			return keyRight, i + 1
		case p[i] == 'D':
			return keyLeft, i + 1
		case string(p[2:i+1]) == "5~":
			return keyPageUp, i + 1
		case string(p[2:i+1]) == "6~":
			return keyPageDown, i + 1
		}
		return keyIgnored, i + 1
	}
	return keyIgnored, len(p)
}
