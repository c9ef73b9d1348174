package spool

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"caponier/shared/wire"
)

// core takes batches as a core does.
type core struct {
	next  uint64
	kept  []wire.WebRecord
	fail  int // so many calls fail
	reply func(wire.WebRecordsAck) wire.WebRecordsAck
	calls int
}

func (c *core) send(_ context.Context, batch []byte) (wire.WebRecordsAck, error) {
	c.calls++
	if c.fail > 0 {
		c.fail--
		return wire.WebRecordsAck{}, errors.New("no tunnel")
	}
	z, err := gzip.NewReader(bytes.NewReader(batch))
	if err != nil {
		return wire.WebRecordsAck{}, err
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		return wire.WebRecordsAck{}, err
	}
	list, err := wire.ParseWebRecords(plain)
	if err != nil {
		return wire.WebRecordsAck{}, err
	}
	for _, r := range list {
		if r.Seq == c.next {
			c.kept = append(c.kept, r)
			c.next++
		}
	}
	ack := wire.WebRecordsAck{Next: c.next}
	if c.reply != nil {
		ack = c.reply(ack)
	}
	return ack, nil
}

func run(t *testing.T, c *core, f func(t *testing.T, s *Spool)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := New(Config{Send: c.send, Now: time.Now, Retry: time.Second})
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		f(t, s)
		cancel()
		<-done
	})
}

func TestDelivers(t *testing.T) {
	c := &core{next: 1, fail: 3}
	run(t, c, func(t *testing.T, s *Spool) {
		for i := range 1000 {
			if err := s.Event("request", map[string]string{"url": strings.Repeat("ü", i), "empty": ""}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(c.kept) != 1000 || s.Held() != 0 || c.calls < 4 || c.calls > 10 {
			t.Errorf("%d records kept in %d calls, %d held", len(c.kept), c.calls, s.Held())
		}
		var last wire.WebEventBody
		if err := json.Unmarshal(c.kept[999].Payload, &last); err != nil || last.Type != "request" || len(last.Fields["url"]) != 1998 {
			t.Errorf("last record: %v, %d bytes", err, len(last.Fields["url"]))
		}
		if _, ok := last.Fields["empty"]; ok {
			t.Error("an empty field was recorded")
		}
		s.Event("request", map[string]string{"url": strings.Repeat("ü", 3000)})
		s.Flush(t.Context())
		if err := json.Unmarshal(c.kept[1000].Payload, &last); err != nil || len(last.Fields["url"]) != 2048 {
			t.Errorf("a long value has %d bytes, %v", len(last.Fields["url"]), err)
		}
	})
}

// A core that took the batch and lost its answer gets it again, and keeps one.
func TestRetries(t *testing.T) {
	lost := 2
	c := &core{next: 1}
	c.reply = func(a wire.WebRecordsAck) wire.WebRecordsAck {
		if lost--; lost >= 0 {
			return wire.WebRecordsAck{Retry: true}
		}
		return a
	}
	run(t, c, func(t *testing.T, s *Spool) {
		s.Event("a", nil)
		s.Event("b", nil)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(c.kept) != 2 || c.calls != 3 {
			t.Errorf("%d kept in %d calls", len(c.kept), c.calls)
		}
	})
}

func TestFull(t *testing.T) {
	c := &core{next: 1, fail: 1 << 30}
	run(t, c, func(t *testing.T, s *Spool) {
		n := 0
		for ; ; n++ {
			if err := s.Event("request", map[string]string{"url": strings.Repeat("x", 1000)}); errors.Is(err, ErrFull) {
				break
			} else if err != nil || n > maxBytes/1000 {
				t.Fatalf("record %d: %v", n, err)
			}
		}
		if n < 3000 {
			t.Errorf("full after %d records", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("flush without core: %v", err)
		}
	})
}

func TestGone(t *testing.T) {
	c := &core{next: 1, reply: func(wire.WebRecordsAck) wire.WebRecordsAck { return wire.WebRecordsAck{Gone: true} }}
	run(t, c, func(t *testing.T, s *Spool) {
		s.Event("a", nil)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Event("b", nil); !errors.Is(err, ErrGone) {
			t.Errorf("an event of a session that is over: %v", err)
		}
	})
}
