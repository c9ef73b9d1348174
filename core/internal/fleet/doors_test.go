package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/shared/control"
	"caponier/shared/edge"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// A webproxy's streams and the rooms' control requests reach their handlers
// with the node that asks; other kinds' streams are refused, and core opens
// streams to a node.
func TestDoors(t *testing.T) {
	opened := make(chan Peer, 1)
	k := newCore(t, func(c *Config) {
		c.Streams = func(_ context.Context, p Peer, s tunnel.Stream) {
			opened <- p
			s.Write([]byte(s.Preface().Dest + " for " + s.Preface().Connection))
			s.CloseWrite()
			s.Close()
		}
		c.Control = map[string]http.Handler{"GET /room/v1/name": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, _ := PeerFrom(r.Context())
			control.Reply(w, string(p.Kind)+" "+p.Name)
		})}
	})
	web := func(c *TokenSpec) { c.Kind, c.Site = "webproxy", "" }
	proxy := testEdge(t, k.url, k.token(web), state(t), func(c *edge.Config) {
		c.Kind, c.Name = wire.WebProxy, "proxy"
		c.Status = func(s *wire.Status) {
			s.Web = &wire.WebCapacity{Max: 7, Room: 5, Address: "10.0.0.1:18443",
				Engines: slices.Repeat([]wire.WebEngine{{Name: wire.Firefox, Problem: strings.Repeat("x", 999)}}, 99)}
		}
		c.Stream = func(_ context.Context, s tunnel.Stream) {
			s.Write([]byte("proxy serves " + s.Preface().Dest))
			s.CloseWrite()
		}
	})
	ext := testEdge(t, k.url, k.token(nil), state(t), nil)
	k.up(2)
	// Core has them before they know that they are welcome.
	eventually(t, "the edges serve", func() bool { return proxy.Session() != nil && ext.Session() != nil })

	eventually(t, "the proxy's report", func() bool {
		on := k.Online(wire.WebProxy)
		return len(on) == 1 && on[0].Status.Web != nil && on[0].Status.Web.Room == 5 && !on[0].At.IsZero()
	})
	if e := k.Online(wire.WebProxy)[0].Status.Web.Engines; len(e) != wire.MaxWebEngines || len(e[0].Problem) > 310 {
		t.Errorf("%d engines, a text of %d bytes: what a node says of itself is not bounded", len(e), len(e[0].Problem))
	}
	ask := wire.Preface{Kind: wire.StreamDial, Network: "tcp", Connection: "con_1", Dest: "intranet:443"}
	st, err := proxy.Session().Open(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	st.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(st); string(b) != "intranet:443 for con_1" || err != nil {
		t.Errorf("the webproxy's stream got %q, %v", b, err)
	}
	if p := <-opened; p.Kind != wire.WebProxy || p.Name != "proxy" {
		t.Errorf("the stream came from %+v", p)
	}
	var name string
	if err := control.Call(t.Context(), proxy.Session(), "GET", "/room/v1/name", nil, &name); err != nil || name != "webproxy proxy" {
		t.Errorf("the room answers %q, %v", name, err)
	}

	refused, err := ext.Session().Open(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	if we, ok := errors.AsType[*wire.Error](refused.Accepted(t.Context())); !ok || we.Code != wire.CodeRefused {
		t.Errorf("an extender's stream to core: %v", we)
	}

	on := k.Online(wire.WebProxy)
	down, err := k.OpenStream(t.Context(), on[0].ID, wire.Preface{Kind: wire.StreamDial, Network: "tcp", Dest: "screen/control"})
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	down.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(down); string(b) != "proxy serves screen/control" || err != nil {
		t.Errorf("core's stream got %q, %v", b, err)
	}
	if _, err := k.OpenStream(t.Context(), "edg_nobody", ask); !errors.Is(err, ErrOffline) {
		t.Errorf("a stream to nobody: %v", err)
	}
}

// Only a webproxy may have many streams.
func TestLimitsOfKinds(t *testing.T) {
	k := newCore(t, nil)
	for kind, want := range map[wire.NodeKind]int{wire.Extender: 64, wire.Carrier: 64, wire.Router: 64, wire.WebProxy: 8192} {
		pub, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := k.ca.issueNode(pub, kind, "edg_x", "x")
		if err != nil {
			t.Fatal(err)
		}
		if got := limitsOf(leaf).MaxStreams; got != want {
			t.Errorf("%s may have %d streams, want %d", kind, got, want)
		}
	}
}
