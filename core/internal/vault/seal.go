package vault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// A sealed value is
//
//	1 version (1) | 8 root key | 12 nonce, 48 wrapped data key |
//	12 nonce, n ciphertext, 16 tag
//
// The data key is wrapped by AES-256-GCM under the root key; the value is
// sealed by AES-256-GCM under the data key with the place as additional data.
const (
	sealedVersion = 1
	nonceSize     = 12
	tagSize       = 16
	keySize       = 32
	wrapSize      = nonceSize + keySize + tagSize
	headSize      = 1 + 8 + wrapSize
	// MaxValue bounds a sealed value, in bytes.
	MaxValue = 1 << 20
)

// rootID names a generation of the root key.
type rootID [8]byte

// sealed is a sealed value taken apart; its slices alias the input.
type sealed struct {
	root  rootID
	wrap  []byte
	value []byte // nonce, ciphertext, tag
}

// ErrNotOpened means that a value does not open here: it is damaged, was
// moved from another place, or was never a sealed value. Which one is not told.
var ErrNotOpened = errors.New("sealed value does not open")

func parseSealed(b []byte) (sealed, error) {
	if len(b) < headSize+nonceSize+tagSize || len(b) > headSize+nonceSize+MaxValue+tagSize || b[0] != sealedVersion {
		return sealed{}, ErrNotOpened
	}
	return sealed{root: rootID(b[1:9]), wrap: b[9:headSize], value: b[headSize:]}, nil
}

// aad is the additional data of a value at its place. Lengths in front keep
// different places apart.
func (p Place) aad() []byte {
	b := []byte("caponier sealed value v1")
	for _, s := range []string{p.Table, p.Column, p.Row} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

func wrapAAD(root rootID) []byte { return append([]byte("caponier data key v1"), root[:]...) }

// gcmSeal returns nonce, ciphertext and tag.
func gcmSeal(key, plaintext, aad []byte) []byte {
	g := gcm(key)
	nonce := make([]byte, nonceSize, nonceSize+len(plaintext)+tagSize)
	rand.Read(nonce)
	return g.Seal(nonce, nonce, plaintext, aad)
}

func gcmOpen(key, box, aad []byte) ([]byte, error) {
	if len(box) < nonceSize+tagSize {
		return nil, ErrNotOpened
	}
	out, err := gcm(key).Open(nil, box[:nonceSize], box[nonceSize:], aad)
	if err != nil {
		return nil, ErrNotOpened
	}
	return out, nil
}

func gcm(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("vault: " + err.Error()) // every key of ours has 32 bytes
	}
	g, err := cipher.NewGCM(block)
	if err != nil {
		panic("vault: " + err.Error())
	}
	return g
}

// Seal encrypts plaintext, at most MaxValue bytes, for its place. The result
// carries its wrapped data key.
func (v *Vault) Seal(p Place, plaintext []byte) ([]byte, error) {
	if p.Table == "" || p.Column == "" || p.Row == "" {
		return nil, fmt.Errorf("seal value: place %q is not whole", p)
	}
	if len(plaintext) > MaxValue {
		return nil, fmt.Errorf("seal value for %s.%s: %d bytes, at most %d", p.Table, p.Column, len(plaintext), MaxValue)
	}
	id, root := v.currentRoot()
	var data [keySize]byte
	rand.Read(data[:])
	defer clear(data[:])
	out := append([]byte{sealedVersion}, id[:]...)
	out = append(out, gcmSeal(root, data[:], wrapAAD(id))...)
	return append(out, gcmSeal(data[:], plaintext, p.aad())...), nil
}

// Open decrypts what Seal made for the same place. The error says nothing
// about the content.
func (v *Vault) Open(p Place, b []byte) ([]byte, error) {
	s, err := parseSealed(b)
	if err != nil {
		return nil, err
	}
	data, err := v.unwrap(s)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return gcmOpen(data, s.value, p.aad())
}

func (v *Vault) unwrap(s sealed) ([]byte, error) {
	root, err := v.rootKey(s.root)
	if err != nil {
		return nil, err
	}
	return gcmOpen(root, s.wrap, wrapAAD(s.root))
}

// rewrap returns b with its data key under the current root key; the value
// itself stays as it is. changed is false when it was so already.
func (v *Vault) rewrap(b []byte) (out []byte, changed bool, err error) {
	s, err := parseSealed(b)
	if err != nil {
		return nil, false, err
	}
	id, root := v.currentRoot()
	if s.root == id {
		return b, false, nil
	}
	data, err := v.unwrap(s)
	if err != nil {
		return nil, false, err
	}
	defer clear(data)
	out = append([]byte{sealedVersion}, id[:]...)
	out = append(out, gcmSeal(root, data, wrapAAD(id))...)
	return append(out, s.value...), true, nil
}

func (v *Vault) currentRoot() (rootID, []byte) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.root, v.keys[rootName(v.root)]
}

// rootKey finds a generation of the root key, looking into the database for
// one that another core made.
func (v *Vault) rootKey(id rootID) ([]byte, error) {
	v.mu.RLock()
	key := v.keys[rootName(id)]
	v.mu.RUnlock()
	if key != nil {
		return key, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := v.load(ctx); err != nil {
		return nil, fmt.Errorf("open sealed value: %w", err)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if key = v.keys[rootName(id)]; key == nil {
		return nil, ErrNotOpened
	}
	return key, nil
}

// DataKey makes a 32-byte key for bulk data and its sealed form to store at p.
func (v *Vault) DataKey(p Place) (key, sealed []byte, err error) {
	key = make([]byte, keySize)
	rand.Read(key)
	sealed, err = v.Seal(p, key)
	if err != nil {
		return nil, nil, err
	}
	return key, sealed, nil
}

// OpenDataKey opens what DataKey sealed.
func (v *Vault) OpenDataKey(p Place, sealed []byte) ([]byte, error) {
	key, err := v.Open(p, sealed)
	if err != nil {
		return nil, err
	}
	if len(key) != keySize {
		return nil, ErrNotOpened
	}
	return key, nil
}
