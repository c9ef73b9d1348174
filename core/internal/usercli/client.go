package usercli

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"caponier/shared/config"
	"caponier/shared/daemon"
)

// hinted is an error with the next step and its exit code.
type hinted struct {
	err  error
	hint string
	code int
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// problem is core's answer when it says no (RFC 9457).
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Errors []struct {
		Field   string `json:"field"`
		Message string `json:"message"`
	} `json:"errors"`
	retryAfter string
}

func (p *problem) Error() string {
	text := p.Title
	if p.Detail != "" {
		text += " " + p.Detail
	}
	for _, f := range p.Errors {
		text += "\n  " + f.Field + ": " + f.Message
	}
	if text == "" {
		text = http.StatusText(p.Status)
	}
	return text
}

func exitCode(err error) int {
	if errors.Is(err, errNotLoggedIn) {
		return ExitLogin
	}
	if p, ok := errors.AsType[*problem](err); ok {
		switch p.Status {
		case http.StatusUnauthorized:
			return ExitLogin
		case http.StatusForbidden:
			return ExitRefused
		case http.StatusNotFound:
			return ExitNotFound
		}
		return ExitFailed
	}
	if h, ok := errors.AsType[*hinted](err); ok && h.code != 0 {
		return h.code
	}
	return ExitFailed
}

func hint(err error) string {
	if errors.Is(err, errNotLoggedIn) {
		return "run: caponier login https://<core> --user <name>"
	}
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	if p, ok := errors.AsType[*problem](err); ok {
		switch {
		case p.Status == http.StatusUnauthorized:
			return "the login has ended or is wrong; run: caponier login"
		case p.Status == http.StatusTooManyRequests && p.retryAfter != "":
			return "try again in " + p.retryAfter + " seconds"
		case p.Code == "permission_missing":
			return "an administrator can give you a role that has it"
		case p.Code == "own_request", p.Code == "not_a_person":
			return "" // said already
		case p.Status == http.StatusForbidden:
			return "run caponier targets to see what you may reach"
		}
	}
	return ""
}

// client calls core's REST interface.
type client struct {
	base  string
	http  *http.Client
	token config.Secret
}

// connect makes a client of the profile; it needs no login.
func connect(p *profile) (*client, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS13}
	if p.CAFile != "" {
		pem, err := os.ReadFile(p.CAFile)
		if err != nil {
			return nil, &hinted{err: fmt.Errorf("read CA file: %w", err), hint: "give the CA certificate with --ca FILE; an administrator finds it with: caponier-core ca show", code: ExitConfig}
		}
		tc.RootCAs = x509.NewCertPool()
		if !tc.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &hinted{err: fmt.Errorf("%s holds no PEM certificate", p.CAFile), hint: "an administrator finds it with: caponier-core ca show", code: ExitConfig}
		}
	}
	return &client{base: strings.TrimSuffix(p.URL, "/") + "/api/v1", http: &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: tc, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 60 * time.Second},
		// A redirect could carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// session makes a client that is logged in.
func (e *env) session() (*client, *profile, error) {
	p, err := loadProfile(e)
	if err != nil {
		return nil, nil, err
	}
	c, err := connect(p)
	if err != nil {
		return nil, nil, err
	}
	c.token, err = e.token()
	return c, p, err
}

// open sends a request and returns the answer, whose body the caller closes.
func (c *client) open(ctx context.Context, method, path string, in any) (*http.Response, error) {
	return c.send(ctx, method, path, "", in)
}

// send is open with an If-Match, unless that is empty.
func (c *client) send(ctx context.Context, method, path, match string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	req.Header.Set("User-Agent", "caponier-cli/"+daemon.Version)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, readProblem(resp)
	}
	return resp, nil
}

func unreachable(err error) error {
	h := &hinted{err: err, hint: "check the URL and the network", code: ExitUnreachable}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		h.err = fmt.Errorf("%s: %w", ue.URL, ue.Err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		h.hint = "core's certificate is not trusted here; give its CA with caponier login --ca FILE (an administrator finds it with: caponier-core ca show)"
	}
	return h
}

func readProblem(resp *http.Response) error {
	p := &problem{}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || json.Unmarshal(b, p) != nil || p.Title == "" {
		p = &problem{Title: fmt.Sprintf("core answered %s.", resp.Status)}
	}
	p.Status = resp.StatusCode
	p.retryAfter = resp.Header.Get("Retry-After")
	return p
}

// maxAnswer bounds one answer; lists are paged.
const maxAnswer = 16 << 20

// do sends a request and decodes the answer into out.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	return c.exchange(ctx, method, path, "", in, out)
}

// change is do for something that was read at a version: core refuses when
// somebody else changed it since.
func (c *client) change(ctx context.Context, method, path string, version int64, in, out any) error {
	return c.exchange(ctx, method, path, fmt.Sprintf("%q", fmt.Sprint(version)), in, out)
}

func (c *client) exchange(ctx context.Context, method, path, match string, in, out any) error {
	resp, err := c.send(ctx, method, path, match, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// page is one page of a list.
type page struct {
	Items []json.RawMessage `json:"items"`
	Next  string            `json:"next"`
}

// all reads a list page by page, at most limit items.
func (c *client) all(ctx context.Context, path string, query url.Values, limit int) ([]json.RawMessage, error) {
	if limit < 1 {
		return nil, &daemon.UsageError{Text: "limit must be at least 1", Hint: "leave --limit away for the default"}
	}
	var items []json.RawMessage
	if query == nil {
		query = url.Values{}
	}
	for {
		var p page
		if err := c.do(ctx, http.MethodGet, path+"?"+query.Encode(), nil, &p); err != nil {
			return nil, err
		}
		items = append(items, p.Items...)
		if p.Next == "" || len(items) >= limit {
			return items[:min(len(items), limit)], nil
		}
		query.Set("cursor", p.Next)
	}
}

// decodeAll turns the items of a list into values.
func decodeAll[T any](items []json.RawMessage) ([]T, error) {
	out := make([]T, len(items))
	for i, raw := range items {
		if err := json.Unmarshal(raw, &out[i]); err != nil {
			return nil, fmt.Errorf("read the list: %w", err)
		}
	}
	return out, nil
}
