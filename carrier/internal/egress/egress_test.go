package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/tunnel/tunneltest"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openDoor(t *testing.T) (*Door, string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "door")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "egress.sock")
	d, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Close()
		os.RemoveAll(dir)
	})
	return d, path
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// get sends a request as the browser does to its proxy.
func get(t *testing.T, path, line string) (*http.Response, string) {
	t.Helper()
	c := dial(t, path)
	fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\n\r\n", line)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return resp, string(b)
}

// A parked browser gets its page and nothing else.
func TestParked(t *testing.T) {
	d, path := openDoor(t)
	for _, line := range []string{"CONNECT firefox.settings.services.mozilla.com:443", "GET http://example.org/", "POST http://" + Park + "/", "GET http://" + Park + ".example.org/",
		"GET https://" + Park + ":444/", "CONNECT " + Park + ":443"} {
		if resp, _ := get(t, path, line); resp.StatusCode != http.StatusForbidden || !resp.Close {
			t.Errorf("%s: %s, close %v", line, resp.Status, resp.Close)
		}
	}
	if asked := d.Asked(); len(asked) != 5 || asked[0] != "CONNECT //firefox.settings.services.mozilla.com:443" {
		t.Errorf("on record is %q", asked)
	}
	if resp, body := get(t, path, "GET http://"+Park+"/"); resp.StatusCode != http.StatusOK || !strings.Contains(body, "location.replace") || !resp.Close {
		t.Errorf("page: %s %q", resp.Status, body)
	}
	select {
	case <-d.Parked():
		t.Error("it is parked before the page has asked")
	default:
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if resp, body := get(t, path, "GET http://"+Park+"/next"); resp.StatusCode != http.StatusOK || body != "https://target.test/a?b" {
			t.Errorf("next: %s %q", resp.Status, body)
		}
	})
	<-d.Parked()
	d.Claim("https://target.test/a?b", nil2{})
	wg.Wait()
	// Late pages are sent on, by the address alone.
	if resp, _ := get(t, path, "GET http://"+Park+"/"); resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "https://target.test/a?b" {
		t.Errorf("late page: %s", resp.Status)
	}
	if resp, _ := get(t, path, "POST http://"+Park+"/?update"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("an updater: %s", resp.Status)
	}
	if resp, body := get(t, path, "GET http://elsewhere.test/"); resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "cannot be reached") {
		t.Errorf("webproxy away: %s %q", resp.Status, body)
	}
	// Garbage and silence end without an answer.
	c := dial(t, path)
	io.WriteString(c, "GET http://"+Park+"/ \x00\r\n\r\n")
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("garbage: %q, %v", b, err)
	}
}

// nil2 is a webproxy that is away.
type nil2 struct{}

func (nil2) Dial(context.Context) (Conn, error) { return nil, net.ErrClosed }

// webproxy takes mutual TLS and hands connections over with their first line.
func webproxy(t *testing.T, ca *tunneltest.CA, kind wire.NodeKind, node string) (address string, conns chan *proxied) {
	t.Helper()
	id, err := ca.Edge(string(kind), node)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.Certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: id.Roots})
	if err != nil {
		t.Fatal(err)
	}
	conns = make(chan *proxied, 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				in := bufio.NewReader(c)
				line, err := in.ReadString('\n')
				if err != nil {
					c.Close()
					return
				}
				conns <- &proxied{c.(*tls.Conn), in, line}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
		for len(conns) > 0 {
			(<-conns).Close()
		}
	})
	return ln.Addr().String(), conns
}

type proxied struct {
	*tls.Conn
	in   *bufio.Reader
	line string
}

func proxyOf(t *testing.T, ca *tunneltest.CA, address, node string) *Proxy {
	t.Helper()
	self, err := ca.Edge(string(wire.Carrier), "nod_carrier")
	if err != nil {
		t.Fatal(err)
	}
	p := NewProxy(ProxyConfig{Session: "con_1", Address: wire.WebProxyAddress{NodeID: node, Address: address, Key: "the-key"},
		Credentials: func() (tls.Certificate, *x509.CertPool, error) { return self.Certificate, self.Roots, nil }})
	t.Cleanup(p.Close)
	return p
}

// Bytes reach the webproxy unread behind one line, both directions, each with
// its own end.
func TestSplice(t *testing.T) {
	ca, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	address, conns := webproxy(t, ca, wire.WebProxy, "nod_web")
	p := proxyOf(t, ca, address, "nod_web")
	d, path := openDoor(t)
	d.Claim("https://target.test/", p)
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() { // whichever of the connections is taken, one that stands ready or a new one
		var mine sync.WaitGroup
		defer mine.Wait()
		for {
			var w *proxied
			select {
			case w = <-conns:
			case <-over:
				return
			}
			mine.Go(func() {
				defer w.Close()
				if w.line != "CAPONIER/1 con_1 the-key\r\n" {
					t.Errorf("first line %q", w.line)
				}
				b, err := io.ReadAll(w.in)
				if err != nil || len(b) == 0 {
					return
				}
				fmt.Fprintf(w, "%d bytes, ends %q", len(b), b[len(b)-3:])
			})
		}
	})
	c := dial(t, path)
	io.WriteString(c, "CONNECT target.test:443 HTTP/1.1\r\n\r\n")
	io.WriteString(c, strings.Repeat("x", 1<<20)+"end")
	c.CloseWrite()
	b, err := io.ReadAll(c)
	if want := fmt.Sprintf("%d bytes, ends %q", len("CONNECT target.test:443 HTTP/1.1\r\n\r\n")+(1<<20)+3, "end"); err != nil || string(b) != want {
		t.Errorf("answer %q, %v; want %q", b, err, want)
	}
	c.Close()
	p.Close() // gives those that stand ready back
	close(over)
	wg.Wait()
	for len(conns) > 0 {
		(<-conns).Close()
	}
}

// Only the webproxy that core named is spoken to, and it is told nothing before.
func TestOtherPeer(t *testing.T) {
	ca, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	other, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		ca   *tunneltest.CA
		kind wire.NodeKind
		node string
	}{{"another node", ca, wire.WebProxy, "nod_other"}, {"another kind", ca, wire.Extender, "nod_web"}, {"another authority", other, wire.WebProxy, "nod_web"}} {
		address, conns := webproxy(t, c.ca, c.kind, c.node)
		p := proxyOf(t, ca, address, "nod_web")
		if conn, err := p.Dial(t.Context()); err == nil {
			conn.Close()
			t.Errorf("%s was accepted", c.name)
		}
		p.Close()
		if len(conns) != 0 {
			t.Errorf("%s was told %q", c.name, (<-conns).line)
		}
	}
}
