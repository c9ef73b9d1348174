package policy

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
)

func newSigner(t testing.TB) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, key
}

// sshServer is a host that a login can be tried on.
type sshServer struct {
	port     int
	listener net.Listener
	wg       sync.WaitGroup

	mu     sync.Mutex
	config *ssh.ServerConfig // guarded by mu; nil = hang up at once
	speak  string            // guarded by mu; said instead of SSH
	logins int               // guarded by mu
}

func newSSHServer(t testing.TB, config *ssh.ServerConfig) *sshServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sshServer{listener: ln, port: ln.Addr().(*net.TCPAddr).Port, config: config}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); s.wg.Wait() })
	return s
}

func (s *sshServer) set(config *ssh.ServerConfig, speak string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config, s.speak = config, speak
}

func (s *sshServer) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	s.mu.Lock()
	config, speak := s.config, s.speak
	s.mu.Unlock()
	if speak != "" {
		_, _ = io.WriteString(c, speak)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until the other side leaves
		return
	}
	if config == nil {
		return
	}
	sc, chans, reqs, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.logins++
	s.mu.Unlock()
	go ssh.DiscardRequests(reqs)
	for ch := range chans {
		_ = ch.Reject(ssh.Prohibited, "no")
	}
	_ = sc.Wait()
}

// secret stores a secret and returns its ID.
func (w *world) secret(kind vault.Kind, value []byte) string {
	w.t.Helper()
	var s *vault.Secret
	err := w.db.Tx(w.t.Context(), func(tx *db.Tx) (err error) {
		s, err = w.vault.Create(w.t.Context(), tx, vault.NewSecret{Name: "s-" + string(kind), Kind: kind, Value: value}, system)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return s.ID
}

// steps shows an explanation as "user+ policy+ route+ tcp-".
func steps(e *Explanation) string {
	var out []string
	for _, s := range e.Stages {
		mark := "-"
		if s.OK {
			mark = "+"
		} else if s.Skipped {
			mark = "~"
		}
		out = append(out, s.Name+mark)
	}
	return strings.Join(out, " ")
}

const canary = "canary-3f9a-password"

// Each row breaks one thing; explain must name that one and how to mend it.
func TestExplainFindsTheCulprit(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ada := w.user("ada")
		ops, secretOps := w.role("ops", ada), w.role("secret-ops")
		w.site("empty")

		host, _ := newSigner(t)
		other, _ := newSigner(t)
		caLine, err := w.ca.PublicKey(t.Context(), access.DefaultGroup)
		if err != nil {
			t.Fatal(err)
		}
		trusted, _, _, _, err := ssh.ParseAuthorizedKey([]byte(caLine))
		if err != nil {
			t.Fatal(err)
		}
		userKey, rawKey := newSigner(t)
		config := func(hostKey ssh.Signer, authority ssh.PublicKey, password string, key ssh.PublicKey) *ssh.ServerConfig {
			checker := &ssh.CertChecker{IsUserAuthority: func(k ssh.PublicKey) bool {
				return authority != nil && bytes.Equal(k.Marshal(), authority.Marshal())
			}, UserKeyFallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
				if key != nil && bytes.Equal(k.Marshal(), key.Marshal()) {
					return nil, nil
				}
				return nil, errors.New("unknown key")
			}}
			c := &ssh.ServerConfig{PublicKeyCallback: checker.Authenticate, PasswordCallback: func(_ ssh.ConnMetadata, p []byte) (*ssh.Permissions, error) {
				if password != "" && string(p) == password {
					return nil, nil
				}
				return nil, errors.New("wrong password")
			}}
			c.AddHostKey(hostKey)
			return c
		}
		good := config(host, trusted, canary, userKey.PublicKey())
		srv := newSSHServer(t, good)
		closed := newSSHServer(t, nil)
		closed.listener.Close()

		pemKey, err := ssh.MarshalPrivateKey(rawKey, "")
		if err != nil {
			t.Fatal(err)
		}
		tg := w.target(target.Target{Name: "db", Host: "127.0.0.1", Port: srv.port}, "cert")
		for _, a := range []target.Account{
			{Name: "pw", Auth: target.AuthPassword, SecretID: w.secret(vault.Password, []byte(canary))},
			{Name: "key", Auth: target.AuthKey, SecretID: w.secret(vault.Key, pem.EncodeToMemory(pemKey))},
			{Name: "ask", Auth: target.AuthAsk},
		} {
			if _, err := w.targets.CreateAccount(w.ctx, tg.ID, a); err != nil {
				t.Fatal(err)
			}
		}
		grant := w.grant(access.Grant{Role: ops, Target: tg.ID, Features: access.Shell | access.Exec})
		if err := w.targets.SawHostKey(t.Context(), tg.ID, target.NewHostKey(tg.ID, host.PublicKey())); err != nil {
			t.Fatal(err)
		}
		gone := w.target(target.Target{Name: "gone", Host: "127.0.0.1", Port: closed.port}, "cert")
		nodns := w.target(target.Target{Name: "nodns", Host: "no-such-host.invalid"}, "cert")
		meta := w.target(target.Target{Name: "meta", Host: "169.254.169.254"}, "cert")
		noedge := w.target(target.Target{Name: "noedge", Site: "empty", Host: "10.0.0.5"}, "cert")
		for _, x := range []*target.Target{gone, nodns, meta, noedge} {
			w.grant(access.Grant{Role: ops, Target: x.ID})
		}

		setGrant := func(f func(*target.Grant)) func() {
			return func() {
				if _, err := w.targets.UpdateGrant(w.ctx, grant.ID, nil, f); err != nil {
					t.Fatal(err)
				}
			}
		}
		setUser := func(disabled bool) func() {
			return func() {
				if _, err := w.users.Update(t.Context(), system, ada.UserID, anyVersion, user.Change{Disabled: &disabled}); err != nil {
					t.Fatal(err)
				}
			}
		}
		nothing := func() {}
		serve := func(c *ssh.ServerConfig, speak string) func() { return func() { srv.set(c, speak) } }
		reset := serve(good, "")
		for _, c := range []struct {
			name         string
			breakIt, fix func()
			target       *target.Target
			account      string
			want         access.Feature
			culprit      string // name of the failing stage; empty = all is well
			text, how    string // parts of its text and fix
		}{
			{"all is well", nothing, nothing, tg, "cert", access.Shell, "", "", ""},
			{"a password", nothing, nothing, tg, "pw", access.Shell, "", "", ""},
			{"a key", nothing, nothing, tg, "key", access.Shell, "", "", ""},
			{"the user is asked", nothing, nothing, tg, "ask", access.Shell, "", "", ""},

			{"user disabled", setUser(true), setUser(false), tg, "cert", access.Shell, "user", "disabled", "enable the user"},
			{"no role", setGrant(func(g *target.Grant) { g.Role = secretOps }), setGrant(func(g *target.Grant) { g.Role = ops }),
				tg, "cert", access.Shell, "policy", "none of the user's 1 roles", "member of secret-ops"},
			{"no such account", nothing, nothing, tg, "nobody", access.Shell, "policy", `account "nobody"`, "add the account"},
			{"not this use", nothing, nothing, tg, "cert", access.FileTransfer, "policy", "file_transfer is not permitted", "add file_transfer to grant " + grant.ID + " of role ops"},
			{"second factor", setGrant(func(g *target.Grant) { g.RequireMFA = true }), setGrant(func(g *target.Grant) { g.RequireMFA = false }),
				tg, "cert", access.Shell, "policy", "grant " + grant.ID + " of role ops", "second factor"},
			{"closed hours", setGrant(func(g *target.Grant) { g.Window.NotBefore = w.clock.Now().Add(time.Hour) }), setGrant(func(g *target.Grant) { g.Window = access.Window{} }),
				tg, "cert", access.Shell, "policy", "next change is at " + w.clock.Now().Add(time.Hour).Format(time.RFC3339), "time window"},
			{"from elsewhere", setGrant(func(g *target.Grant) { g.Sources = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} }), setGrant(func(g *target.Grant) { g.Sources = nil }),
				tg, "cert", access.Shell, "policy", "192.0.2.7", "sources of the grant"},

			{"no extender", nothing, nothing, noedge, "cert", access.Shell, "tunnel", "empty", "extender"},
			{"name unknown", nothing, nothing, nodns, "cert", access.Shell, "dns", "no-such-host.invalid", ""},
			{"forbidden address", nothing, nothing, meta, "cert", access.Shell, "edge_policy", "metadata", ""},
			{"port closed", nothing, nothing, gone, "cert", access.Shell, "tcp", "", ""},

			{"hangs up", serve(nil, ""), reset, tg, "cert", access.Shell, "banner", "no SSH server answered", "MaxStartups"},
			{"not SSH", serve(nil, "HTTP/1.1 400 Bad Request\r\n\r\n"), reset, tg, "cert", access.Shell, "banner", "HTTP/1.1 400", "port and kind"},
			{"old algorithms", serve(func() *ssh.ServerConfig {
				c := config(host, trusted, "", nil)
				c.KeyExchanges = []string{"diffie-hellman-group1-sha1"}
				return c
			}(), ""), reset, tg, "cert", access.Shell, "banner", "handshake failed", "ssh_algorithms"},
			{"host key changed", serve(config(other, trusted, "", nil), ""), reset, tg, "cert", access.Shell, "host_key", ssh.FingerprintSHA256(other.PublicKey()), "accept the key"},
			{"CA not trusted", serve(config(host, nil, "", nil), ""), reset, tg, "cert", access.Shell, "login", "refuses the login of cert (certificate)", "TrustedUserCAKeys"},
			{"wrong password", serve(config(host, nil, "other", nil), ""), reset, tg, "pw", access.Shell, "login", "refuses the login of pw (password)", "stored password"},
			{"unknown key", serve(config(host, nil, "", nil), ""), reset, tg, "key", access.Shell, "login", "refuses the login of key (key)", "authorized_keys"},
		} {
			c.breakIt()
			e, err := w.Explain(t.Context(), Question{UserID: ada.UserID, Target: *c.target, Account: c.account, Want: c.want, Source: here, Full: true})
			c.fix()
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			culprit := ""
			for _, s := range e.Stages {
				if strings.Contains(s.Text+s.Fix, canary) {
					t.Errorf("%s: stage %s shows the password", c.name, s.Name)
				}
				if s.OK || s.Skipped {
					continue
				}
				if culprit == "" {
					culprit = s.Name
					if !strings.Contains(s.Text, c.text) || !strings.Contains(s.Fix, c.how) || s.Text == "" || c.culprit != "" && s.Fix == "" {
						t.Errorf("%s: stage %s says %q, fix %q; want %q, %q", c.name, s.Name, s.Text, s.Fix, c.text, c.how)
					}
				}
			}
			if culprit != c.culprit || e.Works != (c.culprit == "") {
				t.Errorf("%s: culprit %q (works %v), want %q: %s", c.name, culprit, e.Works, c.culprit, steps(e))
			}
			if e.Allowed != (c.culprit != "user" && c.culprit != "policy") {
				t.Errorf("%s: allowed %v", c.name, e.Allowed)
			}
		}
		// A host key that is only looked at is not filed.
		if ks, err := w.targets.AllHostKeys(t.Context(), w.db, tg.ID); err != nil || len(ks) != 1 {
			t.Errorf("host keys on file: %+v, %v", ks, err)
		}
		srv.mu.Lock()
		logins := srv.logins
		srv.mu.Unlock()
		if logins < 3 {
			t.Errorf("%d real logins", logins)
		}
	})
}

// callers authenticates a bearer token that is a caller's name.
type callers map[string]*api.Principal

func (c callers) Authenticate(r *http.Request, _ netip.Addr) (*api.Principal, error) {
	return c[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")], nil
}

func TestRoutes(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	ada, eve := w.user("ada"), w.user("eve")
	ops := w.role("ops", ada)
	srv := newSSHServer(t, nil)
	w.target(target.Target{Name: "db-1", Host: "127.0.0.1", Port: srv.port, Tags: []string{"secret-tag"}}, "root")
	w.target(target.Target{Name: "db-2", Host: "127.0.0.1", Port: srv.port}, "root")
	w.target(target.Target{Name: "hidden", Host: "h"}, "root")
	for _, n := range []string{"db-1", "db-2"} {
		w.grant(access.Grant{Role: ops, Target: n, RequireReason: true})
	}
	admin := &api.Principal{UserID: "usr_admin", UserName: "admin", Source: here, Permissions: map[api.Permission]bool{api.TargetsView: true, api.UsersView: true}}
	f, err := api.New(api.Config{DB: w.db, Log: slog.New(slog.DiscardHandler), Auth: callers{"ada": ada, "eve": eve, "admin": admin}})
	if err != nil {
		t.Fatal(err)
	}
	w.Routes(f)
	web := httptest.NewServer(f.Handler())
	t.Cleanup(func() { f.Close(); web.Close() })
	get := func(who, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", web.URL+"/api/v1"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+who)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	for _, c := range []struct {
		who, path string
		status    int
		has       string
		hasNot    string
	}{
		{"nobody", "/me/targets", 401, "", ""},
		{"eve", "/me/targets", 200, `"items":[]`, "db-1"},
		{"ada", "/me/targets", 200, `"need_reason":true`, "hidden"},
		{"ada", "/me/targets", 200, `"features":["shell"]`, "secret-tag"},
		{"ada", "/me/targets?limit=1", 200, `"next":`, "db-2"},
		{"ada", "/me/targets?search=B-2", 200, "db-2", "db-1"},
		{"ada", "/targets/db-1/explain?account=root", 200, `"name":"banner","ok":false`, "secret-tag"},
		{"ada", "/targets/db-1/explain?account=root&want=exec", 200, `"fix":"ask an administrator for access"`, "tunnel"},
		{"ada", "/targets/hidden/explain", 404, "", ""},
		{"ada", "/targets/none/explain", 404, "", ""},
		{"eve", "/targets/db-1/explain", 404, "", ""},
		{"ada", "/targets/db-1/explain?user=eve", 403, "", ""},
		{"ada", "/targets/db-1/explain?source=203.0.113.1", 422, "", ""},
		{"ada", "/targets/db-1/explain?want=fly", 422, "", ""},
		{"admin", "/targets/db-1/explain?user=eve&account=root", 200, `make the user a member of ops`, ""},
		{"admin", "/targets/hidden/explain?user=" + ada.UserID + "&account=root", 200, `create a grant`, ""},
		{"admin", "/targets/db-1/explain?user=nobody", 404, "", ""},
		{"admin", "/targets/127.0.0.1/explain?user=ada", 409, "fits several targets", ""},
	} {
		status, body := get(c.who, c.path)
		if status != c.status || !strings.Contains(body, c.has) || c.hasNot != "" && strings.Contains(body, c.hasNot) {
			t.Errorf("GET %s as %s: %d %s; want %d with %q without %q", c.path, c.who, status, body, c.status, c.has, c.hasNot)
		}
	}
}

// More explanations at once than the limit are refused, not queued.
func TestExplainIsBounded(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	ada := w.user("ada")
	silent := newSSHServer(t, nil)
	silent.set(nil, "\n") // never a banner
	tg := w.target(target.Target{Name: "db", Host: "127.0.0.1", Port: silent.port}, "root")
	w.grant(access.Grant{Role: w.role("ops", ada), Target: "db"})
	ask := func() error {
		_, err := w.Explain(t.Context(), Question{UserID: ada.UserID, Target: *tg, Account: "root", Source: here})
		return err
	}
	for range maxExplaining {
		w.slots <- struct{}{}
	}
	if err := ask(); !errors.Is(err, ErrBusy) {
		t.Errorf("over the limit: %v", err)
	}
	for range maxExplaining {
		<-w.slots
	}
	silent.set(nil, "not ssh\n")
	if err := ask(); err != nil {
		t.Error(fmt.Errorf("within the limit: %w", err))
	}
}
