// Package recording keeps what happened in a session: a timeline of terminal
// output, input, sizes and events (channel, exec, file transfer), written as
// encrypted, authenticated blocks into a directory (any POSIX or NFS path),
// shown as asciicast v2. A reader detects a flipped byte and a truncation and
// says which (format.go). Input typed while the terminal does not echo is
// masked before it is written (mask.go). A recording of kind web holds the
// frames and events of a browser session, brought by several nodes (web.go).
//
// Invariants: no recording, no session; what is written is on disk within one
// second, or the writer fails; a file is found by the ID of its row and by
// nothing a user may choose; plain text is never on disk.
package recording

import (
	"errors"
	"regexp"
	"time"

	"caponier/core/internal/vault"
)

// Meta describes a recording when it starts.
type Meta struct {
	ConnectionID string
	Kind         string // ssh, exec, sftp, web
	UserID       string // whose own recording it is
	UserName     string
	TargetID     string
	TargetName   string
	Account      string
	Width        int
	Height       int
	Title        string
}

// Status of a recording.
type Status string

// The statuses.
const (
	Live       Status = "recording"
	Complete   Status = "complete"
	Incomplete Status = "incomplete" // the writer died; what is there is authentic
	Damaged    Status = "damaged"    // authentication failed at a block
	Expired    Status = "expired"    // removed by retention
)

// Hit is one place where a search matched.
type Hit struct {
	At   time.Duration `json:"at"`
	Line string        `json:"line"`
}

// Limits are asked for at each use, so a changed setting holds at once.
type Limits struct {
	// Retention is how long a recording is kept.
	Retention time.Duration
	// MinFree is the space, in bytes, that must be free to start a recording.
	MinFree int64
	// FileMax is the largest transferred file of which a copy is stored, in
	// bytes; 0 stores none.
	FileMax int64
	// OwnView lets users see the recordings of their own sessions.
	OwnView bool
}

// DefaultLimits are used where Config names none.
func DefaultLimits() Limits {
	return Limits{Retention: 180 * 24 * time.Hour, MinFree: 256 << 20, FileMax: 0, OwnView: true}
}

// Errors of Create and of writers.
var (
	// ErrFull: not enough space is free to start a recording.
	ErrFull = errors.New("recording storage is full")
	// ErrStorage: the recording directory is missing or not mounted.
	ErrStorage = errors.New("recording storage is not available")
	// ErrStalled: storage does not take data within its bound.
	ErrStalled = errors.New("recording storage stalls")
	// ErrClosed: the recording is closed.
	ErrClosed = errors.New("recording is closed")
)

// Keys wraps data keys for rest; *vault.Vault is the real one.
type Keys interface {
	Seal(p vault.Place, plaintext []byte) ([]byte, error)
	Open(p vault.Place, sealed []byte) ([]byte, error)
}

var idPattern = regexp.MustCompile(`^(rec|rfl)_[a-z2-7]{26}$`)

// validID reports whether id is one of ours and therefore safe in a path.
func validID(id string) bool { return idPattern.MatchString(id) }
