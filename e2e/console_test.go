package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// needConsole skips where no browser or no Node is; the console is built
// before the binaries are.
func needConsole(t *testing.T) {
	t.Helper()
	needRig(t)
	consoleOnce.Do(func() {
		for _, tool := range []string{"node", "chromium"} {
			if _, consoleErr = exec.LookPath(tool); consoleErr != nil {
				return
			}
		}
		if out, err := exec.Command("sh", "../deploy/dev/console.sh").CombinedOutput(); err != nil {
			consoleErr = fmt.Errorf("build the console: %w: %s", err, out)
			return
		}
		if _, err := os.Stat("../core/internal/webui/dist/index.html"); err != nil {
			consoleErr = fmt.Errorf("the console is not built: %w", err)
		}
	})
	if consoleErr != nil {
		harness.Lacks(t, "no console: %v", consoleErr)
	}
}

var (
	consoleOnce sync.Once
	consoleErr  error
)

type login struct {
	Name     string `json:"name"`
	Password string `json:"password"`
}

// browse runs a script of e2e/console on the user's machine. It gets cfg and
// the address of core on standard input.
func (w *world) browse(t *testing.T, script string, limit time.Duration, cfg map[string]any) string {
	t.Helper()
	all := map[string]any{"url": w.core.Ready.URL, "admin": login{"admin", w.core.Password}, "user": login{"demo", w.demo}}
	maps.Copy(all, cfg)
	in, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs(filepath.Join("console", script))
	if err != nil {
		t.Fatal(err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.net.Settled(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	cmd := w.net.Command(t.Context(), "user", node, path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8"}
	cmd.Stdin = bytes.NewReader(in)
	p, err := harness.Start(strings.TrimSuffix(script, ".mjs"), t.TempDir(), cmd, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	code, err := p.WaitExit(limit)
	if err != nil || code != 0 {
		t.Fatalf("%s: exit %d, %v:\n%s", script, code, err, p.Output())
	}
	return p.Output()
}

// furnish fills core with what a small company has, so that pages have
// something to show: sites, targets, people, roles, sessions past and live.
func (w *world) furnish(t *testing.T) {
	t.Helper()
	admin := w.core.Admin
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{"frankfurt", "virginia", "plant-7"} {
		must(admin.Site(t.Context(), s))
	}
	var csv strings.Builder
	csv.WriteString("name,kind,site,host,port,tags,accounts,comment\n")
	for i, what := range []string{"billing", "orders", "search", "mail", "wiki", "build"} {
		for n := 1; n <= 4; n++ {
			site := []string{"vpc-a", "frankfurt", "virginia"}[(i+n)%3]
			fmt.Fprintf(&csv, "%s-%02d,ssh,%s,10.%d.0.%d,22,linux;%s,deploy;root,%s server %d\n", what, n, site, 20+i, n, what, strings.ToUpper(what[:1])+what[1:], n)
		}
	}
	csv.WriteString("orders-db,tcp,vpc-a,10.21.0.50,5432,database,,PostgreSQL of orders\nplc-gateway,tcp,plant-7,192.168.7.20,502,plant,,Modbus gateway of line 7\n")
	must(importCSV(t, admin, csv.String()))
	for _, tag := range []string{"linux", "database", "plant"} {
		must(admin.Do(t.Context(), http.MethodPost, "/grants", harness.Grant{Role: w.role, Tag: tag, Accounts: []string{"*"}, Features: []string{"all"}}, nil))
	}
	w.webTargets(t)
	for _, name := range []string{"anna.berg", "ben.okafor", "chloe.martin", "dmitri.ivanov", "elena.rossi"} {
		_, _, err := admin.User(t.Context(), name, "correct horse battery staple")
		must(err)
	}
	w.mustSSH(t, dbA, "uptime")
	w.mustSSH(t, "demo%carol%db-a", "df -h /; ls -l /etc | head")
	s := w.shell(t, dbA)
	s.say(t, "echo 'SELECT count(*) FROM orders;'; ls --color=always -l /usr | head -20")
	s.say(t, "for i in 1 2 3 4 5 6; do printf 'restarting worker %s ... ' $i; sleep 0.3; echo done; done")
	s.say(t, "exit")
	s.ended(t, patience)
	if r := w.ssh(t, "demo%deploy%billing-02", "true"); r.code == 0 {
		t.Fatalf("a host that is not there answers: %v", r)
	}
	w.askedFor(t)
	live := w.shell(t, dbA)
	live.say(t, "tail -n 3 /etc/passwd")
	until(t, patience, "recordings are complete", func() error {
		done := 0
		for _, r := range w.recordings(t) {
			if r.Status == "complete" {
				done++
			}
		}
		if done < 3 {
			return fmt.Errorf("%+v", w.recordings(t))
		}
		return nil
	})
}

// askedFor makes requests of web sessions that wait, or were decided on. They
// come from a webproxy as a rule; none runs here.
func (w *world) askedFor(t *testing.T) {
	t.Helper()
	var people struct {
		Items []struct{ ID, Name string } `json:"items"`
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/users?limit=100", nil, &people); err != nil {
		t.Fatal(err)
	}
	id := map[string]string{}
	for _, u := range people.Items {
		id[u.Name] = u.ID
	}
	var sql strings.Builder
	sql.WriteString(`.timeout 10000
begin immediate;
create temp table c as select * from connections where ended_at <> 0 limit 1;
update c set id = 'con_approvals', kind = 'web', recording_id = '';
insert into connections select * from c;
insert into web_sessions (id, core_id, state, user_id, user_name, target_id, target_name, account, carrier_id, carrier_name, webproxy_id, webproxy_name, sealed_key,
  recorded, recording_id, width, height, time_zone, warm, extended, opened_at, ended_at, end_reason, end_text)
select id, 'another', 'live', user_id, user_name, target_id, 'wiki', '', '', '', '', '', x'', 0, '', 1280, 800, 'UTC', 0, 0, requested_at, 0, '', '' from c;
`)
	now := time.Now()
	long := "https://erp.example.org/api/v2/tenants/eu-central/ledgers/2026/bookings/export?format=csv&columns=" + strings.Repeat("amount,cost_center,", 12) + "&token=***"
	for i, a := range []struct{ who, target, account, method, url, kind, why, state, by, reason string }{
		{"demo", "wiki", "editor", "DELETE", "https://wiki.example.org/admin/pages/4711", "", "Two look before a page goes.", "waiting", "", ""},
		{"ben.okafor", "erp", "", "POST", long, "application/x-www-form-urlencoded", "Exports of the ledger leave the company, so somebody from finance has a look at who asks for them.", "waiting", "", ""},
		{"admin", "wiki", "", "DELETE", "https://wiki.example.org/admin/users/12", "", "", "waiting", "", ""},
		{"demo", "wiki", "editor", "DELETE", "https://wiki.example.org/admin/pages/17", "", "Two look before a page goes.", "approved", "anna.berg", "ticket 4711"},
		{"ben.okafor", "erp", "", "POST", long, "application/json", "", "denied", "admin", "Not before the audit: ask again on Monday."},
		{"demo", "wiki", "", "DELETE", "https://wiki.example.org/admin/pages/18", "", "", "expired", "", "Nobody decided in time."},
		{"demo", "wiki", "", "DELETE", "https://wiki.example.org/admin/pages/19", "", "", "withdrawn", "", "Its user does not wait any more."},
	} {
		asked, decided, length := now.Add(-time.Duration(i)*time.Minute), int64(0), 0
		var as, shown, body string
		if a.state != "waiting" {
			decided = asked.Add(40 * time.Second).UnixMicro()
		}
		if a.kind != "" {
			length = 1834
		}
		if a.kind != "" && a.state == "waiting" {
			as, shown, body = "DELETE", "form", "period=2026-Q3\ncsrf_token=***\n_method=DELETE\nledgers=eu-central, eu-north, a ledger with a name that is rather long, and another\n"
		}
		fmt.Fprintf(&sql, `insert into web_approvals (id, session_id, hold, user_id, user_name, target_id, target_name, account, webproxy_id, webproxy_name,
method, url, content_type, length, digest, rule, why, state, asked_at, expires_at, decided_at, taken_at, decider_id, decider_name, reason, rule_method, preview_kind, preview) values ('wap_%d', 'con_approvals', 'hold%d', '%s', '%s', '', '%s', '%s', '', '', '%s', '%s', '%s', %d, '', '%s *.example.org', '%s', '%s', %d, %d, %d, %d, '%s', '%s', '%s', '%s', '%s', '%s');
`, i, i, id[a.who], a.who, a.target, a.account, a.method, a.url, a.kind, length, a.method, a.why, a.state, asked.UnixMicro(), now.Add(time.Hour).UnixMicro(), decided, decided, id[a.by], a.by, a.reason, as, shown, body)
	}
	sql.WriteString("commit;\n")
	if r := w.runIn(t, "core", sql.String(), nil, "sqlite3", "-bail", filepath.Join(w.core.Dir, "state", "core.db")); r.code != 0 || r.err != "" {
		t.Fatal(r)
	}
}

// webTargets makes one with a simple sign-in and one with an advanced one. No
// carrier runs: opening them is refused in words.
func (w *world) webTargets(t *testing.T) {
	t.Helper()
	type m = map[string]any
	injection := func(id, field string) m {
		return m{"id": id, "kind": "form", "origin": "https://wiki.example.org", "path": "/login$", "field": field, "value": id}
	}
	field := func(name string) m { return m{"selector": name, "value": name, "injection": name} }
	for _, target := range []m{
		{"name": "wiki", "kind": "web", "comment": "Wiki of the company", "tags": []string{"web"}, "web": m{
			"start_url": "https://wiki.example.org/", "browser": m{"max_s": 28800, "watermark": "{user}\n{date}"},
			"policy": m{"learn": true, "tls": m{"revocation": "soft", "responders": []string{"pki.example.org"}},
				"approve": []m{{"host": "", "methods": []string{"DELETE"}, "path": "/admin/", "why": "Two look before a page goes."}},
				"allow":   []m{{"host": "*.cdn.example.org", "methods": []string{"GET"}}}, "recipe": m{
					"injections": []m{injection("username", "username"), injection("password", "password")},
					"fills":      []m{{"origin": "https://wiki.example.org", "path": "/login$", "fields": []m{field("username"), field("password")}, "submit": "#go"}},
				}},
		}},
		{"name": "erp", "kind": "web", "comment": "Hashes passwords in script", "web": m{
			"start_url": "https://erp.example.org/", "policy": m{"tls": m{"min": "1.0", "legacy": true}, "recipe": m{
				"login": m{"cookie": "SID", "steps": []m{
					{"method": "GET", "url": "/login", "extract": m{"salt": `salt="(\w+)"`}},
					{"method": "POST", "url": "/login", "body": "u={{username}}&h={{sha256 salt+password}}"},
				}},
			}},
		}},
	} {
		if _, err := w.core.Admin.Create(t.Context(), "/targets", target); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/grants", harness.Grant{Role: w.role, Tag: "web", Accounts: []string{"*"}, Features: []string{"web"}}, nil); err != nil {
		t.Fatal(err)
	}
}

// importCSV imports targets.
func importCSV(t *testing.T, a *harness.API, csv string) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL+"/api/v1/targets/import", strings.NewReader(csv))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/csv")
	req.Header.Set("Authorization", "Bearer "+a.Token)
	resp, err := a.HTTP().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		return fmt.Errorf("import: %d %s", resp.StatusCode, b.String())
	}
	return nil
}

// Every page works, keeps to the policy it is served with, is accessible and
// fits its window. CAPONIER_SCREENSHOTS is a directory for pictures of all of
// them (make screenshots); CAPONIER_SCREENSHOTS_ONLY names some of them.
func TestConsolePages(t *testing.T) {
	needConsole(t)
	w := newWorld(t, options{vpcs: []string{"a"}})
	w.furnish(t)
	cfg := map[string]any{}
	if out := os.Getenv("CAPONIER_SCREENSHOTS"); out != "" {
		cfg["out"], cfg["only"] = out, os.Getenv("CAPONIER_SCREENSHOTS_ONLY")
	}
	w.browse(t, "pages.mjs", 15*time.Minute, cfg)
}

// The lists of an installation of ten thousand targets, for who may use them
// and for who looks after them.
func TestConsoleManyTargets(t *testing.T) {
	needConsole(t)
	w := newWorld(t, options{vpcs: []string{"a"}})
	const count = 10_000
	var csv strings.Builder
	csv.WriteString("name,kind,site,host,port,tags,accounts,comment\n")
	for i := range count {
		fmt.Fprintf(&csv, "host-%05d,ssh,vpc-a,10.%d.%d.%d,22,many,root,\n", i, 30+i>>16, i>>8&255, i&255)
	}
	if err := importCSV(t, w.core.Admin, csv.String()); err != nil {
		t.Fatal(err)
	}
	grant := harness.Grant{Role: w.role, Tag: "many", Accounts: []string{"*"}, Features: []string{"all"}}
	if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/grants", grant, nil); err != nil {
		t.Fatal(err)
	}
	t.Log(w.browse(t, "many.mjs", 8*time.Minute, map[string]any{"count": count, "last": fmt.Sprintf("host-%05d", count-1), "far": 1000}))
}

// Passkeys need a name of a host and a certificate that the browser trusts: a
// core by itself, at https://localhost.
func TestConsolePasskeys(t *testing.T) {
	needConsole(t)
	w := &world{net: harness.NewNet(""), bin: binaries(t), ext: map[string]*harness.EdgeNode{}, sshd: map[string]*harness.SSHD{}, targets: map[string]string{}}
	t.Cleanup(func() {
		w.showLogs(t)
		w.close()
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.dir, err = os.MkdirTemp("", "caponier-e2e-")
	must(err)
	must(w.net.Add("user"))
	w.core, err = harness.StartCore(t.Context(), w.net, w.bin.Core, filepath.Join(w.dir, "core"), harness.CoreConfig{NS: "user", TOML: `
name = "localhost"
[public]
url = "https://localhost:8443"
[listen]
https = "127.0.0.1:8443"
http = "off"
quic = "off"
bastion = "off"
socks = "off"
metrics = "127.0.0.1:9464"
certificates = "127.0.0.1:9443"
`})
	must(err)
	t.Log(w.browse(t, "passkeys.mjs", 5*time.Minute, map[string]any{"url": "https://localhost:8443"}))
}

// First run, enrolment, a target, a terminal, a watcher, the end, the replay:
// all in the browser, on a core nobody has set up before; then its forms.
func TestConsoleJourney(t *testing.T) {
	needConsole(t)
	w := &world{net: harness.NewNet(""), bin: binaries(t), ext: map[string]*harness.EdgeNode{}, sshd: map[string]*harness.SSHD{}, targets: map[string]string{}, demo: "a-password-of-the-tests"}
	t.Cleanup(func() {
		w.showLogs(t)
		w.close()
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.dir, err = os.MkdirTemp("", "caponier-e2e-")
	must(err)
	must(os.Chmod(w.dir, 0o755))
	must(w.net.Outside())
	must(w.net.VPC("a", 101))
	w.core, err = harness.StartCore(t.Context(), w.net, w.bin.Core, filepath.Join(w.dir, "core"), harness.CoreConfig{NS: "core", TOML: fmt.Sprintf(coreTOML, ""), Fresh: true})
	must(err)
	must(w.core.Proc.WaitOutput(t.Context(), patience, "setup_code="))
	printed := setupCode.FindStringSubmatch(w.core.Proc.Output())
	if printed == nil {
		t.Fatalf("core printed no set-up code: %s", w.core.Proc.Output())
	}
	cfg := map[string]any{"code": printed[1]}
	if out := os.Getenv("CAPONIER_SCREENSHOTS"); out != "" {
		cfg["out"] = out
	}
	out := w.browse(t, "firstrun.mjs", 5*time.Minute, cfg)
	t.Log(out)
	_, token, found := strings.Cut(out, "TOKEN ")
	if !found {
		t.Fatal("the wizard gave no token")
	}
	token, _, _ = strings.Cut(token, "\n")
	must(w.core.LoginAdmin(t.Context()))
	must(w.people(t.Context()))
	w.ext["a"], err = harness.StartEdge(t.Context(), w.net, w.bin.Extender, filepath.Join(w.dir, "ext-a"), harness.EdgeConfig{NS: "ext-a", URL: w.core.Ready.URL, Token: token})
	must(err)
	_, err = w.core.Admin.Online(t.Context(), patience, "vpc-a", w.ext["a"].Proc)
	must(err)
	must(w.hosts(t.Context(), "a"))
	cfg["host"], cfg["role"] = harness.HostAddr, w.role
	t.Log(w.browse(t, "journey.mjs", 8*time.Minute, cfg))
	t.Log(w.browse(t, "forms.mjs", 8*time.Minute, cfg))
	cfg["anchor"] = anchor(t, "plant authority")
	t.Log(w.browse(t, "groups.mjs", 8*time.Minute, cfg))
}

// anchor is the certificate of a new authority, in PEM.
func anchor(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

var setupCode = regexp.MustCompile(`setup_code=([a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{4})`)
