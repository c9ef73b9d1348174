package session

import "testing"

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
