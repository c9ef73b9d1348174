package sshca

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

type people map[string]*api.Principal

func (p people) Authenticate(r *http.Request, _ netip.Addr) (*api.Principal, error) {
	return p[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")], nil
}

func serve(t *testing.T, x *fixture) func(user, method, path, etag, body string, out any) (int, string) {
	t.Helper()
	f, err := api.New(api.Config{DB: x.db, Log: slog.New(slog.DiscardHandler), Auth: people{
		"ada":   ada,
		"bob":   {UserID: "usr_bob", UserName: "bob"},
		"admin": {UserID: "usr_admin", UserName: "admin", Permissions: map[api.Permission]bool{api.SettingsManage: true}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	x.Routes(f)
	return func(user, method, path, etag, body string, out any) (int, string) {
		t.Helper()
		r := httptest.NewRequest(method, "https://core.test/api/v1"+path, strings.NewReader(body))
		if user != "" {
			r.Header.Set("Authorization", "Bearer "+user)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		if etag != "" {
			r.Header.Set("If-Match", etag)
		}
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, r)
		b, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		if out != nil && w.Code < 300 {
			if err := json.Unmarshal(b, out); err != nil {
				t.Fatalf("%s %s: %v in %s", method, path, err, b)
			}
		}
		return w.Code, string(b)
	}
}

func TestCertificateRoutes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		do := serve(t, x)
		line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(publicKey(t))))
		var signed struct{ Certificate, Serial string }
		if code, b := do("ada", "POST", "/ssh-certificates", "", `{"public_key":"`+line+` ada@laptop"}`, &signed); code != 201 {
			t.Fatalf("%d %s", code, b)
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(signed.Certificate))
		if err != nil {
			t.Fatal(err)
		}
		cert, ok := key.(*ssh.Certificate)
		if !ok || len(cert.ValidPrincipals) != 1 || cert.ValidPrincipals[0] != "ada" || !strings.HasPrefix(cert.KeyId, "usr_ada") {
			t.Fatalf("certificate %+v", cert)
		}
		if err := x.VerifyClient(t.Context(), cert, "ada", "192.0.2.1"); err != nil {
			t.Error(err)
		}
		weak, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		weakKey, err := ssh.NewPublicKey(weak.Public())
		if err != nil {
			t.Fatal(err)
		}
		for name, k := range map[string]string{
			"rubbish": "ssh-ed25519 AAAA", "empty": "", "a certificate": signed.Certificate,
			"weak RSA": strings.TrimSpace(string(ssh.MarshalAuthorizedKey(weakKey))),
		} {
			if code, b := do("ada", "POST", "/ssh-certificates", "", `{"public_key":"`+k+`"}`, nil); code != 422 {
				t.Errorf("%s: %d %s", name, code, b)
			}
		}
		if code, _ := do("ada", "POST", "/ssh-certificates", "", `{"public_key":"`+line+`","ttl_seconds":43201}`, nil); code != 422 {
			t.Errorf("more than 12 hours: %d", code)
		}
		if code, _ := do("", "POST", "/ssh-certificates", "", `{"public_key":"`+line+`"}`, nil); code != 401 {
			t.Errorf("anonymous: %d", code)
		}
		if code, _ := do("bob", "DELETE", "/ssh-certificates/"+signed.Serial, "", "", nil); code != 404 {
			t.Errorf("revoking another user's: %d", code)
		}
		if code, b := do("ada", "DELETE", "/ssh-certificates/"+signed.Serial, "", "", nil); code != 204 {
			t.Errorf("revoking one's own: %d %s", code, b)
		}
		if err := x.VerifyClient(t.Context(), cert, "ada", "192.0.2.1"); err == nil {
			t.Error("still good")
		}
		if code, _ := do("admin", "DELETE", "/ssh-certificates/9999999999999999999", "", "", nil); code != 404 {
			t.Errorf("a serial beyond 63 bits: %d", code)
		}
	})
}

func TestAuthorityRoutes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		do := serve(t, x)
		var info struct {
			UserCA    string `json:"user_ca"`
			ClientCA  string `json:"client_ca"`
			HostCA    string `json:"host_ca"`
			Bastion   string
			Separator string
		}
		if code, b := do("", "GET", "/ssh-ca", "", "", &info); code != 200 || info.Bastion != "core:2222" || info.UserCA == info.ClientCA || info.HostCA == "" {
			t.Fatalf("%d %s", code, b)
		}
		if code, b := do("", "GET", "/ssh-ca/public-keys/target", "", "", nil); code != 200 || b != info.UserCA {
			t.Errorf("%d %s", code, b)
		}
		if code, _ := do("", "GET", "/ssh-ca/public-keys/other", "", "", nil); code != 404 {
			t.Errorf("unknown purpose: %d", code)
		}
		if code, b := do("", "GET", "/ssh-ca/krl", "", "", nil); code != 200 || !strings.HasPrefix(b, krlMagic) {
			t.Errorf("krl: %d", code)
		}
		for _, user := range []string{"", "ada"} {
			for _, path := range []string{"/ssh-ca/keys", "/ssh-ca/algorithms"} {
				if code, _ := do(user, "GET", path, "", "", nil); code != 401 && code != 403 {
					t.Errorf("%s reads %s: %d", user, path, code)
				}
			}
			if code, _ := do(user, "POST", "/ssh-ca/keys", "", `{"purpose":"target"}`, nil); code != 401 && code != 403 {
				t.Errorf("%s renews: %d", user, code)
			}
		}
		var k Key
		if code, b := do("admin", "POST", "/ssh-ca/keys", "", `{"purpose":"target"}`, &k); code != 201 || strings.Contains(b, "sealed") {
			t.Fatalf("%d %s", code, b)
		}
		if code, b := do("admin", "POST", "/ssh-ca/keys", "", `{"purpose":"target"}`, nil); code != 409 || !strings.Contains(b, "renewal_open") {
			t.Errorf("%d %s", code, b)
		}
		if code, b := do("admin", "POST", "/ssh-ca/keys/"+k.ID+"/activate", "", "", &k); code != 200 || k.State != Active {
			t.Errorf("%d %s", code, b)
		}
		if code, b := do("admin", "POST", "/ssh-ca/keys/"+k.ID+"/revoke", "", "", nil); code != 409 {
			t.Errorf("revoking the active key: %d %s", code, b)
		}
		if code, _ := do("admin", "POST", "/ssh-ca/keys/sca_none/activate", "", "", nil); code != 404 {
			t.Errorf("unknown key: %d", code)
		}
		var keys []Key
		if code, _ := do("admin", "GET", "/ssh-ca/keys", "", "", &keys); code != 200 || len(keys) != 4 {
			t.Errorf("%d, %d keys", code, len(keys))
		}

		rules := `{"rules":"plant/*.example kex=+diffie-hellman-group14-sha1"}`
		if code, _ := do("admin", "PUT", "/ssh-ca/algorithms", "", rules, nil); code != 428 {
			t.Errorf("without If-Match: %d", code)
		}
		if code, b := do("admin", "PUT", "/ssh-ca/algorithms", `"1"`, `{"rules":"plant kex=+made-up"}`, nil); code != 422 || !strings.Contains(b, "line 1") {
			t.Errorf("bad rules: %d %s", code, b)
		}
		if code, b := do("admin", "PUT", "/ssh-ca/algorithms", `"1"`, rules, nil); code != 200 {
			t.Errorf("%d %s", code, b)
		}
		a, err := x.Algorithms(t.Context(), "plant", "sw.example", "hostkeys=+ssh-rsa")
		if err != nil || a.KeyExchanges[len(a.KeyExchanges)-1] != "diffie-hellman-group14-sha1" || a.HostKeys[len(a.HostKeys)-1] != "ssh-rsa" {
			t.Errorf("%+v, %v", a, err)
		}
		if _, err := x.Algorithms(t.Context(), "plant", "sw.example", "hostkeys=+made-up"); err == nil {
			t.Error("a target's bad rule is passed over")
		}
		events, err := x.log.After(t.Context(), d, audit.Filter{ActorID: "usr_admin"}, 0, 100)
		if err != nil || len(events) != 3 {
			t.Errorf("audited %d changes of the administrator, want 3 (%v)", len(events), err)
		}
	})
}
