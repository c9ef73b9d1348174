package fleet

import (
	"context"
	"fmt"
	"maps"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// Health of a node as the console shows it.
const (
	healthOnline   = "online"
	healthDraining = "draining"
	healthCordoned = "cordoned"
	healthOffline  = "offline"
	healthRevoked  = "revoked"
	healthNever    = "never_connected"
)

// edgeOut is a node as the API shows it.
type edgeOut struct {
	ID           string            `json:"id"`
	Kind         string            `json:"kind"`
	Name         string            `json:"name"`
	Site         string            `json:"site,omitempty"`
	Labels       map[string]string `json:"labels"`
	Rules        rulesIO           `json:"rules"`
	Cordoned     bool              `json:"cordoned"`
	Health       string            `json:"health" enum:"online,draining,cordoned,offline,revoked,never_connected"`
	Warnings     []string          `json:"warnings,omitempty" doc:"things an operator should look at"`
	CreatedAt    time.Time         `json:"created_at"`
	LastSeen     *time.Time        `json:"last_seen,omitempty"`
	LastError    string            `json:"last_error,omitempty"`
	CertNotAfter time.Time         `json:"certificate_not_after"`
	Serial       string            `json:"certificate_serial"`
	TokenID      string            `json:"enrolment_token_id"`
	Version      int64             `json:"version"`
	Tunnel       *tunnelOut        `json:"tunnel,omitempty" doc:"present while connected"`
}

// tunnelOut is what is known of a node while it is connected.
type tunnelOut struct {
	Core          string            `json:"core"`
	Transport     string            `json:"transport"`
	Binding       string            `json:"binding" doc:"bound: TLS ends at core; inner: something ends it on the way, and TLS runs inside"`
	Finding       string            `json:"finding,omitempty" doc:"how this core was found"`
	Remote        string            `json:"remote"`
	ConnectedAt   time.Time         `json:"connected_at"`
	StartedAt     time.Time         `json:"started_at" doc:"start of the node's process"`
	Build         string            `json:"build"`
	Mode          string            `json:"mode,omitempty"`
	RTTMS         float64           `json:"rtt_ms"`
	Streams       int               `json:"streams" doc:"open in the tunnel now"`
	StreamsTotal  uint64            `json:"streams_total"`
	BytesIn       uint64            `json:"bytes_in"`
	BytesOut      uint64            `json:"bytes_out"`
	ClockSkewMS   float64           `json:"clock_skew_ms"`
	ReportedAt    *time.Time        `json:"reported_at,omitempty"`
	History       *History          `json:"history,omitempty" doc:"one value for each report of the node, oldest first"`
	Relayed       int               `json:"relayed" doc:"connections the node relays now, by its own count"`
	Refused       uint64            `json:"refused" doc:"by rule, since the node's start"`
	Failed        uint64            `json:"failed"`
	MemoryBytes   uint64            `json:"memory_bytes"`
	Web           *wire.WebCapacity `json:"web,omitempty" doc:"of carriers and webproxies"`
	DeployAddress string            `json:"deploy_address,omitempty" doc:"host-deployment listener"`
	DeployPin     string            `json:"deploy_pin,omitempty" doc:"for curl --pinnedpubkey"`
}

type rulesIO struct {
	Allow []string `json:"allow,omitempty" maxItems:"256" doc:"CIDRs; empty: what the node's own configuration allows"`
	Deny  []string `json:"deny,omitempty" maxItems:"256"`
	Ports []string `json:"ports,omitempty" maxItems:"256" doc:"22 or 8000-8999; empty: every port"`
}

func (r rulesIO) wire() wire.DialRules { return wire.DialRules(r) }

func (f *Fleet) show(e *nodeRow) edgeOut {
	o := edgeOut{ID: e.ID, Kind: string(e.Kind), Name: e.Name, Site: e.Site, Labels: e.Labels, Rules: rulesIO(e.Rules),
		Cordoned: e.Cordoned, CreatedAt: e.CreatedAt, LastError: e.LastError, CertNotAfter: e.CertNotAfter,
		Serial: e.Serial, TokenID: e.TokenID, Version: e.Version}
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	if !e.SeenAt.IsZero() {
		o.LastSeen = &e.SeenAt
	}
	n := f.get(e.ID)
	switch {
	case !e.RevokedAt.IsZero():
		o.Health = healthRevoked
	case n == nil && e.SeenAt.IsZero():
		o.Health = healthNever
	case n == nil:
		o.Health = healthOffline
	case n.leaving.Load():
		o.Health = healthDraining
	case e.Cordoned:
		o.Health = healthCordoned
	default:
		o.Health = healthOnline
	}
	now := f.now()
	if e.RevokedAt.IsZero() && e.CertNotAfter.Before(now.Add(f.c.RenewBefore)) {
		o.Warnings = append(o.Warnings, "the certificate ends at "+e.CertNotAfter.UTC().Format(time.RFC3339)+"; it is renewed while the node is connected")
	}
	if n == nil {
		return o
	}
	o.LastSeen = &now
	info, stats := n.session.Info(), n.session.Stats()
	skew := time.Duration(n.skew.Load()) * time.Microsecond
	if skew.Abs() > f.c.MaxSkew {
		o.Warnings = append(o.Warnings, fmt.Sprintf("its clock differs from core's by %s; set up time synchronisation", skew.Round(time.Second)))
	}
	t := &tunnelOut{Core: f.c.CoreID, Transport: string(info.Transport), Binding: string(info.Binding), Finding: n.hello.Finding,
		Remote: addrText(info.Remote), ConnectedAt: n.connected, StartedAt: time.UnixMicro(n.hello.StartedAt).UTC(), Build: n.hello.Build,
		RTTMS: float64(stats.RTT.Microseconds()) / 1000, Streams: stats.Streams, StreamsTotal: stats.StreamsTotal,
		BytesIn: stats.BytesIn, BytesOut: stats.BytesOut, ClockSkewMS: float64(skew.Microseconds()) / 1000}
	if d := n.hello.Deploy; d != nil {
		t.DeployAddress, t.DeployPin = d.Address, d.Pin
	}
	if s := n.status.Load(); s != nil {
		t.Mode, t.Relayed, t.Refused, t.Failed, t.MemoryBytes = limit(s.Mode, 16), s.Streams, s.Refused, s.Failed, s.MemoryBytes
		at := s.at
		t.ReportedAt = &at
		t.History = n.past.view(f.statusEvery())
		if t.Web = webCapacity(s.Web); t.Web != nil && t.Web.Problem != "" {
			o.Warnings = append(o.Warnings, "it takes no web sessions: "+t.Web.Problem)
		}
		if s.LastError != "" {
			o.LastError = s.LastError
		}
	}
	o.Tunnel = t
	return o
}

// TokenOut is an enrolment token as the API shows it, without its secret.
type TokenOut struct {
	ID          string            `json:"id"`
	Kind        string            `json:"kind"`
	Site        string            `json:"site,omitempty"`
	Labels      map[string]string `json:"labels"`
	Rules       rulesIO           `json:"rules"`
	Comment     string            `json:"comment,omitempty"`
	MaxUses     int               `json:"max_uses"`
	Uses        int               `json:"uses"`
	AllowRepeat bool              `json:"allow_repeat"`
	State       string            `json:"state" enum:"valid,used_up,expired,revoked"`
	ExpiresAt   time.Time         `json:"expires_at"`
	CreatedAt   time.Time         `json:"created_at"`
	CreatedBy   string            `json:"created_by"`
	Version     int64             `json:"version"`
}

func (f *Fleet) showToken(t token) TokenOut {
	o := TokenOut{ID: t.ID, Kind: t.Kind, Site: t.Site, Labels: t.Labels, Rules: rulesIO(t.Rules), Comment: t.Comment,
		MaxUses: t.MaxUses, Uses: t.Uses, AllowRepeat: t.AllowRepeat, State: "valid",
		ExpiresAt: t.ExpiresAt, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, Version: t.Version}
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	switch {
	case !t.RevokedAt.IsZero():
		o.State = "revoked"
	case !f.now().Before(t.ExpiresAt):
		o.State = "expired"
	case t.Uses >= t.MaxUses:
		o.State = "used_up"
	}
	return o
}

type (
	idIn struct {
		ID string `path:"id" maxLength:"64"`
	}
	edgeListIn struct {
		api.PageIn
		Site string `query:"site" maxLength:"63"`
		Kind string `query:"kind" maxLength:"16"`
	}
	edgeListOut struct{ Body api.Page[edgeOut] }
	edgeOneOut  struct {
		ETag string `header:"ETag"`
		Body edgeOut
	}
	edgePatchIn struct {
		ID      string `path:"id" maxLength:"64"`
		IfMatch string `header:"If-Match"`
		Body    struct {
			Name     *string            `json:"name,omitempty"`
			Site     *string            `json:"site,omitempty"`
			Labels   *map[string]string `json:"labels,omitempty"`
			Rules    *rulesIO           `json:"rules,omitempty"`
			Cordoned *bool              `json:"cordoned,omitempty"`
		}
	}
	none struct{}

	tokenIn struct {
		Body struct {
			Kind        string            `json:"kind" enum:"extender,carrier,webproxy,router,host"`
			Site        string            `json:"site,omitempty"`
			Labels      map[string]string `json:"labels,omitempty"`
			Rules       *rulesIO          `json:"rules,omitempty" doc:"what extenders made with it may dial"`
			Comment     string            `json:"comment,omitempty"`
			MaxUses     int               `json:"max_uses,omitempty" doc:"default 1"`
			TTLSeconds  int64             `json:"ttl_s,omitempty" doc:"seconds; default 86400" minimum:"0" maximum:"31622400"`
			AllowRepeat bool              `json:"allow_repeat,omitempty" doc:"a node of the same name may enrol again; its former identity ends"`
			Downloads   string            `json:"downloads,omitempty" maxLength:"500" doc:"https URL under which machines find the binaries, for the cloud-init text"`
		}
	}
	tokenMadeOut struct {
		Body struct {
			TokenOut
			Token string `json:"token" doc:"shown this once"`
			// Core is where nodes dial to, which need not be where the caller came in.
			Core string `json:"core,omitempty" doc:"address for the new node's --core"`
			// SiteCreated warns of a slip of the pen.
			SiteCreated bool     `json:"site_created" doc:"there was no site of this name: it was made with the token"`
			Commands    Commands `json:"commands" doc:"texts to run on the new node, with the token in them"`
		}
	}
	tokenListIn  struct{ api.PageIn }
	tokenListOut struct{ Body api.Page[TokenOut] }
)

// Routes registers /edges and /enrolment-tokens.
func (f *Fleet) Routes(fr *api.Frame) {
	api.Register(fr, api.Op{Method: "GET", Path: "/edges", ID: "list-edges", Summary: "List edge nodes", Tag: "edges", Who: api.NeedsSomewhere(api.EdgesView)}, f.apiListEdges)
	api.Register(fr, api.Op{Method: "GET", Path: "/edges/{id}", ID: "get-edge", Summary: "Get an edge node", Tag: "edges", Who: api.NeedsSomewhere(api.EdgesView)}, f.apiGetEdge)
	api.Register(fr, api.Op{Method: "PATCH", Path: "/edges/{id}", ID: "patch-edge", Summary: "Change name, site, labels, rules or cordon of an edge node", Tag: "edges", Who: api.NeedsSomewhere(api.EdgesManage)}, f.apiPatchEdge)
	api.Register(fr, api.Op{Method: "POST", Path: "/edges/{id}/drain", ID: "drain-edge", Summary: "Give an edge node no new connections; live ones go on", Tag: "edges", Who: api.NeedsSomewhere(api.EdgesManage)}, f.apiDrainEdge)
	api.Register(fr, api.Op{Method: "POST", Path: "/edges/{id}/revoke", ID: "revoke-edge", Summary: "End an edge node's identity and tunnel for good", Tag: "edges", Who: api.NeedsSomewhere(api.EdgesManage)}, f.apiRevokeEdge)
	api.Register(fr, api.Op{Method: "DELETE", Path: "/edges/{id}", ID: "delete-edge", Summary: "Revoke and forget an edge node", Tag: "edges", Who: api.NeedsSomewhere(api.EdgesManage)}, f.apiDeleteEdge)
	api.Register(fr, api.Op{Method: "GET", Path: "/enrolment-tokens", ID: "list-enrolment-tokens", Summary: "List enrolment tokens", Tag: "enrolment-tokens", Who: api.NeedsSomewhere(api.EdgesView)}, f.apiListTokens)
	api.Register(fr, api.Op{Method: "POST", Path: "/enrolment-tokens", ID: "create-enrolment-token", Summary: "Create an enrolment token; its text is shown once", Tag: "enrolment-tokens", Who: api.NeedsSomewhere(api.EdgesManage), Status: 201, Sensitive: true}, f.apiCreateToken)
	api.Register(fr, api.Op{Method: "DELETE", Path: "/enrolment-tokens/{id}", ID: "revoke-enrolment-token", Summary: "Revoke an enrolment token", Tag: "enrolment-tokens", Who: api.NeedsSomewhere(api.EdgesManage)}, f.apiRevokeToken)
}

// actor is the caller as audit names it.
func actor(ctx context.Context) audit.Actor {
	p := api.PrincipalFrom(ctx)
	if p == nil {
		return audit.Actor{Kind: "anonymous"}
	}
	a := audit.Actor{Kind: "user", ID: p.UserID, Name: p.UserName, Via: p.Via}
	if p.Source.IsValid() {
		a.Source = p.Source.String()
	}
	return a
}

func (f *Fleet) apiListEdges(ctx context.Context, in *edgeListIn) (*edgeListOut, error) {
	var after string
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	rows, err := listEdges(ctx, f.c.DB, after, in.Site, in.Kind, api.Sees(ctx, api.EdgesView), in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := make([]edgeOut, 0, len(rows))
	for i := range rows {
		out = append(out, f.show(&rows[i]))
	}
	return &edgeListOut{Body: api.Paged(out, in.Limit, func(e edgeOut) any { return e.ID })}, nil
}

func (f *Fleet) apiGetEdge(ctx context.Context, in *idIn) (*edgeOneOut, error) {
	e, _, err := f.seen(ctx, f.c.DB, in.ID)
	if err != nil {
		return nil, err
	}
	return f.one(&e), nil
}

func (f *Fleet) one(e *nodeRow) *edgeOneOut {
	return &edgeOneOut{ETag: api.ETag(e.Version), Body: f.show(e)}
}

func (f *Fleet) apiPatchEdge(ctx context.Context, in *edgePatchIn) (*edgeOneOut, error) {
	var bad []api.FieldError
	b := in.Body
	if b.Name != nil && !namePattern.MatchString(*b.Name) {
		bad = append(bad, api.FieldError{Field: "name", Message: "must be 1 to 63 of a-z, 0-9, '-' and '.'"})
	}
	if b.Site != nil && *b.Site != "" && !sitePattern.MatchString(*b.Site) {
		bad = append(bad, api.FieldError{Field: "site", Message: "must be 1 to 63 of a-z, 0-9 and '-'"})
	}
	if b.Labels != nil {
		bad = append(bad, checkLabels(*b.Labels)...)
	}
	if b.Rules != nil {
		bad = append(bad, checkRules(b.Rules.wire())...)
	}
	if len(bad) > 0 {
		return nil, api.Invalid(bad...)
	}
	e, err := f.change(ctx, in.ID, audit.EdgeChanged, func(e *nodeRow, fields map[string]string) error {
		if err := api.CheckMatch(in.IfMatch, e.Version); err != nil {
			return err
		}
		set(fields, "name", &e.Name, b.Name)
		set(fields, "site", &e.Site, b.Site)
		if e.Kind == wire.Extender && e.Site == "" {
			return api.Invalid(api.FieldError{Field: "site", Message: "an extender needs a site"})
		}
		if b.Labels != nil && !maps.Equal(e.Labels, *b.Labels) {
			e.Labels = *b.Labels
			fields["labels"] = fmt.Sprint(e.Labels)
		}
		if b.Rules != nil {
			e.Rules = b.Rules.wire()
			fields["rules"] = fmt.Sprintf("allow %v deny %v ports %v", e.Rules.Allow, e.Rules.Deny, e.Rules.Ports)
		}
		if b.Cordoned != nil && *b.Cordoned != e.Cordoned {
			e.Cordoned = *b.Cordoned
			fields["cordoned"] = fmt.Sprint(e.Cordoned)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f.one(e), nil
}

func set(fields map[string]string, name string, to *string, from *string) {
	if from != nil && *from != *to {
		fields[name] = *to + " → " + *from
		*to = *from
	}
}

// change edits a node's row in one transaction, audited; a change of nothing
// writes nothing.
func (f *Fleet) change(ctx context.Context, id string, event audit.Type, edit func(*nodeRow, map[string]string) error) (*nodeRow, error) {
	var e nodeRow
	err := f.c.DB.Tx(ctx, func(tx *db.Tx) error {
		var err error
		var group string
		if e, group, err = f.seen(ctx, tx, id); err != nil {
			return err
		}
		before := e.Site
		fields := map[string]string{}
		if err := edit(&e, fields); err != nil {
			return err
		}
		var links []api.Link
		if e.Site != before {
			l, err := siteLink(ctx, tx, e.Site)
			if err != nil {
				return err
			}
			links = append(links, l)
		}
		if err := guardedEdge(id).Administer(ctx, group, group, links...); err != nil {
			return err
		}
		if len(fields) == 0 {
			return nil
		}
		if err := patchEdge(ctx, tx, e); err != nil {
			return err
		}
		e.Version++
		to, err := siteGroup(ctx, tx, e.Site)
		if err != nil {
			return err
		}
		if err := api.Notify(ctx, tx, "edge", id, to, group); err != nil {
			return err
		}
		return f.c.Audit.Append(ctx, tx, audit.Event{Type: event, Outcome: audit.OK, Actor: actor(ctx), Group: to,
			Object: audit.Object{Kind: "edge", ID: e.ID, Name: e.Name}, Fields: fields})
	})
	if err != nil {
		return nil, err
	}
	// The watcher would do the same a moment later; this way the caller sees it done.
	if err := f.recheck(ctx, id); err != nil {
		f.log.Warn("edge changed", telemetry.KeyNode, id, telemetry.KeyErr, err)
	}
	return &e, nil
}

func (f *Fleet) apiDrainEdge(ctx context.Context, in *idIn) (*edgeOneOut, error) {
	e, err := f.change(ctx, in.ID, audit.EdgeDrained, func(e *nodeRow, fields map[string]string) error {
		if !e.Cordoned {
			e.Cordoned = true
			fields["cordoned"] = "true"
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f.one(e), nil
}

// Revoke ends a node's identity: its tunnel dies at once, its certificates go
// on the revocation list, and it never comes back. With forget its row goes too.
func (f *Fleet) Revoke(ctx context.Context, by audit.Actor, id string, forget bool) error {
	err := f.c.DB.Tx(ctx, func(tx *db.Tx) error {
		e, group, err := f.seen(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := guardedEdge(id).Administer(ctx, group, ""); err != nil {
			return err
		}
		now := micros(f.now())
		event := audit.EdgeRevoked
		if forget {
			event = audit.EdgeDeleted
			_, err = tx.ExecContext(ctx, qDeleteEdge, id)
		} else if e.RevokedAt.IsZero() {
			_, err = tx.ExecContext(ctx, qRevokeEdge, id, now)
		} else {
			return nil
		}
		if err != nil {
			return fmt.Errorf("revoke edge: %w", db.Classify(err))
		}
		if _, err := tx.ExecContext(ctx, qRevokeCerts, id, now); err != nil {
			return fmt.Errorf("revoke edge: %w", db.Classify(err))
		}
		if err := api.Notify(ctx, tx, "edge", id, group); err != nil {
			return err
		}
		return f.c.Audit.Append(ctx, tx, audit.Event{Type: event, Outcome: audit.OK, Actor: by, Group: group,
			Object: audit.Object{Kind: "edge", ID: e.ID, Name: e.Name}, Fields: map[string]string{"serial": e.Serial}})
	})
	if err != nil {
		return err
	}
	f.ca.forgetCRL()
	why := errRevokedNode()
	if forget {
		why = errUnknownNode()
	}
	f.disconnect(id, why)
	return nil
}

func (f *Fleet) apiRevokeEdge(ctx context.Context, in *idIn) (*edgeOneOut, error) {
	if err := f.Revoke(ctx, actor(ctx), in.ID, false); err != nil {
		return nil, err
	}
	return f.apiGetEdge(ctx, in)
}

func (f *Fleet) apiDeleteEdge(ctx context.Context, in *idIn) (*none, error) {
	return nil, f.Revoke(ctx, actor(ctx), in.ID, true)
}

func (f *Fleet) apiListTokens(ctx context.Context, in *tokenListIn) (*tokenListOut, error) {
	var after string
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	rows, err := listTokens(ctx, f.c.DB, after, api.Sees(ctx, api.EdgesView), in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := make([]TokenOut, 0, len(rows))
	for _, t := range rows {
		out = append(out, f.showToken(t))
	}
	return &tokenListOut{Body: api.Paged(out, in.Limit, func(t TokenOut) any { return t.ID })}, nil
}

func (f *Fleet) apiCreateToken(ctx context.Context, in *tokenIn) (*tokenMadeOut, error) {
	b := in.Body
	s := TokenSpec{Kind: b.Kind, Site: b.Site, Labels: b.Labels, Comment: b.Comment, MaxUses: b.MaxUses,
		TTL: time.Duration(b.TTLSeconds) * time.Second, AllowRepeat: b.AllowRepeat}
	if b.Rules != nil {
		s.Rules = b.Rules.wire()
	}
	if bad := checkDownloads(b.Downloads); len(bad) > 0 {
		return nil, api.Invalid(bad...)
	}
	id, text, siteMade, err := f.createToken(ctx, actor(ctx), s)
	if err != nil {
		return nil, err
	}
	t, err := getToken(ctx, f.c.DB, id)
	if err != nil {
		return nil, err
	}
	out := &tokenMadeOut{}
	out.Body.TokenOut, out.Body.Token = f.showToken(t), text
	if len(f.c.Addresses) > 0 {
		out.Body.Core = f.c.Addresses[0]
	}
	core := out.Body.Core
	if core == "" {
		core = exampleCore
	}
	out.Body.SiteCreated, out.Body.Commands = siteMade, commands(b.Kind, text, core, b.Downloads)
	return out, nil
}

func (f *Fleet) apiRevokeToken(ctx context.Context, in *idIn) (*none, error) {
	return nil, f.RevokeToken(ctx, actor(ctx), in.ID)
}

// SiteUses names up to ten edges and tokens that use a site.
func (f *Fleet) SiteUses(ctx context.Context, q db.Querier, site string) ([]string, error) {
	return collect(ctx, q, "uses of a site", func(s scanner) (name string, err error) {
		err = s.Scan(&name)
		return name, err
	}, qSiteUses, site, micros(f.now()))
}
