package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// tokens authenticates "Bearer NAME" and the cookie "s=NAME" from a table.
type tokens map[string]*Principal

func (t tokens) Authenticate(r *http.Request, _ netip.Addr) (*Principal, error) {
	name := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if c, err := r.Cookie("s"); name == "" && err == nil {
		name = c.Value
	}
	if name == "" {
		return nil, nil
	}
	if p, ok := t[name]; ok {
		return p, nil
	}
	return nil, Unauthenticated("The token is not good.")
}

var people = tokens{
	"admin":   {UserID: "usr_admin", UserName: "admin", Permissions: map[Permission]bool{UsersManage: true, TargetsManage: true}},
	"viewer":  {UserID: "usr_viewer", UserName: "viewer", Permissions: map[Permission]bool{UsersView: true}},
	"nothing": {UserID: "usr_nothing", UserName: "nothing"},
}

type thingIn struct {
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"20"`
		Size int    `json:"size,omitempty" minimum:"0"`
	}
}
type thingOut struct {
	ETag string `header:"ETag"`
	Body struct {
		ID string `json:"id"`
	}
}
type listIn struct{ PageIn }
type listOut struct{ Body Page[string] }
type oneIn struct {
	ID      string `path:"id" maxLength:"20"`
	IfMatch string `header:"If-Match"`
}

func testFrame(t *testing.T, auth Authenticator) (*Frame, *db.DB) {
	t.Helper()
	d := dbtest.SQLite(t)
	f, err := New(Config{Auth: auth, DB: d, Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	Register(f, Op{Method: "POST", Path: "/things", ID: "create-thing", Tag: "things", Who: Needs(UsersManage), Status: 201},
		func(ctx context.Context, in *thingIn) (*thingOut, error) {
			made++
			out := &thingOut{ETag: ETag(1)}
			out.Body.ID = itoa(made)
			return out, nil
		})
	Register(f, Op{Method: "GET", Path: "/things", ID: "list-things", Tag: "things", Who: Needs(UsersView)},
		func(ctx context.Context, in *listIn) (*listOut, error) {
			var after int
			if err := DecodeCursor(in.Cursor, &after); err != nil {
				return nil, err
			}
			var rows []string
			for i := after; i < 7 && len(rows) <= in.Limit; i++ {
				rows = append(rows, itoa(i))
			}
			return &listOut{Paged(rows, in.Limit, func(s string) any { return after + in.Limit })}, nil
		})
	Register(f, Op{Method: "DELETE", Path: "/things/{id}", ID: "delete-thing", Tag: "things", Who: Needs(UsersManage)},
		func(ctx context.Context, in *oneIn) (*struct{}, error) {
			switch in.ID {
			case "none":
				return nil, db.ErrNotFound
			case "dup":
				return nil, db.ErrConflict
			case "boom":
				return nil, io.ErrUnexpectedEOF
			case "panic":
				panic("planted-canary-in-panic")
			}
			return nil, CheckMatch(in.IfMatch, 4)
		})
	Register(f, Op{Method: "GET", Path: "/me", ID: "get-me", Tag: "me", Who: Self()},
		func(ctx context.Context, in *struct{}) (*thingOut, error) {
			out := &thingOut{}
			out.Body.ID = PrincipalFrom(ctx).UserID
			return out, nil
		})
	Register(f, Op{Method: "GET", Path: "/hello", ID: "hello", Tag: "me", Who: Public()},
		func(ctx context.Context, in *struct{}) (*thingOut, error) {
			out := &thingOut{}
			out.Body.ID = SourceFrom(ctx).String()
			return out, nil
		})
	return f, d
}

type sent struct {
	token, cookie, contentType, body string
	header                           map[string]string
}

func call1(t *testing.T, f *Frame, method, path string, s sent) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(method, "https://core.test"+path, strings.NewReader(s.body))
	r.RemoteAddr = "192.0.2.7:4711"
	if s.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if s.contentType != "" {
		r.Header.Set("Content-Type", s.contentType)
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	if s.cookie != "" {
		r.AddCookie(&http.Cookie{Name: "s", Value: s.cookie})
	}
	for k, v := range s.header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, r)
	res := w.Result()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestProblemsHaveOneShape(t *testing.T) {
	f, _ := testFrame(t, people)
	big := `{"name":"` + strings.Repeat("x", 2<<20) + `"}`
	for _, c := range []struct {
		name, method, path string
		s                  sent
		status             int
		code               string
		field              string
	}{
		{"unknown path", "GET", "/api/v1/nowhere", sent{}, 404, "no_such_path", ""},
		{"outside", "GET", "/", sent{}, 404, "no_such_path", ""},
		{"wrong method", "PATCH", "/api/v1/things", sent{token: "admin"}, 405, "method_not_allowed", ""},
		{"no login", "GET", "/api/v1/things", sent{}, 401, "unauthenticated", ""},
		{"bad token", "GET", "/api/v1/things", sent{token: "stale"}, 401, "unauthenticated", ""},
		{"bad token with a good cookie", "GET", "/api/v1/things", sent{token: "stale", cookie: "admin"}, 401, "unauthenticated", ""},
		{"no permission", "GET", "/api/v1/things", sent{token: "nothing"}, 403, "permission_missing", ""},
		{"viewing is not managing", "POST", "/api/v1/things", sent{token: "viewer", body: `{"name":"a"}`}, 403, "permission_missing", ""},
		{"malformed", "POST", "/api/v1/things", sent{token: "admin", body: `{"name":`}, 400, "malformed", ""},
		{"trailing", "POST", "/api/v1/things", sent{token: "admin", body: `{"name":"a"} {}`}, 400, "malformed", ""},
		{"empty body", "POST", "/api/v1/things", sent{token: "admin"}, 400, "malformed", ""},
		{"media type", "POST", "/api/v1/things", sent{token: "admin", body: `name=a`, contentType: "application/x-www-form-urlencoded"}, 415, "unsupported_media_type", ""},
		{"too large", "POST", "/api/v1/things", sent{token: "admin", body: big}, 413, "body_too_large", ""},
		{"unknown field", "POST", "/api/v1/things", sent{token: "admin", body: `{"name":"a","nmae":"b"}`}, 422, "invalid", "nmae"},
		{"missing field", "POST", "/api/v1/things", sent{token: "admin", body: `{}`}, 422, "invalid", ""},
		{"bad value", "POST", "/api/v1/things", sent{token: "admin", body: `{"name":"a","size":-1}`}, 422, "invalid", "size"},
		{"wrong type", "POST", "/api/v1/things", sent{token: "admin", body: `{"name":7}`}, 422, "invalid", "name"},
		{"bad limit", "GET", "/api/v1/things?limit=0", sent{token: "admin"}, 422, "invalid", "query.limit"},
		{"unknown query", "GET", "/api/v1/things?limt=3", sent{token: "admin"}, 422, "invalid", "query.limt"},
		{"bad cursor", "GET", "/api/v1/things?cursor=AAAA", sent{token: "admin"}, 422, "invalid", "query.cursor"},
		{"not found", "DELETE", "/api/v1/things/none", sent{token: "admin"}, 404, "not_found", ""},
		{"conflict", "DELETE", "/api/v1/things/dup", sent{token: "admin"}, 409, "conflict", ""},
		{"internal", "DELETE", "/api/v1/things/boom", sent{token: "admin"}, 500, "internal", ""},
		{"panic", "DELETE", "/api/v1/things/panic", sent{token: "admin"}, 500, "internal", ""},
		{"no If-Match", "DELETE", "/api/v1/things/x", sent{token: "admin"}, 428, "precondition_required", ""},
		{"old If-Match", "DELETE", "/api/v1/things/x", sent{token: "admin", header: map[string]string{"If-Match": `"3"`}}, 412, "precondition_failed", ""},
		{"odd accept", "DELETE", "/api/v1/things/none", sent{token: "admin", header: map[string]string{"Accept": "text/html"}}, 404, "not_found", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body := call1(t, f, c.method, c.path, c.s)
			var p Problem
			d := json.NewDecoder(strings.NewReader(body))
			d.DisallowUnknownFields()
			if err := d.Decode(&p); err != nil {
				t.Fatalf("answer %d %q is not a problem document: %v", res.StatusCode, body, err)
			}
			if res.StatusCode != c.status || p.Status != c.status || p.Code != c.code {
				t.Errorf("got %d %+v, want %d %s", res.StatusCode, p, c.status, c.code)
			}
			if got := res.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("content type %q", got)
			}
			if p.RequestID == "" || p.RequestID != res.Header.Get("X-Request-Id") {
				t.Errorf("request id %q, header %q", p.RequestID, res.Header.Get("X-Request-Id"))
			}
			if c.field != "" && (len(p.Fields) == 0 || p.Fields[0].Field != c.field) {
				t.Errorf("fields %+v, want %s", p.Fields, c.field)
			}
			if strings.Contains(body, "canary") || strings.Contains(body, "unexpected EOF") || strings.Contains(body, "ErrorModel") {
				t.Errorf("the answer shows the cause: %s", body)
			}
		})
	}
}
