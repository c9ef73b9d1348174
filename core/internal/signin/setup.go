package signin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

// A set-up code has 60 random bits, lives an hour and survives ten wrong tries.
const (
	setupLife  = time.Hour
	setupTries = 10
)

const (
	sqlSetup        = `select hash, expires_at, tries, done_at from setup_code where id = 'first'`
	sqlSetupOffer   = `update setup_code set hash = $1, created_at = $2, expires_at = $3, tries = 0 where id = 'first' and done_at = 0`
	sqlSetupTried   = `update setup_code set tries = tries + 1 where id = 'first'`
	sqlSetupDone    = `update setup_code set done_at = $1, hash = '' where id = 'first' and done_at = 0`
	sqlSetupClaimed = `update setup_code set done_at = $1, hash = '' where id = 'first' and done_at = 0 and hash = $2 and hash <> ''`
)

// ErrSetUp says that there is, or was, an administrator.
var ErrSetUp = &api.Problem{Status: 409, Title: "Caponier is set up already.", Code: "already_set_up", Detail: "Sign in, or ask an administrator."}

type setupRow struct {
	hash    string
	expires time.Time
	tries   int
	done    bool
}

func readSetup(ctx context.Context, q db.Querier) (r setupRow, err error) {
	var expires, done int64
	if err := q.QueryRowContext(ctx, sqlSetup).Scan(&r.hash, &expires, &r.tries, &done); err != nil {
		return r, fmt.Errorf("read set-up code: %w", err)
	}
	r.expires, r.done = db.FromMicro(expires), done != 0
	return r, nil
}

// needed reports whether the first administrator is still to be made. Once
// there was one, never again.
func (s *Service) needed(ctx context.Context, q db.Querier) (bool, error) {
	r, err := readSetup(ctx, q)
	if err != nil || r.done {
		return false, err
	}
	has, err := s.users.HasAdministrator(ctx, q)
	if err != nil || !has {
		return !has && err == nil, err
	}
	if _, err := q.ExecContext(ctx, sqlSetupDone, s.now().UnixMicro()); err != nil {
		return false, fmt.Errorf("close set-up: %w", err)
	}
	return false, nil
}

// SetupCode makes a new set-up code, which replaces the one before. ErrSetUp
// when there is an administrator.
func (s *Service) SetupCode(ctx context.Context) (code string, expires time.Time, err error) {
	t := strings.ToLower(rand.Text()[:12])
	code = t[0:4] + "-" + t[4:8] + "-" + t[8:12]
	now := s.now()
	expires = now.Add(setupLife)
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		need, err := s.needed(ctx, tx)
		if err != nil {
			return err
		}
		if !need {
			return ErrSetUp
		}
		if _, err := tx.ExecContext(ctx, sqlSetupOffer, setupHash(code), now.UnixMicro(), expires.UnixMicro()); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.SetupCodeMade, Outcome: audit.OK, Actor: audit.System,
			Object: audit.Object{Kind: "system"}, Fields: map[string]string{"expires": expires.UTC().Format(time.RFC3339)}})
	})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("make set-up code: %w", err)
	}
	return code, expires, nil
}

// offerSetup prints a set-up code while one is needed: a new one when core has
// started, whose log may be all there is to see, else when the one before is
// about to expire or void.
func (s *Service) offerSetup(ctx context.Context, started bool) error {
	need, err := s.needed(ctx, s.db)
	if err != nil || !need {
		return err
	}
	r, err := readSetup(ctx, s.db)
	if err != nil {
		return err
	}
	if !started && r.hash != "" && s.now().Before(r.expires.Add(-tidyEvery)) && r.tries < setupTries {
		return nil
	}
	code, expires, err := s.SetupCode(ctx)
	if err != nil {
		return err
	}
	s.log.Info("there is no administrator yet: open the console and enter the set-up code", "url", s.url.String(), "setup_code", code, "until", expires.UTC().Format(time.RFC3339))
	return nil
}

func setupHash(code string) string {
	canonical := strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(code))
	h := sha256.Sum256([]byte("caponier set-up " + canonical))
	return hex.EncodeToString(h[:])
}

type setupInput struct {
	Agent string `header:"User-Agent"`
	Body  struct {
		Code        string `json:"code" maxLength:"32" doc:"As core printed it, or caponier-core admin code."`
		Username    string `json:"username" maxLength:"64" example:"admin"`
		DisplayName string `json:"display_name,omitempty" maxLength:"200"`
		Password    string `json:"password" maxLength:"256"`
		Cookie      bool   `json:"cookie,omitempty" doc:"Answer with a session cookie instead of a bearer token."`
	}
}

// handleSetup makes the first administrator and signs him in.
func (s *Service) handleSetup(ctx context.Context, in *setupInput) (*user.LoginOutput, error) {
	b, source := in.Body, api.SourceFrom(ctx)
	via, kind := front(b.Cookie)
	done, err := s.users.Attempt(ctx, setupBucket, source, via)
	if err != nil {
		return nil, user.LoginProblem(err)
	}
	failed := true
	defer func() { done(failed) }()
	if err := s.trySetupCode(ctx, b.Code, source, via); err != nil {
		return nil, err
	}
	failed = false
	by := audit.Actor{Kind: "anonymous", Name: "first set-up", Source: addrText(source), Via: via}
	d := user.Draft{Name: strings.ToLower(b.Username), DisplayName: b.DisplayName, Password: b.Password}
	_, err = s.users.SetUp(ctx, by, d, func(tx *db.Tx) error { return s.claimSetup(ctx, tx, b.Code) })
	if err != nil {
		return nil, err
	}
	p, err := s.users.Login(ctx, user.Credentials{Name: d.Name, Password: b.Password, Source: source, Via: via})
	if err != nil {
		return nil, user.LoginProblem(err)
	}
	return s.users.Answer(ctx, p, kind, in.Agent, user.Origin{})
}

// setupBucket stands for the user name in the limits; no user can have it.
const setupBucket = "(set-up)"

// trySetupCode checks the code and counts a wrong one.
func (s *Service) trySetupCode(ctx context.Context, code string, source netip.Addr, via string) error {
	var refusal error
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		refusal = nil
		need, err := s.needed(ctx, tx)
		if err != nil {
			return err
		}
		if !need {
			refusal = ErrSetUp
			return nil
		}
		r, err := readSetup(ctx, tx)
		if err != nil {
			return err
		}
		var reason string
		switch {
		case r.hash == "" || !s.now().Before(r.expires):
			reason = "expired"
		case r.tries >= setupTries:
			reason = "too_many_tries"
		case subtle.ConstantTimeCompare([]byte(setupHash(code)), []byte(r.hash)) != 1:
			reason = "wrong_code"
			if _, err := tx.ExecContext(ctx, sqlSetupTried); err != nil {
				return err
			}
		default:
			return nil
		}
		refusal = setupRefusals[reason]
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.SetupRefused, Outcome: audit.Denied,
			Actor:  audit.Actor{Kind: "anonymous", Source: addrText(source), Via: via},
			Object: audit.Object{Kind: "system"}, Fields: map[string]string{"reason": reason}})
	})
	if err != nil {
		return fmt.Errorf("check set-up code: %w", err)
	}
	return refusal
}

var setupRefusals = map[string]*api.Problem{
	"expired": {Status: http.StatusForbidden, Title: "The set-up code has expired.", Code: "setup_code_expired",
		Detail: "Run on the server: caponier-core admin code"},
	"too_many_tries": {Status: http.StatusForbidden, Title: "The set-up code was tried too often.", Code: "setup_code_void",
		Detail: "Run on the server for a new one: caponier-core admin code"},
	"wrong_code": {Status: http.StatusForbidden, Title: "The set-up code is not right.", Code: "setup_code_wrong",
		Detail: "It is in core's log; caponier-core admin code on the server makes a new one."},
}

// claimSetup closes set-up for good; of two at once, one gets it.
func (s *Service) claimSetup(ctx context.Context, tx *db.Tx, code string) error {
	need, err := s.needed(ctx, tx)
	if err != nil {
		return err
	}
	if !need {
		return ErrSetUp
	}
	res, err := tx.ExecContext(ctx, sqlSetupClaimed, s.now().UnixMicro(), setupHash(code))
	if err != nil {
		return fmt.Errorf("claim set-up code: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return ErrSetUp
	}
	return nil
}

// front is how a login came and what kind of session it wants.
func front(cookie bool) (via string, kind user.SessionKind) {
	if cookie {
		return "console", user.CookieSession
	}
	return "api", user.BearerSession
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}
