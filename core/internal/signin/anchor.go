package signin

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"sync"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// AnchorConfig says how certificates of an authority become users.
type AnchorConfig struct {
	Field      string `json:"field" enum:"subject_cn,subject_serial,subject_email,san_email,san_upn,san_dns,san_uri" doc:"Which part of the certificate names the user. Of several values each is tried; they must not name two users."`
	Pattern    string `json:"pattern,omitempty" maxLength:"200" example:"^([a-z.]+)@example\\.org$" doc:"RE2 pattern the whole value must match; its first group, or else all of it, is looked up. Default: anything."`
	Lookup     string `json:"lookup,omitempty" enum:"name,email" doc:"What is looked up: the user name (default) or the mail address."`
	MFA        bool   `json:"mfa,omitempty" doc:"These certificates are on cards or tokens with a PIN: they count as two factors."`
	RequireCRL bool   `json:"require_crl,omitempty" doc:"Refuse everybody while there is no current revocation list."`
	CRLURL     string `json:"crl_url,omitempty" maxLength:"500" doc:"Fetch the revocation list there, hourly."`
}

// Anchor is an authority whose client certificates sign people in.
type Anchor struct {
	ID        string
	Name      string
	Config    AnchorConfig
	Bundle    string // PEM: roots, and intermediates if clients do not send them
	CRL       string // PEM, may be several
	CRLAt     time.Time
	Enabled   bool
	CreatedAt time.Time
	Version   int64
}

const anchorColumns = `id, name, config, bundle, crl, crl_at, enabled, created_at, version`

const (
	// Revocation lists may be large: a listing leaves them out.
	sqlAnchors      = `select id, name, config, bundle, '', crl_at, enabled, created_at, version from certificate_anchors order by name limit 100`
	sqlAnchor       = `select ` + anchorColumns + ` from certificate_anchors where id = $1`
	sqlAnchorInsert = `insert into certificate_anchors (` + anchorColumns + `) values ($1, $2, $3, $4, '', 0, $5, $6, 1)`
	sqlAnchorUpdate = `update certificate_anchors set name = $2, config = $3, bundle = $4, enabled = $5, version = version + 1
where id = $1 and version = $6`
	sqlAnchorCRL    = `update certificate_anchors set crl = $2, crl_at = $3, version = version + 1 where id = $1`
	sqlAnchorDelete = `delete from certificate_anchors where id = $1`
	sqlAnchorsOpen  = `select count(*) from certificate_anchors where enabled = $1`
)

const maxAnchors = 50

// anchorTopic tells every core that the authorities have changed.
const anchorTopic = "certificate_anchor"

func scanAnchor(row interface{ Scan(...any) error }) (Anchor, error) {
	var a Anchor
	var config string
	var crlAt, created int64
	if err := row.Scan(&a.ID, &a.Name, &config, &a.Bundle, &a.CRL, &crlAt, &a.Enabled, &created, &a.Version); err != nil {
		return a, db.Classify(err)
	}
	a.CRLAt, a.CreatedAt = db.FromMicro(crlAt), db.FromMicro(created)
	if err := json.Unmarshal([]byte(config), &a.Config); err != nil {
		return a, fmt.Errorf("anchor %s: %w", a.ID, err)
	}
	return a, nil
}

// Anchors lists the authorities by name, without their revocation lists.
func (s *Service) Anchors(ctx context.Context, q db.Querier) ([]Anchor, error) {
	rows, err := q.QueryContext(ctx, sqlAnchors)
	if err != nil {
		return nil, fmt.Errorf("list anchors: %w", err)
	}
	defer rows.Close()
	var list []Anchor
	for rows.Next() {
		a, err := scanAnchor(rows)
		if err != nil {
			return nil, fmt.Errorf("list anchors: %w", err)
		}
		list = append(list, a)
	}
	return list, rows.Err()
}

// Anchor returns an authority by ID.
func (s *Service) Anchor(ctx context.Context, q db.Querier, id string) (Anchor, error) {
	a, err := scanAnchor(q.QueryRowContext(ctx, sqlAnchor, id))
	if err != nil {
		return a, fmt.Errorf("anchor %.40s: %w", id, err)
	}
	return a, nil
}

// CertificatesWanted reports whether the door for client certificates is to be
// open: it is configured and somebody could come in by it.
func (s *Service) CertificatesWanted(ctx context.Context) (bool, error) {
	if s.certURL == "" {
		return false, nil
	}
	var n int
	if err := s.db.QueryRowContext(ctx, sqlAnchorsOpen, true).Scan(&n); err != nil {
		return false, fmt.Errorf("count anchors: %w", err)
	}
	return n > 0, nil
}

// AnchorDraft is what describes an authority to create or change.
type AnchorDraft struct {
	Name    string       `json:"name" maxLength:"60" example:"staff cards"`
	Enabled bool         `json:"enabled"`
	Bundle  string       `json:"bundle_pem" maxLength:"262144" doc:"The authority's certificate, with its intermediates if clients do not send them."`
	Config  AnchorConfig `json:"config"`
}

func (d *AnchorDraft) check() error {
	var bad []api.FieldError
	add := func(field, text string) { bad = append(bad, api.FieldError{Field: "body." + field, Message: text}) }
	if d.Name == "" {
		add("name", "say whose certificates these are")
	}
	if _, _, err := splitBundle(d.Bundle); err != nil {
		add("bundle_pem", err.Error())
	}
	if d.Config.Lookup == "" {
		d.Config.Lookup = "name"
	}
	if _, ok := fields[d.Config.Field]; !ok {
		add("config.field", "is not a part of a certificate that can name a user")
	}
	if _, err := regexp.Compile(d.Config.Pattern); err != nil {
		add("config.pattern", plain(err.Error()))
	}
	if u, err := url.Parse(d.Config.CRLURL); d.Config.CRLURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		add("config.crl_url", "must be an http or https address")
	}
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

// splitBundle reads PEM certificates of authorities: those that sign themselves
// are trusted, the rest help to build chains. Without any of the former all are
// trusted: an organisation may hand out its intermediate only.
func splitBundle(text string) (roots, others []*x509.Certificate, err error) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, nil, errors.New("must hold certificates only, and no keys")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, errors.New("has a certificate that cannot be read")
		}
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, nil, fmt.Errorf("has the certificate %s, which is not an authority's", plain(c.Subject.String()))
		}
		if c.CheckSignatureFrom(c) == nil {
			roots = append(roots, c)
		} else {
			others = append(others, c)
		}
	}
	if len(roots) == 0 {
		roots, others = others, nil
	}
	if len(roots) == 0 {
		return nil, nil, errors.New("has no certificate in PEM form")
	}
	return roots, others, nil
}

func (s *Service) putAnchor(ctx context.Context, by audit.Actor, id string, match func(int64) error, d AnchorDraft) (Anchor, error) {
	if err := d.check(); err != nil {
		return Anchor{}, err
	}
	config, err := json.Marshal(d.Config)
	if err != nil {
		return Anchor{}, fmt.Errorf("put anchor: %w", err)
	}
	var made Anchor
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		event := audit.AnchorChanged
		var ended []audit.Event
		if id == "" {
			event = audit.AnchorCreated
			made, err = s.insertAnchor(ctx, tx, d, string(config))
		} else {
			made, err = s.updateAnchor(ctx, tx, id, match, d, string(config))
			if err == nil && made.Enabled {
				ended, err = s.endUntrusted(ctx, tx, by, made)
			}
		}
		if err != nil {
			return err
		}
		return s.anchorEvent(ctx, tx, by, event, made, ended...)
	})
	if err != nil {
		return Anchor{}, fmt.Errorf("put anchor: %w", err)
	}
	return made, nil
}

func (s *Service) insertAnchor(ctx context.Context, tx *db.Tx, d AnchorDraft, config string) (Anchor, error) {
	have, err := s.Anchors(ctx, tx)
	if err != nil {
		return Anchor{}, err
	}
	if len(have) >= maxAnchors {
		return Anchor{}, api.Conflict("too_many_anchors", "Remove an authority first.")
	}
	id := db.NewID("anc_")
	_, err = tx.ExecContext(ctx, sqlAnchorInsert, id, d.Name, config, d.Bundle, d.Enabled, s.now().UnixMicro())
	if err != nil {
		return Anchor{}, nameTaken(d.Name, err)
	}
	return s.Anchor(ctx, tx, id)
}

func (s *Service) updateAnchor(ctx context.Context, tx *db.Tx, id string, match func(int64) error, d AnchorDraft, config string) (Anchor, error) {
	if err := lockAnchor(ctx, tx, id); err != nil {
		return Anchor{}, err
	}
	old, err := s.Anchor(ctx, tx, id)
	if err != nil {
		return Anchor{}, err
	}
	if err := match(old.Version); err != nil {
		return Anchor{}, err
	}
	res, err := tx.ExecContext(ctx, sqlAnchorUpdate, id, d.Name, config, d.Bundle, d.Enabled, old.Version)
	if err != nil {
		return Anchor{}, nameTaken(d.Name, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return Anchor{}, db.ErrConflict
	}
	if !d.Enabled {
		if err := s.endSessions(ctx, tx, id); err != nil {
			return Anchor{}, err
		}
	}
	return s.Anchor(ctx, tx, id)
}

func (s *Service) deleteAnchor(ctx context.Context, by audit.Actor, id string, match func(int64) error) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := lockAnchor(ctx, tx, id); err != nil {
			return err
		}
		old, err := s.Anchor(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := match(old.Version); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlAnchorDelete, id); err != nil {
			return err
		}
		if err := s.endSessions(ctx, tx, id); err != nil {
			return err
		}
		return s.anchorEvent(ctx, tx, by, audit.AnchorDeleted, old)
	})
	if err != nil {
		return fmt.Errorf("delete anchor: %w", err)
	}
	return nil
}

// anchorEvent tells that an authority changed, and then what follows from it.
func (s *Service) anchorEvent(ctx context.Context, tx *db.Tx, by audit.Actor, t audit.Type, a Anchor, follows ...audit.Event) error {
	if err := tx.Notify(ctx, anchorTopic, a.ID); err != nil {
		return err
	}
	e := audit.Event{Type: t, Outcome: audit.OK, Actor: by, Object: a.object(),
		Fields: map[string]string{"field": a.Config.Field, "enabled": fmt.Sprint(a.Enabled), "mfa": fmt.Sprint(a.Config.MFA)}}
	for _, e := range append([]audit.Event{e}, follows...) {
		if err := s.audit.Append(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

func (a Anchor) object() audit.Object {
	return audit.Object{Kind: "certificate_anchor", ID: a.ID, Name: a.Name}
}

// setCRL keeps a revocation list after checking that the authority signed it
// and that it is not older than what there is, and ends the sessions of
// certificates that are revoked.
func (s *Service) setCRL(ctx context.Context, by audit.Actor, id string, data []byte) (Anchor, error) {
	var made Anchor
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := lockAnchor(ctx, tx, id); err != nil {
			return err
		}
		a, err := s.Anchor(ctx, tx, id)
		if err != nil {
			return err
		}
		text, err := mergeCRL(a, data)
		if err != nil {
			return api.Invalid(api.FieldError{Field: "body", Message: err.Error()})
		}
		if _, err := tx.ExecContext(ctx, sqlAnchorCRL, id, text, s.now().UnixMicro()); err != nil {
			return err
		}
		if made, err = s.Anchor(ctx, tx, id); err != nil {
			return err
		}
		ended, err := s.endUntrusted(ctx, tx, by, made)
		if err != nil {
			return err
		}
		return s.anchorEvent(ctx, tx, by, audit.AnchorCRL, made, ended...)
	})
	if err != nil {
		return Anchor{}, fmt.Errorf("load revocation list: %w", err)
	}
	return made, nil
}

// anchorCache keeps parsed authorities by ID and version.
type anchorCache struct {
	mu   sync.Mutex
	byID map[string]trust // guarded by mu; at most maxAnchors
}

func newAnchorCache() *anchorCache { return &anchorCache{byID: map[string]trust{}} }

// trust returns what judges certificates for an authority, of the version given
// or a newer one.
func (s *Service) trust(ctx context.Context, q db.Querier, id string, version int64) (trust, error) {
	c := s.anchors
	c.mu.Lock()
	t, ok := c.byID[id]
	c.mu.Unlock()
	if ok && t.version == version {
		return t, nil
	}
	a, err := s.Anchor(ctx, q, id)
	if err != nil {
		return trust{}, err
	}
	if t, err = newTrust(a); err != nil {
		return trust{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byID) >= maxAnchors {
		clear(c.byID)
	}
	c.byID[a.ID] = t
	return t, nil
}
