package user

import (
	"context"
	"net/http"

	"caponier/core/internal/api"
)

type rolesOutput struct{ Body api.Page[RoleView] }

type roleOutput struct {
	ETag string `header:"ETag"`
	Body RoleView
}

func roleAnswer(r Role) *roleOutput { return &roleOutput{ETag: api.ETag(r.Version), Body: showRole(r)} }

type roleBody struct {
	Name        string           `json:"name" example:"db-operators"`
	Comment     string           `json:"comment,omitempty"`
	Permissions []api.Permission `json:"permissions,omitempty" doc:"Administrative rights; access to targets comes from grants."`
	Group       string           `json:"group,omitempty" maxLength:"64" doc:"Access group the role belongs to; the default group, or the only one of the caller's, when left out."`
	LimitedTo   []string         `json:"limited_to,omitempty" maxItems:"100" doc:"Access groups the permissions hold in; none: everywhere. Left out: of a new role everywhere, of a changed one as it was."`
}

func (b roleBody) role() Role {
	return Role{Name: b.Name, Comment: b.Comment, Permissions: b.Permissions, Group: b.Group, LimitedTo: b.LimitedTo}
}

type createRoleInput struct{ Body roleBody }

type changeRoleInput struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
	Body    roleBody
}

type membersOutput struct{ Body api.Page[MemberView] }

type memberOutput struct {
	ETag string `header:"ETag"`
	Body MemberView
}

type memberInput struct {
	ID   string `path:"id" maxLength:"40"`
	User string `path:"user" maxLength:"40"`
}

type membersInput struct {
	ID string `path:"id" maxLength:"40"`
	api.PageIn
}

type removeMemberInput struct {
	ID      string `path:"id" maxLength:"40"`
	User    string `path:"user" maxLength:"40"`
	IfMatch string `header:"If-Match"`
}

type putMemberInput struct {
	ID      string `path:"id" maxLength:"40"`
	User    string `path:"user" maxLength:"40"`
	IfMatch string `header:"If-Match" doc:"Needed to change a membership; not to add one."`
	Body    struct {
		Window  *WindowView `json:"window,omitempty"`
		Sources []string    `json:"sources,omitempty" maxItems:"64"`
	}
}

func (s *Service) roleRoutes(f *api.Frame) {
	op := func(method, path, id, summary string, who api.Permission) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: "roles", Who: api.NeedsSomewhere(who)}
	}
	create := op(http.MethodPost, "/roles", "create-role", "Create a role", api.UsersManage)
	create.Status = http.StatusCreated
	api.Register(f, op(http.MethodGet, "/roles", "list-roles", "List roles by name", api.UsersView), s.handleRoles)
	api.Register(f, create, s.handleCreateRole)
	api.Register(f, op(http.MethodGet, "/roles/{id}", "get-role", "Show a role", api.UsersView), s.handleRole)
	api.Register(f, op(http.MethodPut, "/roles/{id}", "change-role", "Change a role", api.UsersManage), s.handleChangeRole)
	api.Register(f, op(http.MethodDelete, "/roles/{id}", "delete-role", "Delete a role with its memberships", api.UsersManage), s.handleDeleteRole)
	api.Register(f, op(http.MethodGet, "/roles/{id}/members", "list-members", "List the members of a role by name", api.UsersView), s.handleMembers)
	api.Register(f, op(http.MethodGet, "/roles/{id}/members/{user}", "get-member", "Show a membership", api.UsersView), s.handleMember)
	api.Register(f, op(http.MethodPut, "/roles/{id}/members/{user}", "put-member", "Add a member, or change how he is one", api.UsersManage), s.handlePutMember)
	api.Register(f, op(http.MethodDelete, "/roles/{id}/members/{user}", "remove-member", "Take a member out of a role", api.UsersManage), s.handleRemoveMember)
}

// seenRole is a role that exists for the caller.
func (s *Service) seenRole(ctx context.Context, id string) (Role, error) {
	r, err := found(s.Role(ctx, id))("role", id)
	if err != nil {
		return Role{}, err
	}
	return r, r.guarded().See(ctx, r.Group)
}

// mayChange refuses to touch a role that the caller may not manage, or that
// has rights he does not have.
func (r *Role) mayChange(ctx context.Context, to string) error {
	if err := r.guarded().Administer(ctx, r.Group, to); err != nil {
		return err
	}
	return mayGive(ctx, r.rights())
}

type rolesInput struct {
	api.PageIn
	Search string `query:"search" maxLength:"100" doc:"Text that the name contains."`
	Group  string `query:"group" maxLength:"64" doc:"Only of this access group."`
}

func (s *Service) handleRoles(ctx context.Context, in *rolesInput) (*rolesOutput, error) {
	var at byName
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	list, err := s.Roles(ctx, api.Sees(ctx, api.UsersView), in.Search, in.Group, at.Name, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return &rolesOutput{api.Paged(whole(list, showRole).Items, in.Limit, func(v RoleView) any { return byName{v.Name} })}, nil
}

func (s *Service) handleCreateRole(ctx context.Context, in *createRoleInput) (*roleOutput, error) {
	r := in.Body.role()
	var err error
	if r.Group, err = api.PlaceNew(ctx, api.UsersManage, r.Group); err != nil {
		return nil, err
	}
	if err := r.guarded().Administer(ctx, "", r.Group); err != nil {
		return nil, err
	}
	if err := mayGive(ctx, r.rights()); err != nil {
		return nil, err
	}
	if r, err = s.CreateRole(ctx, actorOf(ctx), r); err != nil {
		return nil, err
	}
	return roleAnswer(r), nil
}

func (s *Service) handleRole(ctx context.Context, in *idInput) (*roleOutput, error) {
	r, err := s.seenRole(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return roleAnswer(r), nil
}

// matchRole compares If-Match and refuses to touch a role that is not the
// caller's to manage. to is the group it is in afterwards, empty = none.
func matchRole(ctx context.Context, ifMatch string, to func(old Role) string) func(Role) error {
	return func(old Role) error {
		if err := old.mayChange(ctx, to(old)); err != nil {
			return err
		}
		return api.CheckMatch(ifMatch, old.Version)
	}
}

func (s *Service) handleChangeRole(ctx context.Context, in *changeRoleInput) (*roleOutput, error) {
	old, err := s.seenRole(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	r := in.Body.role()
	if r.Group == "" {
		r.Group = old.Group
	}
	if r.LimitedTo == nil { // who does not know of groups widens nothing
		r.LimitedTo = old.LimitedTo
	}
	if err := mayGive(ctx, r.rights()); err != nil {
		return nil, err
	}
	match := matchRole(ctx, in.IfMatch, func(Role) string { return r.Group })
	if r, err = found(s.UpdateRole(ctx, actorOf(ctx), in.ID, match, r))("role", in.ID); err != nil {
		return nil, err
	}
	return roleAnswer(r), nil
}

func (s *Service) handleDeleteRole(ctx context.Context, in *writeInput) (*struct{}, error) {
	return nil, missing("role", in.ID, s.DeleteRole(ctx, actorOf(ctx), in.ID, matchRole(ctx, in.IfMatch, func(Role) string { return "" })))
}

func (s *Service) handleMembers(ctx context.Context, in *membersInput) (*membersOutput, error) {
	var at byName
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	if _, err := s.seenRole(ctx, in.ID); err != nil {
		return nil, err
	}
	list, err := s.Members(ctx, in.ID, at.Name, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return &membersOutput{api.Paged(whole(list, showMember).Items, in.Limit, func(v MemberView) any { return byName{v.UserName} })}, nil
}

func (s *Service) handleMember(ctx context.Context, in *memberInput) (*memberOutput, error) {
	if _, err := s.seenRole(ctx, in.ID); err != nil {
		return nil, err
	}
	m, err := found(s.Member(ctx, in.ID, in.User))("member", in.User)
	if err != nil {
		return nil, err
	}
	return &memberOutput{ETag: api.ETag(m.Version), Body: showMember(m)}, nil
}

func (s *Service) handlePutMember(ctx context.Context, in *putMemberInput) (*memberOutput, error) {
	r, err := s.seenRole(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := r.mayChange(ctx, r.Group); err != nil {
		return nil, err
	}
	window, bad := in.Body.Window.window()
	sources, worse := parseSources(in.Body.Sources)
	if bad = append(bad, worse...); len(bad) > 0 {
		return nil, api.Invalid(bad...)
	}
	match := func(version int64) error {
		if version == 0 {
			return nil
		}
		return api.CheckMatch(in.IfMatch, version)
	}
	m, err := found(s.PutMember(ctx, actorOf(ctx), in.ID, in.User, window, sources, match))("user", in.User)
	if err != nil {
		return nil, err
	}
	return &memberOutput{ETag: api.ETag(m.Version), Body: showMember(m)}, nil
}

func (s *Service) handleRemoveMember(ctx context.Context, in *removeMemberInput) (*struct{}, error) {
	r, err := s.seenRole(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := r.mayChange(ctx, r.Group); err != nil {
		return nil, err
	}
	return nil, missing("member", in.User, s.RemoveMember(ctx, actorOf(ctx), in.ID, in.User, matchVersion(in.IfMatch)))
}

func (s *Service) handleMemberships(ctx context.Context, in *idInput) (*membersOutput, error) {
	id, scope, err := s.seenUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	list, err := s.Memberships(ctx, id, scope)
	if err != nil {
		return nil, err
	}
	return &membersOutput{whole(list, showMember)}, nil
}
