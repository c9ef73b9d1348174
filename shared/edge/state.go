package edge

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"caponier/shared/wire"
)

// stateFile holds the whole identity, so that it is replaced as one.
const stateFile = "identity.json"

// identity is what a node is: its key, what core signed for it, and whom it
// trusts. It lives in one file of mode 0600 in a directory of mode 0700.
type identity struct {
	NodeID string        `json:"node_id,omitempty"` // empty until enrolled
	Name   string        `json:"name,omitempty"`
	Kind   wire.NodeKind `json:"kind"`
	Site   string        `json:"site,omitempty"`
	Key    []byte        `json:"key"` // Ed25519, PKCS #8
	Cert   []byte        `json:"certificate,omitempty"`
	Roots  [][]byte      `json:"roots,omitempty"`

	key  ed25519.PrivateKey
	leaf *x509.Certificate
	pool *x509.CertPool
}

// store is a locked state directory.
type store struct {
	dir  string
	lock *os.File
}

// ErrLocked is returned when another process uses the state directory.
var ErrLocked = errors.New("another process uses this state directory")

// openStore makes the directory if need be and locks it for this process.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("state directory %s is open to others (mode %04o): run chmod 700 %s", dir, info.Mode().Perm(), dir)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("state directory %s: %w", dir, ErrLocked)
	}
	return &store{dir: dir, lock: lock}, nil
}

func (s *store) close() error { return s.lock.Close() }

// load reads the identity; nil if there is none yet.
func (s *store) load() (*identity, error) {
	path := filepath.Join(s.dir, stateFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, fmt.Errorf("read identity %s: it is damaged (%w); remove it and enrol again", path, err)
	}
	if err := id.parse(); err != nil {
		return nil, fmt.Errorf("read identity %s: %w; remove it and enrol again", path, err)
	}
	return &id, nil
}

// save replaces the identity in one step; after a crash there is the old one
// or the new one.
func (s *store) save(id *identity) error {
	data, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := writeFile(s.dir, stateFile, data); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

func writeFile(dir, name string, data []byte) error {
	tmp, err := os.CreateTemp(dir, "."+name+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// newIdentity makes a key for a node that is not enrolled yet.
func newIdentity(kind wire.NodeKind) (*identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return &identity{Kind: kind, Key: der, key: key}, nil
}

// parse fills the parsed forms and checks that they belong together.
func (id *identity) parse() error {
	k, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return errors.New("key: not Ed25519")
	}
	id.key = key
	if id.NodeID == "" {
		return nil
	}
	if id.leaf, err = x509.ParseCertificate(id.Cert); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if !key.Public().(ed25519.PublicKey).Equal(id.leaf.PublicKey) {
		return errors.New("certificate: not for this key")
	}
	if len(id.Roots) == 0 || len(id.Roots) > 16 {
		return errors.New("roots: must be 1 to 16 certificates")
	}
	id.pool = x509.NewCertPool()
	for _, der := range id.Roots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("roots: %w", err)
		}
		id.pool.AddCert(c)
	}
	// The time is not judged here: a certificate that has ended is reported
	// as that, not as a damaged file.
	_, err = id.leaf.Verify(x509.VerifyOptions{Roots: id.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		CurrentTime: id.leaf.NotBefore.Add(time.Second)})
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return nil
}

func (id *identity) certificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{id.Cert}, PrivateKey: id.key, Leaf: id.leaf}
}

// request makes a PKCS #10 request for the key.
func (id *identity) request() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, id.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}

// place is a fingerprint of where the state directory is: the machine and the
// directory's inode. A copy has another one.
func (s *store) place() (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(s.dir, &st); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	h := sha256.New()
	for _, name := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if b, err := os.ReadFile(name); err == nil && len(strings.TrimSpace(string(b))) > 0 {
			fmt.Fprintf(h, "machine %s\n", strings.TrimSpace(string(b)))
			break
		}
	}
	fmt.Fprintf(h, "dir %d %d\n", st.Dev, st.Ino)
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}
