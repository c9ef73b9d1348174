package group

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Anchor is a certificate that the TLS of the group's targets is verified
// against.
type Anchor struct {
	ID          string    `json:"id"`
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint" doc:"SHA-256 of the certificate, hexadecimal"`
	Certificate string    `json:"certificate" doc:"PEM"`
	NotAfter    time.Time `json:"not_after"`
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by,omitempty" doc:"user ID"`
}

// maxAnchors bounds the anchors of one group.
const maxAnchors = 100

const (
	anchorColumns = `id, subject, fingerprint, certificate, not_after, created_at, created_by`

	anchorsSQL      = `select ` + anchorColumns + ` from access_group_anchors where group_id = $1 order by subject, id`
	anchorSQL       = `select ` + anchorColumns + ` from access_group_anchors where group_id = $1 and id = $2`
	addAnchorSQL    = `insert into access_group_anchors (group_id, ` + anchorColumns + `) values ($1, $2, $3, $4, $5, $6, $7, $8)`
	deleteAnchorSQL = `delete from access_group_anchors where group_id = $1 and id = $2`
)

func scanAnchor(r scanner) (Anchor, error) {
	var a Anchor
	var end, made int64
	if err := r.Scan(&a.ID, &a.Subject, &a.Fingerprint, &a.Certificate, &end, &made, &a.CreatedBy); err != nil {
		return Anchor{}, db.Classify(err)
	}
	a.NotAfter, a.CreatedAt = time.UnixMicro(end).UTC(), time.UnixMicro(made).UTC()
	return a, nil
}

func listAnchors(ctx context.Context, q db.Querier, groupID string) ([]Anchor, error) {
	rows, err := q.QueryContext(ctx, anchorsSQL, groupID)
	if err != nil {
		return nil, fmt.Errorf("read anchors of %s: %w", groupID, err)
	}
	defer rows.Close()
	out := []Anchor{}
	for rows.Next() {
		a, err := scanAnchor(rows)
		if err != nil {
			return nil, fmt.Errorf("read anchors of %s: %w", groupID, err)
		}
		out = append(out, a)
	}
	return out, rows.Err()
}

// Anchors are the certificates that the TLS of a group's targets is verified
// against, besides those a target has of its own. None means: the system's.
func (s *Service) Anchors(ctx context.Context, groupID string) ([]*x509.Certificate, error) {
	list, err := listAnchors(ctx, s.c.DB, groupID)
	if err != nil {
		return nil, err
	}
	out := make([]*x509.Certificate, 0, len(list))
	for _, a := range list {
		block, _ := pem.Decode([]byte(a.Certificate))
		if block == nil {
			return nil, fmt.Errorf("anchor %s is not PEM", a.ID)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("anchor %s: %w", a.ID, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// parseAnchors reads the certificates of a PEM text.
func parseAnchors(text string) ([]*x509.Certificate, error) {
	bad := func(m string) error { return api.Invalid(api.FieldError{Field: "certificates", Message: m}) }
	var out []*x509.Certificate
	rest := []byte(strings.TrimSpace(text))
	for len(rest) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, bad("must be one or more certificates in PEM (-----BEGIN CERTIFICATE-----)")
		}
		if block.Type != "CERTIFICATE" {
			return nil, bad("holds a " + strings.ToLower(block.Type) + "; only certificates belong here")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, bad("holds something that is not a certificate")
		}
		if c.BasicConstraintsValid && !c.IsCA && c.Subject.String() != c.Issuer.String() {
			return nil, bad(c.Subject.String() + " is neither an authority nor self-signed: nothing can be verified against it")
		}
		out = append(out, c)
		rest = []byte(strings.TrimSpace(string(rest)))
		if len(out) > maxAnchors {
			return nil, bad(fmt.Sprintf("holds more than %d certificates", maxAnchors))
		}
	}
	if len(out) == 0 {
		return nil, bad("must be one or more certificates in PEM (-----BEGIN CERTIFICATE-----)")
	}
	return out, nil
}

// AddAnchors adds the certificates of a PEM text; those that are there
// already are left out.
func (s *Service) AddAnchors(ctx context.Context, by audit.Actor, groupID, text string) ([]Anchor, error) {
	certs, err := parseAnchors(text)
	if err != nil {
		return nil, err
	}
	var all []Anchor
	err = s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		g, err := s.Get(ctx, tx, groupID)
		if err != nil {
			return err
		}
		if err := Check(ctx, tx, groupID); err != nil {
			return err
		}
		if all, err = listAnchors(ctx, tx, groupID); err != nil {
			return err
		}
		have := map[string]bool{}
		for _, a := range all {
			have[a.Fingerprint] = true
		}
		for _, c := range certs {
			sum := sha256.Sum256(c.Raw)
			print := hex.EncodeToString(sum[:])
			if have[print] {
				continue
			}
			have[print] = true
			if len(have) > maxAnchors {
				return api.Conflict("too_many_anchors", fmt.Sprintf("A group has at most %d anchors.", maxAnchors))
			}
			a := Anchor{ID: "gan_" + strings.ToLower(rand.Text()), Subject: cut(c.Subject.String()), Fingerprint: print,
				Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})),
				NotAfter:    c.NotAfter.UTC(), CreatedAt: s.c.Now().UTC().Truncate(time.Microsecond), CreatedBy: by.ID}
			_, err := tx.ExecContext(ctx, addAnchorSQL, groupID, a.ID, a.Subject, a.Fingerprint, a.Certificate,
				a.NotAfter.UnixMicro(), a.CreatedAt.UnixMicro(), a.CreatedBy)
			if err != nil {
				return fmt.Errorf("store anchor: %w", db.Classify(err))
			}
			all = append(all, a)
			if err := s.wrote(ctx, tx, by, audit.GroupAnchorAdded, g, map[string]string{"anchor": a.ID, "subject": a.Subject, "fingerprint": print}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add anchors: %w", err)
	}
	return all, nil
}

// RemoveAnchor takes an anchor away.
func (s *Service) RemoveAnchor(ctx context.Context, by audit.Actor, groupID, id string) error {
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		g, err := s.Get(ctx, tx, groupID)
		if err != nil {
			return err
		}
		a, err := scanAnchor(tx.QueryRowContext(ctx, anchorSQL, groupID, id))
		if errors.Is(err, db.ErrNotFound) {
			return api.Missing("anchor", id)
		}
		if err != nil {
			return err
		}
		if err := changed(tx.ExecContext(ctx, deleteAnchorSQL, groupID, id)); err != nil {
			return err
		}
		return s.wrote(ctx, tx, by, audit.GroupAnchorRemoved, g, map[string]string{"anchor": id, "subject": a.Subject, "fingerprint": a.Fingerprint})
	})
	if err != nil {
		return fmt.Errorf("remove anchor: %w", err)
	}
	return nil
}

func cut(s string) string {
	if len(s) > 300 {
		s = s[:300]
	}
	return strings.ToValidUTF8(s, "")
}
