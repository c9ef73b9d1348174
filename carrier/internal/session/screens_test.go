package session

import (
	"context"
	"testing"
	"time"

	"caponier/carrier/internal/slot"
)

// Who takes a parked browser has the host for a page's time; who finds none
// waits for the start and delays nobody's.
func TestCalm(t *testing.T) {
	p := newPool(&Manager{})
	began := time.Now()
	if d := p.calm(began); d != 0 {
		t.Errorf("calm for %v before anybody came", d)
	}
	if _, err := p.take(t.Context(), "", slot.Needs{}); err == nil {
		t.Error("a browser was taken from nowhere")
	}
	if d := p.calm(began); d != 0 {
		t.Errorf("calm for %v without a parked browser", d)
	}
	ctx, stop := context.WithCancel(t.Context())
	s := &slot.Slot{Name: "parked"}
	p.parked, p.stops[s.Name] = []*slot.Slot{s}, stop
	if got, err := p.take(t.Context(), "", slot.Needs{}); got != s || err != nil || ctx.Err() == nil {
		t.Fatalf("took %v, %v, watched on: %v", got, err, ctx.Err() == nil)
	}
	if d := p.calm(began); d < pageTime {
		t.Errorf("calm for %v, want %v", d, pageTime)
	}
	if d := p.calm(time.Now().Add(pageTime)); d != 0 {
		t.Errorf("calm for %v after that", d)
	}
}

func TestSize(t *testing.T) {
	var z size
	for _, x := range []struct {
		w, h int
		want string
	}{
		{0, 0, ""}, {1024, 768, "1024x768"}, {0, 0, "1024x768"}, {319, 240, "1024x768"}, {320, 240, "320x240"},
		{7680, 4320, "320x240"}, {3840, 2160, "3840x2160"}, {-1, 800, "3840x2160"},
	} {
		z.asked(x.w, x.h)
		if got := z.next(); got != x.want {
			t.Errorf("after %dx%d: %q, want %q", x.w, x.h, got, x.want)
		}
	}
}
