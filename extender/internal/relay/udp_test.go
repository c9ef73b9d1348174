package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// echo answers each datagram with itself, until stop.
func echo(t *testing.T, addr string) (at string, stop func()) {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	})
	stop = sync.OnceFunc(func() { c.Close(); wg.Wait() })
	t.Cleanup(stop)
	return c.LocalAddr().String(), stop
}

func (r *rig) flow(t *testing.T, dest string) (*tunnel.Datagrams, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := r.core.Open(ctx, wire.Preface{Kind: wire.StreamDial, Network: "udp", Dest: dest, Connection: "con_1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.SetDeadline(time.Now().Add(time.Minute))
	return tunnel.NewDatagrams(s), s.Accepted(ctx)
}

func open(t *testing.T, c Config) *rig {
	t.Helper()
	c.Rules = exempt(t)
	r := newRig(t, c)
	if err := r.Narrow(wire.DialRules{}); err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(d *tunnel.Datagrams, p []byte) ([]byte, error) {
	if _, err := d.Write(p); err != nil {
		return nil, err
	}
	buf := make([]byte, tunnel.MaxDatagram)
	n, err := d.Read(buf)
	return buf[:n], err
}

func TestDatagramFlow(t *testing.T) {
	r := open(t, Config{})
	at, _ := echo(t, "127.0.0.1:0")
	d, err := r.flow(t, at)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range []int{5, 0, 1472, 65000, 1} {
		p := bytes.Repeat([]byte{'x'}, n)
		got, err := ask(d, p)
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("a datagram of %d bytes came back as %d, %v", n, len(got), err)
		}
		total += n
	}
	var s wire.Status
	r.Status(&s)
	if s.BytesOut != uint64(total) || s.BytesIn != uint64(total) || s.Streams != 1 {
		t.Errorf("status = %+v, want %d bytes each way", s, total)
	}
}

// Nobody listening is not the end of a flow: a service may start again.
func TestDatagramTargetAway(t *testing.T) {
	r := open(t, Config{})
	at, stop := echo(t, "127.0.0.1:0")
	d, err := r.flow(t, at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(d, []byte("one")); err != nil {
		t.Fatal(err)
	}
	stop()
	const void = "into the void"
	for range 3 {
		if _, err := d.Write([]byte(void)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); ; { // all have left the relay
		var s wire.Status
		r.Status(&s)
		if s.BytesOut == uint64(len("one")+3*len(void)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not sent within a minute: %+v", s)
		}
		wait(t, time.Millisecond)
	}
	d.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := d.Next(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the flow ended with its target: %v", err)
	}
	d.SetReadDeadline(time.Now().Add(time.Minute))
	echo(t, at)
	if got, err := ask(d, []byte("two")); err != nil || string(got) != "two" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

func TestDatagramIdle(t *testing.T) {
	const idle = 4 * time.Second // beside which a busy machine's pauses are short
	r := open(t, Config{FlowIdle: idle})
	at, _ := echo(t, "127.0.0.1:0")
	d, err := r.flow(t, at)
	if err != nil {
		t.Fatal(err)
	}
	// Traffic keeps it, several times longer than it may be idle.
	for range 12 {
		if _, err := ask(d, []byte("x")); err != nil {
			t.Fatal(err)
		}
		wait(t, idle/4)
	}
	last := time.Now()
	if _, err := d.Next(); !errors.Is(err, io.EOF) {
		t.Fatalf("an idle flow ended with %v", err)
	}
	if took := time.Since(last); took < idle/2 || took > 20*idle {
		t.Errorf("an idle flow ended after %s, want about %s", took, idle)
	}
}

// wait lets time pass that the flow must outlive.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal("the test was cancelled")
	}
}

func TestDatagramRefusals(t *testing.T) {
	r := open(t, Config{MaxFlows: 1})
	at, _ := echo(t, "127.0.0.1:0")
	if _, err := r.flow(t, "169.254.169.254:80"); code(err) != wire.CodeRefused {
		t.Errorf("a metadata address: %v", err)
	}
	if _, err := r.flow(t, "nowhere"); code(err) != wire.CodeBadRequest {
		t.Errorf("no port: %v", err)
	}
	d, err := r.flow(t, at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.flow(t, at); code(err) != wire.CodeLimit {
		t.Errorf("one flow too many: %v", err)
	}
	if err := r.Narrow(wire.DialRules{Ports: []string{"1"}}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	// The place is free again once the relay has noticed.
	for deadline := time.Now().Add(time.Minute); r.flows.Load() > 0; {
		if time.Now().After(deadline) {
			t.Fatal("a closed flow was not given back")
		}
		wait(t, time.Millisecond)
	}
	if _, err := r.flow(t, at); code(err) != wire.CodeRefused {
		t.Errorf("a port that core does not allow: %v", err)
	}
}
