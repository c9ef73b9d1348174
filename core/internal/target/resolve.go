package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"caponier/core/internal/db"
)

// maxRef bounds a reference a user gives, in bytes.
const maxRef = 400

// maxCandidates bounds how many targets one reference is looked up as.
const maxCandidates = 20

// AmbiguousError: a reference fits several targets.
type AmbiguousError struct {
	Ref        string
	Candidates []Target
}

// Error names the candidates: for people who may see all of them.
func (e *AmbiguousError) Error() string {
	names := make([]string, 0, 5)
	for i, t := range e.Candidates {
		if i == 5 {
			names = append(names, "…")
			break
		}
		names = append(names, fmt.Sprintf("%s (%s)", t.Name, t.FullAddress()))
	}
	return fmt.Sprintf("%.80q fits several targets: %s; say which by name", e.Ref, strings.Join(names, ", "))
}

// Ref is a parsed reference to a target.
type Ref struct {
	Site string // empty when none was given
	Name string // host or target name, as given in lower case
	Host string // normalised, empty when Name is no host
	Port int    // 0 when none was given
}

// ParseRef reads "name", "host[:port]" or "site/host[:port]"; IPv6 addresses
// with a port stand in brackets.
func ParseRef(ref string) (Ref, error) {
	if ref == "" || len(ref) > maxRef {
		return Ref{}, fmt.Errorf("a target is a name or [site/]host[:port]")
	}
	var r Ref
	rest := ref
	if site, after, found := strings.Cut(ref, "/"); found {
		if r.Site = strings.ToLower(site); !siteName.MatchString(r.Site) {
			return Ref{}, fmt.Errorf("%.64q is not a site name", site)
		}
		rest = after
	}
	host := rest
	// An IPv6 address without brackets has more than one colon and no port.
	if strings.HasPrefix(rest, "[") && !strings.HasSuffix(rest, "]") || strings.Count(rest, ":") == 1 {
		h, p, err := net.SplitHostPort(rest)
		if err != nil {
			return Ref{}, fmt.Errorf("%.80q is not host:port", rest)
		}
		port, err := strconv.ParseUint(p, 10, 16)
		if err != nil || port == 0 {
			return Ref{}, fmt.Errorf("%.16q is not a port", p)
		}
		host, r.Port = h, int(port)
	}
	r.Name = strings.ToLower(host)
	h, err := NormalHost(host)
	if err != nil && !targetName.MatchString(r.Name) {
		return Ref{}, err
	}
	r.Host = h
	return r, nil
}

// Resolve finds a target by ID, by name, or by address ("site/host[:port]" or
// "host[:port]"): db.ErrNotFound when there is none, *AmbiguousError when
// there are several.
func (s *Service) Resolve(ctx context.Context, q db.Querier, ref string) (*Target, error) {
	ts, err := s.Candidates(ctx, q, ref)
	switch {
	case err != nil:
		return nil, err
	case len(ts) == 0:
		return nil, fmt.Errorf("resolve %.80q: %w", ref, db.ErrNotFound)
	case len(ts) > 1:
		return nil, &AmbiguousError{Ref: ref, Candidates: ts}
	}
	return &ts[0], nil
}

// Candidates returns every target a reference may mean, at most 20. What
// comes first excludes the rest: the ID, the name (perhaps with its site or
// port), the address without a site, the address in any site.
func (s *Service) Candidates(ctx context.Context, q db.Querier, ref string) ([]Target, error) {
	if strings.HasPrefix(ref, idPrefix) {
		t, err := scanTarget(q.QueryRowContext(ctx, sqlTargetByID, ref))
		return one(t, err, ref)
	}
	r, err := ParseRef(ref)
	if err != nil {
		return nil, nil // what is no reference names no target
	}
	t, err := scanTarget(q.QueryRowContext(ctx, sqlTargetByName, r.Name))
	if err == nil && (r.Site == "" || r.Site == t.Site) && (r.Port == 0 || r.Port == t.Port) {
		return []Target{t}, nil
	}
	if err != nil && !errors.Is(err, db.ErrNotFound) {
		return nil, fmt.Errorf("resolve %.80q: %w", ref, err)
	}
	if r.Host == "" {
		return nil, nil
	}
	ts, err := db.Collect(ctx, q, scanTarget, sqlTargetByAddress, r.Host, r.Port, r.Site, maxCandidates)
	if err != nil {
		return nil, fmt.Errorf("resolve %.80q: %w", ref, err)
	}
	if r.Site == "" {
		if direct := withoutSite(ts); len(direct) > 0 {
			return direct, nil
		}
	}
	return ts, nil
}

func one(t Target, err error, ref string) ([]Target, error) {
	if errors.Is(err, db.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %.80q: %w", ref, err)
	}
	return []Target{t}, nil
}

func withoutSite(ts []Target) []Target {
	var direct []Target
	for _, t := range ts {
		if t.Site == "" {
			direct = append(direct, t)
		}
	}
	return direct
}
