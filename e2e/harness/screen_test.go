package harness

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"image"
	"image/color"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// serveRFB plays a server of a 40 by 30 screen: one red picture, then a change
// of size with a green one, a text, and what the client typed comes to keys.
func serveRFB(t *testing.T, c net.Conn, keys chan<- string) {
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	read := func(n int) []byte {
		b := make([]byte, n)
		_, err := io.ReadFull(c, b)
		must(err)
		return b
	}
	write := func(b []byte) { _, err := c.Write(b); must(err) }
	write([]byte("RFB 003.008\n"))
	read(12)
	write([]byte{1, 1})
	read(1)
	write([]byte{0, 0, 0, 0})
	read(1)
	write(append([]byte{0, 40, 0, 30, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0, 0, 0, 0, 4}, "test"...))
	read(20 + 4 + 3*4 + 10) // SetPixelFormat, SetEncodings, the first request
	rect := func(w, h uint16, encoding int32, pixels []byte) {
		b := []byte{0, 0, 0, 1}
		for _, v := range []uint16{0, 0, w, h} {
			b = binary.BigEndian.AppendUint16(b, v)
		}
		write(append(binary.BigEndian.AppendUint32(b, uint32(encoding)), pixels...))
	}
	fill := func(n int, r, g byte) []byte {
		b := make([]byte, 0, 4*n)
		for range n {
			b = append(b, r, g, 0, 0)
		}
		return b
	}
	rect(40, 30, encodingRaw, fill(40*30, 255, 0))
	read(10)
	rect(50, 20, encodingDesktopSize, nil)
	read(10)
	rect(50, 20, encodingTight, []byte{0x80, 9, 9, 9})
	read(10)
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	z.Write(bytes.Repeat([]byte{1}, 50*10))
	z.Flush()
	palette := append([]byte{0x41, 1, 2, 1, 1, 1, 0, 255, 0, 2, 2, 2, byte(packed.Len())}, packed.Bytes()...)
	rect(50, 10, encodingTight, palette)
	read(10)
	write([]byte{3, 0, 0, 0, 0, 0, 0, 2, 'h', 0xfc})
	keys <- string(read(8 * 6)) // Shift+A, b: three keys, down and up
	keys <- string(read(8 + 3))
}

func TestScreen(t *testing.T) {
	keys := make(chan string, 2)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/web-sessions/x/screen" || r.Header.Get("Authorization") != "Bearer tok" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}})
		if err != nil {
			t.Error(err)
			return
		}
		serveRFB(t, websocket.NetConn(r.Context(), ws, websocket.MessageBinary), keys)
		ws.Close(4000, "the end")
	}))
	defer srv.Close()
	a := &API{URL: srv.URL, http: srv.Client()}
	if _, err := a.Screen(t.Context(), "x", false); err == nil {
		t.Error("a screen without a token")
	}
	s, err := a.As("tok").Screen(t.Context(), "x", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Shows(t.Context(), time.Minute, "green", color.RGBA{0, 255, 0, 255}); err != nil {
		t.Fatal(err)
	}
	if got := s.Picture().Bounds(); got != image.Rect(0, 0, 50, 20) {
		t.Errorf("size %v", got)
	}
	if err := s.Wait(t.Context(), time.Minute, "text", func(*image.RGBA) error {
		if got := s.Copied(); len(got) != 1 || got[0] != "hü" {
			return &Status{Body: strings.Join(got, ",")}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Type("Ab"); err != nil {
		t.Fatal(err)
	}
	if got := <-keys; got[:16] != "\x04\x01\x00\x00\x00\x00\xff\xe1\x04\x01\x00\x00\x00\x00\x00A" || got[len(got)-8:] != "\x04\x00\x00\x00\x00\x00\x00b" {
		t.Errorf("keys % x", got)
	}
	if err := s.Paste("xyü"); err != nil {
		t.Fatal(err)
	}
	if got := <-keys; got != "\x06\x00\x00\x00\x00\x00\x00\x03xy\xfc" {
		t.Errorf("paste % x", got)
	}
	why, err := s.Ended(t.Context(), time.Minute)
	if err != nil || why.Code != 4000 || why.Reason != "the end" {
		t.Errorf("ended %v %v", why, err)
	}
}
