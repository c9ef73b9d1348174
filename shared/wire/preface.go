package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Layout of a preface (numbers are big endian):
//
//	0      format, always 1
//	1      Kind
//	2      Class
//	3      Network: 0 none, 1 tcp, 2 udp
//	4      c, length of Connection
//	5      Connection, c bytes
//	5+c    d, length of Dest, two bytes
//	7+c    Dest, d bytes
//	7+c+d  extensions to the end: type (one byte), length (one byte), value
//
// A reader skips extensions it does not know, unless their type has the
// highest bit set: those change the meaning of the stream and an old reader
// must refuse it.
const (
	prefaceFormat     = 1
	maxExtensions     = 256
	extensionCritical = 0x80
	// MaxPreface is the length limit of an encoded preface in bytes.
	MaxPreface = 7 + MaxConnection + MaxDest + maxExtensions
)

// ErrPreface is the error under every preface that is malformed or too long.
var ErrPreface = errors.New("malformed preface")

// Validate reports why p may not be sent or accepted.
func (p *Preface) Validate() error {
	switch {
	case p.Kind < StreamDial || p.Kind > StreamRelay:
		return fmt.Errorf("%w: unknown kind %d", ErrPreface, p.Kind)
	case p.Class > Bulk:
		return fmt.Errorf("%w: unknown class %d", ErrPreface, p.Class)
	case len(p.Connection) > MaxConnection:
		return fmt.Errorf("%w: connection ID of %d bytes", ErrPreface, len(p.Connection))
	case len(p.Dest) > MaxDest:
		return fmt.Errorf("%w: destination of %d bytes", ErrPreface, len(p.Dest))
	case p.Network != "" && p.Network != "tcp" && p.Network != "udp":
		return fmt.Errorf("%w: unknown network", ErrPreface)
	case p.Kind != StreamHTTP && (p.Dest == "" || p.Network == ""):
		return fmt.Errorf("%w: no destination", ErrPreface)
	case !printable(p.Connection) || !printable(p.Dest):
		return fmt.Errorf("%w: unprintable text", ErrPreface)
	}
	return nil
}

// AppendPreface appends the encoding of p to b.
func AppendPreface(b []byte, p Preface) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return b, err
	}
	network := byte(0)
	switch p.Network {
	case "tcp":
		network = 1
	case "udp":
		network = 2
	}
	b = append(b, prefaceFormat, byte(p.Kind), byte(p.Class), network, byte(len(p.Connection)))
	b = append(b, p.Connection...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Dest)))
	return append(b, p.Dest...), nil
}

// ParsePreface decodes b, which holds one preface and nothing else.
func ParsePreface(b []byte) (Preface, error) {
	var p Preface
	if len(b) < 7 || len(b) > MaxPreface {
		return p, fmt.Errorf("%w: %d bytes", ErrPreface, len(b))
	}
	if b[0] != prefaceFormat {
		return p, fmt.Errorf("%w: format %d", ErrPreface, b[0])
	}
	p.Kind, p.Class = StreamKind(b[1]), Class(b[2])
	switch b[3] {
	case 0:
	case 1:
		p.Network = "tcp"
	case 2:
		p.Network = "udp"
	default:
		return Preface{}, fmt.Errorf("%w: unknown network", ErrPreface)
	}
	n := int(b[4])
	b = b[5:]
	if len(b) < n+2 {
		return Preface{}, fmt.Errorf("%w: cut in the connection ID", ErrPreface)
	}
	p.Connection, b = string(b[:n]), b[n:]
	n, b = int(binary.BigEndian.Uint16(b)), b[2:]
	if len(b) < n {
		return Preface{}, fmt.Errorf("%w: cut in the destination", ErrPreface)
	}
	p.Dest, b = string(b[:n]), b[n:]
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return Preface{}, fmt.Errorf("%w: cut in an extension", ErrPreface)
		}
		if b[0]&extensionCritical != 0 {
			return Preface{}, fmt.Errorf("%w: unknown critical extension %d", ErrPreface, b[0])
		}
		b = b[2+int(b[1]):]
	}
	if err := p.Validate(); err != nil {
		return Preface{}, err
	}
	return p, nil
}

// printable reports whether s is UTF-8 without control characters.
func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f {
			return false
		}
	}
	return true
}
