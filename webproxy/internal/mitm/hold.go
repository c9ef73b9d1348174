package mitm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/webrule"
	"caponier/shared/wire"
	"caponier/webproxy/internal/inject"
	"caponier/webproxy/internal/session"
)

// A request that needs a second person is held here, before anything is sent
// or dialled. What a script sent waits on its connection and goes on, or is
// refused. A page that was asked for, or a form that was sent, is answered at
// once with a page of ours; the request is kept, and leaves when that page
// comes back for it: by the same method to the same URL, so that the answer is
// at home where it belongs. An approval is of one request in this memory, and
// is spent by sending it.
const (
	// maxHeldBody is what is kept of a body. A longer one stays with the
	// browser; its request waits on its connection.
	maxHeldBody = 1 << 20
	// maxHeld bounds the requests that wait, and with them the memory: 128 MiB.
	// No session has more than maxHeldSession of these places, and no user more
	// than a quarter of them, in however many sessions.
	maxHeld        = 128
	maxHeldSession = 16
	maxHeldUser    = maxHeld / 4
	// heldPoll is how long a held page's question waits for news.
	heldPoll = 20 * time.Second

	heldPath = inject.Reserved + "held/"
	// continueField begins the body with which a held page takes a form's
	// request up again; the hold's name follows.
	continueField = "caponier-continue="
	holdName      = 26 // letters of rand.Text
	continueBody  = len(continueField) + holdName + 2
)

// held is a request that waits, or is approved and not sent yet.
type held struct {
	name string
	ses  *session.Session
	// key is session and digest: a page that is asked for again is the same request.
	key string
	at  webrule.Endpoint
	url string // for the log
	why string
	// The rest, but for answer, is of a page.
	meant webrule.Meant
	in    *http.Request // without its body
	body  []byte
	// methods and unclear are what the body said; see exchange.
	methods []string
	unclear bool
	cancel  context.CancelCauseFunc

	// The rest is guarded by holds.mu.
	answer  wire.WebApproval
	until   time.Time
	changed chan struct{} // closed when answer changes
	pages   int           // that ask now
	seen    time.Time     // when the last one was there
}

// holds are the held requests of all sessions.
type holds struct {
	mu     sync.Mutex
	all    map[string]*held         // by name; guarded by mu
	keys   map[string]*held         // pages, by key; guarded by mu
	counts map[*session.Session]int // guarded by mu
	users  map[string]int           // guarded by mu; by name
}

func newHolds() *holds {
	return &holds{all: map[string]*held{}, keys: map[string]*held{}, counts: map[*session.Session]int{}, users: map[string]int{}}
}

var (
	errHeldLeft   = errors.New("the page that waited was closed")
	errHeldCancel = errors.New("the user took the request back")

	errSessionHolds = fmt.Errorf("%d requests of this session wait already", maxHeldSession)
	errUserHolds    = fmt.Errorf("%d requests of your sessions wait already", maxHeldUser)
	errProxyHolds   = errors.New("too many requests of all users wait")
)

func (h *holds) add(x *held) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.counts[x.ses] >= maxHeldSession:
		return errSessionHolds
	case h.users[x.ses.User] >= maxHeldUser:
		return errUserHolds
	case len(h.all) >= maxHeld:
		return errProxyHolds
	}
	h.all[x.name] = x
	h.counts[x.ses]++
	h.users[x.ses.User]++
	return nil
}

// page makes a held request that of a page. One with the same key that waits
// or is approved stays, and is returned instead.
func (h *holds) page(x *held, key string) *held {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.keys[key]
	if old != nil && (old.answer.State == wire.ApprovalWaiting || old.answer.State == wire.ApprovalApproved) {
		h.removeLocked(x)
		return old
	}
	x.key, h.keys[key] = key, x
	return x
}

func (h *holds) removeLocked(x *held) bool {
	if h.all[x.name] != x {
		return false
	}
	delete(h.all, x.name)
	if h.keys[x.key] == x {
		delete(h.keys, x.key)
	}
	if h.counts[x.ses]--; h.counts[x.ses] <= 0 {
		delete(h.counts, x.ses)
	}
	if h.users[x.ses.User]--; h.users[x.ses.User] <= 0 {
		delete(h.users, x.ses.User)
	}
	return true
}

func (h *holds) remove(x *held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removeLocked(x)
}

func (h *holds) find(ses *session.Session, name string) *held {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x := h.all[name]; x != nil && x.ses == ses {
		return x
	}
	return nil
}

// spend takes an approved request out; it succeeds once. The answer is how far
// the request is.
func (h *holds) spend(x *held) (a wire.WebApproval, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return x.answer, x.answer.State == wire.ApprovalApproved && h.removeLocked(x)
}

// tell notes core's word about a request.
func (h *holds) tell(x *held, a wire.WebApproval, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	until := now.Add(time.Duration(a.LeftS) * time.Second)
	if a.State == x.answer.State && !x.until.IsZero() {
		x.until = until
		return
	}
	x.answer, x.until = a, until
	close(x.changed)
	x.changed = make(chan struct{})
}

// isNavigation reports whether the answer to r becomes a page or a frame.
// Browsers say so but over plain http, where they ask for a page instead.
func isNavigation(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodPost || isUpgrade(r) {
		return false
	}
	switch r.Header.Get("Sec-Fetch-Mode") {
	case "navigate":
		return isDocument(r)
	case "":
		return r.Header.Get("Upgrade-Insecure-Requests") == "1" && strings.Contains(r.Header.Get("Accept"), "text/html")
	}
	return false
}

// isContinuation reports whether a held page takes its request up again. Such
// a request never leaves as it is.
func isContinuation(r *http.Request) bool {
	if r.Method != http.MethodPost || r.ContentLength != int64(continueBody) || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
		return false
	}
	b := make([]byte, continueBody)
	n, err := io.ReadFull(r.Body, b)
	r.Body = &rest{io.MultiReader(bytes.NewReader(b[:n]), r.Body), r.Body}
	return err == nil && strings.HasPrefix(string(b), continueField)
}

// rest is a body of which a part was read before.
type rest struct {
	io.Reader
	io.Closer
}

// hold keeps a request until it is decided on.
func (x *exchange) hold() {
	ctx, live, ok := x.ses.TrackHeld(x.in.Context(), x.meant())
	if !ok {
		x.tooMany()
		return
	}
	defer live.Done()
	x.live = live
	x.rev = x.ses.Revision()
	v := x.decide()
	if !v.Held() {
		x.decided(ctx, v)
		return
	}
	h := &held{name: rand.Text(), ses: x.ses, at: x.at, url: x.url, why: v.Approval.Why, changed: make(chan struct{}), seen: x.s.c.Now(),
		answer: wire.WebApproval{State: wire.ApprovalWaiting}}
	if err := x.s.holds.add(h); err != nil {
		x.crowded(err)
		return
	}
	x.keeping = true
	body, whole, err := x.keepBody()
	x.keeping = false
	if err != nil {
		x.s.holds.remove(h)
		x.failed(ctx, err)
		x.record()
		return
	}
	ask := x.askFor(h.name, v.Approval)
	if whole {
		ask.Digest, ask.Length, ask.Preview = x.digest(body), int64(len(body)), x.preview(body)
	}
	if whole && isNavigation(x.in) {
		ask.Page = true
		x.holdPage(ctx, h, ask, body)
		return
	}
	x.s.Held.Add(1)
	defer x.ses.Keep(h.name)()
	a, err := x.ses.Await(ctx, ask, func(wire.WebApproval) {})
	x.s.holds.remove(h)
	if x.told(ctx, a, err) {
		x.pass(ctx, h.name)
	}
}

// told reports whether core's word lets the request leave; it answers it if not.
func (x *exchange) told(ctx context.Context, a wire.WebApproval, err error) bool {
	switch {
	case errors.Is(err, session.ErrEnded), errors.Is(err, session.ErrRevoked):
		x.failed(ctx, err)
		x.record()
	case err != nil: // the browser has left
		x.s.Blocked.Add(1)
		x.unapprovedEvent(string(wire.ApprovalWithdrawn))
	case a.State != wire.ApprovalApproved:
		x.unapproved(a)
	default:
		return true
	}
	return false
}

// decided serves a request by a verdict that holds nothing.
func (x *exchange) decided(ctx context.Context, v webrule.Verdict) {
	if !v.Allowed() {
		x.blocked(v)
		return
	}
	x.leave(ctx, v)
}

// pass lets an approved request go on, unless the rules refuse it by now. Core
// hears of it before it leaves: an approval whose webproxy died is not taken for
// a request that was sent.
func (x *exchange) pass(ctx context.Context, hold string) {
	x.rev = x.ses.Revision()
	v := x.decide()
	if !v.Allowed() && !v.Held() {
		x.ses.Drop(hold)
		x.blocked(v)
		return
	}
	a, err := x.ses.Take(ctx, hold)
	if !x.told(ctx, a, err) {
		return
	}
	x.approved, x.since = clip(a.By, 128), x.s.c.Now()
	if x.approved == "" {
		x.approved = "yes"
	}
	x.leave(ctx, v)
}

// keepBody reads what is kept of the body, and puts it before the rest.
func (x *exchange) keepBody() (body []byte, whole bool, err error) {
	if x.in.Body == nil || x.in.ContentLength == 0 {
		return nil, true, nil
	}
	body, err = io.ReadAll(io.LimitReader(x.in.Body, maxHeldBody+1))
	if err != nil {
		return nil, false, fmt.Errorf("read the request: %w", err)
	}
	if len(body) > maxHeldBody {
		x.in.Body = &rest{io.MultiReader(bytes.NewReader(body), x.in.Body), x.in.Body}
		return body, false, nil
	}
	// Trailers have come with the end of the body.
	x.in.Body = &rest{bytes.NewReader(body), x.in.Body}
	return body, true, nil
}

// crowded refuses to hold one more; why is one of the bounds'.
func (x *exchange) crowded(why error) {
	x.s.Blocked.Add(1)
	x.unapprovedEvent("too_many")
	x.page(http.StatusTooManyRequests, page{Title: "Too many requests wait for approval", Host: x.at.String(), Text: "The request was not sent: " + why.Error() + ".", Hint: "Repeat it when some of them were decided on."})
}

// unapproved refuses a request that was not approved.
func (x *exchange) unapproved(a wire.WebApproval) {
	x.s.Blocked.Add(1)
	x.unapprovedEvent(string(a.State))
	x.page(http.StatusForbidden, refusalPage(x.at.String(), a))
}

func refusalPage(host string, a wire.WebApproval) page {
	p := page{Title: "This request was not approved", Host: host, Text: "It was not sent.", Hint: a.Text}
	switch a.State {
	case wire.ApprovalDenied:
		if a.By != "" {
			p.Text = "It was denied by " + a.By + " and not sent."
		}
	case wire.ApprovalExpired:
		p.Title = "Nobody approved this request in time"
	case wire.ApprovalWithdrawn:
		p.Title = "This request was taken back"
	case wire.ApprovalLost:
		p.Title = "This request does not wait any more"
	}
	return p
}

func (x *exchange) unapprovedEvent(state string) {
	fields := map[string]string{"method": clip(x.in.Method, 32), "url": x.url, "reason": "approval_" + state, "type": clip(x.in.Header.Get("Sec-Fetch-Dest"), 32)}
	if err := x.ses.Event("blocked", fields); err != nil {
		x.s.c.Log.Debug("event", telemetry.KeySession, x.ses.ID, telemetry.KeyErr, err)
	}
}
