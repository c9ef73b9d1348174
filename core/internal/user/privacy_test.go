package user

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// shelf is another room's data about people.
type shelf struct {
	names map[string]string
	fail  error
}

func (s *shelf) Name() string { return "shelf" }

func (s *shelf) Export(_ context.Context, _ db.Querier, id string) (any, error) {
	return s.names[id], nil
}

func (s *shelf) Erase(_ context.Context, _ *db.Tx, id, pseudonym string) error {
	if s.fail == nil {
		s.names[id] = pseudonym
	}
	return s.fail
}

// named finds her name as a whole word: IDs are drawn at random, and any four
// letters come up inside one some day.
var named = regexp.MustCompile(`\bjanes?\b`)

func TestExportAndErase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		jane := r.person("jane")
		secret, recovery := r.enrol(jane)
		r.join(r.role("ops"), jane, access.Window{})
		if _, err := r.AddKey(t.Context(), tester, jane.ID, string(ssh.MarshalAuthorizedKey(newSSHKey(t).PublicKey())), "jane@laptop"); err != nil {
			t.Fatal(err)
		}
		p := r.must(r.login("jane", goodPassword, r.code(secret), office))
		if _, _, err := r.OpenSession(t.Context(), p, CookieSession, "janes browser"); err != nil {
			t.Fatal(err)
		}
		_, token, err := r.CreateToken(t.Context(), p, "janes script", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		holder := &shelf{names: map[string]string{jane.ID: "janes book"}}

		all, err := r.Export(t.Context(), tester, jane.ID, []Holder{holder})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"jane@example.org", "jane@laptop", "janes browser", "janes script", "janes book", "ops", "login.succeeded", office.String()} {
			if !strings.Contains(string(text), want) {
				t.Errorf("export lacks %q", want)
			}
		}
		for _, never := range []string{goodPassword, "argon2id", secret, recovery[0], token, hashSecret(token)} {
			if strings.Contains(string(text), never) {
				t.Errorf("export holds the secret %q", never)
			}
		}

		holder.fail = errors.New("shelf is stuck")
		if err := r.Erase(t.Context(), tester, jane.ID, any64, []Holder{holder}); err == nil {
			t.Error("erased although a holder failed")
		}
		if u, err := r.ByName(t.Context(), "jane"); err != nil || !u.ErasedAt.IsZero() {
			t.Errorf("half erased: %+v, %v", u, err)
		}
		holder.fail = nil
		if err := r.Erase(t.Context(), tester, jane.ID, any64, []Holder{holder}); err != nil {
			t.Fatal(err)
		}
		u, err := r.Get(t.Context(), jane.ID)
		if err != nil || named.MatchString(u.Name) || u.Email != "" || u.DisplayName != "" || u.ErasedAt.IsZero() || !u.Disabled || u.TOTP || u.Password {
			t.Errorf("after erasure: %+v, %v", u, err)
		}
		again, err := r.Export(t.Context(), tester, jane.ID, []Holder{holder})
		if err != nil {
			t.Fatal(err)
		}
		if text, err = json.Marshal(again); err != nil || named.Match(text) || strings.Contains(string(text), office.String()) {
			t.Errorf("export after erasure still knows her: %s, %v", text, err)
		}
		report, err := r.log.Verify(t.Context(), nil, "")
		if err != nil || !report.OK {
			t.Errorf("audit chain after erasure: %+v, %v", report, err)
		}
		if err := r.Erase(t.Context(), tester, jane.ID, any64, nil); err != nil {
			t.Errorf("erase twice: %v", err)
		}
		for what, err := range map[string]error{
			"update":   second(r.Update(t.Context(), tester, jane.ID, any64, Change{Unpause: true})),
			"password": r.SetPassword(t.Context(), tester, jane.ID, "another good one"),
			"key":      second(r.AddKey(t.Context(), tester, jane.ID, string(ssh.MarshalAuthorizedKey(newSSHKey(t).PublicKey())), "")),
			"role":     second(r.PutMember(t.Context(), tester, AdministratorRole, jane.ID, access.Window{}, nil, any64)),
		} {
			if err == nil || problem(t, err).Status != 409 {
				t.Errorf("%s of an erased user: %v", what, err)
			}
		}
		// The name is free again, for somebody else.
		if other := r.person("jane"); other.ID == jane.ID {
			t.Error("the same row")
		}
	})
}

func TestEraseYourself(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	jane := r.person("jane")
	p := r.must(r.login("jane", goodPassword, "", office))
	ctx := api.WithPrincipal(t.Context(), p)
	if err := r.Erase(ctx, actorOf(ctx), jane.ID, any64, nil); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.events() {
		text, err := json.Marshal(e)
		if err != nil || named.Match(text) {
			t.Errorf("event still names her: %s, %v", text, err)
		}
	}
}
