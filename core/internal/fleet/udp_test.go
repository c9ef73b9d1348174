package fleet

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"caponier/shared/dial"
	"caponier/shared/edge"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Datagrams keep their bounds directly and through an extender, and a refusal
// says why.
func TestDialUDP(t *testing.T) {
	exempt, err := dial.ParsePrefixes("exempt", []string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	k := newCore(t, func(c *Config) { c.Direct = dial.Rules{Exempt: exempt} })
	at, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, tunnel.MaxDatagram)
		for {
			n, from, err := at.ReadFrom(buf)
			if err != nil {
				return
			}
			at.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { at.Close(); <-done })
	d := dial.New(dial.Config{Rules: dial.Rules{Exempt: exempt}})
	testEdge(t, k.url, k.token(nil), state(t), func(c *edge.Config) {
		c.Stream = func(ctx context.Context, s tunnel.Stream) {
			if s.Preface().Network != "udp" {
				s.Refuse(wire.Errorf(wire.CodeBadRequest, "not udp"))
				return
			}
			conn, err := d.DialUDP(ctx, s.Preface().Dest)
			if err != nil {
				s.Refuse(dial.Public(err))
				return
			}
			defer conn.Close()
			// One question, one answer.
			g, buf := tunnel.NewDatagrams(s), make([]byte, tunnel.MaxDatagram)
			n, err := g.Read(buf)
			if err != nil {
				return
			}
			conn.Write(buf[:n])
			if n, err = conn.Read(buf); err == nil {
				g.Write(buf[:n])
			}
			s.Close()
		}
	})
	k.up(1)
	for _, site := range []string{"", "vpc-a"} {
		c, route, err := k.DialUDP(t.Context(), DialRequest{Site: site, Address: at.LocalAddr().String(), Optimistic: true})
		if err != nil {
			t.Fatalf("site %q: %v", site, err)
		}
		c.SetDeadline(time.Now().Add(patience))
		want := make([]byte, 3000)
		c.Write(want)
		got := make([]byte, tunnel.MaxDatagram)
		if n, err := c.Read(got); n != len(want) || err != nil {
			t.Errorf("site %q: %d bytes, %v", site, n, err)
		}
		if route.Site != site || (route.Transport == "direct") != (site == "") {
			t.Errorf("site %q: route %+v", site, route)
		}
		c.Close()
		_, _, err = k.DialUDP(t.Context(), DialRequest{Site: site, Address: "169.254.169.254:80"})
		if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused {
			t.Errorf("site %q: metadata address: %v", site, err)
		}
	}
}
