package signin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-webauthn/webauthn/webauthn"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
)

// Passkey is a WebAuthn credential as its owner sees it.
type Passkey struct {
	ID         string
	UserID     string
	Credential string // its WebAuthn ID in base64url
	Name       string
	CreatedAt  time.Time
	LastUsed   time.Time
	// ClonedAt is when its counter went backwards: somebody has a copy. It is
	// refused from then on.
	ClonedAt time.Time

	sealed string
	record webauthn.Credential
}

const passkeyColumns = `id, user_id, credential, name, data, created_at, last_used, cloned_at`

const (
	sqlPasskeysOfUser = `select ` + passkeyColumns + ` from passkeys where user_id = $1 order by created_at, id`
	sqlPasskey        = `select ` + passkeyColumns + ` from passkeys where id = $1 and user_id = $2`
	sqlPasskeyInsert  = `insert into passkeys (` + passkeyColumns + `) values ($1, $2, $3, $4, $5, $6, 0, 0)`
	sqlPasskeyUsed    = `update passkeys set data = $2, last_used = $3 where id = $1 and data = $4 and cloned_at = 0`
	sqlPasskeyCloned  = `update passkeys set cloned_at = $2 where id = $1 and cloned_at = 0`
	sqlPasskeyName    = `update passkeys set name = $3 where id = $1 and user_id = $2`
	sqlPasskeyDelete  = `delete from passkeys where id = $1 and user_id = $2`
	sqlPasskeysErase  = `delete from passkeys where user_id = $1`
)

// maxPasskeys bounds the passkeys of one user.
const maxPasskeys = 20

func passkeyPlace(id string) vault.Place {
	return vault.Place{Table: "passkeys", Column: "data", Row: id}
}

func (s *Service) scanPasskey(row interface{ Scan(...any) error }) (Passkey, error) {
	var k Passkey
	var created, used, cloned int64
	if err := row.Scan(&k.ID, &k.UserID, &k.Credential, &k.Name, &k.sealed, &created, &used, &cloned); err != nil {
		return k, db.Classify(err)
	}
	k.CreatedAt, k.LastUsed, k.ClonedAt = db.FromMicro(created), db.FromMicro(used), db.FromMicro(cloned)
	b, err := base64.StdEncoding.DecodeString(k.sealed)
	if err != nil {
		return k, fmt.Errorf("passkey %s: %w", k.ID, err)
	}
	plain, err := s.sealer.Open(passkeyPlace(k.ID), b)
	if err != nil {
		return k, fmt.Errorf("passkey %s: %w", k.ID, err)
	}
	if err := json.Unmarshal(plain, &k.record); err != nil {
		return k, fmt.Errorf("passkey %s: %w", k.ID, err)
	}
	return k, nil
}

func (s *Service) sealPasskey(id string, c webauthn.Credential) (string, error) {
	plain, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("keep passkey: %w", err)
	}
	b, err := s.sealer.Seal(passkeyPlace(id), plain)
	if err != nil {
		return "", fmt.Errorf("keep passkey: %w", err)
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

// Passkeys lists a user's passkeys, oldest first.
func (s *Service) Passkeys(ctx context.Context, q db.Querier, userID string) ([]Passkey, error) {
	rows, err := q.QueryContext(ctx, sqlPasskeysOfUser, userID)
	if err != nil {
		return nil, fmt.Errorf("list passkeys: %w", err)
	}
	defer rows.Close()
	var list []Passkey
	for rows.Next() {
		k, err := s.scanPasskey(rows)
		if err != nil {
			return nil, fmt.Errorf("list passkeys: %w", err)
		}
		list = append(list, k)
	}
	return list, rows.Err()
}

// addPasskey keeps a new credential of a user and returns recovery codes when
// it is his first second factor.
func (s *Service) addPasskey(ctx context.Context, by audit.Actor, userID, name string, c webauthn.Credential) (Passkey, []string, error) {
	id := db.NewID("psk_")
	sealed, err := s.sealPasskey(id, c)
	if err != nil {
		return Passkey{}, nil, err
	}
	var made Passkey
	var codes []string
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		have, err := s.Passkeys(ctx, tx, userID)
		if err != nil {
			return err
		}
		if len(have) >= maxPasskeys {
			return api.Conflict("too_many_passkeys", fmt.Sprintf("You have %d passkeys; remove one first.", len(have)))
		}
		_, err = tx.ExecContext(ctx, sqlPasskeyInsert, id, userID, encodeID(c.ID), name, sealed, s.now().UnixMicro())
		if errors.Is(db.Classify(err), db.ErrConflict) {
			return api.Conflict("passkey_known", "This passkey is registered already.")
		}
		if err != nil {
			return err
		}
		if made, err = s.scanPasskey(tx.QueryRowContext(ctx, sqlPasskey, id, userID)); err != nil {
			return err
		}
		if codes, err = s.users.FirstRecovery(ctx, tx, userID); err != nil {
			return err
		}
		return s.passkeyEvent(ctx, tx, by, audit.UserPasskeyAdded, made, nil)
	})
	if err != nil {
		return Passkey{}, nil, fmt.Errorf("add passkey: %w", err)
	}
	return made, codes, nil
}

func (s *Service) passkeyEvent(ctx context.Context, tx *db.Tx, by audit.Actor, t audit.Type, k Passkey, fields map[string]string) error {
	if fields == nil {
		fields = map[string]string{}
	}
	fields["passkey"] = k.ID
	if err := tx.Notify(ctx, "user", k.UserID); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{Type: t, Outcome: audit.OK, Actor: by,
		Object: audit.Object{Kind: "user", ID: k.UserID}, Fields: fields})
}

// RenamePasskey gives a passkey of a user another name.
func (s *Service) RenamePasskey(ctx context.Context, by audit.Actor, userID, id, name string) (Passkey, error) {
	var k Passkey
	err := s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		if _, err = tx.ExecContext(ctx, sqlPasskeyName, id, userID, name); err != nil {
			return err
		}
		if k, err = s.scanPasskey(tx.QueryRowContext(ctx, sqlPasskey, id, userID)); err != nil {
			return err
		}
		return s.passkeyEvent(ctx, tx, by, audit.UserPasskeyChanged, k, nil)
	})
	if err != nil {
		return Passkey{}, fmt.Errorf("rename passkey: %w", err)
	}
	return k, nil
}

// RemovePasskey takes a passkey away and ends every login of the user but the
// session keep.
func (s *Service) RemovePasskey(ctx context.Context, by audit.Actor, userID, id, keep string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		k, err := s.scanPasskey(tx.QueryRowContext(ctx, sqlPasskey, id, userID))
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlPasskeyDelete, id, userID); err != nil {
			return err
		}
		if err := s.users.CredentialRemoved(ctx, tx, userID, keep); err != nil {
			return err
		}
		return s.passkeyEvent(ctx, tx, by, audit.UserPasskeyRemoved, k, nil)
	})
	if err != nil {
		return fmt.Errorf("remove passkey: %w", err)
	}
	return nil
}

// passkeyUsed stores what an assertion has changed: the counter and flags. It
// fails when the same passkey was used at the same moment somewhere else.
func (s *Service) passkeyUsed(ctx context.Context, tx *db.Tx, k Passkey, c webauthn.Credential) error {
	sealed, err := s.sealPasskey(k.ID, c)
	if err != nil {
		return err
	}
	res, err := tx.ExecContext(ctx, sqlPasskeyUsed, k.ID, sealed, s.now().UnixMicro(), k.sealed)
	if err != nil {
		return fmt.Errorf("keep passkey: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errStale
	}
	return nil
}

// passkeyCloned marks a passkey whose counter went backwards: there is a copy.
func (s *Service) passkeyCloned(ctx context.Context, k Passkey, by audit.Actor) error {
	return s.db.Tx(ctx, func(tx *db.Tx) error {
		res, err := tx.ExecContext(ctx, sqlPasskeyCloned, k.ID, s.now().UnixMicro())
		if err != nil {
			return fmt.Errorf("mark passkey: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return s.passkeyEvent(ctx, tx, by, audit.UserPasskeyCloned, k, nil)
	})
}

func encodeID(id []byte) string { return base64.RawURLEncoding.EncodeToString(id) }

// Name implements user.Holder.
func (s *Service) Name() string { return "sign_in" }

// Export implements user.Holder.
func (s *Service) Export(ctx context.Context, q db.Querier, userID string) (any, error) {
	keys, err := s.Passkeys(ctx, q, userID)
	if err != nil {
		return nil, err
	}
	ids, err := identities(ctx, q, sqlIdentitiesOfUser, userID)
	if err != nil {
		return nil, err
	}
	return map[string]any{"passkeys": shown(keys, showPasskey), "identities": shown(ids, showIdentity)}, nil
}

// Erase implements user.Holder.
func (s *Service) Erase(ctx context.Context, tx *db.Tx, userID, _ string) error {
	for _, text := range []string{sqlPasskeysErase, sqlIdentitiesErase} {
		if _, err := tx.ExecContext(ctx, text, userID); err != nil {
			return fmt.Errorf("erase ways to sign in: %w", err)
		}
	}
	return nil
}

// shown turns rows into what the API shows of them.
func shown[T, V any](list []T, show func(T) V) []V {
	out := make([]V, 0, len(list))
	for _, v := range list {
		out = append(out, show(v))
	}
	return out
}
