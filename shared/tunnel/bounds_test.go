package tunnel_test

import (
	"errors"
	"testing"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// TestMemoryBound has readers stall until more would wait than may: the
// stream that received the last straw is reset on both ends, the rest lives.
func TestMemoryBound(t *testing.T) {
	p := connectWSS(t, tunnel.Limits{MaxBuffered: 1500 << 10}, 0, false)
	first, _ := p.stream(t, dialTo("a:1"))
	if _, err := first.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	second, stalled := p.stream(t, dialTo("b:1"))
	_ = second.SetWriteDeadline(time.Now().Add(10 * time.Second))
	var werr error
	for werr == nil {
		_, werr = second.Write(make([]byte, 64<<10))
	}
	for who, err := range map[string]error{"writer": werr, "reader": readErr(stalled)} {
		if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != wire.CodeLimit {
			t.Errorf("%s: %v", who, err)
		}
	}
	third, edge := p.stream(t, dialTo("c:1"))
	if _, err := third.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := edge.Read(make([]byte, 1)); err != nil {
		t.Errorf("another stream: %v", err)
	}
}

// TestBacklog opens more streams than may wait for Accept.
func TestBacklog(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{Backlog: 2}, 0)
		refused := 0
		for range 5 {
			st, err := p.core.Open(t.Context(), dialTo("a:1"))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			_ = st.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			if e, ok := errors.AsType[*wire.Error](readOnce(st)); ok {
				if e.Code != wire.CodeLimit {
					t.Errorf("refused with %v", e)
				}
				refused++
			}
		}
		if refused != 3 {
			t.Errorf("%d of 5 refused, want 3", refused)
		}
	})
}

// readOnce reads once under the deadline already set.
func readOnce(st tunnel.Stream) error {
	_, err := st.Read(make([]byte, 1))
	return err
}
