package vault

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

type people map[string]*api.Principal

func (p people) Authenticate(r *http.Request, _ netip.Addr) (*api.Principal, error) {
	return p[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")], nil
}

type roleTable map[string][]string

func (t roleTable) RoleGroup(context.Context, db.Querier, string) (string, error) {
	return access.DefaultGroup, nil
}

func (t roleTable) RoleIDs(_ context.Context, userID string) ([]string, error) { return t[userID], nil }

type usedBy map[string][]string

func (u usedBy) SecretUses(_ context.Context, _ db.Querier, id string, _ access.Scope) ([]string, bool, error) {
	return u[id], len(u[id]) > 0, nil
}

type client struct {
	t *testing.T
	h http.Handler
}

// do sends a request as a user and decodes the answer into out when it is 2xx.
func (c client) do(user, method, path, etag, body string, out any) (int, string) {
	c.t.Helper()
	r := httptest.NewRequest(method, "https://core.test/api/v1"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+user)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		r.Header.Set("If-Match", etag)
	}
	w := httptest.NewRecorder()
	c.h.ServeHTTP(w, r)
	b, err := io.ReadAll(w.Result().Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if out != nil && w.Code < 300 {
		if err := json.Unmarshal(b, out); err != nil {
			c.t.Fatalf("%s %s: %v in %s", method, path, err, b)
		}
	}
	return w.Code, string(b)
}

func serve(t *testing.T, d *db.DB) (client, *Vault, usedBy) {
	t.Helper()
	v := open(t, d, GenerateKEK())
	f, err := api.New(api.Config{
		DB: d, Log: slog.New(slog.DiscardHandler),
		Auth: people{
			"admin":  {UserID: "usr_admin", UserName: "admin", Permissions: map[api.Permission]bool{api.SecretsManage: true}},
			"reader": {UserID: "usr_reader", UserName: "reader"},
			"writer": {UserID: "usr_writer", UserName: "writer"},
			"nobody": {UserID: "usr_nobody", UserName: "nobody"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	uses := usedBy{}
	v.Routes(f, roleTable{"usr_reader": {"rol_r"}, "usr_writer": {"rol_w", "rol_x"}, "usr_nobody": {"rol_other"}}, uses)
	return client{t, f.Handler()}, v, uses
}

// TestFourUsers is the matrix of who may do what with a shared secret and with
// a personal one.
func TestFourUsers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c, v, _ := serve(t, d)
		var shared, personal Secret
		const value = "canary-shared-91"
		if code, b := c.do("admin", "POST", "/secrets", "",
			`{"name":"db root","kind":"password","read_roles":["rol_r"],"write_roles":["rol_w"],"value":"`+value+`"}`, &shared); code != 201 || strings.Contains(b, "canary") {
			t.Fatalf("create shared: %d %s", code, b)
		}
		if code, b := c.do("reader", "POST", "/secrets", "", `{"name":"mine","kind":"json","personal":true,"value":{"pin": "canary-personal"}}`, &personal); code != 201 || strings.Contains(b, "canary") {
			t.Fatalf("create personal: %d %s", code, b)
		}
		// An account of a target would send it to a host of somebody's choosing.
		if err := v.SecretExists(t.Context(), d, personal.ID); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("a personal secret can be referred to: %v", err)
		}
		if err := v.SecretExists(t.Context(), d, shared.ID); err != nil {
			t.Errorf("a shared secret cannot be referred to: %v", err)
		}
		for _, m := range []struct {
			user, what string
			method     string
			path, body string
			shared     int
			personal   int // the reader's own
		}{
			{"admin", "see", "GET", "", "", 200, 404},
			{"reader", "see", "GET", "", "", 200, 200},
			{"writer", "see", "GET", "", "", 200, 404},
			{"nobody", "see", "GET", "", "", 404, 404},
			{"admin", "reveal", "POST", "/reveal", "{}", 403, 404},
			{"reader", "reveal", "POST", "/reveal", "{}", 200, 200},
			{"writer", "reveal", "POST", "/reveal", "{}", 403, 404},
			{"nobody", "reveal", "POST", "/reveal", "{}", 404, 404},
			{"admin", "versions", "GET", "/versions", "", 200, 404},
			{"nobody", "versions", "GET", "/versions", "", 404, 404},
			{"reader", "change", "PATCH", "", `{"comment":"x"}`, 403, 200},
			{"writer", "change", "PATCH", "", `{"comment":"x"}`, 403, 404},
			{"nobody", "change", "PATCH", "", `{"comment":"x"}`, 404, 404},
			{"admin", "change", "PATCH", "", `{"comment":"x"}`, 200, 404},
			{"reader", "write", "PUT", "/value", `{"value":VALUE}`, 403, 200},
			{"nobody", "write", "PUT", "/value", `{"value":VALUE}`, 404, 404},
			{"writer", "write", "PUT", "/value", `{"value":VALUE}`, 200, 404},
			{"admin", "write", "PUT", "/value", `{"value":VALUE}`, 200, 404},
			{"writer", "delete", "DELETE", "", "", 403, 404},
			{"nobody", "delete", "DELETE", "", "", 404, 404},
		} {
			for _, s := range []struct {
				id, value string
				want      int
			}{{shared.ID, `"n3w-canary"`, m.shared}, {personal.ID, `{"pin":"n3w-canary"}`, m.personal}} {
				now, err := v.Get(t.Context(), d, s.id)
				if err != nil {
					t.Fatal(err)
				}
				code, b := c.do(m.user, m.method, "/secrets/"+s.id+m.path, api.ETag(now.Version), strings.ReplaceAll(m.body, "VALUE", s.value), nil)
				if code != s.want {
					t.Errorf("%s %s %s: %d %s, want %d", m.user, m.what, now.Name, code, b, s.want)
				}
				if m.what != "reveal" && strings.Contains(b, "canary") {
					t.Errorf("%s %s shows the value: %s", m.user, m.what, b)
				}
			}
		}
		for user, want := range map[string]string{"admin": "db root", "reader": "db root,mine", "writer": "db root", "nobody": ""} {
			var page api.Page[Secret]
			if code, b := c.do(user, "GET", "/secrets", "", "", &page); code != 200 {
				t.Fatalf("list: %d %s", code, b)
			}
			names := []string{}
			for _, s := range page.Items {
				names = append(names, s.Name)
			}
			if got := strings.Join(names, ","); got != want {
				t.Errorf("%s lists %q, want %q", user, got, want)
			}
		}
		if code, _ := c.do("writer", "POST", "/secrets", "", `{"name":"x","kind":"password","value":"v"}`, nil); code != 403 {
			t.Errorf("a user without the permission makes a shared secret: %d", code)
		}
		var refused, revealed int
		events, err := v.audit.After(t.Context(), d, audit.Filter{}, 0, 500)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			b, err := json.Marshal(e)
			if err != nil || strings.Contains(string(b), "canary") {
				t.Errorf("the audit log shows a value: %s (%v)", b, err)
			}
			switch e.Type {
			case audit.SecretRefused:
				refused++
			case audit.SecretRevealed:
				revealed++
			}
		}
		if revealed != 2 || refused != 6 {
			t.Errorf("audited %d reveals and %d refusals, want 2 and 6", revealed, refused)
		}
	})
}

func TestVersionsAndPreconditions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c, v, uses := serve(t, d)
		var s Secret
		if code, b := c.do("reader", "POST", "/secrets", "", `{"name":"mine","kind":"password","personal":true,"value":"v1"}`, &s); code != 201 {
			t.Fatalf("create: %d %s", code, b)
		}
		path := "/secrets/" + s.ID
		if code, _ := c.do("reader", "PUT", path+"/value", "", `{"value":"v2"}`, nil); code != 428 {
			t.Errorf("without If-Match: %d", code)
		}
		if code, _ := c.do("reader", "PUT", path+"/value", `"99"`, `{"value":"v2"}`, nil); code != 412 {
			t.Errorf("with a wrong If-Match: %d", code)
		}
		for i := 2; i <= keptValues+3; i++ {
			if code, b := c.do("reader", "PUT", path+"/value", api.ETag(s.Version), `{"value":"v`+string(rune('a'+i))+`"}`, &s); code != 200 {
				t.Fatalf("version %d: %d %s", i, code, b)
			}
		}
		var versions []ValueVersion
		if code, _ := c.do("reader", "GET", path+"/versions", "", "", &versions); code != 200 || len(versions) != keptValues || versions[0].Version != s.Current {
			t.Errorf("versions: %d, %+v", code, versions)
		}
		var shown struct {
			Version int64
			Value   string
		}
		if code, _ := c.do("reader", "POST", path+"/reveal", "", `{"version":5}`, &shown); code != 200 || shown.Value != "vf" || shown.Version != 5 {
			t.Errorf("a former version: %d %+v", code, shown)
		}
		if code, _ := c.do("reader", "POST", path+"/reveal", "", `{"version":1}`, &shown); code != 404 {
			t.Errorf("a dropped version: %d", code)
		}
		uses[s.ID] = []string{"db-1/root"}
		if code, b := c.do("reader", "DELETE", path, api.ETag(s.Version), "", nil); code != 409 || !strings.Contains(b, "db-1/root") {
			t.Errorf("deleting a secret in use: %d %s", code, b)
		}
		delete(uses, s.ID)
		if code, b := c.do("reader", "DELETE", path, api.ETag(s.Version), "", nil); code != 204 {
			t.Errorf("delete: %d %s", code, b)
		}
		if n := len(boxes(t, d)); n != 0 {
			t.Errorf("%d values are left after deleting the secret", n)
		}
		if _, err := v.Reveal(t.Context(), s.ID, "ssh", ""); err == nil {
			t.Error("a deleted secret opens")
		}
	})
}

func TestValuesAreChecked(t *testing.T) {
	c, _, _ := serve(t, dbtest.SQLite(t))
	for _, x := range []struct{ name, body, field string }{
		{"password not text", `{"name":"a","kind":"password","value":{"a":1}}`, "value"},
		{"password empty", `{"name":"a","kind":"password","value":""}`, "value"},
		{"key not PEM", `{"name":"a","kind":"key","value":"canary-no-key"}`, "value"},
		{"key is public", `{"name":"a","kind":"key","value":"-----BEGIN PUBLIC KEY-----\ncanary\n-----END PUBLIC KEY-----\n"}`, "value"},
		{"key with passphrase", `{"name":"a","kind":"key","value":"-----BEGIN ENCRYPTED PRIVATE KEY-----\nY2FuYXJ5\n-----END ENCRYPTED PRIVATE KEY-----\n"}`, "value"},
		{"json not an object", `{"name":"a","kind":"json","value":["canary"]}`, "value"},
		{"kind", `{"name":"a","kind":"other","value":"canary"}`, "kind"},
		{"name", `{"name":" a","kind":"password","value":"canary"}`, "name"},
		{"roles on a personal one", `{"name":"a","kind":"password","personal":true,"read_roles":["r"],"value":"canary"}`, "read_roles"},
	} {
		code, b := c.do("admin", "POST", "/secrets", "", x.body, nil)
		if code != 422 || !strings.Contains(b, `"field":"`+x.field+`"`) || strings.Contains(b, "canary") {
			t.Errorf("%s: %d %s, want 422 on %s without the value", x.name, code, b, x.field)
		}
	}
	if code, b := c.do("admin", "POST", "/secrets", "", `{"name":"twice","kind":"password","value":"v"}`, nil); code != 201 {
		t.Fatalf("create: %d %s", code, b)
	}
	if code, b := c.do("admin", "POST", "/secrets", "", `{"name":"twice","kind":"password","value":"v"}`, nil); code != 409 || !strings.Contains(b, "name_taken") {
		t.Errorf("the same name twice: %d %s", code, b)
	}
}
