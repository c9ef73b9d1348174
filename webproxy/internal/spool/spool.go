// Package spool delivers a session's records to core: numbered without gaps,
// in batches, held until core says that it keeps them. It holds a bounded
// amount; when that is full, and core does not take more, what is to be
// recorded must not happen: Event returns ErrFull and the session ends.
package spool

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"caponier/shared/wire"
)

// ErrFull is returned when no more records can be held.
var ErrFull = errors.New("records cannot be delivered and no more can be held")

// ErrGone is returned when core says that the session is over.
var ErrGone = errors.New("core has ended this session's recording")

const (
	// maxBytes and maxRecords bound what is held per session.
	maxBytes   = 4 << 20
	maxRecords = 20_000
	// batchBytes is where a batch ends.
	batchBytes = 512 << 10
	// gather is how long records wait for company.
	gather = 200 * time.Millisecond
	// maxField is the longest value of an event's field, in bytes.
	maxField = 2 << 10
)

// Config is what a Spool needs; all fields are required.
type Config struct {
	// Send delivers an encoded batch, gzip-compressed.
	Send func(ctx context.Context, batch []byte) (wire.WebRecordsAck, error)
	Now  func() time.Time
	// Retry is how long to wait after a failure.
	Retry time.Duration
}

// Spool is one session's. Safe for concurrent use.
type Spool struct {
	c Config

	mu      sync.Mutex
	records []wire.WebRecord // guarded by mu; not yet acknowledged, in order
	size    int              // guarded by mu; of their payloads
	last    uint64           // guarded by mu; number of the newest
	gone    bool             // guarded by mu
	wake    chan struct{}    // capacity 1
	empty   chan struct{}    // guarded by mu; closed when nothing is held
}

// New makes a Spool; Run must run beside it.
func New(c Config) *Spool {
	s := &Spool{c: c, wake: make(chan struct{}, 1), empty: make(chan struct{})}
	close(s.empty)
	return s
}

// Event adds one event. Values are cut at 2 KiB; empty ones are left out.
func (s *Spool) Event(kind string, fields map[string]string) error {
	for k, v := range fields {
		switch {
		case v == "":
			delete(fields, k)
		case len(v) > maxField:
			v = v[:maxField]
			for !utf8.ValidString(v) && len(v) > maxField-4 {
				v = v[:len(v)-1]
			}
			fields[k] = v
		}
	}
	body, err := json.Marshal(wire.WebEventBody{Type: kind, Fields: fields})
	if err != nil {
		return fmt.Errorf("record event: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return ErrGone
	case s.size+len(body) > maxBytes || len(s.records) == maxRecords:
		return ErrFull
	}
	if len(s.records) == 0 {
		s.empty = make(chan struct{})
	}
	s.last++
	s.records = append(s.records, wire.WebRecord{Seq: s.last, At: s.c.Now().UnixMicro(), Kind: wire.WebEvent, Payload: body})
	s.size += len(body)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// Run delivers until ctx ends; it returns ErrGone when core wants no more.
func (s *Spool) Run(ctx context.Context) error {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil
		}
		wait := gather
		for {
			if !sleep(ctx, wait) {
				return nil
			}
			more, err := s.deliver(ctx)
			if errors.Is(err, ErrGone) {
				return err
			}
			if wait = 0; err != nil {
				wait = s.c.Retry
			} else if !more {
				break
			}
		}
	}
}

// Flush waits until everything is delivered, or ctx ends.
func (s *Spool) Flush(ctx context.Context) error {
	s.mu.Lock()
	empty := s.empty
	s.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("deliver records: %w", ctx.Err())
	}
}

// Held is how many records wait.
func (s *Spool) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records)
}

// deliver sends one batch; more says that records are left.
func (s *Spool) deliver(ctx context.Context) (more bool, err error) {
	s.mu.Lock()
	var plain []byte
	for _, r := range s.records {
		if len(plain) > batchBytes {
			break
		}
		if plain, err = wire.AppendWebRecord(plain, r); err != nil {
			break
		}
	}
	s.mu.Unlock()
	if err != nil || len(plain) == 0 {
		return false, err
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return false, fmt.Errorf("compress records: %w", err)
	}
	_, _ = z.Write(plain) // into memory
	_ = z.Close()
	ack, err := s.c.Send(ctx, b.Bytes())
	if err != nil {
		return true, err
	}
	return s.acked(ack)
}

func (s *Spool) acked(ack wire.WebRecordsAck) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ack.Gone {
		s.gone = true
		s.dropLocked(len(s.records))
		return false, ErrGone
	}
	n := 0
	for n < len(s.records) && s.records[n].Seq < ack.Next {
		n++
	}
	s.dropLocked(n)
	if ack.Retry || n == 0 {
		return true, errors.New("core keeps this session's records later")
	}
	return len(s.records) > 0, nil
}

func (s *Spool) dropLocked(n int) {
	for _, r := range s.records[:n] {
		s.size -= len(r.Payload)
	}
	s.records = s.records[n:]
	if len(s.records) == 0 {
		s.records = nil
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
