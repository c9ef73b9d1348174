// Package overview answers the first question of an operator's day: what goes
// on, what is broken, what ends soon. It owns no data: it counts in the tables
// of other rooms, reads only, and only through indexes, so that a start page
// costs the same with a million past sessions as with ten.
//
// Each part is for those who may see its subject; who may see none of them
// gets an empty overview, not a refusal.
package overview

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
)

// Bounds of an overview.
const (
	hours     = 24 // shown per hour
	troubles  = 50 // nodes in trouble
	expiring  = 50 // things that end soon, of each kind
	auditTail = 12
)

// Edges is what the fleet tells; *fleet.Fleet is the real one.
type Edges interface {
	Summary(ctx context.Context, in access.Scope, limit int) (fleet.Summary, error)
}

// Certificate is one whose end the overview watches.
type Certificate struct {
	Name     string
	NotAfter time.Time
	// Renews says that nobody has to do anything.
	Renews bool
}

// Config is what a Service needs. All but Log are required.
type Config struct {
	DB    *db.DB
	Audit *audit.Log
	Edges Edges
	// Certificates are those of core itself: the https listener's, the edge CA's.
	Certificates func() []Certificate
	// Space is what is free and what there is, in bytes, where recordings are kept.
	Space func() (free, total uint64, err error)
	Now   func() time.Time
	Log   *slog.Logger
}

// Service makes overviews. Safe for concurrent use.
type Service struct{ c Config }

// New makes the service.
func New(c Config) (*Service, error) {
	if c.DB == nil || c.Audit == nil || c.Edges == nil || c.Certificates == nil || c.Space == nil || c.Now == nil {
		return nil, errors.New("overview: DB, Audit, Edges, Certificates, Space and Now are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{c}, nil
}

// View is the overview; a part the caller may not see is absent.
type View struct {
	At       time.Time      `json:"at"`
	Sessions *Sessions      `json:"sessions,omitempty"`
	Edges    *fleet.Summary `json:"edges,omitempty"`
	Logins   *Logins        `json:"logins,omitempty"`
	Audit    []audit.Entry  `json:"audit,omitempty" nullable:"false" doc:"the newest events"`
	Storage  *Storage       `json:"storage,omitempty"`
	Expiring []Expiring     `json:"expiring" nullable:"false" doc:"what ends soon, soonest first"`
}

// Sessions counts connections.
type Sessions struct {
	Now    int         `json:"now" doc:"live"`
	Kinds  []KindCount `json:"kinds" nullable:"false"`
	Hours  []Hour      `json:"hours" nullable:"false" doc:"the last 24, oldest first; the last one is not over"`
	Opened int         `json:"opened" doc:"in the last 24 hours"`
	Failed int         `json:"failed"`
}

// KindCount counts live connections of a kind.
type KindCount struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`
}

// Hour counts the connections asked for in an hour.
type Hour struct {
	At     time.Time `json:"at" doc:"its beginning"`
	Opened int       `json:"opened"`
	Failed int       `json:"failed"`
}

// Logins counts what was turned away in the last 24 hours.
type Logins struct {
	OK      int `json:"ok"`
	Failed  int `json:"failed"`
	Limited int `json:"limited" doc:"turned away unseen after too many failures"`
	Denied  int `json:"denied" doc:"connections refused by policy"`
}

// Storage tells of the database and the place of recordings.
type Storage struct {
	Engine        string `json:"engine" enum:"sqlite,postgres"`
	DatabaseBytes int64  `json:"database_bytes"`
	FreeBytes     uint64 `json:"recordings_free_bytes"`
	TotalBytes    uint64 `json:"recordings_total_bytes"`
	Problem       string `json:"problem,omitempty"`
	Recording     int    `json:"recording" doc:"recordings being written"`
	Damaged       int    `json:"damaged" doc:"recordings that do not verify"`
	ExpiringWeek  int    `json:"expiring_week" doc:"recordings that are removed within 7 days"`
}

// Expiring is a thing with an end.
type Expiring struct {
	Kind string    `json:"kind" enum:"edge_certificate,edge_ca,tls_certificate,api_token,membership"`
	ID   string    `json:"id,omitempty"`
	Name string    `json:"name"`
	At   time.Time `json:"at"`
	Text string    `json:"text,omitempty" doc:"what happens then, or who sees to it"`
}

// Routes registers /overview.
func (s *Service) Routes(f *api.Frame) {
	api.Register(f, api.Op{Method: "GET", Path: "/overview", ID: "get-overview", Tag: "overview", Who: api.Self(),
		Summary: "What goes on, what is broken and what ends soon, as far as the caller may see it"},
		func(ctx context.Context, _ *struct{}) (*struct{ Body *View }, error) {
			v, err := s.View(ctx, api.PrincipalFrom(ctx))
			return &struct{ Body *View }{v}, err
		})
}

// View makes the overview for p.
func (s *Service) View(ctx context.Context, p *api.Principal) (*View, error) {
	now := s.c.Now().UTC()
	v := &View{At: now, Expiring: []Expiring{}}
	parts := []struct {
		need api.Permission
		name string
		// whole: it belongs to the installation, not to access groups.
		whole bool
		read  func(context.Context, time.Time, access.Scope, *View) error
	}{
		{api.ConnectionsView, "sessions", false, s.sessions},
		{api.EdgesView, "edges", false, s.edges},
		{api.AuditView, "audit", false, s.audit},
		{api.SettingsView, "storage", true, s.storage},
		{api.UsersView, "expiring", true, s.people},
	}
	for _, part := range parts {
		in := p.Scope(part.need)
		if in.Nowhere() || part.whole && !in.All() {
			continue
		}
		if err := part.read(ctx, now, in, v); err != nil {
			return nil, fmt.Errorf("overview of %s: %w", part.name, err)
		}
	}
	sortExpiring(v.Expiring)
	return v, nil
}
