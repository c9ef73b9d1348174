package api

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func TestIdempotencyKey(t *testing.T) {
	f, _ := testFrame(t, people)
	send := func(token, key, body string) (int, string, http.Header) {
		t.Helper()
		res, b := call1(t, f, "POST", "/api/v1/things", sent{token: token, body: body, header: map[string]string{"Idempotency-Key": key}})
		return res.StatusCode, b, res.Header
	}
	code, first, _ := send("admin", "k1", `{"name":"a"}`)
	if code != 201 {
		t.Fatalf("%d %s", code, first)
	}
	code, again, h := send("admin", "k1", `{"name":"a"}`)
	if code != 201 || again != first || h.Get("Idempotency-Replayed") != "true" || h.Get("ETag") != `"1"` || h.Get("Content-Type") != "application/json" {
		t.Errorf("repeated: %d %s %v", code, again, h)
	}
	if code, b, _ := send("admin", "k1", `{"name":"b"}`); code != 422 || !strings.Contains(b, "idempotency_key_reused") {
		t.Errorf("another request with the same key: %d %s", code, b)
	}
	if _, b, _ := send("admin", "k2", `{"name":"a"}`); b == first {
		t.Error("another key got the first answer")
	}
	if _, b, _ := send("admin", "", `{"name":"a"}`); b == first {
		t.Error("no key got the first answer")
	}
	if code, b, _ := send("viewer", "k1", `{"name":"a"}`); code != 403 {
		t.Errorf("another user with the same key: %d %s", code, b)
	}
	if code, _, _ := send("admin", strings.Repeat("k", 200), `{"name":"a"}`); code != 422 {
		t.Errorf("a long key: %d", code)
	}
	if code, b, _ := send("admin", "k3", `{"name":""}`); code != 422 {
		t.Errorf("%d %s", code, b)
	}
}

// repeater sends requests with keys through a store; ran counts how often the
// handler did.
type repeater struct {
	replayStore
	mu  sync.Mutex
	ran int // guarded by mu
}

func newRepeater(d *db.DB, now func() time.Time) *repeater {
	return &repeater{replayStore: replayStore{db: d, log: slog.New(slog.DiscardHandler), now: now}}
}

func (s *repeater) send(t *testing.T, op Op, user, key, body string, h http.HandlerFunc) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/x", nil)
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	s.serve(w, r, op, &Principal{UserID: user}, []byte(body), func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.ran++
		s.mu.Unlock()
		h(w, r)
	})
	return w
}

func done(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Location", "/x/1")
	w.WriteHeader(201)
	io.WriteString(w, "done")
}

func TestRepeatedRequests(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		now := time.Unix(1e9, 0)
		clock := func() time.Time { return now }
		s, other := newRepeater(d, clock), newRepeater(d, clock) // two cores
		op, secret := Op{ID: "x"}, Op{ID: "s", Sensitive: true}
		want := func(w *httptest.ResponseRecorder, status int, text, what string) {
			t.Helper()
			if w.Code != status || !strings.Contains(w.Body.String(), text) {
				t.Errorf("%s: %d %s, want %d with %q", what, w.Code, w.Body, status, text)
			}
		}
		want(s.send(t, op, "u", "k", "", done), 201, "done", "the first")
		again := other.send(t, op, "u", "k", "", done)
		want(again, 201, "done", "a repetition at another core")
		if other.ran != 0 || again.Header().Get("Location") != "/x/1" || again.Header().Get("Idempotency-Replayed") != "true" {
			t.Errorf("ran %d, headers %v", other.ran, again.Header())
		}
		want(other.send(t, op, "v", "k", "", done), 201, "done", "another user's key")
		want(other.send(t, Op{ID: "y"}, "u", "k", "", done), 201, "done", "another operation's key")
		if other.ran != 2 {
			t.Errorf("ran %d times, want 2", other.ran)
		}
		want(other.send(t, op, "u", "k", "else", done), 422, "idempotency_key_reused", "another request")

		// Done once, although its answer is gone.
		want(s.send(t, secret, "u", "k", "", done), 201, "done", "one with a secret")
		ran := s.ran
		want(s.send(t, secret, "u", "k", "", done), 409, "answer_not_kept", "repeated")
		want(other.send(t, secret, "u", "k", "", done), 409, "answer_not_kept", "repeated at another core")
		if s.ran != ran {
			t.Error("what makes a secret was done twice")
		}
		var kept int
		if err := d.QueryRowContext(t.Context(), `select count(*) from api_replays where length(body) > 0`).Scan(&kept); err != nil || kept != 3 {
			t.Errorf("%d bodies are kept (%v)", kept, err)
		}
		refuse := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(422); io.WriteString(w, "no") }
		want(s.send(t, secret, "u", "refused", "", refuse), 422, "no", "a refusal")
		want(s.send(t, secret, "u", "refused", "", done), 422, "no", "a repeated refusal")
		big := func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, replayBody))
			w.Write([]byte("tail"))
		}
		if w := s.send(t, op, "u", "big", "", big); w.Code != 200 || w.Body.Len() != replayBody+4 {
			t.Errorf("a large answer: %d, %d bytes", w.Code, w.Body.Len())
		}
		want(s.send(t, op, "u", "big", "", big), 409, "answer_not_kept", "a large answer again")

		// Failed: it may be tried again.
		fails := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }
		want(s.send(t, op, "u", "fails", "", fails), 500, "", "a server error")
		want(s.send(t, op, "u", "fails", "", done), 201, "done", "tried again")
		func() {
			defer func() { recover() }()
			s.send(t, op, "u", "panics", "", func(http.ResponseWriter, *http.Request) { panic("x") })
		}()
		want(s.send(t, op, "u", "panics", "", done), 201, "done", "after a panic")

		// While the first runs, and after its core was lost.
		s.send(t, op, "u", "slow", "", func(w http.ResponseWriter, r *http.Request) {
			want(other.send(t, op, "u", "slow", "", done), 409, "in_progress", "meanwhile")
			now = now.Add(replayLost)
			want(other.send(t, op, "u", "slow", "", done), 201, "done", "when it must have been lost")
			io.WriteString(w, "late")
		})
		want(s.send(t, op, "u", "slow", "", done), 201, "done", "the late answer does not replace the other")

		now = now.Add(replayFor)
		want(s.send(t, op, "u", "k", "else", done), 201, "done", "after ten minutes")
		var rows int
		if err := d.QueryRowContext(t.Context(), `select count(*) from api_replays`).Scan(&rows); err != nil || rows != 1 {
			t.Errorf("%d answers are kept for too long (%v)", rows-1, err)
		}
	})
}

// TestRepeatedAtOnce: of many requests with one key one is carried out.
func TestRepeatedAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := newRepeater(d, time.Now)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if w := s.send(t, Op{ID: "x"}, "u", "k", "", done); w.Code != 201 && w.Code != 409 {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		}
		wg.Wait()
		if s.ran != 1 {
			t.Errorf("ran %d times", s.ran)
		}
	})
}

func TestRepetitionsAreBounded(t *testing.T) {
	d := dbtest.SQLite(t)
	s := newRepeater(d, time.Now)
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.ExecContext(t.Context(), `with recursive n(i) as (select 1 union all select i + 1 from n where i < $1)
insert into api_replays (key, user_id, request, at, status, kept, header, body) select i, 'u', '', $2, 201, 0, '', x'' from n`, replayUser, time.Now().UnixMicro())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if w := s.send(t, Op{ID: "x"}, "u", "one more", "", done); w.Code != 429 || s.ran != 0 {
		t.Errorf("%d, ran %d", w.Code, s.ran)
	}
	if w := s.send(t, Op{ID: "x"}, "v", "one more", "", done); w.Code != 201 {
		t.Errorf("another user: %d", w.Code)
	}
	d.Close()
	if w := s.send(t, Op{ID: "x"}, "v", "two more", "", done); w.Code != 503 || s.ran != 1 {
		t.Errorf("without the database: %d, ran %d", w.Code, s.ran)
	}
}
