package rfb

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

const protocolVersion = "RFB 003.008\n"

// Init is what a server says of itself when the handshake is done (RFC 6143
// §7.3.2).
type Init struct {
	Width, Height int
	Name          string
}

// ClientHandshake does a client's part of the handshake: version 3.8 without
// authentication, shared. The server's pixel format is not looked at: set one.
func ClientHandshake(rw io.ReadWriter) (Init, error) {
	var version [12]byte
	if _, err := io.ReadFull(rw, version[:]); err != nil {
		return Init{}, fmt.Errorf("read protocol version: %w", err)
	}
	if string(version[:]) != protocolVersion {
		return Init{}, broken("protocol version %q", version[:])
	}
	if _, err := io.WriteString(rw, protocolVersion); err != nil {
		return Init{}, fmt.Errorf("write protocol version: %w", err)
	}
	if err := chooseNone(rw); err != nil {
		return Init{}, err
	}
	if _, err := rw.Write([]byte{1}); err != nil { // shared
		return Init{}, fmt.Errorf("write client init: %w", err)
	}
	var b [24]byte
	if _, err := io.ReadFull(rw, b[:]); err != nil {
		return Init{}, fmt.Errorf("read server init: %w", err)
	}
	in := Init{Width: int(binary.BigEndian.Uint16(b[0:])), Height: int(binary.BigEndian.Uint16(b[2:]))}
	if !validSize(in.Width, in.Height) {
		return Init{}, broken("framebuffer of %dx%d", in.Width, in.Height)
	}
	name, err := readText(rw, binary.BigEndian.Uint32(b[20:]), MaxName)
	if err != nil {
		return Init{}, fmt.Errorf("read desktop name: %w", err)
	}
	in.Name = name
	return in, nil
}

// chooseNone takes security type None (RFC 6143 §7.1.2, §7.2.1).
func chooseNone(rw io.ReadWriter) error {
	var n [1]byte
	if _, err := io.ReadFull(rw, n[:]); err != nil {
		return fmt.Errorf("read security types: %w", err)
	}
	if n[0] == 0 {
		return refused(rw)
	}
	types := make([]byte, n[0])
	if _, err := io.ReadFull(rw, types); err != nil {
		return fmt.Errorf("read security types: %w", err)
	}
	if !strings.Contains(string(types), "\x01") {
		return broken("the server wants authentication: security types %v", types)
	}
	if _, err := rw.Write([]byte{1}); err != nil {
		return fmt.Errorf("write security type: %w", err)
	}
	var result [4]byte
	if _, err := io.ReadFull(rw, result[:]); err != nil {
		return fmt.Errorf("read security result: %w", err)
	}
	if binary.BigEndian.Uint32(result[:]) != 0 {
		return refused(rw)
	}
	return nil
}

// refused reads why a server refuses.
func refused(r io.Reader) error {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return fmt.Errorf("read reason of refusal: %w", err)
	}
	reason, err := readText(r, binary.BigEndian.Uint32(n[:]), MaxName)
	if err != nil {
		return fmt.Errorf("read reason of refusal: %w", err)
	}
	return broken("the server refuses: %q", reason)
}

func readText(r io.Reader, n uint32, limit int) (string, error) {
	if n > uint32(limit) {
		return "", broken("text of %d bytes, the limit is %d", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	return strings.ToValidUTF8(string(b), "\ufffd"), nil
}

// ServerHandshake does a server's part: version 3.8, no authentication. Who may
// connect was decided before.
func ServerHandshake(rw io.ReadWriter, in Init) error {
	if _, err := io.WriteString(rw, protocolVersion); err != nil {
		return fmt.Errorf("write protocol version: %w", err)
	}
	var version [12]byte
	if _, err := io.ReadFull(rw, version[:]); err != nil {
		return fmt.Errorf("read protocol version: %w", err)
	}
	if string(version[:]) != protocolVersion {
		return broken("protocol version %q", version[:])
	}
	if _, err := rw.Write([]byte{1, 1}); err != nil {
		return fmt.Errorf("write security types: %w", err)
	}
	var b [1]byte
	if _, err := io.ReadFull(rw, b[:]); err != nil {
		return fmt.Errorf("read security type: %w", err)
	}
	if b[0] != 1 {
		return broken("security type %d", b[0])
	}
	if _, err := rw.Write(make([]byte, 4)); err != nil {
		return fmt.Errorf("write security result: %w", err)
	}
	if _, err := io.ReadFull(rw, b[:]); err != nil { // shared or not: always shared
		return fmt.Errorf("read client init: %w", err)
	}
	if _, err := rw.Write(AppendServerInit(nil, in)); err != nil {
		return fmt.Errorf("write server init: %w", err)
	}
	return nil
}

// AppendServerInit appends a ServerInit message with 32-bit pixels of 24 bits
// of true colour: B, G, R, unused.
func AppendServerInit(dst []byte, in Init) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(in.Width))
	dst = binary.BigEndian.AppendUint16(dst, uint16(in.Height))
	dst = append(dst, pixelFormat...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(in.Name)))
	return append(dst, in.Name...)
}

// pixelFormat is 32 bits, depth 24, little-endian, true colour, 8 bits per
// channel, red at bit 16, green at 8, blue at 0 (RFC 6143 §7.4).
var pixelFormat = []byte{32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0}

// checkFormat accepts every format whose Tight pixels are three bytes R, G, B:
// 32 bits, depth 24, true colour, 8 bits per channel.
func checkFormat(b []byte) error {
	if b[0] != 32 || b[1] != 24 || b[3] == 0 || string(b[4:10]) != string(pixelFormat[4:10]) {
		return broken("only 24-bit true colour in 32-bit pixels is served, not %v", b)
	}
	return nil
}
