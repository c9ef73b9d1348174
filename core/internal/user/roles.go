package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
)

// AllPermissions lists every administrative right; the built-in administrator
// role has them all.
var AllPermissions = []api.Permission{
	api.UsersView, api.UsersManage, api.TargetsView, api.TargetsManage, api.EdgesView, api.EdgesManage,
	api.ConnectionsView, api.ConnectionsManage, api.ConnectionsWatch, api.RecordingsView, api.AuditView,
	api.SettingsView, api.SettingsManage, api.SecretsManage, api.GroupsView, api.GroupsManage,
	api.WebApprove,
}

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

const roleColumns = `r.id, r.name, r.comment, r.permissions, r.group_id, r.scope, r.builtin, r.version`

const memberColumns = `m.role_id, r.name, m.user_id, u.name, u.kind, m.time_window, m.sources, m.first_use,
m.created_at, m.created_by, m.version, r.group_id`

const memberFrom = ` from memberships m join roles r on r.id = m.role_id join users u on u.id = m.user_id `

const (
	sqlRoleByID = `select ` + roleColumns + ` from roles r where r.id = $1`
	sqlRoleList = `select ` + roleColumns + ` from roles r
where r.name > $1 and ($2 = '' or r.name like $3 escape '!') and ($4 = '*' or $4 like '%,' || r.group_id || ',%')
and ($5 = '' or r.group_id = $5) order by r.name limit $6`
	sqlRoleInsert = `insert into roles (id, name, comment, permissions, group_id, scope, builtin, created_at, version)
values ($1, $2, $3, $4, $5, $6, $7, $8, 1)`
	sqlRoleUpdate = `update roles set name = $2, comment = $3, permissions = $4, group_id = $5, scope = $6, version = version + 1
where id = $1 and version = $7`
	sqlRoleDelete = `delete from roles where id = $1`

	sqlMember      = `select ` + memberColumns + memberFrom + `where m.role_id = $1 and m.user_id = $2`
	sqlRoleMembers = `select ` + memberColumns + memberFrom + `where m.role_id = $1 and u.name > $2 order by u.name limit $3`
	sqlUserMembers = `select ` + memberColumns + memberFrom + `where m.user_id = $1
and ($2 = '*' or $2 like '%,' || r.group_id || ',%') order by r.name limit 1000`
	sqlMemberInsert = `insert into memberships (role_id, user_id, time_window, sources, first_use, created_at, created_by, version)
values ($1, $2, $3, $4, 0, $5, $6, 1)`
	sqlMemberUpdate = `update memberships set time_window = $3, sources = $4, first_use = $5, version = version + 1
where role_id = $1 and user_id = $2`
	sqlMemberDelete  = `delete from memberships where role_id = $1 and user_id = $2`
	sqlMembersErase  = `delete from memberships where user_id = $1`
	sqlMemberStarted = `update memberships set first_use = $3, version = version + 1
where role_id = $1 and user_id = $2 and first_use = 0`
	sqlSubjectMembers = `select role_id, time_window, sources, first_use from memberships where user_id = $1`

	// Roles of a user that carry administrative rights.
	sqlPermissions = `select m.role_id, m.time_window, m.sources, m.first_use, r.permissions, r.scope, r.builtin
from memberships m join roles r on r.id = m.role_id
where m.user_id = $1 and (r.builtin or r.permissions <> '[]')`

	sqlAdministrators = `select count(*) from memberships m join users u on u.id = m.user_id
where m.role_id = '` + AdministratorRole + `' and u.kind = 'person' and not u.disabled and not u.locked
and m.time_window = '{}' and m.sources = '[]'`
)

// maxLimits bounds the groups one role is limited to.
const maxLimits = 100

// maxMemberships bounds the roles of one user.
const maxMemberships = 1000

func scanRole(row scanner) (Role, error) {
	var r Role
	var permissions, scope string
	if err := row.Scan(&r.ID, &r.Name, &r.Comment, &permissions, &r.Group, &scope, &r.Builtin, &r.Version); err != nil {
		return Role{}, db.Classify(err)
	}
	var err error
	if r.Permissions, err = decodePermissions(permissions, r.Builtin); err != nil {
		return Role{}, err
	}
	r.LimitedTo, err = decodeLimit(scope)
	return r, err
}

func decodePermissions(text string, builtin bool) ([]api.Permission, error) {
	if builtin {
		return slices.Clone(AllPermissions), nil
	}
	var list []api.Permission
	if text == "[]" {
		return list, nil
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("permissions of a role: %w", err)
	}
	return list, nil
}

// everywhere is stored for a role whose permissions are not limited to groups;
// a limited one has a JSON list. An empty list is an error, never everywhere.
const everywhere = "*"

func decodeLimit(text string) ([]string, error) {
	if text == everywhere {
		return nil, nil
	}
	var groups []string
	if err := json.Unmarshal([]byte(text), &groups); err != nil || len(groups) == 0 || slices.Contains(groups, "") {
		return nil, fmt.Errorf("the limits of a role cannot be read: %.100q", text)
	}
	return groups, nil
}

func encodeLimit(groups []string) (string, error) {
	if len(groups) == 0 {
		return everywhere, nil
	}
	b, err := json.Marshal(groups)
	return string(b), err
}

func scanMember(row scanner) (Member, error) {
	var m Member
	var window, sources string
	var first, created int64
	err := row.Scan(&m.RoleID, &m.RoleName, &m.UserID, &m.UserName, &m.UserKind, &window, &sources, &first,
		&created, &m.CreatedBy, &m.Version, &m.group)
	if err != nil {
		return Member{}, db.Classify(err)
	}
	m.FirstUse, m.CreatedAt = fromMicro(first), fromMicro(created)
	if m.Window, err = decodeWindow(window); err == nil {
		m.Sources, err = decodeSources(sources)
	}
	if err != nil {
		return Member{}, fmt.Errorf("membership of %s in %s: %w", m.UserID, m.RoleID, err)
	}
	return m, nil
}

// Role returns a role by ID.
func (s *Service) Role(ctx context.Context, id string) (Role, error) {
	return roleByID(ctx, s.db, id)
}

func roleByID(ctx context.Context, q db.Querier, id string) (Role, error) {
	r, err := scanRole(q.QueryRowContext(ctx, sqlRoleByID, id))
	if err != nil {
		return Role{}, fmt.Errorf("role %.40s: %w", id, err)
	}
	return r, nil
}

// Roles lists the roles of a scope of access groups by name, after the name
// given; group limits them to one group, unless it is empty.
func (s *Service) Roles(ctx context.Context, in access.Scope, search, group, after string, limit int) ([]Role, error) {
	list, err := query(ctx, s.db, scanRole, sqlRoleList, after, search, likePattern(search), in.Text(), group, limit)
	if err != nil {
		return nil, fmt.Errorf("list roles: %w", err)
	}
	return list, nil
}

func checkRole(r Role) error {
	bad := checkName("body.name", r.Name)
	bad = append(bad, checkText("body.comment", r.Comment, 500)...)
	for i, p := range r.Permissions {
		if !slices.Contains(AllPermissions, p) {
			bad = append(bad, api.FieldError{Field: fmt.Sprintf("body.permissions[%d]", i), Message: "there is no such permission"})
		} else if len(r.LimitedTo) > 0 && !p.Groupable() {
			bad = append(bad, api.FieldError{Field: fmt.Sprintf("body.permissions[%d]", i), Message: "belongs to the whole installation and cannot be limited to access groups"})
		}
	}
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

func permissionText(list []api.Permission) string {
	var parts []string
	for _, p := range list {
		parts = append(parts, string(p))
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), " ")
}

func encodePermissions(list []api.Permission) (string, error) {
	list = slices.Compact(slices.Sorted(slices.Values(list)))
	if len(list) == 0 {
		return "[]", nil
	}
	b, err := json.Marshal(list)
	return string(b), err
}

// settle completes a role that is to be written and checks it.
func settle(r *Role) (permissions, scope string, err error) {
	if len(r.Permissions) == 0 {
		r.LimitedTo = nil // there is nothing to limit
	}
	r.LimitedTo = slices.Compact(slices.Sorted(slices.Values(r.LimitedTo)))
	if len(r.LimitedTo) > maxLimits {
		return "", "", api.Invalid(api.FieldError{Field: "body.limited_to", Message: fmt.Sprintf("must have at most %d access groups", maxLimits)})
	}
	if err := checkRole(*r); err != nil {
		return "", "", err
	}
	if permissions, err = encodePermissions(r.Permissions); err != nil {
		return "", "", err
	}
	scope, err = encodeLimit(r.LimitedTo)
	return permissions, scope, err
}

// checkGroups refuses groups that do not exist.
func checkGroups(ctx context.Context, tx *db.Tx, r *Role) error {
	for _, g := range append(slices.Clone(r.LimitedTo), r.Group) {
		if err := group.Check(ctx, tx, g); err != nil {
			return err
		}
	}
	return nil
}

// CreateRole adds a role; name, comment, permissions, group and limits are
// taken from r; without a group it belongs to the default one.
func (s *Service) CreateRole(ctx context.Context, by audit.Actor, r Role) (Role, error) {
	if r.Group == "" {
		r.Group = access.DefaultGroup
	}
	permissions, scope, err := settle(&r)
	if err != nil {
		return Role{}, fmt.Errorf("create role: %w", err)
	}
	id := newID("rol")
	var made Role
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := checkGroups(ctx, tx, &r); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, sqlRoleInsert, id, r.Name, r.Comment, permissions, r.Group, scope, false, s.now().UnixMicro())
		if err != nil {
			return takenRole(r.Name, db.Classify(err))
		}
		if made, err = roleByID(ctx, tx, id); err != nil {
			return err
		}
		return s.roleEvent(ctx, tx, by, audit.RoleCreated, made, map[string]string{"permissions": permissionText(made.Permissions), "scope": scope})
	})
	if err != nil {
		return Role{}, fmt.Errorf("create role: %w", err)
	}
	return made, nil
}

func takenRole(name string, err error) error {
	if isConflict(err) {
		return api.Conflict("name_taken", fmt.Sprintf("There is a role named %s already.", name))
	}
	return err
}

func isConflict(err error) bool { return errors.Is(err, db.ErrConflict) }

// roleEvent announces and audits a change of a role that is, or was, in the
// groups given besides its own.
func (s *Service) roleEvent(ctx context.Context, tx *db.Tx, by audit.Actor, t audit.Type, r Role, fields map[string]string, groups ...string) error {
	if err := api.Notify(ctx, tx, "role", r.ID, append(groups, r.Group)...); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{Type: t, Outcome: audit.OK, Actor: by, Group: r.Group,
		Object: audit.Object{Kind: "role", ID: r.ID, Name: r.Name}, Fields: fields})
}

// UpdateRole replaces name, comment, permissions, limits and, unless it is
// empty, the group. The built-in role cannot be changed.
func (s *Service) UpdateRole(ctx context.Context, by audit.Actor, id string, match func(old Role) error, r Role) (Role, error) {
	permissions, scope, err := settle(&r)
	if err != nil {
		return Role{}, fmt.Errorf("change role: %w", err)
	}
	var made Role
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		old, err := roleByID(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := match(old); err != nil {
			return err
		}
		if old.Builtin {
			return api.Conflict("builtin", "The built-in role cannot be changed.")
		}
		if r.Group == "" {
			r.Group = old.Group
		}
		if err := checkGroups(ctx, tx, &r); err != nil {
			return err
		}
		err = changeOne(ctx, tx, sqlRoleUpdate, id, r.Name, r.Comment, permissions, r.Group, scope, old.Version)
		if err != nil {
			return takenRole(r.Name, err)
		}
		if made, err = roleByID(ctx, tx, id); err != nil {
			return err
		}
		return s.roleEvent(ctx, tx, by, audit.RoleChanged, made, map[string]string{
			"old_name": old.Name, "old_permissions": permissionText(old.Permissions),
			"new_name": made.Name, "new_permissions": permissionText(made.Permissions), "new_scope": scope, "old_group": old.Group,
		}, old.Group)
	})
	if err != nil {
		return Role{}, fmt.Errorf("change role: %w", err)
	}
	return made, nil
}

// DeleteRole removes a role with all its memberships.
func (s *Service) DeleteRole(ctx context.Context, by audit.Actor, id string, match func(old Role) error) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		old, err := roleByID(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := match(old); err != nil {
			return err
		}
		if old.Builtin {
			return api.Conflict("builtin", "The built-in role cannot be deleted.")
		}
		if err := changeOne(ctx, tx, sqlRoleDelete, id); err != nil {
			return err
		}
		return s.roleEvent(ctx, tx, by, audit.RoleDeleted, old, map[string]string{"permissions": permissionText(old.Permissions)})
	})
	if err != nil {
		return fmt.Errorf("delete role: %w", err)
	}
	return nil
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
		first := micro(old.FirstUse)
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
	m.FirstUse = fromMicro(first)
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
