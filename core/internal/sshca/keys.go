package sshca

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
	"caponier/core/internal/vault"
)

// State of a generation of an authority's key.
type State string

// The states. A renewal makes the next key, published so that targets learn
// it; activating it makes it sign and retires the former one, which stays
// trusted until it is revoked.
const (
	Next    State = "next"
	Active  State = "active"
	Retired State = "retired"
	Revoked State = "revoked"
)

// Key is one generation of an authority's key.
type Key struct {
	ID      string  `json:"id"`
	Purpose Purpose `json:"purpose"`
	// Group is whose authority it is; only that for targets has one in every
	// access group.
	Group       string    `json:"group"`
	Generation  int64     `json:"generation"`
	State       State     `json:"state"`
	PublicKey   string    `json:"public_key"` // authorized_keys form
	Fingerprint string    `json:"fingerprint"`
	CreatedAt   time.Time `json:"created_at"`
	ChangedAt   time.Time `json:"changed_at"`

	sealed []byte
	public ssh.PublicKey
}

// lockName serialises changes of the authorities between cores.
const lockName = "ssh authority"

const (
	keyColumns = `id, purpose, group_id, generation, state, public_key, sealed, created_at, changed_at`

	keysSQL = `select ` + keyColumns + ` from sshca_keys
where ($1 = '' or purpose = $1) and ($2 = '' or group_id = $2) order by purpose, group_id, generation desc`
	keyByIDSQL  = `select ` + keyColumns + ` from sshca_keys where id = $1`
	addKeySQL   = `insert into sshca_keys (` + keyColumns + `) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`
	setStateSQL = `update sshca_keys set state = $1, changed_at = $2 where id = $3`
)

func keyPlace(id string) vault.Place {
	return vault.Place{Table: "sshca_keys", Column: "sealed", Row: id}
}

// readKeys reads the keys for a purpose of a group, newest first; empty means
// any.
func readKeys(ctx context.Context, q db.Querier, p Purpose, groupID string) ([]Key, error) {
	return queryKeys(ctx, q, keysSQL, string(p), groupID)
}

func queryKeys(ctx context.Context, q db.Querier, query string, args ...any) ([]Key, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read authority keys: %w", err)
	}
	defer rows.Close()
	var out []Key
	for rows.Next() {
		var k Key
		var created, changed int64
		if err := rows.Scan(&k.ID, &k.Purpose, &k.Group, &k.Generation, &k.State, &k.PublicKey, &k.sealed, &created, &changed); err != nil {
			return nil, fmt.Errorf("read authority keys: %w", err)
		}
		if k.public, _, _, _, err = ssh.ParseAuthorizedKey([]byte(k.PublicKey)); err != nil {
			return nil, fmt.Errorf("read authority key %s: %w", k.ID, err)
		}
		k.Fingerprint = ssh.FingerprintSHA256(k.public)
		k.CreatedAt, k.ChangedAt = time.UnixMicro(created).UTC(), time.UnixMicro(changed).UTC()
		out = append(out, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read authority keys: %w", err)
	}
	return out, nil
}

// addKey makes a generation in tx.
func (c *CA) addKey(ctx context.Context, tx *db.Tx, p Purpose, groupID string, generation int64, state State, by audit.Actor) (*Key, error) {
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority key: %w", err)
	}
	defer clear(private)
	k := &Key{ID: "sca_" + strings.ToLower(rand.Text()), Purpose: p, Group: groupID, Generation: generation, State: state}
	if k.public, err = ssh.NewPublicKey(pub); err != nil {
		return nil, fmt.Errorf("make authority key: %w", err)
	}
	k.PublicKey = authorized(k.public, fmt.Sprintf("caponier-%s-ca-%d", p, generation))
	k.Fingerprint = ssh.FingerprintSHA256(k.public)
	k.CreatedAt = c.c.Now().UTC().Truncate(time.Microsecond)
	k.ChangedAt = k.CreatedAt
	if k.sealed, err = c.c.Vault.Seal(keyPlace(k.ID), private.Seed()); err != nil {
		return nil, fmt.Errorf("make authority key: %w", err)
	}
	_, err = tx.ExecContext(ctx, addKeySQL, k.ID, string(p), groupID, generation, string(state), k.PublicKey, k.sealed,
		k.CreatedAt.UnixMicro(), k.ChangedAt.UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("store authority key: %w", db.Classify(err))
	}
	event := audit.CACreated
	if generation > 1 {
		event = audit.CARenewed
	}
	return k, c.keyChanged(ctx, tx, event, k, by)
}

func (c *CA) keyChanged(ctx context.Context, tx *db.Tx, t audit.Type, k *Key, by audit.Actor) error {
	if err := tx.Notify(ctx, "setting", "ssh-ca"); err != nil {
		return err
	}
	if err := api.Notify(ctx, tx, group.Topic, k.Group, k.Group); err != nil {
		return err
	}
	return c.c.Audit.Append(ctx, tx, audit.Event{
		Type: t, Outcome: audit.OK, Actor: by, Group: k.Group, Object: audit.Object{Kind: "ssh-ca", ID: k.ID, Name: string(k.Purpose)},
		Fields: map[string]string{"generation": fmt.Sprint(k.Generation), "fingerprint": k.Fingerprint},
	})
}

// signer opens the private key.
func (c *CA) signer(k *Key) (ssh.Signer, error) {
	seed, err := c.c.Vault.Open(keyPlace(k.ID), k.sealed)
	if err != nil {
		return nil, fmt.Errorf("open authority key %s: %w", k.ID, err)
	}
	defer clear(seed)
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("open authority key %s: %w", k.ID, vault.ErrNotOpened)
	}
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		return nil, fmt.Errorf("open authority key %s: %w", k.ID, err)
	}
	if !bytes.Equal(s.PublicKey().Marshal(), k.public.Marshal()) {
		return nil, fmt.Errorf("authority key %s: the public key on file is not its own", k.ID)
	}
	return s, nil
}

// active returns the key that signs for a purpose in a group.
func active(ctx context.Context, q db.Querier, p Purpose, groupID string) (*Key, error) {
	keys, err := readKeys(ctx, q, p, groupID)
	if err != nil {
		return nil, err
	}
	for i := range keys {
		if keys[i].State == Active {
			return &keys[i], nil
		}
	}
	return nil, fmt.Errorf("no active %s authority: %w", p, db.ErrNotFound)
}

// Keys lists all generations of the authorities of a group, newest first per
// purpose.
func (c *CA) Keys(ctx context.Context, groupID string) ([]Key, error) {
	return readKeys(ctx, c.c.DB, "", groupID)
}

// Found gives an access group its authority for targets, in the transaction
// that makes the group.
func (c *CA) Found(ctx context.Context, tx *db.Tx, groupID string, by audit.Actor) error {
	_, err := c.addKey(ctx, tx, ForTargets, groupID, 1, Active, by)
	return err
}

// Abolish ends all trust in the authority of an access group, in the
// transaction that removes the group.
func (c *CA) Abolish(ctx context.Context, tx *db.Tx, groupID string, by audit.Actor) error {
	keys, err := readKeys(ctx, tx, "", groupID)
	if err != nil {
		return err
	}
	for i := range keys {
		if k := &keys[i]; k.State != Revoked {
			if err := c.setState(ctx, tx, k, Revoked); err != nil {
				return err
			}
			if err := c.keyChanged(ctx, tx, audit.CARevoked, k, by); err != nil {
				return err
			}
		}
	}
	return nil
}

// Renew makes the next key of an authority of a group. It is published at once
// and signs nothing until it is activated, so that targets have time to learn
// it.
func (c *CA) Renew(ctx context.Context, p Purpose, groupID string, by audit.Actor) (*Key, error) {
	if !p.known() || p != ForTargets && groupID != access.DefaultGroup {
		return nil, api.Invalid(api.FieldError{Field: "purpose", Message: "must be target, client or host"})
	}
	var k *Key
	err := c.change(ctx, func(tx *db.Tx) error {
		keys, err := readKeys(ctx, tx, p, groupID)
		if err != nil {
			return err
		}
		if len(keys) == 0 { // every group is founded with a key
			return api.Missing("access group", groupID)
		}
		if keys[0].State == Next {
			return api.Conflict("renewal_open", "There is a next key already: activate or revoke it first.")
		}
		k, err = c.addKey(ctx, tx, p, groupID, keys[0].Generation+1, Next, by)
		return err
	})
	return k, err
}

// Activate makes the next key of a group sign and retires the active one.
func (c *CA) Activate(ctx context.Context, groupID, id string, by audit.Actor) (*Key, error) {
	return c.move(ctx, groupID, id, func(ctx context.Context, tx *db.Tx, k *Key) error {
		if k.State != Next {
			return api.Conflict("not_next", "Only a next key can be activated; this one is "+string(k.State)+".")
		}
		old, err := active(ctx, tx, k.Purpose, k.Group)
		if err != nil && !errors.Is(err, db.ErrNotFound) {
			return err
		}
		if err == nil {
			if err := c.setState(ctx, tx, old, Retired); err != nil {
				return err
			}
		}
		if err := c.setState(ctx, tx, k, Active); err != nil {
			return err
		}
		return c.keyChanged(ctx, tx, audit.CAActivated, k, by)
	})
}

// RevokeKey ends all trust in a key of a group that does not sign any more.
func (c *CA) RevokeKey(ctx context.Context, groupID, id string, by audit.Actor) (*Key, error) {
	return c.move(ctx, groupID, id, func(ctx context.Context, tx *db.Tx, k *Key) error {
		switch k.State {
		case Active:
			return api.Conflict("active", "This key signs now: renew and activate another one first.")
		case Revoked:
			return nil
		}
		if err := c.setState(ctx, tx, k, Revoked); err != nil {
			return err
		}
		return c.keyChanged(ctx, tx, audit.CARevoked, k, by)
	})
}

// move changes the state of a key; one of another group is missing.
func (c *CA) move(ctx context.Context, groupID, id string, f func(context.Context, *db.Tx, *Key) error) (*Key, error) {
	var k *Key
	err := c.change(ctx, func(tx *db.Tx) error {
		keys, err := queryKeys(ctx, tx, keyByIDSQL, id)
		if err != nil {
			return err
		}
		if len(keys) == 0 || keys[0].Group != groupID {
			return api.Missing("authority key", id)
		}
		k = &keys[0]
		return f(ctx, tx, k)
	})
	return k, err
}

func (c *CA) change(ctx context.Context, f func(*db.Tx) error) error {
	return c.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, lockName); err != nil {
			return err
		}
		return f(tx)
	})
}

func (c *CA) setState(ctx context.Context, tx *db.Tx, k *Key, to State) error {
	now := c.c.Now().UTC().Truncate(time.Microsecond)
	if _, err := tx.ExecContext(ctx, setStateSQL, string(to), now.UnixMicro(), k.ID); err != nil {
		return fmt.Errorf("change authority key %s: %w", k.ID, err)
	}
	k.State, k.ChangedAt = to, now
	return nil
}

// PublicKeys are the keys of a group to trust for a purpose, one
// authorized_keys line each, the signing one first.
func (c *CA) PublicKeys(ctx context.Context, p Purpose, groupID string) (string, error) {
	keys, err := readKeys(ctx, c.c.DB, p, groupID)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, state := range []State{Active, Next, Retired} {
		for _, k := range keys {
			if k.State == state {
				b.WriteString(k.PublicKey + "\n")
			}
		}
	}
	return b.String(), nil
}

// PublicKey is a group's keys for TrustedUserCAKeys of its targets, one
// authorized_keys line each.
func (c *CA) PublicKey(ctx context.Context, groupID string) (string, error) {
	return c.PublicKeys(ctx, ForTargets, groupID)
}

// authorized renders a key as an authorized_keys line without newline.
func authorized(k ssh.PublicKey, comment string) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k)), "\n") + " " + comment
}
