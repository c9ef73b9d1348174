package webaccess

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/shared/control"
	"caponier/shared/wire"
)

func TestMayDecide(t *testing.T) {
	now := time.Now()
	everywhere := &api.Principal{UserID: "usr_a", Permissions: map[api.Permission]bool{api.WebApprove: true}}
	good := petition{By: everywhere, Person: true, Owner: "usr_o", Group: "grp_1", State: wire.ApprovalWaiting, Expires: now.Add(time.Minute), Approve: true}
	for _, c := range []struct {
		name   string
		change func(*petition)
		want   string // code
	}{
		{"approve", func(*petition) {}, ""},
		{"deny", func(p *petition) { p.Approve = false }, ""},
		{"nobody", func(p *petition) { p.By = nil }, hidden},
		{"no permission", func(p *petition) { p.By = &api.Principal{UserID: "usr_a"} }, hidden},
		{"another permission", func(p *petition) {
			p.By = &api.Principal{UserID: "usr_a", Permissions: map[api.Permission]bool{api.ConnectionsManage: true, api.ConnectionsWatch: true}}
		}, hidden},
		{"of this group", func(p *petition) {
			p.By = &api.Principal{UserID: "usr_a", Scoped: map[api.Permission][]string{api.WebApprove: {"grp_1"}}}
		}, ""},
		{"of another group", func(p *petition) {
			p.By = &api.Principal{UserID: "usr_a", Scoped: map[api.Permission][]string{api.WebApprove: {"grp_2"}}}
		}, hidden},
		{"no group is nobody's", func(p *petition) { p.Group = "" }, hidden},
		{"own", func(p *petition) { p.Owner = "usr_a" }, "own_request"},
		{"own, to deny", func(p *petition) { p.Owner, p.Approve = "usr_a", false }, "own_request"},
		{"own by a token", func(p *petition) {
			p.Owner = "usr_a"
			p.By = &api.Principal{UserID: "usr_a", Session: "tok_1", Via: "api", Methods: []string{"token"}, Permissions: everywhere.Permissions}
		}, "own_request"},
		{"own of another group", func(p *petition) {
			p.Owner, p.By = "usr_a", &api.Principal{UserID: "usr_a", Scoped: map[api.Permission][]string{api.WebApprove: {"grp_2"}}}
		}, hidden},
		{"an API client", func(p *petition) { p.Person = false }, "not_a_person"},
		{"approved already", func(p *petition) { p.State = wire.ApprovalApproved }, "decided"},
		{"denied already", func(p *petition) { p.State, p.Approve = wire.ApprovalDenied, false }, "decided"},
		{"expired", func(p *petition) { p.State = wire.ApprovalExpired }, "decided"},
		{"late", func(p *petition) { p.Expires = now }, "decided"},
		{"over", func(p *petition) { p.Over = true }, "decided"},
		{"over, to deny", func(p *petition) { p.Over, p.Approve = true, false }, "decided"},
		{"locked", func(p *petition) { p.Locked = true }, "locked"},
		{"locked, to deny", func(p *petition) { p.Locked, p.Approve = true, false }, ""},
		{"no owner", func(p *petition) { p.Owner = "" }, hidden},
		{"nothing said", func(p *petition) { *p = petition{} }, hidden},
	} {
		p := good
		c.change(&p)
		got := ""
		if why := mayDecide(p, now); why != nil {
			got = why.Code
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Whatever else holds: nobody approves his own, without the permission in the
// session's group, twice, or late.
func TestMayDecideNever(t *testing.T) {
	now := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		users := rapid.SampledFrom([]string{"usr_a", "usr_b", ""})
		groups := rapid.SampledFrom([]string{"grp_1", "grp_2", ""})
		by := &api.Principal{UserID: users.Draw(t, "by"), Scoped: map[api.Permission][]string{api.WebApprove: {groups.Draw(t, "scope")}}}
		if rapid.Bool().Draw(t, "everywhere") {
			by.Permissions = map[api.Permission]bool{api.WebApprove: true}
		}
		p := petition{By: by, Person: rapid.Bool().Draw(t, "person"), Owner: users.Draw(t, "owner"), Group: groups.Draw(t, "group"),
			State:   rapid.SampledFrom([]wire.ApprovalState{wire.ApprovalWaiting, wire.ApprovalApproved, wire.ApprovalDenied, ""}).Draw(t, "state"),
			Expires: now.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "left")) * time.Second),
			Over:    rapid.Bool().Draw(t, "over"), Locked: rapid.Bool().Draw(t, "locked"), Approve: rapid.Bool().Draw(t, "approve")}
		if mayDecide(p, now) != nil {
			return
		}
		if p.Owner == by.UserID || !p.Person || p.State != wire.ApprovalWaiting || !p.Expires.After(now) || p.Over || p.Locked && p.Approve || !by.Scope(api.WebApprove).Has(p.Group) {
			t.Fatalf("%+v was permitted", p)
		}
	})
}

func TestMayAsk(t *testing.T) {
	good := wire.WebApprovalAsk{Session: "con_1", Hold: "h", Method: "DELETE", URL: "https://wiki.example/x", Rule: "DELETE /x"}
	live := view{Live: true, Proxy: "nod_p"}
	for _, c := range []struct {
		name    string
		v       view
		asker   string
		change  func(*wire.WebApprovalAsk)
		waiting int
		want    wire.Code
	}{
		{name: "good", v: live, asker: "nod_p"},
		{name: "another node", v: live, asker: "nod_q", want: wire.CodeRefused},
		{name: "nobody", v: live, want: wire.CodeRefused},
		{name: "over", v: view{Proxy: "nod_p"}, asker: "nod_p", want: wire.CodeRefused},
		{name: "locked", v: view{Live: true, Locked: true, Proxy: "nod_p"}, asker: "nod_p", want: wire.CodeRefused},
		{name: "full", v: live, asker: "nod_p", waiting: maxAsked, want: wire.CodeLimit},
		{name: "no hold", v: live, asker: "nod_p", change: func(a *wire.WebApprovalAsk) { a.Hold = "" }, want: wire.CodeBadRequest},
		{name: "no URL", v: live, asker: "nod_p", change: func(a *wire.WebApprovalAsk) { a.URL = "javascript:x" }, want: wire.CodeBadRequest},
		{name: "long URL", v: live, asker: "nod_p", change: func(a *wire.WebApprovalAsk) { a.URL += strings.Repeat("x", 5000) }, want: wire.CodeBadRequest},
	} {
		ask := good
		if c.change != nil {
			c.change(&ask)
		}
		var got wire.Code
		if why := mayAsk(c.v, c.asker, ask, c.waiting); why != nil {
			got = why.Code
		}
		if got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// ask asks as a webproxy does, again and again, until it is decided.
func (b *box) ask(a wire.WebApprovalAsk) <-chan wire.WebApproval {
	out := make(chan wire.WebApproval, 1)
	go func() {
		for {
			var got wire.WebApproval
			ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
			err := context.Canceled
			if s := b.Session(); s != nil {
				err = control.Exchange(ctx, s, "POST", wire.PathWebApproval, a, &got, wire.MaxWebBody)
			}
			cancel()
			if b.t.Context().Err() != nil {
				return
			}
			again := err != nil || got.State == wire.ApprovalWaiting || got.Error != nil && (got.Error.Code == wire.CodeDraining || got.Error.Code == wire.CodeInternal)
			if !again {
				out <- got
				return
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-b.t.Context().Done():
				return
			}
		}
	}()
	return out
}

func decision(t *testing.T, ch <-chan wire.WebApproval) wire.WebApproval {
	t.Helper()
	select {
	case a := <-ch:
		return a
	case <-time.After(patience):
		t.Fatalf("not decided in %s", patience)
		return wire.WebApproval{}
	}
}

// waits finds the request of a session that waits under a hold's URL.
func (k *core) waits(who, session, url string) *Approval {
	k.t.Helper()
	var found *Approval
	eventually(k.t, url+" waits", func() bool {
		var page api.Page[*Approval]
		if code := k.do(who, "GET", "/web-approvals?state=waiting&session="+session, nil, &page); code != 200 {
			k.t.Fatalf("list: %d", code)
		}
		for _, a := range page.Items {
			if strings.HasSuffix(a.URL, url) {
				found = a
			}
		}
		return found != nil
	})
	return found
}

func approvalAsk(session, path string) wire.WebApprovalAsk {
	return wire.WebApprovalAsk{Session: session, Hold: "hold-" + path, Method: "DELETE", URL: "https://wiki.example" + path, Length: -1,
		Digest: strings.Repeat("a", 64), Rule: "DELETE wiki.example/admin", Why: "Deletions are looked at by two."}
}

// approvers are people who may decide, and some who may not.
func approvers(l *law) {
	all := map[api.Permission]bool{api.WebApprove: true}
	for _, name := range []string{"anna", "eve", "robot"} {
		l.perms[name] = all
	}
	l.perms["anna"] = maps.Clone(all)
}

func TestApprovals(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		published := make(chan api.Event, 100)
		k := w.start(func(_ *core, c *Config) {
			c.Publish = func(e api.Event) {
				select {
				case published <- e:
				default:
				}
			}
		})
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		stranger := k.node(wire.WebProxy, "p2")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		if p, _ := proxy.forProxy(s.ID); p.ID == "" {
			proxy, stranger = stranger, proxy
		}
		if got := decision(t, stranger.ask(approvalAsk(s.ID, "/admin/0"))); got.Error == nil {
			t.Errorf("another webproxy got %+v", got)
		}

		// Approved by somebody else.
		answer := proxy.ask(approvalAsk(s.ID, "/admin/1"))
		a := k.waits("anna", s.ID, "/admin/1")
		if !a.MayDecide || a.Own || a.UserName != "eve" || a.TargetName != "wiki" || a.Method != "DELETE" || a.Why == "" || a.ExpiresAt.Before(a.AskedAt.Add(59*time.Second)) {
			t.Errorf("%+v", a)
		}
		seen := k.get("eve", s.ID).Approvals
		if len(seen) != 1 || seen[0].ID != a.ID || seen[0].State != wire.ApprovalWaiting || seen[0].URL != "https://wiki.example/admin/1" {
			t.Errorf("the viewer reads %+v", seen)
		}
		for who, want := range map[string]int{"eve": 403, "eve/token": 403, "robot": 403, "bob": 403} {
			if code := k.do(who, "POST", "/web-approvals/"+a.ID+"/approve", map[string]any{}, nil); code != want {
				t.Errorf("%s approves: %d", who, code)
			}
		}
		if code := k.do("bob", "GET", "/web-approvals/"+a.ID, nil, nil); code != 404 {
			t.Errorf("bob reads it: %d", code)
		}
		var own Approval
		if code := k.do("eve", "GET", "/web-approvals/"+a.ID, nil, &own); code != 200 || own.MayDecide || !own.Own {
			t.Errorf("eve reads %d %+v", code, own)
		}
		if n := k.audited(audit.WebApprovalRefused, s.ID, audit.Denied); n != 3 {
			t.Errorf("%d attempts are audited", n)
		}
		var done Approval
		if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/approve", map[string]any{"reason": "ticket 7"}, &done); code != 200 || done.State != wire.ApprovalApproved || done.DecidedBy != "anna" {
			t.Fatalf("%d %+v", code, done)
		}
		if got := decision(t, answer); got.State != wire.ApprovalApproved || got.By != "anna" || got.Text != "ticket 7" {
			t.Errorf("%+v", got)
		}
		// Once is once; asking again about the same hold gives the same answer.
		if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/deny", map[string]any{}, nil); code != 409 {
			t.Errorf("decided twice: %d", code)
		}
		if got := decision(t, proxy.ask(approvalAsk(s.ID, "/admin/1"))); got.State != wire.ApprovalApproved {
			t.Errorf("asked again: %+v", got)
		}
		eventually(t, "the viewer sees who", func() bool {
			l := k.get("eve", s.ID).Approvals
			return len(l) == 1 && l[0].State == wire.ApprovalApproved && l[0].DecidedBy == "anna"
		})

		// Denied, taken back, given up.
		answer = proxy.ask(approvalAsk(s.ID, "/admin/2"))
		a = k.waits("anna", s.ID, "/admin/2")
		if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/deny", map[string]any{"reason": "no"}, nil); code != 200 {
			t.Fatal(code)
		}
		if got := decision(t, answer); got.State != wire.ApprovalDenied || got.Text != "no" {
			t.Errorf("%+v", got)
		}
		answer = proxy.ask(approvalAsk(s.ID, "/admin/3"))
		a = k.waits("anna", s.ID, "/admin/3")
		if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/withdraw", nil, nil); code != 403 {
			t.Errorf("anna takes it back: %d", code)
		}
		if code := k.do("eve", "POST", "/web-approvals/"+a.ID+"/withdraw", nil, nil); code != 200 {
			t.Fatal(code)
		}
		if got := decision(t, answer); got.State != wire.ApprovalWithdrawn {
			t.Errorf("%+v", got)
		}
		answer = proxy.ask(approvalAsk(s.ID, "/admin/4"))
		k.waits("anna", s.ID, "/admin/4")
		gone := approvalAsk(s.ID, "/admin/4")
		gone.Gone = true
		if got := decision(t, proxy.ask(gone)); got.State != wire.ApprovalWithdrawn {
			t.Errorf("%+v", got)
		}
		if got := decision(t, answer); got.State != wire.ApprovalWithdrawn {
			t.Errorf("%+v", got)
		}
		gone.Hold = "never asked"
		if got := decision(t, proxy.ask(gone)); got.State != wire.ApprovalWithdrawn {
			t.Errorf("%+v", got)
		}
		for typ, want := range map[audit.Type]int{audit.WebApprovalAsked: 4, audit.WebApprovalApproved: 1} {
			if n := k.audited(typ, s.ID, audit.OK); n != want {
				t.Errorf("%s: %d times", typ, n)
			}
		}
		for typ, want := range map[audit.Type]int{audit.WebApprovalDenied: 1, audit.WebApprovalWithdrawn: 2} {
			if n := k.audited(typ, s.ID, audit.Denied); n != want {
				t.Errorf("%s: %d times", typ, n)
			}
		}
		if n := w.tapes.of(s.ID).count("approval"); n != 8 {
			t.Errorf("%d marks on the timeline", n)
		}
		told := false
		for len(published) > 0 {
			e := <-published
			told = told || e.Topic == topicSession && e.ID == s.ID && e.UserID == "usr_eve"
		}
		if !told {
			t.Error("the viewer was not told")
		}
		var page api.Page[*Approval]
		if k.do("anna", "GET", "/web-approvals?state=decided&limit=3", nil, &page); len(page.Items) != 3 || page.Next == "" || page.Items[0].URL != "https://wiki.example/admin/4" {
			t.Errorf("%+v", page)
		}
		if k.do("bob", "GET", "/web-approvals", nil, &page); len(page.Items) != 0 {
			t.Errorf("bob sees %+v", page)
		}
	})
}

// What waits ends with its time, its session, a lock, and with a webproxy that
// is not heard of any more.
func TestApprovalsEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		var mu sync.Mutex
		var ahead time.Duration
		wait := time.Minute
		k := w.start(func(_ *core, c *Config) {
			c.Now = func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return time.Now().Add(ahead)
			}
			c.ApprovalWait = func() time.Duration {
				mu.Lock()
				defer mu.Unlock()
				return wait
			}
			c.Tick = 20 * time.Millisecond
		})
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		state := func(id string) (s wire.ApprovalState) {
			var a Approval
			k.do("anna", "GET", "/web-approvals/"+id, nil, &a)
			return a.State
		}
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		answer := proxy.ask(approvalAsk(s.ID, "/late"))
		a := k.waits("anna", s.ID, "/late")
		mu.Lock()
		ahead = 61 * time.Second
		mu.Unlock()
		if got := decision(t, answer); got.State != wire.ApprovalExpired {
			t.Errorf("%+v", got)
		}
		if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/approve", map[string]any{}, nil); code != 409 {
			t.Errorf("approved late: %d", code)
		}
		if n := k.audited(audit.WebApprovalExpired, s.ID, audit.Denied); n != 1 {
			t.Errorf("%d audited", n)
		}

		mu.Lock()
		wait = time.Hour
		mu.Unlock()
		answer = proxy.ask(approvalAsk(s.ID, "/locked"))
		a = k.waits("anna", s.ID, "/locked")
		if code := k.do("auditor", "POST", "/connections/"+s.ID+"/lock", map[string]any{"reason": "wait"}, nil); code != 200 && code != 204 {
			t.Fatalf("lock: %d", code)
		}
		if got := decision(t, answer); got.State != wire.ApprovalDenied {
			t.Errorf("%+v", got)
		}
		if got := decision(t, proxy.ask(approvalAsk(s.ID, "/while locked"))); got.Error == nil || got.Error.Code != wire.CodeRefused {
			t.Errorf("%+v", got)
		}

		for _, c := range []struct {
			who  string
			end  func(id string)
			want wire.ApprovalState
		}{
			{"bob", func(id string) { k.do("bob", "DELETE", "/web-sessions/"+id, nil, nil) }, wire.ApprovalWithdrawn},
			{"carl", func(id string) { k.do("auditor", "DELETE", "/web-sessions/"+id, nil, nil) }, wire.ApprovalDenied},
			{"dora", func(string) {
				w.law.change(func(l *law) { l.denied["dora"] = true })
				k.notify("role", "rol_1")
			}, wire.ApprovalDenied},
		} {
			s := k.open(c.who, "wiki", map[string]any{"account": "alice"})
			proxy.ask(approvalAsk(s.ID, "/ends"))
			a := k.waits("anna", s.ID, "/ends")
			c.end(s.ID)
			eventually(t, c.who+"'s is over", func() bool { return state(a.ID) == c.want })
			if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/approve", map[string]any{}, nil); code != 409 {
				t.Errorf("%s: approved after the end: %d", c.who, code)
			}
		}

		s = k.open("fay", "wiki", map[string]any{"account": "alice"})
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			var out wire.WebApproval
			_ = control.Call(ctx, proxy.Session(), "POST", wire.PathWebApproval, approvalAsk(s.ID, "/left"), &out) // cut off
		}()
		a = k.waits("anna", s.ID, "/left")
		cancel()
		<-asked
		x := k.svc.find(s.ID)
		eventually(t, "nobody asks about it", func() bool {
			x.mu.Lock()
			defer x.mu.Unlock()
			return len(x.held) == 1 && x.held[0].asking == 0
		})
		mu.Lock()
		ahead += unasked
		mu.Unlock()
		eventually(t, "it counts as lost", func() bool { return state(a.ID) == wire.ApprovalLost })
	})
}

// What waits outlives a restart of core; what was decided before is heard after.
func TestApprovalsOutliveCore(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		first, second := proxy.ask(approvalAsk(s.ID, "/first")), proxy.ask(approvalAsk(s.ID, "/second"))
		a, b := k.waits("anna", s.ID, "/first"), k.waits("anna", s.ID, "/second")
		k.stop()
		k = w.start()
		if got := k.waits("anna", s.ID, "/first"); got.ID != a.ID {
			t.Errorf("it became %s, was %s", got.ID, a.ID)
		}
		for id, to := range map[string]string{a.ID: "approve", b.ID: "deny"} {
			if code := k.do("anna", "POST", "/web-approvals/"+id+"/"+to, map[string]any{}, nil); code != 200 {
				t.Fatalf("%s: %d", to, code)
			}
		}
		if got := decision(t, first); got.State != wire.ApprovalApproved {
			t.Errorf("%+v", got)
		}
		if got := decision(t, second); got.State != wire.ApprovalDenied {
			t.Errorf("%+v", got)
		}
		if n := k.audited(audit.WebApprovalAsked, s.ID, audit.OK); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

// A session has few that wait, and does not fill the log by asking.
func TestApprovalsAreBounded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		for n := range maxAsked {
			proxy.ask(approvalAsk(s.ID, fmt.Sprint("/", n)))
		}
		eventually(t, "all wait", func() bool { return len(k.get("eve", s.ID).Approvals) == maxAsked })
		if got := decision(t, proxy.ask(approvalAsk(s.ID, "/more"))); got.Error == nil || got.Error.Code != wire.CodeLimit {
			t.Errorf("%+v", got)
		}
	})
}

// Names go when a person is erased, what happened stays; people get what is
// kept of them.
func TestApprovalsExportAndErase(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("bob", "wiki", map[string]any{"account": "alice"})
		answer := proxy.ask(approvalAsk(s.ID, "/x"))
		a := k.waits("anna", s.ID, "/x")
		k.do("anna", "POST", "/web-approvals/"+a.ID+"/deny", map[string]any{}, nil)
		decision(t, answer)
		for _, id := range []string{"usr_bob", "usr_anna"} {
			out, err := k.svc.Export(t.Context(), w.db, id)
			must(t, err)
			if list, _ := out.(map[string]any)["approvals"].([]*Approval); len(list) != 1 || list[0].ID != a.ID {
				t.Errorf("%s gets %+v", id, out)
			}
			must(t, w.db.Tx(t.Context(), func(tx *db.Tx) error { return k.svc.Erase(t.Context(), tx, id, "gone-"+id) }))
		}
		var got Approval
		if k.do("eve", "GET", "/web-approvals/"+a.ID, nil, &got); got.UserName != "gone-usr_bob" || got.DecidedBy != "gone-usr_anna" {
			t.Errorf("%+v", got)
		}
	})
}

// A core that finds requests nothing looks after ends their waiting.
func TestStrandedApprovals(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		proxy.ask(approvalAsk(s.ID, "/x"))
		a := k.waits("anna", s.ID, "/x")
		k.stop()
		must(t, w.db.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.ExecContext(t.Context(), `update web_sessions set ended_at = 1, state = 'ended', end_reason = $2 where id = $1`, s.ID, string(conn.EndedByCrash))
			return err
		}))
		k = w.start()
		eventually(t, "it is over", func() bool {
			var got Approval
			k.do("anna", "GET", "/web-approvals/"+a.ID, nil, &got)
			return got.State == wire.ApprovalWithdrawn
		})
	})
}

// askOnce asks and is cut off when the returned function is called.
func (b *box) askOnce(a wire.WebApprovalAsk) (cut func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	node := b.Session()
	go func() {
		defer close(done)
		var out wire.WebApproval
		_ = control.Call(ctx, node, "POST", wire.PathWebApproval, a, &out) // cut off
	}()
	return func() { cancel(); <-done }
}

// What a webproxy held dies with its process: when it is back it says what
// waits, and the rest ends, for approvers to see. What waits there still does.
func TestApprovalsOfARestartedProxy(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		now := time.Now() // and not later: nothing is lost by time alone
		k := w.start(func(_ *core, c *Config) { c.Now = func() time.Time { return now } })
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		cutLost, cutKept := proxy.askOnce(approvalAsk(s.ID, "/lost")), proxy.askOnce(approvalAsk(s.ID, "/kept"))
		lost, kept := k.waits("anna", s.ID, "/lost"), k.waits("anna", s.ID, "/kept")
		state := func(id string) (a Approval) {
			k.do("anna", "GET", "/web-approvals/"+id, nil, &a)
			return a
		}
		again := func(holds map[string][]string) {
			proxy.down()
			proxy.set(func(b *box) { b.holds = holds })
			before, _ := proxy.forProxy(s.ID)
			proxy.up(k.url, "")
			eventually(t, "it is told again", func() bool { now, _ := proxy.forProxy(s.ID); return now.Revision > before.Revision })
		}
		// A tunnel alone loses nothing, nor does a webproxy that cannot say.
		again(map[string][]string{s.ID: {"hold-/lost", "hold-/kept"}})
		cutLost()
		cutKept()
		again(nil)
		if a, b := state(lost.ID), state(kept.ID); a.State != wire.ApprovalWaiting || b.State != wire.ApprovalWaiting {
			t.Errorf("%+v, %+v", a, b)
		}
		again(map[string][]string{s.ID: {"hold-/kept"}})
		eventually(t, "it is lost", func() bool { return state(lost.ID).State == wire.ApprovalLost })
		if a := state(lost.ID); !strings.Contains(a.Reason, "restarted") || !strings.Contains(a.Reason, "not sent") || a.MayDecide {
			t.Errorf("%+v", a)
		}
		if a := state(kept.ID); a.State != wire.ApprovalWaiting {
			t.Errorf("%+v", a)
		}
		var text string
		if code := k.do("anna", "POST", "/web-approvals/"+lost.ID+"/approve", map[string]any{}, &text); code != 409 || !strings.Contains(text, `"lost"`) || !strings.Contains(text, "not sent") {
			t.Errorf("%d %s", code, text)
		}
		if n := k.audited(audit.WebApprovalLost, s.ID, audit.Denied); n != 1 {
			t.Errorf("audited %d times", n)
		}
		if n := w.tapes.of(s.ID).count("approval"); n != 3 {
			t.Errorf("%d marks on the timeline", n)
		}
		if got := decision(t, proxy.ask(approvalAsk(s.ID, "/lost"))); got.State != wire.ApprovalLost {
			t.Errorf("%+v", got)
		}
	})
}

// Who may decide sees what is in the body, as long as it waits; the timeline
// keeps the beginning, everything else nothing.
func TestApprovalPreview(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("bob", "wiki", map[string]any{"account": "alice"})
		ask := approvalAsk(s.ID, "/x")
		ask.Method, ask.RuleMethod = "POST", "DELETE"
		ask.Preview = &wire.WebPreview{Kind: "form", Text: "id = 7\u202e\nlong = " + strings.Repeat("<", 60_000)}
		shown := strings.ReplaceAll(ask.Preview.Text, "\u202e", "\uFFFD")
		answer := proxy.ask(ask)
		a := k.waits("anna", s.ID, "/x")
		if a.Method != "POST" || a.RuleMethod != "DELETE" || a.Preview != nil {
			t.Errorf("listed as %+v", a)
		}
		get := func(who string) (got Approval) {
			if code := k.do(who, "GET", "/web-approvals/"+a.ID, nil, &got); code != 200 {
				t.Fatalf("%s: %d", who, code)
			}
			return got
		}
		if got := get("anna"); got.Preview == nil || got.Preview.Kind != "form" || got.Preview.Text != shown {
			t.Errorf("%.200q", got.Preview)
		}
		if got := get("bob"); got.Preview != nil {
			t.Errorf("its user sees %.200q", got.Preview)
		}
		mark := w.tapes.of(s.ID).last("approval")
		if mark["rule_method"] != "DELETE" || !strings.HasPrefix(mark["body"], "id = 7") || len(mark["body"]) > markedPreview+3 {
			t.Errorf("the timeline has %.300q", mark)
		}
		if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/deny", map[string]any{}, nil); code != 200 {
			t.Fatal(code)
		}
		decision(t, answer)
		eventually(t, "it is marked", func() bool { return w.tapes.of(s.ID).last("approval")["state"] == string(wire.ApprovalDenied) })
		if mark := w.tapes.of(s.ID).last("approval"); mark["body"] != "" {
			t.Errorf("the timeline has it twice: %.300q", mark)
		}
		var kind, text string
		must(t, w.db.QueryRowContext(t.Context(), previewSQL, a.ID).Scan(&kind, &text))
		if got := get("anna"); got.Preview != nil || kind+text != "" {
			t.Errorf("it is kept: %q %.200q", kind, text)
		}
		found, err := k.audit.After(t.Context(), w.db, audit.Filter{}, 0, 10_000)
		must(t, err)
		for _, e := range found {
			if strings.Contains(fmt.Sprint(e), "id = 7") {
				t.Errorf("the audit log has it: %+v", e.Type)
			}
		}
		ask.Hold, ask.Preview = "strange", &wire.WebPreview{Kind: "html", Text: "x"}
		if got := decision(t, proxy.ask(ask)); got.Error == nil || got.Error.Code != wire.CodeBadRequest {
			t.Errorf("%+v", got)
		}
	})
}
