package signin

import (
	"context"
	"net/http"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/user"
)

// AnchorView is an authority for client certificates as the API shows it.
type AnchorView struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	Enabled    bool         `json:"enabled"`
	Config     AnchorConfig `json:"config"`
	Bundle     string       `json:"bundle_pem"`
	Subjects   []string     `json:"subjects" doc:"Whose certificates are in the bundle."`
	NotAfter   time.Time    `json:"not_after" doc:"When the first of them expires."`
	CRLUntil   time.Time    `json:"crl_until,omitzero" doc:"Until when the first of its revocation lists is current."`
	CRLEntries int          `json:"crl_entries" doc:"Certificates revoked."`
	CRLAt      time.Time    `json:"crl_at,omitzero" doc:"When a list was loaded last."`
	CreatedAt  time.Time    `json:"created_at"`
	Version    int64        `json:"version"`
}

func (s *Service) showAnchor(ctx context.Context, a Anchor) AnchorView {
	v := AnchorView{ID: a.ID, Name: a.Name, Enabled: a.Enabled, Config: a.Config, Bundle: a.Bundle, Subjects: []string{},
		CRLAt: a.CRLAt, CreatedAt: a.CreatedAt, Version: a.Version}
	t, err := s.trust(ctx, s.db, a.ID, a.Version)
	if err != nil {
		return v
	}
	for _, c := range t.issuers {
		v.Subjects = append(v.Subjects, c.Subject.String())
		v.NotAfter = earlier(v.NotAfter, c.NotAfter)
	}
	for _, l := range t.crls {
		v.CRLEntries += len(l.RevokedCertificateEntries)
		v.CRLUntil = earlier(v.CRLUntil, l.NextUpdate)
	}
	return v
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b.UTC()
	}
	return a
}

type anchorsOutput struct{ Body api.Page[AnchorView] }

type anchorOutput struct {
	ETag string `header:"ETag"`
	Body AnchorView
}

type createAnchorInput struct{ Body AnchorDraft }

type putAnchorInput struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
	Body    AnchorDraft
}

type crlInput struct {
	ID   string `path:"id" maxLength:"40"`
	Body struct {
		CRL string `json:"crl_pem" doc:"One or more lists in PEM, signed by certificates of the bundle."`
	}
}

type ticketInput struct {
	Agent string `header:"User-Agent"`
	Kept  string `cookie:"__Host-caponier-ticket"`
}

func (s *Service) certificateRoutes(f *api.Frame) {
	const tag = "client-certificates"
	op := func(method, path, id, summary string, who api.Who) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: tag, Who: who, MaxBody: 512 << 10}
	}
	login := op(http.MethodPost, "/login/certificate", "login-certificate", "Finish a login by client certificate; opens a console session", api.Public())
	login.Sensitive, login.Tag = true, "login"
	api.Register(f, login, s.handleTicket)
	api.Register(f, op(http.MethodGet, "/certificate-anchors", "list-certificate-anchors", "List authorities whose client certificates sign people in", api.Needs(api.SettingsView)), s.handleAnchors)
	create := op(http.MethodPost, "/certificate-anchors", "create-certificate-anchor", "Trust an authority's client certificates; needs every permission", api.Needs(api.SettingsManage))
	create.Status = http.StatusCreated
	api.Register(f, create, s.handleCreateAnchor)
	api.Register(f, op(http.MethodGet, "/certificate-anchors/{id}", "get-certificate-anchor", "Show an authority for client certificates", api.Needs(api.SettingsView)), s.handleAnchor)
	api.Register(f, op(http.MethodPut, "/certificate-anchors/{id}", "put-certificate-anchor", "Change an authority for client certificates; needs every permission", api.Needs(api.SettingsManage)), s.handlePutAnchor)
	api.Register(f, op(http.MethodDelete, "/certificate-anchors/{id}", "delete-certificate-anchor", "Trust an authority no longer", api.Needs(api.SettingsManage)), s.handleDeleteAnchor)
	crl := op(http.MethodPut, "/certificate-anchors/{id}/crl", "load-certificate-crl", "Load a revocation list", api.Needs(api.SettingsManage))
	crl.MaxBody = 2 * maxCRL
	api.Register(f, crl, s.handleCRL)
}

func (s *Service) handleTicket(ctx context.Context, in *ticketInput) (*user.LoginOutput, error) {
	t, p, err := s.redeem(ctx, in.Kept, api.SourceFrom(ctx))
	if err != nil {
		return nil, err
	}
	out, err := s.openSession(ctx, t, p, in.Agent)
	if err != nil {
		return nil, err
	}
	gone := http.Cookie{Name: TicketCookie, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: -1}
	out.SetCookie = append(out.SetCookie, gone)
	return out, nil
}

func (s *Service) handleAnchors(ctx context.Context, _ *struct{}) (*anchorsOutput, error) {
	list, err := s.Anchors(ctx, s.db)
	if err != nil {
		return nil, err
	}
	return &anchorsOutput{api.Page[AnchorView]{Items: shown(list, func(a Anchor) AnchorView { return s.showAnchor(ctx, a) })}}, nil
}

func (s *Service) anchorAnswer(ctx context.Context, id string, a Anchor, err error) (*anchorOutput, error) {
	if err != nil {
		return nil, missing("certificate authority", id, err)
	}
	return &anchorOutput{api.ETag(a.Version), s.showAnchor(ctx, a)}, nil
}

func (s *Service) handleAnchor(ctx context.Context, in *idInput) (*anchorOutput, error) {
	a, err := s.Anchor(ctx, s.db, in.ID)
	return s.anchorAnswer(ctx, in.ID, a, err)
}

func (s *Service) handleCreateAnchor(ctx context.Context, in *createAnchorInput) (*anchorOutput, error) {
	if err := mayDecideWhoComesIn(ctx); err != nil {
		return nil, err
	}
	a, err := s.putAnchor(ctx, actorOf(ctx), "", nil, in.Body)
	return s.anchorAnswer(ctx, "", a, err)
}

func (s *Service) handlePutAnchor(ctx context.Context, in *putAnchorInput) (*anchorOutput, error) {
	if err := mayDecideWhoComesIn(ctx); err != nil {
		return nil, err
	}
	a, err := s.putAnchor(ctx, actorOf(ctx), in.ID, matchVersion(in.IfMatch), in.Body)
	return s.anchorAnswer(ctx, in.ID, a, err)
}

func (s *Service) handleDeleteAnchor(ctx context.Context, in *deleteInput) (*struct{}, error) {
	if err := mayDecideWhoComesIn(ctx); err != nil {
		return nil, err
	}
	return nil, missing("certificate authority", in.ID, s.deleteAnchor(ctx, actorOf(ctx), in.ID, matchVersion(in.IfMatch)))
}

// handleCRL takes more certificates out of use, and none back in: it needs less.
func (s *Service) handleCRL(ctx context.Context, in *crlInput) (*anchorOutput, error) {
	a, err := s.setCRL(ctx, actorOf(ctx), in.ID, []byte(in.Body.CRL))
	return s.anchorAnswer(ctx, in.ID, a, err)
}
