package sshca

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Life times of certificates. They begin clockSkew back.
const (
	MaxTargetTTL = 10 * time.Minute
	MaxClientTTL = 12 * time.Hour
	MaxHostTTL   = 365 * 24 * time.Hour
	clockSkew    = 2 * time.Minute

	defaultTargetTTL = 5 * time.Minute
	defaultClientTTL = 8 * time.Hour
	// certsKept is how long an ended certificate stays on file.
	certsKept = 24 * time.Hour
)

const (
	addCertSQL = `insert into sshca_certs (serial, purpose, ca_id, key_id, user_id, principals, valid_after, valid_before, revoked_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, 0)`
	dropCertsSQL  = `delete from sshca_certs where valid_before < $1`
	certSQL       = `select purpose, ca_id, user_id, revoked_at from sshca_certs where serial = $1`
	revokeCertSQL = `update sshca_certs set revoked_at = $1 where serial = $2 and revoked_at = 0`
)

// UserRequest describes a certificate for one login on a target.
type UserRequest struct {
	KeyID string // "user@connection", shows in the target's log
	// Group is the access group of the target: its authority signs. Required.
	Group      string
	Principals []string
	TTL        time.Duration // at most 10 minutes, 0 = 5; starts 2 minutes back for clock skew
	// Source pins source-address when not empty (comma separated CIDRs).
	Source string
	// Connection is for the audit log.
	Connection string
}

// TargetSigner makes a fresh Ed25519 key, signs it and returns the signer; the
// key is in memory only. The certificate's serial, key ID and principals are
// audited, and can be revoked (Revoke) until it ends.
func (c *CA) TargetSigner(ctx context.Context, r UserRequest) (ssh.Signer, *ssh.Certificate, error) {
	if r.TTL == 0 {
		r.TTL = defaultTargetTTL
	}
	if len(r.Principals) == 0 || r.KeyID == "" || r.Group == "" || r.TTL < 0 || r.TTL > MaxTargetTTL {
		return nil, nil, fmt.Errorf("sign target certificate: want principals, a key ID, an access group and at most %s, got %d principals, %q, %q, %s",
			MaxTargetTTL, len(r.Principals), r.KeyID, r.Group, r.TTL)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("sign target certificate: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("sign target certificate: %w", err)
	}
	cert := &ssh.Certificate{
		Key: signer.PublicKey(), CertType: ssh.UserCert, KeyId: r.KeyID, ValidPrincipals: r.Principals,
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: userExtensions()},
	}
	if r.Source != "" {
		cert.CriticalOptions["source-address"] = r.Source
	}
	err = c.sign(ctx, ForTargets, cert, r.TTL, issue{actor: audit.System, connection: r.Connection, group: r.Group})
	if err != nil {
		return nil, nil, fmt.Errorf("sign target certificate: %w", err)
	}
	certified, err := ssh.NewCertSigner(cert, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign target certificate: %w", err)
	}
	return certified, cert, nil
}

// userExtensions are what sshd needs to be told it may allow; what a user may
// really do is the bastion's to decide.
func userExtensions() map[string]string {
	return map[string]string{"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "", "permit-X11-forwarding": ""}
}

// SignClient signs a person's public key for logins at the bastion, at most 12
// hours (0 = 8), and audits it. The principal is the user's name.
func (c *CA) SignClient(ctx context.Context, p *api.Principal, key ssh.PublicKey, ttl time.Duration) (*ssh.Certificate, error) {
	if ttl == 0 {
		ttl = defaultClientTTL
	}
	if p == nil || p.UserName == "" || ttl < 0 || ttl > MaxClientTTL {
		return nil, fmt.Errorf("sign client certificate: want a user and at most %s, got %s", MaxClientTTL, ttl)
	}
	if err := checkKey(key); err != nil {
		return nil, api.Invalid(api.FieldError{Field: "public_key", Message: err.Error()})
	}
	cert := &ssh.Certificate{
		Key: key, CertType: ssh.UserCert, KeyId: p.UserID + "@client", ValidPrincipals: []string{p.UserName},
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: userExtensions()},
	}
	if err := c.sign(ctx, ForClients, cert, ttl, issue{actor: audit.By(p), user: p.UserID}); err != nil {
		return nil, fmt.Errorf("sign client certificate: %w", err)
	}
	return cert, nil
}

// checkKey refuses kinds of keys that are weak or no plain keys.
func checkKey(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		// The blob is the name, the exponent and the modulus (RFC 4253 §6.6).
		if len(key.Marshal()) < 2048/8 {
			return errors.New("an RSA key needs 2048 bits or more; better make an Ed25519 key")
		}
		return nil
	}
	return errors.New("this kind of key is not signed; make one with ssh-keygen -t ed25519")
}

// SignHost signs a host's public key for its names, at most 365 days, and audits it.
func (c *CA) SignHost(ctx context.Context, key ssh.PublicKey, names []string, ttl time.Duration, by audit.Actor) (*ssh.Certificate, error) {
	if len(names) == 0 || ttl <= 0 || ttl > MaxHostTTL {
		return nil, fmt.Errorf("sign host certificate: want names and at most %s, got %d names, %s", MaxHostTTL, len(names), ttl)
	}
	if err := checkKey(key); err != nil {
		return nil, api.Invalid(api.FieldError{Field: "public_key", Message: err.Error()})
	}
	cert := &ssh.Certificate{Key: key, CertType: ssh.HostCert, KeyId: "host:" + names[0], ValidPrincipals: names}
	if err := c.sign(ctx, ForHosts, cert, ttl, issue{actor: by}); err != nil {
		return nil, fmt.Errorf("sign host certificate: %w", err)
	}
	return cert, nil
}

// HostSigner returns the bastion's own host key, made and sealed on first use,
// with a host certificate for names: the certified signer and the plain one.
func (c *CA) HostSigner(ctx context.Context, names []string) (certified, plain ssh.Signer, err error) {
	key, err := c.c.Vault.Signer(ctx, "bastion host key")
	if err != nil {
		return nil, nil, fmt.Errorf("bastion host key: %w", err)
	}
	if plain, err = ssh.NewSignerFromSigner(key.Crypto()); err != nil {
		return nil, nil, fmt.Errorf("bastion host key: %w", err)
	}
	cert, err := c.SignHost(ctx, plain.PublicKey(), names, MaxHostTTL, audit.System)
	if err != nil {
		return nil, nil, err
	}
	if certified, err = ssh.NewCertSigner(cert, plain); err != nil {
		return nil, nil, fmt.Errorf("bastion host key: %w", err)
	}
	return certified, plain, nil
}

// issue says for whom a certificate is.
type issue struct {
	actor      audit.Actor
	user       string
	connection string
	group      string // empty = the default one
}

// sign completes cert with serial and times, signs it with the active key, and
// puts it on file with its audit event before anybody gets it.
func (c *CA) sign(ctx context.Context, p Purpose, cert *ssh.Certificate, ttl time.Duration, i issue) error {
	now := c.c.Now()
	cert.Serial = newSerial()
	cert.ValidAfter = uint64(now.Add(-clockSkew).Unix())
	cert.ValidBefore = uint64(now.Add(ttl).Unix())
	return c.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if i.group == "" {
			i.group = access.DefaultGroup
		}
		k, err := active(ctx, tx, p, i.group)
		if err != nil {
			return err
		}
		signer, err := c.signer(k)
		if err != nil {
			return err
		}
		if err := cert.SignCert(rand.Reader, signer); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, dropCertsSQL, now.Add(-certsKept).UnixMicro()); err != nil {
			return fmt.Errorf("drop ended certificates: %w", err)
		}
		principals := strings.Join(cert.ValidPrincipals, ",")
		_, err = tx.ExecContext(ctx, addCertSQL, int64(cert.Serial), string(p), k.ID, cert.KeyId, i.user, principals,
			int64(cert.ValidAfter)*1e6, int64(cert.ValidBefore)*1e6)
		if err != nil {
			return fmt.Errorf("file certificate: %w", err)
		}
		return c.c.Audit.Append(ctx, tx, audit.Event{
			Type: audit.CertIssued, Outcome: audit.OK, Actor: i.actor, Connection: i.connection,
			Object: audit.Object{Kind: "ssh-certificate", ID: fmt.Sprint(cert.Serial), Name: cert.KeyId},
			Fields: map[string]string{
				"purpose": string(p), "principals": principals, "key": ssh.FingerprintSHA256(cert.Key),
				"valid_before": time.Unix(int64(cert.ValidBefore), 0).UTC().Format(time.RFC3339),
			},
		})
	})
}

// newSerial is a random number of 63 bits, never 0: serials must not tell how
// many certificates there are, and fit a signed column.
func newSerial() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:])
		if n := binary.BigEndian.Uint64(b[:]) >> 1; n != 0 {
			return n
		}
	}
}

// Revoke ends a certificate before its time: at the bastion at once, at
// targets that fetch the revocation list. An unknown serial is db.ErrNotFound.
func (c *CA) Revoke(ctx context.Context, serial uint64, by audit.Actor) error {
	return c.c.DB.Tx(ctx, func(tx *db.Tx) error {
		f, err := readCert(ctx, tx, serial)
		if err != nil || f.revoked {
			return err
		}
		if _, err := tx.ExecContext(ctx, revokeCertSQL, c.c.Now().UnixMicro(), int64(serial)); err != nil {
			return fmt.Errorf("revoke certificate %d: %w", serial, err)
		}
		if err := tx.Notify(ctx, "setting", "ssh-ca"); err != nil {
			return err
		}
		return c.c.Audit.Append(ctx, tx, audit.Event{
			Type: audit.CertRevoked, Outcome: audit.OK, Actor: by,
			Object: audit.Object{Kind: "ssh-certificate", ID: fmt.Sprint(serial)}, Fields: map[string]string{"purpose": string(f.purpose)},
		})
	})
}

// filed is a certificate on file.
type filed struct {
	purpose  Purpose
	ca, user string
	revoked  bool
}

func readCert(ctx context.Context, q db.Querier, serial uint64) (filed, error) {
	var f filed
	var revokedAt int64
	if serial > 1<<63-1 {
		return filed{}, db.ErrNotFound
	}
	err := q.QueryRowContext(ctx, certSQL, int64(serial)).Scan(&f.purpose, &f.ca, &f.user, &revokedAt)
	if err != nil {
		return filed{}, fmt.Errorf("read certificate %d: %w", serial, db.Classify(err))
	}
	f.revoked = revokedAt > 0
	return f, nil
}

// ErrCertificate means that a client certificate is not good; the text behind
// it is for the log.
var ErrCertificate = errors.New("client certificate refused")

// VerifyClient checks a certificate presented at the bastion: signed by a live
// client authority, on file and not revoked, in its time, for this user name,
// from this source address (critical option source-address). The caller has
// verified possession of the key.
func (c *CA) VerifyClient(ctx context.Context, cert *ssh.Certificate, userName, source string) error {
	refuse := func(why string) error { return fmt.Errorf("%w: %s", ErrCertificate, why) }
	if cert == nil || cert.CertType != ssh.UserCert || cert.SignatureKey == nil {
		return refuse("not a user certificate")
	}
	// Without principals the library would let it stand for anybody.
	if userName == "" || len(cert.ValidPrincipals) == 0 {
		return refuse("it names no user")
	}
	keys, err := readKeys(ctx, c.c.DB, ForClients, access.DefaultGroup)
	if err != nil {
		return err
	}
	var authority *Key
	for i := range keys {
		trusted := keys[i].State == Active || keys[i].State == Retired
		if trusted && bytes.Equal(keys[i].public.Marshal(), cert.SignatureKey.Marshal()) {
			authority = &keys[i]
		}
	}
	if authority == nil {
		return refuse("it is not signed by a client authority of ours")
	}
	f, err := readCert(ctx, c.c.DB, cert.Serial)
	switch {
	case errors.Is(err, db.ErrNotFound):
		return refuse("its serial is not on file")
	case err != nil:
		return err
	case f.revoked:
		return refuse("it is revoked")
	case f.purpose != ForClients || f.ca != authority.ID:
		return refuse("its serial is on file for another purpose")
	}
	checker := ssh.CertChecker{SupportedCriticalOptions: []string{"source-address"}, Clock: c.c.Now}
	if err := checker.CheckCert(userName, cert); err != nil {
		return refuse(err.Error())
	}
	if allowed, ok := cert.CriticalOptions["source-address"]; ok && !sourceAllowed(allowed, source) {
		return refuse("it is not for this source address")
	}
	return nil
}

// sourceAllowed matches an address with a list of CIDRs and addresses.
func sourceAllowed(list, source string) bool {
	a, err := netip.ParseAddr(source)
	if err != nil {
		return false
	}
	a = a.Unmap().WithZone("")
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if p, err := netip.ParsePrefix(s); err == nil && p.Contains(a) {
			return true
		}
		if b, err := netip.ParseAddr(s); err == nil && b.Unmap() == a {
			return true
		}
	}
	return false
}
