package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/control"
	"caponier/shared/dial"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a relay at the far end of a tunnel in memory.
type rig struct {
	*Relay
	core tunnel.Session
}

func newRig(t *testing.T, c Config) *rig {
	t.Helper()
	edge, core := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	r := New(c)
	l := control.NewListener()
	srv := &http.Server{Handler: r.Control()}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			s, err := edge.Accept(ctx)
			if err != nil {
				return
			}
			if s.Preface().Kind == wire.StreamHTTP {
				s.Confirm()
				l.Push(s)
				continue
			}
			wg.Go(func() { r.ServeStream(ctx, s) })
		}
	})
	t.Cleanup(func() {
		cancel()
		core.Close(nil)
		edge.Close(nil)
		l.Close()
		srv.Close()
		wg.Wait()
	})
	return &rig{r, core}
}

func (r *rig) dial(t *testing.T, dest string) (tunnel.Stream, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := r.core.Open(ctx, wire.Preface{Kind: wire.StreamDial, Network: "tcp", Dest: dest, Connection: "con_1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.SetDeadline(time.Now().Add(time.Minute))
	return s, s.Accepted(ctx)
}

func code(err error) wire.Code {
	if we, ok := errors.AsType[*wire.Error](err); ok {
		return we.Code
	}
	return 0
}

// upper listens on loopback, reads to the end and answers with what it read.
func target(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				c.Write(append([]byte("got "), b...))
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func exempt(t *testing.T) dial.Rules {
	t.Helper()
	ps, err := dial.ParsePrefixes("exempt", []string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	return dial.Rules{Exempt: ps}
}

func TestRelay(t *testing.T) {
	r := newRig(t, Config{Rules: exempt(t)})
	at := target(t)
	// Nothing before core has said what it forbids.
	if _, err := r.dial(t, at); code(err) != wire.CodeRefused {
		t.Fatalf("before rules: %v", err)
	}
	if err := r.Narrow(wire.DialRules{}); err != nil {
		t.Fatal(err)
	}
	s, err := r.dial(t, at)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(s, "hello")
	s.CloseWrite()
	if b, err := io.ReadAll(s); string(b) != "got hello" || err != nil {
		t.Errorf("relayed %q, %v", b, err)
	}
	for _, c := range []struct {
		dest string
		want wire.Code
	}{
		{"169.254.169.254:80", wire.CodeRefused}, {"[::1]:22", wire.CodeRefused}, {"[fd00:ec2::254]:80", wire.CodeRefused},
		{"127.0.0.66:1", wire.CodeConnRefused}, {"no port", wire.CodeBadRequest}, {"0.0.0.0:22", wire.CodeRefused},
	} {
		if _, err := r.dial(t, c.dest); code(err) != c.want {
			t.Errorf("dial %s = %v, want code %d", c.dest, err, c.want)
		}
	}
	var st wire.Status
	r.Status(&st)
	if st.Refused != 4 || st.Failed != 2 || st.BytesOut != 5 || st.BytesIn != 9 {
		t.Errorf("status = %+v", st)
	}
}

func TestRulesFromCore(t *testing.T) {
	r := newRig(t, Config{Rules: exempt(t)})
	if err := r.Narrow(wire.DialRules{}); err != nil {
		t.Fatal(err)
	}
	at := target(t)
	put := func(w wire.DialRules) error {
		return control.Call(t.Context(), r.core, "PUT", wire.PathEdgeRules, w, nil)
	}
	if err := put(wire.DialRules{Allow: []string{"10.0.0.0/8"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.dial(t, at); code(err) != wire.CodeRefused {
		t.Errorf("outside core's subnets: %v", err)
	}
	if err := put(wire.DialRules{Allow: []string{"127.0.0.0/8"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.dial(t, at); err != nil {
		t.Errorf("inside core's subnets: %v", err)
	}
	// Rules that cannot be read close everything.
	if err := put(wire.DialRules{Ports: []string{"x"}}); err == nil {
		t.Error("bad rules were taken")
	}
	if _, err := r.dial(t, at); code(err) != wire.CodeRefused {
		t.Errorf("after bad rules: %v", err)
	}
}

func TestLimit(t *testing.T) {
	r := newRig(t, Config{Rules: exempt(t), MaxStreams: 1})
	if err := r.Narrow(wire.DialRules{}); err != nil {
		t.Fatal(err)
	}
	at := target(t)
	if _, err := r.dial(t, at); err != nil {
		t.Fatal(err)
	}
	if _, err := r.dial(t, at); code(err) != wire.CodeLimit {
		t.Errorf("over the limit: %v", err)
	}
}

func TestProbe(t *testing.T) {
	r := newRig(t, Config{Rules: exempt(t)})
	var resp wire.ProbeResponse
	ask := func(dest string) wire.ProbeStage {
		t.Helper()
		resp = wire.ProbeResponse{}
		if err := control.Call(t.Context(), r.core, "POST", wire.PathEdgeProbe, wire.ProbeRequest{Dest: dest}, &resp); err != nil {
			t.Fatal(err)
		}
		return resp.Stages[len(resp.Stages)-1]
	}
	at := target(t)
	if s := ask(at); s.OK || s.Name != "policy" {
		t.Errorf("before rules: %+v", s)
	}
	if err := r.Narrow(wire.DialRules{}); err != nil {
		t.Fatal(err)
	}
	if s := ask(at); !s.OK || s.Name != "tcp" || len(resp.Stages) != 3 {
		t.Errorf("reachable: %+v", resp.Stages)
	}
	if s := ask("169.254.169.254:80"); s.OK || s.Name != "policy" || s.Fix == "" {
		t.Errorf("metadata: %+v", s)
	}
}
