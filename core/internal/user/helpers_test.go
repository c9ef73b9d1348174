package user

import (
	"crypto/rand"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/ssh"

	"caponier/core/internal/db"
)

// strictRand is crypto/rand as an io.Reader.
type strictRand struct{}

func (strictRand) Read(b []byte) (int, error) { return rand.Read(b) }

func raw(name, value string) map[string]json.RawMessage {
	return map[string]json.RawMessage{name: json.RawMessage(value)}
}

// oldHash is a hash with parameters of another time.
func oldHash(password string) string {
	salt := randomBytes(16)
	return argonHash{time: 2, memory: 256, threads: 1, salt: salt,
		key: argon2.IDKey([]byte(password), salt, 2, 256, 1, 32)}.String()
}

// rsa1024 is a public key that is too short.
const rsa1024 = `ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCk4aXaVGFTkKXlhRCVJP1v+CT5d2Awxvj/oOyAAliLzu+nqosE/x5LGbxAJIqmfuUqhe2cDBxszlgyMA2JeaA2uPMS2SV/65T4Jnriv23EXfm2nD2FBrjS8uHGWUbpsOOFL1S15dI9E0aNWMUqLoVAvR88zXHCURcBfIyW3A9lnw== weak`

// netOf is an address in a network of its own.
func netOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}) }

// authorizedKey is a fresh key as in id_ed25519.pub.
func authorizedKey(t testing.TB) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(newSSHKey(t).PublicKey())))
}

// notesOf subscribes and waits until notes really arrive: on PostgreSQL the
// listener needs a moment to connect, and what was sent before is lost. Notes
// of topic "ping" are its own.
func notesOf(t *testing.T, d *db.DB) <-chan db.Note {
	t.Helper()
	notes := d.Subscribe(t.Context())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := d.Tx(t.Context(), func(tx *db.Tx) error { return tx.Notify(t.Context(), "ping", "") }); err != nil {
			t.Fatal(err)
		}
		select {
		case <-notes:
			return notes
		case <-tick.C:
		}
	}
}
