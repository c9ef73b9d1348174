package signin

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func (b *browser) options() (v struct {
	Setup, Passkeys bool
	Certificate     string `json:"certificate_url"`
	SSO             []OptionView
}) {
	b.t.Helper()
	b.call("GET", "/login/options", nil).want(200, "").into(&v)
	return v
}

func TestFirstAdministrator(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		b := r.browser(office)
		if !b.options().Setup {
			t.Fatal("an empty installation does not offer set-up")
		}
		old, _, err := r.SetupCode(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		code, _, err := r.SetupCode(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		form := func(code, password string) obj {
			return obj{"code": code, "username": "Jane", "password": password, "cookie": true}
		}
		b.call("POST", "/setup", form(old, password)).want(403, "setup_code_wrong")
		b.call("POST", "/setup", form("", password)).want(403, "setup_code_wrong")
		b.call("POST", "/setup", form(code, "short")).want(422, "invalid")
		r.clock.Add(setupLife + time.Second)
		b.call("POST", "/setup", form(code, password)).want(403, "setup_code_expired")
		if code, _, err = r.SetupCode(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.call("POST", "/setup", form(" "+code[:4]+code[5:9]+" "+code[10:], password)).want(200, "")
		if m := b.me(); m.User.Name != "jane" || len(m.Permissions) == 0 {
			t.Errorf("the first administrator: %+v", m)
		}
		if b.options().Setup {
			t.Error("set-up is still offered")
		}
		b.call("POST", "/setup", form(code, password)).want(409, "already_set_up")
		if _, _, err := r.SetupCode(t.Context()); !errors.Is(err, ErrSetUp) {
			t.Errorf("a code after set-up: %v", err)
		}
		if n := r.count(audit.SetupRefused); n != 3 {
			t.Errorf("%d refusals audited, want 3", n)
		}
	})
}

// TestSetupIsClosedByBootstrap also shows that it stays closed.
func TestSetupIsClosedByBootstrap(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	code, _, err := r.SetupCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.admin()
	b := r.browser(home)
	b.call("POST", "/setup", obj{"code": code, "username": "evil", "password": password}).want(409, "already_set_up")
	if _, err := r.d.ExecContext(t.Context(), `delete from memberships`); err != nil {
		t.Fatal(err)
	}
	if b.options().Setup {
		t.Error("an installation that lost its administrators offers set-up to whoever comes")
	}
}

func TestSetupCodeDiesOfGuesses(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	code, _, err := r.SetupCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range setupTries {
		// From a new network each time: the limits per address are not what is tested.
		b := r.browser(fmt.Sprintf("10.0.%d.1", i))
		b.call("POST", "/setup", obj{"code": "aaaa-bbbb-cccc", "username": "x", "password": password}).want(403, "setup_code_wrong")
	}
	r.browser(home).call("POST", "/setup", obj{"code": code, "username": "x", "password": password}).want(403, "setup_code_void")
	b := r.browser(office)
	for range 5 {
		b.call("POST", "/setup", obj{"code": "a", "username": "x", "password": password}).want(403, "setup_code_void")
	}
	b.call("POST", "/setup", obj{"code": "a", "username": "x", "password": password}).want(429, "rate_limited")
}

func TestTwoSetUpAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		code, _, err := r.SetupCode(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		won := 0
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				a := r.browser(office).call("POST", "/setup", obj{"code": code, "username": "admin" + string(rune('a'+i)), "password": password})
				mu.Lock()
				defer mu.Unlock()
				switch a.StatusCode {
				case 200:
					won++
				case 409:
				default:
					t.Errorf("%d %s", a.StatusCode, a.body)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d of four became the first administrator", won)
		}
	})
}

func TestSetupCodeIsPrinted(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	var out bytes.Buffer
	r.Service.log = slog.New(slog.NewTextHandler(&out, nil))
	if err := r.offerSetup(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`setup_code=(\S+)`).FindStringSubmatch(out.String())
	if m == nil {
		t.Fatalf("no code in %s", out.String())
	}
	out.Reset()
	if err := r.offerSetup(t.Context(), false); err != nil || out.Len() > 0 {
		t.Errorf("a good code was replaced: %v %s", err, out.String())
	}
	r.browser(office).call("POST", "/setup", obj{"code": m[1], "username": "jane", "password": password}).want(200, "")
	r.clock.Add(2 * setupLife)
	if err := r.offerSetup(t.Context(), true); err != nil || out.Len() > 0 {
		t.Errorf("after set-up: %v %s", err, out.String())
	}
}

// Core starts, and makes a set-up code, under every name it can be reached by;
// where the name cannot have passkeys, they are off.
func TestPasskeysNeedADomain(t *testing.T) {
	for raw, want := range map[string]bool{
		"https://pam.example.org":      true,
		"https://pam.example.org:8443": true,
		"https://localhost:8443":       true,
		"https://10.1.2.3":             false,
		"https://10.1.2.3:8443":        false,
		"https://[fd00::1]:8443":       false,
		"https://core-1":               false,
		"https://core_1:8443":          false,
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if rp, err := relyingParty(u); err != nil || (rp != nil) != want {
			t.Errorf("%s: passkeys %v, %v; want %v", raw, rp != nil, err, want)
		}
	}
}
