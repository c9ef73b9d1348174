package upstream

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"caponier/shared/dial"
	"caponier/shared/webrule"
)

const (
	// askRevocation bounds all questions about one certificate.
	askRevocation = 6 * time.Second
	// maxAnswer and maxList bound what an authority may send, in bytes.
	maxAnswer = 64 << 10
	maxList   = 4 << 20
	// keepAnswer is how long an answer counts at most, whatever it says itself.
	keepAnswer = time.Hour
	// keepSilence is how long an authority that gave no answer is not asked again.
	keepSilence = 30 * time.Second
	// maxKept bounds the answers that are kept.
	maxKept = 4096
	// maxSources is how many of the addresses a certificate names are asked.
	maxSources = 2
)

// Revocations remembers what authorities said about certificates, for all
// sessions: an answer is signed by the authority, whoever asked. Safe for
// concurrent use.
type Revocations struct {
	now func() time.Time

	mu    sync.Mutex
	kept  map[[sha256.Size]byte]kept          // guarded by mu
	under map[[sha256.Size]byte]chan struct{} // guarded by mu; questions under way
}

// kept is an answer, or the lack of one.
type kept struct {
	status status
	until  time.Time
}

// NewRevocations makes an empty memory; now may be nil.
func NewRevocations(now func() time.Time) *Revocations {
	if now == nil {
		now = time.Now
	}
	return &Revocations{now: now, kept: map[[sha256.Size]byte]kept{}, under: map[[sha256.Size]byte]chan struct{}{}}
}

// status is what is known of a certificate. The zero value is: nothing.
type status struct {
	good    bool
	revoked *RevokedError
	// why is why nothing is known; public.
	why string
}

// RevokedError is a certificate that its authority has revoked.
type RevokedError struct {
	At time.Time
	// Name is the certificate's subject, when it is not the server's own.
	Name string
}

// Error implements error.
func (e *RevokedError) Error() string {
	if e.Name != "" {
		return fmt.Sprintf("the certificate of the authority %s was revoked on %s", e.Name, e.At.UTC().Format(time.DateOnly))
	}
	return "the certificate was revoked on " + e.At.UTC().Format(time.DateOnly)
}

// UnknownStatusError is a certificate of which it must be known, and is not,
// that it was not revoked.
type UnknownStatusError struct{ Why string }

// Error implements error.
func (e *UnknownStatusError) Error() string {
	return "it could not be found out whether the certificate was revoked: " + e.Why
}

// checkRevocation decides on a server's chain after it was verified. A note
// says what was not found out where that is permitted.
func (u *Upstream) checkRevocation(ctx context.Context, cs *tls.ConnectionState) (note string, err error) {
	if len(cs.VerifiedChains) == 0 {
		return "", nil // nothing is believed of this server
	}
	mode := u.c.Policy.TLS.Revocation
	chain := cs.VerifiedChains[0]
	for i, cert := range chain[:len(chain)-1] {
		var staple []byte
		if i == 0 {
			staple = cs.OCSPResponse
		}
		s := u.status(ctx, cert, chain[i+1], staple, mode == webrule.RevocationSoft || mode == webrule.RevocationHard)
		switch {
		case s.revoked != nil:
			e := *s.revoked
			if i > 0 {
				e.Name = clip(cert.Subject.CommonName, 100)
			}
			return "", &e
		case s.good:
		case mode == webrule.RevocationHard:
			return "", &UnknownStatusError{s.why}
		case mode == webrule.RevocationSoft && note == "":
			note = "unknown: " + s.why
		}
	}
	return note, nil
}

// status finds out about one certificate; without ask from the staple alone.
func (u *Upstream) status(ctx context.Context, cert, issuer *x509.Certificate, staple []byte, ask bool) status {
	now := u.revocations.now()
	if len(staple) > 0 {
		if s, _, err := readOCSP(staple, cert, issuer, now); err == nil && (s.good || s.revoked != nil) {
			return s
		}
	}
	switch {
	case !ask:
		return status{}
	case mustStaple(cert):
		return status{why: "the server brings no current answer of its authority along, as its certificate says it does"}
	case hasExtension(cert, oidNoRevAvail):
		return status{good: true} // so short-lived that its authority revokes none (RFC 9608)
	}
	return u.revocations.ask(ctx, cert, issuer, u.c.Site, u.fetch)
}

// fetcher gets the body of an authority's answer; post is nil for a GET.
type fetcher func(ctx context.Context, to string, post []byte, limit int64) ([]byte, error)

// ask returns what the certificate's authority says. Answers hold for every
// session, silence for those of the same site: others ask by another way.
func (r *Revocations) ask(ctx context.Context, cert, issuer *x509.Certificate, site string, get fetcher) status {
	key := keyOf(cert, issuer, "")
	silent := keyOf(cert, issuer, "site "+site)
	for {
		r.mu.Lock()
		now := r.now()
		for _, k := range [][sha256.Size]byte{key, silent} {
			if have, ok := r.kept[k]; ok && now.Before(have.until) {
				r.mu.Unlock()
				return have.status
			}
		}
		busy := r.under[silent]
		if busy == nil {
			break // with mu held
		}
		r.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return status{why: "there was no time to ask"}
		}
	}
	done := make(chan struct{})
	r.under[silent] = done
	r.mu.Unlock()
	actx, cancel := context.WithTimeout(ctx, askRevocation)
	defer cancel()
	s, until := inquire(actx, cert, issuer, r.now, get)
	k := key
	if !s.good && s.revoked == nil {
		k, until = silent, r.now().Add(keepSilence)
		if ctx.Err() != nil {
			until = time.Time{} // nobody waited for the answer
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.under, silent)
	close(done)
	r.makeRoomLocked()
	r.kept[k] = kept{s, until}
	return s
}

// makeRoomLocked forgets what is over, and else whatever comes first.
func (r *Revocations) makeRoomLocked() {
	if len(r.kept) < maxKept {
		return
	}
	now := r.now()
	for k, have := range r.kept {
		if !now.Before(have.until) {
			delete(r.kept, k)
		}
	}
	for k := range r.kept { // maps are walked in random order
		if len(r.kept) < maxKept {
			break
		}
		delete(r.kept, k)
	}
}

func keyOf(cert, issuer *x509.Certificate, more string) [sha256.Size]byte {
	h := sha256.New()
	for _, b := range [][]byte{issuer.RawSubjectPublicKeyInfo, issuer.RawSubject, cert.SerialNumber.Bytes(), []byte(more)} {
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// inquire asks by OCSP first, then by revocation list.
func inquire(ctx context.Context, cert, issuer *x509.Certificate, now func() time.Time, get fetcher) (status, time.Time) {
	services, lists := plain(cert.OCSPServer), plain(cert.CRLDistributionPoints)
	if len(services)+len(lists) == 0 {
		return status{why: "the certificate names no OCSP service and no revocation list"}, time.Time{}
	}
	var why string
	failed := func(to string, err error) {
		if why == "" {
			host := to
			if u, err := url.Parse(to); err == nil {
				host = u.Host
			}
			why = clip(host, 100) + " " + err.Error()
		}
	}
	for _, to := range services {
		s, until, err := askOCSP(ctx, to, cert, issuer, now, get)
		if err == nil {
			return s, until
		}
		failed(to, err)
	}
	for _, to := range lists {
		s, until, err := askList(ctx, to, cert, issuer, now, get)
		if err == nil {
			return s, until
		}
		failed(to, err)
	}
	return status{why: why}, time.Time{}
}

// plain are the first http URLs of a list. What is signed needs no TLS, whose
// certificate would have to be asked for in turn (RFC 5280 §8).
func plain(list []string) []string {
	var out []string
	for _, s := range list {
		if u, err := url.Parse(s); err == nil && u.Scheme == "http" && u.Host != "" && u.User == nil && len(s) <= 1024 && len(out) < maxSources {
			out = append(out, s)
		}
	}
	return out
}

// until is how long an answer counts.
func until(now, next time.Time) time.Time {
	if at := now.Add(keepAnswer); next.IsZero() || next.After(at) {
		return at
	}
	return next
}

// fetch asks an authority: through the target's site or at an internal address
// where the target's rules name it, else from here at public addresses only.
// Errors are public.
func (u *Upstream) fetch(ctx context.Context, to string, post []byte, limit int64) ([]byte, error) {
	method, body := http.MethodGet, io.Reader(http.NoBody)
	if post != nil {
		method, body = http.MethodPost, strings.NewReader(string(post))
	}
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, errors.New("is no address")
	}
	req.Header.Set("User-Agent", "")
	if post != nil {
		req.Header.Set("Content-Type", "application/ocsp-request")
		req.Header.Set("Accept", "application/ocsp-response")
	}
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return u.dialResponder(ctx, addr) }}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(req) // follows nothing
	if err != nil {
		if ctx.Err() != nil {
			return nil, errors.New("did not answer in time")
		}
		if refused, ok := errors.AsType[*dial.RefusedError](err); ok {
			return nil, fmt.Errorf("may not be asked: %s; name it among the target's responders if it is meant", refused.Reason.Text())
		}
		return nil, errors.New("does not answer")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answers %d", resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, errors.New("broke its answer off")
	case int64(len(b)) > limit:
		return nil, errors.New("sends more than is read")
	}
	return b, nil
}

func (u *Upstream) dialResponder(ctx context.Context, addr string) (net.Conn, error) {
	if u.c.Policy.TLS.Responder(addr) {
		return u.dial(ctx, "", addr)
	}
	return u.dialBy(ctx, u.public, addr)
}

// internal are networks that a certificate must not have asked by itself: who
// may sign one would reach what only this machine reaches.
var internal = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), // RFC 1918
	netip.MustParsePrefix("100.64.0.0/10"), // RFC 6598
	netip.MustParsePrefix("198.18.0.0/15"), // RFC 2544
	netip.MustParsePrefix("fc00::/7"),      // RFC 4193
}

// publicDialer dials public addresses.
func publicDialer(c Config) *dial.Dialer {
	return dial.New(dial.Config{Rules: dial.Rules{Deny: append(slices.Clip(c.Deny), internal...)}, Resolver: c.Resolver, Timeout: askRevocation})
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}
