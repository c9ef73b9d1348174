package vault

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// lockName serialises changes of the vault's own keys between cores.
const lockName = "vault keys"

const (
	keysSQL     = `select name, kek_id, wrapped, created_at from vault_keys order by created_at, name`
	addKeySQL   = `insert into vault_keys (name, kek_id, wrapped, created_at) values ($1, $2, $3, $4)`
	setKeySQL   = `update vault_keys set kek_id = $1, wrapped = $2 where name = $3`
	stateSQL    = `select kek_id from vault_state where id = 1`
	setStateSQL = `insert into vault_state (id, kek_id, changed_at) values (1, $1, $2)
on conflict (id) do update set kek_id = excluded.kek_id, changed_at = excluded.changed_at`
)

type keyRow struct {
	name, kek string
	wrapped   []byte
	created   int64
}

func rootName(id rootID) string { return "root:" + hex.EncodeToString(id[:]) }

func parseRootName(name string) (rootID, bool) {
	text, ok := strings.CutPrefix(name, "root:")
	b, err := hex.DecodeString(text)
	if !ok || err != nil || len(b) != len(rootID{}) {
		return rootID{}, false
	}
	return rootID(b), true
}

func keyAAD(name string) []byte { return []byte("caponier vault key v1\x00" + name) }

func readKeys(ctx context.Context, q db.Querier) ([]keyRow, error) {
	rows, err := q.QueryContext(ctx, keysSQL)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	defer rows.Close()
	var out []keyRow
	for rows.Next() {
		var k keyRow
		if err := rows.Scan(&k.name, &k.kek, &k.wrapped, &k.created); err != nil {
			return nil, fmt.Errorf("read keys: %w", err)
		}
		out = append(out, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return out, nil
}

// load opens all keys into memory.
func (v *Vault) load(ctx context.Context) error {
	rows, err := readKeys(ctx, v.db)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	keys, root := map[string][]byte{}, v.root
	for _, r := range rows {
		key := v.keys[r.name]
		if key == nil {
			if r.kek != v.kek.id {
				return &SealedError{Want: r.kek, Have: []string{v.kek.id}}
			}
			if key, err = gcmOpen(v.kek.key[:], r.wrapped, keyAAD(r.name)); err != nil {
				return fmt.Errorf("open key %s: %w", r.name, err)
			}
		}
		keys[r.name] = key
		if id, ok := parseRootName(r.name); ok {
			root = id // the newest comes last
		}
	}
	v.keys, v.root = keys, root
	return nil
}

// setState records which KEK wraps the keys from now on.
func (v *Vault) setState(ctx context.Context, tx *db.Tx, k KEK) error {
	if _, err := tx.ExecContext(ctx, setStateSQL, k.id, v.now().UnixMicro()); err != nil {
		return fmt.Errorf("store vault state: %w", err)
	}
	return nil
}

// addRoot makes a new generation of the root key under k.
func (v *Vault) addRoot(ctx context.Context, tx *db.Tx, k KEK) (rootID, []byte, error) {
	var id rootID
	rand.Read(id[:])
	key, err := v.addKey(ctx, tx, rootName(id), k)
	return id, key, err
}

func (v *Vault) addKey(ctx context.Context, tx *db.Tx, name string, k KEK) ([]byte, error) {
	key := make([]byte, keySize)
	rand.Read(key)
	_, err := tx.ExecContext(ctx, addKeySQL, name, k.id, gcmSeal(k.key[:], key, keyAAD(name)), v.now().UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("store key %s: %w", name, err)
	}
	return key, nil
}

// rewrapKeys puts every key that is not under to yet under it, and returns how
// many it changed. Keys under a KEK not among have fail with a *SealedError.
func (v *Vault) rewrapKeys(ctx context.Context, tx *db.Tx, rows []keyRow, to KEK, have []KEK) (int, error) {
	changed, from := 0, ""
	for _, r := range rows {
		if r.kek == to.id {
			if _, err := gcmOpen(to.key[:], r.wrapped, keyAAD(r.name)); err != nil {
				return 0, fmt.Errorf("open key %s: %w", r.name, err)
			}
			continue
		}
		i := slices.IndexFunc(have, func(k KEK) bool { return k.id == r.kek })
		if i < 0 {
			ids := []string{}
			for _, k := range have {
				ids = append(ids, k.id)
			}
			return 0, &SealedError{Want: r.kek, Have: ids}
		}
		key, err := gcmOpen(have[i].key[:], r.wrapped, keyAAD(r.name))
		if err != nil {
			return 0, fmt.Errorf("open key %s: %w", r.name, err)
		}
		if _, err := tx.ExecContext(ctx, setKeySQL, to.id, gcmSeal(to.key[:], key, keyAAD(r.name)), r.name); err != nil {
			return 0, fmt.Errorf("store key %s: %w", r.name, err)
		}
		clear(key)
		changed++
		from = r.kek
	}
	if changed == 0 {
		return 0, nil
	}
	if err := v.setState(ctx, tx, to); err != nil {
		return 0, err
	}
	return changed, v.audit.Append(ctx, tx, audit.Event{
		Type: audit.VaultRotated, Outcome: audit.OK, Actor: audit.System, Object: audit.Object{Kind: "vault"},
		Fields: map[string]string{"from": from, "to": to.id, "keys": fmt.Sprint(changed)},
	})
}

// Rotate wraps all keys under a new KEK, in one transaction, while the vault
// is in use; sealed values are not touched. Cores that run meanwhile keep
// working and need the new KEK at their next start. It returns the number of
// keys wrapped anew.
func (v *Vault) Rotate(ctx context.Context, to KEK) (int, error) {
	if to.id == "" {
		return 0, errors.New("rotate key-encryption key: no new key given")
	}
	v.mu.RLock()
	kek := v.kek
	v.mu.RUnlock()
	changed := 0
	err := v.db.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, lockName); err != nil {
			return err
		}
		rows, err := readKeys(ctx, tx)
		if err != nil {
			return err
		}
		changed, err = v.rewrapKeys(ctx, tx, rows, to, []KEK{to, kek})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("rotate key-encryption key: %w", err)
	}
	v.mu.Lock()
	v.kek = to
	v.mu.Unlock()
	return changed, nil
}

// Column is a table's column of sealed values whose Place is
// {Table, Column, value of ID}.
type Column struct{ Table, Column, ID string }

// rewrapBatch is how many values one transaction of RenewRoot handles.
const rewrapBatch = 100

// RenewRoot makes a new root key and wraps the data keys of all values in
// columns (and of the vault's own secrets) under it. Values stay as they are
// and open throughout. Interrupted, it is finished by FinishRenew.
func (v *Vault) RenewRoot(ctx context.Context, columns []Column) (int, error) {
	err := v.db.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, lockName); err != nil {
			return err
		}
		kek, err := v.checkedKEK(ctx, tx)
		if err != nil {
			return err
		}
		_, _, err = v.addRoot(ctx, tx, kek)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("renew root key: %w", err)
	}
	if err := v.load(ctx); err != nil {
		return 0, fmt.Errorf("renew root key: %w", err)
	}
	return v.FinishRenew(ctx, columns)
}

// FinishRenew wraps what is still under an older root key. It may be run at
// any time and again.
func (v *Vault) FinishRenew(ctx context.Context, columns []Column) (int, error) {
	total := 0
	for _, c := range append([]Column{{"vault_values", "sealed", "id"}}, columns...) {
		n, err := v.rewrapColumn(ctx, c)
		total += n
		if err != nil {
			return total, fmt.Errorf("renew data keys of %s.%s: %w", c.Table, c.Column, err)
		}
	}
	return total, nil
}

func (v *Vault) rewrapColumn(ctx context.Context, c Column) (int, error) {
	page := fmt.Sprintf(`select %s, %s from %s where %s > $1 and %s is not null order by %s limit %d`,
		c.ID, c.Column, c.Table, c.ID, c.Column, c.ID, rewrapBatch)
	update := fmt.Sprintf(`update %s set %s = $1 where %s = $2 and %s = $3`, c.Table, c.Column, c.ID, c.Column)
	total, last := 0, ""
	for {
		n, seen, next := 0, 0, last
		err := v.db.Tx(ctx, func(tx *db.Tx) error {
			n, seen, next = 0, 0, last
			values, ids, err := readColumn(ctx, tx, page, last)
			if err != nil {
				return err
			}
			for i, id := range ids {
				out, changed, err := v.rewrap(values[i])
				if err != nil {
					return fmt.Errorf("row %s: %w", id, err)
				}
				if changed {
					if _, err := tx.ExecContext(ctx, update, out, id, values[i]); err != nil {
						return err
					}
					n++
				}
				seen, next = seen+1, id
			}
			return nil
		})
		if err != nil {
			return total, err
		}
		total, last = total+n, next
		if seen < rewrapBatch {
			return total, nil
		}
	}
}

func readColumn(ctx context.Context, tx *db.Tx, query, after string) (values [][]byte, ids []string, err error) {
	rows, err := tx.QueryContext(ctx, query, after)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var b []byte
		if err := rows.Scan(&id, &b); err != nil {
			return nil, nil, err
		}
		ids, values = append(ids, id), append(values, b)
	}
	return values, ids, rows.Err()
}

// checkedKEK returns the KEK in use after making sure that no other core has
// rotated to a new one meanwhile.
func (v *Vault) checkedKEK(ctx context.Context, tx *db.Tx) (KEK, error) {
	var id string
	if err := tx.QueryRowContext(ctx, stateSQL).Scan(&id); err != nil {
		return KEK{}, fmt.Errorf("read vault state: %w", err)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if id != v.kek.id {
		return KEK{}, &SealedError{Want: id, Have: []string{v.kek.id}}
	}
	return v.kek, nil
}

// Key returns the named 32-byte key, making and sealing it on first use. Do
// not call it inside a transaction.
func (v *Vault) Key(ctx context.Context, name string) ([]byte, error) {
	if name == "" || len(name) > 100 {
		return nil, fmt.Errorf("vault key %q: bad name", name)
	}
	full := "key:" + name
	v.mu.RLock()
	key := v.keys[full]
	v.mu.RUnlock()
	if key != nil {
		return slices.Clone(key), nil
	}
	if err := v.load(ctx); err != nil {
		return nil, fmt.Errorf("vault key %s: %w", name, err)
	}
	v.mu.RLock()
	key = v.keys[full]
	v.mu.RUnlock()
	if key != nil {
		return slices.Clone(key), nil
	}
	err := v.db.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, lockName); err != nil {
			return err
		}
		kek, err := v.checkedKEK(ctx, tx)
		if err != nil {
			return err
		}
		key, err = v.addKey(ctx, tx, full, kek)
		return db.Classify(err)
	})
	if errors.Is(err, db.ErrConflict) { // another core was first
		if err := v.load(ctx); err != nil {
			return nil, fmt.Errorf("vault key %s: %w", name, err)
		}
		v.mu.RLock()
		defer v.mu.RUnlock()
		if key = v.keys[full]; key == nil {
			return nil, fmt.Errorf("vault key %s: %w", name, db.ErrNotFound)
		}
		return slices.Clone(key), nil
	}
	if err != nil {
		return nil, fmt.Errorf("vault key %s: %w", name, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	keys := maps.Clone(v.keys)
	keys[full] = key
	v.keys = keys
	return slices.Clone(key), nil
}

// Signer signs with a named Ed25519 key and checks its signatures.
type Signer struct {
	id  string
	key ed25519.PrivateKey
}

// Signer returns the named Ed25519 signing key (it satisfies audit.Keys),
// making it on first use. Do not call it inside a transaction.
func (v *Vault) Signer(ctx context.Context, name string) (*Signer, error) {
	seed, err := v.Key(ctx, name)
	if err != nil {
		return nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	return &Signer{id: name + ":" + hex.EncodeToString(sum[:8]), key: key}, nil
}

// KeyID names the key: its name and the beginning of its public key's hash.
func (s *Signer) KeyID() string { return s.id }

// Public is the public key.
func (s *Signer) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Crypto is the key for libraries that sign by themselves (certificates).
func (s *Signer) Crypto() crypto.Signer { return s.key }

// Sign signs message.
func (s *Signer) Sign(message []byte) (keyID string, signature []byte, err error) {
	return s.id, ed25519.Sign(s.key, message), nil
}

// Verify reports whether signature over message is that of the key keyID, and
// keyID is this key.
func (s *Signer) Verify(keyID string, message, signature []byte) bool {
	return keyID == s.id && ed25519.Verify(s.Public(), message, signature)
}
