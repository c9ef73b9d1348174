package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// API calls core's REST interface as one user.
type API struct {
	URL   string
	Token string
	http  *http.Client
	spec  *Spec // what every answer is held against; may be nil
}

// NewAPI makes a client without a login. dial may be nil.
func NewAPI(url, caFile string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (*API, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", caFile)
	}
	return &API{URL: url, http: &http.Client{
		Timeout:   2 * time.Minute,
		Transport: &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: roots}},
	}}, nil
}

// As is the same client with another token.
func (a *API) As(token string) *API {
	return &API{URL: a.URL, Token: token, http: a.http, spec: a.spec}
}

// Status is an answer that was no success.
type Status struct {
	Code int
	Body string
}

// Error implements error.
func (s *Status) Error() string { return fmt.Sprintf("%d: %s", s.Code, s.Body) }

// Do sends a request and decodes the answer; header is a list of name, value.
func (a *API) Do(ctx context.Context, method, path string, in, out any, header ...string) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.URL+"/api/v1"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.Token != "" {
		req.Header.Set("Authorization", "Bearer "+a.Token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if a.spec != nil {
		if err := a.spec.Check(method, path, resp.StatusCode, resp.Header.Get("Content-Type"), text); err != nil {
			return err
		}
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %w", method, path, &Status{resp.StatusCode, string(text)})
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*out = text
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s %s: %w: %s", method, path, err, text)
	}
	return nil
}

// Hold has every answer checked against core's own OpenAPI document from now on.
func (a *API) Hold(ctx context.Context) (*Spec, error) {
	var text []byte
	if err := a.Do(ctx, http.MethodGet, "/openapi.json", nil, &text); err != nil {
		return nil, err
	}
	spec, err := ParseSpec(text)
	if err != nil {
		return nil, err
	}
	a.spec = spec
	return spec, nil
}

// HTTP is the client underneath, for requests that are not JSON.
func (a *API) HTTP() *http.Client { return a.http }

// Delete removes a thing whatever its version is.
func (a *API) Delete(ctx context.Context, path string) error {
	return a.Do(ctx, http.MethodDelete, path, nil, nil, "If-Match", "*")
}
