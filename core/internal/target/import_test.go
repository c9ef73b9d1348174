package target

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/access"
)

func TestImportCSV(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "vpc-a")
		r.target(t, Target{Name: "old", Kind: SSH, Host: "10.0.0.1", Port: 2200, Comment: "kept?"}, "root")
		csv := "\ufeffName,kind,site,host,port,tags,accounts,comment\n" +
			"db-1,ssh,vpc-a,10.0.0.5,,env=prod;db,root deploy:ask svc:password:sec_pw,\"first, \"\"best\"\"\"\n" +
			"pg-1,tcp,vpc-a,10.0.0.5,5432,db,,\n" +
			"old,ssh,,10.0.0.2,22,,root backup,new\n"
		text := func(err error) string { t.Helper(); return wantProblem(t, err, "invalid") }

		_, err := r.Import(r.ctx, "text/csv", []byte(csv), ImportOptions{})
		if got := text(err); !strings.Contains(got, "\nline 4: name: there is a target old already") {
			t.Errorf("taken name: %s", got)
		}
		if ts, _ := r.List(t.Context(), r.db, Filter{In: access.Everywhere()}, "", 10); len(ts) != 1 {
			t.Errorf("a refused import left %d targets", len(ts))
		}
		dry, err := r.Import(r.ctx, "text/csv; charset=utf-8", []byte(csv), ImportOptions{Existing: ExistingUpdate, DryRun: true})
		if err != nil || dry.Created != 2 || dry.Updated != 1 {
			t.Errorf("dry run: %+v, %v", dry, err)
		}
		if ts, _ := r.List(t.Context(), r.db, Filter{In: access.Everywhere()}, "", 10); len(ts) != 1 {
			t.Errorf("a dry run made %d targets", len(ts)-1)
		}
		done, err := r.Import(r.ctx, "text/csv", []byte(csv), ImportOptions{Existing: ExistingUpdate})
		if err != nil || done.Created != 2 || done.Updated != 1 {
			t.Fatalf("import: %+v, %v", done, err)
		}
		ts, err := r.List(t.Context(), r.db, Filter{Tag: "db", In: access.Everywhere()}, "", 10)
		if err != nil || len(ts) != 2 || ts[0].Comment != `first, "best"` || ts[0].Origin != "import "+done.ID || ts[0].FullAddress() != "vpc-a/10.0.0.5:22" || ts[1].Kind != TCP {
			t.Fatalf("imported: %+v, %v", ts, err)
		}
		as, err := r.Accounts(t.Context(), r.db, ts[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range as {
			got = append(got, fmt.Sprintf("%s %s %s %v", a.Name, a.Auth, a.SecretID, a.Features == SSH.Features()))
		}
		if d := cmp.Diff([]string{"deploy ask  true", "root certificate  true", "svc password sec_pw true"}, got); d != "" {
			t.Errorf("accounts (-want +got):\n%s", d)
		}
		old, err := r.Resolve(t.Context(), r.db, "old")
		if err != nil || old.Host != "10.0.0.2" || old.Port != 22 || old.Comment != "new" || old.Version != 2 {
			t.Errorf("updated: %+v, %v", old, err)
		}
		if as, _ := r.Accounts(t.Context(), r.db, old.ID); len(as) != 2 {
			t.Errorf("accounts of the updated: %+v", as)
		}
		if skipped, err := r.Import(r.ctx, "text/csv", []byte(csv), ImportOptions{Existing: ExistingSkip}); err != nil || skipped.Skipped != 3 || skipped.Created != 0 {
			t.Errorf("skip: %+v, %v", skipped, err)
		}
		if got := r.events(t, done.ID); got != "target.imported" {
			t.Errorf("audit: %s", got)
		}
	})
}

// Every problem of a file is told at once, with its line.
func TestImportProblems(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		for _, c := range []struct{ name, format, body, want string }{
			{"empty", "text/csv", "", "line 1: a header line is needed, such as name,kind,site,host,port,tags,accounts"},
			{"columns", "text/csv", "name,nmae,name\n", "line 1: unknown column \"nmae\"; there are name, kind, site, host, port, tags, accounts, comment\nline 1: column \"name\" is there twice\nline 1: column host is missing"},
			{"rows", "text/csv", "name,host,port,site,accounts,kind\n" +
				"A,10.0.0.5,,,,\n" +
				"b,10.0.0.256,99999,,,\n" +
				"c,10.0.0.5\n" +
				"d,d,22,mars,,\n" +
				"\n" +
				"d,d,22,,root:password:sec_none root,tcp\n" +
				"e,e,22,,root:x,ssh\n",
				"line 4: has 2 fields, the header has 6\n" +
					"line 3: port: must be 1 to 65535\n" +
					"line 2: name: a target name has 1 to 64 of a-z 0-9 . _ - and begins with a letter or digit\n" +
					"line 3: host: \"10.0.0.256\" is neither an IP address nor a host name\n" +
					"line 7: accounts: targets of kind tcp have no accounts\n" +
					"line 7: accounts[1].name: is there twice\n" +
					"line 7: name: d stands on line 5 already\n" +
					"line 8: accounts[0].auth: must be certificate, password, key or ask\n" +
					"line 5: site: there is no site mars; create it first or import with create_sites\n" +
					"line 7: accounts: account root: there is no such secret"},
			{"lines", "application/x-ndjson",
				`{"name":"a","host":"a","features":1}` + "\n\n" + `{"name":"b","host":"b","accounts":[{"name":"root","features":["fly"]}]}` + "\n" + `{"name":"c"} {}` + "\n",
				"line 1: is not a target in JSON: json: unknown field \"features\"\n" +
					"line 4: more than one JSON value\n" +
					"line 3: accounts[0].features: unknown feature \"fly\" (want shell, exec, file_transfer, forward, remote_forward, x11, agent_forward, web, network or all)"},
		} {
			_, err := r.Import(r.ctx, c.format, []byte(c.body), ImportOptions{})
			got := strings.TrimPrefix(wantProblem(t, err, "invalid"), "\n")
			if d := cmp.Diff(sorted(c.want), sorted(got)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, d)
			}
		}
		_, err := r.Import(r.ctx, "application/pdf", nil, ImportOptions{})
		wantProblem(t, err, "unsupported_media_type")
		done, err := r.Import(r.ctx, "text/csv", []byte("name,host,site\na,10.0.0.5,mars\nb,10.0.0.5,venus\n"), ImportOptions{CreateSites: true})
		if err != nil || done.Sites != 2 || done.Created != 2 {
			t.Errorf("with new sites: %+v, %v", done, err)
		}
		if _, err := r.Resolve(t.Context(), r.db, "mars/10.0.0.5"); err != nil {
			t.Errorf("imported with its site: %v", err)
		}
		lines := `{"name":"l-1","host":"h","kind":"ssh","accounts":[{"name":"root","features":["shell"]}]}` + "\n" + `{"name":"l-2","kind":"tcp","host":"h","port":80,"tags":["x"]}`
		if done, err := r.Import(r.ctx, "application/x-ndjson", []byte(lines), ImportOptions{}); err != nil || done.Created != 2 {
			t.Errorf("lines: %+v, %v", done, err)
		}
	})
}

func sorted(text string) []string { return slices.Sorted(strings.SplitSeq(text, "\n")) }

// hostsCSV is an inventory of n hosts with two accounts and three tags each.
func hostsCSV(n int) []byte {
	var b strings.Builder
	b.WriteString("name,site,host,tags,accounts\n")
	for i := range n {
		fmt.Fprintf(&b, "host-%05d,vpc-a,10.%d.%d.%d,env=prod rack=%d linux,root deploy\n", i, i>>16&255, i>>8&255, i&255, i%40)
	}
	return []byte(b.String())
}

// hosts is how many hosts TestImportMany imports; `make bench` asks for 20,000.
var hosts = flag.Int("hosts", 2_000, "hosts to import in TestImportMany")

// A whole inventory goes in with one import, to its last line.
func TestImportMany(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "vpc-a")
		body := hostsCSV(*hosts)
		start := time.Now()
		done, err := r.Import(r.ctx, "text/csv", body, ImportOptions{})
		if err != nil || done.Created != *hosts {
			t.Fatalf("import: %+v, %v", done, err)
		}
		t.Logf("%d hosts (%d accounts, %d tags) in %s", *hosts, 2**hosts, 3**hosts, time.Since(start).Round(time.Millisecond))
		last := *hosts - 1
		tg, err := r.Resolve(t.Context(), r.db, fmt.Sprintf("vpc-a/10.%d.%d.%d", last>>16&255, last>>8&255, last&255))
		if err != nil || tg.Name != fmt.Sprintf("host-%05d", last) {
			t.Errorf("last host: %v, %v", tg, err)
		}
	})
}

func FuzzImport(f *testing.F) {
	f.Add([]byte("name,host\na,10.0.0.5\n"), true)
	f.Add([]byte("name,host,accounts,tags\n\"a\n\",b,c:d:e,x=y\n"), true)
	f.Add([]byte(`{"name":"a","host":"b","accounts":[{"name":"x"}]}`), false)
	f.Fuzz(func(t *testing.T, body []byte, csv bool) {
		parse := ParseLines
		if csv {
			parse = ParseCSV
		}
		rows, wrong := parse(strings.NewReader(string(body)))
		im := importer{rows: rows, p: wrong}
		im.validate()
		if len(im.p) > 0 {
			return
		}
		// What passed is stored as it is: it must be in its normal form.
		for _, r := range im.rows {
			if h, err := NormalHost(r.Target.Host); err != nil || h != r.Target.Host || !targetName.MatchString(r.Target.Name) || r.Target.Port < 1 {
				t.Errorf("passed: %+v", r.Target)
			}
			for _, a := range r.Accounts {
				if strings.ContainsAny(a.Name, "%/* \n") || a.Features == 0 || a.Features&^access.AllFeatures != 0 {
					t.Errorf("passed: %+v", a)
				}
			}
		}
	})
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"db-1", "a/10.0.0.5:22", "[2001:db8::1]:22", "a/[::1]", "x:y", "a/b/c", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		if r.Port < 0 || r.Port > 65535 || r.Site != "" && !siteName.MatchString(r.Site) {
			t.Errorf("ParseRef(%q) = %+v", s, r)
		}
		if r.Host != "" {
			if again, err := NormalHost(r.Host); err != nil || again != r.Host {
				t.Errorf("ParseRef(%q): host %q becomes %q, %v", s, r.Host, again, err)
			}
		}
	})
}
