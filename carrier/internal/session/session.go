package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/display"
	"caponier/carrier/internal/egress"
	"caponier/carrier/internal/files"
	"caponier/carrier/internal/slot"
	"caponier/shared/rfb"
	"caponier/shared/spool"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// reason says why a session ended by itself; the words are conn.EndReason's.
type reason string

// The reasons.
const (
	byUser     reason = "user"
	byIdle     reason = "idle"
	byDuration reason = "max_duration"
	byError    reason = "error"
)

// flushTime bounds the delivery of the last records before an end is answered.
const flushTime = 5 * time.Second

// live is one session. Its goroutines end with it.
type live struct {
	m       *Manager
	id      string
	log     *slog.Logger
	slot    *slot.Slot
	screen  *display.Display
	proxy   *egress.Proxy
	files   *files.Service
	spool   *spool.Spool
	started time.Time

	ctx    context.Context // ends when the session begins to end
	cancel context.CancelFunc
	wg     sync.WaitGroup
	kick   chan struct{} // the limits changed

	touched atomic.Int64 // unix nanoseconds of the last use that is no input

	mu      sync.Mutex
	spec    wire.CarrierSession // guarded by mu
	notice  string              // guarded by mu; the carrier's own
	hearing context.Context     // guarded by mu; of those who listen; nil: nobody may
	hush    context.CancelFunc  // guarded by mu; ends hearing
	ending  bool                // guarded by mu
	done    chan struct{}       // closed when nothing is left
	records context.CancelFunc  // ends delivery
}

// begin makes the session of a slot and starts everything of it. started is
// when the session began, for adopted ones in a former process.
func (m *Manager) begin(spec wire.CarrierSession, sl *slot.Slot, started time.Time, adopted bool) (*live, error) {
	l := &live{m: m, id: spec.ID, spec: spec, slot: sl, started: started, kick: make(chan struct{}, 1), done: make(chan struct{}),
		log: m.log.With(telemetry.KeySession, spec.ID)}
	l.ctx, l.cancel = context.WithCancel(m.ctx)
	l.spool = spool.New(spool.Config{Session: spec.ID, Post: m.c.Post, Adopted: adopted, Limit: m.c.Spool, Log: l.log, Now: m.c.Now})
	screen := m.pool.screen(sl)
	dc := display.Config{Session: spec.ID, Screen: screen, Dial: sl.DialScreen, DialX: sl.DialX, Policy: screenPolicy(spec), Event: l.screenEvent, Start: started, Now: m.c.Now, Log: l.log}
	if spec.Recorded {
		dc.Record = func(at time.Duration, frame []byte, _ bool) error { return l.spool.Frame(started.Add(at), frame) }
	}
	var err error
	if l.screen, err = display.New(dc); err != nil {
		l.cancel()
		screen.Close()
		return nil, err
	}
	l.files = files.New(files.Config{Dial: sl.DialFiles, Policy: l.policy, Scan: m.c.Scan, Space: m.scan, Event: l.event,
		Touched: func() { l.touched.Store(m.c.Now().UnixNano()) }, Log: l.log})
	l.proxy = egress.NewProxy(egress.ProxyConfig{Session: spec.ID, Address: spec.Proxy, Credentials: m.c.Credentials})
	if err := sl.Set(settings(spec)); err != nil {
		l.cancel()
		screen.Close()
		l.proxy.Close()
		return nil, err
	}
	if spec.Policy.Sound && !adopted {
		l.awaitSound()
	}
	m.mu.Lock()
	stopping := m.stopping
	if !adopted && (stopping || m.ctx.Err() != nil) { // nobody would give it back
		m.mu.Unlock()
		l.cancel()
		screen.Close()
		l.proxy.Close()
		return nil, errStopping
	}
	m.lives[l.id] = l // before anything can end it
	l.wg.Add(1)       // what ends it waits until it has begun
	m.mu.Unlock()
	l.apply(spec)
	sl.Door.Claim(spec.StartURL, l.proxy)

	rctx, stop := context.WithCancel(context.WithoutCancel(m.ctx))
	l.records = stop
	m.wg.Go(func() { // outlives the rest: see finish
		if err := l.spool.Run(rctx); err != nil {
			l.log.Info("records", telemetry.KeyErr, err)
			if errors.Is(err, spool.ErrGone) {
				m.end(l, "", "", "core has ended the session")
			} else {
				m.end(l, byError, "The recording could not be continued.", err.Error())
			}
		}
	})
	l.wg.Go(func() { l.show(started) })
	l.wg.Go(l.watch)
	l.wg.Go(l.limits)
	l.wg.Go(func() {
		if err := sl.Raise(l.ctx); err != nil && l.ctx.Err() == nil {
			l.log.Warn("raise", telemetry.KeyErr, err)
		}
	})
	l.wg.Done()
	if stopping { // after the others were left
		l.leave()
	}
	return l, nil
}

// errStopping: the process ends, and begins no session any more.
var errStopping = errors.New("the carrier stops")

func screenPolicy(s wire.CarrierSession) display.Policy {
	p := s.Policy
	cut := func(n int64) int { return int(min(max(n, 0), rfb.MaxClipboard)) }
	return display.Policy{ClipboardIn: cut(p.ClipboardIn), ClipboardOut: cut(p.ClipboardOut), RecordClipboard: p.ClipboardText, Watermark: p.Watermark,
		Blocked: blocked(s)}
}

func settings(s wire.CarrierSession) slot.Settings {
	mode := "kiosk"
	if s.Policy.Mode == "bar" || s.Policy.Mode == "auto" {
		mode = s.Policy.Mode
	}
	return slot.Settings{Mode: mode, DevTools: s.Policy.DevTools,
		Uploads: s.Policy.UploadMax > 0, Downloads: s.Policy.DownloadMax > 0, TimeZone: s.TimeZone, Sound: s.Policy.Sound}
}

func (l *live) policy() wire.BrowserPolicy {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spec.Policy
}

// update takes a newer revision; an older one changes nothing.
func (l *live) update(spec wire.CarrierSession) error {
	l.mu.Lock()
	if l.ending || spec.Revision <= l.spec.Revision {
		l.mu.Unlock()
		return nil
	}
	old := l.spec
	spec.Engine = old.Engine // it runs
	l.spec = spec
	l.mu.Unlock()
	l.apply(spec) // whatever fails below: a lock holds
	if err := l.slot.Set(settings(spec)); err != nil {
		return err
	}
	if old.Proxy != spec.Proxy {
		// New connections go to the new webproxy; the old one's end by themselves.
		next := egress.NewProxy(egress.ProxyConfig{Session: spec.ID, Address: spec.Proxy, Credentials: l.m.c.Credentials})
		l.mu.Lock()
		before := l.proxy
		l.proxy = next
		l.mu.Unlock()
		l.slot.Door.Claim(spec.StartURL, next)
		before.Close()
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
	return l.m.save(l)
}

// apply makes the screen what spec says.
func (l *live) apply(spec wire.CarrierSession) {
	if err := l.screen.SetPolicy(screenPolicy(spec)); err != nil {
		l.log.Error("policy of the screen", telemetry.KeyErr, err)
	}
	l.setHearing()
	if spec.Locked {
		text := spec.LockText
		if text == "" {
			text = "This session is locked."
		}
		if err := l.screen.Lock(text); err != nil {
			l.log.Error("lock", telemetry.KeyErr, err)
		}
	} else {
		l.screen.Unlock()
	}
	l.showNotice()
}

// showNotice shows the carrier's notice.
func (l *live) showNotice() {
	l.mu.Lock()
	text := l.notice
	l.mu.Unlock()
	l.screen.Notice(text)
}

// warn sets the carrier's notice and tells of it.
func (l *live) warn(text string) {
	l.mu.Lock()
	same := l.notice == text
	l.notice = text
	l.mu.Unlock()
	if same {
		return
	}
	l.showNotice()
	if text != "" {
		l.event("notice", map[string]string{"text": text})
	}
}

// event keeps an event for core. A recorded session whose events cannot be
// kept ends.
func (l *live) event(kind string, fields map[string]string) {
	err := l.spool.Event(kind, fields)
	if err != nil && !errors.Is(err, spool.ErrGone) {
		l.mu.Lock()
		recorded := l.spec.Recorded
		l.mu.Unlock()
		if recorded {
			l.m.end(l, byError, textFull, err.Error())
		}
	}
}

const textFull = "The session could not be recorded any more and was ended."

// maxClip is how long a clipboard text may be to be told itself, in bytes.
const maxClip = 4 << 20

// screenEvent turns the display's events into records.
func (l *live) screenEvent(e display.Event) {
	f := map[string]string{}
	set := func(k, v string) {
		if v != "" {
			f[k] = v
		}
	}
	set("viewer", e.Viewer)
	switch e.Kind {
	case display.ClipboardIn, display.ClipboardOut:
		f["direction"] = "in"
		if e.Kind == display.ClipboardOut {
			f["direction"] = "out"
		}
		f["bytes"] = strconv.Itoa(e.Bytes)
		set("sha256", e.SHA256)
		set("refused", e.Refused)
		if len(e.Text) <= maxClip {
			set("text", e.Text)
		}
		l.event("clipboard", f)
	case display.ViewerJoined, display.ViewerLeft:
		f["what"] = strings.TrimPrefix(string(e.Kind), "viewer-")
		f["control"] = strconv.FormatBool(e.Control)
		l.event("viewer", f)
	case display.Resized:
		f["what"], f["width"], f["height"] = "resized", strconv.Itoa(e.Width), strconv.Itoa(e.Height)
		l.event("browser", f)
	case display.KeyBlocked:
		f["what"], f["keys"] = "key blocked", e.Keys
		l.event("browser", f)
	}
}

// show runs the screen and ends the session with it.
func (l *live) show(started time.Time) {
	l.wg.Go(func() {
		select {
		case <-l.screen.Ready():
			l.mu.Lock()
			w, h := l.spec.Width, l.spec.Height
			l.mu.Unlock()
			if l.m.c.Now().Sub(started) < time.Minute && w > 0 && h > 0 {
				if err := l.screen.Resize(w, h); err != nil {
					l.log.Debug("resize", telemetry.KeyErr, err)
				}
			}
		case <-l.ctx.Done():
		}
	})
	err := l.screen.Run(l.ctx)
	switch {
	case l.ctx.Err() != nil:
	case errors.Is(err, display.ErrRecording):
		l.m.end(l, byError, textFull, err.Error())
	default:
		// The container has ended, which watch tells better; if it has not, the
		// screen is broken.
		t := time.NewTimer(2 * time.Second)
		defer t.Stop()
		select {
		case <-l.ctx.Done():
		case <-t.C:
			l.m.end(l, byError, "The browser's screen was lost.", fmt.Sprint(err))
		}
	}
}

// watch waits for the container's end.
func (l *live) watch() {
	for l.ctx.Err() == nil {
		c, err := l.slot.Ended(l.ctx)
		if err != nil {
			// The daemon is away, or was restarted: what it says next counts.
			pause(l.ctx, 300*time.Millisecond)
			continue
		}
		if l.ctx.Err() != nil {
			return
		}
		why, text := left(c)
		detail := fmt.Sprintf("container ended, code %d", c.ExitCode)
		if logs := l.slot.Logs(l.ctx); logs != "" && c.ExitCode != 0 {
			l.log.Warn("container", "log", logs)
		}
		l.m.end(l, why, text, detail)
		return
	}
}

// left is why a browser ended, by what became of its container, and that in
// words.
func left(c browser.Container) (reason, string) {
	switch {
	case c.OOM:
		return byError, textStarved
	case c.ID == "":
		return byError, "The browser was removed on its host."
	case c.ExitCode == 0:
		return byUser, "The browser was closed."
	case c.ExitCode == 137 || c.ExitCode == 143:
		return byError, "The browser was stopped on its host."
	}
	return byError, "The browser ended unexpectedly."
}

const textStarved = "The page needed more memory than a session may use, and the browser was ended."

// starved ends sessions in whose container the kernel ended a process for want
// of memory. That is the page's most often, and a browser without it shows
// nothing and says nothing.
func (m *Manager) starved() {
	since := m.c.Now()
	for m.ctx.Err() == nil {
		heard := m.c.Now()
		err := m.c.Engine.Starved(m.ctx, since, func(id string) {
			heard = m.c.Now()
			m.mu.Lock()
			var of *live
			for _, l := range m.lives {
				if l.slot.ID == id {
					of = l
				}
			}
			m.mu.Unlock()
			if of != nil {
				m.end(of, byError, textStarved, "out of memory")
			}
		})
		since = heard
		if _, known := errors.AsType[*browser.Problem](err); !known && m.ctx.Err() == nil { // the pool tells of those
			m.log.Warn("memory of containers", telemetry.KeyErr, err)
		}
		pause(m.ctx, time.Second)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// limits ends the session when it has been idle or open for too long, or
// without a tunnel for longer than its lease; it says so before.
func (l *live) limits() {
	connected := l.m.c.Now()
	for {
		now := l.m.c.Now()
		if l.m.c.Connected() {
			connected = now
		}
		l.mu.Lock()
		spec := l.spec
		l.mu.Unlock()
		s := clocks{now: now, started: l.started, used: l.used(), connected: connected}
		v := judge(spec, s)
		if v.end != "" {
			l.m.end(l, v.end, v.text, "")
			return
		}
		l.warn(v.notice)
		t := time.NewTimer(v.next)
		select {
		case <-t.C:
		case <-l.kick:
			t.Stop()
		case <-l.ctx.Done():
			t.Stop()
			return
		}
	}
}

// used is when somebody last did something.
func (l *live) used() time.Time {
	used := l.screen.LastInput()
	if t := time.Unix(0, l.touched.Load()); t.After(used) {
		used = t
	}
	if l.started.After(used) {
		return l.started
	}
	return used
}

// view serves a viewer until it leaves.
func (l *live) view(ctx context.Context, s stream, control bool) {
	select {
	case <-l.screen.Ready():
	case <-l.ctx.Done():
	case <-ctx.Done():
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(l.ctx, stop)()
	if err := l.screen.View(ctx, s, display.ViewOptions{Control: control}); err != nil && ctx.Err() == nil {
		l.log.Debug("viewer", telemetry.KeyErr, err)
	}
}

// finish takes everything down, in the order that loses nothing: the screen
// writes its last frame, the records go to core while the container dies.
func (l *live) finish(kind reason, text, detail string) {
	l.log.Info("session ends", "reason", string(kind), "detail", detail)
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	proxy := l.proxy
	l.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(l.m.ctx), 20*time.Second)
		defer cancel()
		if err := l.slot.Close(ctx); err != nil {
			l.log.Error("container", telemetry.KeyErr, err)
			l.m.sweepSoon()
		}
	})
	proxy.Close()
	l.files.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.m.ctx), flushTime)
	defer cancel()
	err := l.spool.Flush(ctx)
	if errors.Is(err, spool.ErrGone) {
		err = nil
	}
	wg.Wait()
	if err != nil {
		l.log.Warn("last records wait for core", telemetry.KeyErr, err)
		l.m.follow(l, kind, text) // goes on without the session
	} else {
		l.records()
		if kind != "" {
			l.m.tell(wire.WebEnded{Session: l.id, Reason: string(kind), Text: text})
		}
	}
}

// Files serves the session's files on a stream.
func (l *live) handler() http.Handler { return l.files }
