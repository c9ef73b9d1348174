package conn

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
)

// callers authenticates by the name in the bearer token: "viewer" may see all
// connections, "admin" may end them.
type callers struct{}

func (callers) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	name, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, nil
	}
	p := &api.Principal{UserID: "usr_" + name, UserName: name, Source: source, Via: "api", Permissions: map[api.Permission]bool{}}
	switch name {
	case "viewer":
		p.Permissions[api.ConnectionsView] = true
	case "admin":
		p.Permissions[api.ConnectionsManage] = true
	}
	return p, nil
}

type web struct {
	*rig
	srv *httptest.Server
}

func newWeb(t *testing.T, d *db.DB) *web {
	t.Helper()
	r := newRig(t, d)
	f, err := api.New(api.Config{Auth: callers{}, DB: d, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.Routes(f)
	w := &web{rig: r, srv: httptest.NewServer(f.Handler())}
	t.Cleanup(func() {
		f.Close()
		w.srv.Close()
		w.srv.Client().CloseIdleConnections()
	})
	return w
}

func (w *web) call(who, method, path, body string, want int) string {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.srv.URL+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+who)
	resp, err := w.srv.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.StatusCode != want {
		w.t.Errorf("%s %s %s: %d, want %d: %s", who, method, path, resp.StatusCode, want, b)
	}
	return string(b)
}

func (w *web) page(who, query string) api.Page[Record] {
	w.t.Helper()
	var p api.Page[Record]
	if err := json.Unmarshal([]byte(w.call(who, "GET", "/connections"+query, "", 200)), &p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func TestSearchFilters(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		start := w.clock.now()
		a := w.open(spec("demo", "db-1", "rol_1"))
		a.Connected(fleet.Route{NodeID: "edg_1", Node: "ext-1", Transport: "wss"})
		a.Channel("exec", "cat /etc/100%_sure")
		a.Recording("rec_1")
		a.In(5000)
		w.clock.add(time.Minute)
		s := spec("other", "web-1", "rol_2")
		s.Kind, s.Account, s.Site, s.Source, s.Principal.Via = "tcp", "", "vpc-b", netip.MustParseAddr("192.0.2.8"), "socks"
		b := w.open(s)
		b.Close(EndedByTarget, nil)
		w.record(a.ID, Connected)
		w.record(b.ID, Disconnected)
		w.until("counters", func() bool {
			var n int64
			if err := d.QueryRowContext(t.Context(), `select bytes_in from connections where id = $1`, a.ID).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n == 5000
		})
		w.call("admin", "PUT", "/connections/"+a.ID+"/tags", `{"tags":["incident 7","blue","blue"]}`, 200)
		w.call("admin", "PUT", "/connections/"+a.ID+"/tags", `{"tags":["  "]}`, 422)
		w.call("viewer", "PUT", "/connections/"+a.ID+"/tags", `{"tags":[]}`, 403)
		mid := start.Add(30 * time.Second).Format(time.RFC3339)
		for query, want := range map[string][]string{
			"": {b.ID, a.ID}, "id=" + a.ID: {a.ID}, "kind=tcp": {b.ID}, "state=connected": {a.ID}, "live=true": {a.ID}, "live=false": {b.ID},
			"user=demo": {a.ID}, "user=usr_other": {b.ID}, "target=db-1": {a.ID}, "target=tgt_web-1": {b.ID}, "address=10.10.0.5:22": {b.ID, a.ID},
			"account=root": {a.ID}, "site=vpc-b": {b.ID}, "node=ext-1": {a.ID}, "node=edg_1": {a.ID}, "core=cor_test": {b.ID, a.ID}, "core=x": {},
			"transport=wss": {a.ID}, "via=socks": {b.ID}, "source=192.0.2.8": {b.ID}, "end_reason=target": {b.ID}, "terminated_by=admin": {},
			"recording=rec_1": {a.ID}, "has_recording=false": {b.ID}, "has_recording=true": {a.ID}, "role=rol_2": {b.ID}, "grant=grt_1": {b.ID, a.ID},
			"tag=blue": {a.ID}, "tag=incident+7": {a.ID}, "channel=100%25_S": {a.ID}, "channel=100x": {}, "from=" + mid: {b.ID}, "to=" + mid: {a.ID},
			"ended_from=" + mid: {b.ID}, "ended_to=" + mid: {}, "min_bytes=5000": {a.ID}, "q=DB-": {a.ID}, "q=ticket": {b.ID, a.ID}, "q=_b-1": {},
			"user=demo&kind=tcp": {}, "user=demo&live=true&tag=blue&role=rol_1": {a.ID},
		} {
			var got []string
			for _, x := range w.page("viewer", "?"+query).Items {
				got = append(got, x.ID)
			}
			if !slices.Equal(got, want) && len(got)+len(want) > 0 {
				t.Errorf("%q: %v, want %v", query, got, want)
			}
		}
		w.call("viewer", "GET", "/connections?nonsense=1", "", 422)
		w.call("viewer", "GET", "/connections/%00", "", 404)
		w.call("viewer", "GET", "/connections/%ff", "", 404)
		w.call("viewer", "GET", "/connections?q=%00&user=%ff", "", 200)
		w.call("viewer", "GET", "/connections?state=dreaming", "", 422)
	})
}

func TestPaging(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		var want []string
		for range 7 {
			l := w.open(spec("demo", "db-1", "rol_1")) // all in the same microsecond
			want = append(want, l.ID)
		}
		slices.Sort(want)
		slices.Reverse(want)
		var got []string
		for next := ""; ; {
			p := w.page("demo", "?limit=3&cursor="+next)
			for _, x := range p.Items {
				got = append(got, x.ID)
			}
			if next = p.Next; next == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("paged %v, want %v", got, want)
		}
	})
}

func TestOwnAndOthers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		own, other := w.open(spec("demo", "db-1", "rol_1")), w.open(spec("other", "db-1", "rol_1"))
		for i := range 3 {
			own.Channel("exec", fmt.Sprintf("command %d", i))
		}
		if p := w.page("demo", ""); len(p.Items) != 1 || p.Items[0].ID != own.ID {
			t.Errorf("a user's list: %+v", p)
		}
		if p := w.page("demo", "?user=other"); len(p.Items) != 0 {
			t.Errorf("a user's list of another: %+v", p)
		}
		w.call("demo", "GET", "/connections/"+own.ID, "", 200)
		w.call("demo", "GET", "/connections/"+other.ID, "", 404)
		w.call("demo", "GET", "/connections/"+other.ID+"/channels", "", 404)
		w.call("viewer", "GET", "/connections/"+other.ID, "", 200)
		w.call("viewer", "DELETE", "/connections/"+other.ID, "", 404)
		w.call("demo", "DELETE", "/connections/"+other.ID, "", 404)
		w.call("demo", "POST", "/connections/terminate", `{"user_id":"usr_demo"}`, 403)
		w.until("channels", func() bool {
			return strings.Contains(w.call("demo", "GET", "/connections/"+own.ID+"/channels", "", 200), "command 2")
		})
		var p api.Page[ChannelEntry]
		if err := json.Unmarshal([]byte(w.call("demo", "GET", "/connections/"+own.ID+"/channels?limit=2", "", 200)), &p); err != nil || len(p.Items) != 2 || p.Next == "" {
			t.Errorf("channels: %+v, %v", p, err)
		}
		p2 := api.Page[ChannelEntry]{}
		if err := json.Unmarshal([]byte(w.call("demo", "GET", "/connections/"+own.ID+"/channels?limit=2&cursor="+p.Next, "", 200)), &p2); err != nil || len(p2.Items) != 1 || p2.Items[0].Seq != 3 {
			t.Errorf("channels: %+v, %v", p2, err)
		}
		w.call("demo", "DELETE", "/connections/"+own.ID, "", 204)
		if why := w.ended(own); why.Reason != EndedByUser {
			t.Errorf("own end: %+v", why)
		}
		w.record(own.ID, Disconnected)
		w.call("demo", "DELETE", "/connections/"+own.ID, "", 409)
		w.call("admin", "DELETE", "/connections/"+other.ID+"?reason=Maintenance", "", 204)
		if why := w.ended(other); why.Reason != EndedByAdmin || why.Public != "Maintenance" {
			t.Errorf("end by order: %+v", why)
		}
		a, b := w.open(spec("x", "db-1", "r")), w.open(spec("x", "db-2", "r"))
		w.call("admin", "POST", "/connections/terminate", `{}`, 422)
		if body := w.call("admin", "POST", "/connections/terminate", `{"user_id":"usr_x","reason":"out"}`, 200); !strings.Contains(body, `"terminated":2`) {
			t.Errorf("terminate all: %s", body)
		}
		w.ended(a)
		w.ended(b)
	})
}
