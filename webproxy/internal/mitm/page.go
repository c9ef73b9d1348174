package mitm

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"html/template"
	"net/http"
	"strings"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
	"caponier/webproxy/internal/inject"
	"caponier/webproxy/internal/session"
	"caponier/webproxy/internal/upstream"
)

// page is what people are told. Its texts are ours or marked public.
type page struct {
	Title, Host, Text, Hint string

	Nonce string
}

var pageTemplate = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Title}}</title>
<style nonce="{{.Nonce}}">
:root{color-scheme:light dark}
body{font:16px/1.5 "DejaVu Sans",system-ui,sans-serif;margin:0;display:grid;place-items:center;min-height:90vh;background:#f6f7f9;color:#1c2330}
main{max-width:34rem;margin:2rem;padding:2rem 2.5rem;background:#fff;border:1px solid #d8dde6;border-radius:8px}
h1{font-size:1.3rem;margin:0 0 1rem}p{margin:.6rem 0}code{font-size:1.05em;overflow-wrap:anywhere}.hint{color:#556}
@media(prefers-color-scheme:dark){body{background:#14171c;color:#e3e7ee}main{background:#1d2129;border-color:#323845}.hint{color:#a0a8b6}}
</style></head><body><main><h1>{{.Title}}</h1>{{with .Host}}<p><code>{{.}}</code></p>{{end}}<p>{{.Text}}</p>{{with .Hint}}<p class="hint">{{.}}</p>{{end}}</main></body></html>
`))

// page answers with a page for people, or a line for scripts.
func (x *exchange) page(status int, p page) {
	x.status = status
	h := x.w.Header()
	clear(h)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if dest := x.in.Header.Get("Sec-Fetch-Dest"); dest != "" && dest != "document" && dest != "iframe" && dest != "frame" {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		x.w.WriteHeader(status)
		_, _ = x.w.Write([]byte(p.Title + ": " + p.Host + "\n" + p.Text + "\n")) // the browser may have left
		return
	}
	p.Nonce = rand.Text()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+p.Nonce+"'; base-uri 'none'; form-action 'none'; frame-ancestors *")
	x.w.WriteHeader(status)
	_ = pageTemplate.Execute(x.w, p) // the browser may have left
}

// scanError is a scanner that cannot be asked: what it has not seen does not pass.
type scanError struct{ err error }

// Error implements error.
func (e *scanError) Error() string { return "scanner: " + e.err.Error() }

// Unwrap returns the cause.
func (e *scanError) Unwrap() error { return e.err }

// failed tells why a request got no answer, or cuts an answer that began.
func (x *exchange) failed(ctx context.Context, err error) {
	x.s.Failed.Add(1)
	// Errors hold no values: they never met one.
	x.s.c.Log.Debug("request failed", telemetry.KeySession, x.ses.ID, "host", x.at.String(), telemetry.KeyErr, err)
	if errors.Is(err, errCut) {
		if errors.Is(err, errMasked) {
			if eerr := x.ses.Event("blocked", map[string]string{"method": clip(x.in.Method, 32), "url": x.url, "reason": "credential_in_answer"}); eerr != nil {
				x.s.c.Log.Debug("event", telemetry.KeyErr, eerr)
			}
		}
		x.record()
		// The answer must not look complete.
		panic(http.ErrAbortHandler)
	}
	if cause := context.Cause(ctx); errors.Is(cause, session.ErrEnded) || errors.Is(cause, session.ErrRevoked) {
		x.page(http.StatusForbidden, page{Title: "Access has ended", Host: x.at.String(), Text: "The rules of this session have changed while the page was loading.", Hint: "Ask your administrator if you need it."})
		return
	}
	if v := x.late.Load(); v != nil {
		x.blocked(*v)
		return
	}
	p := page{Host: x.at.String()}
	status := http.StatusBadGateway
	inj, isInject := errors.AsType[*inject.Error](err)
	scan, isScan := errors.AsType[*scanError](err)
	we, isWire := errors.AsType[*wire.Error](err)
	hs, isTLS := errors.AsType[*upstream.HandshakeError](err)
	switch {
	case isInject:
		p.Title, p.Text, p.Hint = "Signing in did not work", inj.Public, "Tell your administrator: the target's stored credential or its recipe needs a look."
	case isScan:
		p.Title, p.Text, p.Hint = "The scanner does not answer", "Content of this target is passed on only after it was scanned.", "Try again in a moment, or tell your administrator."
		x.s.c.Log.Warn("scanner", telemetry.KeySession, x.ses.ID, telemetry.KeyErr, scan.err)
	case isWire && we.Code == wire.CodeTimeout:
		status = http.StatusGatewayTimeout
		p.Title, p.Text = "The server did not answer in time", sentence(we.Public)
	case isWire && we.Code == wire.CodeRefused:
		status = http.StatusForbidden
		p.Title, p.Text, p.Hint = "This address may not be reached", sentence(we.Public), "If it is meant, your administrator can name it among the target's private addresses."
	case isWire:
		p.Title, p.Text = "The server cannot be reached", sentence(we.Public)
	case isTLS:
		p.Title, p.Text = "The server's certificate is not accepted", sentence(certificateText(hs.Err))
		p.Hint = "Do not enter anything. Tell your administrator: the certificate must be renewed, or its authority named with the target."
	case errors.Is(err, errEncoding):
		p.Title, p.Text = "The answer cannot be read", "The server compressed its answer in a way that was not offered; it cannot be checked for credentials."
	default:
		p.Title, p.Text = "The server broke the connection off", "It sent no complete answer."
	}
	x.page(status, p)
}

func sentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// certificateText says for people what is wrong with a server's TLS.
func certificateText(err error) string {
	if e, ok := errors.AsType[*upstream.RevokedError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*upstream.UnknownStatusError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		names := e.Certificate.DNSNames
		if len(names) > 3 {
			names = names[:3]
		}
		if len(names) == 0 {
			return "the certificate is for another name"
		}
		return "the certificate is for another name: " + clip(strings.Join(names, ", "), 200)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return "the certificate has expired or is not valid yet (" + e.Cert.NotBefore.Format("2006-01-02") + " to " + e.Cert.NotAfter.Format("2006-01-02") + ")"
		}
		return "the certificate is not valid"
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if e.Cert != nil && e.Cert.Issuer.String() == e.Cert.Subject.String() {
			return "the certificate is self-signed"
		}
		return "the certificate is of an unknown authority"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the certificate cannot be verified"
	}
	if e, ok := errors.AsType[tls.AlertError](err); ok {
		return "the server refused the TLS handshake (" + e.Error() + ")"
	}
	return "no TLS connection could be made: server and policy may not have a protocol version in common"
}
