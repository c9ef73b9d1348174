package session

import (
	"context"
	"fmt"
	"sync/atomic"

	"caponier/carrier/internal/display"
	"caponier/carrier/internal/slot"
)

// look takes a parked browser's picture ahead, for its session to begin with.
func (p *pool) look(ctx context.Context, s *slot.Slot) error {
	screen, err := display.Connect(ctx, s.DialScreen)
	if err != nil {
		return fmt.Errorf("picture of a parked browser: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.screens[s.Name] = screen
	return nil
}

// screen hands over what look took; nil when there is nothing.
func (p *pool) screen(s *slot.Slot) *display.Screen {
	p.mu.Lock()
	defer p.mu.Unlock()
	screen := p.screens[s.Name]
	delete(p.screens, s.Name)
	return screen
}

// size is what new browsers' screens measure: what the last session asked for.
// People come back with the window they had, and a page that need not be laid
// out anew is there sooner. Safe for concurrent use.
type size struct{ text atomic.Pointer[string] }

// asked remembers what a session asked for, if process 1 would take it.
func (z *size) asked(w, h int) {
	if w < 320 || h < 240 || w > 7680 || h > 4320 || w*h > display.MaxPixels {
		return
	}
	z.text.Store(new(fmt.Sprintf("%dx%d", w, h)))
}

// next is empty when nobody asked yet.
func (z *size) next() string {
	if s := z.text.Load(); s != nil {
		return *s
	}
	return ""
}
