package user

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// Parameters of argon2id (RFC 9106) for new hashes; see
// docs/decisions/0040-argon2id.md for the choice and its price.
const (
	argonTime    = 1
	argonMemory  = 46 * 1024 // KiB
	argonThreads = 1
	argonSalt    = 16 // bytes
	argonKey     = 32 // bytes
)

// maxPassword bounds a password in bytes.
const maxPassword = 256

// errBadHash is a stored hash this build cannot read: nobody gets in by it.
var errBadHash = errors.New("stored password hash is not readable")

// hasher runs argon2id with a bound on how many run at once, so that a flood
// of logins costs waiting time and not memory.
type hasher struct {
	slots chan struct{}
	// memory is what a new hash needs, in KiB.
	memory uint32
	// dummy is verified for users who do not exist or have no password.
	dummy argonHash
}

func newHasher(concurrency int) *hasher {
	d := argonHash{time: argonTime, memory: argonMemory, threads: argonThreads,
		salt: make([]byte, argonSalt), key: make([]byte, argonKey)}
	rand.Read(d.salt)
	rand.Read(d.key)
	return &hasher{slots: make(chan struct{}, max(concurrency, 1)), memory: argonMemory, dummy: d}
}

// argonHash is a parsed hash.
type argonHash struct {
	time, memory uint32
	threads      uint8
	salt, key    []byte
}

// String writes the hash in the PHC string format.
func (h argonHash) String() string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, h.memory, h.time, h.threads, b64(h.salt), b64(h.key))
}

// current reports whether the hash has today's parameters.
func (h argonHash) current(memory uint32) bool {
	return h.time == argonTime && h.memory == memory && h.threads == argonThreads && len(h.key) == argonKey
}

// parseHash reads what String wrote, with bounds on what it may cost.
func parseHash(s string) (argonHash, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return argonHash{}, errBadHash
	}
	var h argonHash
	var version int
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return argonHash{}, errBadHash
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil {
		return argonHash{}, errBadHash
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	key, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	h.salt, h.key = salt, key
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(key) < 16 || len(key) > 64 ||
		h.time < 1 || h.time > 16 || h.memory < 8 || h.memory > 1<<20 || h.threads < 1 || h.threads > 16 {
		return argonHash{}, errBadHash
	}
	return h, nil
}

// acquire waits for a slot.
func (h *hasher) acquire(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait to hash a password: %w", context.Cause(ctx))
	}
}

// hash makes a fresh hash of password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.acquire(ctx); err != nil {
		return "", err
	}
	defer func() { <-h.slots }()
	salt := make([]byte, argonSalt)
	rand.Read(salt)
	key := argon2.IDKey([]byte(password), salt, argonTime, h.memory, argonThreads, argonKey)
	return argonHash{argonTime, h.memory, argonThreads, salt, key}.String(), nil
}

// verify compares password with a stored hash in constant time. An empty or
// unreadable stored hash costs the same work and never matches. renew reports
// that the hash should be made anew with today's parameters.
func (h *hasher) verify(ctx context.Context, stored, password string) (ok, renew bool, err error) {
	want, perr := parseHash(stored)
	usable := perr == nil
	if !usable {
		want = h.dummy
	}
	if len(password) > maxPassword {
		password, usable = "", false
	}
	if err := h.acquire(ctx); err != nil {
		return false, false, err
	}
	defer func() { <-h.slots }()
	got := argon2.IDKey([]byte(password), want.salt, want.time, want.memory, want.threads, uint32(len(want.key)))
	ok = subtle.ConstantTimeCompare(got, want.key) == 1 && usable
	return ok, ok && !want.current(h.memory), nil
}

// checkPassword returns what is wrong with a new password, or "".
func checkPassword(name, password string, shortest int) string {
	switch {
	case !utf8.ValidString(password) || strings.ContainsRune(password, 0):
		return "must be text"
	case len(password) > maxPassword:
		return fmt.Sprintf("must have at most %d bytes", maxPassword)
	case utf8.RuneCountInString(password) < shortest:
		return fmt.Sprintf("must have at least %d characters", shortest)
	case isBearer(password):
		return "must not look like an API token"
	case len(name) >= 4 && strings.Contains(strings.ToLower(password), strings.ToLower(name)):
		return "must not contain the user name"
	case distinctRunes(password) < 5:
		return "must have more different characters"
	}
	return ""
}

func distinctRunes(s string) int {
	seen := map[rune]bool{}
	for _, r := range s {
		seen[r] = true
	}
	return len(seen)
}

// generatePassword makes a password of 100 random bits in groups that can be
// read out.
func generatePassword() string {
	t := strings.ToLower(rand.Text())
	return t[0:5] + "-" + t[5:10] + "-" + t[10:15] + "-" + t[15:20]
}
