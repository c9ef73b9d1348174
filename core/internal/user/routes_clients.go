package user

import (
	"context"
	"net/http"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
)

type clientsOutput struct{ Body api.Page[ClientView] }

type clientOutput struct {
	ETag string `header:"ETag"`
	Body ClientView
}

func clientAnswer(c APIClient) *clientOutput {
	return &clientOutput{ETag: api.ETag(c.Version), Body: showClient(c)}
}

type createClientInput struct {
	Body struct {
		Name    string   `json:"name" example:"ci-deployer"`
		Comment string   `json:"comment,omitempty"`
		Roles   []string `json:"roles,omitempty" maxItems:"50" doc:"IDs of roles to make it a member of, without limits."`
	}
}

type clientSecretOutput struct {
	ETag string `header:"ETag"`
	Body struct {
		ClientView
		Secret string `json:"client_secret" doc:"Shown only now."`
	}
}

type changeClientInput struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
	Body    struct {
		Name     *string `json:"name,omitempty"`
		Disabled *bool   `json:"disabled,omitempty"`
		Locked   *bool   `json:"locked,omitempty"`
	}
}

func (s *Service) clientRoutes(f *api.Frame) {
	op := func(method, path, id, summary string, who api.Permission) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: "api-clients", Who: api.Needs(who)}
	}
	create := op(http.MethodPost, "/api-clients", "create-api-client", "Create an API client", api.UsersManage)
	create.Status, create.Sensitive = http.StatusCreated, true
	renew := op(http.MethodPost, "/api-clients/{id}/secret", "renew-api-client-secret", "Replace a client's secret and revoke its tokens", api.UsersManage)
	renew.Sensitive = true
	api.Register(f, op(http.MethodGet, "/api-clients", "list-api-clients", "List API clients by name", api.UsersView), s.handleClients)
	api.Register(f, create, s.handleCreateClient)
	api.Register(f, op(http.MethodGet, "/api-clients/{id}", "get-api-client", "Show an API client", api.UsersView), s.handleClient)
	api.Register(f, op(http.MethodPatch, "/api-clients/{id}", "change-api-client", "Change, disable or lock an API client", api.UsersManage), s.handleChangeClient)
	api.Register(f, op(http.MethodDelete, "/api-clients/{id}", "delete-api-client", "Delete an API client", api.UsersManage), s.handleDeleteClient)
	api.Register(f, renew, s.handleRenewClient)
}

func (s *Service) handleClients(ctx context.Context, in *listInput) (*clientsOutput, error) {
	var at byName
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	list, err := s.Clients(ctx, in.Search, at.Name, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return &clientsOutput{api.Paged(whole(list, showClient).Items, in.Limit, func(v ClientView) any { return byName{v.Name} })}, nil
}

func (s *Service) handleCreateClient(ctx context.Context, in *createClientInput) (*clientSecretOutput, error) {
	for _, id := range in.Body.Roles {
		r, err := found(s.Role(ctx, id))("role", id)
		if err != nil {
			return nil, err
		}
		if err := mayGive(ctx, r.rights()); err != nil {
			return nil, err
		}
	}
	c, secret, err := s.CreateClient(ctx, actorOf(ctx), in.Body.Name, in.Body.Comment)
	if err != nil {
		return nil, err
	}
	for _, id := range in.Body.Roles {
		_, err := s.PutMember(ctx, actorOf(ctx), id, c.ID, access.Window{}, nil, func(int64) error { return nil })
		if err != nil {
			return nil, err
		}
	}
	return secretAnswer(c, secret), nil
}

func secretAnswer(c APIClient, secret string) *clientSecretOutput {
	out := &clientSecretOutput{ETag: api.ETag(c.Version)}
	out.Body.ClientView, out.Body.Secret = showClient(c), secret
	return out
}

// client returns a client the caller may change.
func (s *Service) client(ctx context.Context, id string) (APIClient, error) {
	c, err := found(s.Client(ctx, id))("api client", id)
	if err != nil {
		return APIClient{}, err
	}
	return c, s.mayManage(ctx, id)
}

func (s *Service) handleClient(ctx context.Context, in *idInput) (*clientOutput, error) {
	c, err := found(s.Client(ctx, in.ID))("api client", in.ID)
	if err != nil {
		return nil, err
	}
	return clientAnswer(c), nil
}

func (s *Service) handleChangeClient(ctx context.Context, in *changeClientInput) (*clientOutput, error) {
	c, err := s.client(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	b := in.Body
	c.User, err = s.Update(ctx, actorOf(ctx), in.ID, matchVersion(in.IfMatch), Change{Name: b.Name, Disabled: b.Disabled, Locked: b.Locked})
	if err != nil {
		return nil, err
	}
	return clientAnswer(c), nil
}

func (s *Service) handleDeleteClient(ctx context.Context, in *writeInput) (*struct{}, error) {
	if _, err := s.client(ctx, in.ID); err != nil {
		return nil, err
	}
	return nil, s.Erase(ctx, actorOf(ctx), in.ID, matchVersion(in.IfMatch), nil)
}

func (s *Service) handleRenewClient(ctx context.Context, in *idInput) (*clientSecretOutput, error) {
	if _, err := s.client(ctx, in.ID); err != nil {
		return nil, err
	}
	secret, err := s.RenewClientSecret(ctx, actorOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	c, err := s.Client(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return secretAnswer(c, secret), nil
}
