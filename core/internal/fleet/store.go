package fleet

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/db"
	"caponier/shared/wire"
)

const (
	qInsertCA = `insert into edge_ca (id, certificate, sealed_key, not_after, created_at) values ($1, $2, $3, $4, $5)`
	qListCA   = `select id, certificate, sealed_key, not_after, created_at from edge_ca order by created_at desc, id`

	tokenColumns = `id, kind, site, labels, rules, comment, secret_hash, max_uses, uses, allow_repeat, expires_at, revoked_at, created_at, created_by, version`
	qInsertToken = `insert into edge_tokens (` + tokenColumns + `) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`
	qGetToken    = `select ` + tokenColumns + ` from edge_tokens where id = $1`
	qListTokens  = `select ` + tokenColumns + ` from edge_tokens where id > $1
		and ($2 = '*' or $2 like '%,' || ` + groupOfRow + ` || ',%') order by id limit $3`
	qUseToken = `update edge_tokens set uses = uses + 1, version = version + 1
		where id = $1 and uses < max_uses and revoked_at = 0 and expires_at > $2`
	qRevokeToken = `update edge_tokens set revoked_at = $2, version = version + 1 where id = $1 and revoked_at = 0`

	edgeColumns = `id, kind, name, site, labels, rules, cordoned, revoked_at, token_id, key_hash, serial, cert_not_after, host, build, address, seen_at, last_error, created_at, version`
	qInsertEdge = `insert into edges (` + edgeColumns + `) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`
	qGetEdge    = `select ` + edgeColumns + ` from edges where id = $1`
	qEdgeByName = `select ` + edgeColumns + ` from edges where name = $1`
	qEdgeByKey  = `select ` + edgeColumns + ` from edges where key_hash = $1`
	qReplace    = `update edges set key_hash = $2, host = $3, build = $4, version = version + 1 where id = $1`
	qListEdges  = `select ` + edgeColumns + ` from edges where id > $1 and ($2 = '' or site = $2) and ($3 = '' or kind = $3)
		and ($4 = '*' or $4 like '%,' || ` + groupOfRow + ` || ',%') order by id limit $5`
	qSiteEdges = `select name, seen_at, cordoned from edges where site = $1 and kind = 'extender' and revoked_at = 0 order by seen_at desc limit 8`
	qSiteUses  = `select 'edge ' || name from edges where site = $1 and revoked_at = 0
		union all select 'enrolment token ' || id from edge_tokens where site = $1 and revoked_at = 0 and expires_at > $2 and uses < max_uses
		limit 10`
	qPatchEdge  = `update edges set name = $2, site = $3, labels = $4, rules = $5, cordoned = $6, version = version + 1 where id = $1 and version = $7`
	qRevokeEdge = `update edges set revoked_at = $2, version = version + 1 where id = $1 and revoked_at = 0`
	qDeleteEdge = `delete from edges where id = $1`
	qSeenEdge   = `update edges set host = $2, build = $3, address = $4, seen_at = $5, last_error = $6 where id = $1`
	qTouchEdge  = `update edges set seen_at = $2 where id = $1`
	qGoneEdge   = `update edges set seen_at = $2, last_error = $3 where id = $1`
	qRenewEdge  = `update edges set serial = $2, cert_not_after = $3 where id = $1 and revoked_at = 0`

	qInsertCert  = `insert into edge_certs (serial, edge_id, not_after, revoked_at) values ($1, $2, $3, 0)`
	qRevokeCerts = `update edge_certs set revoked_at = $2 where edge_id = $1 and revoked_at = 0`
	qListRevoked = `select serial, revoked_at from edge_certs where revoked_at <> 0 and not_after > $1 order by serial`
	qPruneCerts  = `delete from edge_certs where not_after < $1`

	qGetHost    = `select target_id, digest from edge_hosts where site = $1 and machine_id = $2`
	qUpsertHost = `insert into edge_hosts (site, machine_id, target_id, token_id, digest, registered_at) values ($1, $2, $3, $4, $5, $6)
		on conflict (site, machine_id) do update set target_id = excluded.target_id, token_id = excluded.token_id,
		digest = excluded.digest, registered_at = excluded.registered_at`
)

type caRow struct {
	ID                     string
	Certificate, SealedKey []byte
	NotAfter, CreatedAt    time.Time
}

// token is an enrolment token as stored.
type token struct {
	ID, Kind, Site       string
	Labels               map[string]string
	Rules                wire.DialRules
	Comment              string
	SecretHash           []byte
	MaxUses, Uses        int
	AllowRepeat          bool
	ExpiresAt, RevokedAt time.Time // RevokedAt zero: not revoked
	CreatedAt            time.Time
	CreatedBy            string
	Version              int64
}

// edge is a node as stored.
type nodeRow struct {
	ID           string
	Kind         wire.NodeKind
	Name, Site   string
	Labels       map[string]string
	Rules        wire.DialRules
	Cordoned     bool
	RevokedAt    time.Time // zero: not revoked
	TokenID      string
	KeyHash      []byte
	Serial       string
	CertNotAfter time.Time
	Host         string
	Build        string
	Address      string
	SeenAt       time.Time // zero: never
	LastError    string
	CreatedAt    time.Time
	Version      int64
}

// micros and fromMicros translate times; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

func insertCA(ctx context.Context, q db.Querier, r caRow) error {
	if _, err := q.ExecContext(ctx, qInsertCA, r.ID, r.Certificate, r.SealedKey, micros(r.NotAfter), micros(r.CreatedAt)); err != nil {
		return fmt.Errorf("store edge ca: %w", db.Classify(err))
	}
	return nil
}

func listCA(ctx context.Context, q db.Querier) ([]caRow, error) {
	return collect(ctx, q, "read edge ca", func(s scanner) (r caRow, err error) {
		var end, at int64
		err = s.Scan(&r.ID, &r.Certificate, &r.SealedKey, &end, &at)
		r.NotAfter, r.CreatedAt = fromMicros(end), fromMicros(at)
		return r, err
	}, qListCA)
}

type scanner interface{ Scan(dest ...any) error }

// collect runs a query and reads every row.
func collect[T any](ctx context.Context, q db.Querier, what string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}

func scanToken(s scanner) (t token, err error) {
	var labels, rules string
	var expires, revoked, created int64
	err = s.Scan(&t.ID, &t.Kind, &t.Site, &labels, &rules, &t.Comment, &t.SecretHash, &t.MaxUses, &t.Uses,
		&t.AllowRepeat, &expires, &revoked, &created, &t.CreatedBy, &t.Version)
	if err != nil {
		return t, err
	}
	t.ExpiresAt, t.RevokedAt, t.CreatedAt = fromMicros(expires), fromMicros(revoked), fromMicros(created)
	return t, unpack(labels, &t.Labels, rules, &t.Rules)
}

func unpack(labels string, l *map[string]string, rules string, r *wire.DialRules) error {
	if err := json.Unmarshal([]byte(labels), l); err != nil {
		return fmt.Errorf("labels: %w", err)
	}
	if err := json.Unmarshal([]byte(rules), r); err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	return nil
}

func pack(l map[string]string, r wire.DialRules) (labels, rules string, err error) {
	if l == nil {
		l = map[string]string{}
	}
	a, err := json.Marshal(l)
	if err != nil {
		return "", "", fmt.Errorf("labels: %w", err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return "", "", fmt.Errorf("rules: %w", err)
	}
	return string(a), string(b), nil
}

func insertToken(ctx context.Context, q db.Querier, t token) error {
	labels, rules, err := pack(t.Labels, t.Rules)
	if err != nil {
		return fmt.Errorf("store enrolment token: %w", err)
	}
	if _, err := q.ExecContext(ctx, qInsertToken, t.ID, t.Kind, t.Site, labels, rules, t.Comment, t.SecretHash, t.MaxUses, t.Uses,
		t.AllowRepeat, micros(t.ExpiresAt), micros(t.RevokedAt), micros(t.CreatedAt), t.CreatedBy, t.Version); err != nil {
		return fmt.Errorf("store enrolment token: %w", db.Classify(err))
	}
	return nil
}

func getToken(ctx context.Context, q db.Querier, id string) (token, error) {
	t, err := scanToken(q.QueryRowContext(ctx, qGetToken, id))
	if err != nil {
		return t, fmt.Errorf("read enrolment token: %w", db.Classify(err))
	}
	return t, nil
}

func listTokens(ctx context.Context, q db.Querier, after string, in access.Scope, limit int) ([]token, error) {
	return collect(ctx, q, "list enrolment tokens", scanToken, qListTokens, after, in.Text(), limit)
}

// useToken counts one use and reports whether there was one left.
func useToken(ctx context.Context, q db.Querier, id string, now time.Time) (bool, error) {
	return changed(q.ExecContext(ctx, qUseToken, id, micros(now)))
}

func changed(r sql.Result, err error) (bool, error) {
	if err != nil {
		return false, db.Classify(err)
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

func scanEdge(s scanner) (e nodeRow, err error) {
	var labels, rules string
	var revoked, end, seen, created int64
	err = s.Scan(&e.ID, &e.Kind, &e.Name, &e.Site, &labels, &rules, &e.Cordoned, &revoked, &e.TokenID, &e.KeyHash,
		&e.Serial, &end, &e.Host, &e.Build, &e.Address, &seen, &e.LastError, &created, &e.Version)
	if err != nil {
		return e, err
	}
	e.RevokedAt, e.CertNotAfter, e.SeenAt, e.CreatedAt = fromMicros(revoked), fromMicros(end), fromMicros(seen), fromMicros(created)
	return e, unpack(labels, &e.Labels, rules, &e.Rules)
}

func insertEdge(ctx context.Context, q db.Querier, e nodeRow) error {
	labels, rules, err := pack(e.Labels, e.Rules)
	if err != nil {
		return fmt.Errorf("store edge: %w", err)
	}
	if _, err := q.ExecContext(ctx, qInsertEdge, e.ID, string(e.Kind), e.Name, e.Site, labels, rules, e.Cordoned, micros(e.RevokedAt),
		e.TokenID, e.KeyHash, e.Serial, micros(e.CertNotAfter), e.Host, e.Build, e.Address, micros(e.SeenAt), e.LastError,
		micros(e.CreatedAt), e.Version); err != nil {
		return fmt.Errorf("store edge: %w", db.Classify(err))
	}
	return nil
}

func getEdge(ctx context.Context, q db.Querier, id string) (nodeRow, error) {
	e, err := scanEdge(q.QueryRowContext(ctx, qGetEdge, id))
	if err != nil {
		return e, fmt.Errorf("read edge: %w", db.Classify(err))
	}
	return e, nil
}

func edgeByKey(ctx context.Context, q db.Querier, hash []byte) (nodeRow, error) {
	e, err := scanEdge(q.QueryRowContext(ctx, qEdgeByKey, hash))
	if err != nil {
		return e, fmt.Errorf("read edge: %w", db.Classify(err))
	}
	return e, nil
}

func edgeByName(ctx context.Context, q db.Querier, name string) (nodeRow, error) {
	e, err := scanEdge(q.QueryRowContext(ctx, qEdgeByName, name))
	if err != nil {
		return e, fmt.Errorf("read edge: %w", db.Classify(err))
	}
	return e, nil
}

func listEdges(ctx context.Context, q db.Querier, after, site, kind string, in access.Scope, limit int) ([]nodeRow, error) {
	return collect(ctx, q, "list edges", scanEdge, qListEdges, after, site, kind, in.Text(), limit)
}

func patchEdge(ctx context.Context, q db.Querier, e nodeRow) error {
	labels, rules, err := pack(e.Labels, e.Rules)
	if err != nil {
		return fmt.Errorf("change edge: %w", err)
	}
	ok, err := changed(q.ExecContext(ctx, qPatchEdge, e.ID, e.Name, e.Site, labels, rules, e.Cordoned, e.Version))
	if err != nil {
		return fmt.Errorf("change edge: %w", err)
	}
	if !ok {
		return fmt.Errorf("change edge: %w", db.ErrConflict)
	}
	return nil
}

// siteEdge is what is known of an extender of a site, for messages.
type siteEdge struct {
	Name     string
	SeenAt   time.Time
	Cordoned bool
}

func siteEdges(ctx context.Context, q db.Querier, site string) ([]siteEdge, error) {
	return collect(ctx, q, "list extenders of a site", func(s scanner) (e siteEdge, err error) {
		var seen int64
		err = s.Scan(&e.Name, &seen, &e.Cordoned)
		e.SeenAt = fromMicros(seen)
		return e, err
	}, qSiteEdges, site)
}

type revocation struct {
	Serial    string
	RevokedAt time.Time
}

func listRevoked(ctx context.Context, q db.Querier, now time.Time) ([]revocation, error) {
	return collect(ctx, q, "list revoked certificates", func(s scanner) (r revocation, err error) {
		var at int64
		err = s.Scan(&r.Serial, &at)
		r.RevokedAt = fromMicros(at)
		return r, err
	}, qListRevoked, micros(now))
}
