// Package signin keeps the ways to sign in to the console besides the password:
// passkeys (WebAuthn), single sign-on (OpenID Connect), client certificates,
// and the one-time code that makes the first administrator. It checks proofs;
// who somebody is and what he may do is decided in user, which also opens the
// session, limits attempts and audits them.
//
// Invariants:
//   - What is handed to a browser to bring back (challenges, tickets, the state
//     of a single sign-on) is sealed by the vault, expires, and counts once, on
//     every core.
//   - A foreign identity is somebody here only by a link: made by himself while
//     signed in, by an administrator, on creation, or by a rule an administrator
//     switched on. An address the provider does not call verified links nobody.
//   - Who may say who comes in may be anybody: managing providers and
//     certificate authorities needs every permission.
//   - Whatever cannot be checked is refused.
package signin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
)

// Sealer keeps small secrets; *vault.Vault is one.
type Sealer interface {
	Seal(p vault.Place, plaintext []byte) ([]byte, error)
	Open(p vault.Place, sealed []byte) ([]byte, error)
}

// Config is what a Service needs. DB, Audit, Users, Sealer and URL are required.
type Config struct {
	DB     *db.DB
	Audit  *audit.Log
	Users  *user.Service
	Sealer Sealer
	// URL is how people reach the console: passkeys and providers are bound to it.
	URL *url.URL
	// CertificateURL is how people reach the door for client certificates, on
	// the same host; empty = it is off.
	CertificateURL string
	// Settings may be nil: every default.
	Settings *settings.Service
	// Transport carries requests to providers; nil = http.DefaultTransport.
	Transport *http.Transport
	Now       func() time.Time
	Log       *slog.Logger
}

// Service is the room's entry. Safe for concurrent use.
type Service struct {
	db       *db.DB
	audit    *audit.Log
	users    *user.Service
	sealer   Sealer
	url      *url.URL
	certURL  string
	settings *settings.Service
	now      func() time.Time
	log      *slog.Logger

	// passkeys is nil when the console's address cannot have any (an IP
	// address, a name without a domain).
	passkeys  *webauthn.WebAuthn
	providers *providerCache
	anchors   *anchorCache
}

// New makes the room on a migrated database.
func New(c Config) (*Service, error) {
	if c.DB == nil || c.Audit == nil || c.Users == nil || c.Sealer == nil || c.URL == nil {
		return nil, errors.New("signin: DB, Audit, Users, Sealer and URL are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		db: c.DB, audit: c.Audit, users: c.Users, sealer: c.Sealer, url: c.URL, certURL: c.CertificateURL,
		settings: c.Settings, now: c.Now, log: c.Log,
		providers: newProviderCache(c.Transport), anchors: newAnchorCache(),
	}
	var err error
	if s.passkeys, err = relyingParty(c.URL); err != nil {
		return nil, fmt.Errorf("signin: %w", err)
	}
	return s, nil
}

// relyingParty is the side of WebAuthn that core is. An IP address or a name
// without a domain cannot be a relying party (WebAuthn §4, "Relying Party
// Identifier"): nil then, and there are no passkeys.
func relyingParty(u *url.URL) (*webauthn.WebAuthn, error) {
	if protocol.ValidateRPID(u.Hostname()) != nil {
		return nil, nil
	}
	return webauthn.New(&webauthn.Config{
		RPID: u.Hostname(), RPDisplayName: "Caponier", RPOrigins: []string{origin(u)},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementPreferred, UserVerification: protocol.VerificationPreferred,
		},
	})
}

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// Run keeps the room tidy, keeps a set-up code alive while there is no
// administrator, and fetches revocation lists, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if err := s.offerSetup(ctx, true); err != nil && ctx.Err() == nil {
		s.log.Error("cannot make a set-up code; run: caponier-core admin code", "err", err)
	}
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		s.fetchCRLs(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := s.db.ExecContext(ctx, sqlSpentPurge, s.now().UnixMicro()); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot tidy used challenges", "err", err)
		}
		if _, err := s.db.ExecContext(ctx, sqlLogoutsPurge, s.now().Add(-logoutsKept).UnixMicro()); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot tidy logouts of single sign-on providers", "err", err)
		}
		if err := s.offerSetup(ctx, false); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot renew the set-up code", "err", err)
		}
	}
}

const tidyEvery = 10 * time.Minute
