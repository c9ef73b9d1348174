package group

import (
	"context"
	"errors"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// View is a group as the API shows it.
type View struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Comment   string    `json:"comment,omitempty"`
	Builtin   bool      `json:"builtin"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	Version   int64     `json:"version"`
	Counts    *Counts   `json:"counts,omitempty" doc:"in the answer about one group"`
}

func view(g Group) View {
	v := View{ID: g.ID, Name: g.Name, Comment: g.Comment, Builtin: g.Builtin(), CreatedAt: g.CreatedAt, Version: g.Version}
	if g.CreatedAt.UnixMicro() == 0 {
		v.CreatedAt = time.Time{}
	}
	return v
}

// ByID names a group in a path.
type ByID struct {
	ID string `path:"id" maxLength:"64"`
}

// Body is what of a group may be changed.
type Body struct {
	Name    string `json:"name" maxLength:"64" doc:"a-z 0-9 . _ -"`
	Comment string `json:"comment,omitempty" maxLength:"1000"`
}

type groupOut struct {
	ETag string `header:"ETag"`
	Body View
}

type groupsOut struct{ Body api.Page[View] }

type anchorsOut struct {
	Body struct {
		Items []Anchor `json:"items" nullable:"false"`
	}
}

// guarded is a group as a thing in itself.
func guarded(id string) api.Guarded {
	return api.Guarded{Kind: "access group", ID: id, View: api.GroupsView, Manage: api.GroupsManage}
}

// Routes registers the room's operations.
func (s *Service) Routes(f *api.Frame) {
	const tag = "access-groups"
	op := func(method, path, id, summary string, who api.Who) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: tag, Who: who}
	}
	some, manage := api.NeedsSomewhere(api.GroupsView), api.NeedsSomewhere(api.GroupsManage)
	api.Register(f, op("GET", "/access-groups", "list-access-groups", "The access groups in which the caller may do anything, by name", api.Self()), s.handleList)
	create := op("POST", "/access-groups", "create-access-group", "Create an empty access group with an SSH authority of its own", api.Needs(api.GroupsManage))
	create.Status = 201
	api.Register(f, create, s.handleCreate)
	api.Register(f, op("GET", "/access-groups/{id}", "get-access-group", "Show an access group and how much is in it", some), s.handleGet)
	api.Register(f, op("PUT", "/access-groups/{id}", "change-access-group", "Change name and comment", manage), s.handleUpdate)
	api.Register(f, op("DELETE", "/access-groups/{id}", "delete-access-group", "Remove an empty access group and all trust in its authority", api.Needs(api.GroupsManage)), s.handleDelete)
	api.Register(f, op("GET", "/access-groups/{id}/anchors", "list-group-anchors", "Certificates that TLS of the group's targets is verified against", some), s.handleAnchors)
	add := op("POST", "/access-groups/{id}/anchors", "add-group-anchors", "Add certificates; answers with all", manage)
	add.Status = 201
	api.Register(f, add, s.handleAddAnchors)
	api.Register(f, op("DELETE", "/access-groups/{id}/anchors/{anchor}", "remove-group-anchor", "Take a certificate away", manage), s.handleRemoveAnchor)
}

type position struct {
	Name string `json:"n"`
}

func (s *Service) handleList(ctx context.Context, in *struct{ api.PageIn }) (*groupsOut, error) {
	var at position
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	list, err := s.List(ctx, api.PrincipalFrom(ctx).Anywhere(), at.Name, in.Limit+1)
	if err != nil {
		return nil, err
	}
	page := api.Paged(list, in.Limit, func(g Group) any { return position{g.Name} })
	out := &groupsOut{Body: api.Page[View]{Items: make([]View, len(page.Items)), Next: page.Next}}
	for i, g := range page.Items {
		out.Body.Items[i] = view(g)
	}
	return out, nil
}

// named fails for a group that does not exist to the caller.
func missing(id string, err error) error {
	if errors.Is(err, db.ErrNotFound) {
		return api.Missing("access group", id)
	}
	return err
}

func (s *Service) handleCreate(ctx context.Context, in *struct{ Body Body }) (*groupOut, error) {
	g, err := s.Create(ctx, audit.By(api.PrincipalFrom(ctx)), Group{Name: in.Body.Name, Comment: in.Body.Comment})
	if err != nil {
		return nil, err
	}
	return &groupOut{api.ETag(g.Version), view(g)}, nil
}

func (s *Service) handleGet(ctx context.Context, in *ByID) (*groupOut, error) {
	if err := guarded(in.ID).See(ctx, in.ID); err != nil {
		return nil, err
	}
	g, err := s.Get(ctx, s.c.DB, in.ID)
	if err != nil {
		return nil, missing(in.ID, err)
	}
	v := view(g)
	n, err := s.Count(ctx, s.c.DB, in.ID)
	if err != nil {
		return nil, err
	}
	v.Counts = &n
	return &groupOut{api.ETag(g.Version), v}, nil
}

// may is whether the caller may change something about a group.
func may(ctx context.Context, id string) error {
	return guarded(id).Administer(ctx, id, id)
}

func (s *Service) handleUpdate(ctx context.Context, in *struct {
	ByID
	IfMatch string `header:"If-Match"`
	Body    Body
}) (*groupOut, error) {
	if err := may(ctx, in.ID); err != nil {
		return nil, err
	}
	g, err := s.Update(ctx, audit.By(api.PrincipalFrom(ctx)), in.ID, matching(in.IfMatch), in.Body.Name, in.Body.Comment)
	if err != nil {
		return nil, missing(in.ID, err)
	}
	return &groupOut{api.ETag(g.Version), view(g)}, nil
}

func matching(ifMatch string) func(int64) error {
	return func(version int64) error { return api.CheckMatch(ifMatch, version) }
}

func (s *Service) handleDelete(ctx context.Context, in *struct {
	ByID
	IfMatch string `header:"If-Match"`
}) (*struct{}, error) {
	return nil, missing(in.ID, s.Delete(ctx, audit.By(api.PrincipalFrom(ctx)), in.ID, matching(in.IfMatch)))
}

func (s *Service) handleAnchors(ctx context.Context, in *ByID) (*anchorsOut, error) {
	if err := guarded(in.ID).See(ctx, in.ID); err != nil {
		return nil, err
	}
	if _, err := s.Get(ctx, s.c.DB, in.ID); err != nil {
		return nil, missing(in.ID, err)
	}
	out := &anchorsOut{}
	var err error
	out.Body.Items, err = listAnchors(ctx, s.c.DB, in.ID)
	return out, err
}

func (s *Service) handleAddAnchors(ctx context.Context, in *struct {
	ByID
	Body struct {
		Certificates string `json:"certificates" maxLength:"400000" doc:"PEM, one or more"`
	}
}) (*anchorsOut, error) {
	if err := may(ctx, in.ID); err != nil {
		return nil, err
	}
	list, err := s.AddAnchors(ctx, audit.By(api.PrincipalFrom(ctx)), in.ID, in.Body.Certificates)
	if err != nil {
		return nil, missing(in.ID, err)
	}
	out := &anchorsOut{}
	out.Body.Items = list
	return out, nil
}

func (s *Service) handleRemoveAnchor(ctx context.Context, in *struct {
	ByID
	Anchor string `path:"anchor" maxLength:"64"`
}) (*struct{}, error) {
	if err := may(ctx, in.ID); err != nil {
		return nil, err
	}
	return nil, missing(in.ID, s.RemoveAnchor(ctx, audit.By(api.PrincipalFrom(ctx)), in.ID, in.Anchor))
}
