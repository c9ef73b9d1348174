package recording

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image"
	"image/png"
	"net/http"
	"os"
	"strconv"
	"time"

	"caponier/core/internal/api"
	"caponier/shared/rfb"
)

// Bounds of drawing pictures of web sessions.
const (
	// drawers is how many pictures are drawn at once; one per user.
	drawers = 2
	// shotBytes and shots bound the pictures kept to be asked for again.
	shotBytes = 32 << 20
	shots     = 200
	// replayPixels bounds a picture: 32 MiB of memory.
	replayPixels = 8 << 20
)

// shot is a drawn picture.
type shot struct {
	key string
	png []byte
}

// replay shows a recording's frames one after another.
type replay struct {
	rfb.Replay
	in   *frameReader
	next int // of frames
	v    *webView
}

func newReplay(v *webView, f *os.File) *replay {
	return &replay{Replay: rfb.Replay{MaxPixels: replayPixels}, in: &frameReader{f: f, parts: v.parts}, v: v}
}

// enter goes to the last keyframe at or before t, without showing it.
func (x *replay) enter(t time.Duration) {
	x.next = x.v.past(t)
	for x.next > 0 {
		if x.next--; x.v.frames[x.next].key {
			return
		}
	}
}

// show applies the frames up to t and reports whether there were any.
func (x *replay) show(ctx context.Context, t time.Duration) (changed bool, err error) {
	for ; x.next < len(x.v.frames) && x.v.frames[x.next].at <= t; x.next++ {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		data, err := x.in.read(x.v.frames[x.next])
		if err != nil {
			return changed, err
		}
		if err := x.Apply(data); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// draw paints the picture with the pointer into img, at its top left; what the
// picture does not cover is black.
func (x *replay) draw(img *image.RGBA) {
	clear(img.Pix)
	if x.Picture == nil {
		return
	}
	w, h := x.Picture.Size()
	w, h = min(w, img.Rect.Dx()), min(h, img.Rect.Dy())
	for y := range h {
		out := img.Pix[y*img.Stride:][:4*w]
		for i, v := range x.Picture.Row(y, 0, w) {
			binary.BigEndian.PutUint32(out[4*i:], v<<8|0xff)
		}
	}
	if x.Pointer != nil {
		drawCursor(img, x.Picture.Cursor(), *x.Pointer, w, h)
	}
}

// drawCursor lays the pointer's image over the picture of w×h.
func drawCursor(img *image.RGBA, c rfb.Cursor, at image.Point, w, h int) {
	for y := range c.Height {
		for x := range c.Width {
			p := at.Add(image.Pt(x, y)).Sub(c.Hot)
			if p.X < 0 || p.Y < 0 || p.X >= w || p.Y >= h {
				continue
			}
			src := c.RGBA[4*(y*c.Width+x):]
			dst, a := img.Pix[p.Y*img.Stride+4*p.X:], int(src[3])
			for i := range 3 {
				dst[i] = byte((int(src[i])*a + int(dst[i])*(255-a)) / 255)
			}
		}
	}
}

// servePicture answers with the picture at a moment.
func (s *Store) servePicture(fr *api.Frame, w http.ResponseWriter, req *http.Request) {
	at, _, err := seconds(req, "at")
	if err != nil {
		fr.Fail(w, req, err)
		return
	}
	r, v, f, err := s.openWeb(req.Context(), req.PathValue("id"), "picture")
	if err != nil {
		fr.Fail(w, req, err)
		return
	}
	defer f.Close()
	img, err := s.picture(req.Context(), api.PrincipalFrom(req.Context()).UserID, r, v, f, at)
	if err != nil {
		if errors.Is(err, rfb.ErrProtocol) {
			err = api.Conflict("no_picture", "The picture at this moment cannot be drawn: "+err.Error()+".")
		}
		fr.Fail(w, req, damagedProblem(err))
		return
	}
	w.Header().Set("Content-Type", "image/png")
	w.Header().Set("Content-Length", strconv.Itoa(len(img)))
	w.Header().Set("Cache-Control", "private, no-store")
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w)}
	defer out.rc.SetWriteDeadline(time.Time{})
	if _, err := out.Write(img); err != nil {
		s.cfg.Log.Debug("picture not sent", "recording", r.ID, "err", err)
	}
}

// picture draws the picture at a moment, or finds it among those drawn before.
func (s *Store) picture(ctx context.Context, user string, r *Recording, v *webView, f *os.File, at time.Duration) ([]byte, error) {
	if len(v.frames) == 0 {
		return nil, api.Missing("picture", "There is none in this recording.")
	}
	at = max(at, v.frames[0].at)
	n := v.past(at)
	key := r.ID + " " + strconv.FormatInt(int64(v.frames[n-1].at), 10)
	if img := s.shotOf(key); img != nil {
		return img, nil
	}
	done, err := s.drawer(ctx, user)
	if err != nil {
		return nil, err
	}
	defer done()
	x := newReplay(v, f)
	x.enter(at)
	if _, err := x.show(ctx, at); err != nil {
		return nil, err
	}
	img := image.NewRGBA(x.Picture.Bounds())
	x.draw(img)
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&b, img); err != nil {
		return nil, err
	}
	s.keepShot(key, b.Bytes())
	return b.Bytes(), nil
}

// drawer waits until this user draws nothing else and one of the places is free.
func (s *Store) drawer(ctx context.Context, user string) (done func(), err error) {
	mine := make(chan struct{})
	for {
		s.mu.Lock()
		busy := s.drawing[user]
		if busy == nil {
			s.drawing[user] = mine
		}
		s.mu.Unlock()
		if busy == nil {
			break
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	release := func() {
		s.mu.Lock()
		delete(s.drawing, user)
		s.mu.Unlock()
		close(mine)
	}
	select {
	case s.drawers <- struct{}{}:
		return func() { <-s.drawers; release() }, nil
	case <-ctx.Done():
		release()
		return nil, ctx.Err()
	}
}

func (s *Store) shotOf(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.shots {
		if x.key == key {
			return x.png
		}
	}
	return nil
}

// keepShot keeps a picture; the oldest ones make room.
func (s *Store) keepShot(key string, img []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shots = append(s.shots, shot{key, img})
	size := 0
	for i := len(s.shots) - 1; i >= 0; i-- {
		if size += len(s.shots[i].png); size > shotBytes || len(s.shots)-i > shots {
			s.shots = append([]shot(nil), s.shots[i+1:]...)
			return
		}
	}
}
