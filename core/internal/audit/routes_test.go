package audit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

type people map[string]*api.Principal

func (p people) Authenticate(r *http.Request, _ netip.Addr) (*api.Principal, error) {
	return p[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")], nil
}

func (x *fixture) serve() func(user, path string) *httptest.ResponseRecorder {
	x.t.Helper()
	f, err := api.New(api.Config{DB: x.db, Log: slog.New(slog.DiscardHandler), Auth: people{
		"auditor": {UserID: "usr_auditor", UserName: "auditor", Permissions: map[api.Permission]bool{api.AuditView: true}},
		"nobody":  {UserID: "usr_nobody", UserName: "nobody"},
	}})
	if err != nil {
		x.t.Fatal(err)
	}
	x.Routes(f, x.k.Keys, x.k.HeadFile)
	return func(user, path string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(x.t.Context(), "GET", "https://core.test/api/v1"+path, nil)
		r.Header.Set("Authorization", "Bearer "+user)
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, r)
		return w
	}
}

func TestRoutes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		get := x.serve()
		start := x.tick
		for _, e := range []Event{
			{Type: LoginFailed, Outcome: Denied, Actor: Actor{Kind: "anonymous"}},
			{Type: LoginSucceeded, Actor: Actor{Kind: "user", ID: "usr_ada", Name: "ada"}},
			{Type: ConnectionOpened, Actor: Actor{Kind: "user", ID: "usr_ada", Name: "ada"}, Object: Object{Kind: "target", ID: "tgt_1"}, Connection: "con_1"},
			{Type: ConnectionClosed, Actor: System, Object: Object{Kind: "target", ID: "tgt_1"}, Connection: "con_1"},
			{Type: UserChanged, Actor: Actor{Kind: "user", ID: "usr_bob", Name: "bob"}, Object: Object{Kind: "user", ID: "usr_ada"}},
		} {
			if err := x.Write(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		at := func(n int) string {
			return url.QueryEscape(start.Add(time.Duration(n) * time.Second).Format(time.RFC3339))
		}
		for query, want := range map[string]string{
			"":                                     "5 4 3 2 1",
			"?type=login.":                         "2 1",
			"?type=login":                          "",
			"?type=connection.closed":              "4",
			"?outcome=denied":                      "1",
			"?actor=usr_ada":                       "3 2",
			"?object=tgt_1":                        "4 3",
			"?object_kind=user":                    "5",
			"?connection=con_1":                    "4 3",
			"?about=usr_ada":                       "5 3 2",
			"?since=" + at(2) + "&until=" + at(4):  "3 2",
			"?connection=con_1&type=connection.":   "4 3",
			"?limit=2":                             "5 4",
			"?limit=2&type=connection.&actor=none": "",
			"?actor=" + url.QueryEscape("x' or 1=1 --"): "",
		} {
			w := get("auditor", "/audit-events"+query)
			var page api.Page[Entry]
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != 200 {
				t.Fatalf("%s: %d %s", query, w.Code, w.Body)
			}
			seqs := []string{}
			for _, e := range page.Items {
				seqs = append(seqs, fmt.Sprint(e.Seq))
			}
			if got := strings.Join(seqs, " "); got != want {
				t.Errorf("%s: %s, want %s", query, got, want)
			}
		}
		var all []int64
		for cursor := ""; ; {
			var page api.Page[Entry]
			w := get("auditor", "/audit-events?limit=2&cursor="+cursor)
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
				t.Fatal(err)
			}
			for _, e := range page.Items {
				all = append(all, e.Seq)
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if fmt.Sprint(all) != "[5 4 3 2 1]" {
			t.Errorf("paged: %v", all)
		}
		for _, path := range []string{"/audit-events", "/audit-events/verify", "/audit-events/export", "/audit-events/types"} {
			if w := get("nobody", path); w.Code != 403 {
				t.Errorf("%s without the permission: %d", path, w.Code)
			}
		}
		for _, path := range []string{"/audit-events?outcome=maybe", "/audit-events?since=yesterday", "/audit-events/export?after=x", "/audit-events/export?after=-1", "/audit-events/export?before=1"} {
			if w := get("auditor", path); w.Code != 422 {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		var report Report
		w := get("auditor", "/audit-events/verify")
		if err := json.Unmarshal(w.Body.Bytes(), &report); err != nil || !report.OK || report.Events != 5 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		x.exec(`update audit_events set outcome = 'ok' where seq = 1`)
		w = get("auditor", "/audit-events/verify")
		if err := json.Unmarshal(w.Body.Bytes(), &report); err != nil || report.OK || !report.has(1, Edited) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		last, err := x.Find(t.Context(), d, Filter{Type: string(AuditVerified)}, 0, 1)
		if err != nil || len(last) != 1 || last[0].Outcome != Failed || last[0].Actor.Name != "auditor" {
			t.Errorf("the verification's own event: %+v, %v", last, err)
		}
	})
}

// TestExportLosesNothing reads the log in pieces, each from the last seq of
// the piece before, while it grows.
func TestExportLosesNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		get := x.serve()
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			for range exportPage + 20 {
				if err := x.Append(t.Context(), tx, Event{Type: ChannelExec, Fields: map[string]string{"command": "a\nb"}}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var after int64
		for round := range 3 {
			w := get("auditor", fmt.Sprintf("/audit-events/export?after=%d", after))
			if w.Code != 200 || w.Header().Get("Content-Type") != "application/jsonl" {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			n := 0
			for sc := bufio.NewScanner(w.Body); sc.Scan(); n++ {
				var e Entry
				if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
					t.Fatal(err)
				}
				if e.Seq != after+1 || e.Hash == "" || e.Number == 0 {
					t.Fatalf("after %d comes %+v", after, e)
				}
				after = e.Seq
			}
			if n == 0 {
				t.Fatalf("round %d is empty", round) // at least its own event
			}
		}
		if after != exportPage+20+3 {
			t.Errorf("exported up to %d", after)
		}
	})
}
