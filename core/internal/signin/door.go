package signin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

// TicketCookie hands a login from the door for client certificates over to the
// console, which is the same host on another port: cookies know no ports.
const TicketCookie = "__Host-caponier-ticket"

const (
	ticketKind = "certificate-ticket"
	ticketLife = time.Minute
)

// ticket says that somebody proved with a certificate who he is.
type ticket struct {
	UserID      string     `json:"u"`
	MFA         bool       `json:"m,omitempty"`
	Source      netip.Addr `json:"s"`
	Anchor      string     `json:"a"`
	Fingerprint string     `json:"f"`
	Path        string     `json:"p"` // the certificates he was accepted by (pathNames)
}

// certificateBucket stands for the user name in the limits of logins by
// certificate; no user can have it.
const certificateBucket = "(certificate)"

// enter checks the certificates of a TLS connection and makes the ticket.
func (s *Service) enter(ctx context.Context, chain []*x509.Certificate, source netip.Addr) (kept, name string, err error) {
	done, err := s.users.Attempt(ctx, certificateBucket, source, "console")
	if err != nil {
		return "", "", err
	}
	var reason error
	defer func() { done(reason != nil) }()
	a, u, path, reason, err := s.who(ctx, chain)
	if err != nil {
		return "", "", err
	}
	h := sha256.Sum256(chain[0].Raw)
	t := ticket{UserID: u.ID, MFA: a.Config.MFA, Source: source.Unmap(), Anchor: a.ID, Fingerprint: hex.EncodeToString(h[:]), Path: path}
	if reason != nil {
		arrival := user.Arrival{UserID: u.ID, Methods: []string{"certificate"}, Source: source, Via: "console",
			Fields: map[string]string{"fingerprint": t.Fingerprint}}
		if err := s.users.RefuseArrival(ctx, arrival, reasons[reason]); err != nil {
			return "", "", err
		}
		return "", "", reason
	}
	kept, err = s.sealState(ticketKind, t, ticketLife)
	return kept, u.Name, err
}

// reasons are the refusals as the audit log has them.
var reasons = map[error]string{
	errForeign: "foreign_certificate", errExpired: "expired_certificate", errUsage: "certificate_usage", errRevoked: "revoked_certificate",
	errNoCRL: "no_revocation_list", errLongPath: "certificate_path", errNobody: "unknown_user", errAmbiguous: "ambiguous_certificate",
}

// who finds the authority of a chain, the user the certificate names, and the
// names of the certificates it is accepted by. reason says why there is none.
func (s *Service) who(ctx context.Context, chain []*x509.Certificate) (a Anchor, u user.User, path string, reason, err error) {
	list, err := s.Anchors(ctx, s.db)
	if err != nil {
		return a, u, "", nil, err
	}
	reason = errForeign
	for _, a := range list {
		if !a.Enabled {
			continue
		}
		t, err := s.trust(ctx, s.db, a.ID, a.Version)
		if err != nil {
			return a, u, "", nil, err
		}
		path, why := t.judge(chain, s.now())
		if why != nil {
			if why != errForeign {
				reason = why
			}
			continue
		}
		u, why, err := s.named(ctx, t, chain[0])
		return a, u, path, why, err
	}
	return Anchor{}, u, "", reason, nil
}

// named looks the user of a good certificate up.
func (s *Service) named(ctx context.Context, t trust, leaf *x509.Certificate) (u user.User, reason, err error) {
	for _, name := range t.names(leaf) {
		var found []user.User
		if t.anchor.Config.Lookup == "email" {
			found, err = s.users.PeopleByEmail(ctx, s.db, name)
		} else if one, e := s.users.ByName(ctx, name); e == nil && one.Kind == user.Person {
			found = []user.User{one}
		} else if e != nil && !errors.Is(e, db.ErrNotFound) {
			err = e
		}
		if err != nil {
			return user.User{}, nil, err
		}
		for _, f := range found {
			if u.ID != "" && u.ID != f.ID {
				return user.User{}, errAmbiguous, nil
			}
			u = f
		}
	}
	if u.ID == "" {
		return u, errNobody, nil
	}
	return u, nil, nil
}

// Door is the listener for client certificates. It is open only while there is
// an authority whose certificates sign people in.
type Door struct {
	Service *Service
	// Listen binds the address. It is called each time the door opens.
	Listen func() (net.Listener, error)
	// Certificate is the server's own.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Source is the client's address.
	Source func(*http.Request) netip.Addr
	Log    *slog.Logger

	mu   sync.Mutex
	addr net.Addr // guarded by mu; nil while closed
}

// Addr is where the door listens now, or nil.
func (d *Door) Addr() net.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.addr
}

// Run opens and closes the door as authorities come and go, until ctx ends.
func (d *Door) Run(ctx context.Context) error {
	notes := d.Service.db.Subscribe(ctx)
	var stop func()
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	retry := time.NewTicker(time.Minute)
	defer retry.Stop()
	for {
		want, err := d.Service.CertificatesWanted(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			d.Log.Warn("cannot tell whether to open the door for client certificates", "err", err)
		case want && stop == nil:
			if stop, err = d.open(ctx); err != nil {
				d.Log.Error("cannot listen for client certificates", "err", err)
			}
		case !want && stop != nil:
			stop()
			stop = nil
		}
		if !d.wait(ctx, notes, retry.C) {
			return nil
		}
	}
}

// wait returns when authorities may have changed; false when ctx has ended.
func (d *Door) wait(ctx context.Context, notes <-chan db.Note, retry <-chan time.Time) bool {
	for {
		select {
		case n, ok := <-notes:
			if !ok {
				<-ctx.Done()
				return false
			}
			if n.Topic == anchorTopic || n.Topic == db.TopicResync {
				return true
			}
		case <-retry:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// open starts serving; the function returned stops and waits.
func (d *Door) open(ctx context.Context) (stop func(), err error) {
	l, err := d.Listen()
	if err != nil {
		return nil, err
	}
	srv := &http.Server{
		Handler: d.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug),
	}
	d.setAddr(l.Addr())
	d.Log.Info("listening for client certificates", "address", l.Addr().String())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(tls.NewListener(l, d.TLS(ctx))); !errors.Is(err, http.ErrServerClosed) {
			d.Log.Error("listener for client certificates ended", "err", err)
		}
	})
	return func() {
		d.setAddr(nil)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
		wg.Wait()
	}, nil
}

func (d *Door) setAddr(a net.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addr = a
}

// TLS asks for a certificate and takes any: it is judged by the handler, so
// that the person gets a page and not a broken connection. There are no
// session tickets: each connection proves anew that the key is at hand.
func (d *Door) TLS(ctx context.Context) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: d.Certificate, ClientAuth: tls.RequestClientCert,
		SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		// The names of the authorities let a browser offer the right certificate.
		c := base.Clone()
		c.GetConfigForClient = nil
		c.ClientCAs = x509.NewCertPool()
		list, err := d.Service.Anchors(ctx, d.Service.db)
		if err != nil {
			return nil, err
		}
		for _, a := range list {
			t, err := d.Service.trust(ctx, d.Service.db, a.ID, a.Version)
			if err != nil || !a.Enabled {
				continue
			}
			for _, issuer := range t.issuers {
				c.ClientCAs.AddCert(issuer)
			}
		}
		return c, nil
	}
	return base
}

// Handler serves the door: one page.
func (d *Door) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", d.serve)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusSeeOther) })
	return mux
}

func (d *Door) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Connection", "close")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	v := doorView{Title: "Signing in", Next: d.Service.url.JoinPath("sign-in", "certificate").String(), Back: d.Service.url.JoinPath("sign-in").String()}
	var chain []*x509.Certificate
	if r.TLS != nil {
		chain = r.TLS.PeerCertificates
	}
	status := http.StatusOK
	if len(chain) == 0 {
		status = http.StatusForbidden
		v.refuse("Your browser sent no certificate.", "Install one, or insert your card, then open this page in a new window.")
	} else {
		kept, name, err := d.Service.enter(r.Context(), chain, d.Source(r))
		limit, limited := errors.AsType[*user.LimitError](err)
		switch _, known := reasons[err]; {
		case err == nil:
			c := http.Cookie{Name: TicketCookie, Value: kept, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: int(ticketLife.Seconds())}
			http.SetCookie(w, &c)
			v.Text = "You are " + name + "."
		case limited:
			status = http.StatusTooManyRequests
			v.refuse("Too many refused certificates.", fmt.Sprintf("Wait %s and try again.", limit.RetryAfter.Round(time.Second)))
		case known:
			status = http.StatusForbidden
			v.refuse("Your certificate was refused.", "Because "+err.Error()+".")
		default:
			status = http.StatusServiceUnavailable
			d.Log.Error("cannot judge a client certificate", "err", err)
			v.refuse("Certificates cannot be checked now.", "Try again in a minute.")
		}
	}
	w.WriteHeader(status)
	if err := doorPage.Execute(w, v); err != nil {
		d.Log.Debug("cannot write the page for client certificates", "err", err)
	}
}

type doorView struct {
	Title, Text, Next, Back string
	Refused                 bool
}

func (v *doorView) refuse(title, text string) { v.Title, v.Text, v.Refused = title, text, true }

var doorPage = template.Must(template.New("door").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Caponier: {{.Title}}</title>{{if not .Refused}}<meta http-equiv="refresh" content="0;url={{.Next}}">{{end}}</head>
<body><main><h1>{{.Title}}</h1><p>{{.Text}}</p>
{{if .Refused}}<p><a href="{{.Back}}">Sign in another way</a></p>{{else}}<p><a href="{{.Next}}">Continue to the console</a></p>{{end}}
</main></body></html>
`))

// fetchCRLs loads the revocation lists that authorities publish, hourly.
func (s *Service) fetchCRLs(ctx context.Context) {
	list, err := s.Anchors(ctx, s.db)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("cannot look for revocation lists to fetch", "err", err)
		}
		return
	}
	for _, a := range list {
		if !a.Enabled || a.Config.CRLURL == "" || s.now().Sub(a.CRLAt) < crlEvery {
			continue
		}
		data, err := s.fetchCRL(ctx, a.Config.CRLURL)
		if err == nil {
			_, err = s.setCRL(ctx, audit.System, a.ID, data)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot fetch a revocation list", "anchor", a.Name, "err", err)
		}
	}
}

const crlEvery = time.Hour

// fetchCRL may use plain http: lists are signed (RFC 5280 §8).
func (s *Service) fetchCRL(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: s.providers.transport}).Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", address, res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, maxCRL+1))
}
