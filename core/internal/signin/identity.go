package signin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

// Identity says that a subject of a provider is a user here.
type Identity struct {
	ID           string
	ProviderID   string
	ProviderName string
	Label        string
	Subject      string
	UserID       string
	CreatedAt    time.Time
	CreatedBy    string // self, rule, first sign-in, or the ID of an administrator
	LastUsed     time.Time
}

const identityFrom = `select i.id, i.provider_id, p.name, p.config, i.subject, i.user_id, i.created_at, i.created_by, i.last_used
from sso_identities i join sso_providers p on p.id = i.provider_id `

const (
	sqlIdentity         = identityFrom + `where i.provider_id = $1 and i.subject = $2`
	sqlIdentitiesOfUser = identityFrom + `where i.user_id = $1 order by p.name, i.created_at`
	sqlIdentityInsert   = `insert into sso_identities (id, provider_id, subject, user_id, created_at, created_by, last_used)
values ($1, $2, $3, $4, $5, $6, 0)`
	sqlIdentityUsed    = `update sso_identities set last_used = $2 where id = $1`
	sqlIdentityDelete  = `delete from sso_identities where id = $1 and user_id = $2`
	sqlIdentitiesErase = `delete from sso_identities where user_id = $1`
)

func scanIdentity(row interface{ Scan(...any) error }) (Identity, error) {
	var i Identity
	var p Provider
	var config string
	var created, used int64
	if err := row.Scan(&i.ID, &i.ProviderID, &i.ProviderName, &config, &i.Subject, &i.UserID, &created, &i.CreatedBy, &used); err != nil {
		return i, db.Classify(err)
	}
	i.CreatedAt, i.LastUsed = db.FromMicro(created), db.FromMicro(used)
	err := decodeConfig(config, &p.Config)
	i.Label = p.Config.Label
	return i, err
}

func identities(ctx context.Context, q db.Querier, query string, args ...any) ([]Identity, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list identities: %w", err)
	}
	defer rows.Close()
	var out []Identity
	for rows.Next() {
		i, err := scanIdentity(rows)
		if err != nil {
			return nil, fmt.Errorf("list identities: %w", err)
		}
		out = append(out, i)
	}
	return out, rows.Err()
}

// resolve says which user a verified person is, linking or creating one where
// the provider's rules allow it, and brings his roles up to date.
func (s *Service) resolve(ctx context.Context, p Provider, f flow, who person, source netip.Addr) (userID string, err error) {
	by := audit.Actor{Kind: "sso_provider", ID: p.ID, Name: p.Name, Source: addrText(source), Via: "console"}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		i, err := scanIdentity(tx.QueryRowContext(ctx, sqlIdentity, p.ID, who.Subject))
		switch {
		case err == nil:
			userID = i.UserID
			if f.LinkUser != "" && f.LinkUser != userID {
				return ssoProblem(409, "sso_linked_elsewhere", "This identity is somebody else's here.", "Sign out at the provider and try with your own.")
			}
			if _, err := tx.ExecContext(ctx, sqlIdentityUsed, i.ID, s.now().UnixMicro()); err != nil {
				return err
			}
		case !errors.Is(err, db.ErrNotFound):
			return err
		case f.LinkUser != "":
			userID = f.LinkUser
			err = s.link(ctx, tx, by, p, who.Subject, userID, "self")
		default:
			userID, err = s.welcome(ctx, tx, by, p, who)
		}
		if err != nil || f.LinkUser != "" || len(p.Config.Roles) == 0 {
			return err
		}
		return s.users.SyncRoles(ctx, tx, by, userID, p.ID, who.Roles)
	})
	if err != nil {
		return "", fmt.Errorf("single sign-on: %w", err)
	}
	return userID, nil
}

// welcome finds or makes the user for a subject nobody has linked.
func (s *Service) welcome(ctx context.Context, tx *db.Tx, by audit.Actor, p Provider, who person) (string, error) {
	u, err := s.candidate(ctx, tx, p, who)
	if err != nil {
		return "", err
	}
	if u.ID != "" {
		// A name or an address that moved on to somebody else at the provider
		// does not take the user along: the first subject keeps him.
		linked, err := identities(ctx, tx, sqlIdentitiesOfUser, u.ID)
		if err != nil {
			return "", err
		}
		for _, i := range linked {
			if i.ProviderID == p.ID {
				return "", ssoProblem(403, "sso_no_account", "Your account here belongs to another identity at "+p.Config.Label+".", "An administrator can change that.")
			}
		}
		return u.ID, s.link(ctx, tx, by, p, who.Subject, u.ID, "rule "+string(p.Config.Link))
	}
	if !p.Config.Create {
		return "", ssoProblem(403, "sso_no_account", "You have no account here.", p.Config.Label+" knows you, but nobody has given you an account. Ask an administrator.")
	}
	if who.NameWrong != "" {
		return "", ssoProblem(403, "sso_name", "No account could be made for you.", "Tell an administrator: "+who.NameWrong+".")
	}
	d := user.Draft{Name: who.Name, DisplayName: who.DisplayName, Email: who.Email}
	if strings.ContainsFunc(d.DisplayName, func(r rune) bool { return !unicode.IsPrint(r) }) {
		d.DisplayName = ""
	}
	made, err := s.users.CreateIn(ctx, tx, by, d)
	if problem, ok := errors.AsType[*api.Problem](err); ok && problem.Code == "name_taken" {
		return "", ssoProblem(403, "sso_name_taken", "There is a user named "+who.Name+" here already.", "If that is you, sign in as you did so far and link "+p.Config.Label+" under your account. Otherwise ask an administrator.")
	}
	if err != nil {
		return "", err
	}
	return made.ID, s.link(ctx, tx, by, p, who.Subject, made.ID, "first sign-in")
}

// candidate is the user the provider's link rule finds, or the zero User.
func (s *Service) candidate(ctx context.Context, tx *db.Tx, p Provider, who person) (user.User, error) {
	switch p.Config.Link {
	case LinkName:
		if who.Name == "" {
			return user.User{}, nil
		}
		u, err := s.users.FindIn(ctx, tx, who.Name)
		if errors.Is(err, db.ErrNotFound) || err == nil && u.Kind != user.Person {
			return user.User{}, nil
		}
		return u, err
	case LinkEmail:
		if !who.EmailVerified {
			return user.User{}, nil
		}
		found, err := s.users.PeopleByEmail(ctx, tx, who.Email)
		if err != nil || len(found) != 1 {
			return user.User{}, err
		}
		return found[0], nil
	}
	return user.User{}, nil
}

// link makes a subject a user.
func (s *Service) link(ctx context.Context, tx *db.Tx, by audit.Actor, p Provider, subject, userID, how string) error {
	_, err := tx.ExecContext(ctx, sqlIdentityInsert, db.NewID("idn_"), p.ID, subject, userID, s.now().UnixMicro(), how)
	if errors.Is(db.Classify(err), db.ErrConflict) {
		return ssoProblem(409, "sso_linked_elsewhere", "This identity is linked already.", "")
	}
	if err != nil {
		return fmt.Errorf("link identity: %w", err)
	}
	if err := tx.Notify(ctx, "user", userID); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserIdentityLinked, Outcome: audit.OK, Actor: by,
		Object: audit.Object{Kind: "user", ID: userID}, Fields: map[string]string{"provider": p.ID, "how": how}})
}

// LinkIdentity says, as an administrator, who a subject of a provider is.
func (s *Service) LinkIdentity(ctx context.Context, by audit.Actor, userID, provider, subject string) (Identity, error) {
	var made Identity
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		p, err := s.Provider(ctx, tx, provider)
		if err != nil {
			return missing("provider", provider, err)
		}
		if err := s.link(ctx, tx, by, p, subject, userID, by.ID); err != nil {
			return err
		}
		made, err = scanIdentity(tx.QueryRowContext(ctx, sqlIdentity, p.ID, subject))
		return err
	})
	if err != nil {
		return Identity{}, fmt.Errorf("link identity: %w", err)
	}
	return made, nil
}

// Unlink takes an identity of a user away and ends every login of his but the
// session keep.
func (s *Service) Unlink(ctx context.Context, by audit.Actor, userID, id, keep string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		res, err := tx.ExecContext(ctx, sqlIdentityDelete, id, userID)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return db.ErrNotFound
		}
		if err := s.users.CredentialRemoved(ctx, tx, userID, keep); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserIdentityRemoved, Outcome: audit.OK, Actor: by,
			Object: audit.Object{Kind: "user", ID: userID}, Fields: map[string]string{"identity": id}})
	})
	if err != nil {
		return fmt.Errorf("unlink identity: %w", err)
	}
	return nil
}
