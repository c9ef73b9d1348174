package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
)

// PathID is the path parameter of operations on one secret.
type PathID struct {
	ID string `path:"id" maxLength:"64"`
}

type listIn struct {
	api.PageIn
	Group string `query:"group" maxLength:"64" doc:"only of this access group"`
}

type listOut struct{ Body api.Page[Secret] }

type createIn struct {
	Body struct {
		Name       string          `json:"name" maxLength:"100"`
		Kind       Kind            `json:"kind" enum:"password,key,json"`
		Comment    string          `json:"comment,omitempty" maxLength:"500"`
		Group      string          `json:"group,omitempty" maxLength:"64" doc:"access group; the default one, or the only one of the caller's, when left out; a personal secret has none"`
		Personal   bool            `json:"personal,omitempty" doc:"the caller's own, nobody else's"`
		ReadRoles  []string        `json:"read_roles,omitempty" maxItems:"100"`
		WriteRoles []string        `json:"write_roles,omitempty" maxItems:"100"`
		Value      json.RawMessage `json:"value" doc:"a string for password and key, an object for json; never returned"`
	}
}

type secretOut struct {
	ETag string `header:"ETag"`
	Body Secret
}

type patchIn struct {
	PathID
	IfMatch string `header:"If-Match"`
	Body    struct {
		Name       *string   `json:"name,omitempty" maxLength:"100"`
		Comment    *string   `json:"comment,omitempty" maxLength:"500"`
		Group      *string   `json:"group,omitempty" maxLength:"64" doc:"access group"`
		ReadRoles  *[]string `json:"read_roles,omitempty" maxItems:"100"`
		WriteRoles *[]string `json:"write_roles,omitempty" maxItems:"100"`
	}
}

type valueIn struct {
	PathID
	IfMatch string `header:"If-Match"`
	Body    struct {
		Value json.RawMessage `json:"value"`
	}
}

type deleteIn struct {
	PathID
	IfMatch string `header:"If-Match"`
}

type revealIn struct {
	PathID
	Body struct {
		Version int64  `json:"version,omitempty" minimum:"1" doc:"a former version; the current one when absent"`
		Reason  string `json:"reason,omitempty" maxLength:"200"`
	}
}

type revealOut struct {
	Body struct {
		Version int64           `json:"version"`
		Value   json.RawMessage `json:"value"`
	}
}

type versionsOut struct {
	Body []ValueVersion
}

// ValueVersion tells of a version of a value, without it.
type ValueVersion struct {
	Version   int64     `json:"version"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
}

// routes are the handlers: the vault with what it asks of other rooms.
type routes struct {
	*Vault
	roles Roles
	users SecretUsers
}

// SecretUsers names what refers to a secret ("db-1/root"), at most 10; the
// target room is the real one.
type SecretUsers interface {
	// It names those of a scope of access groups and tells whether there are
	// any at all.
	SecretUses(ctx context.Context, q db.Querier, secretID string, in access.Scope) (names []string, used bool, err error)
}

// Routes registers the room's operations. A secret that users refers to is
// not deleted; users may be nil.
func (v *Vault) Routes(f *api.Frame, roles Roles, users SecretUsers) {
	r := routes{v, roles, users}
	op := func(method, path, id, summary string) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: "secrets", Who: api.Self()}
	}
	api.Register(f, op("GET", "/secrets", "list-secrets", "Shared secrets the caller may use or manage, and personal ones"), r.list)
	create := op("POST", "/secrets", "create-secret", "Store a secret")
	create.Status = 201
	api.Register(f, create, r.create)
	api.Register(f, op("GET", "/secrets/{id}", "get-secret", "A secret without its value"), r.get)
	api.Register(f, op("PATCH", "/secrets/{id}", "change-secret", "Change name, comment and roles"), r.patch)
	api.Register(f, op("PUT", "/secrets/{id}/value", "set-secret-value", "Store a new version of the value"), r.setValue)
	api.Register(f, op("GET", "/secrets/{id}/versions", "list-secret-versions", "The kept versions of the value, without them"), r.versions)
	reveal := op("POST", "/secrets/{id}/reveal", "reveal-secret", "Read the value; audited")
	reveal.Sensitive = true
	api.Register(f, reveal, r.reveal)
	api.Register(f, op("GET", "/secrets/{id}/uses", "list-secret-uses", "What logs in with the secret; at most 10"), r.uses)
	api.Register(f, op("DELETE", "/secrets/{id}", "delete-secret", "Delete a secret with all versions"), r.delete)
}

// caller is who calls, with the roles held now. They are read before a
// transaction begins, which must not wait for another connection.
type caller struct {
	*api.Principal
	roles []string
}

func (r routes) caller(ctx context.Context) (caller, error) {
	p := api.PrincipalFrom(ctx)
	roles, err := r.roles.RoleIDs(ctx, p.UserID)
	if err != nil {
		return caller{}, fmt.Errorf("read roles of caller: %w", err)
	}
	return caller{p, roles}, nil
}

// mayShare refuses to hand a secret to roles outside the access groups in
// which the caller manages secrets; those it was shared with before may stay.
func (r routes) mayShare(ctx context.Context, q db.Querier, before, s *Secret) error {
	p := api.PrincipalFrom(ctx)
	g := s.guarded()
	links := []api.Link{}
	if !p.Can(api.SecretsManage) {
		for _, l := range []struct {
			field    string
			had, has []string
		}{{"read_roles", before.ReadRoles, s.ReadRoles}, {"write_roles", before.WriteRoles, s.WriteRoles}} {
			for _, id := range l.has {
				if slices.Contains(l.had, id) {
					continue
				}
				in, err := r.roles.RoleGroup(ctx, q, id)
				if errors.Is(err, db.ErrNotFound) {
					in, err = "", nil
				}
				if err != nil {
					return err
				}
				links = append(links, api.Link{Field: l.field, Message: "there is no such role", Permission: api.SecretsManage, Group: in})
			}
		}
	}
	return g.Administer(ctx, before.Group, s.Group, links...)
}

func (s *Secret) guarded() api.Guarded {
	return api.Guarded{Kind: "secret", ID: s.ID, View: api.SecretsManage, Manage: api.SecretsManage}
}

// find reads a secret for an action. What the caller may not even see is
// missing; what he may see but not use so is a *refusal.
func (r routes) find(ctx context.Context, q db.Querier, id string, c caller, a action) (*Secret, error) {
	s, err := r.Get(ctx, q, id)
	switch {
	case errors.Is(err, db.ErrNotFound):
		return nil, api.Missing("secret", id)
	case err != nil:
		return nil, err
	case !allowed(c.Principal, c.roles, s, see):
		return nil, api.Missing("secret", id)
	case !allowed(c.Principal, c.roles, s, a):
		return nil, &refusal{s, a}
	}
	return s, nil
}

// refusal is a refused action on a secret the caller may see.
type refusal struct {
	secret *Secret
	action action
}

func (*refusal) Error() string { return "refused" }

// tx runs f in a transaction; a refusal inside it is audited and told.
func (r routes) tx(ctx context.Context, f func(*db.Tx, caller) error) error {
	c, err := r.caller(ctx)
	if err != nil {
		return err
	}
	err = r.db.Tx(ctx, func(tx *db.Tx) error { return f(tx, c) })
	refused, ok := errors.AsType[*refusal](err)
	if !ok {
		return err
	}
	name := [...]string{see: "see", read: "reveal", write: "write", manage: "manage"}[refused.action]
	if err := r.audit.Write(ctx, audit.Event{
		Type: audit.SecretRefused, Outcome: audit.Denied, Actor: audit.By(api.PrincipalFrom(ctx)), Object: refused.secret.object(), Group: refused.secret.Group,
		Fields: map[string]string{"action": name},
	}); err != nil {
		return err
	}
	return api.Denied("secret_"+name, "Your roles do not allow this with this secret.")
}

type listPosition struct {
	Name string `json:"n"`
	ID   string `json:"i"`
}

func (r routes) list(ctx context.Context, in *listIn) (*listOut, error) {
	var at listPosition
	if err := api.DecodeCursor(in.Cursor, &at); err != nil {
		return nil, err
	}
	c, err := r.caller(ctx)
	if err != nil {
		return nil, err
	}
	var found []Secret
	for len(found) <= in.Limit {
		page, err := r.page(ctx, c.UserID, in.Group, at)
		if err != nil {
			return nil, err
		}
		for i := range page {
			if allowed(c.Principal, c.roles, &page[i], see) && len(found) <= in.Limit {
				found = append(found, page[i])
			}
		}
		if len(page) < listPage {
			break
		}
		at = listPosition{page[len(page)-1].Name, page[len(page)-1].ID}
	}
	return &listOut{api.Paged(found, in.Limit, func(s Secret) any { return listPosition{s.Name, s.ID} })}, nil
}

const listPage = 200

func (r routes) page(ctx context.Context, userID, group string, at listPosition) ([]Secret, error) {
	rows, err := r.db.QueryContext(ctx, listSecretsSQL, userID, at.Name, at.ID, listPage, group)
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	defer rows.Close()
	var out []Secret
	for rows.Next() {
		s, err := scanSecret(rows)
		if err != nil {
			return nil, fmt.Errorf("list secrets: %w", err)
		}
		out = append(out, *s)
	}
	return out, rows.Err()
}

// plain takes a value out of a request: text for password and key, the
// document for json.
func plain(kind Kind, raw json.RawMessage) ([]byte, error) {
	if kind == JSON {
		var b bytes.Buffer
		if json.Compact(&b, raw) != nil {
			return nil, api.Invalid(api.FieldError{Field: "value", Message: "must be a JSON object"})
		}
		return b.Bytes(), nil
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return nil, api.Invalid(api.FieldError{Field: "value", Message: "must be a string"})
	}
	return []byte(text), nil
}

func (r routes) create(ctx context.Context, in *createIn) (*secretOut, error) {
	p := api.PrincipalFrom(ctx)
	n := NewSecret{
		Name: in.Body.Name, Kind: in.Body.Kind, Comment: in.Body.Comment,
		ReadRoles: in.Body.ReadRoles, WriteRoles: in.Body.WriteRoles,
	}
	if in.Body.Personal {
		n.OwnerID = p.UserID
	} else if p.Scope(api.SecretsManage).Nowhere() {
		return nil, api.Denied("permission_missing", "Shared secrets need the permission "+string(api.SecretsManage)+"; a personal one does not.")
	}
	var err error
	if n.OwnerID == "" {
		if n.Group, err = api.PlaceNew(ctx, api.SecretsManage, in.Body.Group); err != nil {
			return nil, err
		}
	}
	if n.Value, err = plain(n.Kind, in.Body.Value); err != nil {
		return nil, err
	}
	defer clear(n.Value)
	var s *Secret
	err = r.db.Tx(ctx, func(tx *db.Tx) error {
		if n.OwnerID == "" {
			wanted := &Secret{Group: n.Group, ReadRoles: n.ReadRoles, WriteRoles: n.WriteRoles}
			if err := r.mayShare(ctx, tx, &Secret{}, wanted); err != nil {
				return err
			}
		}
		s, err = r.Create(ctx, tx, n, audit.By(p))
		return err
	})
	if err != nil {
		return nil, err
	}
	return out(s), nil
}

func out(s *Secret) *secretOut { return &secretOut{api.ETag(s.Version), *s} }

func (r routes) get(ctx context.Context, in *PathID) (*secretOut, error) {
	c, err := r.caller(ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.find(ctx, r.db, in.ID, c, see)
	if err != nil {
		return nil, err
	}
	return out(s), nil
}

func (r routes) patch(ctx context.Context, in *patchIn) (*secretOut, error) {
	var s *Secret
	err := r.tx(ctx, func(tx *db.Tx, c caller) error {
		var err error
		if s, err = r.find(ctx, tx, in.ID, c, manage); err != nil {
			return err
		}
		if err := api.CheckMatch(in.IfMatch, s.Version); err != nil {
			return err
		}
		before := *s
		fields := s.apply(in)
		if s.OwnerID == "" {
			if err := r.mayShare(ctx, tx, &before, s); err != nil {
				return err
			}
			if err := group.Check(ctx, tx, s.Group); err != nil {
				return err
			}
		}
		n := NewSecret{Name: s.Name, OwnerID: s.OwnerID, Comment: s.Comment, ReadRoles: s.ReadRoles, WriteRoles: s.WriteRoles}
		if bad := n.check(); len(bad) > 0 {
			return api.Invalid(bad...)
		}
		s.UpdatedAt = r.now().UTC().Truncate(time.Microsecond)
		if err := updateSecret(ctx, tx, s); err != nil {
			return err
		}
		return r.changed(ctx, tx, audit.SecretChanged, s, audit.By(c.Principal), fields, before.Group)
	})
	if err != nil {
		return nil, err
	}
	return out(s), nil
}

// apply changes s as the request says and returns what changed, for the audit log.
func (s *Secret) apply(in *patchIn) map[string]string {
	fields := map[string]string{}
	if b := in.Body.Name; b != nil && *b != s.Name {
		fields["former_name"], s.Name = s.Name, *b
	}
	if b := in.Body.Comment; b != nil && *b != s.Comment {
		fields["comment"], s.Comment = "changed", *b
	}
	if b := in.Body.Group; b != nil && s.OwnerID == "" && *b != s.Group && *b != "" {
		fields["old_group"], fields["new_group"], s.Group = s.Group, *b, *b
	}
	if b := in.Body.ReadRoles; b != nil {
		fields["read_roles"], s.ReadRoles = rolesText(*b), nonNil(*b)
	}
	if b := in.Body.WriteRoles; b != nil {
		fields["write_roles"], s.WriteRoles = rolesText(*b), nonNil(*b)
	}
	return fields
}

func (r routes) setValue(ctx context.Context, in *valueIn) (*secretOut, error) {
	var s *Secret
	err := r.tx(ctx, func(tx *db.Tx, c caller) error {
		var err error
		if s, err = r.find(ctx, tx, in.ID, c, write); err != nil {
			return err
		}
		if err := api.CheckMatch(in.IfMatch, s.Version); err != nil {
			return err
		}
		value, err := plain(s.Kind, in.Body.Value)
		if err != nil {
			return err
		}
		defer clear(value)
		return r.SetValue(ctx, tx, s, value, audit.By(c.Principal))
	})
	if err != nil {
		return nil, err
	}
	return out(s), nil
}

func (r routes) versions(ctx context.Context, in *PathID) (*versionsOut, error) {
	c, err := r.caller(ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.find(ctx, r.db, in.ID, c, see)
	if err != nil {
		return nil, err
	}
	rows, err := r.db.QueryContext(ctx, listValuesSQL, s.ID)
	if err != nil {
		return nil, fmt.Errorf("list versions: %w", err)
	}
	defer rows.Close()
	res := &versionsOut{Body: []ValueVersion{}}
	for rows.Next() {
		var x ValueVersion
		var at int64
		if err := rows.Scan(&x.Version, &at, &x.CreatedBy); err != nil {
			return nil, fmt.Errorf("list versions: %w", err)
		}
		x.CreatedAt = time.UnixMicro(at).UTC()
		res.Body = append(res.Body, x)
	}
	return res, rows.Err()
}

type usesOut struct {
	Body struct {
		Items []string `json:"items" nullable:"false" doc:"accounts on targets, as target/account"`
	}
}

// uses names what refers to a secret, for those who may manage it: others
// must not learn of targets this way.
func (r routes) uses(ctx context.Context, in *PathID) (*usesOut, error) {
	c, err := r.caller(ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.find(ctx, r.db, in.ID, c, manage)
	if _, refused := errors.AsType[*refusal](err); refused {
		return nil, api.Denied("secret_manage", "Your roles do not allow this with this secret.")
	}
	if err != nil {
		return nil, err
	}
	out := &usesOut{}
	out.Body.Items = []string{}
	if r.users == nil {
		return out, nil
	}
	uses, _, err := r.users.SecretUses(ctx, r.db, s.ID, api.Sees(ctx, api.TargetsView).And(api.Sees(ctx, api.SecretsManage)))
	if err != nil {
		return nil, fmt.Errorf("uses of secret %s: %w", s.ID, err)
	}
	out.Body.Items = append(out.Body.Items, uses...)
	return out, nil
}

func (r routes) reveal(ctx context.Context, in *revealIn) (*revealOut, error) {
	res := &revealOut{}
	err := r.tx(ctx, func(tx *db.Tx, c caller) error {
		s, err := r.find(ctx, tx, in.ID, c, read)
		if err != nil {
			return err
		}
		version := s.Current
		if in.Body.Version > 0 {
			version = in.Body.Version
		}
		value, err := r.value(ctx, tx, s, version)
		if errors.Is(err, db.ErrNotFound) {
			return api.Missing("version", fmt.Sprint(version))
		}
		if err != nil {
			return err
		}
		res.Body.Version, res.Body.Value = version, value
		if s.Kind != JSON {
			if res.Body.Value, err = json.Marshal(string(value)); err != nil {
				return fmt.Errorf("encode secret: %w", err)
			}
		}
		return r.audit.Append(ctx, tx, audit.Event{
			Type: audit.SecretRevealed, Outcome: audit.OK, Actor: audit.By(c.Principal), Object: s.object(), Group: s.Group,
			Fields: map[string]string{"value_version": fmt.Sprint(version), "reason": in.Body.Reason},
		})
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

func (r routes) delete(ctx context.Context, in *deleteIn) (*struct{}, error) {
	return nil, r.tx(ctx, func(tx *db.Tx, c caller) error {
		s, err := r.find(ctx, tx, in.ID, c, manage)
		if err != nil {
			return err
		}
		if err := api.CheckMatch(in.IfMatch, s.Version); err != nil {
			return err
		}
		if r.users != nil {
			uses, used, err := r.users.SecretUses(ctx, tx, s.ID, api.Sees(ctx, api.SecretsManage))
			if err != nil {
				return fmt.Errorf("uses of secret %s: %w", s.ID, err)
			}
			if used && len(uses) == 0 {
				return api.Conflict("secret_in_use", "It is in use.")
			}
			if used {
				return api.Conflict("secret_in_use", "It is used by "+strings.Join(uses, ", ")+".")
			}
		}
		return r.Delete(ctx, tx, s, audit.By(c.Principal))
	})
}
