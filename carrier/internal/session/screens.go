package session

import (
	"context"
	"fmt"

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
