package user

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Member is a user's place in a role, as its administrator sees it.
type Member struct {
	RoleID    string
	RoleName  string
	UserID    string
	UserName  string
	UserKind  Kind
	Window    access.Window
	Sources   []netip.Prefix
	FirstUse  time.Time
	CreatedAt time.Time
	CreatedBy string
	Version   int64

	group string // the role's
}

const memberColumns = `m.role_id, r.name, m.user_id, u.name, u.kind, m.time_window, m.sources, m.first_use,
m.created_at, m.created_by, m.version, r.group_id`

const memberFrom = ` from memberships m join roles r on r.id = m.role_id join users u on u.id = m.user_id `

// maxMemberships bounds the roles of one user.
const maxMemberships = 1000

func scanMember(row scanner) (Member, error) {
	var m Member
	var window, sources string
	var first, created int64
	err := row.Scan(&m.RoleID, &m.RoleName, &m.UserID, &m.UserName, &m.UserKind, &window, &sources, &first,
		&created, &m.CreatedBy, &m.Version, &m.group)
	if err != nil {
		return Member{}, db.Classify(err)
	}
	m.FirstUse, m.CreatedAt = db.FromMicro(first), db.FromMicro(created)
	if m.Window, err = decodeWindow(window); err == nil {
		m.Sources, err = decodeSources(sources)
	}
	if err != nil {
		return Member{}, fmt.Errorf("membership of %s in %s: %w", m.UserID, m.RoleID, err)
	}
	return m, nil
}

// Members lists a role's members by user name, after the name given.
func (s *Service) Members(ctx context.Context, roleID, after string, limit int) ([]Member, error) {
	list, err := query(ctx, s.db, scanMember, sqlRoleMembers, roleID, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	return list, nil
}

// Member returns one membership.
func (s *Service) Member(ctx context.Context, roleID, userID string) (Member, error) {
	m, err := scanMember(s.db.QueryRowContext(ctx, sqlMember, roleID, userID))
	if err != nil {
		return Member{}, fmt.Errorf("member: %w", err)
	}
	return m, nil
}

// Memberships lists the roles of a user that are in a scope of access groups,
// by role name.
func (s *Service) Memberships(ctx context.Context, userID string, in access.Scope) ([]Member, error) {
	list, err := query(ctx, s.db, scanMember, sqlUserMembers, userID, in.Text())
	if err != nil {
		return nil, fmt.Errorf("list memberships: %w", err)
	}
	return list, nil
}

// maxSources bounds the networks of one membership.
const maxSources = 64

func checkMembership(w access.Window, sources []netip.Prefix) error {
	var bad []api.FieldError
	if err := w.Validate(); err != nil {
		bad = append(bad, api.FieldError{Field: "body.window", Message: err.Error()})
	}
	if len(w.Days) > 7 {
		bad = append(bad, api.FieldError{Field: "body.window.days", Message: "must have at most 7 days"})
	}
	if len(sources) > maxSources {
		bad = append(bad, api.FieldError{Field: "body.sources", Message: fmt.Sprintf("must have at most %d networks", maxSources)})
	}
	for i, p := range sources {
		if !p.IsValid() || p != p.Masked() {
			bad = append(bad, api.FieldError{Field: fmt.Sprintf("body.sources[%d]", i), Message: "must be a network such as 10.1.0.0/16, without host bits"})
		}
	}
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

// PutMember makes a user a member of a role, or changes how he is one. match
// sees the version of the membership there is, 0 when there is none. A changed
// window of a floating membership starts anew.
func (s *Service) PutMember(ctx context.Context, by audit.Actor, roleID, userID string, w access.Window, sources []netip.Prefix, match func(version int64) error) (Member, error) {
	if err := checkMembership(w, sources); err != nil {
		return Member{}, err
	}
	window, err1 := encodeWindow(w)
	from, err2 := encodeSources(sources)
	if err := errors.Join(err1, err2); err != nil {
		return Member{}, fmt.Errorf("put member: %w", err)
	}
	var made Member
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		return s.guardAdministrators(ctx, tx, func() (err error) {
			made, err = s.putMember(ctx, tx, by, roleID, userID, window, from, match)
			return err
		})
	})
	if err != nil {
		return Member{}, fmt.Errorf("put member: %w", err)
	}
	return made, nil
}

func (s *Service) putMember(ctx context.Context, tx *db.Tx, by audit.Actor, roleID, userID, window, sources string, match func(int64) error) (Member, error) {
	if _, err := roleByID(ctx, tx, roleID); err != nil {
		return Member{}, err
	}
	u, err := userByID(ctx, tx, userID)
	if err != nil {
		return Member{}, err
	}
	if !u.ErasedAt.IsZero() {
		return Member{}, api.Conflict("erased", "The user was erased.")
	}
	old, err := scanMember(tx.QueryRowContext(ctx, sqlMember, roleID, userID))
	event := audit.RoleMemberChanged
	switch {
	case errors.Is(err, db.ErrNotFound):
		event = audit.RoleMemberAdded
		if err := match(0); err != nil {
			return Member{}, err
		}
		list, err := s.membershipCount(ctx, tx, userID)
		if err != nil {
			return Member{}, err
		}
		if list >= maxMemberships {
			return Member{}, api.Conflict("too_many_roles", fmt.Sprintf("A user has at most %d roles.", maxMemberships))
		}
		_, err = tx.ExecContext(ctx, sqlMemberInsert, roleID, userID, window, sources, s.now().UnixMicro(), ref(by))
		if err != nil {
			return Member{}, db.Classify(err)
		}
	case err != nil:
		return Member{}, err
	default:
		if err := match(old.Version); err != nil {
			return Member{}, err
		}
		first := db.Micro(old.FirstUse)
		if before, err := encodeWindow(old.Window); err != nil || before != window {
			first = 0
		}
		if err := changeOne(ctx, tx, sqlMemberUpdate, roleID, userID, window, sources, first); err != nil {
			return Member{}, err
		}
	}
	made, err := scanMember(tx.QueryRowContext(ctx, sqlMember, roleID, userID))
	if err != nil {
		return Member{}, err
	}
	return made, s.memberEvent(ctx, tx, by, event, made, map[string]string{"window": window, "sources": sources})
}

func (s *Service) membershipCount(ctx context.Context, q db.Querier, userID string) (n int, err error) {
	err = q.QueryRowContext(ctx, `select count(*) from memberships where user_id = $1`, userID).Scan(&n)
	return n, err
}

func (s *Service) memberEvent(ctx context.Context, tx *db.Tx, by audit.Actor, t audit.Type, m Member, fields map[string]string) error {
	if fields == nil {
		fields = map[string]string{}
	}
	fields["role"], fields["role_name"] = m.RoleID, m.RoleName
	if err := tx.Notify(ctx, "user", m.UserID); err != nil {
		return err
	}
	if err := tx.Notify(ctx, "role"+api.GroupSuffix, m.group); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{Type: t, Outcome: audit.OK, Actor: by, Group: m.group,
		Object: audit.Object{Kind: "user", ID: m.UserID, Name: m.UserName}, Fields: fields})
}

// RemoveMember takes a user out of a role.
func (s *Service) RemoveMember(ctx context.Context, by audit.Actor, roleID, userID string, match func(version int64) error) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		return s.guardAdministrators(ctx, tx, func() error {
			m, err := scanMember(tx.QueryRowContext(ctx, sqlMember, roleID, userID))
			if err != nil {
				return err
			}
			if err := match(m.Version); err != nil {
				return err
			}
			if err := changeOne(ctx, tx, sqlMemberDelete, roleID, userID); err != nil {
				return err
			}
			return s.memberEvent(ctx, tx, by, audit.RoleMemberRemoved, m, nil)
		})
	})
	if err != nil {
		return fmt.Errorf("remove member: %w", err)
	}
	return nil
}

// lockAdministrators serialises what may take the last administrator away.
const lockAdministrators = "administrators"

// guardAdministrators runs change and refuses it if it leaves nobody who could
// administer: an enabled person whose membership has no window and no source.
func (s *Service) guardAdministrators(ctx context.Context, tx *db.Tx, change func() error) error {
	if err := tx.Lock(ctx, lockAdministrators); err != nil {
		return err
	}
	var before, after int
	if err := tx.QueryRowContext(ctx, sqlAdministrators).Scan(&before); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	if err := tx.QueryRowContext(ctx, sqlAdministrators).Scan(&after); err != nil {
		return err
	}
	if before > 0 && after == 0 {
		return api.Conflict("last_administrator", "This is the last administrator. Make somebody else one first, without a time window or source.")
	}
	return nil
}

// MarkFirstUse starts a floating membership of the user in the role. One that
// has started or does not float stays as it is.
func (s *Service) MarkFirstUse(ctx context.Context, userID, roleID string, at time.Time) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		m, err := scanMember(tx.QueryRowContext(ctx, sqlMember, roleID, userID))
		if err != nil {
			return err
		}
		if m.Window.Floating == 0 {
			return nil
		}
		n, err := affected(tx.ExecContext(ctx, sqlMemberStarted, roleID, userID, at.UnixMicro()))
		if err != nil || n == 0 {
			return err
		}
		until := at.Add(m.Window.Floating).UTC().Format(time.RFC3339)
		return s.memberEvent(ctx, tx, audit.System, audit.RoleFirstUse, m, map[string]string{"until": until})
	})
	if err != nil {
		return fmt.Errorf("start membership: %w", err)
	}
	return nil
}

// Subject returns the user as the decision sees him, fresh from q. mfa comes
// from the principal. It fails with db.ErrNotFound for an unknown user.
func (s *Service) Subject(ctx context.Context, q db.Querier, userID string, mfa bool) (access.Subject, error) {
	u, err := userByID(ctx, q, userID)
	if err != nil {
		return access.Subject{}, err
	}
	list, err := query(ctx, q, scanMembership, sqlSubjectMembers, userID)
	if err != nil {
		return access.Subject{}, fmt.Errorf("memberships of %s: %w", userID, err)
	}
	return access.Subject{User: u.ID, Disabled: u.Disabled || !u.ErasedAt.IsZero(), Locked: u.Locked, MFA: mfa, Memberships: list}, nil
}

func scanMembership(row scanner) (access.Membership, error) {
	var m access.Membership
	var window, sources string
	var first int64
	if err := row.Scan(&m.Role, &window, &sources, &first); err != nil {
		return m, err
	}
	return m, fillMembership(&m, window, sources, first)
}

func fillMembership(m *access.Membership, window, sources string, first int64) (err error) {
	m.FirstUse = db.FromMicro(first)
	if m.Window, err = decodeWindow(window); err != nil {
		return err
	}
	m.Sources, err = decodeSources(sources)
	return err
}

// carrier is a membership in a role with administrative rights.
type carrier struct {
	access.Membership
	rights []Right
}

func scanCarrier(row scanner) (carrier, error) {
	var c carrier
	var window, sources, permissions, scope string
	var first int64
	var builtin bool
	if err := row.Scan(&c.Role, &window, &sources, &first, &permissions, &scope, &builtin); err != nil {
		return c, err
	}
	if err := fillMembership(&c.Membership, window, sources, first); err != nil {
		return c, err
	}
	var r Role
	var err error
	if r.Permissions, err = decodePermissions(permissions, builtin); err != nil {
		return c, err
	}
	if r.LimitedTo, err = decodeLimit(scope); err != nil {
		return c, err
	}
	c.rights = r.rights()
	return c, nil
}

// held are the administrative rights somebody has: everywhere, and in groups.
type held struct {
	everywhere map[api.Permission]bool
	scoped     map[api.Permission][]string
}

func (h *held) add(r Right) {
	if r.Scope.All() {
		h.everywhere[r.Permission] = true
		return
	}
	if h.scoped == nil {
		h.scoped = map[api.Permission][]string{}
	}
	h.scoped[r.Permission] = append(h.scoped[r.Permission], r.Scope.Groups()...)
}

// permissions are the administrative rights the user has now, from there, and
// the roles whose floating window this use starts.
func (s *Service) permissions(ctx context.Context, q db.Querier, userID string, source netip.Addr) (held, []string, error) {
	list, err := query(ctx, q, scanCarrier, sqlPermissions, userID)
	if err != nil {
		return held{}, nil, fmt.Errorf("permissions of %s: %w", userID, err)
	}
	now, has := s.now(), held{everywhere: map[api.Permission]bool{}}
	var starts []string
	for i := range list {
		ok, begins := list[i].Holds(now, source, nil)
		if !ok {
			continue
		}
		if begins {
			starts = append(starts, list[i].Role)
		}
		for _, r := range list[i].rights {
			has.add(r)
		}
	}
	return has, starts, nil
}

// potential are the rights the user may have at some time, from somewhere.
func (s *Service) potential(ctx context.Context, q db.Querier, userID string) ([]Right, error) {
	list, err := query(ctx, q, scanCarrier, sqlPermissions, userID)
	if err != nil {
		return nil, fmt.Errorf("permissions of %s: %w", userID, err)
	}
	var all []Right
	for _, c := range list {
		all = append(all, c.rights...)
	}
	return all, nil
}

// RoleIDs are the roles the user holds now. In a request, memberships limited
// to networks count if the caller is there; outside one they do not.
func (s *Service) RoleIDs(ctx context.Context, userID string) ([]string, error) {
	list, err := query(ctx, s.db, scanMembership, sqlSubjectMembers, userID)
	if err != nil {
		return nil, fmt.Errorf("roles of %s: %w", userID, err)
	}
	source := api.SourceFrom(ctx)
	var ids []string
	for i := range list {
		if ok, _ := list[i].Holds(s.now(), source, nil); ok {
			ids = append(ids, list[i].Role)
		}
	}
	return ids, nil
}
