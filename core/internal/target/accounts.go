package target

import (
	"context"
	"errors"
	"fmt"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// AccountByID returns one account of a target.
func (s *Service) AccountByID(ctx context.Context, q db.Querier, targetID, id string) (*Account, error) {
	a, err := scanAccount(q.QueryRowContext(ctx, sqlAccountByID, targetID, id))
	if err != nil {
		return nil, fmt.Errorf("read account %.80s: %w", id, err)
	}
	return &a, nil
}

func (a *Account) event(t *Target, event audit.Type) audit.Event {
	return audit.Event{Type: event, Object: audit.Object{Kind: "account", ID: a.ID, Name: t.Name + "/" + a.Name}, Fields: map[string]string{
		"target": t.ID, "auth": string(a.Auth), "secret": a.SecretID, "features": a.Features.String(), "disabled": fmt.Sprint(a.Disabled),
	}}
}

// CreateAccount adds a login to a target.
func (s *Service) CreateAccount(ctx context.Context, targetID string, a Account) (*Account, error) {
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		t, err := s.Get(ctx, tx, targetID)
		if err != nil {
			return err
		}
		if err := t.change(ctx); err != nil {
			return err
		}
		var p problems
		if !t.Kind.HasAccounts() {
			p.add("name", "targets of kind %s have no accounts", t.Kind)
			return p.err()
		}
		var n int
		if err := tx.QueryRowContext(ctx, sqlAccountCount, t.ID).Scan(&n); err != nil {
			return fmt.Errorf("count accounts of %s: %w", t.ID, err)
		}
		if n >= maxAccounts {
			p.add("name", "a target has at most %d accounts", maxAccounts)
		}
		if err := s.validateAccount(ctx, tx, t, &a, "", &p); err != nil {
			return err
		}
		if err := p.err(); err != nil {
			return err
		}
		if err := s.mayUseSecret(ctx, tx, t, a.SecretID); err != nil {
			return err
		}
		a.ID, a.TargetID, a.Version = db.NewID("acc_"), t.ID, 1
		if err := insertRows(ctx, tx, sqlAccountInsert, [][]any{a.row(s.now())}); err != nil {
			return fmt.Errorf("create account: %w", db.Classify(err))
		}
		return s.wrote(ctx, tx, a.event(t, audit.AccountCreated), TopicTarget, t.ID, t.Group)
	})
	if errors.Is(err, db.ErrConflict) {
		return nil, api.Conflict("name_taken", "The target has an account "+a.Name+" already.")
	}
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// UpdateAccount replaces what may be changed of an account.
func (s *Service) UpdateAccount(ctx context.Context, targetID, id string, match Match, change func(*Account)) (*Account, error) {
	var a *Account
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		t, err := s.Get(ctx, tx, targetID)
		if err != nil {
			return err
		}
		if err := t.change(ctx); err != nil {
			return err
		}
		if a, err = s.AccountByID(ctx, tx, targetID, id); err != nil {
			return err
		}
		if err := match.check(a.Version); err != nil {
			return err
		}
		version, secret := a.Version, a.SecretID
		change(a)
		a.ID, a.TargetID, a.Version = id, targetID, version+1
		var p problems
		if err := s.validateAccount(ctx, tx, t, a, "", &p); err != nil {
			return err
		}
		if err := p.err(); err != nil {
			return err
		}
		if a.SecretID != secret {
			if err := s.mayUseSecret(ctx, tx, t, a.SecretID); err != nil {
				return err
			}
		}
		err = exactly(tx.ExecContext(ctx, sqlAccountUpdate, a.Name, string(a.Auth), a.SecretID, int64(a.Features), a.Disabled, id, version))
		if err != nil {
			return fmt.Errorf("update account %s: %w", id, err)
		}
		return s.wrote(ctx, tx, a.event(t, audit.AccountChanged), TopicTarget, t.ID, t.Group)
	})
	if errors.Is(err, db.ErrConflict) && a != nil {
		return nil, api.Conflict("name_taken", "The target has an account "+a.Name+" already.")
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

// DeleteAccount removes a login from a target.
func (s *Service) DeleteAccount(ctx context.Context, targetID, id string, match Match) error {
	return s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		t, err := s.Get(ctx, tx, targetID)
		if err != nil {
			return err
		}
		if err := t.change(ctx); err != nil {
			return err
		}
		a, err := s.AccountByID(ctx, tx, targetID, id)
		if err != nil {
			return err
		}
		if err := match.check(a.Version); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlAccountDelete, id); err != nil {
			return fmt.Errorf("delete account %s: %w", id, err)
		}
		return s.wrote(ctx, tx, a.event(t, audit.AccountDeleted), TopicTarget, t.ID, t.Group)
	})
}
