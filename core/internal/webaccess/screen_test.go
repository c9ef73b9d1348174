package webaccess

import (
	"bytes"
	"image"
	"testing"
	"testing/iotest"

	"caponier/shared/rfb"
)

// Keys, pointer and pastes are signs of a user; a viewer that only shows the
// picture gives none, however its bytes are cut.
func TestSigns(t *testing.T) {
	hello := append([]byte("RFB 003.008\n"), 1, 1)
	shows := rfb.AppendRequest(rfb.AppendSetEncodings(rfb.AppendSetPixelFormat(nil), 7, 1, -223), true, image.Rect(0, 0, 800, 600))
	shows = append(shows, 248, 0, 0, 0, 0, 0, 0, 1, 2, 'a', 'b') // a fence
	key := []byte{4, 1, 0, 0, 0, 0, 0, 'x'}
	pointer := []byte{5, 0, 0, 9, 0, 9}
	paste := append([]byte{6, 0, 0, 0, 0, 0, 0, 5}, "hello"...)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name string
		sent []byte
		want int
	}{
		{"nothing", nil, 0},
		{"half a handshake", hello[:5], 0},
		{"only shows", join(hello, shows, shows, shows), 0},
		{"a key", join(hello, shows, key, shows), 1},
		{"key, pointer, paste", join(hello, shows, key, pointer, shows, paste), 3},
		{"cut in the middle", join(hello, shows, key[:3]), 0},
		{"not understood", join(hello, []byte{99}, make([]byte, 40)), 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := 0
			signs(bytes.NewReader(tc.sent), func() { n++ })
			if tc.name == "not understood" && n > 0 {
				n = 1 // each read is one
			}
			if n != tc.want {
				t.Errorf("%d signs, want %d", n, tc.want)
			}
			if n = 0; tc.name != "not understood" {
				if signs(iotest.OneByteReader(bytes.NewReader(tc.sent)), func() { n++ }); n != tc.want {
					t.Errorf("byte by byte %d signs, want %d", n, tc.want)
				}
			}
		})
	}
}
