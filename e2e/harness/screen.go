package harness

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Screen is a viewer of a web session: an RFB client (RFC 6143) of its own, so
// that tests judge pixels and not what the product's code says of them.
type Screen struct {
	ws   *websocket.Conn
	conn net.Conn

	write sync.Mutex // one message at a time

	mu      sync.Mutex // guards all below
	picture *image.RGBA
	updates int
	bytes   int64
	copied  []string
	changed chan struct{} // closed and replaced at each change
	err     error         // why it ended
}

// Screen opens the picture of a session; watch is for those who only look.
func (a *API) Screen(ctx context.Context, id string, watch bool) (*Screen, error) {
	url := strings.Replace(a.URL, "https://", "wss://", 1) + "/api/v1/web-sessions/" + id + "/screen"
	if watch {
		url += "?watch=1"
	}
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: a.http, Subprotocols: []string{"binary"}, HTTPHeader: http.Header{"Authorization": {"Bearer " + a.Token}},
	})
	if err != nil {
		return nil, fmt.Errorf("open the screen: %w", err)
	}
	ws.SetReadLimit(64 << 20)
	s := &Screen{ws: ws, conn: websocket.NetConn(context.WithoutCancel(ctx), ws, websocket.MessageBinary), changed: make(chan struct{})}
	in := bufio.NewReaderSize(&counted{s}, 64<<10)
	stop := context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Now()) })
	err = s.handshake(in)
	stop()
	if err != nil {
		ws.CloseNow()
		return nil, fmt.Errorf("RFB handshake: %w", err)
	}
	go s.read(in)
	return s, nil
}

// counted counts what comes.
type counted struct{ s *Screen }

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.s.conn.Read(b)
	c.s.mu.Lock()
	c.s.bytes += int64(n)
	c.s.mu.Unlock()
	return n, err
}

// Encodings that the client asks for: RFC 6143 §7.7, and Tight as the community's
// specification of the protocol has it.
const (
	encodingRaw         = 0
	encodingTight       = 7
	encodingDesktopSize = -223
)

// maxSide bounds what a server may call a screen, in pixels.
const maxSide = 8192

// handshake is RFC 6143 §7.1 to §7.3 and the client's first wishes.
func (s *Screen) handshake(in io.Reader) error {
	version := make([]byte, 12)
	if _, err := io.ReadFull(in, version); err != nil {
		return err
	}
	if string(version) != "RFB 003.008\n" {
		return fmt.Errorf("version %q", version)
	}
	if _, err := s.conn.Write(version); err != nil {
		return err
	}
	var n [1]byte
	if _, err := io.ReadFull(in, n[:]); err != nil {
		return err
	}
	kinds := make([]byte, n[0])
	if _, err := io.ReadFull(in, kinds); err != nil {
		return err
	}
	if len(kinds) != 1 || kinds[0] != 1 {
		return fmt.Errorf("security types %v, want none", kinds)
	}
	if _, err := s.conn.Write([]byte{1}); err != nil {
		return err
	}
	var result uint32
	if err := binary.Read(in, binary.BigEndian, &result); err != nil {
		return err
	}
	if result != 0 {
		return fmt.Errorf("refused with %d", result)
	}
	if _, err := s.conn.Write([]byte{1}); err != nil { // shared
		return err
	}
	init := make([]byte, 24)
	if _, err := io.ReadFull(in, init); err != nil {
		return err
	}
	name := binary.BigEndian.Uint32(init[20:])
	if name > 4096 {
		return fmt.Errorf("a name of %d bytes", name)
	}
	if _, err := io.CopyN(io.Discard, in, int64(name)); err != nil {
		return err
	}
	if err := s.size(int(binary.BigEndian.Uint16(init)), int(binary.BigEndian.Uint16(init[2:]))); err != nil {
		return err
	}
	// 32 bits, true colour, little endian: B, G, R, nothing.
	msg := []byte{0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0}
	wish := []int32{encodingTight, encodingRaw, encodingDesktopSize}
	msg = append(msg, 2, 0, 0, byte(len(wish)))
	for _, e := range wish {
		msg = binary.BigEndian.AppendUint32(msg, uint32(e))
	}
	if err := s.send(msg); err != nil {
		return err
	}
	return s.ask(false)
}

func (s *Screen) size(w, h int) error {
	if w < 1 || h < 1 || w > maxSide || h > maxSide {
		return fmt.Errorf("a screen of %d by %d", w, h)
	}
	s.mu.Lock()
	s.picture = image.NewRGBA(image.Rect(0, 0, w, h))
	s.mu.Unlock()
	return nil
}

func (s *Screen) send(msg []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.conn.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	_, err := s.conn.Write(msg)
	return err
}

// ask requests an update of everything.
func (s *Screen) ask(incremental bool) error {
	s.mu.Lock()
	b := s.picture.Bounds()
	s.mu.Unlock()
	msg := []byte{3, 0, 0, 0, 0, 0}
	if incremental {
		msg[1] = 1
	}
	msg = binary.BigEndian.AppendUint16(msg, uint16(b.Dx()))
	return s.send(binary.BigEndian.AppendUint16(msg, uint16(b.Dy())))
}

// read takes what the server says until the end.
func (s *Screen) read(in *bufio.Reader) {
	err := s.messages(in)
	s.mu.Lock()
	s.err = err
	s.tellLocked()
	s.mu.Unlock()
}

func (s *Screen) tellLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Screen) messages(in *bufio.Reader) error {
	for {
		kind, err := in.ReadByte()
		if err != nil {
			return err
		}
		switch kind {
		case 0: // FramebufferUpdate
			if err := s.update(in); err != nil {
				return err
			}
			if err := s.ask(true); err != nil {
				return err
			}
		case 2: // Bell
		case 3: // ServerCutText
			head := make([]byte, 7)
			if _, err := io.ReadFull(in, head); err != nil {
				return err
			}
			n := binary.BigEndian.Uint32(head[3:])
			if n > 32<<20 {
				return fmt.Errorf("a clipboard of %d bytes", n)
			}
			text := make([]byte, n)
			if _, err := io.ReadFull(in, text); err != nil {
				return err
			}
			runes := make([]rune, len(text)) // ISO 8859-1
			for i, c := range text {
				runes[i] = rune(c)
			}
			s.mu.Lock()
			s.copied = append(s.copied, string(runes))
			s.tellLocked()
			s.mu.Unlock()
		default:
			return fmt.Errorf("message %d from the server", kind)
		}
	}
}

func (s *Screen) update(in *bufio.Reader) error {
	head := make([]byte, 3)
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	for range binary.BigEndian.Uint16(head[1:]) {
		var r struct {
			X, Y, W, H uint16
			Encoding   int32
		}
		if err := binary.Read(in, binary.BigEndian, &r); err != nil {
			return err
		}
		switch r.Encoding {
		case encodingDesktopSize:
			if err := s.size(int(r.W), int(r.H)); err != nil {
				return err
			}
		case encodingRaw:
			if err := s.raw(in, int(r.X), int(r.Y), int(r.W), int(r.H)); err != nil {
				return err
			}
		case encodingTight:
			if err := s.tight(in, int(r.X), int(r.Y), int(r.W), int(r.H)); err != nil {
				return fmt.Errorf("tight rectangle of %d by %d: %w", r.W, r.H, err)
			}
		default:
			return fmt.Errorf("encoding %d, not asked for", r.Encoding)
		}
	}
	s.mu.Lock()
	s.updates++
	s.tellLocked()
	s.mu.Unlock()
	return nil
}

func (s *Screen) raw(in io.Reader, x, y, w, h int) error {
	pixels := make([]byte, 4*w*h)
	if _, err := io.ReadFull(in, pixels); err != nil {
		return err
	}
	for i := 0; i < len(pixels); i += 4 {
		pixels[i], pixels[i+2] = pixels[i+2], pixels[i]
	}
	return s.draw(x, y, w, h, func(i int) []byte { return pixels[4*i:] })
}

// draw paints a rectangle whose i-th pixel begins with red, green, blue.
func (s *Screen) draw(x, y, w, h int, at func(i int) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.picture.Bounds(); x+w > b.Dx() || y+h > b.Dy() {
		return fmt.Errorf("a rectangle %d+%d by %d+%d on a screen of %v", x, w, y, h, b)
	}
	for row := range h {
		to := s.picture.Pix[s.picture.PixOffset(x, y+row):]
		for col := range w {
			copy(to[4*col:], at(row*w + col)[:3])
			to[4*col+3] = 0xff
		}
	}
	return nil
}

// Picture is a copy of what the screen shows.
func (s *Screen) Picture() *image.RGBA {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.picture
	c.Pix = append([]byte(nil), s.picture.Pix...)
	return &c
}

// Save writes the picture as PNG.
func (s *Screen) Save(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(png.Encode(f, s.Picture()), f.Close())
}

// Received is how many bytes came so far, and how many updates.
func (s *Screen) Received() (bytes int64, updates int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes, s.updates
}

// Copied are the texts that came out of the browser's clipboard.
func (s *Screen) Copied() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.copied...)
}

// Share is how much of a picture has a colour, more or less: 0 to 1.
func Share(p *image.RGBA, c color.RGBA) float64 {
	n := 0
	for i := 0; i+3 < len(p.Pix); i += 4 {
		if Near(color.RGBA{p.Pix[i], p.Pix[i+1], p.Pix[i+2], 0xff}, c, 12) {
			n++
		}
	}
	return float64(n) / float64(len(p.Pix)/4)
}

// Wait waits until the picture is as f wants it.
func (s *Screen) Wait(ctx context.Context, limit time.Duration, what string, f func(*image.RGBA) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		s.mu.Lock()
		changed, ended := s.changed, s.err
		s.mu.Unlock()
		err := f(s.Picture())
		if err == nil {
			return nil
		}
		if ended != nil {
			return fmt.Errorf("%s: the screen has ended: %w (%w)", what, ended, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		}
	}
}

// Shows waits until at least a third of the picture has a colour.
func (s *Screen) Shows(ctx context.Context, limit time.Duration, what string, c color.RGBA) error {
	return s.Wait(ctx, limit, what, func(p *image.RGBA) error {
		if got := Share(p, c); got < 0.33 {
			return fmt.Errorf("%.0f%% of the picture is %v", 100*got, c)
		}
		return nil
	})
}

// Ended waits until the server has ended the screen and returns why.
func (s *Screen) Ended(ctx context.Context, limit time.Duration) (websocket.CloseError, error) {
	var why websocket.CloseError
	err := Until(ctx, limit, "the screen ends", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err == nil {
			return errors.New("it is open")
		}
		errors.As(s.err, &why)
		return nil
	})
	return why, err
}

// Close ends the viewer, not the session.
func (s *Screen) Close() { s.ws.CloseNow() }
