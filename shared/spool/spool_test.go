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

	"pgregory.net/rapid"

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

func (c *core) post(_ context.Context, session string, batch Batch) (wire.WebRecordsAck, error) {
	c.calls++
	if c.fail > 0 {
		c.fail--
		return wire.WebRecordsAck{}, errors.New("no tunnel")
	}
	plain := batch.Bytes
	if batch.Gzip {
		z, err := gzip.NewReader(bytes.NewReader(batch.Bytes))
		if err != nil {
			return wire.WebRecordsAck{}, err
		}
		if plain, err = io.ReadAll(z); err != nil {
			return wire.WebRecordsAck{}, err
		}
	}
	list, err := wire.ParseWebRecords(plain)
	if err != nil {
		return wire.WebRecordsAck{}, err
	}
	for _, r := range list {
		if r.Seq == c.next {
			r.Payload = bytes.Clone(r.Payload)
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

// run delivers to c while f goes on, in a bubble; it tells how delivery ended.
func run(t *testing.T, c *core, cfg Config, f func(t *testing.T, s *Spool)) (ended error) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cfg.Session, cfg.Post = "con_a", c.post
		s := New(cfg)
		done := make(chan struct{})
		go func() { ended = s.Run(ctx); close(done) }()
		f(t, s)
		cancel()
		<-done
	})
	return ended
}

func TestDelivers(t *testing.T) {
	for _, zip := range []bool{false, true} {
		c := &core{next: 1, fail: 3}
		err := run(t, c, Config{Compress: zip}, func(t *testing.T, s *Spool) {
			for i := range 1000 {
				if err := s.Event("request", map[string]string{"url": strings.Repeat("ü", i), "empty": ""}); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if st := s.Stats(); len(c.kept) != 1000 || st != (Stats{Posted: 1000}) || c.calls < 4 || c.calls > 10 {
				t.Errorf("%d records in %d calls, %+v", len(c.kept), c.calls, st)
			}
			if err := s.Frame(time.UnixMicro(77), []byte("picture")); err != nil {
				t.Fatal(err)
			}
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := c.kept[1000]; r.Kind != wire.WebFrame || r.At != 77 || string(r.Payload) != "picture" {
				t.Errorf("the picture became %+v", r)
			}
			last := body(t, c.kept[999])
			if _, ok := last.Fields["empty"]; ok || last.Type != "request" || len(last.Fields["url"]) != 1998 {
				t.Errorf("the last event became %d bytes and %d fields", len(last.Fields["url"]), len(last.Fields))
			}
		})
		if err != nil {
			t.Errorf("delivery ended with %v", err)
		}
	}
}

func body(t *testing.T, r wire.WebRecord) (b wire.WebEventBody) {
	t.Helper()
	if err := json.Unmarshal(r.Payload, &b); err != nil {
		t.Fatal(err)
	}
	return b
}

// Long values are cut at a character; clipboards only when no record holds them.
// TestEncode: what is written by hand is what encoding/json writes.
func TestEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{0,40}`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
		kind := texts.Draw(t, "kind")
		fields := rapid.MapOf(texts, texts).Draw(t, "fields")
		kept := map[string]string{}
		for k, v := range fields {
			if v != "" {
				kept[k] = v
			}
		}
		want, err := json.Marshal(wire.WebEventBody{Type: kind, Fields: kept})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := encode(kind, fields, maxField); string(got) != string(want) || err != nil {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	})
}

func TestLongFields(t *testing.T) {
	c := &core{next: 1}
	if err := run(t, c, Config{}, func(t *testing.T, s *Spool) {
		for _, e := range []struct {
			kind, text string
			want       int
		}{
			{"request", "x" + strings.Repeat("ü", 5000), maxField - 1},
			{"clipboard", strings.Repeat("ü", 5000), 10000},
			{"clipboard", strings.Repeat("\x01", 4<<20), maxField}, // six bytes each in JSON
		} {
			if err := s.Event(e.kind, map[string]string{"text": e.text}); err != nil {
				t.Fatal(err)
			}
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := len(body(t, c.kept[len(c.kept)-1]).Fields["text"]); got != e.want {
				t.Errorf("%d bytes of a %s became %d, want %d", len(e.text), e.kind, got, e.want)
			}
		}
	}); err != nil {
		t.Error(err)
	}
}

// A node that knows the session from a former process goes on at what core
// wants; one that does not would have its first records taken for known ones.
func TestAdopted(t *testing.T) {
	c := &core{next: 42, fail: 2}
	if err := run(t, c, Config{Adopted: true}, func(t *testing.T, s *Spool) {
		if err := s.Flush(t.Context()); err != nil { // nothing is kept
			t.Fatal(err)
		}
		if err := s.Event("a", nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(c.kept) != 1 || c.kept[0].Seq != 42 {
			t.Errorf("core has %+v", c.kept)
		}
	}); err != nil {
		t.Error(err)
	}
}

// What core wants again and is not kept any more ends the recording.
func TestLost(t *testing.T) {
	c := &core{next: 1}
	err := run(t, c, Config{}, func(t *testing.T, s *Spool) {
		s.Event("a", nil)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.next = 1
		c.reply = func(wire.WebRecordsAck) wire.WebRecordsAck { return wire.WebRecordsAck{Next: 1} }
		s.Event("b", nil)
		if err := s.Flush(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("flush: %v", err)
		}
		if err := s.Event("c", nil); !errors.Is(err, ErrLost) {
			t.Errorf("a later event: %v", err)
		}
	})
	if !errors.Is(err, ErrLost) {
		t.Errorf("delivery ended with %v", err)
	}
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
	run(t, c, Config{}, func(t *testing.T, s *Spool) {
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
	run(t, c, Config{Limit: 4 << 20}, func(t *testing.T, s *Spool) {
		n := 0
		for ; ; n++ {
			if err := s.Event("request", map[string]string{"url": strings.Repeat("x", 1000)}); errors.Is(err, ErrFull) {
				break
			} else if err != nil || n > 4<<10 {
				t.Fatalf("record %d: %v", n, err)
			}
		}
		if n < 3000 || s.Stats().Lost != 1 {
			t.Errorf("full after %d records, %+v", n, s.Stats())
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
	run(t, c, Config{}, func(t *testing.T, s *Spool) {
		s.Event("a", nil)
		if err := s.Flush(t.Context()); !errors.Is(err, ErrGone) {
			t.Errorf("flush: %v", err)
		}
		if err := s.Event("b", nil); !errors.Is(err, ErrGone) {
			t.Errorf("an event of a session that is over: %v", err)
		}
	})
}
