package target

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/db/dbtest"
)

// callers authenticates a bearer token that is a caller's name.
type callers map[string]*api.Principal

func (c callers) Authenticate(r *http.Request, _ netip.Addr) (*api.Principal, error) {
	return c[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")], nil
}

// client speaks to the room's routes on a real frame.
type client struct {
	t   *testing.T
	url string
	who string
}

type reply struct {
	status int
	etag   string
	body   string
}

func newClient(t *testing.T, r *room) *client {
	t.Helper()
	may := func(ps ...api.Permission) map[api.Permission]bool {
		m := map[api.Permission]bool{}
		for _, p := range ps {
			m[p] = true
		}
		return m
	}
	f, err := api.New(api.Config{DB: r.db, Log: slog.New(slog.DiscardHandler), Auth: callers{
		"admin":  {UserID: "usr_admin", UserName: "admin", Via: "api", Permissions: may(api.TargetsManage, api.SecretsManage)},
		"viewer": {UserID: "usr_view", UserName: "viewer", Via: "api", Permissions: may(api.TargetsView)},
		"user":   {UserID: "usr_user", UserName: "user", Via: "api"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.Routes(f)
	srv := httptest.NewServer(f.Handler())
	t.Cleanup(func() { f.Close(); srv.Close() })
	return &client{t: t, url: srv.URL + "/api/v1", who: "admin"}
}

func (c *client) as(who string) *client { return &client{t: c.t, url: c.url, who: who} }

// do sends a request; header lines are "Name: value".
func (c *client) do(method, path, body string, header ...string) reply {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.who)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return reply{status: res.StatusCode, etag: res.Header.Get("ETag"), body: string(b)}
}

// want fails unless the answer has the status; it returns the field of the JSON body.
func (r reply) want(t *testing.T, status int) map[string]any {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	var m map[string]any
	if r.body != "" {
		if err := json.Unmarshal([]byte(r.body), &m); err != nil {
			t.Fatalf("body %q: %v", r.body, err)
		}
	}
	return m
}

func TestRoutes(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	c := newClient(t, r)
	c.do("POST", "/sites", `{"name":"vpc-a","comment":"first"}`).want(t, 201)
	c.do("POST", "/sites", `{"name":"vpc-a"}`).want(t, 409)
	c.do("POST", "/sites", `{"name":"vpc-a","colour":"red"}`).want(t, 422)

	made := c.do("POST", "/targets", `{"name":"db-1","site":"vpc-a","host":"10.0.0.5","tags":["env=prod"],
		"accounts":[{"name":"root"},{"name":"svc","auth":"password","secret":"sec_pw","features":["exec"]}]}`)
	id := made.want(t, 201)["id"].(string)
	if made.etag != `"1"` {
		t.Errorf("etag %s", made.etag)
	}
	bad := c.do("POST", "/targets", `{"name":"DB","host":"a b","port":22,"accounts":[{"name":"x y"}]}`).want(t, 422)
	var fields []string
	for _, e := range bad["errors"].([]any) {
		fields = append(fields, e.(map[string]any)["field"].(string))
	}
	if !slices.Equal(fields, []string{"name", "host", "accounts[0].name"}) {
		t.Errorf("fields at fault: %v", fields)
	}

	// By ID and by name, with permission.
	for _, ref := range []string{id, "db-1"} {
		got := c.as("viewer").do("GET", "/targets/"+ref, "").want(t, 200)
		if got["address"] != "vpc-a/10.0.0.5:22" {
			t.Errorf("GET %s: %v", ref, got)
		}
	}
	c.do("GET", "/targets/none", "").want(t, 404)
	for _, path := range []string{"/sites", "/targets", "/targets/db-1", "/targets/db-1/accounts", "/targets/db-1/host-keys", "/grants"} {
		c.as("user").do("GET", path, "").want(t, 403)
		c.as("nobody").do("GET", path, "").want(t, 401)
	}
	for _, path := range []string{"/sites", "/targets", "/targets/import", "/targets/db-1/accounts", "/targets/db-1/host-keys", "/targets/db-1/host-keys/accept", "/grants"} {
		c.as("viewer").do("POST", path, "{}").want(t, 403)
	}

	// Writes need the version that was read.
	body := `{"name":"db-1","site":"vpc-a","host":"10.0.0.6","tags":["env=test"],"host_key_policy":"pinned"}`
	c.do("PUT", "/targets/db-1", body).want(t, 428)
	c.do("PUT", "/targets/db-1", body, `If-Match: "7"`).want(t, 412)
	changed := c.do("PUT", "/targets/db-1", body, "If-Match: "+made.etag)
	if got := changed.want(t, 200); got["host"] != "10.0.0.6" || changed.etag != `"2"` {
		t.Errorf("after PUT: %v, etag %s", got, changed.etag)
	}
	c.do("DELETE", "/sites/vpc-a", "", `If-Match: "1"`).want(t, 409)

	accounts := c.do("GET", "/targets/db-1/accounts", "").want(t, 200)["items"].([]any)
	if len(accounts) != 2 || accounts[1].(map[string]any)["secret"] != "sec_pw" {
		t.Fatalf("accounts: %v", accounts)
	}
	acc := accounts[1].(map[string]any)["id"].(string)
	one := c.do("GET", "/targets/db-1/accounts/"+acc, "")
	one.want(t, 200)
	c.do("PUT", "/targets/db-1/accounts/"+acc, `{"name":"svc","auth":"ask","features":["all"]}`, "If-Match: "+one.etag).want(t, 200)
	c.do("POST", "/targets/db-1/accounts", `{"name":"svc"}`).want(t, 409)
	c.do("POST", "/targets/db-1/accounts", `{"name":"key","auth":"key","secret":"sec_none"}`).want(t, 422)
	c.do("DELETE", "/targets/db-1/accounts/"+acc, "", `If-Match: "2"`).want(t, 204)

	key := newKey(t)
	line, _ := json.Marshal(map[string]string{"key": string(ssh.MarshalAuthorizedKey(key))})
	added := c.do("POST", "/targets/db-1/host-keys", string(line)).want(t, 201)
	if added["state"] != "accepted" || added["decided_by"] != "admin" {
		t.Errorf("added key: %v", added)
	}
	fp, _ := json.Marshal(map[string]string{"fingerprint": ssh.FingerprintSHA256(key)})
	if got := c.do("POST", "/targets/db-1/host-keys/reject", string(fp)).want(t, 200); got["state"] != "rejected" {
		t.Errorf("rejected key: %v", got)
	}
	c.do("POST", "/targets/db-1/host-keys/accept", string(fp)).want(t, 200)
	c.do("POST", "/targets/db-1/host-keys/accept", `{"fingerprint":"SHA256:x"}`).want(t, 404)
	c.do("DELETE", "/targets/db-1/host-keys", "").want(t, 204)

	c.do("DELETE", "/targets/db-1", "", `If-Match: "2"`).want(t, 204)
	c.do("GET", "/targets/db-1", "").want(t, 404)
	c.do("DELETE", "/sites/vpc-a", "", `If-Match: "1"`).want(t, 204)
}

func TestRoutesPages(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	c := newClient(t, r)
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		r.target(t, Target{Name: n, Kind: SSH, Host: "h"})
	}
	var names []string
	cursor := ""
	for range 10 {
		page := c.do("GET", "/targets?limit=2&cursor="+cursor, "").want(t, 200)
		for _, it := range page["items"].([]any) {
			names = append(names, it.(map[string]any)["name"].(string))
		}
		next, more := page["next"].(string)
		if !more {
			break
		}
		cursor = next
	}
	if !slices.Equal(names, []string{"a", "b", "c", "d", "e"}) {
		t.Errorf("pages: %v", names)
	}
	c.do("GET", "/targets?cursor=nonsense", "").want(t, 422)
	c.do("GET", "/targets?limit=0", "").want(t, 422)
	c.do("GET", "/targets?sort=x", "").want(t, 422)
	if items := c.do("GET", "/targets?kind=tcp", "").want(t, 200)["items"].([]any); len(items) != 0 {
		t.Errorf("tcp targets: %v", items)
	}
}

func TestRoutesImport(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	c := newClient(t, r)
	csv := "name,host,site\na,10.0.0.5,x\nb,300.0.0.1,x\n"
	bad := c.do("POST", "/targets/import", csv, "Content-Type: text/csv").want(t, 422)
	if n := len(bad["errors"].([]any)); n != 3 {
		t.Errorf("%d problems: %v", n, bad)
	}
	csv = "name,host,site\na,10.0.0.5,x\nb,10.0.0.6,x\n"
	got := c.do("POST", "/targets/import?create_sites=true&dry_run=true", csv, "Content-Type: text/csv").want(t, 200)
	if got["created"] != 2.0 || got["dry_run"] != true {
		t.Errorf("dry run: %v", got)
	}
	c.do("POST", "/targets/import?create_sites=true", csv, "Content-Type: text/csv").want(t, 200)
	got = c.do("POST", "/targets/import?existing=skip", `{"name":"a","host":"h"}`, "Content-Type: application/x-ndjson").want(t, 200)
	if got["skipped"] != 1.0 {
		t.Errorf("skip: %v", got)
	}
	c.do("POST", "/targets/import", csv, "Content-Type: application/pdf").want(t, 415)
}

func TestGrantRoutes(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	c := newClient(t, r)
	tg := r.target(t, Target{Name: "db-1", Kind: SSH, Host: "h", Tags: []string{"env=prod"}})
	for _, bad := range []struct{ body, field string }{
		{`{"role":"rol_ops","features":["shell"]}`, "target"},
		{`{"role":"rol_ops","features":["shell"],"target":"db-1","tag":"x"}`, "target"},
		{`{"role":"rol_none","features":["shell"],"target":"db-1"}`, "role"},
		{`{"role":"rol_ops","features":["shell"],"target":"none"}`, "target"},
		{`{"role":"rol_ops","features":[],"target":"db-1"}`, "features"},
		{`{"role":"rol_ops","features":["fly"],"target":"db-1"}`, "features"},
		{`{"role":"rol_ops","features":["web"],"target":"db-1"}`, "features"},
		{`{"role":"rol_ops","features":["shell"],"target":"db-1","accounts":["a b"]}`, "accounts[0]"},
		{`{"role":"rol_ops","features":["shell"],"target":"db-1","sources":["10.0.0.0/33"]}`, "sources[0]"},
		{`{"role":"rol_ops","features":["shell"],"target":"db-1","window":{"from":"25:00"}}`, "window.from"},
		{`{"role":"rol_ops","features":["shell"],"target":"db-1","window":{"days":["someday"]}}`, "window.days[0]"},
		{`{"role":"rol_ops","features":["shell"],"target":"db-1","window":{"from":"08:00","to":"08:00"}}`, "window"},
		{`{"role":"rol_ops","features":["shell"],"target":"db-1","window":{"zone":"Mars/Olympus"}}`, "window"},
	} {
		got := c.do("POST", "/grants", bad.body)
		m := got.want(t, 422)
		if first := m["errors"].([]any)[0].(map[string]any)["field"]; first != bad.field {
			t.Errorf("%s: at fault %v, want %s", bad.body, first, bad.field)
		}
	}
	made := c.do("POST", "/grants", `{"role":"rol_ops","target":"db-1","accounts":["root"],"features":["shell","exec"],
		"window":{"days":["mon","fri"],"from":"08:30","to":"17:00","zone":"Europe/Berlin"},"sources":["192.0.2.9/24","2001:db8::1"],
		"require_mfa":true,"max_duration_seconds":3600,"idle_seconds":60,"comment":"office hours"}`)
	g := made.want(t, 201)
	id := g["id"].(string)
	again := c.do("GET", "/grants/"+id, "")
	if again.body != made.body || again.etag != made.etag {
		t.Errorf("read back\n%s\nmade\n%s", again.body, made.body)
	}
	for _, want := range []string{`"from":"08:30"`, `"days":["mon","fri"]`, `"sources":["192.0.2.0/24","2001:db8::1/128"]`, `"max_duration_seconds":3600`, `"target":"` + tg.ID + `"`} {
		if !strings.Contains(made.body, want) {
			t.Errorf("%s is not in %s", want, made.body)
		}
	}
	c.do("POST", "/grants", `{"role":"rol_ops","tag":"env=prod","accounts":["*"],"features":["all"]}`).want(t, 201)
	gs, err := r.Grants(t.Context(), r.db, tg)
	if err != nil || len(gs) != 2 {
		t.Errorf("grants of the target: %+v, %v", gs, err)
	}
	for query, n := range map[string]int{"": 2, "?role=rol_ops": 2, "?target=" + tg.ID: 1, "?tag=env%3Dprod": 1, "?role=x": 0} {
		if items := c.do("GET", "/grants"+query, "").want(t, 200)["items"].([]any); len(items) != n {
			t.Errorf("GET /grants%s: %d, want %d", query, len(items), n)
		}
	}
	c.do("PUT", "/grants/"+id, `{"role":"rol_ops","target":"db-1","features":["shell"],"disabled":true}`, "If-Match: "+made.etag).want(t, 200)
	c.do("PUT", "/grants/"+id, `{"role":"rol_ops","target":"db-1","features":["shell"]}`, "If-Match: "+made.etag).want(t, 412)
	c.do("DELETE", "/grants/"+id, "", `If-Match: "2"`).want(t, 204)
	if got := r.events(t, id); got != "grant.created grant.changed grant.deleted" {
		t.Errorf("audit: %s", got)
	}
}
