package sites

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	user     = "ann"
	password = "p&w=1+2/ü%20'\""
	seed     = "JBSWY3DPEHPK3PXP"
)

// rig is a site with a browser of sorts.
type rig struct {
	t    *testing.T
	site *Site
	url  string
	http *http.Client
}

func start(t *testing.T, cfg Config) *rig {
	t.Helper()
	ca, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	return startAt(t, ca, cfg)
}

func startAt(t *testing.T, ca *Authority, cfg Config) *rig {
	t.Helper()
	cfg.Username, cfg.Password, cfg.Seed = user, password, seed
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Certificate(Sound, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	up := Serve(l, s, &cert)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}, ForceAttemptHTTP2: true}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := up.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &rig{t: t, site: s, url: "https://" + l.Addr().String(), http: &http.Client{Transport: tr, Jar: jar}}
}

func (r *rig) do(req *http.Request) (int, string) {
	r.t.Helper()
	res, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func (r *rig) get(path string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequest("GET", r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.do(req)
}

func (r *rig) post(path, kind, body string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequest("POST", r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	return r.do(req)
}

const urlencoded = "application/x-www-form-urlencoded"

func form(values ...string) string {
	v := url.Values{}
	for i := 0; i < len(values); i += 2 {
		v.Set(values[i], values[i+1])
	}
	return v.Encode()
}

// signIn signs in as a browser's page would; wrong makes the password wrong.
func (r *rig) signIn(wrong bool) {
	r.t.Helper()
	p := password
	if wrong {
		p += "x"
	}
	_, page := r.get("/login")
	switch r.site.cfg.Kind {
	case Form, Frame, TOTP:
		r.post("/login", urlencoded, form("username", user, "password", p))
		if r.site.cfg.Kind == TOTP && !wrong {
			code, err := totp.GenerateCode(seed, time.Now())
			if err != nil {
				r.t.Fatal(err)
			}
			r.post("/login/code", urlencoded, form("code", code))
		}
	case Multi:
		var b bytes.Buffer
		m := multipart.NewWriter(&b)
		m.WriteField("username", user)
		m.WriteField("password", p)
		m.Close()
		r.post("/login", m.FormDataContentType(), b.String())
	case JSON:
		r.post("/api/login", "application/json", fmt.Sprintf(`{"user":{"name":%q,"password":%q}}`, user, p))
	case Pages:
		r.post("/login/user", urlencoded, form("username", user))
		r.post("/login", urlencoded, form("password", p))
	case CSRF:
		token := regexp.MustCompile(`csrf_token" value="(\w+)"`).FindStringSubmatch(page)
		if token == nil {
			r.t.Fatalf("no token in %s", page)
		}
		r.post("/login", urlencoded, form("username", user, "password", p, "csrf_token", token[1]))
	case Hashed:
		salt := regexp.MustCompile(`data-salt="(\w+)"`).FindStringSubmatch(page)
		if salt == nil {
			r.t.Fatalf("no salt in %s", page)
		}
		sum := sha256.Sum256([]byte(salt[1] + p))
		r.post("/login", urlencoded, form("username", user, "response", hex.EncodeToString(sum[:])))
	}
}

// TestLogins signs in to each kind, wrong and right, and looks what arrived.
func TestLogins(t *testing.T) {
	for _, kind := range []Kind{Form, Multi, JSON, Pages, CSRF, Frame, Hashed, TOTP} {
		t.Run(string(kind), func(t *testing.T) {
			r := start(t, Config{Kind: kind})
			home := "signed in as <b>" + user
			if _, page := r.get("/home"); strings.Contains(page, home) {
				t.Fatal("a stranger is let in")
			}
			r.signIn(true)
			if _, page := r.get("/home"); strings.Contains(page, home) {
				t.Fatal("a wrong password is let in")
			}
			r.signIn(false)
			if _, page := r.get("/home"); !strings.Contains(page, home) {
				t.Fatalf("the right password is not let in: %s", page)
			}
			got := r.site.Logins()
			last := got[len(got)-1]
			if got[0].OK || !last.OK || last.Username != user {
				t.Fatalf("logins %+v", got)
			}
			switch kind {
			case Hashed:
				if strings.Contains(last.Password, password) {
					t.Error("the password itself arrived")
				}
			case TOTP:
				if got[1].Password != password || len(last.Code) != 6 {
					t.Errorf("logins %+v", got)
				}
			default:
				if last.Password != password {
					t.Errorf("password %q arrived, want %q", last.Password, password)
				}
			}
		})
	}
}

func TestChallenges(t *testing.T) {
	t.Run("basic", func(t *testing.T) {
		r := start(t, Config{Kind: Basic})
		if code, _ := r.get("/home"); code != 401 {
			t.Fatalf("without a header: %d", code)
		}
		for p, want := range map[string]int{password: 200, "wrong": 401} {
			req, _ := http.NewRequest("GET", r.url+"/home", nil)
			req.SetBasicAuth(user, p)
			if code, _ := r.do(req); code != want {
				t.Errorf("%q: %d, want %d", p, code, want)
			}
		}
	})
	t.Run("bearer", func(t *testing.T) {
		r := start(t, Config{Kind: Bearer})
		for p, want := range map[string]int{"token": 401, url.QueryEscape(password): 401} {
			req, _ := http.NewRequest("GET", r.url+"/home", nil)
			req.Header.Set("Authorization", "Bearer "+p)
			if code, _ := r.do(req); code != want {
				t.Errorf("%q: %d, want %d", p, code, want)
			}
		}
		if got := r.site.Logins(); len(got) != 2 || got[0].OK {
			t.Errorf("logins %+v", got)
		}
	})
	t.Run("digest", func(t *testing.T) {
		r := start(t, Config{Kind: Digest})
		challenge := func() map[string]string {
			res, err := r.http.Get(r.url + "/home")
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			return parameters(strings.TrimPrefix(res.Header.Get("WWW-Authenticate"), "Digest "))
		}
		h := func(s string) string { x := sha256.Sum256([]byte(s)); return hex.EncodeToString(x[:]) }
		ask := func(p map[string]string, pass, nc string) int {
			resp := h(h(user+":"+p["realm"]+":"+pass) + ":" + p["nonce"] + ":" + nc + ":abc:auth:" + h("GET:/home"))
			req, _ := http.NewRequest("GET", r.url+"/home", nil)
			req.Header.Set("Authorization", fmt.Sprintf(`Digest username="%s", realm="%s", nonce="%s", uri="/home", qop=auth, nc=%s, cnonce="abc", response="%s", algorithm=SHA-256, opaque="%s"`,
				user, p["realm"], p["nonce"], nc, resp, p["opaque"]))
			code, _ := r.do(req)
			return code
		}
		p := challenge()
		for _, try := range []struct {
			name, pass, nc string
			want           int
		}{{"wrong", "x", "00000001", 401}, {"right", password, "00000002", 200}, {"replayed", password, "00000002", 401}, {"next", password, "00000003", 200}} {
			if got := ask(p, try.pass, try.nc); got != try.want {
				t.Errorf("%s: %d, want %d", try.name, got, try.want)
			}
		}
		p["nonce"] = "made-up"
		if got := ask(p, password, "00000001"); got != 401 {
			t.Errorf("made-up nonce: %d", got)
		}
	})
}

// TestForeign signs in at one site to get into another.
func TestForeign(t *testing.T) {
	ca, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("shared")
	idp := startAt(t, ca, Config{Kind: Form, Key: key})
	r := startAt(t, ca, Config{Kind: Foreign, Key: key, Other: idp.url})
	if _, page := r.get("/login"); !strings.Contains(page, idp.url+"/login/form?back="+url.QueryEscape(r.url)) {
		t.Fatalf("no frame: %s", page)
	}
	if _, page := r.post("/login/back?user=ann&proof=00", urlencoded, ""); strings.Contains(page, "signed in") {
		t.Error("a made-up proof is let in")
	}
	req, _ := http.NewRequest("POST", idp.url+"/login", strings.NewReader(form("username", user, "password", password, "back", r.url+"/login/back")))
	req.Header.Set("Content-Type", urlencoded)
	if _, page := r.do(req); !strings.Contains(page, "signed in as <b>"+user) {
		t.Errorf("not signed in: %s", page)
	}
	if got := idp.site.Logins(); len(got) != 1 || got[0].Password != password {
		t.Errorf("logins %+v", got)
	}
}

// TestEchoes looks for the password in each echo as its page would.
func TestEchoes(t *testing.T) {
	r := start(t, Config{Kind: Form})
	r.signIn(false)
	for _, mode := range EchoModes {
		if mode == "socket" || mode == "fragments" {
			continue // in the browser's tests
		}
		code, body := r.get("/echo/" + mode)
		if code != 200 || len(body) < 10 {
			t.Errorf("%s: %d %q", mode, code, body)
		}
	}
	if _, body := r.get("/echo/chunks"); body != "before "+password+" after" {
		t.Errorf("chunks: %q", body)
	}
	if _, body := r.get("/echo/raw?say=hello"); body != "before hello after" {
		t.Errorf("say: %q", body)
	}
}

func TestFiles(t *testing.T) {
	r := start(t, Config{Kind: Open})
	_, body := r.get("/files/x.bin?size=70000")
	x := sha256.Sum256([]byte(body))
	if got := hex.EncodeToString(x[:]); got != PatternSum(70000) || len(body) != 70000 {
		t.Errorf("%d bytes, %s, want %s", len(body), got, PatternSum(70000))
	}
	if _, body := r.get("/files/eicar.com"); body != string(EICAR()) || len(body) != 68 {
		t.Errorf("eicar: %d bytes", len(body))
	}
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	w, err := m.CreateFormFile("file", "folder/a.txt")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "hello")
	m.Close()
	r.post("/upload", m.FormDataContentType(), b.String())
	if got := r.site.Uploads(); len(got) != 1 || got[0].Name != "folder/a.txt" || got[0].Size != 5 {
		t.Errorf("uploads %+v", got)
	}
}

// TestDriven plays the part of the page's script.
func TestDriven(t *testing.T) {
	r := start(t, Config{Kind: Open, Driven: true})
	if _, page := r.get("/home"); !strings.Contains(page, "drive.js") {
		t.Fatal("the page does not wait for orders")
	}
	done := make(chan string, 1)
	go func() {
		text, err := r.site.Run(t.Context(), "guest", "return 1 + 1")
		done <- fmt.Sprint(text, err)
	}()
	_, body := r.get("/drive")
	id := regexp.MustCompile(`"id":"(\w+)"`).FindStringSubmatch(body)
	if id == nil || !strings.Contains(body, "return 1 + 1") {
		t.Fatalf("order %s", body)
	}
	r.post("/drive/"+id[1], "text/plain", "2")
	if got := <-done; got != "2<nil>" {
		t.Errorf("answer %q", got)
	}
	gone := make(chan error, 1)
	go func() { gone <- r.site.Drive(t.Context(), "guest", "/many") }()
	// The page that took it went away: the next one gets it too.
	for range 2 {
		_, body = r.get("/drive")
		if id = regexp.MustCompile(`"id":"(\w+)"`).FindStringSubmatch(body); id == nil || !strings.Contains(body, `"go":"/many"`) {
			t.Fatalf("order %s", body)
		}
	}
	r.post("/drive/"+id[1], "text/plain", "gone")
	if err := <-gone; err != nil {
		t.Error(err)
	}
}

// TestKept: whatever is sent is found again, wherever it was.
func TestKept(t *testing.T) {
	r := start(t, Config{Kind: Open})
	r.get("/plain?q=canary1")
	r.post("/collect", urlencoded, "x=canary2")
	req, _ := http.NewRequest("PUT", r.url+"/plain/canary3", nil)
	req.Header.Set("X-Thing", "canary4")
	r.do(req)
	for i := 1; i <= 4; i++ {
		n := 0
		for _, q := range r.site.Requests() {
			if q.Contains(fmt.Sprintf("canary%d", i)) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("canary%d is in %d requests", i, n)
		}
	}
	r.site.Forget()
	if len(r.site.Requests()) != 0 {
		t.Error("requests after Forget")
	}
}

// TestCertificates: each fault is one that clients refuse.
func TestCertificates(t *testing.T) {
	ca, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	for fault, refused := range map[Fault]bool{Sound: false, Expired: true, WrongHost: true, SelfSigned: true} {
		cert, err := ca.Certificate(fault, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		up := Serve(l, http.NotFoundHandler(), &cert)
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: ca.Pool()})
		if err == nil {
			c.Close()
		}
		if (err != nil) != refused {
			t.Errorf("fault %d: %v", fault, err)
		}
		if err := up.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []Config{{}, {Kind: "nonsense"}, {Kind: Foreign}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
