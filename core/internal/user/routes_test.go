package user

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// site is a user room behind the real frame.
type site struct {
	*room
	h     http.Handler
	frame *api.Frame
}

func newSite(t testing.TB, d *db.DB) *site {
	t.Helper()
	r := newRoom(t, d)
	f, err := api.New(api.Config{Auth: r.Service, DB: d, Log: slog.New(slog.DiscardHandler), Now: r.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	r.Routes(f)
	r.settings.Routes(f)
	return &site{r, f.Handler(), f}
}

// answer is a response with its body read.
type answer struct {
	*http.Response
	body string
}

func (a answer) field(t testing.TB, name string) string {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal([]byte(a.body), &all); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	s, _ := all[name].(string)
	return s
}

// call sends a request from the office; auth is a bearer secret, or a cookie
// when it starts with "cookie ".
func (s *site) call(auth, method, path, body string, header ...string) answer {
	s.t.Helper()
	q := httptest.NewRequest(method, "https://core.test"+api.Prefix+path, strings.NewReader(body))
	q.RemoteAddr = office.String() + ":40000"
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	if c, ok := strings.CutPrefix(auth, "cookie "); ok {
		q.AddCookie(&http.Cookie{Name: CookieName, Value: c})
	} else if auth != "" {
		q.Header.Set("Authorization", "Bearer "+auth)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Remote" {
			q.RemoteAddr = header[i+1] + ":40000"
			continue
		}
		q.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, q)
	res := w.Result()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{res, string(b)}
}

// want fails unless the answer has the status and, if given, the problem code.
func (s *site) want(what string, a answer, status int, code string) answer {
	s.t.Helper()
	if a.StatusCode != status || code != "" && a.field(s.t, "code") != code {
		s.t.Errorf("%s: %d %s; want %d %s", what, a.StatusCode, a.body, status, code)
	}
	return a
}

// token logs name in over the API.
func (s *site) token(name string) string {
	s.t.Helper()
	a := s.want("login "+name, s.call("", "POST", "/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword)), 200, "")
	return a.field(s.t, "token")
}

// caller makes a person with a role of these permissions and logs him in.
func (s *site) caller(name string, permissions ...api.Permission) (User, string) {
	s.t.Helper()
	u := s.person(name)
	if len(permissions) > 0 {
		s.join(s.role("role-"+name, permissions...), u, access.Window{})
	}
	return u, s.token(name)
}

func TestLoginOverHTTP(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := newSite(t, d)
		jane := s.person("jane")
		a := s.want("cookie login", s.call("", "POST", "/login", `{"username":"jane","password":"`+goodPassword+`","cookie":true}`), 200, "")
		c := a.Header.Get("Set-Cookie")
		for _, part := range []string{CookieName + "=cps_", "Path=/", "HttpOnly", "Secure", "SameSite=Strict"} {
			if !strings.Contains(c, part) {
				t.Errorf("cookie %q lacks %s", c, part)
			}
		}
		if strings.Contains(c, "Domain") || strings.Contains(c, "Expires") || strings.Contains(a.body, "cps_") || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("cookie %q, body %s", c, a.body)
		}
		cookie := "cookie " + a.Cookies()[0].Value
		s.want("me", s.call(cookie, "GET", "/me", ""), 200, "")
		s.want("me from elsewhere", s.call(cookie, "GET", "/me", "", "Remote", home.String()), 401, "unauthenticated")
		s.want("cross-site write", s.call(cookie, "POST", "/logout", "", "Origin", "https://evil.test", "Sec-Fetch-Site", "cross-site"), 403, "cross_origin")
		out := s.want("logout", s.call(cookie, "POST", "/logout", ""), 204, "")
		if got := out.Header.Get("Set-Cookie"); !strings.Contains(got, "Max-Age=0") {
			t.Errorf("logout leaves the cookie: %q", got)
		}
		s.want("after logout", s.call(cookie, "GET", "/me", ""), 401, "unauthenticated")

		s.want("wrong", s.call("", "POST", "/login", `{"username":"jane","password":"x"}`), 401, "bad_credentials")
		s.want("token as password", s.call("", "POST", "/login", `{"username":"jane","password":"cap_x"}`), 422, "invalid")
		secret, _ := s.enrol(jane)
		s.want("no code", s.call("", "POST", "/login", `{"username":"jane","password":"`+goodPassword+`"}`), 401, "code_needed")
		s.want("code", s.call("", "POST", "/login", `{"username":"jane","password":"`+goodPassword+`","code":"`+s.code(secret)+`"}`), 200, "")
	})
}

// TestSixthBadLogin is FEATURES C12 as a client sees it.
func TestSixthBadLogin(t *testing.T) {
	s := newSite(t, dbtest.SQLite(t))
	s.person("jane")
	s.person("bob")
	for range 5 {
		s.want("bad login", s.call("", "POST", "/login", `{"username":"jane","password":"x"}`), 401, "bad_credentials")
	}
	a := s.want("6th", s.call("", "POST", "/login", `{"username":"jane","password":"x"}`), 429, "rate_limited")
	if got := a.Header.Get("Retry-After"); got != "60" {
		t.Errorf("Retry-After %q, want 60", got)
	}
	s.token("bob")
}

// TestCrossUserMatrix asks every operation about somebody else's things as
// everybody: nobody, a stranger, a viewer, a manager, and a manager about
// somebody with more rights than his own.
func TestCrossUserMatrix(t *testing.T) {
	s := newSite(t, dbtest.SQLite(t))
	victim := s.person("victim")
	s.join(s.role("plain"), victim, access.Window{})
	_, stranger := s.caller("stranger")
	_, viewer := s.caller("viewer", api.UsersView)
	_, manager := s.caller("manager", api.UsersManage)
	root, _, err := s.BootstrapAdmin(t.Context(), "root", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	client, _, err := s.CreateClient(t.Context(), tester, "robot", "")
	if err != nil {
		t.Fatal(err)
	}
	things := func(u User) (key, token, session string) {
		k, err := s.AddKey(t.Context(), tester, u.ID, authorizedKey(t), "")
		if err != nil {
			t.Fatal(err)
		}
		p := s.must(s.login(u.Name, goodPassword, "", office))
		tok, _, err := s.CreateToken(t.Context(), p, "x", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		v, _, err := s.OpenSession(t.Context(), p, CookieSession, "")
		if err != nil {
			t.Fatal(err)
		}
		return k.ID, tok.ID, v.ID
	}
	key, token, session := things(victim)
	rootKey, rootToken, rootSession := things(root)
	fill := func(text string, u User, k, tok, ses string) string {
		return strings.NewReplacer("{id}", u.ID, "{key}", k, "{token}", tok, "{session}", ses, "{role}", AdministratorRole,
			"{client}", client.ID, "{newkey}", authorizedKey(t)).Replace(text)
	}
	const no, yes, missing = 403, 0, 404 // yes: anything but a refusal
	for _, c := range []struct {
		method, path, body                       string
		nobody, stranger, viewer, manager, above int
	}{
		{"GET", "/users", "", 401, no, yes, yes, yes},
		{"POST", "/users", `{"name":"new"}`, 401, no, no, yes, yes},
		{"GET", "/users/{id}", "", 401, no, yes, yes, yes},
		{"PATCH", "/users/{id}", `{"display_name":"x"}`, 401, no, no, yes, no},
		{"GET", "/users/{id}/memberships", "", 401, no, yes, yes, yes},
		{"GET", "/users/{id}/export", "", 401, no, no, yes, no},
		{"PUT", "/users/{id}/password", `{"password":"some other password"}`, 401, no, no, yes, no},
		{"POST", "/users/{id}/totp", `{"password":"x"}`, 401, no, no, no, no},
		{"POST", "/users/{id}/totp/confirm", `{"code":"1"}`, 401, no, no, no, no},
		{"POST", "/users/{id}/totp/remove", `{"password":"x"}`, 401, no, no, no, no},
		{"POST", "/users/{id}/recovery-codes", `{"password":"x"}`, 401, no, no, no, no},
		{"DELETE", "/users/{id}/totp", "", 401, no, no, yes, no},
		{"GET", "/users/{id}/keys", "", 401, no, yes, yes, yes},
		{"POST", "/users/{id}/keys", `{"public_key":"{newkey}"}`, 401, no, no, yes, no},
		{"DELETE", "/users/{id}/keys/{key}", "", 401, no, no, yes, no},
		{"GET", "/users/{id}/tokens", "", 401, no, yes, yes, yes},
		{"DELETE", "/tokens/{token}", "", 401, missing, missing, yes, no},
		{"GET", "/users/{id}/sessions", "", 401, no, yes, yes, yes},
		{"DELETE", "/users/{id}/sessions/{session}", "", 401, no, no, yes, no},
		{"DELETE", "/users/{id}/sessions", "", 401, no, no, yes, no},
		{"GET", "/roles", "", 401, no, yes, yes, yes},
		{"POST", "/roles", `{"name":"newrole","permissions":["audit:view"]}`, 401, no, no, no, no},
		{"PUT", "/roles/{role}", `{"name":"x"}`, 401, no, no, no, no},
		{"DELETE", "/roles/{role}", "", 401, no, no, no, no},
		{"GET", "/roles/{role}/members", "", 401, no, yes, yes, yes},
		{"PUT", "/roles/{role}/members/{id}", `{}`, 401, no, no, no, no},
		{"DELETE", "/roles/{role}/members/{id}", "", 401, no, no, no, no},
		{"GET", "/api-clients", "", 401, no, yes, yes, yes},
		{"POST", "/api-clients", `{"name":"r2","roles":["{role}"]}`, 401, no, no, no, no},
		{"GET", "/api-clients/{client}", "", 401, no, yes, yes, yes},
		{"PATCH", "/api-clients/{client}", `{"disabled":false}`, 401, no, no, yes, yes},
		{"POST", "/api-clients/{client}/secret", "", 401, no, no, yes, yes},
		{"GET", "/settings", "", 401, no, no, no, no},
		{"PUT", "/settings", `{"values":{}}`, 401, no, no, no, no},
		{"GET", "/settings/schema", "", 401, no, no, no, no},
		{"POST", "/users/{id}/erase", "", 401, no, no, yes, no},
		{"DELETE", "/users/{id}", "", 401, no, no, yes, no},
	} {
		for _, who := range []struct {
			name, auth string
			want       int
			about      User
			parts      [3]string
		}{
			{"nobody", "", c.nobody, victim, [3]string{key, token, session}},
			{"a stranger", stranger, c.stranger, victim, [3]string{key, token, session}},
			{"a viewer", viewer, c.viewer, victim, [3]string{key, token, session}},
			{"a manager, of an administrator,", manager, c.above, root, [3]string{rootKey, rootToken, rootSession}},
			{"a manager", manager, c.manager, victim, [3]string{key, token, session}},
		} {
			path := fill(c.path, who.about, who.parts[0], who.parts[1], who.parts[2])
			body := fill(c.body, who.about, who.parts[0], who.parts[1], who.parts[2])
			a := s.call(who.auth, c.method, path, body, "If-Match", "*")
			refused := a.StatusCode == 401 || a.StatusCode == 403
			if who.want == yes && (refused || a.StatusCode >= 500) || who.want != yes && a.StatusCode != who.want {
				t.Errorf("%s: %s %s = %d %s; want %d", who.name, c.method, c.path, a.StatusCode, a.body, who.want)
			}
		}
	}
	if u, err := s.Get(t.Context(), root.ID); err != nil || !u.ErasedAt.IsZero() || !u.Password {
		t.Errorf("the administrator after all that: %+v, %v", u, err)
	}
}

// TestMatrixIsComplete makes a new operation of these rooms fail the build
// until somebody thinks about who may call it.
func TestMatrixIsComplete(t *testing.T) {
	s := newSite(t, dbtest.SQLite(t))
	public := map[string]bool{"login": true, "oauth-token": true}
	for _, op := range s.frame.Operations() {
		switch op.Tag {
		case "login", "users", "roles", "tokens", "api-clients", "settings":
		default:
			continue
		}
		path := strings.NewReplacer("{id}", "usr_x", "{part}", "x", "{user}", "usr_x").Replace(op.Path)
		a := s.call("", op.Method, path, "")
		if got := a.StatusCode == 401; got == public[op.ID] {
			t.Errorf("%s %s without a login: %d", op.Method, op.Path, a.StatusCode)
		}
	}
}

func TestOwnThings(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := newSite(t, d)
		jane, auth := s.caller("jane")
		s.want("me", s.call(auth, "GET", "/users/me", ""), 200, "")
		s.want("by id", s.call(auth, "GET", "/users/"+jane.ID, ""), 200, "")
		a := s.want("add key", s.call(auth, "POST", "/users/me/keys", `{"public_key":"`+authorizedKey(t)+`"}`), 201, "")
		s.want("keys", s.call(auth, "GET", "/users/me/keys", ""), 200, "")
		s.want("remove key", s.call(auth, "DELETE", "/users/me/keys/"+a.field(t, "id"), ""), 204, "")
		tok := s.want("token", s.call(auth, "POST", "/tokens", `{"name":"script","expires_in":"1h"}`), 201, "")
		s.want("use token", s.call(tok.field(t, "token"), "GET", "/me", ""), 200, "")
		s.want("add key with a token", s.call(tok.field(t, "token"), "POST", "/users/me/keys", `{"public_key":"`+authorizedKey(t)+`"}`), 403, "needs_session")
		s.want("revoke", s.call(auth, "DELETE", "/tokens/"+tok.field(t, "id"), ""), 204, "")
		s.want("use revoked token", s.call(tok.field(t, "token"), "GET", "/me", ""), 401, "unauthenticated")
		s.want("export", s.call(auth, "GET", "/users/me/export", ""), 200, "")
		s.want("rename myself", s.call(auth, "PATCH", "/users/me", `{"name":"root"}`, "If-Match", "*"), 403, "permission_missing")

		s.want("password, wrong current", s.call(auth, "PUT", "/users/me/password", `{"password":"another good one","current":"x"}`), 403, "bad_credentials")
		// What is in a thief's hands already proves nothing: neither a token nor
		// the secret of the session itself.
		script := s.want("token", s.call(auth, "POST", "/tokens", `{"name":"script","expires_in":"1h"}`), 201, "").field(t, "token")
		for _, bearer := range []string{auth, script} {
			s.want("password, bearer as current", s.call(auth, "PUT", "/users/me/password", `{"password":"another good one","current":"`+bearer+`"}`), 403, "bad_credentials")
			s.want("totp, bearer as password", s.call(auth, "POST", "/users/me/totp", `{"password":"`+bearer+`"}`), 403, "bad_credentials")
			s.want("recovery codes, bearer as password", s.call(auth, "POST", "/users/me/recovery-codes", `{"password":"`+bearer+`"}`), 403, "bad_credentials")
		}
		s.want("password, short", s.call(auth, "PUT", "/users/me/password", `{"password":"x","current":"`+goodPassword+`"}`), 422, "invalid")
		other := s.token("jane")
		s.want("password", s.call(auth, "PUT", "/users/me/password", `{"password":"another good one","current":"`+goodPassword+`"}`), 204, "")
		s.want("my session goes on", s.call(auth, "GET", "/me", ""), 200, "")
		s.want("my other session does not", s.call(other, "GET", "/me", ""), 401, "unauthenticated")

		s.want("totp, wrong password", s.call(auth, "POST", "/users/me/totp", `{"password":"x"}`), 403, "bad_credentials")
		begun := s.want("totp", s.call(auth, "POST", "/users/me/totp", `{"password":"another good one"}`), 200, "")
		secret := begun.field(t, "secret")
		s.want("confirm", s.call(auth, "POST", "/users/me/totp/confirm", `{"code":"`+s.code(secret)+`"}`), 200, "")
		s.clock.Add(time.Minute)
		s.want("remove totp without code", s.call(auth, "POST", "/users/me/totp/remove", `{"password":"another good one"}`), 403, "totp_required")
		s.want("remove totp", s.call(auth, "POST", "/users/me/totp/remove", `{"password":"another good one","code":"`+s.code(secret)+`"}`), 204, "")
	})
}

func TestETagsOverHTTP(t *testing.T) {
	s := newSite(t, dbtest.SQLite(t))
	if _, _, err := s.BootstrapAdmin(t.Context(), "root", goodPassword); err != nil {
		t.Fatal(err)
	}
	auth := s.token("root")
	made := s.want("create", s.call(auth, "POST", "/users", `{"name":"jane","email":"jane@example.org"}`), 201, "")
	path, tag := "/users/"+made.field(t, "id"), made.Header.Get("ETag")
	s.want("no If-Match", s.call(auth, "PATCH", path, `{"disabled":true}`), 428, "")
	next := s.want("disable", s.call(auth, "PATCH", path, `{"disabled":true}`, "If-Match", tag), 200, "")
	s.want("stale", s.call(auth, "PATCH", path, `{"disabled":false}`, "If-Match", tag), 412, "")
	s.want("unknown field", s.call(auth, "PATCH", path, `{"admin":true}`, "If-Match", next.Header.Get("ETag")), 422, "")
	s.want("lock myself", s.call(auth, "PATCH", "/users/me", `{"locked":true}`, "If-Match", "*"), 409, "own_account")
	s.want("nobody", s.call(auth, "GET", "/users/usr_none", ""), 404, "not_found")

	role := s.want("role", s.call(auth, "POST", "/roles", `{"name":"ops","permissions":["audit:view"]}`), 201, "")
	member := "/roles/" + role.field(t, "id") + "/members/" + made.field(t, "id")
	m := s.want("join", s.call(auth, "PUT", member, `{"window":{"days":["mon"],"from":"08:00","to":"18:00","zone":"Europe/Berlin","floating":"8h"},"sources":["10.0.0.0/8"]}`), 200, "")
	s.want("bad window", s.call(auth, "PUT", member, `{"window":{"zone":"Nowhere/Land"}}`, "If-Match", "*"), 422, "invalid")
	s.want("change without If-Match", s.call(auth, "PUT", member, `{}`), 428, "")
	s.want("change", s.call(auth, "PUT", member, `{}`, "If-Match", m.Header.Get("ETag")), 200, "")
	s.want("leave, stale", s.call(auth, "DELETE", member, "", "If-Match", m.Header.Get("ETag")), 412, "")
	s.want("leave", s.call(auth, "DELETE", member, "", "If-Match", `"2"`), 204, "")
	s.want("built in", s.call(auth, "DELETE", "/roles/"+AdministratorRole, "", "If-Match", "*"), 409, "builtin")
	s.want("erase the last administrator", s.call(auth, "DELETE", "/users/me", "", "If-Match", "*"), 409, "last_administrator")
}

func TestPaging(t *testing.T) {
	s := newSite(t, dbtest.SQLite(t))
	_, auth := s.caller("viewer", api.UsersView)
	want := []string{"viewer"}
	for i := range 7 {
		name := fmt.Sprintf("user%d", i)
		if _, err := s.Create(t.Context(), tester, Draft{Name: name}); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	got := map[string]int{}
	cursor := ""
	for pages := 1; ; pages++ {
		var page api.Page[UserView]
		a := s.want("page", s.call(auth, "GET", "/users?limit=3&cursor="+cursor, ""), 200, "")
		if err := json.Unmarshal([]byte(a.body), &page); err != nil {
			t.Fatal(err)
		}
		for _, u := range page.Items {
			got[u.Name]++
		}
		if cursor = page.Next; cursor == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
	}
	for _, name := range want {
		if got[name] != 1 {
			t.Errorf("%s listed %d times", name, got[name])
		}
	}
	s.want("bad cursor", s.call(auth, "GET", "/users?cursor=xyz", ""), 422, "")
}

func TestOAuthToken(t *testing.T) {
	s := newSite(t, dbtest.SQLite(t))
	if _, _, err := s.BootstrapAdmin(t.Context(), "root", goodPassword); err != nil {
		t.Fatal(err)
	}
	auth := s.token("root")
	role := s.want("role", s.call(auth, "POST", "/roles", `{"name":"auditors","permissions":["users:view"]}`), 201, "")
	roleID := role.field(t, "id")
	made := s.want("client", s.call(auth, "POST", "/api-clients", `{"name":"robot","roles":["`+roleID+`"]}`), 201, "")
	id, secret := made.field(t, "id"), made.field(t, "client_secret")
	ask := func(form, basic string) answer {
		h := []string{"Content-Type", "application/x-www-form-urlencoded"}
		if basic != "" {
			h = append(h, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(basic)))
		}
		return s.call("", "POST", "/oauth/token", form, h...)
	}
	const grant = "grant_type=client_credentials"
	for name, c := range map[string]struct {
		form, basic string
		status      int
		code        string
	}{
		"basic":        {grant, id + ":" + secret, 200, ""},
		"form":         {grant + "&client_id=" + id + "&client_secret=" + secret, "", 200, ""},
		"both":         {grant + "&client_secret=" + secret, id + ":" + secret, 400, "invalid_request"},
		"no secret":    {grant + "&client_id=" + id, "", 400, "invalid_request"},
		"wrong secret": {grant, id + ":cas_x", 401, "invalid_client"},
		"wrong grant":  {"grant_type=password", id + ":" + secret, 400, "unsupported_grant_type"},
		"bad form":     {"%zz", "", 400, "invalid_request"},
	} {
		a := ask(c.form, c.basic)
		if a.StatusCode != c.status || a.field(t, "error") != c.code || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s; want %d %s", name, a.StatusCode, a.body, c.status, c.code)
		}
	}
	token := ask(grant, id+":"+secret).field(t, "access_token")
	s.want("call", s.call(token, "GET", "/users", ""), 200, "")
	s.want("more than its role", s.call(token, "POST", "/users", `{"name":"x"}`), 403, "permission_missing")
	s.want("take the role away", s.call(auth, "DELETE", "/roles/"+roleID+"/members/"+id, "", "If-Match", "*"), 204, "")
	s.want("call without the role", s.call(token, "GET", "/users", ""), 403, "permission_missing")
}

func BenchmarkAuthenticateToken(b *testing.B) {
	s := newSite(b, dbtest.SQLite(b))
	_, auth := s.caller("jane", api.UsersView)
	b.ReportAllocs()
	for b.Loop() {
		if a := s.call(auth, "GET", "/me", ""); a.StatusCode != 200 {
			b.Fatal(a.body)
		}
	}
}

func TestSettingsOverHTTP(t *testing.T) {
	s := newSite(t, dbtest.SQLite(t))
	_, auth := s.caller("tuner", api.SettingsManage)
	list := s.want("list", s.call(auth, "GET", "/settings", ""), 200, "")
	tag := list.Header.Get("ETag")
	s.want("schema", s.call(auth, "GET", "/settings/schema", ""), 200, "")
	bad := s.want("bad value", s.call(auth, "PUT", "/settings", `{"values":{"session.idle":"1s"}}`, "If-Match", tag), 422, "invalid")
	if !strings.Contains(bad.body, `"values.session.idle"`) {
		t.Errorf("the problem does not name the property: %s", bad.body)
	}
	s.want("no If-Match", s.call(auth, "PUT", "/settings", `{"values":{}}`), 428, "")
	next := s.want("change", s.call(auth, "PUT", "/settings", `{"values":{"session.idle":"20m"}}`, "If-Match", tag), 200, "")
	if !strings.HasSuffix(strings.TrimSpace(next.body), `"restart_required":false}`) {
		t.Errorf("answer %s", next.body)
	}
	s.want("stale", s.call(auth, "PUT", "/settings", `{"values":{"session.idle":"30m"}}`, "If-Match", tag), 412, "")
	restart := s.want("restart", s.call(auth, "PUT", "/settings", `{"values":{"login.hash_concurrency":2}}`, "If-Match", next.Header.Get("ETag")), 200, "")
	if !strings.HasSuffix(strings.TrimSpace(restart.body), `"restart_required":true}`) {
		t.Errorf("a change that needs a restart does not say so: %s", restart.body[len(restart.body)-80:])
	}
}
