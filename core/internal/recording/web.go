package recording

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"caponier/shared/wire"
)

// KindWeb is the kind of recordings of web sessions. Their records come from
// the nodes of the session, each with its own numbers and clock; see Append.
const KindWeb = "web"

// Bounds of a web recording's writer.
const (
	// webFlushAfter and webSyncAfter bound how long Append waits, and how often
	// a busy session forces its file to disk.
	webFlushAfter = 40 * time.Millisecond
	webSyncAfter  = 100 * time.Millisecond
	// maxPixels bounds each side of a picture.
	maxPixels = 16384
	// maxSources bounds the nodes one session may have had.
	maxSources = 64
)

// ErrRecords is the error under every batch of records that is malformed.
var ErrRecords = errors.New("records are not acceptable")

// GapError says that records are missing before a batch.
type GapError struct {
	Source    string
	Want, Got uint64
}

// Error implements error.
func (e *GapError) Error() string {
	return fmt.Sprintf("records %d to %d of %s are missing", e.Want, e.Got-1, e.Source)
}

// WebWriter writes the recording of one web session. Safe for concurrent use.
type WebWriter struct {
	ID string

	w *Writer

	// order is held while a record's pieces are written: they stay together.
	order sync.Mutex
	// mu guards sources.
	mu      sync.Mutex
	sources map[string]*source
}

// source is one node of a session.
type source struct {
	next uint64        // number to take next
	kept uint64        // like next, of what is on disk
	last time.Duration // of its last record
}

// CreateWeb starts the recording of a web session; like Create it fails
// closed. The meta's width and height are pixels.
func (s *Store) CreateWeb(ctx context.Context, m Meta) (*WebWriter, error) {
	m.Kind = KindWeb
	w, err := s.Create(ctx, m)
	if err != nil {
		return nil, err
	}
	return &WebWriter{ID: w.ID, w: w, sources: map[string]*source{}}, nil
}

// Next is the number of the first record of source that is not on disk; 1 when
// there is none. A node may drop what is before it.
func (x *WebWriter) Next(source string) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.sources[source]; s != nil {
		return s.kept
	}
	return 1
}

// Append takes records of a node. It returns when they are on disk, which
// takes some 100 ms, or fails, and the session must then end. Records it
// already has are dropped; missing ones are refused with a *GapError. source
// names one node of one session, such as "carrier nod_x": numbers count per
// source. skew is what must be added to the node's clock to get core's. Times
// never step back within a source and lie between the recording's start and now.
func (x *WebWriter) Append(source string, skew time.Duration, recs []wire.WebRecord) error {
	if source == "" || len(source) > maxSource {
		return fmt.Errorf("%w: a source of %d bytes", ErrRecords, len(source))
	}
	x.order.Lock()
	mark, next, err := x.take(source, skew, recs)
	x.order.Unlock()
	if err != nil {
		return err
	}
	if err := x.w.keep(mark); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.sources[source]; s != nil {
		s.kept = max(s.kept, next)
	}
	return nil
}

// take hands the records to the writer and says up to which item they are.
func (x *WebWriter) take(from string, skew time.Duration, recs []wire.WebRecord) (mark, next uint64, err error) {
	x.mu.Lock()
	src := x.sources[from]
	if src == nil {
		if len(x.sources) >= maxSources {
			x.mu.Unlock()
			return 0, 0, fmt.Errorf("%w: more than %d sources", ErrRecords, maxSources)
		}
		src = &source{next: 1, kept: 1}
		x.sources[from] = src
	}
	x.mu.Unlock()
	// next and last are only touched under order.
	for _, r := range recs {
		switch {
		case r.Seq < src.next:
			continue
		case r.Seq > src.next:
			return 0, 0, &GapError{Source: from, Want: src.next, Got: r.Seq}
		case len(r.Payload) > wire.MaxWebRecord:
			return 0, 0, fmt.Errorf("%w: %d bytes", ErrRecords, len(r.Payload))
		case r.Kind == wire.WebEvent:
			var e wire.WebEventBody
			if err := json.Unmarshal(r.Payload, &e); err != nil {
				return 0, 0, fmt.Errorf("%w: event %d of %s: %w", ErrRecords, r.Seq, from, err)
			}
		case r.Kind != wire.WebFrame:
			return 0, 0, fmt.Errorf("%w: kind %d", ErrRecords, r.Kind)
		}
		at := time.UnixMicro(r.At).Add(skew).Sub(x.w.started)
		at = max(min(at, x.w.st.cfg.Now().Sub(x.w.started)), src.last, 0).Truncate(time.Microsecond)
		if r.Kind == wire.WebFrame && at == src.last && r.Seq > 1 {
			at += time.Microsecond // a frame's time names it
		}
		if err := x.w.web(webHead{at: at, kind: r.Kind, source: from, seq: r.Seq, size: len(r.Payload)}, r.Payload); err != nil {
			return 0, 0, err
		}
		src.next, src.last = r.Seq+1, at
	}
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	return x.w.tot.Items, src.next, nil
}

// Event notes something core did: locked, watcher, ended. It is on disk within
// a second.
func (x *WebWriter) Event(kind string, fields map[string]string) error {
	x.order.Lock()
	defer x.order.Unlock()
	return x.w.Event(kind, fields)
}

// File starts the copy of a transferred file; see Writer.File. Its event is
// written when the copy is closed.
func (x *WebWriter) File(ctx context.Context, d Direction, path string) (*FileWriter, error) {
	f, err := x.w.File(ctx, d, path)
	if f != nil {
		f.note = x.Event
	}
	return f, err
}

// Close completes the recording; see Writer.Close.
func (x *WebWriter) Close() error { return x.w.Close() }

// CloseIncomplete ends a recording that lacks its end, without the end mark:
// what is there plays, and the recording says that it is incomplete and why.
func (x *WebWriter) CloseIncomplete(why string) error {
	x.w.mu.Lock()
	if !x.w.closing {
		x.w.lacking = why
	}
	x.w.mu.Unlock()
	return x.w.Close()
}

// web adds a record in pieces. The caller keeps other records away.
func (w *Writer) web(h webHead, payload []byte) error {
	n := min(len(payload), maxWebPiece)
	first := append(appendWebHead(make([]byte, 0, n+maxSource+40), h), payload[:n]...)
	if err := w.piece(itemWeb, first); err != nil {
		return err
	}
	for rest := payload[n:]; len(rest) > 0; rest = rest[n:] {
		n = min(len(rest), maxWebPiece)
		if err := w.piece(itemMore, rest[:n]); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) piece(kind ItemKind, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.roomLocked(); err != nil {
		return err
	}
	w.addLocked(kind, data)
	return nil
}

// keep waits until so many items are on disk.
func (w *Writer) keep(items uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signal()
	for w.kept < items {
		if w.err != nil {
			return w.err
		}
		progress := w.progress
		w.mu.Unlock()
		t := time.NewTimer(time.Second)
		select {
		case <-progress:
		case <-t.C:
		}
		t.Stop()
		w.mu.Lock()
		// As in roomLocked: a process that stood still gets one more second.
		if w.progress == progress && w.stalledLocked() && w.kept < items {
			return w.failLocked(ErrStalled)
		}
	}
	return nil
}
