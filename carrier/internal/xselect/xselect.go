// Package xselect reads the text an application of an X server has put on the
// clipboard. Xvnc's own clipboard support cannot take selections that are
// transferred in pieces (INCR, ICCCM §2.7.2), which toolkits use above 256 KiB.
//
// Text is one short conversation on a fresh connection: set-up, a window to
// receive, one conversion of CLIPBOARD to UTF8_STRING. It starts nothing and
// keeps nothing. What it reads comes from a container and is not trusted: every
// length is bounded, and the caller sets a deadline on the connection.
package xselect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"unicode/utf8"
)

// ErrNone: nobody owns the clipboard, or its owner has no text.
var ErrNone = errors.New("there is no text on the clipboard")

// ErrX is the cause of every error about what the X server says.
var ErrX = errors.New("the X server broke off")

// Result is what was on the clipboard.
type Result struct {
	// Text is valid UTF-8, empty when TooLong.
	Text string
	// Size is the text's length in bytes; of one that is too long, at least it.
	Size    int
	TooLong bool
}

// Requests, replies and events of the X protocol, version 11 (little-endian).
const (
	opCreateWindow     = 1
	opChangeAttributes = 2
	opInternAtom       = 16
	opDeleteProperty   = 19
	opGetProperty      = 20
	opConvertSelection = 24

	isError         = 0
	isReply         = 1
	eventProperty   = 28
	eventSelection  = 31
	attrEventMask   = 1 << 11
	maskProperty    = 1 << 22
	newValue        = 0
	anyType         = 0
	maxSetup        = 64 << 10
	maxReply        = 1 << 20
	chunk           = 256 << 10 // of a property, in bytes
	maxIgnored      = 4096      // events that do not concern us
	classInputOnly  = 2
	protocolVersion = 11
)

// Text asks for the clipboard's text. A text of more than limit bytes is not
// kept. The deadline of conn bounds the time.
func Text(conn net.Conn, limit int) (Result, error) {
	x := &client{w: conn, r: bufio.NewReaderSize(conn, 32<<10)}
	res, err := x.text(limit)
	if err != nil && !errors.Is(err, ErrNone) {
		return Result{}, fmt.Errorf("read the clipboard: %w", err)
	}
	return res, err
}

type client struct {
	w io.Writer
	r *bufio.Reader

	root, window uint32
	ignored      int
}

func (x *client) text(limit int) (Result, error) {
	if err := x.setUp(); err != nil {
		return Result{}, err
	}
	var atoms [4]uint32
	for i, name := range []string{"CLIPBOARD", "UTF8_STRING", "CAPONIER_TEXT", "INCR"} {
		a, err := x.intern(name)
		if err != nil {
			return Result{}, err
		}
		atoms[i] = a
	}
	clipboard, utf8String, property, incr := atoms[0], atoms[1], atoms[2], atoms[3]
	if err := x.request(opConvertSelection, 0, x.window, clipboard, utf8String, property, 0); err != nil {
		return Result{}, err
	}
	e, err := x.await(eventSelection, func(e []byte) bool { return le32(e[8:]) == x.window })
	if err != nil {
		return Result{}, err
	}
	if le32(e[20:]) != property {
		return Result{}, ErrNone
	}
	into := &sink{limit: limit}
	kind, err := x.property(property, into)
	if err != nil {
		return Result{}, err
	}
	if kind == incr {
		*into = sink{limit: limit} // it held an estimate of the length
		if err := x.pieces(property, utf8String, into); err != nil {
			return Result{}, err
		}
	} else if kind != utf8String {
		return Result{}, ErrNone
	}
	return into.result(), nil
}

// pieces takes a text that comes piece by piece: each time the property is
// deleted its owner puts the next one there, an empty one at the end.
func (x *client) pieces(property, want uint32, into *sink) error {
	for {
		if _, err := x.await(eventProperty, func(e []byte) bool {
			return le32(e[4:]) == x.window && le32(e[8:]) == property && e[16] == newValue
		}); err != nil {
			return err
		}
		before := into.size
		kind, err := x.property(property, into)
		if err != nil {
			return err
		}
		if into.size == before || into.full() {
			return nil
		}
		if kind != want {
			return fmt.Errorf("%w: a piece is of another type", ErrX)
		}
	}
}

// property reads a property of our window to its end and deletes it.
func (x *client) property(property uint32, into *sink) (kind uint32, err error) {
	for offset := uint32(0); ; offset += chunk / 4 {
		if err := x.request(opGetProperty, 0, x.window, property, anyType, offset, chunk/4); err != nil {
			return 0, err
		}
		head, body, err := x.reply()
		if err != nil {
			return 0, err
		}
		kind = le32(head[8:])
		after, n := le32(head[12:]), int(le32(head[16:]))*int(head[1])/8
		if n < 0 || n > len(body) || n > chunk {
			return 0, fmt.Errorf("%w: property of %d bytes in %d", ErrX, n, len(body))
		}
		into.add(body[:n])
		if after == 0 || n == 0 || into.full() {
			break
		}
	}
	return kind, x.request(opDeleteProperty, 0, x.window, property)
}

// setUp does the connection set-up without authorisation and makes a window
// that nobody sees.
func (x *client) setUp() error {
	hello := []byte{'l', 0, protocolVersion, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if _, err := x.w.Write(hello); err != nil {
		return fmt.Errorf("%w: %w", ErrX, err)
	}
	var head [8]byte
	if _, err := io.ReadFull(x.r, head[:]); err != nil {
		return fmt.Errorf("%w: %w", ErrX, err)
	}
	n := 4 * int(binary.LittleEndian.Uint16(head[6:]))
	if n > maxSetup {
		return fmt.Errorf("%w: set-up of %d bytes", ErrX, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(x.r, b); err != nil {
		return fmt.Errorf("%w: %w", ErrX, err)
	}
	if head[0] != 1 {
		reason := b[:min(int(head[1]), len(b))]
		return fmt.Errorf("%w: refuses: %q", ErrX, reason)
	}
	if len(b) < 32 {
		return fmt.Errorf("%w: set-up of %d bytes", ErrX, n)
	}
	base, vendor, formats := le32(b[4:]), int(binary.LittleEndian.Uint16(b[16:])), int(b[21])
	screen := 32 + (vendor+3)/4*4 + 8*formats
	if len(b) < screen+4 {
		return fmt.Errorf("%w: set-up without a screen", ErrX)
	}
	x.root, x.window = le32(b[screen:]), base
	// x, y, width 1, height 1, no border, input only, visual of the parent
	return x.request(opCreateWindow, 0, x.window, x.root, 0, 1|1<<16, classInputOnly<<16, 0, attrEventMask, maskProperty)
}

func (x *client) intern(name string) (uint32, error) {
	b := []byte{opInternAtom, 0, 0, 0, byte(len(name)), 0, 0, 0}
	b = append(b, name...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	binary.LittleEndian.PutUint16(b[2:], uint16(len(b)/4))
	if _, err := x.w.Write(b); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrX, err)
	}
	head, _, err := x.reply()
	if err != nil {
		return 0, err
	}
	return le32(head[8:]), nil
}

func (x *client) request(op, data byte, words ...uint32) error {
	b := []byte{op, data, 0, 0}
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	binary.LittleEndian.PutUint16(b[2:], uint16(len(b)/4))
	if _, err := x.w.Write(b); err != nil {
		return fmt.Errorf("%w: %w", ErrX, err)
	}
	return nil
}

// next reads a reply or an event; replies have a body.
func (x *client) next() (head [32]byte, body []byte, err error) {
	if _, err := io.ReadFull(x.r, head[:]); err != nil {
		return head, nil, fmt.Errorf("%w: %w", ErrX, err)
	}
	switch head[0] {
	case isError:
		return head, nil, fmt.Errorf("%w: error %d for request %d", ErrX, head[1], head[10])
	case isReply:
		n := int64(le32(head[4:])) * 4
		if n > maxReply {
			return head, nil, fmt.Errorf("%w: reply of %d bytes", ErrX, n)
		}
		body = make([]byte, n)
		if _, err := io.ReadFull(x.r, body); err != nil {
			return head, nil, fmt.Errorf("%w: %w", ErrX, err)
		}
		return head, body, nil
	}
	return head, nil, nil
}

// reply reads the next reply; events before it are those of older pieces.
func (x *client) reply() (head [32]byte, body []byte, err error) {
	for {
		head, body, err = x.next()
		if err != nil || head[0] == isReply {
			return head, body, err
		}
		if err := x.ignore(); err != nil {
			return head, nil, err
		}
	}
}

// await reads until an event of this kind that fits.
func (x *client) await(kind byte, fits func([]byte) bool) ([]byte, error) {
	for {
		head, _, err := x.next()
		if err != nil {
			return nil, err
		}
		if head[0]&0x7f == kind && fits(head[:]) {
			return head[:], nil
		}
		if err := x.ignore(); err != nil {
			return nil, err
		}
	}
}

func (x *client) ignore() error {
	if x.ignored++; x.ignored > maxIgnored {
		return fmt.Errorf("%w: too many events", ErrX)
	}
	return nil
}

// sink collects a text up to its limit.
type sink struct {
	limit int
	text  strings.Builder
	size  int
}

func (s *sink) full() bool { return s.size > s.limit }

func (s *sink) add(b []byte) {
	if s.size += len(b); s.full() {
		s.text.Reset()
		return
	}
	s.text.Write(b)
}

func (s *sink) result() Result {
	if s.full() {
		return Result{Size: s.size, TooLong: true}
	}
	return Result{Text: strings.ToValidUTF8(s.text.String(), string(utf8.RuneError)), Size: s.size}
}

func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
