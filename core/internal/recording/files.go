package recording

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Direction of a file transfer, as the user sees it.
type Direction string

// The directions.
const (
	Upload   Direction = "upload"
	Download Direction = "download"
)

// File is a transferred file. Its content is kept when status is stored; size
// and hash are those of the whole transfer in any case.
type File struct {
	ID          string    `json:"id"`
	RecordingID string    `json:"recording_id"`
	Direction   Direction `json:"direction" enum:"upload,download"`
	Path        string    `json:"path"`
	Size        int64     `json:"size_bytes"`
	SHA256      string    `json:"sha256"`
	Status      string    `json:"status" enum:"stored,too_large,not_stored,expired"`
	StoredAt    time.Time `json:"stored_at"`

	sealedKey string
}

const fileColumns = `id, recording_id, direction, path, size, sha256, status, sealed_key, stored_at`

const (
	insertFileSQL = `insert into recording_files (` + fileColumns + `) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`
	filesSQL      = `select ` + fileColumns + ` from recording_files where recording_id = $1 order by stored_at, id limit 10000`
	getFileSQL    = `select ` + fileColumns + ` from recording_files where id = $1`

	filesSinceSQL  = `select id from recording_files where stored_at >= $1`
	expireFilesSQL = `update recording_files set status = 'expired' where recording_id = $1 and status = 'stored'`

	insertTicketSQL = `insert into recording_tickets (hash, file_id, user_id, expires_at) values ($1, $2, $3, $4)`
	takeTicketSQL   = `delete from recording_tickets where hash = $1 and user_id = $2 and expires_at > $3 returning file_id`
	dropTicketsSQL  = `delete from recording_tickets where expires_at <= $1`
)

func scanFile(r scanRow) (File, error) {
	var f File
	var at int64
	err := r.Scan(&f.ID, &f.RecordingID, &f.Direction, &f.Path, &f.Size, &f.SHA256, &f.Status, &f.sealedKey, &at)
	if err != nil {
		return File{}, db.Classify(err)
	}
	f.StoredAt = db.FromMicro(at)
	return f, nil
}

func (s *Store) files(ctx context.Context, q db.Querier, recordingID string) ([]File, error) {
	rows, err := q.QueryContext(ctx, filesSQL, recordingID)
	if err != nil {
		return nil, fmt.Errorf("list files of %s: %w", recordingID, err)
	}
	defer rows.Close()
	out := []File{}
	for rows.Next() {
		f, err := scanFile(rows)
		if err != nil {
			return nil, fmt.Errorf("list files of %s: %w", recordingID, err)
		}
		out = append(out, f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list files of %s: %w", recordingID, err)
	}
	return out, nil
}

// FileWriter takes a copy of one transferred file. Writes are in the order of
// the file. Not safe for concurrent use. Keeping the copy is best effort: when
// it is larger than the cap or storage does not take it, the transfer goes on
// and the list says so. Size and hash are always kept.
type FileWriter struct {
	st     *Store
	file   File
	rec    *Writer
	note   func(kind string, fields map[string]string) error // puts it on the timeline
	limit  int64
	sum    hash.Hash
	out    *os.File
	w      *bufio.Writer
	chain  *chain
	buf    []byte
	sealed []byte
	blocks uint64
	lost   bool // given up: not all content is seen, so there is no hash
	closed bool
}

// File starts the copy of a transferred file that belongs to the recording.
// path is kept for people to read and is never used as a path.
func (w *Writer) File(ctx context.Context, d Direction, path string) (*FileWriter, error) {
	if d != Upload && d != Download {
		return nil, fmt.Errorf("store file: unknown direction %q", d)
	}
	s := w.st
	x := &FileWriter{
		st: s, rec: w, note: w.Event, limit: s.cfg.Limits().FileMax, sum: sha256.New(),
		file: File{ID: db.NewID("rfl_"), RecordingID: w.ID, Direction: d, Path: cut(path, maxField), Status: "not_stored", StoredAt: s.cfg.Now()},
	}
	if x.limit > 0 {
		if err := x.begin(); err != nil {
			x.failed(err)
		}
	}
	return x, nil
}

func (x *FileWriter) begin() error {
	root, err := x.st.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := x.st.checkSpace(); err != nil {
		return err
	}
	x.out, x.chain, _, x.sealed, err = x.st.begin(root, x.file.ID, kindFile, version, x.file.StoredAt)
	if err != nil {
		x.out = nil
		return err
	}
	x.w = bufio.NewWriterSize(x.out, chunkSize)
	x.file.Status = "stored"
	return nil
}

// failed gives up a copy that storage did not take.
func (x *FileWriter) failed(err error) {
	x.file.Status = "not_stored"
	err = errors.Join(err, x.drop())
	x.st.metrics.lostFiles.Inc()
	x.st.cfg.Log.Error("store a copy of a transferred file", "recording", x.file.RecordingID, "file", x.file.ID, "err", err)
}

// Write adds the next bytes of the file. It fails only after Close.
func (x *FileWriter) Write(p []byte) (int, error) {
	if x.closed {
		return 0, ErrClosed
	}
	x.file.Size += int64(len(p))
	if x.lost {
		return len(p), nil
	}
	x.sum.Write(p)
	if x.out == nil {
		return len(p), nil
	}
	if x.file.Size > x.limit {
		if err := x.drop(); err != nil {
			x.failed(err)
		}
		x.file.Status = "too_large"
		return len(p), nil
	}
	for rest := p; len(rest) > 0 && x.out != nil; {
		n := min(len(rest), chunkSize-len(x.buf))
		x.buf = append(x.buf, rest[:n]...)
		rest = rest[n:]
		if len(x.buf) == chunkSize {
			x.block()
		}
	}
	return len(p), nil
}

// Abandon gives the copy up: what follows is only counted, and the file has no
// hash. It is for transfers whose content is not seen in order.
func (x *FileWriter) Abandon() {
	if x.lost || x.closed {
		return
	}
	x.lost = true
	if err := x.drop(); err != nil {
		x.failed(err)
	}
	x.file.Status = "not_stored"
}

func (x *FileWriter) block() {
	if len(x.buf) == 0 {
		return
	}
	if _, err := x.w.Write(x.chain.seal(nil, typeFile, x.buf)); err != nil {
		x.failed(err)
		return
	}
	x.buf = x.buf[:0]
	x.blocks++
}

// drop gives the copy up and removes what is there of it.
func (x *FileWriter) drop() error {
	if x.out == nil {
		return nil
	}
	err := x.out.Close()
	x.out, x.buf, x.sealed = nil, nil, nil
	root, oerr := x.st.open()
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	defer root.Close()
	return errors.Join(err, ignoreMissing(root.Remove(fileName(x.file.ID, kindFile, x.file.StoredAt))))
}

// complete writes the end mark.
func (x *FileWriter) complete() error {
	end, err := json.Marshal(totals{Blocks: x.blocks, Output: x.file.Size})
	if err != nil {
		return err
	}
	if _, err = x.w.Write(x.chain.seal(nil, typeEnd, end)); err != nil {
		return err
	}
	if err = x.w.Flush(); err != nil {
		return err
	}
	return x.st.sync(x.out)
}

// Close completes the copy, and puts the transfer on the recording's timeline
// and in the audit log. When the database does not take it, no copy is kept.
func (x *FileWriter) Close(ctx context.Context) (File, error) {
	if x.closed {
		return x.file, nil
	}
	x.closed = true
	if !x.lost {
		x.file.SHA256 = hex.EncodeToString(x.sum.Sum(nil))
	}
	if x.out != nil {
		x.block()
	}
	if x.out != nil {
		if err := x.complete(); err != nil {
			x.failed(err)
		}
	}
	err := x.st.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		f := x.file
		_, err := tx.ExecContext(ctx, insertFileSQL, f.ID, f.RecordingID, string(f.Direction), f.Path, f.Size, f.SHA256, f.Status,
			base64.StdEncoding.EncodeToString(x.sealed), f.StoredAt.UnixMicro())
		if err != nil {
			return err
		}
		m := x.rec.meta
		return x.st.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.RecordingFileKept, Outcome: audit.OK, Connection: m.ConnectionID,
			Actor:  audit.Actor{Kind: "user", ID: m.UserID, Name: m.UserName},
			Object: audit.Object{Kind: "recording", ID: f.RecordingID},
			Fields: map[string]string{
				"file": f.ID, "path": cut(f.Path, 1000), "direction": string(f.Direction), "sha256": f.SHA256,
				"bytes": fmt.Sprint(f.Size), "status": f.Status,
			},
		})
	})
	if err != nil {
		err = fmt.Errorf("file %s: %w", x.file.ID, err)
		x.failed(err)
	}
	if x.out != nil {
		if cerr := x.out.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("store file %s: %w", x.file.ID, cerr))
		}
		x.out = nil
	}
	return x.file, errors.Join(err, x.note("file", map[string]string{
		"path": x.file.Path, "direction": string(x.file.Direction), "bytes": fmt.Sprint(x.file.Size),
		"sha256": x.file.SHA256, "file": x.file.ID, "status": x.file.Status,
	}))
}

// ticketFor is how long the second step of a download may follow the first.
const ticketFor = time.Minute

// ticket allows one user one download of one file, once and soon.
func (s *Store) ticket(ctx context.Context, fileID, userID string) (string, time.Time, error) {
	t := strings.ToLower(rand.Text())
	until := s.cfg.Now().Add(ticketFor)
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.ExecContext(ctx, insertTicketSQL, ticketHash(t), fileID, userID, until.UnixMicro())
		return err
	})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("make download ticket: %w", err)
	}
	return t, until, nil
}

func ticketHash(t string) string {
	h := sha256.Sum256([]byte("caponier download " + t))
	return hex.EncodeToString(h[:])
}

func (s *Store) dropTickets(ctx context.Context) error {
	if _, err := s.cfg.DB.ExecContext(ctx, dropTicketsSQL, s.cfg.Now().UnixMicro()); err != nil {
		return fmt.Errorf("drop download tickets: %w", err)
	}
	return nil
}

// copyFile writes the content of a stored file to w. What it has written when
// it fails is authentic but not whole.
func (s *Store) copyFile(ctx context.Context, w io.Writer, f File) error {
	in, err := s.openFile(f.ID, kindFile, f.StoredAt)
	if err != nil {
		return err
	}
	defer in.Close()
	return copySealed(ctx, w, in, f.ID, kindFile, f.Size, func() ([]byte, error) { return s.key(f.ID, f.sealedKey) })
}
