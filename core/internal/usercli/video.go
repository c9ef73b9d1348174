package usercli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// video is a video of a web session that core makes.
type video struct {
	ID       string  `json:"id"`
	State    string  `json:"state"`
	Progress float64 `json:"progress"`
	Error    string  `json:"error"`
	Size     int64   `json:"size_bytes"`
}

// dropAfter bounds the last request of an export, which removes the video.
const dropAfter = 5 * time.Second

// video has core make a video, saves it, and has core forget it.
func (r recordingsExport) video(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	name := r.File
	if name == "" {
		name = plain(r.ID) + "." + r.Format
	}
	to := func(body io.Reader) (int64, error) {
		if name == "-" {
			return io.Copy(e.Out, body)
		}
		return save(name, body)
	}
	n, err := fetchVideo(e.ctx, c, r, func(part float64) error {
		if name == "-" || e.json {
			return nil
		}
		_, err := fmt.Fprintf(e.Err, "\rmaking the video: %3.0f %%", 100*part)
		if part >= 1 {
			_, err = fmt.Fprintln(e.Err)
		}
		return err
	}, to)
	switch {
	case err != nil:
		return err
	case name == "-":
		return nil
	case e.json:
		return e.printJSON(map[string]any{"file": name, "size": n})
	}
	return e.printf("%s: %s\n", name, size(n))
}

// fetchVideo asks for a video, waits until it is made, and gives it to the
// function to. Whatever happens, core is told to forget it.
func fetchVideo(ctx context.Context, c *client, r recordingsExport, tell func(float64) error, to func(io.Reader) (int64, error)) (n int64, err error) {
	path := "/recordings/" + url.PathEscape(r.ID) + "/exports"
	var v video
	if err := c.do(ctx, http.MethodPost, path, map[string]any{"format": r.Format, "events": r.Events}, &v); err != nil {
		return 0, err
	}
	path += "/" + url.PathEscape(v.ID)
	defer func() {
		// Also when ctx ended: core should not go on for nobody.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropAfter)
		defer cancel()
		err = errors.Join(err, c.do(ctx, http.MethodDelete, path, nil, nil))
	}()
	for v.State != "done" {
		if v.State == "failed" {
			return 0, fmt.Errorf("the video was not made: %s", plain(v.Error))
		}
		if err := tell(v.Progress); err != nil {
			return 0, err
		}
		if err := c.do(ctx, http.MethodGet, path+"?wait=20", nil, &v); err != nil {
			return 0, err
		}
	}
	if err := tell(1); err != nil {
		return 0, err
	}
	resp, err := c.open(ctx, http.MethodGet, path+"/file", nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if n, err = to(resp.Body); err == nil && n != v.Size {
		err = fmt.Errorf("got %d of %d bytes of the video", n, v.Size)
	}
	return n, err
}
