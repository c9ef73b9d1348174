package api

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"net/http"
	"sync"
	"time"
)

// Bounds of the store of answers: how long and how many are kept, and how
// large one may be to be kept.
const (
	replayFor    = 10 * time.Minute
	replayMax    = 4096
	replayBody   = 64 << 10
	maxReplayKey = 128
)

// replayStore keeps answers to POSTs that carried an Idempotency-Key, in
// memory, so that a client that lost an answer may repeat its request.
type replayStore struct {
	now func() time.Time

	mu    sync.Mutex
	byKey map[[32]byte]*answer // guarded by mu
	order *list.List           // of *answer, oldest first; guarded by mu
}

type answer struct {
	key     [32]byte // caller, operation, idempotency key
	request [32]byte // path, query and body
	at      time.Time
	done    bool
	status  int
	header  http.Header
	body    []byte
}

func newReplayStore(now func() time.Time) *replayStore {
	return &replayStore{now: now, byKey: map[[32]byte]*answer{}, order: list.New()}
}

// serve runs h, or answers from the store when the same caller has sent the
// same request with the same key before.
func (s *replayStore) serve(w http.ResponseWriter, r *http.Request, op Op, p *Principal, body []byte, h http.HandlerFunc) {
	key := r.Header.Get("Idempotency-Key")
	if key == "" || r.Method != http.MethodPost || p == nil || op.Sensitive {
		h(w, r)
		return
	}
	if len(key) > maxReplayKey {
		writeProblem(w, r, Invalid(FieldError{Field: "header.Idempotency-Key", Message: "at most 128 bytes"}))
		return
	}
	a := &answer{
		key:     sha256.Sum256([]byte(p.UserID + "\x00" + op.ID + "\x00" + key)),
		request: sha256.Sum256(append([]byte(r.URL.Path+"\x00"+r.URL.RawQuery+"\x00"), body...)),
		at:      s.now(),
	}
	if before, ok := s.begin(a); ok {
		switch {
		case before.request != a.request:
			writeProblem(w, r, &Problem{Status: 422, Title: "This Idempotency-Key was used for another request.", Code: "idempotency_key_reused"})
		case !before.done:
			writeProblem(w, r, Conflict("in_progress", "The first request with this Idempotency-Key is still running."))
		default:
			for name, values := range before.header {
				w.Header()[name] = values
			}
			w.Header().Set("Idempotency-Replayed", "true")
			w.WriteHeader(before.status)
			w.Write(before.body)
		}
		return
	}
	c := &copier{ResponseWriter: w}
	defer func() { s.end(a, c) }()
	h(c, r)
}

// begin claims a's key, or returns a copy of the answer that has it.
func (s *replayStore) begin(a *answer) (answer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.order.Front(); e != nil; e = s.order.Front() {
		old := e.Value.(*answer)
		if s.order.Len() < replayMax && a.at.Sub(old.at) < replayFor {
			break
		}
		s.order.Remove(e)
		if s.byKey[old.key] == old {
			delete(s.byKey, old.key)
		}
	}
	if before, ok := s.byKey[a.key]; ok {
		return *before, true
	}
	s.byKey[a.key] = a
	s.order.PushBack(a)
	return answer{}, false
}

// end keeps the answer. A server error, a panic or a large answer is
// forgotten, so that repeating runs the handler again.
func (s *replayStore) end(a *answer, c *copier) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.status == 0 || c.status >= 500 || c.over {
		if s.byKey[a.key] == a {
			delete(s.byKey, a.key)
		}
		return
	}
	a.done, a.status, a.body = true, c.status, c.body.Bytes()
	a.header = http.Header{}
	for _, name := range []string{"Content-Type", "Etag", "Location"} {
		if v := c.Header().Values(name); len(v) > 0 {
			a.header[name] = append([]string(nil), v...)
		}
	}
}

// copier keeps a copy of an answer while it is sent.
type copier struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
	over   bool
}

func (c *copier) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *copier) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	if c.body.Len()+len(p) > replayBody {
		c.over = true
	} else {
		c.body.Write(p)
	}
	return c.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (c *copier) Unwrap() http.ResponseWriter { return c.ResponseWriter }
