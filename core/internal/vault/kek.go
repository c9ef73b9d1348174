package vault

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// KEK is a key-encryption key. It prints as its ID only.
type KEK struct {
	id  string
	key [32]byte
}

// kekPrefix marks the text form of a KEK, so that nobody mistakes it for
// another kind of key.
const kekPrefix = "caponier-kek-1:"

// ID names the KEK without telling anything about it.
func (k KEK) ID() string { return k.id }

// String is the ID.
func (k KEK) String() string { return "kek " + k.id }

// Format prints the ID whatever the verb.
func (k KEK) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// MarshalText is the ID, in JSON and logs too.
func (k KEK) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Text is the form to store in a file or a secret store.
func (k KEK) Text() string { return kekPrefix + base64.StdEncoding.EncodeToString(k.key[:]) }

func newKEK(key []byte) KEK {
	k := KEK{}
	copy(k.key[:], key)
	sum := sha256.Sum256(append([]byte("caponier kek id\x00"), key...))
	k.id = hex.EncodeToString(sum[:6])
	return k
}

// GenerateKEK makes a new one.
func GenerateKEK() KEK {
	var key [32]byte
	rand.Read(key[:])
	return newKEK(key[:])
}

// ErrKEK means that text is not a KEK; it never quotes the text.
var ErrKEK = errors.New("not a key-encryption key (want " + kekPrefix + " and 44 characters of base64; make one with caponier-core vault keygen)")

// ParseKEK reads the text form.
func ParseKEK(text string) (KEK, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), kekPrefix)
	if !ok {
		return KEK{}, ErrKEK
	}
	key, err := base64.StdEncoding.Strict().DecodeString(rest)
	if err != nil || len(key) != 32 {
		return KEK{}, ErrKEK
	}
	return newKEK(key), nil
}

// LoadKEK reads a KEK from a file that only its owner may read.
func LoadKEK(path string) (KEK, error) {
	f, err := os.Open(path)
	if err != nil {
		return KEK{}, fmt.Errorf("load key-encryption key: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return KEK{}, fmt.Errorf("load key-encryption key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return KEK{}, fmt.Errorf("load key-encryption key %s: not a regular file", path)
	}
	if m := st.Mode().Perm(); m&0o077 != 0 {
		return KEK{}, fmt.Errorf("load key-encryption key %s: mode is %04o, others may read it; run chmod 600 %s", path, m, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return KEK{}, fmt.Errorf("load key-encryption key %s: %w", path, err)
	}
	k, err := ParseKEK(string(b))
	if err != nil {
		return KEK{}, fmt.Errorf("load key-encryption key %s: %w", path, err)
	}
	return k, nil
}

// KEKFromEnv reads a KEK from a variable of the environment and removes it
// there, so that no child process inherits it.
func KEKFromEnv(name string) (KEK, error) {
	text := os.Getenv(name)
	if err := os.Unsetenv(name); err != nil {
		return KEK{}, fmt.Errorf("load key-encryption key from %s: %w", name, err)
	}
	k, err := ParseKEK(text)
	if err != nil {
		return KEK{}, fmt.Errorf("load key-encryption key from %s: %w", name, err)
	}
	return k, nil
}

// WriteKEK writes a new KEK file with mode 0600. It never overwrites one.
func WriteKEK(path string, k KEK) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write key-encryption key: %w", err)
	}
	_, err = f.WriteString(k.Text() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write key-encryption key %s: %w", path, err)
	}
	return nil
}
