package recording

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

type filesOut struct {
	Body struct {
		Items []File `json:"items"`
	}
}

func (s *Store) handleFiles(ctx context.Context, in *api.IDIn) (*filesOut, error) {
	r, _, err := s.visible(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &filesOut{}
	out.Body.Items, err = s.files(ctx, s.cfg.DB, r.ID)
	return out, err
}

type ticketIn struct {
	api.IDIn
	File string `path:"file" maxLength:"64"`
}

type ticketOut struct {
	Body struct {
		Ticket    string    `json:"ticket"`
		Path      string    `json:"path" doc:"where to get the file, below /api/v1"`
		ExpiresAt time.Time `json:"expires_at"`
	}
}

func (s *Store) handleTicket(ctx context.Context, in *ticketIn) (*ticketOut, error) {
	if _, _, err := s.overseen(ctx, in.ID); err != nil {
		return nil, err
	}
	r, p, err := s.content(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	f, err := scanFile(s.cfg.DB.QueryRowContext(ctx, getFileSQL, in.File))
	if errors.Is(err, db.ErrNotFound) || err == nil && f.RecordingID != r.ID {
		return nil, api.Missing("file", in.File)
	}
	if err != nil {
		return nil, err
	}
	if f.Status != "stored" {
		return nil, api.Conflict("not_stored", "No copy of this file is kept: "+strings.ReplaceAll(f.Status, "_", " ")+".")
	}
	out := &ticketOut{}
	out.Body.Ticket, out.Body.ExpiresAt, err = s.ticket(ctx, f.ID, p.UserID)
	out.Body.Path = "/recording-files/" + out.Body.Ticket
	return out, err
}

func (s *Store) serveFile(fr *api.Frame, w http.ResponseWriter, req *http.Request) {
	ctx := req.Context()
	p := api.PrincipalFrom(ctx)
	var f File
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		var id string
		if err := tx.QueryRowContext(ctx, takeTicketSQL, ticketHash(req.PathValue("ticket")), p.UserID, s.cfg.Now().UnixMicro()).Scan(&id); err != nil {
			return db.Classify(err)
		}
		var err error
		if f, err = scanFile(tx.QueryRowContext(ctx, getFileSQL, id)); err != nil {
			return err
		}
		if f.Status != "stored" {
			return db.ErrNotFound
		}
		r, err := s.Get(ctx, tx, f.RecordingID)
		if err != nil {
			return err
		}
		if !access.Sees(p.Scope(api.RecordingsView), access.Scope{}, r.Group) {
			return db.ErrNotFound
		}
		return s.noteIn(ctx, tx, audit.RecordingFileSent, p, r, map[string]string{"file": f.ID, "sha256": f.SHA256})
	})
	if errors.Is(err, db.ErrNotFound) {
		err = api.Missing("ticket", "Tickets hold for one download within a minute.")
	}
	if err != nil {
		fr.Fail(w, req, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="`+f.ID+`.bin"`)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.FormatInt(f.Size, 10))
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w)}
	defer out.rc.SetWriteDeadline(time.Time{})
	if err := s.copyFile(ctx, out, f); err != nil {
		if !out.wrote {
			w.Header().Del("Content-Length")
			fr.Fail(w, req, err)
			return
		}
		// The length was announced: the client notices that it got less.
		s.cfg.Log.Error("stored file not sent to its end", "recording", f.RecordingID, "file", f.ID, "err", err)
	}
}
