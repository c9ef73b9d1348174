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
}

func (b roleBody) role() Role {
	return Role{Name: b.Name, Comment: b.Comment, Permissions: b.Permissions}
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
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: "roles", Who: api.Needs(who)}
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

func (s *Service) handleRoles(ctx context.Context, in *listInput) (*rolesOutput, error) {
	var at byName
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	list, err := s.Roles(ctx, in.Search, at.Name, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return &rolesOutput{api.Paged(whole(list, showRole).Items, in.Limit, func(v RoleView) any { return byName{v.Name} })}, nil
}

func (s *Service) handleCreateRole(ctx context.Context, in *createRoleInput) (*roleOutput, error) {
	if err := mayGive(ctx, in.Body.Permissions); err != nil {
		return nil, err
	}
	r, err := s.CreateRole(ctx, actorOf(ctx), in.Body.role())
	if err != nil {
		return nil, err
	}
	return roleAnswer(r), nil
}

func (s *Service) handleRole(ctx context.Context, in *idInput) (*roleOutput, error) {
	r, err := found(s.Role(ctx, in.ID))("role", in.ID)
	if err != nil {
		return nil, err
	}
	return roleAnswer(r), nil
}

// matchRole compares If-Match and refuses to touch a role with rights the
// caller does not have.
func matchRole(ctx context.Context, ifMatch string) func(Role) error {
	return func(old Role) error {
		if err := mayGive(ctx, old.Permissions); err != nil {
			return err
		}
		return api.CheckMatch(ifMatch, old.Version)
	}
}

func (s *Service) handleChangeRole(ctx context.Context, in *changeRoleInput) (*roleOutput, error) {
	if err := mayGive(ctx, in.Body.Permissions); err != nil {
		return nil, err
	}
	r, err := found(s.UpdateRole(ctx, actorOf(ctx), in.ID, matchRole(ctx, in.IfMatch), in.Body.role()))("role", in.ID)
	if err != nil {
		return nil, err
	}
	return roleAnswer(r), nil
}

func (s *Service) handleDeleteRole(ctx context.Context, in *writeInput) (*struct{}, error) {
	return nil, missing("role", in.ID, s.DeleteRole(ctx, actorOf(ctx), in.ID, matchRole(ctx, in.IfMatch)))
}

func (s *Service) handleMembers(ctx context.Context, in *membersInput) (*membersOutput, error) {
	var at byName
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	if _, err := found(s.Role(ctx, in.ID))("role", in.ID); err != nil {
		return nil, err
	}
	list, err := s.Members(ctx, in.ID, at.Name, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return &membersOutput{api.Paged(whole(list, showMember).Items, in.Limit, func(v MemberView) any { return byName{v.UserName} })}, nil
}

func (s *Service) handleMember(ctx context.Context, in *memberInput) (*memberOutput, error) {
	m, err := found(s.Member(ctx, in.ID, in.User))("member", in.User)
	if err != nil {
		return nil, err
	}
	return &memberOutput{ETag: api.ETag(m.Version), Body: showMember(m)}, nil
}

func (s *Service) handlePutMember(ctx context.Context, in *putMemberInput) (*memberOutput, error) {
	r, err := found(s.Role(ctx, in.ID))("role", in.ID)
	if err != nil {
		return nil, err
	}
	if err := mayGive(ctx, r.Permissions); err != nil {
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
	r, err := found(s.Role(ctx, in.ID))("role", in.ID)
	if err != nil {
		return nil, err
	}
	if err := mayGive(ctx, r.Permissions); err != nil {
		return nil, err
	}
	return nil, missing("member", in.User, s.RemoveMember(ctx, actorOf(ctx), in.ID, in.User, matchVersion(in.IfMatch)))
}

func (s *Service) handleMemberships(ctx context.Context, in *idInput) (*membersOutput, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersView)
	if err != nil {
		return nil, err
	}
	list, err := s.Memberships(ctx, id)
	if err != nil {
		return nil, err
	}
	return &membersOutput{whole(list, showMember)}, nil
}
