package tunnel

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"caponier/shared/wire"
)

// Headers of the upgrade request and its answer.
const (
	headerVersion   = "Caponier-Version"   // protocol version
	headerChain     = "Caponier-Chain"     // certificates, base64, by comma
	headerSignature = "Caponier-Signature" // over proofText, base64
	headerBinding   = "Caponier-Binding"   // in the answer: bound or inner
)

const defaultTimeout = 10 * time.Second

// AcceptWSS answers an upgrade request and returns the authenticated session.
// On error the request has been answered. The http.Server's listener should
// be wrapped with Listener, below TLS.
//
// A client whose proof fits the TLS connection that ends here is answered with
// our proof for the same connection. Any other (something in between ended
// TLS, or there was none) must prove itself in TLS inside the websocket.
func AcceptWSS(w http.ResponseWriter, r *http.Request, cfg AcceptConfig) (Session, error) {
	if err := checkVersion(r.Header.Get(headerVersion)); err != nil {
		refuseUpgrade(w, http.StatusUpgradeRequired, err)
		return nil, err
	}
	var shown *x509.Certificate
	chain, err := parseChain(r.Header.Get(headerChain))
	if err == nil && len(chain) > 0 {
		shown, err = cfg.Identity.verifyClient(chain)
	}
	if err != nil {
		refuseUpgrade(w, http.StatusForbidden, public(err))
		return nil, fmt.Errorf("accept tunnel from %s: %w", r.RemoteAddr, err)
	}
	answer := http.Header{headerBinding: {string(InnerTLS)}, headerVersion: {strconv.Itoa(wire.Version)}}
	binding := InnerTLS
	if nonce := r.Header.Get("Sec-WebSocket-Key"); shown != nil && fits(shown, r.TLS, nonce, r.Header.Get(headerSignature)) {
		text, err := proofText(proofOfCore, r.TLS, nonce)
		if err == nil {
			answer[headerSignature] = []string{""}
			answer[headerSignature][0], err = cfg.Identity.prove(text)
		}
		if err != nil {
			refuseUpgrade(w, http.StatusInternalServerError, wire.Errorf(wire.CodeInternal, "%s", wire.CodeInternal.Text()))
			return nil, err
		}
		binding = BoundTLS
		answer.Set(headerBinding, string(BoundTLS))
		answer.Set(headerChain, cfg.Identity.chainText())
	}
	ws, err := upgrade(w, r, answer, cfg.Timeout)
	if err != nil {
		return nil, err
	}
	info := Info{Transport: WSS, Binding: binding, Peer: shown, Remote: addrPort(ws.RemoteAddr())}
	var l link = ws
	if binding == InnerTLS {
		g := &gatherConn{wsConn: ws}
		tc := tls.Server(g, cfg.Identity.serverTLS())
		if err := tc.HandshakeContext(context.WithoutCancel(r.Context())); err != nil {
			_ = ws.nc.Close()
			return nil, fmt.Errorf("accept tunnel from %s: inner TLS: %w", r.RemoteAddr, err)
		}
		info.Peer = tc.ConnectionState().PeerCertificates[0]
		l = &innerLink{Conn: tc, gather: g}
	}
	if err := ws.SetDeadline(time.Time{}); err != nil {
		_ = ws.nc.Close()
		return nil, fmt.Errorf("accept tunnel from %s: %w", r.RemoteAddr, err)
	}
	return newMuxSession(l, false, info, cfg.limits(info.Peer)), nil
}

// AcceptPinned is the server's end of DialPinned. cert's chain must include the CA.
func AcceptPinned(w http.ResponseWriter, r *http.Request, cert tls.Certificate) (net.Conn, error) {
	ws, err := upgrade(w, r, http.Header{headerBinding: {string(InnerTLS)}}, 0)
	if err != nil {
		return nil, err
	}
	tc := tls.Server(ws, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpnPinned},
		Certificates:           []tls.Certificate{cert},
		SessionTicketsDisabled: true,
	})
	if err := tc.HandshakeContext(context.WithoutCancel(r.Context())); err != nil {
		_ = ws.nc.Close()
		return nil, fmt.Errorf("pinned connection from %s: %w", r.RemoteAddr, err)
	}
	if err := ws.SetDeadline(time.Time{}); err != nil {
		_ = ws.nc.Close()
		return nil, fmt.Errorf("pinned connection from %s: %w", r.RemoteAddr, err)
	}
	return tc, nil
}

// fits reports whether the client's proof was made for the TLS connection
// that ends here.
func fits(leaf *x509.Certificate, cs *tls.ConnectionState, nonce, signature string) bool {
	if signature == "" {
		return false
	}
	text, err := proofText(proofOfClient, cs, nonce)
	return err == nil && proves(leaf, text, signature)
}

func checkVersion(text string) error {
	v, err := strconv.Atoi(text)
	if err != nil {
		return wire.Errorf(wire.CodeBadRequest, "this address accepts tunnels only")
	}
	if !wire.Compatible(v) {
		return wire.Errorf(wire.CodeVersion, "this core speaks tunnel version %d, the node %d", wire.Version, v)
	}
	return nil
}

// refuseUpgrade answers with an error that DialWSS understands.
func refuseUpgrade(w http.ResponseWriter, status int, err error) {
	e, ok := errors.AsType[*wire.Error](err)
	if !ok {
		e = wire.Errorf(wire.CodeInternal, "%s", wire.CodeInternal.Text())
	}
	Refuse(w, status, 0, e)
}

// Refuse answers an upgrade request instead of AcceptWSS, in a form that
// Dial returns as a *RefusedError with e inside.
func Refuse(w http.ResponseWriter, status int, retryAfter time.Duration, e *wire.Error) {
	h := w.Header()
	h.Set("Content-Type", wireErrorType)
	if retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((retryAfter+time.Second-1)/time.Second)))
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // the client may be gone
}

// wireErrorType marks a body that is a wire.Error in JSON.
const wireErrorType = "application/vnd.caponier.error+json"

// upgrade does the server's part of RFC 6455 §4.2 and leaves a deadline of
// timeout on the connection.
func upgrade(w http.ResponseWriter, r *http.Request, answer http.Header, timeout time.Duration) (*wsConn, error) {
	key := r.Header.Get("Sec-WebSocket-Key")
	raw, err := base64.StdEncoding.DecodeString(key)
	switch {
	case r.Method != http.MethodGet || r.ProtoMajor != 1,
		!hasToken(r.Header, "Connection", "upgrade"),
		!hasToken(r.Header, "Upgrade", "websocket"),
		r.Header.Get("Sec-WebSocket-Version") != "13",
		err != nil || len(raw) != 16:
		e := wire.Errorf(wire.CodeBadRequest, "a websocket over HTTP/1.1 is expected here")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Version", "13")
		refuseUpgrade(w, http.StatusUpgradeRequired, e)
		return nil, e
	}
	h, ok := w.(http.Hijacker)
	if !ok {
		if u, can := w.(interface{ Unwrap() http.ResponseWriter }); can {
			return upgrade(u.Unwrap(), r, answer, timeout)
		}
		e := wire.Errorf(wire.CodeInternal, "%s", wire.CodeInternal.Text())
		refuseUpgrade(w, http.StatusInternalServerError, e)
		return nil, errors.New("the response writer cannot be hijacked")
	}
	nc, rw, err := h.Hijack()
	if err != nil {
		return nil, fmt.Errorf("hijack: %w", err)
	}
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	if err := nc.SetDeadline(time.Now().Add(timeout)); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("hijack: %w", err)
	}
	var b strings.Builder
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ")
	b.WriteString(acceptKey(key))
	b.WriteString("\r\n")
	// What the handler before us set (a sticky cookie) belongs into the answer.
	for _, name := range []string{"Set-Cookie"} {
		for _, v := range w.Header().Values(name) {
			b.WriteString(name + ": " + v + "\r\n")
		}
	}
	if err := answer.Write(&b); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("answer upgrade: %w", err)
	}
	b.WriteString("\r\n")
	if _, err := nc.Write([]byte(b.String())); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("answer upgrade: %w", err)
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	return newWSConn(nc, false, early), nil
}

// acceptKey is RFC 6455 §4.2.2, item 5.4.
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}
