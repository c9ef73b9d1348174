package user

import (
	"encoding/base32"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
	"golang.org/x/crypto/ssh"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/settings"
)

// enrol gives u a second factor and returns its secret and recovery codes. A
// step passes, so that the next code is a fresh one.
func (r *room) enrol(u User) (secret string, recovery []string) {
	r.t.Helper()
	secret, _, err := r.BeginTOTP(r.t.Context(), u.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	recovery, err = r.ConfirmTOTP(r.t.Context(), tester, u.ID, r.code(secret))
	if err != nil {
		r.t.Fatal(err)
	}
	r.clock.Add(time.Minute)
	return secret, recovery
}

// code is what an authenticator app shows now.
func (r *room) code(secret string) string {
	r.t.Helper()
	c, err := totp.GenerateCode(secret, r.clock.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func TestTOTPEnrolment(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		if _, err := r.ConfirmTOTP(t.Context(), tester, u.ID, "000000"); problem(t, err).Code != "totp_not_begun" {
			t.Errorf("confirm before begin: %v", err)
		}
		secret, uri, err := r.BeginTOTP(t.Context(), u.ID)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := url.Parse(uri)
		if err != nil || parsed.Scheme != "otpauth" || parsed.Host != "totp" || parsed.Path != "/Caponier:jane" || parsed.Query().Get("secret") != secret {
			t.Errorf("url %s, %v", uri, err)
		}
		// Not confirmed: no code is asked for.
		r.must(r.login("jane", goodPassword, "", office))
		if _, err := r.ConfirmTOTP(t.Context(), tester, u.ID, "12345"); problem(t, err).Status != 422 {
			t.Errorf("wrong first code: %v", err)
		}
		recovery, err := r.ConfirmTOTP(t.Context(), tester, u.ID, r.code(secret))
		if err != nil || len(recovery) != recoveryMax {
			t.Fatalf("confirm: %d recovery codes, %v", len(recovery), err)
		}
		// The database holds neither the secret nor a code in the clear.
		rawSecret, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(secret)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := userByID(t.Context(), d, u.ID)
		if err != nil || strings.Contains(rec.totpSecret, secret) || strings.Contains(rec.totpSecret, string(rawSecret)) || rec.totpPending != "" {
			t.Errorf("stored %q, %q, %v", rec.totpSecret, rec.totpPending, err)
		}
	})
}

func TestTOTPLogin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		secret, _ := r.enrol(u)
		if _, err := r.login("jane", goodPassword, "", office); err != ErrNeedCode {
			t.Errorf("without a code: %v", err)
		}
		if _, err := r.login("jane", "wrong password", "", office); err != ErrBadCredentials {
			t.Errorf("wrong password without a code: %v", err)
		}
		code := r.code(secret)
		p := r.must(r.login("jane", goodPassword, code, office))
		if !p.MFA || strings.Join(p.Methods, " ") != "password totp" {
			t.Errorf("principal = %+v", p)
		}
		// The same code again, at once and from elsewhere.
		if _, err := r.login("jane", goodPassword, code, home); err != ErrBadCredentials {
			t.Errorf("replayed code: %v", err)
		}
		if last := r.events()[len(r.events())-1]; last.Fields["reason"] != "replayed_code" {
			t.Errorf("replay audited as %v", last.Fields)
		}
		// A code of an older step than the last one used is refused, too.
		r.clock.Add(30 * time.Second)
		previous := r.code(secret)
		r.clock.Add(30 * time.Second)
		r.must(r.login("jane", goodPassword, r.code(secret), office))
		if _, err := r.login("jane", goodPassword, previous, home); err != ErrBadCredentials {
			t.Errorf("code older than the last: %v", err)
		}
		// One step of skew is taken, two are not.
		r.clock.Add(10 * time.Minute)
		old := r.code(secret)
		r.clock.Add(time.Minute)
		if _, err := r.login("jane", goodPassword, old, netOf(1)); err != ErrBadCredentials {
			t.Errorf("code of two steps ago: %v", err)
		}
		recent := r.code(secret)
		r.clock.Add(30 * time.Second)
		r.must(r.login("jane", goodPassword, recent, netOf(2)))
	})
}

func TestWrongCodesAreLimited(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	secret, _ := r.enrol(r.person("jane"))
	good := r.code(secret)
	bad := "000000"
	if bad == good {
		bad = "000001"
	}
	for range 5 {
		if _, err := r.login("jane", goodPassword, bad, office); err != ErrBadCredentials {
			t.Fatal(err)
		}
	}
	if _, err := r.login("jane", goodPassword, good, office); err == nil || err == ErrBadCredentials {
		t.Errorf("6th code: %v, want a limit", err)
	}
}

func TestRecoveryCodesWorkOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		_, codes := r.enrol(u)
		lower := strings.ToLower(strings.ReplaceAll(codes[0], "-", " "))
		p := r.must(r.login("jane", goodPassword, lower, office))
		if !p.MFA || p.Methods[1] != "recovery" {
			t.Errorf("principal = %+v", p)
		}
		if _, err := r.login("jane", goodPassword, codes[0], office); err != ErrBadCredentials {
			t.Errorf("second use: %v", err)
		}
		if n, err := r.RecoveryLeft(t.Context(), u.ID); n != recoveryMax-1 || err != nil {
			t.Errorf("%d left, %v", n, err)
		}
		if n := r.countEvents(audit.LoginRecovery); n != 1 {
			t.Errorf("%d recovery events, want 1", n)
		}
		fresh, err := r.RenewRecovery(t.Context(), tester, u.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.login("jane", goodPassword, codes[1], home); err != ErrBadCredentials {
			t.Errorf("code from before the renewal: %v", err)
		}
		r.must(r.login("jane", goodPassword, fresh[0], home))
		if err := r.RemoveTOTP(t.Context(), tester, u.ID); err != nil {
			t.Fatal(err)
		}
		if err := r.StillValid(t.Context(), p); err == nil {
			t.Error("the login from before the removal is still good")
		}
		r.must(r.login("jane", goodPassword, "", home))
	})
}

func TestKeyAndCode(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	u := r.person("jane")
	key := newSSHKey(t).PublicKey()
	if _, err := r.AddKey(t.Context(), tester, u.ID, string(ssh.MarshalAuthorizedKey(key)), ""); err != nil {
		t.Fatal(err)
	}
	secret, _ := r.enrol(u)
	try := func(code string) (bool, error) {
		p, err := r.Login(t.Context(), Credentials{Name: "jane", Key: key, Code: code, Source: office})
		return err == nil && p.MFA, err
	}
	if mfa, err := try(""); mfa || err != nil {
		t.Errorf("key alone: mfa %v, %v", mfa, err)
	}
	if mfa, err := try(r.code(secret)); !mfa || err != nil {
		t.Errorf("key and code: mfa %v, %v", mfa, err)
	}
	if _, err := r.settings.Change(t.Context(), tester, 0, raw(settings.LoginKeyNeedsCode.Name(), `true`)); err != nil {
		t.Fatal(err)
	}
	if _, err := try(""); err != ErrNeedCode {
		t.Errorf("key alone, code wanted: %v", err)
	}
}
