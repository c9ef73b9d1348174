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
	f.StoredAt = fromMicro(at)
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
// the file. Not safe for concurrent use. Keeping the copy is best effort
// within the cap; size and hash are always kept.
type FileWriter struct {
	st     *Store
	file   File
	rec    *Writer
	limit  int64
	sum    hash.Hash
	out    *os.File
	w      *bufio.Writer
	chain  *chain
	buf    []byte
	sealed []byte
	blocks uint64
	err    error
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
		st: s, rec: w, limit: s.cfg.Limits().FileMax, sum: sha256.New(),
		file: File{ID: newID("rfl_"), RecordingID: w.ID, Direction: d, Path: cut(path, maxField), Status: "not_stored", StoredAt: s.cfg.Now()},
	}
	if x.limit <= 0 {
		return x, nil
	}
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := s.checkSpace(); err != nil {
		return nil, err
	}
	f, c, raw, sealed, err := s.begin(root, x.file.ID, kindFile, x.file.StoredAt)
	if err != nil {
		return nil, err
	}
	_ = raw // already in the file
	x.out, x.chain, x.sealed = f, c, sealed
	x.w = bufio.NewWriterSize(f, 128<<10)
	x.file.Status = "stored"
	return x, nil
}

// Write adds the next bytes of the file. It fails only when storage does.
func (x *FileWriter) Write(p []byte) (int, error) {
	if x.closed {
		return 0, ErrClosed
	}
	if x.err != nil {
		return 0, x.err
	}
	x.sum.Write(p)
	x.file.Size += int64(len(p))
	if x.out == nil {
		return len(p), nil
	}
	if x.file.Size > x.limit {
		x.file.Status = "too_large"
		return len(p), x.drop()
	}
	for rest := p; len(rest) > 0; {
		n := min(len(rest), chunkSize-len(x.buf))
		x.buf = append(x.buf, rest[:n]...)
		rest = rest[n:]
		if len(x.buf) == chunkSize {
			x.block()
		}
	}
	if x.err != nil {
		return 0, x.err
	}
	return len(p), nil
}

func (x *FileWriter) block() {
	if len(x.buf) == 0 || x.err != nil {
		return
	}
	if _, err := x.w.Write(x.chain.seal(nil, typeFile, x.buf)); err != nil {
		x.err = fmt.Errorf("store file %s: %w", x.file.ID, err)
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

// Close completes the copy, and puts the transfer on the recording's timeline
// and in the audit log.
func (x *FileWriter) Close(ctx context.Context) (File, error) {
	if x.closed {
		return x.file, nil
	}
	x.closed = true
	x.file.SHA256 = hex.EncodeToString(x.sum.Sum(nil))
	if x.out != nil {
		x.block()
		end, err := json.Marshal(totals{Blocks: x.blocks, Output: x.file.Size})
		if err == nil && x.err == nil {
			if _, err = x.w.Write(x.chain.seal(nil, typeEnd, end)); err == nil {
				if err = x.w.Flush(); err == nil {
					err = x.st.sync(x.out)
				}
			}
		}
		if err = errors.Join(err, x.err); err != nil {
			x.file.Status = "not_stored"
			return x.file, errors.Join(fmt.Errorf("store file %s: %w", x.file.ID, err), x.drop())
		}
		if err := x.out.Close(); err != nil {
			return x.file, fmt.Errorf("store file %s: %w", x.file.ID, err)
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
		return x.file, fmt.Errorf("store file %s: %w", x.file.ID, err)
	}
	err = x.rec.Event("file", map[string]string{
		"path": x.file.Path, "direction": string(x.file.Direction), "bytes": fmt.Sprint(x.file.Size),
		"sha256": x.file.SHA256, "file": x.file.ID, "status": x.file.Status,
	})
	return x.file, err
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
	r := bufio.NewReaderSize(ctxReader{ctx, in}, 128<<10)
	h, raw, err := readHead(r)
	if err != nil {
		return err
	}
	if h.ID != f.ID || h.Kind != kindFile {
		return &DamageError{Why: "it belongs to another file"}
	}
	key, err := s.key(f.ID, f.sealedKey)
	if err != nil {
		return err
	}
	defer clear(key)
	c, err := newChain(key, kindFile, raw)
	if err != nil {
		return err
	}
	var size int64
	for {
		typ, payload, _, err := c.open(r)
		if err != nil {
			return fmt.Errorf("read file %s: %w", f.ID, err)
		}
		if typ == typeEnd {
			if size != f.Size {
				return &DamageError{Block: int(c.n), Why: "the file is not whole"}
			}
			return nil
		}
		if typ != typeFile {
			return &DamageError{Block: int(c.n), Why: "it has an unknown type"}
		}
		n, err := w.Write(payload)
		size += int64(n)
		if err != nil {
			return err
		}
	}
}
