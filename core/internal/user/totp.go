package user

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
)

// RFC 6238 with what every authenticator app understands: SHA-1, six digits,
// 30 seconds, and one step of clock skew either way.
const (
	totpPeriod  = 30 // seconds
	totpSkew    = 1  // steps
	totpSecret  = 20 // bytes, RFC 4226 §4 R6
	totpDigits  = 6
	recoveryMax = 10 // recovery codes per user
)

func totpPlace(userID, column string) vault.Place {
	return vault.Place{Table: "users", Column: column, Row: userID}
}

func (s *Service) seal(userID, column string, plain []byte) (string, error) {
	b, err := s.sealer.Seal(totpPlace(userID, column), plain)
	if err != nil {
		return "", fmt.Errorf("seal second factor: %w", err)
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

func (s *Service) unseal(userID, column, sealed string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(sealed)
	if err != nil {
		return nil, fmt.Errorf("open second factor: %w", err)
	}
	plain, err := s.sealer.Open(totpPlace(userID, column), b)
	if err != nil {
		return nil, fmt.Errorf("open second factor: %w", err)
	}
	return plain, nil
}

// BeginTOTP makes a new secret for the user and returns it with the URL that
// authenticator apps read. It counts only after ConfirmTOTP; a secret enrolled
// before stays in force until then.
func (s *Service) BeginTOTP(ctx context.Context, userID string) (secret, uri string, err error) {
	raw := make([]byte, totpSecret)
	rand.Read(raw)
	sealed, err := s.seal(userID, "totp_pending", raw)
	if err != nil {
		return "", "", err
	}
	var u record
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if u, err = userByID(ctx, tx, userID); err != nil {
			return err
		}
		if u.Kind != Person || !u.ErasedAt.IsZero() {
			return api.Conflict("no_totp", "This account cannot have a second factor.")
		}
		return changeOne(ctx, tx, sqlTOTPPending, userID, sealed)
	})
	if err != nil {
		return "", "", fmt.Errorf("begin totp: %w", err)
	}
	secret = base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw)
	v := url.Values{"secret": {secret}, "issuer": {s.issuer}, "algorithm": {"SHA1"},
		"digits": {fmt.Sprint(totpDigits)}, "period": {fmt.Sprint(totpPeriod)}}
	// Apps do not read "+" as a space.
	uri = "otpauth://totp/" + url.PathEscape(s.issuer+":"+u.Name) + "?" + strings.ReplaceAll(v.Encode(), "+", "%20")
	return secret, uri, nil
}

// ConfirmTOTP enrols the pending secret when code proves that the user's app
// has it, and returns fresh recovery codes, shown once.
func (s *Service) ConfirmTOTP(ctx context.Context, by audit.Actor, userID, code string) ([]string, error) {
	var codes []string
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, userID)
		if err != nil {
			return err
		}
		if u.totpPending == "" {
			return api.Conflict("totp_not_begun", "Begin the enrolment first.")
		}
		raw, err := s.unseal(userID, "totp_pending", u.totpPending)
		if err != nil {
			return err
		}
		step, ok := matchTOTP(raw, code, s.now())
		if !ok {
			return api.Invalid(api.FieldError{Field: "body.code", Message: "is not the code the app shows now; check the clock of the phone"})
		}
		sealed, err := s.seal(userID, "totp_secret", raw)
		if err != nil {
			return err
		}
		if err := changeOne(ctx, tx, sqlTOTPSet, userID, sealed, step); err != nil {
			return err
		}
		if codes, err = s.renewRecovery(ctx, tx, userID); err != nil {
			return err
		}
		if err := tx.Notify(ctx, "user", userID); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserTOTPEnrolled, Outcome: audit.OK, Actor: by, Object: u.object()})
	})
	if err != nil {
		return nil, fmt.Errorf("confirm totp: %w", err)
	}
	return codes, nil
}

// RemoveTOTP takes the second factor and its recovery codes away.
func (s *Service) RemoveTOTP(ctx context.Context, by audit.Actor, userID string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, userID)
		if err != nil {
			return err
		}
		if !u.TOTP && u.totpPending == "" {
			return nil
		}
		if err := changeOne(ctx, tx, sqlTOTPSet, userID, "", u.totpStep); err != nil {
			return err
		}
		if u.Passkeys == 0 { // else they stand in for a lost passkey
			if _, err := tx.ExecContext(ctx, sqlRecoveryClear, userID); err != nil {
				return err
			}
		}
		if err := s.signOut(ctx, tx, userID, ""); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserTOTPRemoved, Outcome: audit.OK, Actor: by, Object: u.object()})
	})
	if err != nil {
		return fmt.Errorf("remove totp: %w", err)
	}
	return nil
}

// RenewRecovery replaces the recovery codes of a user who has a second factor.
func (s *Service) RenewRecovery(ctx context.Context, by audit.Actor, userID string) ([]string, error) {
	var codes []string
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, userID)
		if err != nil {
			return err
		}
		if !u.MFA() {
			return api.Conflict("no_totp", "Enrol a second factor first.")
		}
		if codes, err = s.renewRecovery(ctx, tx, userID); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserChanged, Outcome: audit.OK, Actor: by, Object: u.object(),
			Fields: map[string]string{"recovery_codes": "renewed"}})
	})
	if err != nil {
		return nil, fmt.Errorf("renew recovery codes: %w", err)
	}
	return codes, nil
}

// renewRecovery replaces the user's recovery codes.
func (s *Service) renewRecovery(ctx context.Context, tx *db.Tx, userID string) ([]string, error) {
	if _, err := tx.ExecContext(ctx, sqlRecoveryClear, userID); err != nil {
		return nil, err
	}
	codes := make([]string, 0, recoveryMax)
	for range recoveryMax {
		t := rand.Text()[:16] // 80 bits
		code := t[0:4] + "-" + t[4:8] + "-" + t[8:12] + "-" + t[12:16]
		if _, err := tx.ExecContext(ctx, sqlRecoveryInsert, userID, hashSecret(canonicalRecovery(code))); err != nil {
			return nil, db.Classify(err)
		}
		codes = append(codes, code)
	}
	return codes, nil
}

func canonicalRecovery(code string) string {
	return strings.ToUpper(strings.NewReplacer("-", "", " ", "").Replace(code))
}

// useCode consumes a TOTP or recovery code of u in tx. The same code never
// works twice: the step it belongs to must be later than the last one used.
func (s *Service) useCode(ctx context.Context, tx *db.Tx, u *record, code string) (method, reason string, err error) {
	code = strings.TrimSpace(code)
	if len(code) > 32 {
		return "", "bad_code", nil
	}
	if len(strings.ReplaceAll(code, " ", "")) > totpDigits {
		n, err := affected(tx.ExecContext(ctx, sqlRecoveryUse, u.ID, hashSecret(canonicalRecovery(code))))
		if err != nil {
			return "", "", fmt.Errorf("use recovery code: %w", err)
		}
		if n == 0 {
			return "", "bad_recovery_code", nil
		}
		return "recovery", "", nil
	}
	if !u.TOTP {
		return "", "bad_code", nil
	}
	raw, err := s.unseal(u.ID, "totp_secret", u.totpSecret)
	if err != nil {
		return "", "", err
	}
	step, ok := matchTOTP(raw, code, s.now())
	if !ok {
		return "", "bad_code", nil
	}
	n, err := affected(tx.ExecContext(ctx, sqlTOTPStep, u.ID, step))
	if err != nil {
		return "", "", fmt.Errorf("use code: %w", err)
	}
	if n == 0 {
		return "", "replayed_code", nil
	}
	return "totp", "", nil
}

// matchTOTP finds the step, near now, whose code this is. It always compares
// with every step, in constant time.
func matchTOTP(secret []byte, code string, now time.Time) (step int64, ok bool) {
	code = strings.ReplaceAll(code, " ", "")
	text := base32.StdEncoding.EncodeToString(secret)
	current := now.Unix() / totpPeriod
	for at := current - totpSkew; at <= current+totpSkew; at++ {
		if at < 0 {
			continue
		}
		want, err := hotp.GenerateCodeCustom(text, uint64(at), hotp.ValidateOpts{Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1})
		if err != nil {
			return 0, false
		}
		if subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			step, ok = at, true
		}
	}
	return step, ok
}

// RecoveryLeft counts the user's unused recovery codes.
func (s *Service) RecoveryLeft(ctx context.Context, userID string) (n int, err error) {
	if err := s.db.QueryRowContext(ctx, sqlRecoveryCount, userID).Scan(&n); err != nil {
		return 0, fmt.Errorf("count recovery codes: %w", err)
	}
	return n, nil
}

// Reauthenticate asks the caller of an open session for password and code
// again, under the same limits as a login: a found session or terminal must
// not be enough to change what proves who somebody is.
//
// Whoever has no password (he comes by passkey, single sign-on or certificate)
// proves it by a session he opened within freshLogin.
func (s *Service) Reauthenticate(ctx context.Context, p *api.Principal, password, code string) error {
	u, err := userByID(ctx, s.db, p.UserID)
	if err != nil {
		return err
	}
	if !u.Password && password == "" {
		return s.freshSession(ctx, p)
	}
	if isBearer(password) {
		return api.Denied("bad_credentials", "The password is not right.")
	}
	again, err := s.Login(ctx, Credentials{Name: p.UserName, Password: password, Code: code, Source: p.Source, Via: p.Via})
	switch limit, limited := errors.AsType[*LimitError](err); {
	case limited:
		return limit.problem()
	case errors.Is(err, ErrNeedCode) && !u.TOTP && p.MFA:
		return nil // the password was right, and his passkey opened the session
	case errors.Is(err, ErrNeedCode) && !u.TOTP:
		return api.Denied("sign_in_again", "Sign out and in again with your passkey, or send a recovery code, too.")
	case errors.Is(err, ErrNeedCode):
		return api.Denied("totp_required", "Send the code of your second factor, too.")
	case errors.Is(err, ErrBadCredentials):
		return api.Denied("bad_credentials", "The password or code is not right.")
	case err != nil:
		return err
	case again.UserID != p.UserID:
		return api.Denied("bad_credentials", "The password or code is not right.")
	}
	return nil
}

// freshLogin is how old a session may be to stand for its owner being there.
const freshLogin = 10 * time.Minute

// freshSession refuses a session that was not opened just now.
func (s *Service) freshSession(ctx context.Context, p *api.Principal) error {
	v, err := scanSession(s.db.QueryRowContext(ctx, sqlSessionByID, p.Session))
	if err != nil && !errors.Is(err, db.ErrNotFound) {
		return fmt.Errorf("look at the session: %w", err)
	}
	if err != nil || v.UserID != p.UserID || s.now().Sub(v.CreatedAt) > freshLogin {
		return api.Denied("sign_in_again", "Sign out and in again, and do this within ten minutes.")
	}
	return nil
}
