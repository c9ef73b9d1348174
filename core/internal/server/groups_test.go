package server

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/config"
)

// estate is a core with two access groups, each with one of everything and an
// administrator who has every permission there. Whatever is in a group bears
// its name.
type estate struct {
	t    *testing.T
	s    *Server
	root string
	// admin is the token of a group's administrator, ids what is in it, by kind.
	admin map[string]string
	ids   map[string]map[string]string
}

func newEstate(t *testing.T, c Config) *estate {
	t.Helper()
	s, err := New(t.Context(), c, Deps{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.frame.Close()
		s.listen.close()
		s.db.Close()
	})
	_, password, err := s.users.BootstrapAdmin(t.Context(), "root", "")
	if err != nil {
		t.Fatal(err)
	}
	e := &estate{t: t, s: s, admin: map[string]string{}, ids: map[string]map[string]string{}}
	e.root = e.login("root", password)
	e.furnish("alpha", "one")
	e.furnish("beta", "two")
	return e
}

func (e *estate) send(token, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(e.t.Context(), method, "https://core.test"+api.Prefix+path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("If-Match", `"1"`)
	w := httptest.NewRecorder()
	e.s.frame.Handler().ServeHTTP(w, r)
	return w
}

// must makes something and returns its ID.
func (e *estate) must(token, method, path, body string) string {
	e.t.Helper()
	w := e.send(token, method, path, body)
	if w.Code >= 300 {
		e.t.Fatalf("%s %s %s: %d %s", method, path, body, w.Code, w.Body)
	}
	var made struct {
		ID string `json:"id"`
	}
	json.Unmarshal(w.Body.Bytes(), &made) // what answers nothing has no ID
	return made.ID
}

func (e *estate) login(name, password string) string {
	e.t.Helper()
	var out struct{ Token string }
	w := e.send("", "POST", "/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, password))
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Token == "" {
		e.t.Fatalf("login of %s: %d %s", name, w.Code, w.Body)
	}
	return out.Token
}

// furnish makes a group and one of everything in it. The administrator's own
// name tells nothing: people belong to no group.
func (e *estate) furnish(name, who string) {
	e.t.Helper()
	id := map[string]string{}
	e.ids[name] = id
	put := func(kind, method, path, body string) {
		e.t.Helper()
		id[kind] = e.must(e.root, method, path, body)
	}
	put("group", "POST", "/access-groups", `{"name":"`+name+`-group"}`)
	g := id["group"]
	put("site", "POST", "/sites", `{"name":"`+name+`-site","group":"`+g+`"}`)
	put("secret", "POST", "/secrets", `{"name":"`+name+`-secret","kind":"password","value":"x","group":"`+g+`"}`)
	put("target", "POST", "/targets", `{"name":"`+name+`-host","site":"`+name+`-site","host":"10.0.0.5","tags":["shared"],"accounts":[{"name":"`+name+`-root","auth":"password","secret":"`+id["secret"]+`"}]}`)
	put("role", "POST", "/roles", `{"name":"`+name+`-users","group":"`+g+`"}`)
	put("grant", "POST", "/grants", `{"role":"`+id["role"]+`","target":"`+id["target"]+`","accounts":["*"],"features":["shell"]}`)
	put("tag grant", "POST", "/grants", `{"role":"`+id["role"]+`","tag":"shared","accounts":["*"],"features":["shell"]}`)
	put("token", "POST", "/enrolment-tokens", `{"kind":"extender","site":"`+name+`-site","comment":"`+name+`"}`)
	var rights []string
	for _, p := range []api.Permission{api.UsersManage, api.TargetsManage, api.EdgesManage, api.ConnectionsManage, api.ConnectionsWatch,
		api.RecordingsView, api.AuditView, api.SecretsManage, api.GroupsManage} {
		rights = append(rights, string(p))
	}
	list, _ := json.Marshal(rights)
	put("admin role", "POST", "/roles", `{"name":"`+name+`-admins","group":"`+g+`","limited_to":["`+g+`"],"permissions":`+string(list)+`}`)
	const password = "a long enough password"
	user := e.must(e.root, "POST", "/users", `{"name":"admin-`+who+`","password":"`+password+`"}`)
	e.must(e.root, "PUT", "/roles/"+id["admin role"]+"/members/"+user, `{}`)
	e.admin[name] = e.login("admin-"+who, password)

	id["edge"], id["connection"], id["recording"] = "edg_"+name, "con_"+name, "rec_"+name
	now := time.Now().UnixMicro()
	err := e.s.db.Tx(e.t.Context(), func(tx *db.Tx) error {
		for _, q := range []struct {
			text string
			args []any
		}{
			{`insert into edges (id, kind, name, site, labels, rules, cordoned, revoked_at, token_id, key_hash, serial, cert_not_after, host, build, address, seen_at, last_error, created_at, version)
values ($1, 'extender', $2, $3, '{}', '{}', $4, 0, '', $5, '', $6, '', '', '', 0, '', 0, 1)`,
				[]any{id["edge"], name + "-edge", name + "-site", false, []byte(name), now + int64(time.Hour/time.Microsecond)}},
			{`insert into connections (id, kind, state, user_id, user_name, user_roles, user_agent, auth_methods, mfa, session_id, via,
remote_addr, target_id, target_name, target_address, site, account, reason, role_id, grant_id, features, recorded, core_id, requested_at, last_activity_at, group_id, lockable)
values ($1, 'ssh', 'connected', 'usr_somebody', 'somebody', $2, '', '[]', $3, '', '', '', $4, $5, '', $6, '', '', '', '', 0, $7, $8, $9, $9, $10, $7)`,
				[]any{id["connection"], `["` + name + `-users"]`, false, id["target"], name + "-host", name + "-site", true, e.s.id, now, g}},
			{`insert into recordings (id, connection_id, core_id, status, kind, user_id, user_name, target_id, target_name, account, title, width, height, sealed_key, started_at, expires_at, group_id)
values ($1, $2, 'core_x', 'complete', 'ssh', 'usr_somebody', 'somebody', $3, $4, '', '', 80, 24, '', $5, $6, $7)`,
				[]any{id["recording"], id["connection"], id["target"], name + "-host", now, now + int64(24*time.Hour/time.Microsecond), g}},
		} {
			if _, err := tx.ExecContext(e.t.Context(), q.text, q.args...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		e.t.Fatal(err)
	}
	var accounts struct{ Items []struct{ ID string } }
	json.Unmarshal(e.send(e.root, "GET", "/targets/"+id["target"]+"/accounts", "").Body.Bytes(), &accounts)
	id["account"] = accounts.Items[0].ID
	var ca struct{ Keys []struct{ ID string } }
	json.Unmarshal(e.send(e.root, "GET", "/access-groups/"+g+"/ssh-ca", "").Body.Bytes(), &ca)
	id["key"] = ca.Keys[0].ID
}

// tables are those that hold what groups partition.
var tables = []string{"access_groups", "access_group_anchors", "sites", "targets", "target_accounts", "target_host_keys", "target_tags", "grants", "roles",
	"memberships", "vault_secrets", "vault_values", "edges", "edge_tokens", "connections", "connection_tags", "recordings", "recording_roles", "sshca_keys"}

// rows are all rows that tell of a group.
func (e *estate) rows(name string) []string {
	e.t.Helper()
	var out []string
	for _, table := range tables {
		rows, err := e.s.db.QueryContext(e.t.Context(), `select * from `+table)
		if err != nil {
			e.t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			e.t.Fatal(err)
		}
		for rows.Next() {
			values, at := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				at[i] = &values[i]
			}
			if err := rows.Scan(at...); err != nil {
				e.t.Fatal(err)
			}
			if text := fmt.Sprintf("%s %q", table, values); e.tells(text, name, "") {
				out = append(out, text)
			}
		}
		if err := rows.Close(); err != nil {
			e.t.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}

// tells reports whether a text has anything of a group in it, besides what was
// asked for. Names are looked for as whole words: IDs are drawn at random, and
// any four letters come up inside one some day.
func (e *estate) tells(text, name, asked string) bool {
	if asked != "" {
		text = strings.ReplaceAll(text, asked, "")
	}
	return regexp.MustCompile(`\b`+name+`\b`).MatchString(text) || slices.ContainsFunc(e.all(name), func(id string) bool { return strings.Contains(text, id) })
}

func (e *estate) all(name string) []string {
	var out []string
	for _, id := range e.ids[name] {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// TestGroupAdminsAreBlind lets the administrator of one group call every
// operation there is with everything of the other's: he reads nothing of it
// and changes nothing of it.
func TestGroupAdminsAreBlind(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { blind(t, testConfig(t)) })
	t.Run("postgres", func(t *testing.T) {
		c := testConfig(t)
		c.Database.Engine, c.Database.URL = "postgres", config.Secret(dbtest.PostgresURL(t))
		if _, err := Migrate(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		blind(t, c)
	})
}

func blind(t *testing.T, c Config) {
	e := newEstate(t, c)
	mine, theirs, token := e.ids["alpha"], e.ids["beta"], e.admin["alpha"]
	before := e.rows("beta")
	if len(before) < 15 {
		t.Fatalf("only %d rows of the other group", len(before))
	}
	asked := append(e.all("beta"), "beta-host", "beta-site", "beta-edge", "beta-users")
	for _, op := range e.s.frame.Operations() {
		if endless[op.ID] || op.Who == api.Public() {
			continue
		}
		ids := []string{""}
		if parameter.MatchString(op.Path) {
			ids = asked
		}
		for _, id := range ids {
			path := parameter.ReplaceAllString(op.Path, id)
			for _, body := range []string{"", "{}"} {
				if op.Method == "GET" && body != "" {
					continue
				}
				w := e.send(token, op.Method, path, body)
				if w.Code < 300 && id != "" && op.ID != "list-memberships" { // of nobody: an empty list
					t.Errorf("%s %s answers %d: %s", op.Method, path, w.Code, w.Body)
				}
				if e.tells(w.Body.String(), "beta", id) {
					t.Errorf("%s %s tells of the other group: %d %s", op.Method, path, w.Code, w.Body)
				}
			}
		}
	}
	g, b := mine["group"], theirs["group"]
	for _, c := range []struct{ method, path, body string }{
		// Reading with filters and other ways of asking.
		{"GET", "/targets?group=" + b, ""}, {"GET", "/targets?search=beta", ""}, {"GET", "/roles?group=" + b, ""}, {"GET", "/secrets?group=" + b, ""},
		{"GET", "/grants?role=" + theirs["role"], ""}, {"GET", "/connections?q=beta", ""}, {"GET", "/connections?target=" + theirs["target"], ""},
		{"GET", "/recordings?target=beta-host", ""}, {"GET", "/recordings/search?q=a", ""}, {"GET", "/audit-events?object=" + theirs["target"], ""},
		{"GET", "/audit-events/export", ""}, {"GET", "/edges?site=beta-site", ""}, {"GET", "/targets/beta-host/explain", ""},
		{"GET", "/targets/beta-host/explain?user=root", ""}, {"GET", "/overview", ""}, {"GET", "/me/targets?search=beta", ""},
		{"GET", "/users/me/memberships", ""}, {"GET", "/users", ""},
		// Changing what is his.
		{"PUT", "/targets/" + theirs["target"], `{"name":"beta-host","site":"beta-site","host":"10.0.0.6","group":"` + g + `"}`},
		{"PUT", "/sites/beta-site", `{"comment":"mine","group":"` + g + `"}`}, {"DELETE", "/sites/beta-site", ""},
		{"PUT", "/roles/" + theirs["role"], `{"name":"beta-users","comment":"mine","group":"` + g + `"}`},
		{"PUT", "/roles/" + theirs["role"] + "/members/me", `{}`},
		{"PATCH", "/secrets/" + theirs["secret"], `{"group":"` + g + `"}`}, {"PUT", "/secrets/" + theirs["secret"] + "/value", `{"value":"y"}`},
		{"POST", "/secrets/" + theirs["secret"] + "/reveal", `{}`},
		{"PUT", "/targets/" + theirs["target"] + "/accounts/" + theirs["account"], `{"name":"root"}`},
		{"POST", "/targets/" + theirs["target"] + "/accounts", `{"name":"mine"}`},
		{"PUT", "/grants/" + theirs["grant"], `{"role":"` + mine["role"] + `","target":"` + mine["target"] + `","accounts":["*"],"features":["shell"]}`},
		{"PATCH", "/edges/" + theirs["edge"], `{"site":"alpha-site"}`}, {"DELETE", "/edges/" + theirs["edge"], ""}, {"DELETE", "/enrolment-tokens/" + theirs["token"], ""},
		{"POST", "/connections/terminate", `{"target_id":"` + theirs["target"] + `"}`}, {"POST", "/connections/terminate", `{"user_id":"usr_somebody"}`},
		{"DELETE", "/connections/" + theirs["connection"], ""}, {"PUT", "/connections/" + theirs["connection"] + "/tags", `{"tags":["mine"]}`},
		{"PUT", "/recordings/" + theirs["recording"] + "/roles/" + mine["role"], ""},
		{"POST", "/access-groups/" + b + "/ssh-ca/keys", ""}, {"POST", "/access-groups/" + b + "/ssh-ca/keys/" + theirs["key"] + "/revoke", ""},
		{"POST", "/access-groups/" + g + "/ssh-ca/keys/" + theirs["key"] + "/revoke", ""}, {"PUT", "/access-groups/" + b, `{"name":"mine"}`},
		// Touching what is his from one's own side.
		{"POST", "/targets", `{"name":"spy","site":"beta-site","host":"10.0.0.5"}`}, {"POST", "/targets", `{"name":"spy","site":"beta-site","host":"10.0.0.5","group":"` + g + `"}`},
		{"POST", "/targets", `{"name":"spy","site":"alpha-site","host":"10.0.0.5","group":"` + b + `"}`}, {"POST", "/sites", `{"name":"spy","group":"` + b + `"}`},
		{"POST", "/targets", `{"name":"spy","site":"alpha-site","host":"h","accounts":[{"name":"a","auth":"password","secret":"` + theirs["secret"] + `"}]}`},
		{"PUT", "/targets/" + mine["target"], `{"name":"alpha-host","site":"beta-site","host":"10.0.0.5"}`},
		{"PUT", "/targets/" + mine["target"], `{"name":"alpha-host","site":"alpha-site","host":"10.0.0.5","group":"` + b + `"}`},
		{"PUT", "/targets/" + mine["target"] + "/accounts/" + mine["account"], `{"name":"alpha-root","auth":"password","secret":"` + theirs["secret"] + `"}`},
		{"POST", "/targets/import?create_sites=true", "name,site,host\nspy,beta-site,10.0.0.5\n"},
		{"POST", "/targets/import?existing=update", "name,site,host\nbeta-host,alpha-site,10.0.0.9\n"},
		{"POST", "/grants", `{"role":"` + mine["role"] + `","target":"` + theirs["target"] + `","accounts":["*"],"features":["shell"]}`},
		{"POST", "/grants", `{"role":"` + theirs["role"] + `","target":"` + mine["target"] + `","accounts":["*"],"features":["shell"]}`},
		{"POST", "/grants", `{"role":"` + theirs["role"] + `","tag":"shared","accounts":["*"],"features":["shell"]}`},
		{"POST", "/roles", `{"name":"spies","group":"` + b + `"}`}, {"POST", "/roles", `{"name":"spies","limited_to":["` + b + `"],"permissions":["targets:view"]}`},
		{"POST", "/roles", `{"name":"spies","limited_to":["` + g + `","` + b + `"],"permissions":["targets:view"]}`},
		{"PATCH", "/secrets/" + mine["secret"], `{"read_roles":["` + theirs["role"] + `"]}`}, {"PATCH", "/secrets/" + mine["secret"], `{"group":"` + b + `"}`},
		{"POST", "/secrets", `{"name":"spy","kind":"password","value":"x","read_roles":["` + theirs["role"] + `"]}`},
		{"PUT", "/recordings/" + mine["recording"] + "/roles/" + theirs["role"], ""},
		{"POST", "/enrolment-tokens", `{"kind":"extender","site":"beta-site"}`}, {"PATCH", "/edges/" + mine["edge"], `{"site":"beta-site"}`},
	} {
		w := e.send2(token, c.method, c.path, c.body)
		if c.method != "GET" && w.Code < 300 && !strings.HasSuffix(c.path, "/terminate") {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, w.Code, w.Body)
		}
		if e.tells(w.Body.String(), "beta", "") && !strings.Contains(c.path+c.body, "beta") && !slices.ContainsFunc(e.all("beta"), func(id string) bool { return strings.Contains(c.path+c.body, id) }) {
			t.Errorf("%s %s tells of the other group: %s", c.method, c.path, w.Body)
		}
		if c.method == "GET" && w.Code < 300 && e.tells(w.Body.String(), "beta", "") {
			t.Errorf("%s %s tells of the other group: %s", c.method, c.path, w.Body)
		}
	}
	if d := cmp.Diff(before, e.rows("beta")); d != "" {
		t.Errorf("the other group was changed (-before +after):\n%s", d)
	}
}

// send2 is send for bodies that are not JSON too.
func (e *estate) send2(token, method, path, body string) *httptest.ResponseRecorder {
	if !strings.HasPrefix(path, "/targets/import") {
		return e.send(token, method, path, body)
	}
	r := httptest.NewRequestWithContext(e.t.Context(), method, "https://core.test"+api.Prefix+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "text/csv")
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	e.s.frame.Handler().ServeHTTP(w, r)
	return w
}

// TestGroupAdminsDoNotGrow lets an administrator of a group try to become more.
func TestGroupAdminsDoNotGrow(t *testing.T) {
	e := newEstate(t, testConfig(t))
	mine, token := e.ids["alpha"], e.admin["alpha"]
	g := mine["group"]
	web := func(policy, more string) string {
		return `{"name":"page","kind":"web","site":"alpha-site","web":{"start_url":"https://app.test/","policy":` + policy + more + `}}`
	}
	for _, c := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"a role that holds everywhere", "POST", "/roles", `{"name":"more","permissions":["targets:view"]}`, 403},
		{"a permission nobody gave him", "POST", "/roles", `{"name":"more","limited_to":["` + g + `"],"permissions":["settings:manage"]}`, 403},
		{"settings in a group, by anybody", "POST", "/roles", `{"name":"more","limited_to":["` + g + `"],"permissions":["settings:view"]}`, 403},
		{"his own role, everywhere", "PUT", "/roles/" + mine["admin role"], `{"name":"alpha-admins","permissions":["targets:manage"],"limited_to":[]}`, 403},
		{"his own role, in the default group", "PUT", "/roles/" + mine["admin role"], `{"name":"alpha-admins","permissions":["targets:manage"],"limited_to":["` + g + `","default"]}`, 403},
		{"membership among administrators", "PUT", "/roles/rol_administrator/members/me", `{}`, 404},
		{"an account like his", "POST", "/users", `{"name":"twin","password":"a long enough password"}`, 403},
		{"another's password", "PUT", "/users/me/password", `{}`, 422},
		{"an API client", "POST", "/api-clients", `{"name":"robot","roles":["` + mine["admin role"] + `"]}`, 403},
		{"a group", "POST", "/access-groups", `{"name":"mine"}`, 403},
		{"his group's end", "DELETE", "/access-groups/" + g, "", 403},
		{"core's network", "POST", "/targets", `{"name":"direct","host":"127.0.0.1"}`, 422},
		{"core's network by moving", "PUT", "/targets/" + mine["target"], `{"name":"alpha-host","host":"127.0.0.1"}`, 422},
		{"another group's network by a rule", "POST", "/targets", web(`{"allow":[{"host":"x.test","site":"beta-site"}]}`, ""), 422},
		{"the webproxies' network by a rule", "POST", "/targets", web(`{"allow":[{"host":"x.test","site":"-"}]}`, ""), 422},
		{"the carriers' network by a scanner", "POST", "/targets", web(`{}`, `,"scan_url":"icap://10.0.0.9:1344/scan"`), 422},
		{"the installation's authority", "POST", "/ssh-ca/keys", `{"purpose":"target"}`, 403},
		{"a user's other connections", "POST", "/connections/" + mine["connection"] + "/lock", `{"block_new":"user"}`, 403},
		{"settings", "GET", "/settings", "", 403},
		{"the whole audit log", "GET", "/audit-events/verify", "", 403},
		{"single sign-on", "GET", "/sso-providers", "", 403},

		{"his own role by who does not know of groups", "PUT", "/roles/" + mine["role"], `{"name":"alpha-users","comment":"x"}`, 200},
		{"a role of his", "POST", "/roles", `{"name":"more-users"}`, 201},
		{"a permission of his, where he has it", "POST", "/roles", `{"name":"helpers","limited_to":["` + g + `"],"permissions":["targets:view"]}`, 201},
		{"a target of his", "POST", "/targets", `{"name":"more","site":"alpha-site","host":"10.0.0.7"}`, 201},
		{"a web target of his", "POST", "/targets", web(`{"allow":[{"host":"x.test","site":"alpha-site"},{"host":"y.test"}]}`, ""), 201},
		{"a site of his", "POST", "/sites", `{"name":"alpha-more"}`, 201},
		{"a target's comment", "PUT", "/targets/" + mine["target"], `{"name":"alpha-host","site":"alpha-site","host":"10.0.0.5","comment":"new"}`, 200},
		{"a token of his", "POST", "/enrolment-tokens", `{"kind":"extender","site":"alpha-site"}`, 201},
		{"his authority's next key", "POST", "/access-groups/" + g + "/ssh-ca/keys", "", 201},
		{"a lock", "POST", "/connections/" + mine["connection"] + "/lock", `{"block_new":"target"}`, 200},
		{"a recording of his", "GET", "/recordings/" + mine["recording"], "", 200},
		{"sharing it with a role of his", "PUT", "/recordings/" + mine["recording"] + "/roles/" + mine["role"], "", 204},
	} {
		if w := e.send(token, c.method, c.path, c.body); w.Code != c.want {
			t.Errorf("%s: %s %s %s: %d, want %d: %s", c.name, c.method, c.path, c.body, w.Code, c.want, w.Body)
		}
	}
	var me struct {
		Permissions []string
		Scoped      map[string][]string
	}
	w := e.send(token, "GET", "/me", "")
	if err := json.Unmarshal(w.Body.Bytes(), &me); err != nil || len(me.Permissions) != 0 || len(me.Scoped) != 9 || me.Scoped["targets:manage"][0] != g {
		t.Errorf("me: %s (%v)", w.Body, err)
	}
	// An API token is as narrow as its owner.
	var made struct{ Token string }
	w = e.send(token, "POST", "/tokens", `{"name":"ci"}`)
	if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil || made.Token == "" {
		t.Fatalf("token: %d %s", w.Code, w.Body)
	}
	if w := e.send(made.Token, "GET", "/targets/"+e.ids["beta"]["target"], ""); w.Code != http.StatusNotFound {
		t.Errorf("by API token: %d %s", w.Code, w.Body)
	}
	if w := e.send(made.Token, "GET", "/targets/"+mine["target"], ""); w.Code != http.StatusOK {
		t.Errorf("his own by API token: %d %s", w.Code, w.Body)
	}
}

// TestGroupsOfAdministratorsOfAll: a group is removed only when nothing is in
// it, and moving things moves who sees them.
func TestGroupsOfAdministratorsOfAll(t *testing.T) {
	e := newEstate(t, testConfig(t))
	a, b := e.ids["alpha"], e.ids["beta"]
	if w := e.send(e.root, "DELETE", "/access-groups/"+b["group"], ""); w.Code != http.StatusConflict {
		t.Errorf("a group in use was removed: %d %s", w.Code, w.Body)
	}
	if w := e.send(e.root, "DELETE", "/access-groups/default", ""); w.Code != http.StatusConflict {
		t.Errorf("the default group was removed: %d %s", w.Code, w.Body)
	}
	e.must(e.root, "PUT", "/targets/"+a["target"], `{"name":"moved","site":"alpha-site","host":"10.0.0.5","group":"`+b["group"]+`"}`)
	if w := e.send(e.admin["alpha"], "GET", "/targets/"+a["target"], ""); w.Code != http.StatusNotFound {
		t.Errorf("its former administrator still sees a moved target: %d", w.Code)
	}
	if w := e.send(e.admin["beta"], "GET", "/targets/"+a["target"], ""); w.Code != http.StatusOK {
		t.Errorf("its new administrator does not see a moved target: %d", w.Code)
	}
	// He may not send the secret that came with it elsewhere.
	if w := e.send(e.admin["beta"], "PUT", "/targets/"+a["target"], `{"name":"moved","site":"beta-site","host":"10.0.0.66"}`); w.Code < 300 {
		t.Errorf("another's secret was sent elsewhere: %d %s", w.Code, w.Body)
	}
	id := e.must(e.root, "POST", "/access-groups", `{"name":"empty"}`)
	e.must(e.root, "DELETE", "/access-groups/"+id, "")
	if w := e.send(e.root, "GET", "/ssh-ca/public-keys/target?group="+id, ""); w.Code != http.StatusNotFound {
		t.Errorf("keys of a removed group: %d %s", w.Code, w.Body)
	}
}
