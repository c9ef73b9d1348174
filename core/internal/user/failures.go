package user

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"caponier/core/internal/audit"
)

const (
	sqlFailures = `select bucket, failures, at from login_failures where bucket in ($1, $2)`
	// A failure is forgiven every $3 microseconds. The clock of another core
	// may be ahead: time never runs backwards in a row.
	sqlFailed = `insert into login_failures (bucket, failures, at) values ($1, 1, $2)
on conflict (bucket) do update set
failures = 1 + case
  when login_failures.at >= $2 then login_failures.failures
  when login_failures.failures > cast($2 - login_failures.at as double precision) / $3
    then login_failures.failures - cast($2 - login_failures.at as double precision) / $3
  else 0 end,
at = case when login_failures.at > $2 then login_failures.at else $2 end`
	sqlFailuresPurge = `delete from login_failures where at < $1`
)

// text names the bucket in the database. Hashed, because people type passwords
// into the field for the name.
func (k bucketKey) text() string {
	h := sha256.Sum256([]byte(k.name + "\x00" + k.net.String()))
	return hex.EncodeToString(h[:16])
}

// failures reads what is counted against the buckets, on any core.
func (s *Service) failures(ctx context.Context, lim limits, keys [2]bucketKey) (counts [2]float64, err error) {
	rows, err := s.db.QueryContext(ctx, sqlFailures, keys[0].text(), keys[1].text())
	if err != nil {
		return counts, fmt.Errorf("read failed logins: %w", err)
	}
	defer rows.Close()
	rates := [2]rate{lim.user, lim.subnet}
	for rows.Next() {
		var name string
		var n float64
		var at int64
		if err := rows.Scan(&name, &n, &at); err != nil {
			return counts, fmt.Errorf("read failed logins: %w", err)
		}
		i := 0
		if name == keys[1].text() {
			i = 1
		}
		passed := max(0, s.now().Sub(time.UnixMicro(at)))
		counts[i] = max(0, n-float64(passed)/float64(rates[i].every))
	}
	return counts, rows.Err()
}

// countFailure writes a failure against the buckets.
func (s *Service) countFailure(ctx context.Context, lim limits, keys [2]bucketKey) error {
	// He who hangs up after a guess has guessed all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	for i, r := range [2]rate{lim.user, lim.subnet} {
		_, err := s.db.ExecContext(ctx, sqlFailed, keys[i].text(), s.now().UnixMicro(), float64(r.every.Microseconds()))
		if err != nil {
			return fmt.Errorf("count a failed login: %w", err)
		}
	}
	return nil
}

// purgeFailures forgets what is forgiven in full.
func (s *Service) purgeFailures(ctx context.Context) (int64, error) {
	lim := currentLimits(s.settings)
	longest := max(time.Duration(lim.user.burst)*lim.user.every, time.Duration(lim.subnet.burst)*lim.subnet.every)
	return affected(s.db.ExecContext(ctx, sqlFailuresPurge, s.now().Add(-longest-time.Minute).UnixMicro()))
}

// attempt admits a login within the limits, or returns a *LimitError that is
// audited. The caller calls done exactly once.
func (s *Service) attempt(ctx context.Context, name string, c Credentials, method string) (done func(failed bool), err error) {
	lim, source := currentLimits(s.settings), c.Source.Unmap()
	if lim.exempts(source) {
		return func(bool) {}, nil
	}
	keys := bucketsOf(name, source)
	counts, err := s.failures(ctx, lim, keys)
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	s.limiter.raise(lim, keys, counts)
	end, err := s.limiter.begin(ctx, lim, name, source)
	if limit, ok := errors.AsType[*LimitError](err); ok {
		if limit.first {
			if err := s.audit.Write(ctx, s.refusal(audit.LoginLimited, c, nil, "limit", method)); err != nil {
				return nil, err
			}
		}
		return nil, limit
	}
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	return func(failed bool) {
		if failed {
			if err := s.countFailure(ctx, lim, keys); err != nil {
				s.log.Error("a failed login is counted on this core only", "err", err)
			}
		}
		end(failed)
	}, nil
}

// Attempt admits an attempt to log in that another room checks, within the
// same limits as Login; what is limited is name from source. The caller calls
// done exactly once.
func (s *Service) Attempt(ctx context.Context, name string, source netip.Addr, via string) (done func(failed bool), err error) {
	if !source.IsValid() {
		return nil, ErrBadCredentials
	}
	return s.attempt(ctx, name, Credentials{Source: source, Via: via}, "")
}
