package recording

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Routes registers the room's operations.
func (s *Store) Routes(f *api.Frame) {
	const tag = "recordings"
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings", ID: "list-recordings", Tag: tag, Who: api.Self(),
		Summary: "List recordings, newest first",
	}, s.handleList)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/search", ID: "search-recordings", Tag: tag, Who: api.Self(),
		Summary: "Search the transcripts of recordings, newest first",
	}, s.handleSearchAll)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}", ID: "get-recording", Tag: tag, Who: api.Self(), Summary: "Show a recording",
	}, s.handleGet)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/asciicast", ID: "get-recording-asciicast", Tag: tag, Who: api.Self(), Type: "application/x-asciicast",
		Summary: "Download a recording as asciicast v2; the last line tells its integrity",
	}, func(w http.ResponseWriter, r *http.Request) { s.serveCast(f, w, r) })
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/events", ID: "list-recording-events", Tag: tag, Who: api.Self(),
		Summary: "List the events on a recording's timeline",
	}, s.handleEvents)
	s.webRoutes(f)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/search", ID: "search-recording", Tag: tag, Who: api.Self(),
		Summary: "Search one recording's transcript",
	}, s.handleSearch)
	api.Register(f, api.Op{
		Method: "POST", Path: "/recordings/{id}/verify", ID: "verify-recording", Tag: tag, Who: api.Self(), Status: 200,
		Summary: "Read a recording through and tell whether it is intact",
	}, s.handleVerify)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/roles", ID: "list-recording-roles", Tag: tag, Who: api.NeedsSomewhere(api.RecordingsView),
		Summary: "List the roles that may see a recording",
	}, s.handleRoles)
	api.Register(f, api.Op{
		Method: "PUT", Path: "/recordings/{id}/roles/{role}", ID: "share-recording", Tag: tag, Who: api.NeedsSomewhere(api.RecordingsView),
		Status: 204, Summary: "Let a role's members see a recording",
	}, s.handleShare)
	api.Register(f, api.Op{
		Method: "DELETE", Path: "/recordings/{id}/roles/{role}", ID: "unshare-recording", Tag: tag, Who: api.NeedsSomewhere(api.RecordingsView),
		Status: 204, Summary: "Take a recording back from a role",
	}, s.handleUnshare)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/files", ID: "list-recording-files", Tag: tag, Who: api.Self(),
		Summary: "List transferred files",
	}, s.handleFiles)
	api.Register(f, api.Op{
		Method: "POST", Path: "/recordings/{id}/files/{file}/ticket", ID: "create-recording-file-ticket", Tag: tag,
		Who: api.NeedsSomewhere(api.RecordingsView), Status: 201, Sensitive: true,
		Summary: "First step of a download: a ticket for one download within a minute",
	}, s.handleTicket)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/recording-files/{ticket}", ID: "get-recording-file", Tag: tag, Who: api.NeedsSomewhere(api.RecordingsView), Type: "application/octet-stream",
		Summary: "Second step: the file",
	}, func(w http.ResponseWriter, r *http.Request) { s.serveFile(f, w, r) })
}

// may reports whether p may see r: by permission, as the user recorded if the
// setting allows it, or by a role it is shared with.
func (s *Store) may(ctx context.Context, p *api.Principal, r *Recording) (bool, error) {
	if access.Sees(p.Scope(api.RecordingsView), access.Scope{}, r.Group) || r.UserID != "" && r.UserID == p.UserID && s.cfg.Limits().OwnView {
		return true, nil
	}
	if s.cfg.RolesOf == nil {
		return false, nil
	}
	shared, err := s.sharedRoles(ctx, r.ID)
	if err != nil || len(shared) == 0 {
		return false, err
	}
	has, err := s.cfg.RolesOf(ctx, p.UserID)
	if err != nil {
		return false, fmt.Errorf("read roles of %s: %w", p.UserID, err)
	}
	return slices.ContainsFunc(shared, func(x Share) bool { return slices.Contains(has, x.RoleID) }), nil
}

// visible returns a recording the caller may see; one he may not see is
// missing to him.
func (s *Store) visible(ctx context.Context, id string) (*Recording, *api.Principal, error) {
	p := api.PrincipalFrom(ctx)
	r, err := s.Get(ctx, s.cfg.DB, id)
	if errors.Is(err, db.ErrNotFound) {
		return nil, nil, api.Missing("recording", id)
	}
	if err != nil {
		return nil, nil, err
	}
	ok, err := s.may(ctx, p, r)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, api.Missing("recording", id)
	}
	return r, p, nil
}

// overseen is visible for what only the permission allows, in the recording's
// access group: being shown one does not.
func (s *Store) overseen(ctx context.Context, id string) (*Recording, *api.Principal, error) {
	r, p, err := s.visible(ctx, id)
	if err == nil && !access.Sees(p.Scope(api.RecordingsView), access.Scope{}, r.Group) {
		return nil, nil, api.Missing("recording", id)
	}
	return r, p, err
}

// content is visible for what reads the file: the recording must still exist.
func (s *Store) content(ctx context.Context, id string) (*Recording, *api.Principal, error) {
	r, p, err := s.visible(ctx, id)
	if err == nil && r.Status == Expired {
		return nil, nil, &api.Problem{Status: http.StatusGone, Title: "The recording was removed when its retention ended.", Code: "expired"}
	}
	return r, p, err
}

// note writes an audit event of p about r.
func (s *Store) note(ctx context.Context, t audit.Type, p *api.Principal, r *Recording, fields map[string]string) error {
	return s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return s.noteIn(ctx, tx, t, p, r, fields) })
}

func (s *Store) noteIn(ctx context.Context, tx *db.Tx, t audit.Type, p *api.Principal, r *Recording, fields map[string]string) error {
	return s.cfg.Audit.Append(ctx, tx, audit.Event{
		Type: t, Outcome: audit.OK, Group: r.Group, Connection: r.ConnectionID, Fields: fields,
		Actor:  audit.By(p),
		Object: audit.Object{Kind: "recording", ID: r.ID},
	})
}

type recordingOut struct{ Body *Recording }

func (s *Store) handleGet(ctx context.Context, in *api.IDIn) (*recordingOut, error) {
	r, _, err := s.visible(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &recordingOut{Body: r}, nil
}

// The HTTP trailers of an asciicast: how the recording ends.
const (
	trailerStatus = "Caponier-Recording-Status"
	trailerText   = "Caponier-Recording-Text"
)
