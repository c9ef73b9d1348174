// Package spool keeps what a web session's edge node has to tell core (pictures
// and events) until core has it. Order is kept, nothing is told twice that core
// has, and what is kept is bounded: what does not fit is refused, and its owner
// decides what that means.
//
// Records get their numbers when they are sent for the first time, so that a
// node that knows a session from a former process goes on at what core wants
// next.
package spool

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Config is what a Spool needs.
type Config struct {
	Session string
	// Post delivers a batch, empty to ask what core wants next. An error means
	// that core cannot be reached now. See Post.
	Post func(ctx context.Context, session string, batch Batch) (wire.WebRecordsAck, error)
	// Adopted: records may have been sent by a former process; core knows up
	// to where.
	Adopted bool
	// Compress sends batches as gzip (RFC 1952): for events; pictures are
	// compressed already.
	Compress bool
	// Limit bounds what is kept, in bytes; 0: 64 MiB.
	Limit int64
	Log   *slog.Logger     // nil: discard
	Now   func() time.Time // nil: time.Now
}

// Pace of delivery.
const (
	gather   = 150 * time.Millisecond // records of that time go together
	soon     = 256 << 10              // bytes that do not wait for more
	batchMax = 4 << 20                // bytes of one batch, but for a larger record
	again    = 200 * time.Millisecond // after a failure
	postTime = 15 * time.Second       // for one batch
	overhead = 64                     // bytes counted for a record besides its payload
)

// ErrFull says that a record was not kept.
var ErrFull = errors.New("what is to be recorded could not be delivered for too long")

// ErrGone says that core does not want records of this session any more.
var ErrGone = errors.New("the session is over for core")

// ErrLost says that core lacks records that are not kept any more.
var ErrLost = errors.New("records that core wants again are gone")

// Spool is a session's queue. Safe for concurrent use.
type Spool struct {
	c    Config
	kick chan struct{} // there is something to do now
	more chan struct{} // there is something to do soon

	mu    sync.Mutex
	list  []wire.WebRecord // guarded by mu; numbers are set when sent
	next  uint64           // guarded by mu; number of list[0], 0: not known yet
	bytes int64            // guarded by mu
	err   error            // guarded by mu; ErrGone, ErrLost or nil
	idle  chan struct{}    // guarded by mu; closed while nothing is kept
	lost  uint64           // guarded by mu; records refused

	posted uint64 // guarded by mu; records that core has
}

// New makes a Spool; nothing is sent before Run.
func New(c Config) *Spool {
	if c.Limit == 0 {
		c.Limit = 64 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Spool{c: c, kick: make(chan struct{}, 1), more: make(chan struct{}, 1), next: 1, idle: make(chan struct{})}
	if c.Adopted {
		s.next = 0
	}
	close(s.idle)
	return s
}

// Batch is encoded records on their way.
type Batch struct {
	Bytes []byte
	Gzip  bool
}

// Post delivers over whatever tunnel there is.
func Post(tunnels func() tunnel.Session) func(ctx context.Context, session string, batch Batch) (wire.WebRecordsAck, error) {
	return func(ctx context.Context, session string, batch Batch) (ack wire.WebRecordsAck, err error) {
		t := tunnels()
		if t == nil {
			return ack, errors.New("no tunnel to core")
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://tunnel"+wire.PathWebRecords+"?session="+url.QueryEscape(session), bytes.NewReader(batch.Bytes))
		if err != nil {
			return ack, err
		}
		req.Header.Set("Content-Type", "application/octet-stream")
		if batch.Gzip {
			req.Header.Set("Content-Encoding", "gzip")
		}
		resp, err := control.RoundTrip(ctx, t, req)
		if err != nil {
			return ack, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
			return ack, &control.StatusError{Path: wire.PathWebRecords, Status: resp.StatusCode, Text: string(text)}
		}
		return ack, json.NewDecoder(io.LimitReader(resp.Body, wire.MaxControlBody)).Decode(&ack)
	}
}

// Frame keeps a picture. It does not hold on to b.
func (s *Spool) Frame(at time.Time, b []byte) error {
	return s.add(wire.WebRecord{At: at.UnixMicro(), Kind: wire.WebFrame, Payload: bytes.Clone(b)})
}

// maxField bounds the text of one field of an event, in bytes. Clipboard texts
// are bounded by policy, and only cut when no record could hold them.
const maxField = 8 << 10

// Event keeps an event of now. Fields without text are left out.
func (s *Spool) Event(kind string, fields map[string]string) error {
	most := maxField
	if kind == "clipboard" {
		most = wire.MaxWebRecord
	}
	b, err := encode(kind, fields, most)
	if err == nil && len(b) > wire.MaxWebRecord {
		b, err = encode(kind, fields, maxField)
	}
	if err != nil {
		return fmt.Errorf("event: %w", err)
	}
	return s.add(wire.WebRecord{At: s.c.Now().UnixMicro(), Kind: wire.WebEvent, Payload: b})
}

// encode is the JSON of a wire.WebEventBody, written by hand: there is one of
// these for each request of a page.
func encode(kind string, fields map[string]string, most int) ([]byte, error) {
	names, size := make([]string, 0, len(fields)), len(kind)+32
	for k, v := range fields {
		if v != "" {
			names = append(names, k)
			size += len(k) + min(len(v), most) + 8
		}
	}
	slices.Sort(names)
	b, err := appendText(append(make([]byte, 0, size), `{"type":`...), kind)
	if err != nil {
		return nil, err
	}
	b = append(b, `,"fields":{`...)
	first := true
	for _, k := range names {
		v := fields[k]
		if len(v) > most {
			if v = strings.ToValidUTF8(v[:most], ""); v == "" {
				continue
			}
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		if b, err = appendText(b, k); err != nil {
			return nil, err
		}
		if b, err = appendText(append(b, ':'), v); err != nil {
			return nil, err
		}
	}
	return append(b, "}}"...), nil
}

// appendText appends a JSON string.
func appendText(b []byte, s string) ([]byte, error) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			j, err := json.Marshal(s)
			return append(b, j...), err
		}
	}
	return append(append(append(b, '"'), s...), '"'), nil
}

func (s *Spool) add(r wire.WebRecord) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	size := int64(len(r.Payload)) + overhead
	if len(r.Payload) > wire.MaxWebRecord || s.bytes+size > s.c.Limit {
		s.lost++
		return ErrFull
	}
	if len(s.list) == 0 {
		s.idle = make(chan struct{})
	}
	s.list = append(s.list, r)
	s.bytes += size
	if s.bytes >= soon {
		poke(s.kick)
	} else {
		poke(s.more)
	}
	return nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run delivers until ctx ends, or for good: ErrGone, ErrLost.
func (s *Spool) Run(ctx context.Context) error {
	failing := false
	for {
		if ctx.Err() != nil {
			return nil
		}
		batch, n, known := s.batch()
		if n == 0 && known {
			s.rest(ctx, s.more)
			continue
		}
		err := s.deliver(ctx, batch)
		switch {
		case errors.Is(err, ErrGone), errors.Is(err, ErrLost):
			return err
		case err != nil:
			if ctx.Err() == nil && !failing {
				s.c.Log.Info("records wait for core", telemetry.KeyErr, err)
			}
			failing = true
			s.sleep(ctx, again)
		default:
			failing = false
		}
	}
}

// rest waits for something to send, and a little for more of it.
func (s *Spool) rest(ctx context.Context, more <-chan struct{}) {
	select {
	case <-s.kick:
		return
	case <-more:
	case <-ctx.Done():
		return
	}
	t := time.NewTimer(gather)
	defer t.Stop()
	select {
	case <-s.kick:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *Spool) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// batch encodes what is sent next. known is false while core must be asked
// first what it wants.
func (s *Spool) batch() (b []byte, n int, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == 0 {
		return nil, 0, false
	}
	for i, r := range s.list {
		if i > 0 && len(b)+len(r.Payload) > batchMax {
			break
		}
		r.Seq = s.next + uint64(i)
		enc, err := wire.AppendWebRecord(b, r)
		if err != nil { // cannot be: add has checked it
			s.c.Log.Error("records", telemetry.KeySession, s.c.Session, telemetry.KeyErr, err)
			break
		}
		b, n = enc, n+1
	}
	return b, n, true
}

func (s *Spool) deliver(ctx context.Context, batch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, postTime)
	defer cancel()
	b := Batch{Bytes: batch}
	if s.c.Compress && len(batch) > 0 {
		var err error
		if b, err = compressed(batch); err != nil {
			return err
		}
	}
	ack, err := s.c.Post(ctx, s.c.Session, b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ack.Gone:
		s.err = ErrGone
		s.list, s.bytes = nil, 0
	case ack.Retry:
		return errors.New("core does not carry the session now")
	case ack.Next == 0:
		return errors.New("core does not say what it wants next")
	case s.next == 0:
		s.next = ack.Next
	case ack.Next < s.next || ack.Next > s.next+uint64(len(s.list)):
		s.err = fmt.Errorf("%w: it wants %d, there are %d from %d on", ErrLost, ack.Next, len(s.list), s.next)
		s.lost += uint64(len(s.list))
		s.list, s.bytes = nil, 0
	default:
		n := int(ack.Next - s.next)
		for _, r := range s.list[:n] {
			s.bytes -= int64(len(r.Payload)) + overhead
		}
		clear(s.list[:n]) // what is kept behind the slice's beginning is not garbage
		s.list, s.next, s.posted = s.list[n:], ack.Next, s.posted+uint64(n)
	}
	if len(s.list) == 0 {
		s.list = nil
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
	return s.err
}

// squeezers are kept: making one costs more than a batch of events.
var squeezers = sync.Pool{New: func() any {
	z, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is one
	}
	return z
}}

func compressed(plain []byte) (Batch, error) {
	var b bytes.Buffer
	z := squeezers.Get().(*gzip.Writer)
	defer squeezers.Put(z)
	z.Reset(&b)
	_, err := z.Write(plain)
	if err = errors.Join(err, z.Close()); err != nil {
		return Batch{}, fmt.Errorf("compress records: %w", err)
	}
	return Batch{Bytes: b.Bytes(), Gzip: true}, nil
}

// Flush waits until everything kept so far is delivered. Run must be running.
func (s *Spool) Flush(ctx context.Context) error {
	for {
		s.mu.Lock()
		idle, err := s.idle, s.err
		s.mu.Unlock()
		if err != nil {
			return err
		}
		poke(s.kick)
		select {
		case <-idle:
			s.mu.Lock()
			done := len(s.list) == 0
			err := s.err
			s.mu.Unlock()
			if done || err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("flush records: %w", ctx.Err())
		}
	}
}

// Stats are a spool's counts.
type Stats struct {
	Kept   int    // records kept now
	Bytes  int64  // of them
	Posted uint64 // records that core has
	Lost   uint64 // records refused
}

// Stats returns the counts.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{len(s.list), s.bytes, s.posted, s.lost}
}
