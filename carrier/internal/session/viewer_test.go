package session

import (
	"context"
	"image"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/shared/rfb"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Keysyms of keys without a character.
const (
	keyReturn = 0xff0d
	keyEscape = 0xff1b
	keyF11    = 0xffc8
	keyF12    = 0xffc9
	keyShift  = 0xffe1
	keyCtrl   = 0xffe3
	keyAlt    = 0xffe9
)

// tunnels are both ends of a tunnel between core and the rig's carrier.
func (r *rig) tunnel() tunnel.Session {
	near, far := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			s, err := far.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() { r.m.ServeStream(ctx, s) })
		}
	})
	r.t.Cleanup(func() {
		stop()
		near.Close(nil)
		far.Close(nil)
		wg.Wait()
	})
	return near
}

// viewer uses a session's screen as a person does.
type viewer struct {
	t    *testing.T
	conn net.Conn
}

func (r *rig) viewer(t tunnel.Session, session, dest string) *viewer {
	r.t.Helper()
	s, err := t.Open(r.t.Context(), wire.Preface{Kind: wire.StreamDial, Connection: session, Network: "tcp", Dest: dest})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := rfb.ClientHandshake(s); err != nil {
		r.t.Fatalf("%s: %v", dest, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, s) })
	r.t.Cleanup(func() {
		s.Close()
		wg.Wait()
	})
	return &viewer{r.t, s}
}

func (v *viewer) send(b []byte) {
	v.t.Helper()
	if err := v.conn.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		v.t.Fatal(err)
	}
	if _, err := v.conn.Write(b); err != nil {
		v.t.Fatal(err)
	}
}

// press presses keys together and lets go of them.
func (v *viewer) press(syms ...uint32) {
	var b []byte
	for _, s := range syms {
		b = rfb.AppendKey(b, rfb.Key{Sym: s}, true, false)
	}
	for i := range syms {
		b = rfb.AppendKey(b, rfb.Key{Sym: syms[len(syms)-1-i]}, false, false)
	}
	v.send(b)
}

// shifted are characters of a US keyboard that need Shift.
const shifted = `~!@#$%^&*()_+{}|:"<>?`

func (v *viewer) text(s string) {
	for _, c := range s {
		if c >= 'A' && c <= 'Z' || strings.ContainsRune(shifted, c) {
			v.press(keyShift, uint32(c))
			continue
		}
		v.press(uint32(c))
	}
}

func (v *viewer) click(x, y int) {
	at := image.Pt(x, y)
	b := rfb.AppendPointer(nil, at, 0, false)
	b = rfb.AppendPointer(b, at, 1, false)
	v.send(rfb.AppendPointer(b, at, 0, false))
}
