package signin

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

// A session that a client certificate opened keeps the names of the
// certificates it was accepted by, so that it ends with the first of them that
// is revoked, and with the trust in the one at the end of the path. What only
// keeps others from signing in ends nothing: a list past its next update, or a
// certificate that expires while the session lives, which has limits of its own.

const sqlAnchorVersion = `select version from certificate_anchors where id = $1`

// maxPath bounds the names of a path, in bytes: they travel in a cookie, and
// browsers keep none over 4096 bytes. It is enough for 20 certificates.
const maxPath = 1400

// authorityName names whoever has an authority's name and key, whatever
// certificate says so: it may be renewed, or signed by several.
func authorityName(c *x509.Certificate) string {
	subject := sha256.Sum256(c.RawSubject)
	h := sha256.Sum256(append(subject[:], c.RawSubjectPublicKeyInfo...))
	return base64.RawURLEncoding.EncodeToString(h[:16])
}

func serialName(n *big.Int) string { return n.Text(16) }

// pathNames names the certificates of a verified path, leaf first, separated by
// spaces: each by its issuer and serial number (RFC 5280 §4.1.2.2), the one
// that is trusted as an authority.
func pathNames(path []*x509.Certificate) string {
	var names []string
	for i, c := range path[:len(path)-1] {
		names = append(names, authorityName(path[i+1])+"."+serialName(c.SerialNumber))
	}
	return strings.Join(append(names, authorityName(path[len(path)-1])), " ")
}

// holds reports whether certificates that were accepted by the names of path
// would not be refused now for what they are.
func (t trust) holds(path string) error {
	names := strings.Fields(path)
	if len(names) == 0 || !t.trusted[names[len(names)-1]] {
		return errForeign
	}
	for _, name := range names[:len(names)-1] {
		issuer, serial, _ := strings.Cut(name, ".")
		if t.listed[issuer][serial] {
			return errRevoked
		}
	}
	return nil
}

// lockAnchor makes opening a session by an authority's certificate and changing
// the authority wait for each other: a session is either seen by the change, or
// sees it.
func lockAnchor(ctx context.Context, tx *db.Tx, id string) error {
	return tx.Lock(ctx, "certificate_anchor "+id)
}

// endUntrusted ends, in the transaction that changed the authority, what came
// by certificates that are not good any more, and returns what to audit: an
// event for each path.
func (s *Service) endUntrusted(ctx context.Context, tx *db.Tx, by audit.Actor, a Anchor) ([]audit.Event, error) {
	paths, err := s.users.SessionsAt(ctx, tx, a.ID)
	if err != nil || len(paths) == 0 {
		return nil, err
	}
	t, err := newTrust(a)
	if err != nil {
		return nil, err
	}
	var events []audit.Event
	for _, path := range paths {
		why := t.holds(path)
		if why == nil {
			continue
		}
		users, err := s.users.EndSessionsAt(ctx, tx, user.Origin{Provider: a.ID, Session: path}, "")
		if err != nil {
			return nil, err
		}
		leaf, _, _ := strings.Cut(path, " ")
		_, serial, _ := strings.Cut(leaf, ".")
		events = append(events, audit.Event{Type: audit.AnchorEnded, Outcome: audit.OK, Actor: by, Object: a.object(),
			Fields: map[string]string{"reason": reasons[why], "sessions": fmt.Sprint(len(users)), "serial": serial,
				"user": strings.Join(slices.Compact(slices.Sorted(slices.Values(users))), " ")}})
	}
	return events, nil
}

// stands asks, as part of q, whether what a ticket was made by is good still;
// reason says why not.
func (s *Service) stands(ctx context.Context, q db.Querier, t ticket) (reason, err error) {
	var version int64
	err = db.Classify(q.QueryRowContext(ctx, sqlAnchorVersion, t.Anchor).Scan(&version))
	var now trust
	if err == nil {
		now, err = s.trust(ctx, q, t.Anchor, version)
	}
	switch {
	case errors.Is(err, db.ErrNotFound):
		return errForeign, nil
	case err != nil:
		return nil, fmt.Errorf("judge a certificate again: %w", err)
	case !now.anchor.Enabled:
		return errForeign, nil
	}
	return now.holds(t.Path), nil
}

// redeem turns a ticket into a login. It works once, from where it was made.
func (s *Service) redeem(ctx context.Context, kept string, source netip.Addr) (t ticket, p *api.Principal, err error) {
	if err := s.openState(ticketKind, kept, &t); err != nil {
		return t, nil, err
	}
	if t.Source != source.Unmap() {
		return t, nil, errStale
	}
	if err := s.spend(ctx, s.db, kept, ticketLife); err != nil {
		return t, nil, err
	}
	// The authority may have lost its trust since the ticket was made, or the
	// certificate its own.
	reason, err := s.stands(ctx, s.db, t)
	if err != nil {
		return t, nil, err
	}
	if reason != nil {
		return t, nil, s.refuseTicket(ctx, t, reason)
	}
	p, err = s.users.Arrive(ctx, t.arrival())
	if err != nil {
		return t, nil, user.LoginProblem(err)
	}
	return t, p, nil
}

// openSession opens the session of a ticket that was redeemed, unless what it
// was made by has become worthless since.
func (s *Service) openSession(ctx context.Context, t ticket, p *api.Principal, agent string) (*user.LoginOutput, error) {
	var reason error
	out, err := s.users.AnswerIf(ctx, p, user.CookieSession, agent, user.Origin{Provider: t.Anchor, Session: t.Path}, func(tx *db.Tx) (err error) {
		if err := lockAnchor(ctx, tx, t.Anchor); err != nil {
			return err
		}
		if reason, err = s.stands(ctx, tx, t); err == nil && reason != nil {
			err = errStale
		}
		return err
	})
	if reason != nil {
		return nil, s.refuseTicket(ctx, t, reason)
	}
	return out, err
}

func (t ticket) arrival() user.Arrival {
	return user.Arrival{UserID: t.UserID, Methods: []string{"certificate"}, MFA: t.MFA, Source: t.Source, Via: "console",
		Fields: map[string]string{"fingerprint": t.Fingerprint, "anchor": t.Anchor}}
}

// refuseTicket audits why a ticket is worth nothing. At the door the person
// reads the reason.
func (s *Service) refuseTicket(ctx context.Context, t ticket, reason error) error {
	if err := s.users.RefuseArrival(ctx, t.arrival(), reasons[reason]); err != nil {
		return err
	}
	return errStale
}
