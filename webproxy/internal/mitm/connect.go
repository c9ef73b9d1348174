package mitm

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/tlsconn"
	"caponier/shared/webrule"
	"caponier/webproxy/internal/session"
)

// vendor are hosts that browsers call for themselves. They are turned away
// without a word, unless the policy names them.
var vendor = []string{"mozilla.com", "mozilla.org", "mozilla.net", "firefox.com", "detectportal.firefox.com", "mozgcp.net"}

// proxy serves what the browser says to its proxy: CONNECT, and requests for
// plain http with the whole URL.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request) {
	p, ok := r.Context().Value(connKey{}).(*proxied)
	if !ok {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	ses := p.session
	if ses == nil {
		if ses = s.named(r); ses == nil || p.only != nil && p.only != ses {
			w.Header().Set("Proxy-Authenticate", `Basic realm="Caponier session", charset="UTF-8"`)
			http.Error(w, "Give the session and its key as proxy credentials.", http.StatusProxyAuthRequired)
			return
		}
	}
	switch {
	case r.Method == http.MethodConnect:
		s.connect(w, r, p, ses)
	case r.URL.Scheme == "http" && r.URL.Host != "" && strings.EqualFold(r.URL.Host, r.Host):
		s.handle(w, r, ses, "http", r.URL.Host)
	default:
		http.Error(w, "This is a proxy: it serves CONNECT and absolute URLs.", http.StatusBadRequest)
	}
}

// connect opens a tunnel that ends here. Nothing is dialled for it.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, p *proxied, ses *session.Session) {
	e, err := (webrule.Request{Scheme: "https", Host: r.Host}).Endpoint()
	if err != nil {
		http.Error(w, "The host is not valid.", http.StatusBadRequest)
		return
	}
	rev := ses.Revision()
	if !rev.Policy.Reaches("https", r.Host) && isVendor(e.Host()) {
		http.Error(w, "Not allowed.", http.StatusForbidden)
		return
	}
	// On the cleartext port the session was named by this request: the
	// connection is the session's from now on.
	leave := func() {}
	if p.session == nil {
		var ok bool
		if leave, ok = ses.Enter(func() { p.Conn.Close() }); !ok {
			http.Error(w, "The session has too many connections.", http.StatusServiceUnavailable)
			return
		}
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		leave()
		s.c.Log.Error("proxy", telemetry.KeyErr, err)
		return
	}
	s.work.Go(func() {
		if err := s.open(c, rw.Reader, leave, ses, e, r.Host); err != nil {
			s.c.Log.Debug("tunnel", telemetry.KeySession, ses.ID, telemetry.KeyErr, err)
			leave()
			c.Close()
		}
	})
}

// open answers CONNECT and hands what comes inside to the inner server.
func (s *Server) open(c net.Conn, r *bufio.Reader, leave func(), ses *session.Session, e webrule.Endpoint, authority string) error {
	if err := c.SetDeadline(s.c.Now().Add(headerTime)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		return err
	}
	first, err := r.Peek(1)
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	t := &inTunnel{Conn: &leaving{Conn: c, leave: sync.OnceFunc(leave)}, r: r, session: ses, scheme: "http", authority: authority}
	if first[0] != 22 { // the record type of a TLS handshake
		// A websocket without TLS also comes by CONNECT. Its requests are
		// judged as plain http to this authority.
		if !s.inIn.push(t) {
			return net.ErrClosed
		}
		return nil
	}
	t.scheme = "https"
	leaf, err := s.c.Authority.Leaf(ses.Context(), e.Host())
	if errors.Is(err, ErrName) {
		s.Blocked.Add(1)
		if eerr := ses.Event("blocked", map[string]string{"reason": "name_not_permitted", "url": e.Origin()}); eerr != nil {
			s.c.Log.Debug("event", telemetry.KeySession, ses.ID, telemetry.KeyErr, eerr)
		}
	}
	if err != nil {
		return err
	}
	inner := tlsconn.Server(t, &tls.Config{Certificates: []tls.Certificate{*leaf}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
		DynamicRecordSizingDisabled: true})
	hctx, cancel := context.WithTimeout(ses.Context(), handshakeTime)
	defer cancel()
	if err := inner.HandshakeContext(hctx); err != nil {
		return err
	}
	to := net.Conn(inner)
	if inner.ConnectionState().NegotiatedProtocol == "h2" {
		to = inner.Conn // the server knows HTTP/2 by this type
	}
	if !s.inIn.push(to) {
		return net.ErrClosed
	}
	return nil
}

type leaving struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (l *leaving) Close() error {
	l.leave()
	return l.Conn.Close()
}

// inside serves a request inside a tunnel.
func (s *Server) inside(w http.ResponseWriter, r *http.Request) {
	t, ok := r.Context().Value(connKey{}).(*inTunnel)
	if !ok {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	want, err1 := (webrule.Request{Scheme: t.scheme, Host: t.authority}).Endpoint()
	got, err2 := (webrule.Request{Scheme: t.scheme, Host: r.Host}).Endpoint()
	if err1 != nil || err2 != nil || want != got || r.URL.Host != "" && !strings.EqualFold(r.URL.Host, r.Host) {
		s.Blocked.Add(1)
		fields := map[string]string{"reason": "other_host", "method": clip(r.Method, 32), "url": want.Origin(), "host": clip(r.Host, 256)}
		if err := t.session.Event("blocked", fields); err != nil {
			s.c.Log.Debug("event", telemetry.KeySession, t.session.ID, telemetry.KeyErr, err)
		}
		w.Header().Set("Connection", "close")
		http.Error(w, "This connection is for another host.", http.StatusForbidden)
		return
	}
	if r.Method == http.MethodConnect {
		http.Error(w, "A tunnel inside a tunnel is not served.", http.StatusForbidden)
		return
	}
	s.handle(w, r, t.session, t.scheme, t.authority)
}

func isVendor(host string) bool {
	for _, v := range vendor {
		if host == v || strings.HasSuffix(host, "."+v) {
			return true
		}
	}
	return false
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}
