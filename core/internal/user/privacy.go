package user

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Holder is another room that keeps data about people.
type Holder interface {
	// Name is the key of the room's part in an export.
	Name() string
	// Export returns what the room knows about the user, ready for JSON.
	Export(ctx context.Context, q db.Querier, userID string) (any, error)
	// Erase removes it, or puts pseudonym in place of what names the user.
	Erase(ctx context.Context, tx *db.Tx, userID, pseudonym string) error
}

// Export is everything core knows about a user (GDPR art. 15, 20), ready for
// JSON. Secrets and hashes are not part of it.
func (s *Service) Export(ctx context.Context, by audit.Actor, userID string, holders []Holder) (map[string]any, error) {
	out := map[string]any{}
	err := s.db.View(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, userID)
		if err != nil {
			return err
		}
		out["exported_at"] = s.now().UTC()
		out["user"] = showUser(u.User)
		parts := []struct {
			name string
			read func() (any, error)
		}{
			{"memberships", func() (any, error) {
				return shown(showMember)(query(ctx, tx, scanMember, sqlUserMembers, userID, access.Everywhere().Text()))
			}},
			{"ssh_keys", func() (any, error) { return shown(showKey)(query(ctx, tx, scanKey, sqlKeysOfUser, userID)) }},
			{"tokens", func() (any, error) { return shown(showToken)(query(ctx, tx, scanToken, sqlTokensOfUser, userID)) }},
			{"sessions", func() (any, error) {
				return shown(showSession)(query(ctx, tx, scanSession, sqlSessionsAll, userID))
			}},
			{"preferences", func() (any, error) { return s.preferences(ctx, tx, userID) }},
		}
		for _, p := range parts {
			if out[p.name], err = p.read(); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		if out["audit_events"], err = s.eventsAbout(ctx, tx, userID); err != nil {
			return err
		}
		for _, h := range holders {
			if out[h.Name()], err = h.Export(ctx, tx, userID); err != nil {
				return fmt.Errorf("%s: %w", h.Name(), err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("export user: %w", err)
	}
	return out, s.audit.Write(ctx, audit.Event{Type: audit.UserExported, Outcome: audit.OK, Actor: by,
		Object: audit.Object{Kind: "user", ID: userID}})
}

// maxExportEvents bounds the audit events in one export; the newest count.
const maxExportEvents = 100_000

func (s *Service) eventsAbout(ctx context.Context, q db.Querier, userID string) ([]audit.Entry, error) {
	events := []audit.Entry{}
	var before int64
	for len(events) < maxExportEvents {
		page, err := s.audit.Find(ctx, q, audit.Filter{About: userID}, before, 1000)
		if err != nil {
			return nil, fmt.Errorf("audit events: %w", err)
		}
		if len(page) == 0 {
			break
		}
		events = append(events, page...)
		before = page[len(page)-1].Seq
	}
	return events, nil
}

const sqlSessionsAll = `select ` + sessionColumns + ` from sessions s where s.user_id = $1 order by s.created_at`

// shown turns a list of rows into what the API shows of them.
func shown[T, U any](show func(T) U) func([]T, error) (any, error) {
	return func(list []T, err error) (any, error) {
		out := make([]U, 0, len(list))
		for _, v := range list {
			out = append(out, show(v))
		}
		return out, err
	}
}

// Erase removes everything that names or authenticates a user (GDPR art. 17)
// and keeps an anonymous row, so that audit events and connections still refer
// to one and the same, unknown, person. It cannot be undone. The audit chain
// stays valid: see audit.
func (s *Service) Erase(ctx context.Context, by audit.Actor, userID string, match func(version int64) error, holders []Holder) error {
	pseudonym := "erased-" + userID[max(0, len(userID)-10):]
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		return s.guardAdministrators(ctx, tx, func() error {
			return s.erase(ctx, tx, by, userID, pseudonym, match, holders)
		})
	})
	if err != nil {
		return fmt.Errorf("erase user: %w", err)
	}
	return nil
}

func (s *Service) erase(ctx context.Context, tx *db.Tx, by audit.Actor, userID, pseudonym string, match func(int64) error, holders []Holder) error {
	u, err := userByID(ctx, tx, userID)
	if err != nil {
		return err
	}
	if err := match(u.Version); err != nil {
		return err
	}
	if !u.ErasedAt.IsZero() {
		return nil
	}
	for _, text := range []string{sqlKeysErase, sqlTokensErase, sqlSessionsErase, sqlMembersErase, sqlRecoveryClear, sqlClientDelete, sqlPreferencesErase} {
		if _, err := tx.ExecContext(ctx, text, userID); err != nil {
			return err
		}
	}
	if err := changeOne(ctx, tx, sqlUserErase, userID, pseudonym, true, s.now().UnixMicro()); err != nil {
		return err
	}
	for _, h := range holders {
		if err := h.Erase(ctx, tx, userID, pseudonym); err != nil {
			return fmt.Errorf("%s: %w", h.Name(), err)
		}
	}
	if err := tx.Notify(ctx, "user", userID); err != nil {
		return err
	}
	// Last: it writes the event of the erasure, which must not name him either.
	return s.audit.Erase(ctx, tx, userID, eraser(by, userID, pseudonym))
}

// eraser is the actor of an erasure, nameless if he erases himself.
func eraser(by audit.Actor, userID, pseudonym string) audit.Actor {
	if by.ID == userID {
		by.Name, by.Source = pseudonym, ""
	}
	return by
}

// BootstrapAdmin makes sure that name is a person who can log in with
// password and administers: for a new installation, and as the way back in when
// nobody can. It creates the user or re-enables him, sets the password, takes
// his second factor away and makes him an administrator without limits. An
// empty password makes one up, which is returned.
func (s *Service) BootstrapAdmin(ctx context.Context, name, password string) (User, string, error) {
	if password == "" {
		password = generatePassword()
	}
	if err := s.checkDraft(Draft{Name: name, Password: password}); err != nil {
		return User{}, "", err
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return User{}, "", err
	}
	by := audit.Actor{Kind: "system", Name: "admin bootstrap", Via: "cli"}
	var made record
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByName(ctx, tx, name)
		switch {
		case errors.Is(err, db.ErrNotFound):
			u, err = s.insert(ctx, tx, by, Person, db.NewID("usr_"), Draft{Name: name}, hash)
		case err == nil:
			err = s.recoverAdmin(ctx, tx, by, u, hash)
		}
		if err != nil {
			return err
		}
		_, err = s.putMember(ctx, tx, by, AdministratorRole, u.ID, "{}", "[]", func(int64) error { return nil })
		if err != nil {
			return err
		}
		if made, err = userByID(ctx, tx, u.ID); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserBootstrapped, Outcome: audit.OK, Actor: by, Object: made.object()})
	})
	if err != nil {
		return User{}, "", fmt.Errorf("bootstrap administrator: %w", err)
	}
	return made.User, password, nil
}

func (s *Service) recoverAdmin(ctx context.Context, tx *db.Tx, by audit.Actor, u record, hash string) error {
	if u.Kind != Person {
		return api.Conflict("not_a_person", fmt.Sprintf("%s is an API client.", u.Name))
	}
	off := false
	if _, err := s.update(ctx, tx, by, u.ID, func(int64) error { return nil }, Change{Disabled: &off, Locked: &off, Unpause: true}); err != nil {
		return err
	}
	if u.TOTP {
		if err := changeOne(ctx, tx, sqlTOTPSet, u.ID, "", u.totpStep); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlRecoveryClear, u.ID); err != nil {
			return err
		}
		if err := s.audit.Append(ctx, tx, audit.Event{Type: audit.UserTOTPRemoved, Outcome: audit.OK, Actor: by, Object: u.object()}); err != nil {
			return err
		}
	}
	return s.storePassword(ctx, tx, by, &u.User, hash, "")
}

// Run keeps the room tidy until ctx ends: it forgets sessions and tokens that
// are long over and login limits that are served.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n, err := s.tidy(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Warn("cannot tidy sessions and tokens", "err", err)
		case n > 0:
			s.log.Debug("tidied sessions and tokens", "rows", strconv.FormatInt(n, 10))
		}
	}
}

const (
	tidyEvery = 10 * time.Minute
	// keepSessions and keepTokens is how long dead rows stay for people to see.
	keepSessions = 7 * 24 * time.Hour
	keepTokens   = 90 * 24 * time.Hour
)

func (s *Service) tidy(ctx context.Context) (removed int64, err error) {
	s.limiter.prune(currentLimits(s.settings))
	now := s.now()
	for _, p := range []struct {
		text   string
		before time.Time
	}{
		{sqlSessionsPurge, now.Add(-keepSessions)},
		{sqlTokensPurge, now.Add(-time.Hour)},
		{sqlTokensForget, now.Add(-keepTokens)},
	} {
		n, err := affected(s.db.ExecContext(ctx, p.text, p.before.UnixMicro()))
		if err != nil {
			return removed, fmt.Errorf("tidy: %w", err)
		}
		removed += n
	}
	if _, err := s.purgeFailures(ctx); err != nil {
		return removed, fmt.Errorf("tidy: %w", err)
	}
	return removed, nil
}
