// Package api is the frame of the REST interface under /api/v1:
// authentication, problem documents (RFC 9457), paging, ETag, server-sent
// events and the OpenAPI 3.1 document. It knows no room: rooms register their
// routes on it, and each route must say who may call it.
package api

import (
	"context"
	"net/http"
	"net/netip"

	"caponier/core/internal/access"
)

// Permission is an administrative right, carried by roles: "users:manage".
type Permission string

// The permissions. Viewing does not include managing, managing includes viewing.
const (
	UsersView         Permission = "users:view"
	UsersManage       Permission = "users:manage"
	TargetsView       Permission = "targets:view"
	TargetsManage     Permission = "targets:manage"
	EdgesView         Permission = "edges:view"
	EdgesManage       Permission = "edges:manage"
	ConnectionsView   Permission = "connections:view"
	ConnectionsManage Permission = "connections:manage"
	ConnectionsWatch  Permission = "connections:watch"
	RecordingsView    Permission = "recordings:view"
	AuditView         Permission = "audit:view"
	SettingsView      Permission = "settings:view"
	SettingsManage    Permission = "settings:manage"
	SecretsManage     Permission = "secrets:manage"
	GroupsView        Permission = "groups:view"
	GroupsManage      Permission = "groups:manage"
	WebApprove        Permission = "web:approve"
)

// Groupable reports whether a permission can be limited to access groups.
// Settings belong to the installation and cannot.
func (p Permission) Groupable() bool { return p != SettingsView && p != SettingsManage }

// Principal is the authenticated caller of the API or of a front door.
type Principal struct {
	UserID   string
	UserName string
	// Session is the ID of the console session, API token or SSH login it acts by.
	Session string
	// Methods are how it authenticated: password, totp, token, publickey, certificate.
	Methods []string
	MFA     bool
	// Permissions are those that hold everywhere.
	Permissions map[Permission]bool
	// Scoped are the access groups that further permissions hold in.
	Scoped map[Permission][]string
	Source netip.Addr
	// Via is the front door: api, console, bastion, socks.
	Via string
}

// Can reports whether the principal holds p everywhere. What is divided among
// access groups asks for the Scope instead; whatever does not, is closed to
// administrators of groups.
func (p *Principal) Can(want Permission) bool {
	return p != nil && (p.Permissions[want] || managed[want] != "" && p.Permissions[managed[want]])
}

// Scope is where the principal holds a permission.
func (p *Principal) Scope(want Permission) access.Scope {
	if p == nil {
		return access.Scope{}
	}
	if p.Can(want) {
		return access.Everywhere()
	}
	s := access.Within(p.Scoped[want]...)
	if m := managed[want]; m != "" {
		s = s.And(access.Within(p.Scoped[m]...))
	}
	return s
}

// Anywhere is where the principal holds any permission at all.
func (p *Principal) Anywhere() access.Scope {
	if p == nil {
		return access.Scope{}
	}
	for _, yes := range p.Permissions {
		if yes {
			return access.Everywhere()
		}
	}
	var s access.Scope
	for _, groups := range p.Scoped {
		s = s.And(access.Within(groups...))
	}
	return s
}

// Sees is the scope in which the caller of the request holds a permission.
func Sees(ctx context.Context, p Permission) access.Scope { return PrincipalFrom(ctx).Scope(p) }

// managed maps a viewing permission to the managing one that includes it.
var managed = map[Permission]Permission{
	UsersView: UsersManage, TargetsView: TargetsManage, EdgesView: EdgesManage,
	ConnectionsView: ConnectionsManage, SettingsView: SettingsManage, GroupsView: GroupsManage,
}

// Authenticator turns a request's bearer token or session cookie into a
// Principal. A request that carries none yields (nil, nil); one that is not
// good (unknown, expired, revoked) yields Unauthenticated. Any other error
// refuses the request and is logged. A request with an Authorization header
// reaches the Authenticator without its cookies, so that a cookie can never
// stand in for a bad token.
type Authenticator interface {
	Authenticate(r *http.Request, source netip.Addr) (*Principal, error)
}

type (
	principalKey struct{}
	callKey      struct{}
)

// call is what the frame knows about a request besides the caller.
type call struct {
	id     string
	source netip.Addr
	path   string // as the client asked, without Prefix
}

func callFrom(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// SourceFrom returns the address the request came from (see ClientAddr).
func SourceFrom(ctx context.Context) netip.Addr { return callFrom(ctx).source }

// RequestID returns the request's ID, which is in its log line, its
// X-Request-Id header and its problem document.
func RequestID(ctx context.Context) string { return callFrom(ctx).id }

// WithPrincipal returns ctx carrying p.
func WithPrincipal(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalFrom returns the caller, or nil.
func PrincipalFrom(ctx context.Context) *Principal {
	p, _ := ctx.Value(principalKey{}).(*Principal)
	return p
}

// Who says who may call an operation. The zero value is refused at registration.
type Who struct {
	public, self bool
	needs        Permission
	somewhere    bool
}

// Public operations need no login.
func Public() Who { return Who{public: true} }

// Self operations need a login; the handler limits them to the caller's own things.
func Self() Who { return Who{self: true} }

// Needs operations require a permission that holds everywhere.
func Needs(p Permission) Who { return Who{needs: p} }

// NeedsSomewhere operations require a permission in some access group at
// least. Their handlers see and change only what is in its Scope.
func NeedsSomewhere(p Permission) Who { return Who{needs: p, somewhere: true} }
