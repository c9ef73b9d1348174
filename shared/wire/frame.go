package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// FrameType is what a frame of the multiplexer means.
//
// A frame is a header of eight bytes and a payload:
//
//	0      type
//	1..3   length of the payload
//	4..7   stream, 0 for the session; odd ones are opened by the dialling end
//
// Frames travel in a byte stream; their borders need not be those of websocket
// frames, which anything in between may split or join.
type FrameType uint8

// The frames.
//
//	open    preface                 starts a stream; data may follow at once
//	data    bytes                   costs credit
//	fin     -                       no more data in this direction
//	accept  -                       the acceptor's destination is connected
//	reset   error                   both directions end, nothing more is delivered
//	stop    -                       the sender reads no more of this stream
//	window  credit (4)              the receiver's further credit in bytes
//	ping    token (8)               answered at once by
//	pong    token (8)
//	goaway  error                   the session ends
//	seen    count (8)               bytes of data frames received in this session so far, modulo 2^64
const (
	FrameOpen   FrameType = 1
	FrameData   FrameType = 2
	FrameFin    FrameType = 3
	FrameAccept FrameType = 4
	FrameReset  FrameType = 5
	FrameStop   FrameType = 6
	FrameWindow FrameType = 7
	FramePing   FrameType = 8
	FramePong   FrameType = 9
	FrameGoAway FrameType = 10
	FrameSeen   FrameType = 11

	// frameOptional and above may be skipped by who does not know them.
	frameOptional FrameType = 128
)

// Sizes of frames in bytes, and the credit every stream starts with.
const (
	FrameHeader   = 8
	MaxFrameData  = 65512 // with both headers at most 64 KiB, four full TLS records
	InitialWindow = 1 << 20
	MaxWindow     = 1 << 30 // more credit than this is a protocol error
)

// ErrFrame is the error under every frame that breaks the rules.
var ErrFrame = errors.New("malformed frame")

// Header is a decoded frame header.
type Header struct {
	Type   FrameType
	Length int
	Stream uint32
}

// PutHeader encodes h into b[:FrameHeader].
func PutHeader(b []byte, h Header) {
	binary.BigEndian.PutUint32(b, uint32(h.Type)<<24|uint32(h.Length)&0xffffff)
	binary.BigEndian.PutUint32(b[4:], h.Stream)
}

// ParseHeader decodes b[:FrameHeader] and checks the length against the type's
// limits before anybody allocates for it.
func ParseHeader(b []byte) (Header, error) {
	w := binary.BigEndian.Uint32(b)
	h := Header{Type: FrameType(w >> 24), Length: int(w & 0xffffff), Stream: binary.BigEndian.Uint32(b[4:])}
	ok, session := false, false
	switch h.Type {
	case FrameOpen:
		ok = h.Length > 0 && h.Length <= MaxPreface
	case FrameData:
		ok = h.Length > 0 && h.Length <= MaxFrameData
	case FrameFin, FrameAccept, FrameStop:
		ok = h.Length == 0
	case FrameReset:
		ok = h.Length >= 4 && h.Length <= MaxError
	case FrameWindow:
		ok = h.Length == 4
	case FramePing, FramePong, FrameSeen:
		ok, session = h.Length == 8, true
	case FrameGoAway:
		ok, session = h.Length >= 4 && h.Length <= MaxError, true
	default:
		if h.Type < frameOptional {
			return h, fmt.Errorf("%w: unknown type %d", ErrFrame, h.Type)
		}
		if h.Length > MaxFrameData {
			return h, fmt.Errorf("%w: type %d with %d bytes", ErrFrame, h.Type, h.Length)
		}
		return h, nil
	}
	if !ok {
		return h, fmt.Errorf("%w: type %d with %d bytes", ErrFrame, h.Type, h.Length)
	}
	if session != (h.Stream == 0) {
		return h, fmt.Errorf("%w: type %d on stream %d", ErrFrame, h.Type, h.Stream)
	}
	return h, nil
}

// AppendFrame appends a whole frame; payload must be within its type's limits.
func AppendFrame(b []byte, t FrameType, stream uint32, payload []byte) []byte {
	var h [FrameHeader]byte
	PutHeader(h[:], Header{Type: t, Length: len(payload), Stream: stream})
	b = append(b, h[:]...)
	return append(b, payload...)
}
