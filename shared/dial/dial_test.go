package dial

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names answers each lookup of a name with the next of its answers.
type names struct {
	answers map[string][][]string
	asked   atomic.Int64
}

func (n *names) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	i := int(n.asked.Add(1)) - 1
	as, ok := n.answers[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	var out []netip.Addr
	for _, a := range as[min(i, len(as)-1)] {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

// echo listens on an address of loopback and says hello.
func echo(t *testing.T, addr string) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func exempted(t *testing.T) Rules { return Rules{Exempt: prefixes(t, "127.0.0.0/8", "::1")} }

func TestDial(t *testing.T) {
	at := echo(t, "127.0.0.1:0")
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	res := &names{answers: map[string][][]string{
		"db.internal":   {{"127.0.0.1"}},
		"mixed":         {{"169.254.169.254", "127.0.0.1"}},
		"meta.internal": {{"169.254.169.254"}},
		"first.dead":    {{"127.0.0.66", "127.0.0.1"}},
	}}
	d := New(Config{Rules: exempted(t), Resolver: res, Timeout: 5 * time.Second})
	for _, dest := range []string{at, "db.internal:" + port, "mixed:" + port, "first.dead:" + port} {
		c, err := d.Dial(t.Context(), dest)
		if err != nil {
			t.Errorf("Dial(%s): %v", dest, err)
			continue
		}
		b, err := io.ReadAll(c)
		c.Close()
		if string(b) != "hello" || err != nil {
			t.Errorf("Dial(%s) read %q, %v", dest, b, err)
		}
	}
	closed := echo(t, "127.0.0.1:0")
	for _, c := range []struct {
		dest string
		code wire.Code
		text string
	}{
		{"nowhere.internal:22", wire.CodeDNS, "nowhere.internal does not resolve"},
		{"meta.internal:80", wire.CodeRefused, "meta.internal (169.254.169.254:80) may not be dialled: it is a cloud metadata address"},
		{"169.254.169.254:80", wire.CodeRefused, "metadata"},
		{"[fe80::1]:22", wire.CodeRefused, "link-local"},
		{"10.0.0.1", wire.CodeBadRequest, "host:port"},
		{"a b:22", wire.CodeBadRequest, "character"},
		{"x:99999", wire.CodeBadRequest, "port"},
		{"127.0.0.67:1", wire.CodeConnRefused, "nothing listens"},
	} {
		conn, err := d.Dial(t.Context(), c.dest)
		if err == nil {
			conn.Close()
			t.Errorf("Dial(%s) connected", c.dest)
			continue
		}
		if we := Public(err); we.Code != c.code || !strings.Contains(we.Public, c.text) {
			t.Errorf("Dial(%s) = %d %q, want %d %q", c.dest, we.Code, we.Public, c.code, c.text)
		}
	}
	// Core's rules narrow further; the reason is kept.
	_, err = d.Dial(t.Context(), closed, Rules{Allow: prefixes(t, "10.0.0.0/8")})
	if ref, ok := errors.AsType[*RefusedError](err); !ok || ref.Reason != OutsideSubnet {
		t.Errorf("narrowed dial: %v", err)
	}
	if c, err := d.Dial(t.Context(), closed, Rules{Allow: prefixes(t, "127.0.0.0/8")}); err != nil {
		t.Errorf("narrowed dial inside: %v", err)
	} else {
		c.Close()
	}
}

// Without exemption nothing of this machine is reachable, by whatever name.
func TestDialOwnMachine(t *testing.T) {
	at := echo(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(at)
	d := New(Config{Resolver: &names{answers: map[string][][]string{"rebind.example": {{"127.0.0.1"}}}}})
	for _, host := range []string{"127.0.0.1", "rebind.example", "::ffff:127.0.0.1", "::1", "0.0.0.0"} {
		c, err := d.Dial(t.Context(), net.JoinHostPort(host, port))
		if err == nil {
			c.Close()
			t.Errorf("%s was dialled", host)
		} else if Public(err).Code != wire.CodeRefused {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// A name that answers an allowed address first and loopback later gains
// nothing: it is asked once, and the socket checks what it is given.
func TestDialRebinding(t *testing.T) {
	at := echo(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(at)
	res := &names{answers: map[string][][]string{"rebind": {{"127.0.0.66"}, {"127.0.0.1"}}}}
	d := New(Config{Rules: Rules{Exempt: prefixes(t, "127.0.0.66")}, Resolver: res, Timeout: 3 * time.Second})
	if c, err := d.Dial(t.Context(), "rebind:"+port); err == nil {
		c.Close()
		t.Fatal("connected")
	}
	if n := res.asked.Load(); n != 1 {
		t.Errorf("the name was asked %d times, want 1", n)
	}
	// Even if an address passed the first check by mistake, the socket refuses it.
	_, err := d.connect(t.Context(), netip.MustParseAddrPort(at), nil)
	if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused {
		t.Errorf("connect(%s) = %v, want refused", at, err)
	}
}

func TestDialTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 200 * time.Millisecond
		d := New(Config{Timeout: limit, Resolver: stuck{}})
		start := time.Now()
		_, err := d.Dial(t.Context(), "slow.internal:22")
		if took := time.Since(start); Public(err).Code != wire.CodeDNS || took != limit {
			t.Errorf("Dial = %v after %s", err, took)
		}
	})
}

type stuck struct{}

func (stuck) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, &net.DNSError{Err: "timeout", Name: host, IsTimeout: true}
}

func TestProbe(t *testing.T) {
	at := echo(t, "127.0.0.1:0")
	res := &names{answers: map[string][][]string{"meta": {{"169.254.169.254"}}}}
	d := New(Config{Rules: exempted(t), Resolver: res})
	for _, c := range []struct {
		dest string
		last string
		ok   bool
	}{
		{at, "tcp", true},
		{"127.0.0.67:1", "tcp", false},
		{"meta:80", "policy", false},
		{"nowhere:80", "dns", false},
	} {
		got := d.Probe(t.Context(), c.dest)
		if len(got) == 0 {
			t.Errorf("Probe(%s) said nothing", c.dest)
			continue
		}
		l := got[len(got)-1]
		if l.Name != c.last || l.OK != c.ok || l.Text == "" || (l.Fix == "") != l.OK {
			t.Errorf("Probe(%s) ends with %+v, want %s ok=%v", c.dest, l, c.last, c.ok)
		}
	}
}
