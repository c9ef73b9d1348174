package signin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
)

// clock is a settable time that starts at the present: certificates and the
// libraries' own checks look at the real one.
type clock struct {
	mu  sync.Mutex
	off time.Duration // guarded by mu
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

// placeSealer binds a value to its place, so that a mixed-up place is noticed,
// and never makes the same value twice.
type placeSealer struct{}

func (placeSealer) Seal(p vault.Place, plain []byte) ([]byte, error) {
	return fmt.Appendf(nil, "%s/%s/%s %s\x00%s", p.Table, p.Column, p.Row, db.NewID("n_"), plain), nil
}

func (placeSealer) Open(p vault.Place, sealed []byte) ([]byte, error) {
	head, plain, ok := strings.Cut(string(sealed), "\x00")
	if !ok || !strings.HasPrefix(head, p.Table+"/"+p.Column+"/"+p.Row+" ") {
		return nil, errors.New("sealed for another place")
	}
	return []byte(plain), nil
}

const (
	password = "correct horse battery"
	office   = "192.0.2.10"
	home     = "198.51.100.7"
)

var tester = audit.Actor{Kind: "system", Name: "test"}

// rig is the room behind the real frame, with a real user room.
type rig struct {
	*Service
	t     testing.TB
	d     *db.DB
	log   *audit.Log
	clock *clock
	users *user.Service
	h     http.Handler
}

func newRig(t testing.TB, d *db.DB) *rig {
	t.Helper()
	c := &clock{}
	log := audit.New(d, c.Now)
	set, err := settings.New(t.Context(), settings.Config{DB: d, Audit: log, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	users, err := user.New(user.Config{DB: d, Audit: log, Sealer: placeSealer{}, Now: c.Now, Settings: set})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{DB: d, Audit: log, Users: users, Sealer: placeSealer{}, URL: &url.URL{Scheme: "https", Host: "core.test"},
		CertificateURL: "https://core.test:8443/", Settings: set, Now: c.Now, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	f, err := api.New(api.Config{Auth: users, DB: d, Log: slog.New(slog.DiscardHandler), Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	users.Routes(f, s)
	s.Routes(f)
	return &rig{s, t, d, log, c, users, f.Handler()}
}

// got is a response with its body read.
type got struct {
	*http.Response
	t    testing.TB
	body string
}

// into decodes the answer.
func (a got) into(v any) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		a.t.Fatalf("%v in %s", err, a.body)
	}
}

// want fails unless the answer has the status and, if given, the problem code.
func (a got) want(status int, code string) got {
	a.t.Helper()
	var p struct {
		Code string `json:"code"`
	}
	if code != "" {
		a.into(&p)
	}
	if a.StatusCode != status || p.Code != code {
		a.t.Fatalf("%d %s; want %d %s", a.StatusCode, a.body, status, code)
	}
	return a
}

// browser keeps cookies and sends from one address, as the console's page does.
type browser struct {
	*rig
	from    string
	cookies map[string]string
}

func (r *rig) browser(from string) *browser { return &browser{r, from, map[string]string{}} }

func (b *browser) call(method, path string, body any, header ...string) got {
	b.t.Helper()
	var text string
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			b.t.Fatal(err)
		}
		text = string(raw)
	}
	q := httptest.NewRequestWithContext(b.t.Context(), method, "https://core.test"+api.Prefix+path, strings.NewReader(text))
	q.RemoteAddr = b.from + ":40000"
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	q.Header.Set("Sec-Fetch-Site", "same-origin")
	q.Header.Set("User-Agent", "test browser")
	for name, value := range b.cookies {
		q.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.h.ServeHTTP(w, q)
	res := w.Result()
	for _, c := range res.Cookies() {
		if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || !strings.HasPrefix(c.Name, "__Host-") {
			b.t.Errorf("cookie %s is not as strict as it should be: %+v", c.Name, c)
		}
		if b.cookies[c.Name] = c.Value; c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		}
	}
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return got{res, b.t, string(raw)}
}

type obj = map[string]any

// me is what GET /me says of who is signed in.
type me struct {
	User        user.UserView
	Methods     []string
	MFA         bool
	Permissions []string
}

func (b *browser) me() (m me) {
	b.t.Helper()
	b.call("GET", "/me", nil).want(200, "").into(&m)
	return m
}

// person makes somebody with a password.
func (r *rig) person(name string) user.User {
	r.t.Helper()
	u, err := r.users.Create(r.t.Context(), tester, user.Draft{Name: name, Email: name + "@example.org", Password: password})
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// signIn logs name in with the password.
func (b *browser) signIn(name string) *browser {
	b.t.Helper()
	b.call("POST", "/login", obj{"username": name, "password": password, "cookie": true}).want(200, "")
	return b
}

// admin is a browser of an administrator.
func (r *rig) admin() *browser {
	r.t.Helper()
	if _, _, err := r.users.BootstrapAdmin(r.t.Context(), "root", password); err != nil {
		r.t.Fatal(err)
	}
	return r.browser(office).signIn("root")
}

// manager is a browser of somebody with many permissions but not all.
func (r *rig) manager() *browser {
	r.t.Helper()
	u := r.person("manager")
	role, err := r.users.CreateRole(r.t.Context(), tester, user.Role{Name: "managers", Permissions: []api.Permission{api.UsersManage, api.SettingsManage}})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.users.PutMember(r.t.Context(), tester, role.ID, u.ID, access.Window{}, nil, func(int64) error { return nil }); err != nil {
		r.t.Fatal(err)
	}
	return r.browser(office).signIn("manager")
}

// count counts audit events of a type whose fields contain want.
func (r *rig) count(want audit.Type, fields ...string) int {
	r.t.Helper()
	list, err := r.log.After(r.t.Context(), r.d, audit.Filter{}, 0, 10_000)
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	for _, e := range list {
		text := fmt.Sprint(e.Fields)
		ok := e.Type == want
		for _, f := range fields {
			ok = ok && strings.Contains(text, f)
		}
		if ok {
			n++
		}
	}
	return n
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// netOf is an address in a network of its own.
func netOf(i int) string { return fmt.Sprintf("10.%d.%d.1", i/256, i%256) }

func userChange(disabled *bool) user.Change { return user.Change{Disabled: disabled} }

// freshLimits is the user room as another core has it: nothing in memory.
func freshLimits(t testing.TB, r *rig) *user.Service {
	t.Helper()
	s, err := user.New(user.Config{DB: r.d, Audit: r.log, Sealer: placeSealer{}, Now: r.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
