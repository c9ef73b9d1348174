package inject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"caponier/shared/webrule"
)

const (
	// maxAnswer bounds what is read of a step's answer.
	maxAnswer = 1 << 20
	// maxLogins is how often a session may try, pause how long it waits in
	// between: wrong passwords lock accounts.
	maxLogins = 3
	pause     = 10 * time.Second
	stepTime  = 30 * time.Second
	maxHeld   = 64 // cookies
)

// Login signs a session in by requests of the proxy's own, once. Safe for
// concurrent use.
type Login struct {
	j *Injector
	// send sends a request without any rule's verdict: the recipe is the
	// administrator's.
	send func(*http.Request) (*http.Response, error)

	running chan struct{} // capacity 1: held while the steps run

	mu      sync.Mutex
	done    bool                // guarded by mu
	tried   int                 // guarded by mu
	last    time.Time           // guarded by mu
	failure *Error              // guarded by mu; of the last try
	jar     *cookiejar.Jar      // guarded by mu; nil: nothing to hand over
	cookies map[string][]string // guarded by mu; Set-Cookie headers by host
}

// NewLogin makes a Login.
func (j *Injector) NewLogin(send func(*http.Request) (*http.Response, error)) *Login {
	return &Login{j: j, send: send, running: make(chan struct{}, 1)}
}

// Ensure runs the steps if they have not succeeded yet. Requests of the
// session wait for it.
func (l *Login) Ensure(ctx context.Context, p *webrule.Compiled) error {
	if l.succeeded() {
		return nil
	}
	select {
	case l.running <- struct{}{}:
		defer func() { <-l.running }()
	case <-ctx.Done():
		return fmt.Errorf("sign in: %w", context.Cause(ctx))
	}
	l.mu.Lock()
	now := l.j.c.Now()
	switch {
	case l.done:
		l.mu.Unlock()
		return nil
	case l.tried >= maxLogins, l.tried > 0 && now.Sub(l.last) < pause:
		err := l.failure
		l.mu.Unlock()
		return err
	}
	l.tried++
	l.mu.Unlock()
	jar, cookies, err := l.run(ctx, p)
	outcome := "used"
	if err != nil {
		outcome = "failed"
	}
	eerr := l.j.event(webrule.LoginInjection, p.Origin, outcome)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = l.j.c.Now()
	if eerr != nil {
		l.failure = &Error{Public: "Signing in failed: it could not be put on record."}
		return eerr
	}
	if err != nil {
		if public, ok := errors.AsType[*Error](err); ok {
			l.failure = public
		} else {
			l.failure = &Error{Public: "Signing in failed: the application did not answer."}
		}
		return l.failure
	}
	l.done, l.jar, l.cookies = true, jar, cookies
	return nil
}

func (l *Login) succeeded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done
}

// Cookies adds to a request the cookies that the browser does not have yet.
func (l *Login) Cookies(out *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.jar == nil || len(l.cookies[out.URL.Hostname()]) == 0 {
		return
	}
	have := map[string]bool{}
	for _, c := range out.Cookies() {
		have[c.Name] = true
	}
	for _, c := range l.jar.Cookies(out.URL) {
		if !have[c.Name] {
			out.AddCookie(c)
		}
	}
}

// HandOver gives the browser the cookies of this host, with its first answer.
func (l *Login) HandOver(host string, h http.Header) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.cookies[host]
	if len(list) == 0 {
		return
	}
	delete(l.cookies, host)
	// The server's own come last and win.
	h["Set-Cookie"] = append(list, h["Set-Cookie"]...)
	if len(l.cookies) == 0 {
		l.jar = nil
	}
}

// run sends the steps.
func (l *Login) run(ctx context.Context, p *webrule.Compiled) (*cookiejar.Jar, map[string][]string, error) {
	login := p.Recipe.Login
	base, err := url.Parse(p.Origin)
	if err != nil {
		return nil, nil, fmt.Errorf("sign in: %w", err)
	}
	for i, s := range login.Steps {
		if err := secure(p, base, s); err != nil {
			return nil, nil, &Error{Public: fmt.Sprintf("Signing in failed at step %d: %s.", i+1, err)}
		}
	}
	first, err := base.Parse(login.Steps[0].URL)
	if err != nil {
		return nil, nil, &Error{Public: "Signing in failed: its first URL is broken."}
	}
	c, err := l.j.credential(ctx, webrule.LoginInjection, first.Scheme+"://"+first.Host+first.EscapedPath())
	if err != nil {
		return nil, nil, err
	}
	values := map[string]string{string(webrule.Username): c.Username, string(webrule.Password): c.Password}
	if c.TOTP != "" {
		values[string(webrule.TOTP)] = c.TOTP
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("sign in: %w", err)
	}
	cookies := map[string][]string{}
	held := 0
	for i, s := range login.Steps {
		failed := func(format string, args ...any) error {
			return &Error{Public: fmt.Sprintf("Signing in failed at step %d: %s.", i+1, fmt.Sprintf(format, args...))}
		}
		resp, body, err := l.step(ctx, base, s, values, jar)
		if err != nil {
			return nil, nil, err
		}
		jar.SetCookies(resp.Request.URL, resp.Cookies())
		for _, raw := range resp.Header["Set-Cookie"] {
			if held++; held <= maxHeld {
				host := resp.Request.URL.Hostname()
				cookies[host] = append(cookies[host], raw)
			}
		}
		text := headerText(resp.Header) + "\n" + string(body)
		for name, pattern := range s.Extract {
			re, err := regexp.Compile(pattern) // validated
			if err != nil {
				return nil, nil, failed("its pattern for %s is broken", name)
			}
			m := re.FindStringSubmatch(text)
			if m == nil {
				return nil, nil, failed("the answer (status %d) has no %s", resp.StatusCode, name)
			}
			values[name] = m[1]
		}
		if i < len(login.Steps)-1 {
			continue
		}
		switch ok := resp.StatusCode >= 200 && resp.StatusCode < 400; {
		case login.Status != 0 && resp.StatusCode != login.Status, login.Status == 0 && !ok:
			return nil, nil, failed("the application answered with status %d", resp.StatusCode)
		case login.Cookie != "" && !hasCookie(cookies, login.Cookie):
			return nil, nil, failed("the application gave no session")
		}
	}
	return jar, cookies, nil
}

// secure refuses to send a credential where others could read it.
func secure(p *webrule.Compiled, base *url.URL, s webrule.Step) error {
	u, err := base.Parse(s.URL)
	if err != nil {
		return errors.New("its URL is broken")
	}
	all := s.Body
	for _, v := range s.Headers {
		all += v
	}
	if !strings.Contains(all, "{{") {
		return nil
	}
	if u.Scheme != "https" && !webrule.SameOrigin(u.String(), p.Origin) { // a target of plain http is permitted by name
		return errors.New("the credential is not sent over plain http")
	}
	if p.TLS.Unchecked && webrule.SameOrigin(u.String(), p.Origin) {
		return errors.New("the credential is not sent to a server whose certificate is not checked")
	}
	return nil
}

func hasCookie(cookies map[string][]string, name string) bool {
	for _, list := range cookies {
		for _, raw := range list {
			if strings.HasPrefix(raw, name+"=") {
				return true
			}
		}
	}
	return false
}

func headerText(h http.Header) string {
	var b strings.Builder
	for k, vs := range h {
		for _, v := range vs {
			b.WriteString(k + ": " + v + "\n")
		}
	}
	return b.String()
}

// step sends one request and reads its answer.
func (l *Login) step(ctx context.Context, base *url.URL, s webrule.Step, values map[string]string, jar *cookiejar.Jar) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	missing := &Error{Public: "Signing in failed: the recipe needs a value that the stored credential lacks."}
	where, ok := webrule.Expand(s.URL, values, url.QueryEscape)
	if !ok {
		return nil, nil, missing
	}
	u, err := base.Parse(where)
	if err != nil {
		return nil, nil, &Error{Public: "Signing in failed: a step's URL is broken."}
	}
	kind := ""
	for k, v := range s.Headers {
		if strings.EqualFold(k, "Content-Type") {
			kind = v
		}
	}
	if kind == "" && s.Body != "" {
		kind = "application/x-www-form-urlencoded"
		if t := strings.TrimSpace(s.Body); t[:min(1, len(t))] == "{" || t[:min(1, len(t))] == "[" {
			kind = "application/json"
		}
	}
	encode := func(v string) string { return v }
	switch {
	case strings.HasPrefix(kind, "application/x-www-form-urlencoded"):
		encode = url.QueryEscape
	case strings.Contains(kind, "json"):
		encode = func(v string) string { b := jsonString(v); return string(b[1 : len(b)-1]) }
	}
	body, ok := webrule.Expand(s.Body, values, encode)
	if !ok {
		return nil, nil, missing
	}
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(s.Method), u.String(), strings.NewReader(body))
	if err != nil {
		return nil, nil, &Error{Public: "Signing in failed: a step cannot be sent."}
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	req.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
	req.Header.Set("Accept", "*/*")
	for k, v := range s.Headers {
		v, ok := webrule.Expand(v, values, func(v string) string { return v })
		if !ok || strings.ContainsAny(v, "\r\n\x00") {
			return nil, nil, missing
		}
		req.Header.Set(k, v)
	}
	for _, text := range append(headerValues(s), s.Body) {
		// What a hash of the password opens must not be seen either.
		for _, e := range webrule.Expressions(text) {
			if v, ok := e.Eval(values); ok && len(e.Functions) > 0 {
				if err := l.j.c.Values.Add(v); err != nil {
					return nil, nil, &Error{Public: "The credential cannot be protected from being shown."}
				}
			}
		}
	}
	for _, c := range jar.Cookies(u) {
		req.AddCookie(c)
	}
	resp, err := l.send(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.Request == nil {
		resp.Request = req
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("sign in: %w", err)
	}
	return resp, answer, nil
}

func headerValues(s webrule.Step) (out []string) {
	for _, v := range s.Headers {
		out = append(out, v)
	}
	return out
}
