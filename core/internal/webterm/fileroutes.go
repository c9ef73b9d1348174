package webterm

import (
	"context"

	"caponier/core/internal/api"
)

func (s *Service) fileRoutes(f *api.Frame) {
	const tag = "terminal-sessions"
	const base = "/terminal-sessions/{id}/files"
	api.Register(f, api.Op{
		Method: "GET", Path: base, ID: "list-terminal-files", Tag: tag, Who: api.Self(),
		Summary: "List a directory on the target of a terminal",
	}, s.handleListFiles)
	api.Register(f, api.Op{
		Method: "POST", Path: base + "/mkdir", ID: "make-terminal-directory", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Make a directory, and those above it where they are missing",
	}, s.handleMkdir)
	api.Register(f, api.Op{
		Method: "POST", Path: base + "/rename", ID: "rename-terminal-file", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Rename or move a file or directory; nothing is replaced",
	}, s.handleRename)
	api.Register(f, api.Op{
		Method: "POST", Path: base + "/delete", ID: "delete-terminal-file", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Delete a file, or a directory with everything in it",
	}, s.handleDelete)
	api.Register(f, api.Op{
		Method: "GET", Path: base + "/partial", ID: "get-terminal-upload", Tag: tag, Who: api.Self(),
		Summary: "How far an interrupted upload of a file came",
	}, s.handlePartial)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: base + "/content", ID: "download-terminal-file", Tag: tag, Who: api.Self(), Type: "application/octet-stream",
		Summary: "Download ?path= (a directory comes as a zip archive); Range: bytes=N- resumes a file",
	}, s.handleDownload)
	api.RegisterRaw(f, api.Op{
		Method: "PUT", Path: base + "/content", ID: "upload-terminal-file", Tag: tag, Who: api.Self(), Type: "application/json", MaxBody: -1,
		Summary: "Upload to ?path= the bytes from ?offset= on; with ?size= the file appears when all of it is there; ?replace=true replaces, ?parents=true makes directories",
	}, s.handleUpload)
}

type pathIn struct {
	ID   string `path:"id" maxLength:"64"`
	Path string `query:"path" maxLength:"4096" doc:"absolute, or from the home directory (also empty or ~)"`
}

type directoryOut struct{ Body *Directory }

func (s *Service) handleListFiles(ctx context.Context, in *pathIn) (*directoryOut, error) {
	out := &directoryOut{}
	err := s.withFiles(ctx, in.ID, func(x *session, h *filesHandle) error {
		p, err := h.clean(in.Path)
		if err != nil {
			return err
		}
		out.Body, err = x.list(ctx, h, p)
		return err
	})
	return out, err
}

// withFiles runs f with the SFTP session of a terminal of the caller.
func (s *Service) withFiles(ctx context.Context, id string, f func(x *session, h *filesHandle) error) error {
	x, _, err := s.find(ctx, id)
	if err != nil {
		return err
	}
	h, release, err := x.files(ctx)
	if err != nil {
		return err
	}
	defer release()
	return f(x, h)
}

type mkdirIn struct {
	ID   string `path:"id" maxLength:"64"`
	Body struct {
		Path string `json:"path" minLength:"1" maxLength:"4096"`
	}
}

func (s *Service) handleMkdir(ctx context.Context, in *mkdirIn) (*struct{}, error) {
	return nil, s.withFiles(ctx, in.ID, func(_ *session, h *filesHandle) error {
		p, err := h.clean(in.Body.Path)
		if err != nil {
			return err
		}
		return fileError(makeDirs(h.c, p), p)
	})
}

type renameIn struct {
	ID   string `path:"id" maxLength:"64"`
	Body struct {
		From string `json:"from" minLength:"1" maxLength:"4096"`
		To   string `json:"to" minLength:"1" maxLength:"4096"`
	}
}

func (s *Service) handleRename(ctx context.Context, in *renameIn) (*struct{}, error) {
	return nil, s.withFiles(ctx, in.ID, func(_ *session, h *filesHandle) error {
		from, err := h.clean(in.Body.From)
		if err != nil {
			return err
		}
		to, err := h.clean(in.Body.To)
		if err != nil {
			return err
		}
		if _, err := h.c.Lstat(to); err == nil {
			return api.Conflict("exists", "There is something by this name already.")
		}
		return fileError(h.c.Rename(from, to), from)
	})
}

type deleteIn struct {
	ID   string `path:"id" maxLength:"64"`
	Body struct {
		Path      string `json:"path" minLength:"1" maxLength:"4096"`
		Recursive bool   `json:"recursive,omitempty" doc:"also a directory that is not empty"`
	}
}

func (s *Service) handleDelete(ctx context.Context, in *deleteIn) (*struct{}, error) {
	return nil, s.withFiles(ctx, in.ID, func(x *session, h *filesHandle) error {
		p, err := h.clean(in.Body.Path)
		if err != nil {
			return err
		}
		if p == "/" || p == h.home {
			return api.Conflict("protected", "The root and home directories are not deleted from here.")
		}
		return fileError(x.remove(ctx, h, p, in.Body.Recursive), p)
	})
}

type partialOut struct {
	Body struct {
		Offset int64 `json:"offset" doc:"go on from here; 0: begin anew"`
	}
}

func (s *Service) handlePartial(ctx context.Context, in *pathIn) (*partialOut, error) {
	out := &partialOut{}
	err := s.withFiles(ctx, in.ID, func(_ *session, h *filesHandle) error {
		p, err := h.clean(in.Path)
		if err != nil {
			return err
		}
		if i, err := h.c.Lstat(partName(p)); err == nil && i.Mode().IsRegular() {
			out.Body.Offset = resumeAt(i.Size())
		}
		return nil
	})
	return out, err
}
