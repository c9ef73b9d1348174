package user

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// APIClient is a program that calls the API by itself: an account of kind
// Client with a secret. Its rights are the roles it is a member of.
type APIClient struct {
	User
	Comment     string
	CreatedBy   string
	SecretSetAt time.Time
}

// clientSecretPrefix starts every client secret.
const clientSecretPrefix = "cas_"

// clientTokenLife is how long an access token of a client lives (FEATURES C34).
const clientTokenLife = 30 * time.Minute

const (
	sqlClientInsert = `insert into api_clients (user_id, secret_hash, comment, created_by, secret_set_at) values ($1, $2, $3, $4, $5)`
	sqlClientByID   = `select comment, created_by, secret_set_at, secret_hash from api_clients where user_id = $1`
	sqlClientSecret = `update api_clients set secret_hash = $2, secret_set_at = $3 where user_id = $1`
	sqlClientDelete = `delete from api_clients where user_id = $1`
)

// CreateClient adds an API client and returns its secret, which is shown once.
func (s *Service) CreateClient(ctx context.Context, by audit.Actor, name, comment string) (APIClient, string, error) {
	bad := append(checkName("body.name", name), checkText("body.comment", comment, 500)...)
	if len(bad) > 0 {
		return APIClient{}, "", api.Invalid(bad...)
	}
	secret := clientSecretPrefix + strings.ToLower(rand.Text())
	c := APIClient{Comment: comment, CreatedBy: ref(by), SecretSetAt: s.now().UTC().Truncate(time.Microsecond)}
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := s.insert(ctx, tx, by, Client, db.NewID("cli_"), Draft{Name: name, DisplayName: name}, "")
		if err != nil {
			return err
		}
		c.User = u.User
		_, err = tx.ExecContext(ctx, sqlClientInsert, u.ID, hashSecret(secret), comment, c.CreatedBy, c.SecretSetAt.UnixMicro())
		if err != nil {
			return db.Classify(err)
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.ClientCreated, Outcome: audit.OK, Actor: by, Object: u.object()})
	})
	if err != nil {
		return APIClient{}, "", fmt.Errorf("create api client: %w", err)
	}
	return c, secret, nil
}

// Client returns an API client by ID.
func (s *Service) Client(ctx context.Context, id string) (APIClient, error) {
	c, _, err := clientByID(ctx, s.db, id)
	return c, err
}

func clientByID(ctx context.Context, q db.Querier, id string) (c APIClient, hash string, err error) {
	u, err := userByID(ctx, q, id)
	if err != nil {
		return APIClient{}, "", err
	}
	c.User = u.User
	var set int64
	err = q.QueryRowContext(ctx, sqlClientByID, id).Scan(&c.Comment, &c.CreatedBy, &set, &hash)
	if err != nil {
		return APIClient{}, "", fmt.Errorf("api client %.40s: %w", id, db.Classify(err))
	}
	c.SecretSetAt = db.FromMicro(set)
	return c, hash, nil
}

// RenewClientSecret replaces a client's secret and revokes its tokens.
func (s *Service) RenewClientSecret(ctx context.Context, by audit.Actor, id string) (string, error) {
	secret := clientSecretPrefix + strings.ToLower(rand.Text())
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		c, _, err := clientByID(ctx, tx, id)
		if err != nil {
			return err
		}
		now := s.now().UnixMicro()
		if err := changeOne(ctx, tx, sqlClientSecret, id, hashSecret(secret), now); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlTokensRevoke, id, now); err != nil {
			return err
		}
		if err := tx.Notify(ctx, "user", id); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.ClientChanged, Outcome: audit.OK, Actor: by, Object: c.object()})
	})
	if err != nil {
		return "", fmt.Errorf("renew client secret: %w", err)
	}
	return secret, nil
}

// errBadClient refuses an OAuth token request without saying which part was wrong.
var errBadClient = errors.New("client id or secret are not right")

// ClientToken exchanges a client's ID and secret for an access token (RFC 6749
// §4.4). It is limited and audited like a login.
func (s *Service) ClientToken(ctx context.Context, id, secret string, source netip.Addr) (string, time.Duration, error) {
	c := Credentials{Name: cutText(id, maxLoginName), Source: source, Via: "oauth"}
	done, err := s.attempt(ctx, c.Name, c, "client_secret")
	if err != nil {
		return "", 0, err
	}
	failed := true
	defer func() { done(failed) }()
	client, hash, err := clientByID(ctx, s.db, c.Name)
	known := !errors.Is(err, db.ErrNotFound)
	if known && err != nil {
		return "", 0, fmt.Errorf("client token: %w", err)
	}
	right := subtle.ConstantTimeCompare([]byte(hash), []byte(hashSecret(secret))) == 1
	reason := client.usable()
	switch {
	case !known:
		reason = "unknown_client"
	case !right:
		reason = "bad_secret"
	}
	if reason != "" {
		u := &record{User: client.User}
		if err := s.audit.Write(ctx, s.refusal(audit.LoginFailed, c, u, reason, "client_secret")); err != nil {
			return "", 0, fmt.Errorf("client token: %w", err)
		}
		return "", 0, errBadClient
	}
	failed = false
	var token string
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		var t Token
		t, token, err = s.insertToken(ctx, tx, client.ID, oauthToken, client.Name, s.now().Add(clientTokenLife))
		if err != nil {
			return err
		}
		by := audit.Actor{Kind: "user", ID: client.ID, Name: client.Name, Source: addrText(source), Via: "oauth"}
		return s.tokenEvent(ctx, tx, by, audit.ClientGranted, t, nil)
	})
	if err != nil {
		return "", 0, fmt.Errorf("client token: %w", err)
	}
	return token, clientTokenLife, nil
}

// Clients lists API clients by name, after the name given.
func (s *Service) Clients(ctx context.Context, search, after string, limit int) ([]APIClient, error) {
	users, err := s.List(ctx, Client, search, after, limit)
	if err != nil {
		return nil, err
	}
	clients := make([]APIClient, 0, len(users))
	for _, u := range users {
		c, err := s.Client(ctx, u.ID)
		if errors.Is(err, db.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		clients = append(clients, c)
	}
	return clients, nil
}
