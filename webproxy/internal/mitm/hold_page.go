package mitm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"html/template"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// holdPage answers a page's request, or a form's, with a page that waits. When
// it was approved meanwhile, it goes on: once.
func (x *exchange) holdPage(ctx context.Context, h *held, ask wire.WebApprovalAsk, body []byte) {
	h.in, h.body = x.in.Clone(context.Background()), body
	h.meant, h.methods, h.unclear = x.meant(), x.bodyMethods, x.unclear
	h.in.Body = nil
	var wctx context.Context
	wctx, h.cancel = context.WithCancelCause(context.Background())
	old := x.s.holds.page(h, x.ses.ID+" "+ask.Digest)
	if old != h {
		h.cancel(nil)
		if _, ok := x.s.holds.spend(old); ok {
			// What leaves is what was approved. Cookies may have been renewed.
			cookies := x.in.Header["Cookie"]
			x.resume(old)
			delete(x.in.Header, "Cookie")
			if len(cookies) > 0 {
				x.in.Header["Cookie"] = cookies
			}
			x.pass(ctx, old.name)
			return
		}
		x.waitingPage(old)
		return
	}
	x.s.Held.Add(1)
	x.s.work.Go(func() {
		defer h.cancel(nil)
		defer x.s.holds.remove(h)
		x.s.await(wctx, h, ask)
	})
	x.waitingPage(h)
}

// await waits for the decision on a page's request as long as somebody looks
// at the page, and then for the page to take it up. The request outlives the
// one that brought it, but not the session.
func (s *Server) await(given context.Context, h *held, ask wire.WebApprovalAsk) {
	defer h.ses.Keep(h.name)()
	ctx, live, ok := h.ses.TrackHeld(h.ses.Context(), h.meant)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(given, func() { cancel(context.Cause(given)) })
	var attending sync.WaitGroup
	decided := make(chan struct{})
	attending.Go(func() { s.attend(h, decided) })
	a, err := h.ses.Await(ctx, ask, func(a wire.WebApproval) { s.holds.tell(h, a, s.c.Now()) })
	close(decided)
	attending.Wait()
	stop()
	cancel(nil)
	if err != nil {
		a.Text = "The session has ended, or its rules have changed."
		if errors.Is(err, errHeldLeft) || errors.Is(err, errHeldCancel) {
			a.Text = "You took it back."
		}
	}
	s.holds.tell(h, a, s.c.Now())
	if a.State != wire.ApprovalApproved {
		s.Blocked.Add(1)
		fields := map[string]string{"method": clip(h.in.Method, 32), "url": h.url, "reason": "approval_" + string(a.State), "type": "document"}
		if eerr := h.ses.Event("blocked", fields); eerr != nil {
			s.c.Log.Debug("event", telemetry.KeySession, h.ses.ID, telemetry.KeyErr, eerr)
		}
	}
	live.Done()
	// Its page reads the outcome, and takes an approved request up.
	defer func() {
		if _, ok := s.holds.spend(h); ok { // it did not
			h.ses.Drop(h.name)
		}
	}()
	ctx, live, ok = h.ses.TrackHeld(h.ses.Context(), h.meant)
	if !ok {
		return
	}
	defer live.Done()
	t := time.NewTimer(2 * s.c.Left)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// attend withdraws a request whose page is not there any more.
func (s *Server) attend(h *held, stop <-chan struct{}) {
	tick := time.NewTicker(s.c.Left / 10)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		s.holds.mu.Lock()
		left := h.pages == 0 && h.answer.State == wire.ApprovalWaiting && s.c.Now().Sub(h.seen) >= s.c.Left
		s.holds.mu.Unlock()
		if left {
			h.cancel(errHeldLeft)
		}
	}
}

// continued takes up the request of a form for its page.
func (x *exchange) continued() {
	b, err := io.ReadAll(io.LimitReader(x.in.Body, int64(continueBody)))
	if err != nil {
		x.page(http.StatusBadRequest, page{Title: "The request was cut off", Host: x.at.String(), Text: "Nothing was sent."})
		return
	}
	h := x.s.holds.find(x.ses, strings.TrimSpace(strings.TrimPrefix(string(b), continueField)))
	if h == nil || h.in == nil || h.meant.Request != x.what || h.in.URL.RequestURI() != x.in.URL.RequestURI() {
		x.page(http.StatusConflict, page{Title: "This request does not wait any more", Host: x.at.String(), Text: "It was sent already, or was forgotten because the proxy was restarted.", Hint: "Go back and repeat what you did if it is still needed."})
		return
	}
	a, ok := x.s.holds.spend(h)
	if !ok {
		if a.State == wire.ApprovalWaiting {
			x.waitingPage(h)
			return
		}
		x.page(http.StatusForbidden, refusalPage(x.at.String(), a))
		return
	}
	ctx, live, ok := x.ses.TrackHeld(x.in.Context(), h.meant)
	if !ok {
		h.ses.Drop(h.name)
		x.tooMany()
		return
	}
	defer live.Done()
	x.live = live
	x.resume(h)
	x.pass(ctx, h.name)
}

// resume makes the exchange that of a request that was held.
func (x *exchange) resume(h *held) {
	in := h.in.Clone(x.in.Context())
	in.Body, in.ContentLength, in.TransferEncoding = io.NopCloser(bytes.NewReader(h.body)), int64(len(h.body)), nil
	in.Proto, in.ProtoMajor, in.ProtoMinor, in.TLS = x.in.Proto, x.in.ProtoMajor, x.in.ProtoMinor, x.in.TLS
	x.in, x.bodyMethods, x.unclear = in, h.methods, h.unclear
}

// heldState tells a held page how far its request is, and hears that it is
// given up.
func (x *exchange) heldState(name string) {
	h := x.w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	held := x.s.holds.find(x.ses, name)
	if held == nil || held.in == nil || held.at != x.at {
		http.Error(x.w, "There is nothing here.", http.StatusNotFound)
		return
	}
	hs := x.s.holds
	if x.in.Method == http.MethodPost {
		held.cancel(errHeldCancel)
		x.w.WriteHeader(http.StatusNoContent)
		return
	}
	hs.mu.Lock()
	held.pages++
	state, changed := held.answer.State, held.changed
	hs.mu.Unlock()
	if x.in.URL.RawQuery == "state="+string(state) && state == wire.ApprovalWaiting {
		t := time.NewTimer(heldPoll)
		select {
		case <-changed:
		case <-t.C:
		case <-x.in.Context().Done():
		case <-x.ses.Context().Done():
		}
		t.Stop()
	}
	now := x.s.c.Now()
	hs.mu.Lock()
	held.pages--
	held.seen = now
	a, left := held.answer, held.until.Sub(now)
	hs.mu.Unlock()
	b, err := json.Marshal(map[string]any{"state": a.State, "by": a.By, "text": a.Text, "left_s": max(0, int(math.Ceil(left.Seconds())))})
	if err != nil {
		http.Error(x.w, "internal error", http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", "application/json")
	_, _ = x.w.Write(b) // the page may be gone
}

// waitingPage shows that a request waits. Its script asks what becomes of it,
// and takes it up: a form's by sending its name to the same URL, a page's by
// asking for it again.
func (x *exchange) waitingPage(h *held) {
	x.status = http.StatusAccepted
	hs := x.s.holds
	hs.mu.Lock()
	h.seen = x.s.c.Now()
	hs.mu.Unlock()
	nonce := rand.Text()
	head := x.w.Header()
	clear(head)
	head.Set("Cache-Control", "no-store")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Content-Type", "text/html; charset=utf-8")
	head.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+nonce+"'; script-src 'nonce-"+nonce+"'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors *")
	x.w.WriteHeader(x.status)
	form := ""
	if h.in.Method == http.MethodPost {
		form = continueField + h.name
	}
	name, value, _ := strings.Cut(form, "=")
	_ = waitingTemplate.Execute(x.w, map[string]string{ // the browser may have left
		"Nonce": nonce, "Method": h.in.Method, "URL": h.url, "Why": h.why, "At": heldPath + h.name, "Name": name, "Value": value,
	})
}

var waitingTemplate = template.Must(template.New("waiting").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Waiting for approval</title>
<style nonce="{{.Nonce}}">
:root{color-scheme:light dark}
body{font:16px/1.5 "DejaVu Sans",system-ui,sans-serif;margin:0;display:grid;place-items:center;min-height:90vh;background:#f6f7f9;color:#1c2330}
main{max-width:34rem;margin:2rem;padding:2rem 2.5rem;background:#fff;border:1px solid #d8dde6;border-radius:8px}
h1{font-size:1.3rem;margin:0 0 1rem}p{margin:.6rem 0}code{font-size:1.05em;overflow-wrap:anywhere}.hint{color:#556}
button{font:inherit;padding:.4rem 1.1rem;border:1px solid #98a2b3;border-radius:6px;background:transparent;color:inherit;cursor:pointer}
button:focus-visible{outline:2px solid #2563eb;outline-offset:2px}
@media(prefers-color-scheme:dark){body{background:#14171c;color:#e3e7ee}main{background:#1d2129;border-color:#323845}.hint{color:#a0a8b6}}
</style></head><body><main data-at="{{.At}}"><h1 id="title">Waiting for approval</h1>
<p><code>{{.Method}} {{.URL}}</code></p>
<p id="state" role="status">A second person must approve this request before it is sent.</p>
{{with .Why}}<p class="hint">{{.}}</p>{{end}}
<p class="hint" id="hint">Leave this page open: it goes on by itself. Closing it takes the request back.</p>
<p><button id="cancel" type="button">Take it back</button></p>
<form method="post" enctype="text/plain" id="go">{{with .Name}}<input type="hidden" name="{{.}}" value="{{$.Value}}">{{end}}</form>
</main><noscript><p>Load this page again to see whether it was approved.</p></noscript>
<script nonce="{{.Nonce}}">
"use strict";
const at = document.querySelector("main").dataset.at, form = document.getElementById("go");
const say = (id, text) => { document.getElementById(id).textContent = text; };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const over = (title, text, hint) => { document.title = title; say("title", title); say("state", text); say("hint", hint); document.getElementById("cancel").hidden = true; };
document.getElementById("cancel").addEventListener("click", () => { void fetch(at, { method: "POST" }); });
function minutes(s) { return s > 90 ? Math.round(s / 60) + " minutes" : s + " seconds"; }
async function look() {
  for (let state = "";;) {
    let r;
    try { r = await fetch(at + "?state=" + state, { cache: "no-store" }); } catch { await pause(1000); continue; }
    if (r.status === 404) return over("This request does not wait any more", "It was not sent from here.", "Repeat what you did if it is still needed.");
    if (!r.ok) { await pause(1000); continue; }
    const now = await r.json();
    state = now.state;
    const text = now.text ? now.text : "";
    switch (state) {
    case "approved":
      over("Approved", "Approved" + (now.by ? " by " + now.by : "") + ". It goes on now.", text);
      if (form.elements.length > 0) form.submit(); else location.reload();
      return;
    case "denied": return over("This request was not approved", (now.by ? "It was denied by " + now.by : "It was denied") + " and not sent.", text);
    case "expired": return over("Nobody approved this request in time", "It was not sent.", text);
    case "withdrawn": return over("This request was taken back", "It was not sent.", text);
    case "waiting": break;
    default: return over("This request does not wait any more", "It was not sent.", text);
    }
    if (now.left_s > 0) say("state", "A second person must approve this request before it is sent. It waits " + minutes(now.left_s) + " at most.");
  }
}
void look();
</script></body></html>
`))
