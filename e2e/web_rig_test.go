package e2e

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// webWorld is a world with a Docker daemon of its own, a carrier and a
// webproxy, all outside, and real web applications inside the VPCs.
type webWorld struct {
	*world
	docker  *harness.Docker
	carrier *harness.EdgeNode
	proxy   *harness.EdgeNode
	runDir  string // of the carrier's sockets
	ca      *sites.Authority
	key     []byte // sites believe each other
	user    *harness.API
	port    atomic.Int32
}

const (
	carrierAddr  = "203.0.113.30"
	webproxyAddr = "203.0.113.31"
)

// webWarm is how many parked browsers the tests' carrier keeps.
const webWarm = 2

var (
	webOnce  sync.Once
	webWhole *webWorld
	webErr   error
)

// patience is how long anything may take that must happen at all: it keeps a
// test from hanging, and is no claim.
const patience = time.Minute

// refillTime is how long a busy machine may take to start the browsers that are
// to wait, at low priority; no session waits for that.
const refillTime = 4 * time.Minute

// web is the world of web sessions that tests share.
func web(t testing.TB) *webWorld {
	t.Helper()
	needRig(t)
	webOnce.Do(func() { webWhole, webErr = makeWeb(context.Background(), t) })
	if webErr != nil {
		if webWhole != nil {
			t.Cleanup(func() { webWhole.showLogs(t) })
		}
		t.Fatal(webErr)
	}
	t.Cleanup(func() { webWhole.showLogs(t) })
	return webWhole
}

func makeWeb(ctx context.Context, t testing.TB) (*webWorld, error) {
	w := &webWorld{key: []byte(rand.Text())}
	var err error
	if w.docker, err = harness.StartDocker(ctx, harness.DockerRoot(), false); err != nil {
		return w, err
	}
	root, err := filepath.Abs("..")
	if err != nil {
		return w, err
	}
	if err := w.docker.Image(ctx, root, func(line string) { t.Log(line) }); err != nil {
		return w, err
	}
	if w.ca, err = sites.NewAuthority("Sites of the tests"); err != nil {
		return w, err
	}
	w.world, err = makeWorld(ctx, t, options{bare: true, before: func(n *harness.Net) error {
		return errors.Join(n.Add("carrier", "webproxy"),
			n.Plug("carrier", "eth0", "core", "br0", carrierAddr+"/24"), n.Plug("webproxy", "eth0", "core", "br0", webproxyAddr+"/24"))
	}})
	if err != nil {
		return w, err
	}
	// Sockets have short paths.
	if w.runDir, err = os.MkdirTemp("/run", "capw-"); err != nil {
		return w, err
	}
	if w.proxy, err = w.edge(ctx, "webproxy", "proxy-1", w.bin.WebProxy, fmt.Sprintf("address = \"%s:18443\"\ndebug = \"%s\"\n", webproxyAddr, webproxyDebug)); err != nil {
		return w, err
	}
	if w.carrier, err = w.edge(ctx, "carrier", "carrier-1", w.bin.Carrier, w.carrierTOML(w.runDir, "caponier-browser", webWarm)); err != nil {
		return w, err
	}
	if w.user, err = w.as(ctx, "demo", w.demo); err != nil {
		return w, err
	}
	if _, err = w.core.Admin.WebReady(ctx, patience, w.proxy, harness.HasRoom(0)); err != nil {
		return w, err
	}
	_, err = w.core.Admin.WebReady(ctx, refillTime, w.carrier, harness.HasRoom(webWarm))
	return w, err
}

// carrierTOML is a carrier's configuration beside what every edge has.
func (w *webWorld) carrierTOML(runDir, image string, warm int) string {
	return fmt.Sprintf("docker = %q\nrun_dir = %q\nimage = %q\nwarm = %d\ndebug = %q\n[admission]\npressure = 95.0\n", w.docker.Host, runDir, image, warm, carrierDebug)
}

// edge enrols and starts a carrier or webproxy in the namespace of its kind.
func (w *webWorld) edge(ctx context.Context, kind, name, bin, toml string) (*harness.EdgeNode, error) {
	_, token, err := w.core.Admin.EnrolmentToken(ctx, map[string]any{"kind": kind})
	if err != nil {
		return nil, err
	}
	return harness.StartEdge(ctx, w.net, bin, filepath.Join(w.dir, name), harness.EdgeConfig{NS: kind, Name: name, URL: w.core.Ready.URL, Token: token, TOML: toml, Mounts: true})
}

func (w *webWorld) close() {
	if w == nil {
		return
	}
	for _, e := range []*harness.EdgeNode{w.carrier, w.proxy} {
		if e != nil && e.Proc != nil {
			e.Proc.Kill()
		}
	}
	w.world.close()
	if w.docker != nil {
		if err := w.docker.Close(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: docker:", err)
		}
	}
	if w.runDir != "" {
		os.RemoveAll(w.runDir)
	}
}

// webSite is a site that is up, with a target of its own that demo may use.
type webSite struct {
	*sites.Site
	Config sites.Config
	origin string
	target string // ID
	name   string
	spec   harness.WebTarget
	policy *webrule.Policy
}

// siteOptions say how a site differs from the usual one.
type siteOptions struct {
	vpc     string // a by default
	addr    string // host:port; empty: the first host, a port of its own
	fault   sites.Fault
	serve   []sites.Option
	plain   bool // http
	browser map[string]any
	scan    string // ICAP
	// change changes target and policy before they are made.
	change func(*harness.WebTarget, *webrule.Policy)
	// still: pages wait for no orders, and so ask for nothing.
	still bool
	// noTarget: only the site.
	noTarget bool
	auth     func(s *webSite) (kind, value string) // of the account's secret, other than the password
}

// site brings a web application up in a VPC and makes a target of it, both for
// as long as the test runs.
func (w *webWorld) site(t testing.TB, cfg sites.Config, o siteOptions) *webSite {
	t.Helper()
	cfg.Username = cmp.Or(cfg.Username, "ann")
	cfg.Password = cmp.Or(cfg.Password, "p&w=1+2/ü "+rand.Text())
	if cfg.Key == nil {
		cfg.Key = w.key
	}
	cfg.Driven = !o.still
	s, err := sites.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	vpc, addr := cmp.Or(o.vpc, "a"), o.addr
	if addr == "" {
		addr = fmt.Sprintf("%s:%d", harness.HostAddr, 9000+w.port.Add(1))
	}
	l, err := w.net.Listen("host-"+vpc, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ := net.SplitHostPort(addr)
	x := &webSite{Site: s, Config: cfg, origin: "https://" + addr, name: fmt.Sprintf("%s-%s", cfg.Kind, strings.ToLower(rand.Text()[:6]))}
	var up *sites.Listening
	if o.plain {
		x.origin = "http://" + addr
		up = sites.Serve(l, s, nil)
	} else {
		cert, err := w.ca.Certificate(o.fault, host)
		if err != nil {
			t.Fatal(err)
		}
		up = sites.Serve(l, s, &cert, o.serve...)
	}
	t.Cleanup(func() {
		if err := up.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if o.noTarget {
		return x
	}
	x.policy = &webrule.Policy{Recipe: sites.Recipe(cfg.Kind, x.origin, cfg.Other), TLS: webrule.TLS{Anchors: w.ca.PEM, Only: true}}
	x.spec = harness.WebTarget{Name: x.name, Kind: "web", Site: "vpc-" + vpc,
		Web: harness.Web{StartURL: x.origin + "/", Insecure: o.plain, Policy: x.policy, Browser: o.browser, ScanURL: o.scan}}
	if cfg.Kind != sites.Open {
		kind, value := "password", cfg.Password
		if o.auth != nil {
			kind, value = o.auth(x)
		}
		secret, err := w.core.Admin.Secret(t.Context(), x.name, kind, value)
		if err != nil {
			t.Fatal(err)
		}
		x.spec.Accounts = []harness.Account{{Name: cfg.Username, Auth: "password", Secret: secret}}
	}
	if o.change != nil {
		o.change(&x.spec, x.policy)
	}
	if x.target, err = w.core.Admin.Create(t.Context(), "/targets", x.spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.core.Admin.Delete(context.Background(), "/targets/"+x.target); err != nil {
			t.Error(err)
		}
	})
	if _, err := w.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: w.role, Target: x.target, Accounts: []string{"*"}, Features: []string{"all"}}); err != nil {
		t.Fatal(err)
	}
	return x
}

// update stores the target again after f has changed its policy.
func (w *webWorld) update(t testing.TB, s *webSite, f func(*webrule.Policy)) {
	t.Helper()
	f(s.policy)
	if err := w.core.Admin.Do(t.Context(), http.MethodPut, "/targets/"+s.target, s.spec, nil, "If-Match", "*"); err != nil {
		t.Fatal(err)
	}
}

// webUse is a session somebody has open, with its picture.
type webUse struct {
	harness.WebSession
	Screen *harness.Screen
	w      *webWorld
	site   *webSite
	api    *harness.API
}

// open opens a site as demo, in a browser that waits for its user.
func (w *webWorld) open(t testing.TB, s *webSite) *webUse {
	t.Helper()
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, w.carrier, harness.HasRoom(1)); err != nil {
		t.Fatal(err)
	}
	return w.openAs(t, w.user, s)
}

func (w *webWorld) openAs(t testing.TB, api *harness.API, s *webSite) *webUse {
	t.Helper()
	return w.openIn(t, api, s, "")
}

// openIn opens a site for somebody in a time zone.
func (w *webWorld) openIn(t testing.TB, api *harness.API, s *webSite, zone string) *webUse {
	t.Helper()
	session, err := api.OpenWebIn(t.Context(), s.target, zone)
	if err != nil {
		t.Fatalf("open %s: %v", s.name, err)
	}
	u := &webUse{WebSession: session, w: w, site: s, api: api}
	t.Cleanup(func() { u.close(t) })
	u.look(t)
	return u
}

// look opens the session's picture, again perhaps.
func (u *webUse) look(t testing.TB) {
	t.Helper()
	if u.Screen != nil {
		u.Screen.Close()
	}
	if err := harness.Until(t.Context(), patience, "the screen opens", func() error {
		var err error
		u.Screen, err = u.api.Screen(t.Context(), u.ID, false)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// close ends what the test left open, and keeps the picture of what failed.
func (u *webUse) close(t testing.TB) {
	if t.Failed() && u.Screen != nil {
		file := filepath.Join(os.TempDir(), "caponier-e2e-"+url.PathEscape(t.Name())+"-"+u.site.name+".png")
		if err := u.Screen.Save(file); err == nil {
			t.Logf("the screen of %s at the end: %s", u.site.name, file)
		}
		if events, err := u.w.core.Admin.Timeline(context.Background(), u.RecordingID); err == nil {
			for _, e := range events[max(0, len(events)-25):] {
				t.Logf("%7.3f %-10s %v", e.T, e.Kind, e.Fields)
			}
		}
	}
	if u.Screen != nil {
		u.Screen.Close()
	}
	err := u.w.core.Admin.EndWeb(context.Background(), u.ID)
	if s, ok := errors.AsType[*harness.Status](err); err != nil && (!ok || s.Code != http.StatusNotFound && s.Code != http.StatusConflict) {
		t.Errorf("end %s: %v", u.ID, err)
	}
}

// end ends the session as its user and waits until nothing goes on.
func (u *webUse) end(t testing.TB) {
	t.Helper()
	if err := u.api.EndWeb(t.Context(), u.ID); err != nil {
		t.Fatal(err)
	}
	u.ended(t, patience)
}

// ended waits until the session has ended and returns it.
func (u *webUse) ended(t testing.TB, limit time.Duration) harness.WebSession {
	t.Helper()
	var s harness.WebSession
	until(t, limit, "the session ends", func() error {
		var err error
		if s, err = u.api.WebSession(t.Context(), u.ID); err != nil {
			return err
		}
		if s.State != "ended" {
			return fmt.Errorf("it is %s", s.State)
		}
		return nil
	})
	return s
}

// signedIn waits until the page of somebody signed in is on the screen.
func (u *webUse) signedIn(t testing.TB) {
	t.Helper()
	u.shows(t, "the page after signing in to "+u.site.name)
}

// shows waits for the site's colour.
func (u *webUse) shows(t testing.TB, what string) {
	t.Helper()
	if err := u.Screen.Shows(t.Context(), patience, what, u.site.Color()); err != nil {
		t.Fatalf("%v\nlogins: %+v", err, u.site.Logins())
	}
}

// who is signed in at the site.
func (u *webUse) who() string {
	if u.site.Config.Kind == sites.Open {
		return "guest"
	}
	return u.site.Config.Username
}

// run runs a script in the page.
func (u *webUse) run(t testing.TB, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	text, err := u.site.Run(ctx, u.who(), script)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// click clicks on an element of the page. Firefox drops what a user does to a
// document that has been on the screen for less than 100 ms and three frames
// (dom.input_events.security), so that comes first. Other browsers' pages are
// all of the screen and do not say where they are on it.
func (u *webUse) click(t testing.TB, selector string) {
	t.Helper()
	var x, y int
	at := u.run(t, fmt.Sprintf("for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame); await new Promise((go) => setTimeout(go, 150)); "+
		"const r = document.querySelector(%q).getBoundingClientRect(); return Math.round((globalThis.mozInnerScreenX ?? screenX) + r.x + Math.min(40, r.width / 2)) + ' ' + Math.round((globalThis.mozInnerScreenY ?? screenY) + r.y + r.height / 2)", selector))
	if _, err := fmt.Sscan(at, &x, &y); err != nil {
		t.Fatalf("%s is at %q: %v", selector, at, err)
	}
	if err := u.Screen.Click(x, y); err != nil {
		t.Fatal(err)
	}
}

// note goes to the page with a field to type in.
func (u *webUse) note(t testing.TB) {
	t.Helper()
	u.drive(t, "/note")
	u.atNote(t)
}

// atNote waits for the field to type in and clicks it: Firefox drops keys, too,
// that come sooner than 100 ms after a new page's first picture.
func (u *webUse) atNote(t testing.TB) {
	t.Helper()
	until(t, patience, "the note is there", func() error {
		if got := u.run(t, "return location.pathname + ' ' + (document.activeElement||{}).id"); got != "/note note" {
			return errors.New(got)
		}
		return nil
	})
	u.click(t, "#note")
}

// drive sends the page elsewhere.
func (u *webUse) drive(t testing.TB, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := u.site.Drive(ctx, u.who(), to); err != nil {
		t.Fatal(err)
	}
}

// Where the rig's carrier and webproxy tell their metrics, in their namespaces.
const (
	carrierDebug  = "127.0.0.1:9471"
	webproxyDebug = "127.0.0.1:9473"
)

// metric reads a program's own figure, as it is now: what core knows of a node
// may be some seconds old.
func (w *webWorld) metric(ctx context.Context, ns, addr, name string) (int, error) {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return w.net.Dial(ctx, ns, network, addr)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b), "\n"+name+" ")
	var n float64
	if !ok {
		return 0, fmt.Errorf("no %s among the metrics in %s", name, ns)
	}
	_, err = fmt.Sscan(rest, &n)
	return int(n), err
}

// nothingLeft waits until the carrier has its parked browsers and nothing
// else, the webproxy no session, and core knows it.
func (w *webWorld) nothingLeft(t testing.TB) {
	t.Helper()
	until(t, refillTime, "nothing of any session is left", func() error {
		for _, m := range []struct {
			ns, addr, name string
			want           int
		}{
			{"carrier", carrierDebug, "caponier_carrier_sessions", 0},
			{"carrier", carrierDebug, "caponier_carrier_parked_browsers", webWarm},
			{"webproxy", webproxyDebug, "caponier_webproxy_sessions", 0},
		} {
			n, err := w.metric(t.Context(), m.ns, m.addr, m.name)
			if err != nil {
				return err
			}
			if n != m.want {
				return fmt.Errorf("%s is %d, want %d", m.name, n, m.want)
			}
		}
		for _, e := range []*harness.EdgeNode{w.carrier, w.proxy} {
			is, err := w.core.Admin.WebEdge(t.Context(), e.Name)
			if err != nil {
				return err
			}
			if is.Web == nil || is.Web.Live != 0 || e == w.carrier && is.Web.Warm != webWarm {
				return fmt.Errorf("%s has told %+v", e.Name, is.Web)
			}
		}
		ids, err := w.docker.Containers(t.Context())
		if err != nil {
			return err
		}
		if len(ids) != webWarm {
			return fmt.Errorf("%d containers, want the %d parked ones", len(ids), webWarm)
		}
		slots, err := os.ReadDir(w.runDir)
		if err != nil {
			return err
		}
		n := 0
		for _, s := range slots {
			if s.IsDir() {
				n++
			}
		}
		if n > webWarm {
			return fmt.Errorf("%d directories of sockets, want %d", n, webWarm)
		}
		return nil
	})
}

// startAt begins sessions at another page of the site.
func startAt(path string) func(*harness.WebTarget, *webrule.Policy) {
	return func(x *harness.WebTarget, _ *webrule.Policy) {
		x.Web.StartURL = strings.TrimSuffix(x.Web.StartURL, "/") + path
	}
}
