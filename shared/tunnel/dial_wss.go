package tunnel

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"caponier/shared/wire"
)

// maxAnswer bounds the head of an answer to a request of ours, in bytes.
const maxAnswer = 64 << 10

// dialWSS opens a tunnel over a websocket.
//
// The outer TLS certificate is not checked: whoever ends that connection,
// core or not, must bring core's proof for it, or carry inner TLS with core
// unseen. It learns our certificate and the load balancer's cookies, no more.
func dialWSS(ctx context.Context, cfg DialConfig) (Session, error) {
	u, err := tunnelURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	nc, err := dialOuter(ctx, u, cfg)
	if err != nil {
		return nil, err
	}
	release := boundTo(ctx, nc)
	s, err := startWSS(ctx, nc, u, cfg)
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		if s != nil {
			s.fail(err)
			s.workers.Wait()
		}
		_ = nc.Close()
		return nil, fmt.Errorf("dial tunnel %s: %w", u.Host, err)
	}
	return s, nil
}

func startWSS(ctx context.Context, nc net.Conn, u *url.URL, cfg DialConfig) (*muxSession, error) {
	header := cfg.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	nonce := websocketKey()
	header.Set(headerVersion, strconv.Itoa(wire.Version))
	header.Set(headerChain, cfg.Identity.chainText())
	var cs *tls.ConnectionState
	if tc, ok := nc.(*tls.Conn); ok {
		state := tc.ConnectionState()
		cs = &state
		if text, err := proofText(proofOfClient, cs, nonce); err == nil {
			sig, err := cfg.Identity.prove(text)
			if err != nil {
				return nil, err
			}
			header.Set(headerSignature, sig)
		}
	}
	ws, answer, err := askUpgrade(nc, u, nonce, header, cfg.OnResponse)
	if err != nil {
		return nil, err
	}
	if v := answer.Get(headerVersion); v != "" {
		if n, err := strconv.Atoi(v); err != nil || !wire.Compatible(n) {
			return nil, wire.Errorf(wire.CodeVersion, "core speaks tunnel version %.8s, this node %d", v, wire.Version)
		}
	}
	info := Info{Transport: WSS, Binding: InnerTLS, Remote: addrPort(nc.RemoteAddr())}
	var l link = ws
	switch answer.Get(headerBinding) {
	case string(BoundTLS):
		info.Binding = BoundTLS
		chain, err := parseChain(answer.Get(headerChain))
		if err != nil {
			return nil, err
		}
		if info.Peer, err = cfg.Identity.verifyCore(chain); err != nil {
			return nil, err
		}
		text, err := proofText(proofOfCore, cs, nonce)
		if err != nil {
			return nil, err
		}
		if !proves(info.Peer, text, answer.Get(headerSignature)) {
			return nil, fmt.Errorf("%w: core's proof does not fit this TLS connection", ErrIdentity)
		}
		if err := wantCore(info.Peer, cfg.CoreID); err != nil {
			return nil, err
		}
		ws.bare = true
	case string(InnerTLS):
		g := &gatherConn{wsConn: ws}
		tc := tls.Client(g, cfg.Identity.clientTLS(cfg.CoreID))
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("inner TLS: %w", err)
		}
		info.Peer = tc.ConnectionState().PeerCertificates[0]
		l = &innerLink{Conn: tc, gather: g}
	default:
		return nil, fmt.Errorf("%w: the answer names no binding", ErrIdentity)
	}
	return newMuxSession(l, true, info, cfg.Limits), nil
}

// DialPinned opens a byte pipe to a core whose CA is known only by the
// SHA-256 of its SubjectPublicKeyInfo: a websocket at rawURL (wss, https, ws or
// http) with TLS 1.3 inside. The client shows no certificate.
func DialPinned(ctx context.Context, rawURL string, pin [32]byte) (net.Conn, error) {
	u, err := tunnelURL(rawURL)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	nc, err := dialOuter(ctx, u, DialConfig{})
	if err != nil {
		return nil, err
	}
	release := boundTo(ctx, nc)
	tc, err := func() (*tls.Conn, error) {
		ws, _, err := askUpgrade(nc, u, websocketKey(), http.Header{}, nil)
		if err != nil {
			return nil, err
		}
		tc := tls.Client(ws, pinnedTLS(pin))
		return tc, tc.HandshakeContext(ctx)
	}()
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("dial %s: %w", u.Host, err)
	}
	return tc, nil
}

// tunnelURL reads a core's address. ws and wss mean http and https.
func tunnelURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("core URL: %w", err)
	}
	switch u.Scheme {
	case "wss":
		u.Scheme = "https"
	case "ws":
		u.Scheme = "http"
	case "http", "https":
	default:
		return nil, fmt.Errorf("core URL %.100q: want https://host[:port]", raw)
	}
	if u.Hostname() == "" || u.User != nil {
		return nil, fmt.Errorf("core URL: want https://host[:port]")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = wire.PathTunnel
	}
	return u, nil
}

// dialOuter connects to u's host, through a proxy if one is set, and does the
// outer TLS handshake for https.
func dialOuter(ctx context.Context, u *url.URL, cfg DialConfig) (net.Conn, error) {
	choose := cfg.Proxy
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	via, err := choose(&http.Request{URL: u})
	if err != nil {
		return nil, fmt.Errorf("proxy for %s: %w", u.Host, err)
	}
	addr := hostPort(u)
	first := addr
	if via != nil {
		if via.Scheme != "http" && via.Scheme != "https" {
			return nil, fmt.Errorf("proxy for %s: scheme %.20q is not supported, only http and https", u.Host, via.Scheme)
		}
		first = hostPort(via)
	}
	dial := cfg.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	nc, err := dial(ctx, "tcp", first)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", first, err)
	}
	release := boundTo(ctx, nc)
	top, err := func() (net.Conn, error) {
		top := nc
		if via != nil {
			if top, err = throughProxy(ctx, nc, via, addr); err != nil {
				return nil, fmt.Errorf("proxy %s: %w", via.Host, err)
			}
		}
		top = newCorkedConn(top)
		if u.Scheme != "https" {
			return top, nil
		}
		tc := tls.Client(top, &tls.Config{
			ServerName:                  u.Hostname(),
			MinVersion:                  tls.VersionTLS12, // of whatever stands in between
			NextProtos:                  []string{"http/1.1"},
			DynamicRecordSizingDisabled: true,
			InsecureSkipVerify:          true, // see dialWSS: the proof is what counts
		})
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS with %s: %w", addr, err)
		}
		return tc, nil
	}()
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return top, nil
}

// throughProxy asks an HTTP proxy for a connection to addr (RFC 9110 §9.3.6).
func throughProxy(ctx context.Context, nc net.Conn, via *url.URL, addr string) (net.Conn, error) {
	if via.Scheme == "https" {
		tc := tls.Client(nc, &tls.Config{ServerName: via.Hostname(), NextProtos: []string{"http/1.1"}})
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		nc = tc
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if user := via.User; user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(nc); err != nil {
		return nil, err
	}
	br := bufio.NewReader(io.LimitReader(nc, maxAnswer))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	if br.Buffered() > 0 {
		return nil, errors.New("the proxy speaks before it is asked")
	}
	return nc, nil
}

// askUpgrade does the client's part of RFC 6455 §4.1.
func askUpgrade(nc net.Conn, u *url.URL, key string, header http.Header, onResponse func(int, http.Header)) (*wsConn, http.Header, error) {
	req := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header}
	header.Set("Connection", "Upgrade")
	header.Set("Upgrade", "websocket")
	header.Set("Sec-WebSocket-Version", "13")
	header.Set("Sec-WebSocket-Key", key)
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", "caponier")
	}
	w := bufio.NewWriter(nc)
	if err := req.Write(w); err != nil {
		return nil, nil, fmt.Errorf("ask for upgrade: %w", err)
	}
	if err := w.Flush(); err != nil {
		return nil, nil, fmt.Errorf("ask for upgrade: %w", err)
	}
	br := bufio.NewReader(io.LimitReader(nc, maxAnswer))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, nil, fmt.Errorf("answer to upgrade: %w", err)
	}
	if onResponse != nil {
		onResponse(resp.StatusCode, resp.Header)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, nil, refusal(resp)
	}
	if !hasToken(resp.Header, "Upgrade", "websocket") || resp.Header.Get("Sec-WebSocket-Accept") != acceptKey(key) {
		return nil, nil, fmt.Errorf("%w: not the answer to this request", errWebsocket)
	}
	early, _ := br.Peek(br.Buffered())
	return newWSConn(nc, true, early), resp.Header, nil
}

// refusal reads an answer that is no upgrade. The caller closes the connection.
func refusal(resp *http.Response) error {
	e := &RefusedError{Status: resp.StatusCode}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 && n < 86400 {
		e.RetryAfter = time.Duration(n) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // what came is enough
	if resp.Header.Get("Content-Type") == wireErrorType {
		var we wire.Error
		if json.Unmarshal(body, &we) == nil {
			// Through the codec, which limits code and text.
			e.Wire, _ = wire.ParseError(wire.AppendError(nil, &we))
		}
	}
	e.Text = wire.Errorf(wire.CodeInternal, "%s", strings.TrimSpace(strings.ToValidUTF8(string(body), "?"))).Public
	return e
}

// boundTo makes ctx's end, and its deadline, that of I/O on nc until release
// is called, which returns ctx's error if it came too late.
func boundTo(ctx context.Context, nc net.Conn) (release func() error) {
	if t, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(t)
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = nc.SetDeadline(time.Unix(1, 0))
	})
	return func() error {
		if !stop() {
			<-done
			return ctx.Err()
		}
		return nc.SetDeadline(time.Time{})
	}
}

func websocketKey() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.StdEncoding.EncodeToString(b[:])
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}
