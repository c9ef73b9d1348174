package target

import (
	"context"

	"caponier/core/internal/api"
)

type none struct{}

// tagged is an answer of one thing with its entity tag.
type tagged[T any] struct {
	ETag string `header:"ETag"`
	Body T
}

func answer[T any](version int64, body T) *tagged[T] {
	return &tagged[T]{ETag: api.ETag(version), Body: body}
}

type paged[T any] struct{ Body api.Page[T] }

// Changing is the input of operations that change one thing.
type Changing struct {
	IfMatch string `header:"If-Match" doc:"ETag of the version to change"`
}

type ByID struct {
	ID string `path:"id" maxLength:"80" doc:"ID or name"`
}

type position struct {
	After string `json:"a"`
}

// Routes registers /sites, /targets and /grants.
func (s *Service) Routes(f *api.Frame) {
	s.siteRoutes(f)
	s.targetRoutes(f)
	s.accountRoutes(f)
	s.hostKeyRoutes(f)
	s.grantRoutes(f)
}

// page reads limit+1 rows after the cursor and renders them.
func page[R, V any](in api.PageIn, read func(after string, limit int) ([]R, error), key func(*R) string, view func(*R) V) (*paged[V], error) {
	var at position
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	rows, err := read(at.After, in.Limit+1)
	if err != nil {
		return nil, err
	}
	p := api.Paged(rows, in.Limit, func(r R) any { return position{key(&r)} })
	out := api.Page[V]{Items: make([]V, len(p.Items)), Next: p.Next}
	for i := range p.Items {
		out.Items[i] = view(&p.Items[i])
	}
	return &paged[V]{Body: out}, nil
}

func (s *Service) siteRoutes(f *api.Frame) {
	type ByName struct {
		Name string `path:"name" maxLength:"63"`
	}
	type body struct {
		Name    string `json:"name" maxLength:"63" doc:"prefix of addresses in the site; a-z 0-9 -; cannot be changed"`
		Comment string `json:"comment,omitempty" maxLength:"1000"`
		Group   string `json:"group,omitempty" maxLength:"64" doc:"access group; the default one, or the only one of the caller's, when left out"`
	}
	api.Register(f, api.Op{Method: "GET", Path: "/sites", ID: "list-sites", Summary: "List sites", Tag: "sites", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *struct {
			api.PageIn
			Group string `query:"group" maxLength:"64" doc:"only of this access group"`
		}) (*paged[siteView], error) {
			scope := api.Sees(ctx, api.TargetsView)
			return page(in.PageIn, func(after string, n int) ([]Site, error) { return s.Sites(ctx, s.c.DB, scope, in.Group, after, n) },
				func(s *Site) string { return s.Name }, viewSite)
		})
	api.Register(f, api.Op{Method: "POST", Path: "/sites", ID: "create-site", Summary: "Create a site", Tag: "sites", Who: api.NeedsSomewhere(api.TargetsManage), Status: 201},
		func(ctx context.Context, in *struct{ Body body }) (*tagged[siteView], error) {
			site, err := s.CreateSite(ctx, Site{Name: in.Body.Name, Comment: in.Body.Comment, Group: in.Body.Group})
			if err != nil {
				return nil, err
			}
			return answer(site.Version, viewSite(site)), nil
		})
	api.Register(f, api.Op{Method: "GET", Path: "/sites/{name}", ID: "get-site", Summary: "Read a site", Tag: "sites", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *ByName) (*tagged[siteView], error) {
			site, err := s.seeSite(ctx, in.Name)
			if err != nil {
				return nil, err
			}
			return answer(site.Version, viewSite(site)), nil
		})
	api.Register(f, api.Op{Method: "PUT", Path: "/sites/{name}", ID: "update-site", Summary: "Change a site's comment and access group", Tag: "sites", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			ByName
			Changing
			Body struct {
				Comment string `json:"comment" maxLength:"1000"`
				Group   string `json:"group,omitempty" maxLength:"64" doc:"access group; as it is when left out"`
			}
		}) (*tagged[siteView], error) {
			site, err := s.UpdateSite(ctx, in.Name, in.Body.Comment, in.Body.Group, matching(in.IfMatch))
			if err != nil {
				return nil, err
			}
			return answer(site.Version, viewSite(site)), nil
		})
	api.Register(f, api.Op{Method: "DELETE", Path: "/sites/{name}", ID: "delete-site", Summary: "Delete a site nothing uses", Tag: "sites", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			ByName
			Changing
		}) (*none, error) {
			return nil, s.DeleteSite(ctx, in.Name, matching(in.IfMatch))
		})
}

// maxTargetBody holds a network target with all the destinations it may have.
const maxTargetBody = 2 << 20

func (s *Service) targetRoutes(f *api.Frame) {
	type list struct {
		api.PageIn
		Search string `query:"search" maxLength:"200" doc:"anywhere in name or host"`
		Prefix string `query:"prefix" maxLength:"64" doc:"how the name begins"`
		Site   string `query:"site" maxLength:"63"`
		Kind   string `query:"kind" enum:"ssh,tcp,web,network"`
		Tag    string `query:"tag" maxLength:"200"`
		Group  string `query:"group" maxLength:"64" doc:"only of this access group"`
	}
	api.Register(f, api.Op{Method: "GET", Path: "/targets", ID: "list-targets", Summary: "Search targets", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *list) (*paged[View], error) {
			filter := Filter{Prefix: in.Prefix, Search: in.Search, Site: in.Site, Kind: Kind(in.Kind), Tag: in.Tag, Group: in.Group, In: api.Sees(ctx, api.TargetsView)}
			return page(in.PageIn, func(after string, n int) ([]Target, error) { return s.List(ctx, s.c.DB, filter, after, n) },
				func(t *Target) string { return t.Name }, briefView)
		})
	api.Register(f, api.Op{Method: "POST", Path: "/targets", ID: "create-target", Summary: "Create a target with its accounts", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage), Status: 201, MaxBody: maxTargetBody},
		func(ctx context.Context, in *struct{ Body NewTarget }) (*tagged[View], error) {
			t, accounts, p := in.Body.read()
			if err := p.err(); err != nil {
				return nil, err
			}
			made, err := s.Create(ctx, t, accounts)
			if err != nil {
				return nil, err
			}
			return answer(made.Version, NewView(made)), nil
		})
	api.Register(f, api.Op{Method: "POST", Path: "/targets/import", ID: "import-targets", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage), MaxBody: maxImportBytes,
		Summary: "Import many targets: text/csv with a header line, or application/x-ndjson; all of them or none"},
		func(ctx context.Context, in *struct {
			ContentType string `header:"Content-Type"`
			Existing    string `query:"existing" enum:"refuse,skip,update" default:"refuse" doc:"what to do with names that are taken"`
			CreateSites bool   `query:"create_sites" doc:"make sites that do not exist"`
			DryRun      bool   `query:"dry_run" doc:"only check"`
			Group       string `query:"group" maxLength:"64" doc:"access group of what is made; that of a target's site when left out"`
			RawBody     []byte `contentType:"text/csv"`
		}) (*struct{ Body *Imported }, error) {
			done, err := s.Import(ctx, in.ContentType, in.RawBody, ImportOptions{Existing: Existing(in.Existing), CreateSites: in.CreateSites, DryRun: in.DryRun, Group: in.Group})
			return &struct{ Body *Imported }{done}, err
		})
	api.Register(f, api.Op{Method: "GET", Path: "/targets/{id}", ID: "get-target", Summary: "Read a target by ID or name", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *ByID) (*tagged[View], error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			return answer(t.Version, NewView(t)), nil
		})
	api.Register(f, api.Op{Method: "PUT", Path: "/targets/{id}", ID: "update-target", Summary: "Replace a target's settings", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage), MaxBody: maxTargetBody},
		func(ctx context.Context, in *struct {
			ByID
			Changing
			Body Settings
		}) (*tagged[View], error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			var p problems
			var set Target
			if in.Body.apply(&set, &p); len(p) > 0 {
				return nil, p.err()
			}
			if t, err = s.Update(ctx, t.ID, matching(in.IfMatch), func(t *Target) { in.Body.apply(t, &p) }); err != nil {
				return nil, err
			}
			return answer(t.Version, NewView(t)), nil
		})
	api.Register(f, api.Op{Method: "DELETE", Path: "/targets/{id}", ID: "delete-target", Summary: "Delete a target with its accounts, host keys and grants", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			ByID
			Changing
		}) (*none, error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			return nil, s.Delete(ctx, t.ID, matching(in.IfMatch))
		})
}

func (s *Service) accountRoutes(f *api.Frame) {
	type One struct {
		ByID
		Account string `path:"account" maxLength:"80" doc:"account ID"`
	}
	api.Register(f, api.Op{Method: "GET", Path: "/targets/{id}/accounts", ID: "list-accounts", Summary: "List the accounts of a target", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *ByID) (*paged[accountView], error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			as, err := s.Accounts(ctx, s.c.DB, t.ID)
			return &paged[accountView]{Body: api.Page[accountView]{Items: views(as, viewAccount)}}, err
		})
	api.Register(f, api.Op{Method: "POST", Path: "/targets/{id}/accounts", ID: "create-account", Summary: "Add an account to a target", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage), Status: 201},
		func(ctx context.Context, in *struct {
			ByID
			Body AccountSettings
		}) (*tagged[accountView], error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			var a Account
			if err := in.Body.apply(&a); err != nil {
				return nil, api.Invalid(api.FieldError{Field: "features", Message: err.Error()})
			}
			made, err := s.CreateAccount(ctx, t.ID, a)
			if err != nil {
				return nil, err
			}
			return answer(made.Version, viewAccount(made)), nil
		})
	api.Register(f, api.Op{Method: "GET", Path: "/targets/{id}/accounts/{account}", ID: "get-account", Summary: "Read an account", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *One) (*tagged[accountView], error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			a, err := s.AccountByID(ctx, s.c.DB, t.ID, in.Account)
			if err != nil {
				return nil, err
			}
			return answer(a.Version, viewAccount(a)), nil
		})
	api.Register(f, api.Op{Method: "PUT", Path: "/targets/{id}/accounts/{account}", ID: "update-account", Summary: "Replace an account's settings", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			One
			Changing
			Body AccountSettings
		}) (*tagged[accountView], error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			var set Account
			if err := in.Body.apply(&set); err != nil {
				return nil, api.Invalid(api.FieldError{Field: "features", Message: err.Error()})
			}
			a, err := s.UpdateAccount(ctx, t.ID, in.Account, matching(in.IfMatch), func(a *Account) { *a = set })
			if err != nil {
				return nil, err
			}
			return answer(a.Version, viewAccount(a)), nil
		})
	api.Register(f, api.Op{Method: "DELETE", Path: "/targets/{id}/accounts/{account}", ID: "delete-account", Summary: "Remove an account", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			One
			Changing
		}) (*none, error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			return nil, s.DeleteAccount(ctx, t.ID, in.Account, matching(in.IfMatch))
		})
}

func views[R, V any](rows []R, view func(*R) V) []V {
	out := make([]V, len(rows))
	for i := range rows {
		out[i] = view(&rows[i])
	}
	return out
}

func (s *Service) hostKeyRoutes(f *api.Frame) {
	type verdict struct {
		ByID
		Body struct {
			Fingerprint string `json:"fingerprint" maxLength:"100" doc:"SHA256:…"`
		}
	}
	api.Register(f, api.Op{Method: "GET", Path: "/targets/{id}/host-keys", ID: "list-host-keys", Summary: "List the host keys seen on a target", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *ByID) (*paged[hostKeyView], error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			ks, err := s.AllHostKeys(ctx, s.c.DB, t.ID)
			return &paged[hostKeyView]{Body: api.Page[hostKeyView]{Items: views(ks, viewHostKey)}}, err
		})
	api.Register(f, api.Op{Method: "POST", Path: "/targets/{id}/host-keys", ID: "add-host-key", Summary: "Accept a host key known from elsewhere", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage), Status: 201},
		func(ctx context.Context, in *struct {
			ByID
			Body struct {
				Key string `json:"key" maxLength:"16384" doc:"authorized_keys form"`
			}
		}) (*shownHostKey, error) {
			return s.hostKeyVerdict(ctx, in.ID, func(id string) (*HostKey, error) { return s.AddHostKey(ctx, id, in.Body.Key) })
		})
	api.Register(f, api.Op{Method: "POST", Path: "/targets/{id}/host-keys/accept", ID: "accept-host-key", Summary: "Accept a host key; it replaces the accepted one of its algorithm", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *verdict) (*shownHostKey, error) {
			return s.hostKeyVerdict(ctx, in.ID, func(id string) (*HostKey, error) { return s.AcceptHostKey(ctx, id, in.Body.Fingerprint) })
		})
	api.Register(f, api.Op{Method: "POST", Path: "/targets/{id}/host-keys/reject", ID: "reject-host-key", Summary: "Reject a host key for good", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *verdict) (*shownHostKey, error) {
			return s.hostKeyVerdict(ctx, in.ID, func(id string) (*HostKey, error) { return s.RejectHostKey(ctx, id, in.Body.Fingerprint) })
		})
	api.Register(f, api.Op{Method: "DELETE", Path: "/targets/{id}/host-keys", ID: "forget-host-keys", Summary: "Forget one host key, or all", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			ByID
			Fingerprint string `query:"fingerprint" maxLength:"100" doc:"SHA256:…; all keys when left out"`
		}) (*none, error) {
			t, err := s.see(ctx, in.ID)
			if err != nil {
				return nil, err
			}
			return nil, s.ForgetHostKeys(ctx, t.ID, in.Fingerprint)
		})
}

type shownHostKey struct{ Body hostKeyView }

func (s *Service) hostKeyVerdict(ctx context.Context, ref string, decide func(id string) (*HostKey, error)) (*shownHostKey, error) {
	t, err := s.see(ctx, ref)
	if err != nil {
		return nil, err
	}
	k, err := decide(t.ID)
	if err != nil {
		return nil, err
	}
	return &shownHostKey{viewHostKey(k)}, nil
}

func (s *Service) grantRoutes(f *api.Frame) {
	type list struct {
		api.PageIn
		Role   string `query:"role" maxLength:"64"`
		Target string `query:"target" maxLength:"64" doc:"target ID"`
		Tag    string `query:"tag" maxLength:"200"`
	}
	api.Register(f, api.Op{Method: "GET", Path: "/grants", ID: "list-grants", Summary: "List grants", Tag: "grants", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *list) (*paged[grantView], error) {
			filter := GrantFilter{Role: in.Role, Target: in.Target, Tag: in.Tag, In: api.Sees(ctx, api.TargetsView)}
			return page(in.PageIn, func(after string, n int) ([]Grant, error) { return s.ListGrants(ctx, s.c.DB, filter, after, n) },
				func(g *Grant) string { return g.ID }, viewGrant)
		})
	api.Register(f, api.Op{Method: "POST", Path: "/grants", ID: "create-grant", Summary: "Open a target, or all with a tag, to a role", Tag: "grants", Who: api.NeedsSomewhere(api.TargetsManage), Status: 201},
		func(ctx context.Context, in *struct{ Body GrantSettings }) (*tagged[grantView], error) {
			g, err := in.Body.read()
			if err != nil {
				return nil, err
			}
			made, err := s.CreateGrant(ctx, g)
			if err != nil {
				return nil, err
			}
			return answer(made.Version, viewGrant(made)), nil
		})
	api.Register(f, api.Op{Method: "GET", Path: "/grants/{id}", ID: "get-grant", Summary: "Read a grant", Tag: "grants", Who: api.NeedsSomewhere(api.TargetsView)},
		func(ctx context.Context, in *ByID) (*tagged[grantView], error) {
			g, err := s.Grant(ctx, s.c.DB, in.ID)
			if err != nil {
				return nil, err
			}
			if err := g.guarded().See(ctx, g.AccessGroup()); err != nil {
				return nil, err
			}
			return answer(g.Version, viewGrant(g)), nil
		})
	api.Register(f, api.Op{Method: "PUT", Path: "/grants/{id}", ID: "update-grant", Summary: "Replace a grant", Tag: "grants", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			ByID
			Changing
			Body GrantSettings
		}) (*tagged[grantView], error) {
			set, err := in.Body.read()
			if err != nil {
				return nil, err
			}
			g, err := s.UpdateGrant(ctx, in.ID, matching(in.IfMatch), func(g *Grant) { *g = set })
			if err != nil {
				return nil, err
			}
			return answer(g.Version, viewGrant(g)), nil
		})
	api.Register(f, api.Op{Method: "DELETE", Path: "/grants/{id}", ID: "delete-grant", Summary: "Take a grant away", Tag: "grants", Who: api.NeedsSomewhere(api.TargetsManage)},
		func(ctx context.Context, in *struct {
			ByID
			Changing
		}) (*none, error) {
			return nil, s.DeleteGrant(ctx, in.ID, matching(in.IfMatch))
		})
}
