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
	_ = second.SetWriteDeadline(time.Now().Add(patience))
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
		read := make(chan error, 5)
		var open []tunnel.Stream
		for range 5 {
			st, err := p.core.Open(t.Context(), dialTo("a:1"))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			_ = st.SetReadDeadline(time.Now().Add(patience))
			open = append(open, st)
			go func() {
				_, err := st.Read(make([]byte, 1))
				read <- err
			}()
		}
		for range 3 {
			if e, ok := errors.AsType[*wire.Error](<-read); !ok || e.Code != wire.CodeLimit {
				t.Errorf("one too many: %v, want refused by the limit", e)
			}
		}
		// The two that may wait still do: they are given an answer now.
		for range 2 {
			st, err := p.edge.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if err := <-read; err != nil {
				t.Errorf("one of those that may wait: %v", err)
			}
			defer st.Close()
		}
		for _, st := range open {
			_ = st.Close()
		}
	})
}
