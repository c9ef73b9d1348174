package mitm

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// The password has everything that encodings trip over.
const (
	user     = "alice"
	password = `C4n&ry=+/"<ü€ %q`
	maskText = "********"
)

// site is an application with many ways to sign in. It logs what arrives.
type site struct {
	mu     sync.Mutex
	logins []string // user and password as they arrived
}

func (s *site) got(u, p string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins = append(s.logins, u+"\n"+p)
}

func (s *site) count(u, p string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.logins {
		if l == u+"\n"+p {
			n++
		}
	}
	return n
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	page := func(format string, args ...any) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "<!doctype html><html><head><title>t</title></head><body>"+format+"</body></html>", args...)
	}
	enter := func(u, p string) {
		s.got(u, p)
		if u != user || p != password {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: "1", Path: "/", Secure: true, HttpOnly: true})
		fmt.Fprint(w, "welcome")
	}
	switch r.URL.Path {
	case "/login":
		if r.Method == "GET" {
			w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'nonce-abc'; form-action 'self'")
			page(`<form method="post"><input type="hidden" name="csrf" value="t0k"><input name="user"><input name="password" type="password"><button>in</button></form>`)
			return
		}
		if r.FormValue("csrf") != "t0k" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		enter(r.PostFormValue("user"), r.PostFormValue("password"))
	case "/api/login":
		var in struct {
			User struct{ Name, Password string }
			Otp  string
		}
		json.NewDecoder(r.Body).Decode(&in)
		enter(in.User.Name, in.User.Password)
		if in.Otp != "" {
			s.got("otp", in.Otp)
		}
	case "/multi":
		r.ParseMultipartForm(1 << 20)
		enter(r.FormValue("user"), r.FormValue("password"))
	case "/basic":
		u, p, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		enter(u, p)
	case "/token":
		s.got("token", r.Header.Get("Authorization")+"|"+r.Header.Get("X-Api-Key"))
		fmt.Fprint(w, "ok")
	case "/digest":
		s.digest(w, r)
	case "/hashed":
		if r.Method == "GET" {
			page(`<script>salt="5a17"</script>`)
			return
		}
		sum := sha256.Sum256([]byte("5a17" + password))
		if r.PostFormValue("user") == user && r.PostFormValue("h") == hex.EncodeToString(sum[:]) {
			enter(user, password)
			return
		}
		w.WriteHeader(403)
	case "/home":
		c, err := r.Cookie("sid")
		page("signed in: %v", err == nil && c.Value == "1")
	case "/seen":
		b, _ := io.ReadAll(r.Body)
		s.got("seen", r.Method+" "+r.URL.RequestURI()+" "+fmt.Sprint(r.Header)+string(b))
		fmt.Fprint(w, "ok")
	case "/redirect":
		http.Redirect(w, r, r.FormValue("to"), http.StatusTemporaryRedirect)
	default:
		http.NotFound(w, r)
	}
}

// digest is RFC 7616 from the server's side, written on its own.
func (s *site) digest(w http.ResponseWriter, r *http.Request) {
	h := r.Header.Get("Authorization")
	part := func(name string) string {
		m := regexp.MustCompile(`[ ,]` + name + `="?([^",]*)"?`).FindStringSubmatch(h)
		if m == nil {
			return ""
		}
		return m[1]
	}
	hash := func(x string) string { b := sha256.Sum256([]byte(x)); return hex.EncodeToString(b[:]) }
	want := hash(hash(user+":realm:"+password) + ":n0nce:" + part("nc") + ":" + part("cnonce") + ":auth:" + hash(r.Method+":"+r.URL.RequestURI()))
	b, _ := io.ReadAll(r.Body)
	if !strings.HasPrefix(h, "Digest ") || part("response") != want || part("uri") != r.URL.RequestURI() {
		w.Header().Add("WWW-Authenticate", `Basic realm="no"`)
		w.Header().Add("WWW-Authenticate", `Digest realm="realm", nonce="n0nce", algorithm=MD5, qop="auth,auth-int"`)
		w.Header().Add("WWW-Authenticate", `Digest realm="realm", nonce="n0nce", algorithm=SHA-256, qop="auth", opaque="o"`)
		w.WriteHeader(401)
		return
	}
	s.got("digest", string(b)+part("nc"))
	fmt.Fprint(w, "welcome")
}

type loginRig struct {
	*rig
	site *site
	at   string
}

func newLoginRig(t *testing.T) *loginRig {
	r := &loginRig{rig: newRig(t), site: &site{}}
	r.at = r.origin("app.test", r.site, nil)
	full := wire.WebCredential{Username: user, Password: password, TOTP: "123456"}
	for _, id := range []string{"user", "pw", "otp", "basic", "digest", "login", "token", "key"} {
		r.secret(id, full)
	}
	return r
}

// placeholder reads the script that fills a page and returns what it puts into a field.
func (r *loginRig) placeholder(c *http.Client, page answer, selector string) string {
	r.t.Helper()
	m := regexp.MustCompile(`<head><script src="(/\.caponier/fill-[a-z0-9]+\.js)" nonce="([A-Z0-9]+)"></script>`).FindStringSubmatch(page.body)
	if m == nil {
		r.t.Fatalf("the page has no script of ours: %s", page.body)
	}
	script := r.do(c, "GET", r.at+m[1], "")
	if script.status != 200 || !strings.HasPrefix(script.header.Get("Content-Type"), "text/javascript") {
		r.t.Fatalf("script: %+v", script)
	}
	p := regexp.MustCompile(`"s":"` + regexp.QuoteMeta(selector) + `","v":"([a-z0-9]+)"`).FindStringSubmatch(script.body)
	if p == nil {
		r.t.Fatalf("no value for %s in %s", selector, script.body)
	}
	return p[1]
}

func (r *loginRig) formRecipe() webrule.Recipe {
	return webrule.Recipe{
		Injections: []webrule.Injection{
			{ID: "user", Kind: webrule.Form, Origin: r.at, Path: "/login$", Field: "user", Value: webrule.Username},
			{ID: "pw", Kind: webrule.Form, Origin: r.at, Path: "/login$", Field: "password", Value: webrule.Password},
		},
		Fills: []webrule.Fill{{Origin: r.at, Path: "/login$", Submit: "button", Fields: []webrule.FillField{
			{Selector: "user", Value: webrule.Username, Injection: "user"}, {Selector: "password", Value: webrule.Password, Injection: "pw"}}}},
	}
}

func TestFormLogin(t *testing.T) {
	r := newLoginRig(t)
	r.put("con_1", 1, r.at+"/login", webrule.Policy{Recipe: r.formRecipe()}, nil)
	c := r.browser("con_1", true)
	page := r.do(c, "GET", r.at+"/login", "", "Sec-Fetch-Dest", "document", "Accept-Encoding", "gzip, br")
	if csp := page.header.Get("Content-Security-Policy"); !strings.Contains(csp, "script-src 'nonce-abc' "+r.at+"/.caponier/fill-") || !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy: %s", csp)
	}
	u, p := r.placeholder(c, page, "user"), r.placeholder(c, page, "password")
	form := func(c *http.Client, path string) answer {
		return r.do(c, "POST", r.at+path, url.Values{"csrf": {"t0k"}, "user": {u}, "password": {p}}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	}
	// Elsewhere it is meaningless: other path, query, header, other field, other type.
	r.do(c, "POST", r.at+"/seen", "password="+p, "Content-Type", "application/x-www-form-urlencoded")
	r.do(c, "GET", r.at+"/seen?password="+p, "", "Referer", r.at+"/?"+p, "Cookie", "password="+p, "X-Password", p)
	r.do(c, "PUT", r.at+"/login", "password="+p, "Content-Type", "application/x-www-form-urlencoded")
	r.do(c, "POST", r.at+"/login", "csrf=t0k&user="+p+"&password=x"+p, "Content-Type", "application/x-www-form-urlencoded")
	r.do(c, "POST", r.at+"/login", `{"password":"`+p+`"}`, "Content-Type", "application/json")
	r.mu.Lock()
	if len(r.asks) != 0 {
		t.Errorf("core was asked for %v", r.asks)
	}
	r.mu.Unlock()
	// Another session with this placeholder.
	r.put("con_2", 1, r.at+"/login", webrule.Policy{Recipe: r.formRecipe()}, nil)
	form(r.browser("con_2", false), "/login")
	if n := r.site.count(user, password); n != 0 {
		t.Errorf("a placeholder of another session, or out of place, was replaced %d times", n)
	}
	if got := form(c, "/login"); got.status != 200 || got.body != "welcome" || r.site.count(user, password) != 1 {
		t.Fatalf("login: %+v, %q arrived", got, r.site.logins)
	}
	r.event("injection", map[string]string{"id": "pw", "url": r.at + "/login", "outcome": "used"})
	r.event("request", map[string]string{"injected": "user,pw"})
	// Once.
	if got := form(c, "/login"); got.status != 401 || r.site.count(user, password) != 1 || r.site.count(u, p) != 2 {
		t.Errorf("a second time: %+v, %q", got, r.site.logins)
	}
	r.event("injection", map[string]string{"id": "pw", "outcome": "spent"})
	// A page whose values are used up is not filled any more.
	if page := r.do(c, "GET", r.at+"/login", "", "Sec-Fetch-Dest", "document"); strings.Contains(page.body, ".caponier") {
		t.Errorf("filled again: %s", page.body)
	}
}

func TestFailedLoginMayBeRepeated(t *testing.T) {
	r := newLoginRig(t)
	r.secret("pw", wire.WebCredential{Password: "wrong one"})
	r.put("con_1", 1, r.at+"/login", webrule.Policy{Recipe: r.formRecipe()}, nil)
	c := r.browser("con_1", false)
	page := r.do(c, "GET", r.at+"/login", "", "Sec-Fetch-Dest", "document")
	u, p := r.placeholder(c, page, "user"), r.placeholder(c, page, "password")
	for range 5 {
		r.do(c, "POST", r.at+"/login", "csrf=t0k&user="+u+"&password="+p, "Content-Type", "application/x-www-form-urlencoded")
	}
	if n := r.site.count(user, "wrong one"); n != 3 {
		t.Errorf("a wrong password was tried %d times, want 3", n)
	}
}

func TestBodyKinds(t *testing.T) {
	r := newLoginRig(t)
	recipe := webrule.Recipe{Injections: []webrule.Injection{
		{ID: "user", Kind: webrule.JSON, Origin: r.at, Path: "/api/login", Field: "user.name", Value: webrule.Username},
		{ID: "pw", Kind: webrule.JSON, Origin: r.at, Path: "/api/login", Field: "user.password", Value: webrule.Password},
		{ID: "otp", Kind: webrule.JSON, Origin: r.at, Path: "/api/login", Field: "otp", Value: webrule.TOTP},
		{ID: "key", Kind: webrule.Multipart, Origin: r.at, Path: "/multi", Field: "password", Value: webrule.Password},
	}}
	r.put("con_1", 1, r.at, webrule.Policy{Recipe: recipe}, nil)
	ses := r.sessions.Find("con_1")
	ph := func(i int) string { return ses.Inject.Placeholder(recipe.Injections[i]) }
	c := r.browser("con_1", true)
	body := fmt.Sprintf(`{"password":%q,"x":[1,{"user":{"password":%q}}],"user":{"name":%q,"Password":"n","password":%q},"otp":%q}`, ph(1), ph(1), ph(0), ph(1), ph(2))
	if got := r.do(c, "POST", r.at+"/api/login", body, "Content-Type", "application/json; charset=utf-8"); got.status != 200 || r.site.count(user, password) != 1 || r.site.count("otp", "123456") != 1 {
		t.Errorf("json: %+v, %q", got, r.site.logins)
	}
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	m.WriteField("user", user)
	m.WriteField("password", ph(3))
	f, _ := m.CreateFormFile("password", "x")
	f.Write([]byte(ph(3)))
	m.Close()
	if got := r.do(c, "POST", r.at+"/multi", b.String(), "Content-Type", m.FormDataContentType()); got.status != 200 || r.site.count(user, password) != 2 {
		t.Errorf("multipart: %+v, %q", got, r.site.logins)
	}
}

// A credential is not put into a request of which nobody can tell which of two
// values counts; the user is told, and nothing is used up.
func TestFieldsThatStandTwice(t *testing.T) {
	r := newLoginRig(t)
	recipe := webrule.Recipe{Injections: []webrule.Injection{
		{ID: "pw", Kind: webrule.Form, Origin: r.at, Path: "/login", Field: "password", Value: webrule.Password},
		{ID: "user", Kind: webrule.JSON, Origin: r.at, Path: "/api/login", Field: "user.password", Value: webrule.Password},
		{ID: "key", Kind: webrule.Multipart, Origin: r.at, Path: "/multi", Field: "password", Value: webrule.Password},
	}}
	r.put("con_1", 1, r.at, webrule.Policy{Recipe: recipe}, nil)
	ses := r.sessions.Find("con_1")
	ph := func(i int) string { return ses.Inject.Placeholder(recipe.Injections[i]) }
	c := r.browser("con_1", true)
	for _, x := range []struct{ id, path, kind, once, twice string }{
		{"pw", "/login", formType, "csrf=t0k&user=" + user + "&password=" + ph(0), "&password=x"},
		{"user", "/api/login", "application/json", fmt.Sprintf(`{"otp":"1","user":{"name":%q,"password":%q}}`, user, ph(1)), `{"user":{}}`},
		{"key", "/multi", partsType, parts(`name="user"`, user, `name="password"`, ph(2)), parts(`name="password"`, "x")},
	} {
		before := r.site.count(user, password)
		twice := x.once + x.twice
		if x.id == "key" {
			twice = strings.TrimSuffix(x.once, "--XX--\r\n") + x.twice
		}
		if got := r.do(c, "POST", r.at+x.path, twice, "Content-Type", x.kind); got.status < 400 || !strings.Contains(got.body, "stands twice") {
			t.Errorf("%s twice: %+v", x.id, got)
		}
		r.event("injection", map[string]string{"id": x.id, "outcome": "refused"})
		if n := r.site.count(user, password); n != before {
			t.Errorf("%s twice: it signed in", x.id)
		}
		r.do(c, "POST", r.at+x.path, x.once, "Content-Type", x.kind)
		if n := r.site.count(user, password); n != before+1 {
			t.Errorf("%s once: it did not sign in", x.id)
		}
	}
	// Without the placeholder it is the application's business.
	if got := r.do(c, "POST", r.at+"/login", "csrf=t0k&user=x&password=y&password=z", "Content-Type", formType); strings.Contains(got.body, "stands twice") {
		t.Errorf("%+v", got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.asks) != 3 {
		t.Errorf("core was asked %d times", len(r.asks))
	}
}

func TestHeaderKinds(t *testing.T) {
	r := newLoginRig(t)
	other := r.origin("other.test", r.site, nil)
	ou, _ := url.Parse(other)
	r.put("con_1", 1, r.at, webrule.Policy{Allow: []webrule.Rule{{Host: ou.Host}}, Recipe: webrule.Recipe{Injections: []webrule.Injection{
		{ID: "basic", Kind: webrule.Basic, Origin: r.at, Path: "/basic"},
		{ID: "digest", Kind: webrule.Digest, Origin: r.at, Path: "/digest"},
		{ID: "token", Kind: webrule.Bearer, Origin: r.at, Path: "/token"},
		{ID: "key", Kind: webrule.Header, Origin: r.at, Path: "/token", Field: "X-Api-Key", Prefix: "Key ", Value: webrule.Username},
	}}}, nil)
	c := r.browser("con_1", false)
	for range 3 {
		if got := r.do(c, "GET", r.at+"/basic", ""); got.status != 200 {
			t.Errorf("basic: %+v", got)
		}
	}
	if n := r.site.count(user, password); n != 3 {
		t.Errorf("basic: %d logins", n)
	}
	for i := range 3 {
		if got := r.do(c, "POST", r.at+"/digest?x=1", "body"); got.status != 200 || got.body != "welcome" {
			t.Errorf("digest: %+v", got)
		}
		if r.site.count("digest", fmt.Sprintf("body%08x", i+1)) != 1 {
			t.Errorf("digest: %q", r.site.logins)
		}
	}
	r.secret("token", wire.WebCredential{Password: "tok_abcdef"})
	if r.do(c, "GET", r.at+"/token", "", "Authorization", "Bearer mine"); r.site.count("token", "Bearer tok_abcdef|Key "+user) != 1 {
		t.Errorf("token: %q", r.site.logins)
	}
	// A redirect to another origin carries nothing.
	if got := r.do(c, "GET", other+"/basic", ""); got.status != 401 {
		t.Errorf("another origin got the password: %+v", got)
	}
	if got := r.do(c, "GET", other+"/token", ""); r.site.count("token", "|") != 1 {
		t.Errorf("another origin got a token: %+v %q", got, r.site.logins)
	}
	asked := map[string]int{}
	r.mu.Lock()
	for _, a := range r.asks {
		asked[a.Injection]++
	}
	r.mu.Unlock()
	if asked["basic"] != 1 || asked["digest"] != 1 {
		t.Errorf("core was asked %v times: a page of many files is one use", asked)
	}
}

func TestInsecureTargets(t *testing.T) {
	r := newLoginRig(t)
	in := webrule.Injection{ID: "basic", Kind: webrule.Basic, Origin: r.at}
	put := func(id string, in webrule.Injection) {
		r.put(id, 1, r.at, webrule.Policy{TLS: webrule.TLS{Unchecked: true}, Recipe: webrule.Recipe{Injections: []webrule.Injection{in}}}, nil)
	}
	put("con_1", in)
	if got := r.do(r.browser("con_1", false), "GET", r.at+"/basic", ""); got.status != 401 {
		t.Errorf("a server that is not checked got the password: %+v", got)
	}
	in.Insecure = true
	put("con_2", in)
	if got := r.do(r.browser("con_2", false), "GET", r.at+"/basic", ""); got.status != 200 {
		t.Errorf("permitted by name: %+v", got)
	}
}

func TestRefusedCredential(t *testing.T) {
	r := newLoginRig(t)
	r.secret("basic", wire.WebCredential{Error: wire.Errorf(wire.CodeUnauthorized, "the account is disabled")})
	r.put("con_1", 1, r.at, webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "basic", Kind: webrule.Basic, Origin: r.at}}}}, nil)
	if got := r.do(r.browser("con_1", false), "GET", r.at+"/basic", ""); got.status != 502 || !strings.Contains(got.body, "the account is disabled") {
		t.Errorf("%+v", got)
	}
	if len(r.site.logins) != 0 {
		t.Errorf("the request went out: %q", r.site.logins)
	}
	r.event("injection", map[string]string{"id": "basic", "outcome": "refused"})
}

func TestProxysOwnLogin(t *testing.T) {
	r := newLoginRig(t)
	login := &webrule.Login{Cookie: "sid", Steps: []webrule.Step{
		{Method: "GET", URL: "/hashed", Extract: map[string]string{"salt": `salt="([0-9a-f]+)"`}},
		{Method: "POST", URL: "/hashed", Body: "user={{username}}&h={{sha256 salt password}}"},
	}}
	r.put("con_1", 1, r.at+"/home", webrule.Policy{Recipe: webrule.Recipe{Login: login}}, nil)
	c := r.browser("con_1", true)
	got := r.do(c, "GET", r.at+"/home", "", "Sec-Fetch-Dest", "document")
	if !strings.Contains(got.body, "signed in: true") || !strings.HasPrefix(got.header.Get("Set-Cookie"), "sid=1") {
		t.Errorf("first page: %+v", got)
	}
	if got := r.do(c, "GET", r.at+"/home", "", "Cookie", "sid=1"); got.header.Get("Set-Cookie") != "" || !strings.Contains(got.body, "true") {
		t.Errorf("second page: %+v", got)
	}
	if got := r.do(c, "GET", r.at+"/home", ""); !strings.Contains(got.body, "false") {
		t.Errorf("without the cookie: %+v", got)
	}
	r.event("injection", map[string]string{"id": "login", "outcome": "used"})
	// A login that fails says so, and is not tried again at once.
	r.secret("login", wire.WebCredential{Username: user, Password: "wrong one"})
	r.put("con_2", 1, r.at+"/home", webrule.Policy{Recipe: webrule.Recipe{Login: login}}, nil)
	for range 3 {
		if got := r.do(r.browser("con_2", true), "GET", r.at+"/home", ""); got.status != 502 || !strings.Contains(got.body, "step 2") || !strings.Contains(got.body, "status 403") {
			t.Errorf("failing: %+v", got)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.asks); n != 2 {
		t.Errorf("core was asked %d times", n)
	}
}

// echoes are ways in which a server says the password back.
// An echo of the credential cannot be fetched in pieces: texts come whole, and
// masked. Large files keep their ranges.
func TestPiecesOfEchoes(t *testing.T) {
	r := newRig(t)
	text := "before " + password + " after"
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if kind := req.URL.Query().Get("kind"); kind != "" {
			w.Header().Set("Content-Type", kind)
		}
		http.ServeContent(w, req, "", time.Time{}, strings.NewReader(text))
	}), nil)
	r.secret("basic", wire.WebCredential{Username: user, Password: password})
	r.put("con_1", 1, at, webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "basic", Kind: webrule.Basic, Origin: at}}}}, nil)
	r.put("con_none", 1, at, webrule.Policy{}, nil)
	c, none := r.browser("con_1", true), r.browser("con_none", true)
	piece := func(c *http.Client, kind, ranges string) string {
		t.Helper()
		got := r.do(c, "GET", at+"/?kind="+url.QueryEscape(kind), "", "Range", "bytes="+ranges)
		if want := map[bool]int{true: 206, false: 200}[len(got.body) < len(text)]; got.status != want {
			t.Errorf("%s %s: status %d with %d bytes", kind, ranges, got.status, len(got.body))
		}
		return got.body
	}
	masked := "before " + maskText + " after"
	for _, kind := range []string{"text/plain; charset=utf-8", "text/html", "application/json", "application/atom+xml", "application/x-www-form-urlencoded"} {
		for _, ranges := range []string{"7-9", "0-10", "7-8,10-12", "-12"} {
			if got := r.do(c, "GET", at+"/?kind="+url.QueryEscape(kind), "", "Range", "bytes="+ranges); got.status != 200 || got.body != masked {
				t.Errorf("%s %s: %d %q", kind, ranges, got.status, got.body)
			}
		}
		// The control: the server gives pieces to who has no credential.
		if got := piece(none, kind, "7-9"); got != text[7:10] {
			t.Errorf("control: %s: %q", kind, got)
		}
	}
	for _, kind := range []string{"application/octet-stream", "video/mp4", "application/zip"} {
		if got := piece(c, kind, "0-5"); got != text[:6] {
			t.Errorf("%s: %q", kind, got)
		}
	}
	if got := r.do(c, "GET", at+"/?kind=application/octet-stream", "", "Range", "bytes=0-1,4-6"); got.status != 200 || !strings.Contains(got.body, maskText) {
		t.Errorf("several pieces at once: %d %q", got.status, got.body)
	}
}

func TestEchoesAreMasked(t *testing.T) {
	r := newRig(t)
	forms := map[string]string{
		"raw": password, "query": url.QueryEscape(password), "path": url.PathEscape(password), "html": html.EscapeString(password),
		"json": func() string { b, _ := json.Marshal(password); return string(b) }(), "hex": hex.EncodeToString([]byte(password)),
		"base64": base64.StdEncoding.EncodeToString([]byte(user + ":" + password)), "base64b": base64.StdEncoding.EncodeToString([]byte("a" + user + ":" + password)),
		"base64c": base64.URLEncoding.EncodeToString([]byte("ab" + user + ":" + password)),
	}
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		text := forms[req.URL.Query().Get("form")]
		switch req.URL.Path {
		case "/plain":
			fmt.Fprint(w, "before ", text, " after")
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			fmt.Fprint(z, "before ", text, " after")
			z.Close()
		case "/br":
			w.Header().Set("Content-Encoding", "br")
			fmt.Fprint(w, "whatever")
		case "/twice":
			w.Header()["Content-Encoding"] = []string{"identity", "br"}
			fmt.Fprint(w, "whatever")
		case "/chunks":
			for _, b := range []byte("before " + text + " after") {
				w.Write([]byte{b})
				http.NewResponseController(w).Flush()
			}
		case "/header":
			if req.URL.Query().Get("form") != "raw" {
				w.Header().Set("X-Echo", text)
				w.Header().Set("Location", "/x?"+text)
				w.Header().Set("Set-Cookie", "c="+text)
			}
		case "/large":
			w.Header().Set("Content-Type", "application/octet-stream")
			b := append(bytes.Repeat([]byte("x"), 2<<20), text...)
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b)
		}
	}), nil)
	r.secret("basic", wire.WebCredential{Username: user, Password: password})
	r.put("con_1", 1, at, webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "basic", Kind: webrule.Basic, Origin: at}}}}, nil)
	r.put("con_none", 1, at, webrule.Policy{}, nil)
	c, none := r.browser("con_1", true), r.browser("con_none", true)
	for form, text := range forms {
		for _, path := range []string{"/plain", "/gzip", "/chunks", "/header"} {
			to := at + path + "?form=" + form
			got := r.do(c, "GET", to, "", "Accept-Encoding", "gzip")
			all := got.body + fmt.Sprint(got.header)
			core := text
			if strings.HasPrefix(form, "base64") {
				core = text[12 : len(text)-8] // its ends belong to others
			}
			if strings.Contains(all, core) || path != "/header" && (!strings.Contains(got.body, maskText) || !strings.HasPrefix(got.body, "before ") || !strings.HasSuffix(got.body, " after")) {
				t.Errorf("%s %s: %q", path, form, all)
			}
			// The positive control: without a credential the echo passes.
			if got := r.do(none, "GET", to, ""); path == "/plain" && !strings.Contains(got.body, text) {
				t.Errorf("control: %s %s: %q", path, form, got.body)
			}
		}
	}
	for _, path := range []string{"/br", "/twice"} {
		if got := r.do(c, "GET", at+path, "", "Accept-Encoding", "gzip, br"); got.status != 502 {
			t.Errorf("%s: an encoding that cannot be read: %+v", path, got)
		}
	}
	resp, err := c.Get(at + "/large?form=raw")
	if err == nil {
		b, rerr := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err = rerr; bytes.Contains(b, []byte(password)) {
			t.Error("a large answer of fixed length lets the password through")
		}
	}
	if err == nil {
		t.Error("a large answer was not cut")
	}
	r.event("blocked", map[string]string{"reason": "credential_in_answer"})
}

// Nothing of the password is in logs and records.
func TestCanary(t *testing.T) {
	r := newLoginRig(t)
	r.put("con_1", 1, r.at+"/login", webrule.Policy{Recipe: r.formRecipe()}, nil)
	c := r.browser("con_1", true)
	page := r.do(c, "GET", r.at+"/login", "", "Sec-Fetch-Dest", "document")
	r.do(c, "POST", r.at+"/login", url.Values{"csrf": {"t0k"}, "user": {r.placeholder(c, page, "user")}, "password": {r.placeholder(c, page, "password")}}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	r.do(c, "GET", r.at+"/seen?q="+url.QueryEscape(password)+"&token=abc&plain=visible", "")
	r.do(c, "GET", r.at+"/"+url.PathEscape(password), "")
	if r.site.count(user, password) != 1 {
		t.Fatal("the password did not even arrive")
	}
	e := r.event("request", map[string]string{"injected": "user,pw"})
	r.wait("all requests", func() bool { return len(r.eventsLocked("request")) >= 4 })
	r.mu.Lock()
	defer r.mu.Unlock()
	var all strings.Builder
	for _, x := range r.records {
		all.Write(x.Payload)
	}
	all.WriteString(r.log.String())
	for _, s := range []string{password, url.QueryEscape(password), url.PathEscape(password), "C4n&ry", `C4n\u0026ry`, testKey, "token=abc"} {
		if strings.Contains(all.String(), s) {
			t.Errorf("%q is in logs or records", s)
		}
	}
	// The positive control.
	for _, s := range []string{"plain=visible", "con_1", e["url"]} {
		if !strings.Contains(all.String(), s) {
			t.Errorf("%q is not in logs or records: the search finds nothing", s)
		}
	}
}
