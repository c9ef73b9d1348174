package harness

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"strings"

	"github.com/coder/websocket"
)

// ToneShare is how much of a piece of sound (wire.SoundRate, the first of two
// channels of 16 bits) is a tone of so many Hz, from 0 to 1: 0 of silence.
func ToneShare(pcm []byte, hz float64) float64 {
	var all, sin, cos float64
	n := len(pcm) / 4
	for i := range n {
		v := float64(int16(binary.LittleEndian.Uint16(pcm[4*i:])))
		s, c := math.Sincos(2 * math.Pi * hz * float64(i) / 48000)
		all += v * v
		sin += v * s
		cos += v * c
	}
	if all == 0 {
		return 0
	}
	return (sin*sin + cos*cos) * 2 / (all * float64(n))
}

// Listen hears a web session (query: "" as its user, "?watch=1") and gives each
// piece of sound to heard, until the session's side ends it: that is the error.
func (a *API) Listen(ctx context.Context, id, query string, heard func(pcm []byte)) error {
	url := strings.Replace(a.URL, "https://", "wss://", 1) + "/api/v1/web-sessions/" + id + "/sound" + query
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: a.http, Subprotocols: []string{"binary"}, HTTPHeader: http.Header{"Authorization": {"Bearer " + a.Token}},
	})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer ws.CloseNow()
	for {
		_, pcm, err := ws.Read(ctx)
		if err != nil {
			return err
		}
		heard(pcm)
		_ = ws.Write(ctx, websocket.MessageBinary, []byte{1}) // Read tells why it fails
	}
}
