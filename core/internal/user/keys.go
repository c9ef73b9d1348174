package user

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Key is an SSH public key a user logs in with.
type Key struct {
	ID          string
	UserID      string
	Fingerprint string // SHA256:…
	Algorithm   string
	PublicKey   string // "type base64"
	Comment     string
	CreatedAt   time.Time
	LastUsed    time.Time
}

const keyColumns = `k.id, k.user_id, k.fingerprint, k.algorithm, k.public_key, k.comment, k.created_at, k.last_used`

const (
	sqlKeyInsert = `insert into user_keys (id, user_id, fingerprint, algorithm, public_key, comment, created_at, last_used)
values ($1, $2, $3, $4, $5, $6, $7, 0)`
	sqlKeysOfUser = `select ` + keyColumns + ` from user_keys k where k.user_id = $1 order by k.created_at, k.id limit 1000`
	sqlKeyByID    = `select ` + keyColumns + ` from user_keys k where k.id = $1`
	sqlKeyByPrint = `select ` + keyColumns + ` from user_keys k where k.user_id = $1 and k.fingerprint = $2`
	sqlKeyDelete  = `delete from user_keys where id = $1`
	sqlKeyUsed    = `update user_keys set last_used = $2 where id = $1`
	sqlKeysErase  = `delete from user_keys where user_id = $1`
	sqlKeysCount  = `select count(*) from user_keys where user_id = $1`
	maxKeys       = 50
	maxKeyText    = 16 << 10
	minRSABits    = 2048
)

func scanKey(row scanner) (Key, error) {
	var k Key
	var created, used int64
	err := row.Scan(&k.ID, &k.UserID, &k.Fingerprint, &k.Algorithm, &k.PublicKey, &k.Comment, &created, &used)
	if err != nil {
		return Key{}, db.Classify(err)
	}
	k.CreatedAt, k.LastUsed = db.FromMicro(created), db.FromMicro(used)
	return k, nil
}

// parseKey reads one authorized_keys line. Options are refused: what a user
// may do is decided by grants.
func parseKey(text string) (ssh.PublicKey, string, error) {
	if len(text) > maxKeyText {
		return nil, "", errors.New("is too long for a public key")
	}
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	switch {
	case err != nil:
		return nil, "", errors.New(`must be a public key as in id_ed25519.pub: "ssh-ed25519 AAAA… comment"`)
	case len(options) > 0:
		return nil, "", errors.New("must not have options in front of the key type")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, "", errors.New("must be one key")
	}
	return key, comment, checkKeyStrength(key)
}

func checkKeyStrength(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		if c, ok := key.(ssh.CryptoPublicKey); ok {
			if pub, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && pub.N.BitLen() >= minRSABits {
				return nil
			}
		}
		return fmt.Errorf("is an RSA key of less than %d bits", minRSABits)
	}
	return fmt.Errorf("has type %.60s, which is not accepted: use ed25519, ecdsa, rsa or a security key", key.Type())
}

// AddKey registers an SSH public key of the user.
func (s *Service) AddKey(ctx context.Context, by audit.Actor, userID, text, comment string) (Key, error) {
	key, own, err := parseKey(text)
	if err != nil {
		return Key{}, api.Invalid(api.FieldError{Field: "body.public_key", Message: err.Error()})
	}
	if comment == "" {
		comment = own
	}
	if bad := checkText("body.comment", comment, 200); bad != nil {
		return Key{}, api.Invalid(bad...)
	}
	id := db.NewID("key_")
	var made Key
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, userID)
		if err != nil {
			return err
		}
		if u.Kind != Person || !u.ErasedAt.IsZero() {
			return api.Conflict("no_keys", "This account cannot have SSH keys.")
		}
		var have int
		if err := tx.QueryRowContext(ctx, sqlKeysCount, userID).Scan(&have); err != nil {
			return err
		}
		if have >= maxKeys {
			return api.Conflict("too_many_keys", fmt.Sprintf("A user has at most %d keys; remove one first.", maxKeys))
		}
		line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
		_, err = tx.ExecContext(ctx, sqlKeyInsert, id, userID, ssh.FingerprintSHA256(key), key.Type(), line, comment, s.now().UnixMicro())
		if err = db.Classify(err); isConflict(err) {
			return api.Conflict("key_exists", "The user has this key already.")
		} else if err != nil {
			return err
		}
		if made, err = scanKey(tx.QueryRowContext(ctx, sqlKeyByID, id)); err != nil {
			return err
		}
		return s.keyEvent(ctx, tx, by, audit.UserKeyAdded, &u.User, made)
	})
	if err != nil {
		return Key{}, fmt.Errorf("add key: %w", err)
	}
	return made, nil
}

func (s *Service) keyEvent(ctx context.Context, tx *db.Tx, by audit.Actor, e audit.Type, u *User, k Key) error {
	if err := tx.Notify(ctx, "user", u.ID); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{Type: e, Outcome: audit.OK, Actor: by, Object: u.object(),
		Fields: map[string]string{"key": k.ID, "fingerprint": k.Fingerprint, "algorithm": k.Algorithm}})
}

// Keys lists a user's SSH keys, oldest first.
func (s *Service) Keys(ctx context.Context, userID string) ([]Key, error) {
	list, err := query(ctx, s.db, scanKey, sqlKeysOfUser, userID)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return list, nil
}

// RemoveKey removes a key of the user and ends what was opened by it.
func (s *Service) RemoveKey(ctx context.Context, by audit.Actor, userID, id string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		k, err := scanKey(tx.QueryRowContext(ctx, sqlKeyByID, id))
		if err != nil {
			return err
		}
		if k.UserID != userID {
			return db.ErrNotFound
		}
		u, err := userByID(ctx, tx, userID)
		if err != nil {
			return err
		}
		if err := changeOne(ctx, tx, sqlKeyDelete, id); err != nil {
			return err
		}
		return s.keyEvent(ctx, tx, by, audit.UserKeyRemoved, &u.User, k)
	})
	if err != nil {
		return fmt.Errorf("remove key: %w", err)
	}
	return nil
}

// AcceptsKey reports whether Login would take the key or certificate, before
// its possession is proven: nothing is audited and no limit is spent.
func (s *Service) AcceptsKey(ctx context.Context, name string, key ssh.PublicKey, source netip.Addr) (bool, error) {
	u, err := userByName(ctx, s.db, loginName(name))
	if errors.Is(err, db.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if u.usable() != "" || u.Kind != Person {
		return false, nil
	}
	proof, err := s.checkKey(ctx, &u, key, source)
	return err == nil && proof.reason == "", err
}

// checkKey checks a key or certificate of u.
func (s *Service) checkKey(ctx context.Context, u *record, key ssh.PublicKey, source netip.Addr) (proof, error) {
	if cert, ok := key.(*ssh.Certificate); ok {
		return s.checkCertificate(ctx, u, cert, source)
	}
	p := proof{method: "publickey"}
	k, err := scanKey(s.db.QueryRowContext(ctx, sqlKeyByPrint, u.ID, ssh.FingerprintSHA256(key)))
	if errors.Is(err, db.ErrNotFound) {
		p.reason = "unknown_key"
		return p, nil
	}
	if err != nil {
		return p, fmt.Errorf("check key: %w", err)
	}
	known, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.PublicKey))
	if err != nil {
		return p, fmt.Errorf("check key %s: %w", k.ID, err)
	}
	if !bytes.Equal(known.Marshal(), key.Marshal()) {
		p.reason = "unknown_key"
		return p, nil
	}
	p.key, p.detail = k.ID, k.Fingerprint
	return p, nil
}

// checkCertificate asks the authority for people about a certificate. An
// authority that cannot answer refuses.
func (s *Service) checkCertificate(ctx context.Context, u *record, cert *ssh.Certificate, source netip.Addr) (proof, error) {
	p := proof{method: "certificate", detail: ssh.FingerprintSHA256(cert.Key)}
	if s.authority == nil || u.Name == "" || checkKeyStrength(cert.Key) != nil {
		p.reason = "bad_certificate"
		return p, nil
	}
	if err := s.authority.VerifyClient(ctx, cert, u.Name, addrText(source)); err != nil {
		s.log.Debug("ssh certificate refused", "user", u.ID, "err", err)
		p.reason = "bad_certificate"
	}
	return p, nil
}
