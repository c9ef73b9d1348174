package webterm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// Messages are binary websocket messages (RFC 6455 §5.6), one frame each:
// a type byte, then fields in network byte order.
//
//	from the browser
//	0x01 input    u64 offset, bytes    offset: of the first byte, since the session began
//	0x02 resize   u16 columns, u16 rows
//	0x03 ack      u64 offset           output up to here is on the screen
//	0x04 ping     u64 token
//
//	to the browser
//	0x81 hello    u64 output offset, u64 input offset, u8 fresh
//	0x82 output   u64 offset, bytes
//	0x83 accepted u64 offset           input up to here has gone to the target
//	0x84 pong     u64 token
//	0x85 state    JSON
//	0x86 screen   u64 offset, bytes    draws the screen as it is at that output offset
//	0x87 resize   u16 columns, u16 rows (to watchers)
//
// The browser sends input again from hello's input offset after a reconnect,
// and asks for output from the offset it has seen.
const (
	msgInput  = 0x01
	msgResize = 0x02
	msgAck    = 0x03
	msgPing   = 0x04

	msgHello    = 0x81
	msgOutput   = 0x82
	msgAccepted = 0x83
	msgPong     = 0x84
	msgState    = 0x85
	msgScreen   = 0x86
	msgSize     = 0x87
)

// Bounds of the protocol.
const (
	maxMessage  = 64 << 10 // bytes of a message from the browser
	maxInput    = 32 << 10 // bytes of input in one message
	maxScreen   = 1000     // columns or rows
	outputPiece = 32 << 10 // bytes of output in one message
	window      = 256 << 10
	// inputWindow is how much input may be on its way; the browser keeps to it.
	inputWindow = 128 << 10
)

// message is one message from the browser.
type message struct {
	kind       byte
	offset     uint64 // of input and ack; the token of a ping
	data       []byte // of input; shares the buffer it was decoded from
	cols, rows int
}

var errMessage = errors.New("malformed message")

// decode reads a message from the browser.
func decode(p []byte) (message, error) {
	if len(p) == 0 || len(p) > maxMessage {
		return message{}, errMessage
	}
	m := message{kind: p[0]}
	p = p[1:]
	switch m.kind {
	case msgInput:
		if len(p) <= 8 || len(p) > 8+maxInput {
			return message{}, errMessage
		}
		m.offset, m.data = binary.BigEndian.Uint64(p), p[8:]
		if m.offset > math.MaxInt64 {
			return message{}, errMessage
		}
	case msgResize:
		if len(p) != 4 {
			return message{}, errMessage
		}
		m.cols, m.rows = int(binary.BigEndian.Uint16(p)), int(binary.BigEndian.Uint16(p[2:]))
		if m.cols < 1 || m.rows < 1 || m.cols > maxScreen || m.rows > maxScreen {
			return message{}, errMessage
		}
	case msgAck, msgPing:
		if len(p) != 8 {
			return message{}, errMessage
		}
		m.offset = binary.BigEndian.Uint64(p)
	default:
		return message{}, errMessage
	}
	return m, nil
}

func offsetMessage(kind byte, offset uint64, data []byte) []byte {
	b := make([]byte, 0, 9+len(data))
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, offset)
	return append(b, data...)
}

// helloMessage starts a socket; fresh says that the browser must forget what
// its screen shows.
func helloMessage(output, input uint64, fresh bool) []byte {
	b := offsetMessage(msgHello, output, nil)
	b = binary.BigEndian.AppendUint64(b, input)
	if fresh {
		return append(b, 1)
	}
	return append(b, 0)
}

func sizeMessage(cols, rows int) []byte {
	b := []byte{msgSize}
	b = binary.BigEndian.AppendUint16(b, uint16(min(cols, math.MaxUint16)))
	return binary.BigEndian.AppendUint16(b, uint16(min(rows, math.MaxUint16)))
}

func jsonMessage(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return append([]byte{msgState}, b...), nil
}
