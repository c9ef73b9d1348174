package recording

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/db"
)

// buildIndex writes the transcript of a finished recording beside it,
// encrypted like the recording under a key derived from the same data key.
// It is written under another name first: an index is whole or not there.
func (s *Store) buildIndex(ctx context.Context, r *Recording) error {
	x, f, err := s.reader(r)
	if err != nil {
		return err
	}
	defer f.Close()
	key, err := s.key(r.ID, r.sealedKey)
	if err != nil {
		return err
	}
	defer clear(key)
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	raw, err := encodeHead(head{ID: r.ID, Kind: kindIndex, StartedUS: r.StartedAt.UnixMicro()})
	if err != nil {
		return err
	}
	c, err := newChain(key, kindIndex, raw)
	if err != nil {
		return err
	}
	name := fileName(r.ID, kindIndex, r.StartedAt)
	out, err := root.OpenFile(name+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write index of %s: %w", r.ID, err)
	}
	err = writeIndex(ctx, out, x, c, raw)
	if err == nil {
		err = out.Sync()
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(name+".part", name)
	}
	if err != nil {
		return fmt.Errorf("write index of %s: %w", r.ID, errors.Join(err, ignoreMissing(root.Remove(name+".part"))))
	}
	return s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.ExecContext(ctx, indexedSQL, r.ID, true)
		if err != nil {
			return fmt.Errorf("mark %s indexed: %w", r.ID, err)
		}
		return nil
	})
}

func writeIndex(ctx context.Context, out io.Writer, x *Reader, c *chain, raw []byte) error {
	w := bufio.NewWriterSize(out, 64<<10)
	w.Write(raw) // errors of a bufio.Writer come with Flush
	var payload, block []byte
	blocks := 0
	flush := func() {
		if len(payload) > 0 {
			block = c.seal(block[:0], typeIndex, payload)
			w.Write(block)
			payload = payload[:0]
			blocks++
		}
	}
	t := &transcript{emit: func(l Line) error {
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		payload = append(append(payload, b...), '\n')
		if len(payload) >= chunkSize {
			flush()
		}
		return ctx.Err()
	}}
	for {
		it, err := x.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := t.item(it); err != nil {
			return err
		}
	}
	t.flush()
	flush()
	end, err := json.Marshal(totals{Blocks: uint64(blocks)})
	if err != nil {
		return err
	}
	w.Write(c.seal(nil, typeEnd, end))
	return w.Flush()
}

// lines calls each for every transcript line of r until it returns false.
// Without a sound index the recording itself is read.
func (s *Store) lines(ctx context.Context, r *Recording, each func(Line) bool) error {
	if r.Indexed {
		err := s.indexLines(ctx, r, each)
		if d, damaged := errors.AsType[*DamageError](err); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errCut) && !damaged {
			return err
		} else if damaged {
			s.cfg.Log.Warn("index of a recording is damaged; reading the recording", "recording", r.ID, "err", d)
		}
	}
	x, f, err := s.reader(r)
	if err != nil {
		return err
	}
	defer f.Close()
	stop := errors.New("enough")
	t := &transcript{emit: func(l Line) error {
		if !each(l) {
			return stop
		}
		return ctx.Err()
	}}
	for {
		it, err := x.Next()
		if errors.Is(err, io.EOF) {
			t.flush()
			if errors.Is(t.err, stop) {
				return nil
			}
			return t.err
		}
		if err != nil {
			return err
		}
		if err := t.item(it); errors.Is(err, stop) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *Store) indexLines(ctx context.Context, r *Recording, each func(Line) bool) error {
	f, err := s.openFile(r.ID, kindIndex, r.StartedAt)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 64<<10)
	h, raw, err := readHead(in)
	if err != nil {
		return err
	}
	if h.ID != r.ID || h.Kind != kindIndex {
		return &DamageError{Why: "it belongs to another recording"}
	}
	key, err := s.key(r.ID, r.sealedKey)
	if err != nil {
		return err
	}
	defer clear(key)
	c, err := newChain(key, kindIndex, raw)
	if err != nil {
		return err
	}
	// An index is used only when it is whole: it is read before it is believed.
	var all [][]byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		typ, payload, _, err := c.open(in)
		if err != nil {
			return err
		}
		if typ == typeEnd {
			break
		}
		if typ != typeIndex {
			return &DamageError{Block: int(c.n), Why: "it has an unknown type"}
		}
		all = append(all, payload)
		if len(all) > maxIndexBlocks {
			return fmt.Errorf("index of %s is too large", r.ID)
		}
	}
	for _, payload := range all {
		for raw := range bytes.Lines(payload) {
			var l Line
			if json.Unmarshal(raw, &l) != nil {
				return &DamageError{Block: int(c.n), Why: "its lines are not readable"}
			}
			if !each(l) {
				return nil
			}
		}
	}
	return nil
}

// maxIndexBlocks bounds an index in memory: 256 MiB of text.
const maxIndexBlocks = 4096

// Search returns where text occurs in a recording's transcript, ignoring case,
// at most limit places at or after from.
func (s *Store) Search(ctx context.Context, r *Recording, text string, from time.Duration, limit int) ([]Hit, error) {
	want := strings.ToLower(text)
	hits := []Hit{}
	err := s.lines(ctx, r, func(l Line) bool {
		at := time.Duration(l.AtMS) * time.Millisecond
		if at >= from && strings.Contains(strings.ToLower(l.Text), want) {
			hits = append(hits, Hit{At: at, Line: excerpt(l.Text, want)})
		}
		return len(hits) < limit
	})
	if err != nil {
		return nil, fmt.Errorf("search recording %s: %w", r.ID, err)
	}
	// The nodes of a web session bring their events at different times.
	slices.SortStableFunc(hits, func(a, b Hit) int { return cmp.Compare(a.At, b.At) })
	return hits, nil
}

// maxHit is about how much of a long line a hit shows, in bytes.
const maxHit = 1000

// excerpt cuts a long line around the first place where want, in lower case, is.
func excerpt(line, want string) string {
	if len(line) <= 2*maxHit {
		return line
	}
	i := max(strings.Index(strings.ToLower(line), want), 0)
	from := min(max(i-maxHit/2, 0), len(line))
	return strings.ToValidUTF8(line[from:min(from+maxHit+len(want), len(line))], "")
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
