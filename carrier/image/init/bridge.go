package main

import (
	"io"
	"net"
	"sync"
	"time"
)

// maxJoined bounds connections that the carrier uses at one time, per socket.
const maxJoined = 16

// offer keeps one connection to the carrier's socket waiting. The carrier says
// that it wants to use it by sending one byte, whatever it is; the connection
// is then given to use, and the next one waits. When the carrier is away it is
// tried again, for as long as patience: a carrier takes a while to be replaced.
func offer(socket string, patience time.Duration, use func(*net.UnixConn)) {
	room := make(chan struct{}, maxJoined)
	met := time.Now()
	for time.Since(met) < patience {
		room <- struct{}{}
		c, reached := wanted(socket, nil)
		if reached {
			met = time.Now()
		}
		if c == nil {
			<-room
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go func() {
			defer func() { <-room }()
			use(c)
		}()
	}
}

// wanted connects and waits until the connection is wanted; nil when that does
// not happen, or over is closed before. reached says that there is a carrier.
func wanted(socket string, over <-chan struct{}) (c *net.UnixConn, reached bool) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, false
	}
	taken := make(chan struct{})
	defer close(taken)
	go func() {
		select {
		case <-over:
			_ = c.SetReadDeadline(time.Unix(1, 0))
		case <-taken:
		}
	}()
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		c.Close()
		return nil, true
	}
	return c, true
}

// relay passes each connection of the browser to the carrier, unread.
func relay(ln net.Listener, socket string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go join(c.(*net.TCPConn), socket)
	}
}

// halves is a connection whose directions end one by one.
type halves interface {
	net.Conn
	CloseWrite() error
}

// join passes c to a socket and back until both directions have ended.
func join(c halves, socket string) {
	defer c.Close()
	up, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer up.Close()
	var wg sync.WaitGroup
	wg.Go(func() { pass(up.(*net.UnixConn), c) })
	wg.Go(func() { pass(c, up) })
	wg.Wait()
}

// pass copies until end and hands the half-close on.
func pass(dst halves, src io.Reader) {
	_, _ = io.Copy(dst, src)
	_ = dst.CloseWrite()
}

// queue hands connections to an http.Server.
type queue struct{ conns chan net.Conn }

func newQueue() *queue { return &queue{make(chan net.Conn)} }

// push waits until the server has taken c, and then until it is done with it.
func (q *queue) push(c *net.UnixConn) {
	w := &told{Conn: c, done: make(chan struct{})}
	q.conns <- w
	<-w.done
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) { return <-q.conns, nil }

// Close implements net.Listener; the server lives as long as the process.
func (q *queue) Close() error { return nil }

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return &net.UnixAddr{Name: files, Net: "unix"} }

// told tells when it is closed.
type told struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

// Close implements net.Conn.
func (t *told) Close() error {
	t.once.Do(func() { close(t.done) })
	return t.Conn.Close()
}
