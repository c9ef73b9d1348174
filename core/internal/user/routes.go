package user

import (
	"context"
	"errors"
	"net/http"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Routes registers the room's operations. holders are the other rooms that
// keep data about people, for export and erasure.
//
// Below /users/{id}, the ID "me" is the caller. Everybody reaches his own
// things there; those of others need a permission, which is checked before
// anything is looked up.
func (s *Service) Routes(f *api.Frame, holders ...Holder) {
	s.loginRoutes(f)
	s.userRoutes(f, holders)
	s.credentialRoutes(f)
	s.roleRoutes(f)
	s.clientRoutes(f)
	s.preferenceRoutes(f)
}

// whose resolves the {id} of a request to a user the caller may see (or, with
// a managing permission, change). own tells that it is the caller.
func (s *Service) whose(ctx context.Context, id string, need api.Permission) (userID string, own bool, err error) {
	p := api.PrincipalFrom(ctx)
	if id == "me" || id == p.UserID {
		return p.UserID, true, nil
	}
	if !p.Can(need) {
		return "", false, api.Denied("permission_missing", "This needs the permission "+string(need)+", or is about yourself.")
	}
	if need == api.UsersManage {
		return id, false, s.mayManage(ctx, id)
	}
	return id, false, nil
}

// mayManage refuses to change an account that may have rights the caller does
// not have: whoever resets an administrator's password is one.
func (s *Service) mayManage(ctx context.Context, userID string) error {
	rights, err := s.potential(ctx, s.db, userID)
	if err != nil {
		return err
	}
	return mayGive(ctx, rights)
}

// mayGive refuses to hand out rights the caller does not have.
func mayGive(ctx context.Context, rights []Right) error {
	p := api.PrincipalFrom(ctx)
	for _, r := range rights {
		switch own := p.Scope(r.Permission); {
		case own.Covers(r.Scope):
		case own.Nowhere():
			return api.Denied("exceeds_own_rights", "This involves the permission "+string(r.Permission)+", which you do not have yourself.")
		default:
			return api.Denied("exceeds_own_rights", "This involves the permission "+string(r.Permission)+" in access groups where you do not have it yourself.")
		}
	}
	return nil
}

// seenUser resolves the {id} of a request to a user the caller may see, and
// the access groups of whose roles he may see. People belong to no group:
// whoever may see roles anywhere finds them, to make them members.
func (s *Service) seenUser(ctx context.Context, id string) (userID string, roles access.Scope, err error) {
	p := api.PrincipalFrom(ctx)
	if id == "me" || id == p.UserID {
		return p.UserID, access.Everywhere(), nil
	}
	if roles = p.Scope(api.UsersView); roles.Nowhere() {
		_, _, err = s.whose(ctx, id, api.UsersView)
	}
	return id, roles, err
}

// found lets a not-found error name the kind of thing asked for.
func found[T any](v T, err error) func(kind, id string) (T, error) {
	return func(kind, id string) (T, error) { return v, missing(kind, id, err) }
}

func missing(kind, id string, err error) error {
	if errors.Is(err, db.ErrNotFound) {
		return api.Missing(kind, id)
	}
	return err
}

// matchVersion compares If-Match with a row's version.
func matchVersion(ifMatch string) func(int64) error {
	return func(version int64) error { return api.CheckMatch(ifMatch, version) }
}

type idInput struct {
	ID string `path:"id" maxLength:"40" example:"me"`
}

type writeInput struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
}

type byName struct {
	Name string `json:"n"`
}

// listInput selects from what has names.
type listInput struct {
	api.PageIn
	Search string `query:"search" maxLength:"100" doc:"Text that name, display name or mail address contains."`
}

type userOutput struct {
	ETag string `header:"ETag"`
	Body UserView
}

func userAnswer(u User) *userOutput { return &userOutput{ETag: api.ETag(u.Version), Body: showUser(u)} }

type usersOutput struct{ Body api.Page[UserView] }

type createUserInput struct {
	Body struct {
		Name        string `json:"name" example:"jane"`
		DisplayName string `json:"display_name,omitempty"`
		Email       string `json:"email,omitempty"`
		Password    string `json:"password,omitempty" doc:"May be left out: the user then has no password."`
	}
}

type changeUserInput struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
	Body    struct {
		Name        *string `json:"name,omitempty"`
		DisplayName *string `json:"display_name,omitempty"`
		Email       *string `json:"email,omitempty"`
		Disabled    *bool   `json:"disabled,omitempty"`
		Locked      *bool   `json:"locked,omitempty" doc:"Suspends the account and ends what it has open."`
		Unpause     bool    `json:"unpause,omitempty" doc:"Ends the pause after too many failed password logins."`
	}
}

type exportOutput struct {
	Disposition string `header:"Content-Disposition"`
	Body        map[string]any
}

func (s *Service) userRoutes(f *api.Frame, holders []Holder) {
	op := func(method, path, id, summary string, who api.Who) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: "users", Who: who}
	}
	create := op(http.MethodPost, "/users", "create-user", "Create a user", api.Needs(api.UsersManage))
	create.Status = http.StatusCreated
	api.Register(f, op(http.MethodGet, "/users", "list-users", "List users by name", api.NeedsSomewhere(api.UsersView)), s.handleUsers)
	api.Register(f, create, s.handleCreateUser)
	api.Register(f, op(http.MethodGet, "/users/{id}", "get-user", "Show a user", api.Self()), s.handleUser)
	api.Register(f, op(http.MethodPatch, "/users/{id}", "change-user", "Change, disable or lock a user", api.Needs(api.UsersManage)), s.handleChangeUser)
	api.Register(f, op(http.MethodGet, "/users/{id}/memberships", "list-memberships", "List the roles of a user", api.Self()), s.handleMemberships)
	api.Register(f, op(http.MethodGet, "/users/{id}/export", "export-user", "Export everything known about a user", api.Self()),
		func(ctx context.Context, in *idInput) (*exportOutput, error) { return s.handleExport(ctx, in, holders) })
	erase := func(ctx context.Context, in *writeInput) (*struct{}, error) {
		userID, _, err := s.whose(ctx, in.ID, api.UsersManage)
		if err != nil {
			return nil, err
		}
		return nil, missing("user", in.ID, s.Erase(ctx, actorOf(ctx), userID, matchVersion(in.IfMatch), holders))
	}
	api.Register(f, op(http.MethodDelete, "/users/{id}", "delete-user", "Erase a user; the same as erase", api.Needs(api.UsersManage)), erase)
	api.Register(f, op(http.MethodPost, "/users/{id}/erase", "erase-user",
		"Remove everything that names or authenticates a user, for good; audit events stay, without his name", api.Needs(api.UsersManage)), erase)
}

func (s *Service) handleUsers(ctx context.Context, in *listInput) (*usersOutput, error) {
	var at byName
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	list, err := s.List(ctx, Person, in.Search, at.Name, in.Limit+1)
	if err != nil {
		return nil, err
	}
	views := make([]UserView, len(list))
	for i, u := range list {
		views[i] = showUser(u)
	}
	return &usersOutput{api.Paged(views, in.Limit, func(v UserView) any { return byName{v.Name} })}, nil
}

func (s *Service) handleCreateUser(ctx context.Context, in *createUserInput) (*userOutput, error) {
	u, err := s.Create(ctx, actorOf(ctx), Draft{Name: in.Body.Name, DisplayName: in.Body.DisplayName, Email: in.Body.Email, Password: in.Body.Password})
	if err != nil {
		return nil, err
	}
	return userAnswer(u), nil
}

func (s *Service) handleUser(ctx context.Context, in *idInput) (*userOutput, error) {
	id, _, err := s.seenUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	u, err := found(s.Get(ctx, id))("user", in.ID)
	if err != nil {
		return nil, err
	}
	return userAnswer(u), nil
}

func (s *Service) handleChangeUser(ctx context.Context, in *changeUserInput) (*userOutput, error) {
	id, own, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	b := in.Body
	if own && (b.Disabled != nil && *b.Disabled || b.Locked != nil && *b.Locked) {
		return nil, api.Conflict("own_account", "You cannot disable or lock yourself.")
	}
	u, err := found(s.Update(ctx, actorOf(ctx), id, matchVersion(in.IfMatch), Change{Name: b.Name, DisplayName: b.DisplayName,
		Email: b.Email, Disabled: b.Disabled, Locked: b.Locked, Unpause: b.Unpause}))("user", in.ID)
	if err != nil {
		return nil, err
	}
	return userAnswer(u), nil
}

func (s *Service) handleExport(ctx context.Context, in *idInput, holders []Holder) (*exportOutput, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	all, err := found(s.Export(ctx, actorOf(ctx), id, holders))("user", in.ID)
	if err != nil {
		return nil, err
	}
	return &exportOutput{Disposition: `attachment; filename="` + id + `.json"`, Body: all}, nil
}
