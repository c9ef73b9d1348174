// Package recording keeps what happened in a session: an asciicast v2 stream
// plus channel, exec and file-transfer events, written as encrypted,
// authenticated chunks into a directory (any POSIX or NFS path). A reader
// detects a flipped byte and a truncation and says which. Input typed while
// the terminal does not echo is masked before it is written.
package recording

import (
	"context"
	"time"
)

// Meta describes a recording when it starts.
type Meta struct {
	ConnectionID string
	Kind         string // ssh, exec, sftp
	UserName     string
	TargetName   string
	Account      string
	Width        int
	Height       int
	Title        string
}

// Store makes and opens recordings. Safe for concurrent use.
type Store struct{}

// Create starts a recording. It fails closed: no recording, no session.
func (s *Store) Create(ctx context.Context, m Meta) (*Writer, error) { panic("contract") }

// Writer writes one recording. Safe for concurrent use; a write that cannot
// reach storage within its bound fails, and the session must then end. Data is
// on disk at most one second after it was written.
type Writer struct {
	ID string
}

// Output records bytes the user sees (stderr is merged, as on a terminal).
func (w *Writer) Output(p []byte) error { panic("contract") }

// Input records bytes the user typed; they are masked while the terminal does
// not echo them.
func (w *Writer) Input(p []byte) error { panic("contract") }

// Resize records a new terminal size.
func (w *Writer) Resize(width, height int) error { panic("contract") }

// Event records a structured event: channel, exec, sftp, forward; shown on the
// timeline and searched. Values are cut at 4 KiB.
func (w *Writer) Event(kind string, fields map[string]string) error { panic("contract") }

// Close completes the recording (signed end, index). Without it the recording
// is playable and reported as incomplete.
func (w *Writer) Close() error { panic("contract") }

// Status of a recording.
type Status string

// The statuses.
const (
	Live       Status = "recording"
	Complete   Status = "complete"
	Incomplete Status = "incomplete" // the writer died; what is there is authentic
	Damaged    Status = "damaged"    // authentication failed at a chunk
	Expired    Status = "expired"    // removed by retention
)

// Hit is one place where a search matched.
type Hit struct {
	At   time.Duration `json:"at"`
	Line string        `json:"line"`
}
