package signin

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
)

// LinkRule says how a subject nobody has linked may become a user that exists.
type LinkRule string

// The rules. Each but none trusts the provider to say who somebody is here.
const (
	LinkNone  LinkRule = "none"           // only by an administrator or the user himself
	LinkName  LinkRule = "name"           // a user of the same name
	LinkEmail LinkRule = "verified_email" // the one user with this address, if the provider verified it
)

// RoleRule gives a role to who has a value in the groups claim.
type RoleRule struct {
	Value string `json:"value" maxLength:"200" example:"pam-admins"`
	Role  string `json:"role" maxLength:"40" doc:"ID of the role."`
}

// ProviderConfig is what an administrator says about a provider.
type ProviderConfig struct {
	Label    string   `json:"label" maxLength:"60" example:"Example Corp" doc:"On the button of the sign-in page."`
	Issuer   string   `json:"issuer" maxLength:"500" example:"https://sso.example.org/realms/main"`
	ClientID string   `json:"client_id" maxLength:"200"`
	Scopes   []string `json:"scopes,omitempty" maxItems:"20" nullable:"false" doc:"Default: openid profile email."`
	CA       string   `json:"ca_pem,omitempty" maxLength:"65536" doc:"Certificates the provider's TLS certificate must chain to; empty = those of the system."`

	NameClaim    string `json:"name_claim,omitempty" maxLength:"100" doc:"Becomes the user name. Default preferred_username. An address loses its domain if that is one of domains."`
	DisplayClaim string `json:"display_claim,omitempty" maxLength:"100" doc:"Default name."`
	EmailClaim   string `json:"email_claim,omitempty" maxLength:"100" doc:"Default email."`
	GroupsClaim  string `json:"groups_claim,omitempty" maxLength:"100" doc:"Default groups. Dots reach into objects: realm_access.roles."`

	Domains   []string   `json:"domains,omitempty" maxItems:"50" nullable:"false" doc:"If given, only people with a verified mail address in one of them come in."`
	Create    bool       `json:"create,omitempty" doc:"Make a user for whoever comes first."`
	Link      LinkRule   `json:"link,omitempty" enum:"none,name,verified_email" doc:"How an unknown subject becomes an existing user. Default none: only an administrator or the user himself links."`
	Roles     []RoleRule `json:"roles,omitempty" maxItems:"200" nullable:"false" doc:"Roles by groups, brought up to date at every sign-in."`
	MFAValues []string   `json:"mfa_values,omitempty" maxItems:"20" nullable:"false" doc:"Values of amr or acr that count as two factors here. Default: mfa."`
	Logout    bool       `json:"logout,omitempty" doc:"Signing out here signs out at the provider, too."`
}

// Provider is an OpenID Connect provider people sign in by.
type Provider struct {
	ID        string
	Name      string // in URLs, [a-z0-9-]
	Config    ProviderConfig
	HasSecret bool
	Enabled   bool
	CreatedAt time.Time
	Version   int64

	sealed string
}

const providerColumns = `id, name, config, secret, enabled, created_at, version`

const (
	sqlProviders      = `select ` + providerColumns + ` from sso_providers order by name limit 100`
	sqlProvider       = `select ` + providerColumns + ` from sso_providers where id = $1 or name = $1`
	sqlProviderInsert = `insert into sso_providers (` + providerColumns + `) values ($1, $2, $3, $4, $5, $6, 1)`
	sqlProviderUpdate = `update sso_providers set name = $2, config = $3, secret = $4, enabled = $5, version = version + 1
where id = $1 and version = $6`
	sqlProviderDelete = `delete from sso_providers where id = $1`
)

// maxProviders bounds the providers of an installation.
const maxProviders = 50

func secretPlace(id string) vault.Place {
	return vault.Place{Table: "sso_providers", Column: "secret", Row: id}
}

func scanProvider(row interface{ Scan(...any) error }) (Provider, error) {
	var p Provider
	var config string
	var created int64
	if err := row.Scan(&p.ID, &p.Name, &config, &p.sealed, &p.Enabled, &created, &p.Version); err != nil {
		return p, db.Classify(err)
	}
	p.HasSecret, p.CreatedAt = p.sealed != "", db.FromMicro(created)
	return p, decodeConfig(config, &p.Config)
}

func decodeConfig(text string, c *ProviderConfig) error {
	if err := json.Unmarshal([]byte(text), c); err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}

// Providers lists all providers by name.
func (s *Service) Providers(ctx context.Context, q db.Querier) ([]Provider, error) {
	rows, err := q.QueryContext(ctx, sqlProviders)
	if err != nil {
		return nil, fmt.Errorf("list providers: %w", err)
	}
	defer rows.Close()
	var list []Provider
	for rows.Next() {
		p, err := scanProvider(rows)
		if err != nil {
			return nil, fmt.Errorf("list providers: %w", err)
		}
		list = append(list, p)
	}
	return list, rows.Err()
}

// Provider returns a provider by ID or name.
func (s *Service) Provider(ctx context.Context, q db.Querier, id string) (Provider, error) {
	p, err := scanProvider(q.QueryRowContext(ctx, sqlProvider, id))
	if err != nil {
		return p, fmt.Errorf("provider %.40s: %w", id, err)
	}
	return p, nil
}

// secret opens a provider's client secret; "" for a public client.
func (s *Service) secret(p Provider) (string, error) {
	if p.sealed == "" {
		return "", nil
	}
	b, err := base64.StdEncoding.DecodeString(p.sealed)
	if err != nil {
		return "", fmt.Errorf("secret of provider %s: %w", p.ID, err)
	}
	plain, err := s.sealer.Open(secretPlace(p.ID), b)
	if err != nil {
		return "", fmt.Errorf("secret of provider %s: %w", p.ID, err)
	}
	return string(plain), nil
}

func (s *Service) sealSecret(id, secret string) (string, error) {
	if secret == "" {
		return "", nil
	}
	b, err := s.sealer.Seal(secretPlace(id), []byte(secret))
	if err != nil {
		return "", fmt.Errorf("keep client secret: %w", err)
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

// putProvider creates a provider (id empty) or changes one. A nil secret keeps
// the one there is.
func (s *Service) putProvider(ctx context.Context, by audit.Actor, id string, match func(int64) error, name string, enabled bool, secret *string, c ProviderConfig) (Provider, error) {
	c = c.withDefaults()
	if err := checkProvider(name, c); err != nil {
		return Provider{}, err
	}
	config, err := json.Marshal(c)
	if err != nil {
		return Provider{}, fmt.Errorf("put provider: %w", err)
	}
	var made Provider
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		event := audit.SSOChanged
		if id == "" {
			event = audit.SSOCreated
			made, err = s.insertProvider(ctx, tx, name, enabled, secret, string(config))
		} else {
			made, err = s.updateProvider(ctx, tx, id, match, name, enabled, secret, c.Issuer, string(config))
		}
		if err != nil {
			return err
		}
		return s.providerEvent(ctx, tx, by, event, made)
	})
	if err != nil {
		return Provider{}, fmt.Errorf("put provider: %w", err)
	}
	return made, nil
}

func (s *Service) insertProvider(ctx context.Context, tx *db.Tx, name string, enabled bool, secret *string, config string) (Provider, error) {
	id := db.NewID("sso_")
	var sealed string
	var err error
	if secret != nil {
		if sealed, err = s.sealSecret(id, *secret); err != nil {
			return Provider{}, err
		}
	}
	have, err := s.Providers(ctx, tx)
	if err != nil {
		return Provider{}, err
	}
	if len(have) >= maxProviders {
		return Provider{}, api.Conflict("too_many_providers", "Remove a provider first.")
	}
	_, err = tx.ExecContext(ctx, sqlProviderInsert, id, name, config, sealed, enabled, s.now().UnixMicro())
	if err != nil {
		return Provider{}, nameTaken(name, err)
	}
	return s.Provider(ctx, tx, id)
}

func (s *Service) updateProvider(ctx context.Context, tx *db.Tx, id string, match func(int64) error, name string, enabled bool, secret *string, issuer, config string) (Provider, error) {
	old, err := s.Provider(ctx, tx, id)
	if err != nil {
		return Provider{}, err
	}
	if err := match(old.Version); err != nil {
		return Provider{}, err
	}
	if issuer != old.Config.Issuer {
		// Its subjects are linked to users here; another issuer's are not them.
		return Provider{}, api.Conflict("issuer_fixed", "The issuer cannot change. Make another provider.")
	}
	sealed := old.sealed
	if secret != nil {
		if sealed, err = s.sealSecret(old.ID, *secret); err != nil {
			return Provider{}, err
		}
	}
	res, err := tx.ExecContext(ctx, sqlProviderUpdate, old.ID, name, config, sealed, enabled, old.Version)
	if err != nil {
		return Provider{}, nameTaken(name, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return Provider{}, db.ErrConflict
	}
	if !enabled {
		if err := s.endSessions(ctx, tx, old.ID); err != nil {
			return Provider{}, err
		}
	}
	return s.Provider(ctx, tx, old.ID)
}

// endSessions ends what came by a provider or authority that is trusted no
// more.
func (s *Service) endSessions(ctx context.Context, tx *db.Tx, id string) error {
	_, err := s.users.EndSessionsBy(ctx, tx, id)
	return err
}

func nameTaken(name string, err error) error {
	if errors.Is(db.Classify(err), db.ErrConflict) {
		return api.Conflict("name_taken", fmt.Sprintf("There is one named %s already.", name))
	}
	return err
}

func (s *Service) deleteProvider(ctx context.Context, by audit.Actor, id string, match func(int64) error) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		old, err := s.Provider(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := match(old.Version); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlProviderDelete, old.ID); err != nil {
			return err
		}
		if err := s.endSessions(ctx, tx, old.ID); err != nil {
			return err
		}
		return s.providerEvent(ctx, tx, by, audit.SSODeleted, old)
	})
	if err != nil {
		return fmt.Errorf("delete provider: %w", err)
	}
	return nil
}

func (s *Service) providerEvent(ctx context.Context, tx *db.Tx, by audit.Actor, t audit.Type, p Provider) error {
	if err := tx.Notify(ctx, "sso_provider", p.ID); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{Type: t, Outcome: audit.OK, Actor: by,
		Object: audit.Object{Kind: "sso_provider", ID: p.ID, Name: p.Name},
		Fields: map[string]string{"issuer": p.Config.Issuer, "enabled": fmt.Sprint(p.Enabled), "create": fmt.Sprint(p.Config.Create),
			"link": string(p.Config.Link), "roles": fmt.Sprint(len(p.Config.Roles))}})
}

func (c ProviderConfig) withDefaults() ProviderConfig {
	or := func(v *string, def string) {
		if *v == "" {
			*v = def
		}
	}
	or(&c.NameClaim, "preferred_username")
	or(&c.DisplayClaim, "name")
	or(&c.EmailClaim, "email")
	or(&c.GroupsClaim, "groups")
	if len(c.Scopes) == 0 {
		c.Scopes = []string{"openid", "profile", "email"}
	}
	if len(c.MFAValues) == 0 {
		c.MFAValues = []string{"mfa"}
	}
	if c.Link == "" {
		c.Link = LinkNone
	}
	for i, d := range c.Domains {
		c.Domains[i] = strings.ToLower(strings.TrimPrefix(d, "@"))
	}
	return c
}

func checkProvider(name string, c ProviderConfig) error {
	var bad []api.FieldError
	add := func(field, text string) { bad = append(bad, api.FieldError{Field: "body." + field, Message: text}) }
	if !slugForm(name) {
		add("name", "must be 1 to 40 of a-z, 0-9 and dash: it is part of addresses")
	}
	if c.Label == "" {
		add("label", "say what the button on the sign-in page shows")
	}
	if u, err := url.Parse(c.Issuer); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		add("issuer", "must be an https address without query, exactly as the provider writes it")
	}
	if c.ClientID == "" {
		add("client_id", "is what the provider calls this installation")
	}
	if !slices.Contains(c.Scopes, "openid") {
		add("scopes", "must have openid")
	}
	for i, v := range c.Scopes {
		if v == "" || strings.ContainsAny(v, " \"\\") {
			add(fmt.Sprintf("scopes[%d]", i), "must be one word")
		}
	}
	if c.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(c.CA)) {
		add("ca_pem", "must be PEM certificates")
	}
	switch c.Link {
	case LinkNone, LinkName, LinkEmail:
	default:
		add("link", "must be none, name or verified_email")
	}
	for i, d := range c.Domains {
		if d == "" || strings.ContainsAny(d, "@/ ") {
			add(fmt.Sprintf("domains[%d]", i), "must be a domain such as example.org")
		}
	}
	for i, r := range c.Roles {
		if r.Value == "" || !strings.HasPrefix(r.Role, "rol_") {
			add(fmt.Sprintf("roles[%d]", i), "needs a value of the groups claim and the ID of a role")
		}
	}
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

func slugForm(s string) bool {
	return len(s) >= 1 && len(s) <= 40 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}
