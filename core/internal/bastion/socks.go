package bastion

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/user"
	"caponier/shared/wire"
)

// SOCKS5 (RFC 1928) and its username/password method (RFC 1929).
const (
	socksVersion   = 5
	authVersion    = 1
	methodNone     = 0
	methodPassword = 2
	methodRefused  = 0xff
	cmdConnect     = 1
	addrIPv4       = 1
	addrName       = 3
	addrIPv6       = 4

	replyOK          = 0
	replyFailure     = 1
	replyForbidden   = 2
	replyUnreachable = 4
	replyConnRefused = 5
	replyCommand     = 7
	replyAddress     = 8
)

// errSOCKS is any malformed SOCKS message.
var errSOCKS = errors.New("malformed SOCKS message")

// serveSOCKS serves one SOCKS client. With a name and password it relays raw
// bytes to a target. Without, it turns into an SSH connection to the bastion
// with the destination preset: the user proves himself there, and until then
// learns nothing about the destination.
func (s *Server) serveSOCKS(soft, hard context.Context, nc net.Conn) {
	log := s.cfg.Log.With("remote", nc.RemoteAddr().String())
	_ = nc.SetDeadline(time.Now().Add(s.limits.SOCKSTimeout))
	stop := context.AfterFunc(soft, func() { _ = nc.Close() })
	defer stop()
	method, err := readGreeting(nc)
	if err != nil {
		log.Debug("socks greeting", "err", err)
		return
	}
	if _, err := nc.Write([]byte{socksVersion, method}); err != nil || method == methodRefused {
		return
	}
	if method == methodNone {
		host, port, code, err := readRequest(nc)
		if err != nil || code != replyOK {
			_ = writeReply(nc, code)
			return
		}
		if writeReply(nc, replyOK) != nil || !stop() {
			return
		}
		s.serveSSHTo(soft, hard, nc, preset(host, port))
		return
	}
	p, account, err := s.socksLogin(hard, nc)
	if err != nil {
		log.Debug("socks login", "err", err)
		return
	}
	host, port, code, err := readRequest(nc)
	if err != nil || code != replyOK {
		_ = writeReply(nc, code)
		return
	}
	if st, ok := nc.(*startupConn); ok {
		st.release()
	}
	if !stop() {
		return
	}
	if err := s.socksRelay(hard, nc, p, account, host, port); err != nil {
		log.Info("socks connection refused", "user", p.UserName, "reason", s.public(err))
	}
}

// preset is the target reference for a SOCKS destination: a name keeps its
// port so that it must match the target's.
func preset(host string, port int) string {
	_, address := destination(host, port)
	return address
}

// readGreeting reads the methods offered and picks one; a client that can
// give a password is asked for it.
func readGreeting(r io.Reader) (method byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	if head[0] != socksVersion || head[1] == 0 {
		return 0, errSOCKS
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(r, methods); err != nil {
		return 0, err
	}
	method = methodRefused
	for _, m := range methods {
		if m == methodPassword {
			return methodPassword, nil
		}
		if m == methodNone {
			method = methodNone
		}
	}
	return method, nil
}

// readAuth reads the name and password of RFC 1929 §2.
func readAuth(r io.Reader) (name, password string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", "", err
	}
	if head[0] != authVersion || head[1] == 0 {
		return "", "", errSOCKS
	}
	buf := make([]byte, int(head[1])+1)
	if _, err := io.ReadFull(r, buf); err != nil {
		return "", "", err
	}
	pw := make([]byte, buf[head[1]])
	if _, err := io.ReadFull(r, pw); err != nil {
		return "", "", err
	}
	return string(buf[:head[1]]), string(pw), nil
}

// readRequest reads a request (RFC 1928 §4). code is what to answer when it
// is not replyOK.
func readRequest(r io.Reader) (host string, port int, code byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", 0, replyFailure, err
	}
	if head[0] != socksVersion || head[2] != 0 {
		return "", 0, replyFailure, errSOCKS
	}
	var size int
	switch head[3] {
	case addrIPv4:
		size = 4
	case addrIPv6:
		size = 16
	case addrName:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return "", 0, replyFailure, err
		}
		size = int(n[0])
	default:
		return "", 0, replyAddress, nil
	}
	buf := make([]byte, size+2)
	if _, err := io.ReadFull(r, buf); err != nil {
		return "", 0, replyFailure, err
	}
	port = int(binary.BigEndian.Uint16(buf[size:]))
	if head[3] == addrName {
		host = string(buf[:size])
	} else {
		ip, _ := netip.AddrFromSlice(buf[:size])
		host = ip.Unmap().String()
	}
	switch {
	case head[1] != cmdConnect:
		return "", 0, replyCommand, nil
	case port == 0 || host == "" || !nameBytes(host):
		return "", 0, replyAddress, nil
	}
	return host, port, replyOK, nil
}

// nameBytes reports whether a destination is made of plain characters.
func nameBytes(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func writeReply(w io.Writer, code byte) error {
	_, err := w.Write([]byte{socksVersion, code, 0, addrIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

// socksLogin checks "user" or "user%account" with a password or API token.
func (s *Server) socksLogin(ctx context.Context, nc net.Conn) (*api.Principal, string, error) {
	name, password, err := readAuth(nc)
	if err != nil {
		return nil, "", err
	}
	n, err := parseName(name, s.cfg.Separator())
	if err != nil || n.Account != "" {
		n = loginName{User: "?"} // fails like any wrong name
	}
	p, err := s.cfg.Users.Login(ctx, user.Credentials{Name: n.User, Password: password, Source: addrOf(nc.RemoteAddr()), Via: "socks"})
	status := byte(0)
	if err != nil {
		status = 1
	}
	if _, werr := nc.Write([]byte{authVersion, status}); werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		return nil, "", fmt.Errorf("login: %w", err)
	}
	return p, n.Target, nil
}

// socksRelay connects an authenticated client with its destination.
func (s *Server) socksRelay(ctx context.Context, nc net.Conn, p *api.Principal, account, host string, port int) error {
	source := addrOf(nc.RemoteAddr())
	q, v, err := s.rawTarget(ctx, p, source, ask{want: access.Forward, kind: "socks", account: account}, host, port)
	if err != nil {
		_ = writeReply(nc, replyFor(err))
		return err
	}
	u, err := s.open(ctx, p, source, "SOCKS5", q, v)
	if err != nil {
		_ = writeReply(nc, replyFor(err))
		return err
	}
	_ = nc.SetDeadline(time.Now().Add(s.limits.Dial + s.limits.SOCKSTimeout))
	far, err := s.dialRaw(ctx, u)
	if err != nil {
		u.end(endReason(err), err)
		_ = writeReply(nc, replyFor(err))
		return err
	}
	if err := writeReply(nc, replyOK); err != nil {
		_ = far.Close()
		u.end(endReason(errUserGone), nil)
		return nil
	}
	_ = nc.SetDeadline(time.Time{})
	near := watch(nc)
	near.established()
	var wg sync.WaitGroup
	err = s.join(ctx, &wg, u, near, nil, far)
	u.end(endReason(err), hardError(err))
	wg.Wait()
	return nil
}

// replyFor maps an error to a SOCKS reply code.
func replyFor(err error) byte {
	if _, ok := errors.AsType[*refusal](err); ok {
		return replyForbidden
	}
	if w, ok := errors.AsType[*wire.Error](err); ok {
		switch w.Code {
		case wire.CodeRefused:
			return replyForbidden
		case wire.CodeConnRefused:
			return replyConnRefused
		case wire.CodeDNS, wire.CodeUnreachable, wire.CodeTimeout, wire.CodeTunnelLost:
			return replyUnreachable
		}
	}
	return replyFailure
}
