package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/tunnel/tunneltest"
	"caponier/shared/wire"
)

// play is a child process. It prints one line of addresses when ready and ends
// with its standard input. SIGUSR1 gives memory back that is not in use.
func play(role string, args []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	go func() {
		for range usr1 {
			runtime.GC() // twice: pools empty in two steps
			debug.FreeOSMemory()
		}
	}()
	if path := os.Getenv("TUNNELBENCH_PROFILE"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	switch role {
	case "core":
		return playCore(ctx, args[0], args[1])
	case "edge":
		return playEdge(ctx, args[0], args[1], args[2])
	case "edges":
		return playEdges(ctx, args[0], args[1])
	case "near":
		return playNear(ctx, args[0], args[1])
	case "far":
		return playFar(ctx, args[0])
	case "proxy":
		return playProxy(ctx, args[0], args[1])
	}
	return fmt.Errorf("unknown role %q", role)
}

// keys is what the children share, in a file.
type keys struct {
	Core, Edge [][]byte // chains
	CoreKey    ed25519.PrivateKey
	EdgeKey    ed25519.PrivateKey
}

func writeKeys(path string) error {
	ca, err := tunneltest.NewCA()
	if err != nil {
		return err
	}
	core, err := ca.Core("core-a")
	if err != nil {
		return err
	}
	edge, err := ca.Edge("extender", "edg_1")
	if err != nil {
		return err
	}
	b, err := json.Marshal(keys{
		Core: core.Certificate.Certificate, CoreKey: core.Certificate.PrivateKey.(ed25519.PrivateKey),
		Edge: edge.Certificate.Certificate, EdgeKey: edge.Certificate.PrivateKey.(ed25519.PrivateKey),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func readKeys(path string) (core, edge tunnel.Identity, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return core, edge, err
	}
	var k keys
	if err := json.Unmarshal(b, &k); err != nil {
		return core, edge, err
	}
	ca, err := x509.ParseCertificate(k.Core[1])
	if err != nil {
		return core, edge, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	core = tunnel.Identity{Certificate: tls.Certificate{Certificate: k.Core, PrivateKey: k.CoreKey}, Roots: roots}
	edge = tunnel.Identity{Certificate: tls.Certificate{Certificate: k.Edge, PrivateKey: k.EdgeKey}, Roots: roots}
	return core, edge, nil
}

// playCore accepts tunnels; what connects to its entry goes through the first
// of them to target.
func playCore(ctx context.Context, keyFile, target string) error {
	id, _, err := readKeys(keyFile)
	if err != nil {
		return err
	}
	c, err := tunneltest.NewCore(tunnel.AcceptConfig{Identity: id}, false)
	if err != nil {
		return err
	}
	defer c.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer pc.Close()
	q, err := tunnel.ListenQUIC(pc, func() tunnel.AcceptConfig { return tunnel.AcceptConfig{Identity: id} })
	if err != nil {
		return err
	}
	defer q.Close()
	entry, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer entry.Close()
	fmt.Println(entry.Addr(), c.URL, pc.LocalAddr())
	go func() {
		for {
			s, err := q.Accept(ctx)
			if err != nil {
				return
			}
			c.Sessions <- s
		}
	}()
	var s tunnel.Session
	select {
	case s = <-c.Sessions:
	case err := <-c.Errors:
		return err
	case <-ctx.Done():
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = entry.Close() })
	defer stop()
	for {
		user, err := entry.Accept()
		if err != nil {
			return nil
		}
		go func() {
			st, err := s.Open(ctx, wire.Preface{Kind: wire.StreamDial, Network: "tcp", Dest: target, Connection: "con_bench"})
			if err != nil {
				_ = user.Close()
				return
			}
			_, _, _ = tunnel.Relay(ctx, user, st, tunnel.Counters{})
		}()
	}
}

// playEdge dials core and relays streams to their targets.
func playEdge(ctx context.Context, keyFile, transport, addr string) error {
	_, id, err := readKeys(keyFile)
	if err != nil {
		return err
	}
	cfg := tunnel.DialConfig{Identity: id, Transport: tunnel.Transport(transport), URL: addr}
	if cfg.Transport == tunnel.QUIC {
		cfg.QUICAddr = addr
	}
	s, err := tunnel.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println("connected")
	for {
		st, err := s.Accept(ctx)
		if err != nil {
			_ = s.Close(nil)
			return nil
		}
		go func() {
			nc, err := net.Dial("tcp", st.Preface().Dest)
			if err != nil {
				_ = st.Refuse(wire.Errorf(wire.CodeConnRefused, "%v", err))
				return
			}
			if err := st.Confirm(); err != nil {
				_ = nc.Close()
				return
			}
			// Not on the stack that dialling made large; the extender dials
			// on a goroutine of its own, too.
			go func() { _, _, _ = tunnel.Relay(ctx, st, nc, tunnel.Counters{}) }()
		}()
	}
}

// playEdges holds n idle tunnels open for each line "n" on standard input.
func playEdges(ctx context.Context, keyFile, url string) error {
	_, id, err := readKeys(keyFile)
	if err != nil {
		return err
	}
	for range 500 {
		if _, err := tunnel.Dial(ctx, tunnel.DialConfig{Identity: id, Transport: tunnel.WSS, URL: url, Timeout: 30 * time.Second}); err != nil {
			return err
		}
	}
	fmt.Println("500")
	<-ctx.Done()
	return nil
}

// playFar ends TLS connections and relays each to target once its first byte
// has come.
func playFar(ctx context.Context, target string) error {
	cert, err := tunneltest.WebCertificate()
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	fmt.Println(l.Addr())
	for {
		nc, err := l.Accept()
		if err != nil {
			return nil
		}
		go func() {
			if _, err := io.ReadFull(nc, make([]byte, 1)); err != nil {
				_ = nc.Close()
				return
			}
			t, err := net.Dial("tcp", target)
			if err != nil {
				_ = nc.Close()
				return
			}
			splice(nc, t)
		}()
	}
}

// playNear relays what connects to it through a TLS connection of its own,
// of which 32 are dialled ahead.
func playNear(ctx context.Context, keyFile, far string) error {
	ready := make(chan net.Conn, 32)
	for range 8 {
		go func() {
			for ctx.Err() == nil {
				nc, err := tls.Dial("tcp", far, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
				if err != nil {
					select {
					case <-ctx.Done():
					case <-time.After(50 * time.Millisecond):
					}
					continue
				}
				ready <- nc
			}
		}()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	fmt.Println(l.Addr())
	for {
		user, err := l.Accept()
		if err != nil {
			return nil
		}
		go func() {
			nc := <-ready
			if _, err := nc.Write([]byte{1}); err != nil {
				_ = user.Close()
				return
			}
			splice(user, nc)
		}()
	}
}

// splice is the usual relay: two io.Copy.
func splice(a, b net.Conn) {
	done := make(chan struct{})
	oneWay := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src)
		if h, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}
	go func() { oneWay(a, b); close(done) }()
	oneWay(b, a)
	<-done
	_ = a.Close()
	_ = b.Close()
}

// playProxy delays TCP and UDP to a target, half of rtt each way.
func playProxy(ctx context.Context, target, rtt string) error {
	d, err := time.ParseDuration(rtt)
	if err != nil {
		return err
	}
	tcp, err := tunneltest.NewProxy(target, d/2, nil)
	if err != nil {
		return err
	}
	udp, err := tunneltest.NewPacketProxy(target, d/2)
	if err != nil {
		return err
	}
	fmt.Println(tcp.Addr, udp.Addr)
	<-ctx.Done()
	return nil
}

// readLine waits for a child's line.
func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return "", errors.New("the child ended before it was ready")
	}
	return line[:len(line)-1], nil
}
