package edge

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// RefusedError is a refusal by core itself that waiting does not change: the
// node must stop and tell a person.
type RefusedError struct {
	Doing string // "enrol", "connect"
	Wire  *wire.Error
}

// Error implements error.
func (e *RefusedError) Error() string { return e.Doing + ": core refused: " + e.Wire.Public }

// Unwrap returns the *wire.Error.
func (e *RefusedError) Unwrap() error { return e.Wire }

// ErrWrongCore is returned when the server at the URL does not hold the key
// that the enrolment token names: a wrong URL, or somebody in between.
var ErrWrongCore = errors.New("the server at this address is not the core that made the token")

// ErrNoToken is returned when a node has neither an identity nor a token.
var ErrNoToken = errors.New("this node is not enrolled and has no enrolment token")

// enrolTimeout bounds one attempt to enrol.
const enrolTimeout = 40 * time.Second

// enrol gets an identity, trying until core answers or ctx ends. The key is
// stored before it is shown, so that an answer that was lost is asked for again.
func (e *Edge) enrol(ctx context.Context) (*identity, error) {
	id, err := e.store.load()
	if err != nil {
		return nil, err
	}
	if id != nil && id.NodeID != "" {
		if id.Kind != e.c.Kind {
			return nil, fmt.Errorf("state directory %s holds the identity of a node of kind %s, not %s", e.store.dir, id.Kind, e.c.Kind)
		}
		return id, nil
	}
	if e.c.Token == "" {
		return nil, ErrNoToken
	}
	token, err := wire.ParseToken(e.c.Token.Reveal())
	if err != nil {
		return nil, err
	}
	if id == nil || id.Kind != e.c.Kind {
		if id, err = newIdentity(e.c.Kind); err != nil {
			return nil, err
		}
		if err := e.store.save(id); err != nil {
			return nil, err
		}
	}
	for b := (backoff{}); ; {
		done, err := e.enrolOnce(ctx, id, token)
		if err == nil {
			e.log.Info("enrolled", telemetry.KeyNode, done.Name, "id", done.NodeID, "site", done.Site)
			return done, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if we, ok := errors.AsType[*RefusedError](err); ok && we.Wire.Code != wire.CodeInternal && we.Wire.Code != wire.CodeLimit {
			return nil, err
		}
		if errors.Is(err, ErrWrongCore) {
			return nil, err
		}
		wait := b.next(err)
		e.log.Warn("enrolment failed, trying again", "core", e.c.URL, "in", wait.Round(time.Millisecond), telemetry.KeyErr, err)
		if !sleep(ctx, wait) {
			return nil, ctx.Err()
		}
	}
}

func (e *Edge) enrolOnce(ctx context.Context, id *identity, token wire.Token) (*identity, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	csr, err := id.request()
	if err != nil {
		return nil, err
	}
	at, err := withPath(e.c.URL, wire.PathEnrol)
	if err != nil {
		return nil, err
	}
	conn, err := tunnel.DialPinned(ctx, at, token.Pin)
	if err != nil {
		if errors.Is(err, tunnel.ErrIdentity) {
			return nil, fmt.Errorf("enrol at %s: %w: %w", e.c.URL, ErrWrongCore, err)
		}
		return nil, fmt.Errorf("enrol at %s: %w", e.c.URL, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(enrolTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = json.NewEncoder(conn).Encode(wire.EnrolRequest{Version: wire.Version, TokenID: token.ID, Secret: token.Secret,
		Kind: e.c.Kind, Name: e.c.Name, CSR: csr, Host: e.place, Build: e.c.Build})
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", e.c.URL, err)
	}
	var resp wire.EnrolResponse
	if err := json.NewDecoder(io.LimitReader(conn, wire.MaxControlBody)).Decode(&resp); err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", e.c.URL, err)
	}
	if resp.Error != nil {
		return nil, &RefusedError{Doing: "enrol", Wire: resp.Error}
	}
	done := &identity{NodeID: resp.NodeID, Name: resp.Name, Kind: e.c.Kind, Site: resp.Site,
		Key: id.Key, Cert: resp.Certificate, Roots: resp.Roots}
	if err := done.parse(); err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", e.c.URL, err)
	}
	if !pinned(resp.Roots, token.Pin) {
		return nil, fmt.Errorf("enrol at %s: %w", e.c.URL, ErrWrongCore)
	}
	return done, e.store.save(done)
}

// pinned reports whether every root is on the pinned key.
func pinned(roots [][]byte, pin [sha256.Size]byte) bool {
	for _, der := range roots {
		c, err := x509.ParseCertificate(der)
		if err != nil || sha256.Sum256(c.RawSubjectPublicKeyInfo) != pin {
			return false
		}
	}
	return len(roots) > 0
}

// withPath replaces the path of a URL.
func withPath(raw, path string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return "", fmt.Errorf("core address %q must look like https://core.example", raw)
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + path
	u.RawQuery, u.Fragment = "", ""
	return u.String(), nil
}
