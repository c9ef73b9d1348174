package overview

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

const (
	liveSQL = `select kind, count(*) from connections
where state in ('requested', 'connecting', 'connected', 'disconnecting') group by kind order by kind`

	liveInSQL = `select kind, count(*) from connections
where state in ('requested', 'connecting', 'connected', 'disconnecting') and $1 like '%,' || group_id || ',%' group by kind order by kind`
	hoursInSQL = `select requested_at / 3600000000, state = 'failed', count(*) from connections
where requested_at >= $1 and $2 like '%,' || group_id || ',%' group by 1, 2`

	// Answered from connections_hourly alone.
	hoursSQL = `select requested_at / 3600000000, state = 'failed', count(*) from connections
where requested_at >= $1 group by 1, 2`

	firstSinceSQL = `select seq from audit_events where at >= $1 order by at limit 1`
	countTypeSQL  = `select count(*) from audit_events where type = $1 and seq >= $2`

	certificatesSQL = `select id, name, kind, cert_not_after from edges
where revoked_at = 0 and cert_not_after < $1 order by cert_not_after limit $2`

	certificatesInSQL = `select id, name, kind, cert_not_after from edges
where revoked_at = 0 and cert_not_after < $1
  and $3 like '%,' || coalesce((select s.group_id from sites s where s.name = edges.site), 'default') || ',%' order by cert_not_after limit $2`

	tokensSQL = `select t.id, t.name, u.name, t.expires_at from tokens t join users u on u.id = t.user_id
where t.expires_at > $1 and t.expires_at < $2 and t.kind = 'api' and t.revoked_at = 0 order by t.expires_at limit $3`

	membershipsSQL = `select m.role_id, r.name, u.name, m.ends from memberships m
join roles r on r.id = m.role_id join users u on u.id = m.user_id
where m.ends is not null and m.ends > $1 and m.ends < $2 order by m.ends limit $3`

	statusSQL = `select status, count(*) from recordings where status in ('damaged', 'recording') group by status`
	agingSQL  = `select count(*) from recordings where status <> 'expired' and expires_at < $1`

	sizeSQLite   = `select (select page_count from pragma_page_count()) * (select page_size from pragma_page_size())`
	sizePostgres = `select pg_database_size(current_database())`
)

// How long before its end a thing is shown. Nodes renew 30 days ahead by
// themselves: one that has less than 21 left did not.
const (
	day           = 24 * time.Hour
	nodeHorizon   = 21 * day
	coreHorizon   = 30 * day
	peopleHorizon = 14 * day
)

func (s *Service) sessions(ctx context.Context, now time.Time, in access.Scope, v *View) error {
	out := &Sessions{Kinds: []KindCount{}, Hours: make([]Hour, hours)}
	first := now.Truncate(time.Hour).Add(-(hours - 1) * time.Hour)
	live, hourly, liveArgs, hourlyArgs := liveSQL, hoursSQL, []any{}, []any{first.UnixMicro()}
	if !in.All() {
		live, hourly, liveArgs, hourlyArgs = liveInSQL, hoursInSQL, []any{in.Text()}, append(hourlyArgs, in.Text())
	}
	err := each(ctx, s.c.DB, func(rows *sql.Rows) error {
		var k KindCount
		if err := rows.Scan(&k.Kind, &k.Count); err != nil {
			return err
		}
		out.Kinds, out.Now = append(out.Kinds, k), out.Now+k.Count
		return nil
	}, live, liveArgs...)
	if err != nil {
		return err
	}
	for i := range out.Hours {
		out.Hours[i].At = first.Add(time.Duration(i) * time.Hour)
	}
	base := first.UnixMicro() / time.Hour.Microseconds()
	err = each(ctx, s.c.DB, func(rows *sql.Rows) error {
		var hour int64
		var failed bool
		var n int
		if err := rows.Scan(&hour, &failed, &n); err != nil {
			return err
		}
		i := hour - base
		if i < 0 || i >= hours {
			return nil // a clock that went back
		}
		if failed {
			out.Hours[i].Failed, out.Failed = n, out.Failed+n
			return nil
		}
		out.Hours[i].Opened, out.Opened = n, out.Opened+n
		return nil
	}, hourly, hourlyArgs...)
	v.Sessions = out
	return err
}

func (s *Service) edges(ctx context.Context, now time.Time, in access.Scope, v *View) error {
	sum, err := s.c.Edges.Summary(ctx, in, troubles)
	if err != nil {
		return err
	}
	v.Edges = &sum
	certificates, args := certificatesSQL, []any{now.Add(nodeHorizon).UnixMicro(), expiring}
	own := s.c.Certificates()
	if !in.All() { // core's own are the installation's
		certificates, args, own = certificatesInSQL, append(args, in.Text()), nil
	}
	for _, c := range own {
		if c.NotAfter.After(now.Add(coreHorizon)) || c.Renews && c.NotAfter.After(now.Add(7*day)) {
			continue
		}
		e := Expiring{Kind: "tls_certificate", Name: c.Name, At: c.NotAfter.UTC(), Text: "Put a new certificate in its place; core reads it by itself."}
		if c.Renews {
			e.Text = "Core renews it by itself."
		}
		v.Expiring = append(v.Expiring, e)
	}
	return each(ctx, s.c.DB, func(rows *sql.Rows) error {
		e := Expiring{Kind: "edge_certificate", Text: "It is renewed while the node is connected."}
		var kind string
		var at int64
		if err := rows.Scan(&e.ID, &e.Name, &kind, &at); err != nil {
			return err
		}
		e.At = time.UnixMicro(at).UTC()
		v.Expiring = append(v.Expiring, e)
		return nil
	}, certificates, args...)
}

func (s *Service) audit(ctx context.Context, now time.Time, in access.Scope, v *View) error {
	var err error
	if v.Audit, err = s.c.Audit.Find(ctx, s.c.DB, audit.Filter{}.Within(in), 0, auditTail); err != nil || !in.All() {
		return err
	}
	out := &Logins{}
	v.Logins = out
	// One lookup by time, then counts by type from a place in the log on.
	var seq int64
	err = s.c.DB.QueryRowContext(ctx, firstSinceSQL, now.Add(-hours*time.Hour).UnixMicro()).Scan(&seq)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	for t, n := range map[audit.Type]*int{
		audit.LoginSucceeded: &out.OK, audit.LoginFailed: &out.Failed, audit.LoginLimited: &out.Limited, audit.ConnectionDenied: &out.Denied,
	} {
		if err := s.c.DB.QueryRowContext(ctx, countTypeSQL, string(t), seq).Scan(n); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) people(ctx context.Context, now time.Time, _ access.Scope, v *View) error {
	until := now.Add(peopleHorizon)
	err := each(ctx, s.c.DB, func(rows *sql.Rows) error {
		e := Expiring{Kind: "api_token"}
		var owner string
		var at int64
		if err := rows.Scan(&e.ID, &e.Name, &owner, &at); err != nil {
			return err
		}
		e.At, e.Text = time.UnixMicro(at).UTC(), "API token of "+owner+"."
		v.Expiring = append(v.Expiring, e)
		return nil
	}, tokensSQL, now.UnixMicro(), until.UnixMicro(), expiring)
	if err != nil {
		return err
	}
	return each(ctx, s.c.DB, func(rows *sql.Rows) error {
		e := Expiring{Kind: "membership"}
		var role, user, at string
		if err := rows.Scan(&e.ID, &role, &user, &at); err != nil {
			return err
		}
		end, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			return nil // written by another release
		}
		e.At, e.Name, e.Text = end.UTC(), user, "Is a member of "+role+" until then."
		v.Expiring = append(v.Expiring, e)
		return nil
	}, membershipsSQL, now.Format(time.RFC3339), until.Format(time.RFC3339), expiring)
}

func (s *Service) storage(ctx context.Context, now time.Time, _ access.Scope, v *View) error {
	out := &Storage{Engine: string(s.c.DB.Engine())}
	v.Storage = out
	size := sizeSQLite
	if s.c.DB.Engine() == db.Postgres {
		size = sizePostgres
	}
	if err := s.c.DB.QueryRowContext(ctx, size).Scan(&out.DatabaseBytes); err != nil {
		return err
	}
	if free, total, err := s.c.Space(); err != nil {
		s.c.Log.Warn("space for recordings", "err", err)
		out.Problem = "The directory for recordings cannot be used: recorded sessions do not start."
	} else {
		out.FreeBytes, out.TotalBytes = free, total
	}
	err := each(ctx, s.c.DB, func(rows *sql.Rows) error {
		var status string
		var n int
		if err := rows.Scan(&status, &n); err != nil {
			return err
		}
		switch status {
		case "recording":
			out.Recording = n
		case "damaged":
			out.Damaged = n
		}
		return nil
	}, statusSQL)
	if err != nil {
		return err
	}
	return s.c.DB.QueryRowContext(ctx, agingSQL, now.Add(7*day).UnixMicro()).Scan(&out.ExpiringWeek)
}

func sortExpiring(list []Expiring) {
	slices.SortStableFunc(list, func(a, b Expiring) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Name, b.Name)) })
}

// each runs a query and hands on every row.
func each(ctx context.Context, q db.Querier, row func(*sql.Rows) error, query string, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
