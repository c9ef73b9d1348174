package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

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

const roleColumns = `r.id, r.name, r.comment, r.permissions, r.group_id, r.scope, r.builtin, r.version`

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
	id := db.NewID("rol_")
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
