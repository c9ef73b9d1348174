package rfb

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf8"
)

// ClipboardAction is what a message about a clipboard does.
type ClipboardAction uint32

// The actions. ClipboardText is the plain message of RFC 6143 §7.5.6 and
// §7.6.4, in ISO 8859-1; the others are the Extended Clipboard pseudo-encoding.
const (
	ClipboardText    ClipboardAction = 0
	ClipboardCaps    ClipboardAction = 1 << 24
	ClipboardRequest ClipboardAction = 1 << 25
	ClipboardPeek    ClipboardAction = 1 << 26
	ClipboardNotify  ClipboardAction = 1 << 27
	ClipboardProvide ClipboardAction = 1 << 28
)

// formatText is the only format that is exchanged.
const formatText = 1

// Clipboard is a message about a clipboard.
type Clipboard struct {
	Action ClipboardAction
	// HasText says of Notify, Request and Provide that text is meant, of Caps that
	// the peer knows text.
	HasText bool
	// Actions are those a peer announces by Caps.
	Actions ClipboardAction
	// Text is UTF-8 with \n line ends.
	Text string
	// TooLong says that there was a text, which exceeds the limit and was not
	// kept. Size is then at least how long it was, in bytes.
	TooLong bool
	Size    int
}

// readClipboard reads the rest of a cut text message. A text of more than limit
// bytes is skipped, never held.
func readClipboard(r *bufio.Reader, limit int) (Clipboard, error) {
	var b [7]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Clipboard{}, unexpected(err)
	}
	n := int(int32(binary.BigEndian.Uint32(b[3:])))
	extended := n < 0
	if n = max(n, -n); n > MaxClipboard+MaxClipboard/8 || extended && n < 4 {
		return Clipboard{}, broken("clipboard message of %d bytes", n)
	}
	if !extended {
		return readLatin1(r, n, limit)
	}
	var f [4]byte
	if _, err := io.ReadFull(r, f[:]); err != nil {
		return Clipboard{}, unexpected(err)
	}
	flags := binary.BigEndian.Uint32(f[:])
	c := Clipboard{Action: ClipboardAction(flags & 0xff000000), HasText: flags&formatText != 0}
	n -= 4
	switch {
	case c.Action&ClipboardCaps != 0:
		c.Action, c.Actions = ClipboardCaps, c.Action&^ClipboardCaps
	case c.Action == ClipboardProvide && c.HasText:
		return readProvided(r, c, n, limit)
	}
	_, err := r.Discard(n)
	return c, unexpected(err)
}

func readLatin1(r *bufio.Reader, n, limit int) (Clipboard, error) {
	c := Clipboard{Action: ClipboardText, HasText: true, Size: n}
	if n > limit {
		c.TooLong = true
		_, err := r.Discard(n)
		return c, unexpected(err)
	}
	var text strings.Builder
	for range n {
		b, err := r.ReadByte()
		if err != nil {
			return Clipboard{}, unexpected(err)
		}
		text.WriteRune(rune(b))
	}
	c.Text = unixLines(text.String())
	c.Size = len(c.Text)
	c.TooLong = c.Size > limit
	if c.TooLong {
		c.Text = ""
	}
	return c, nil
}

// readProvided inflates what a Provide holds: for each format its length and
// bytes. Text is the first format.
func readProvided(r *bufio.Reader, c Clipboard, n, limit int) (Clipboard, error) {
	body := &io.LimitedReader{R: r, N: int64(n)}
	// Line ends are two bytes on the wire, and a null byte ends the text.
	text, size, err := inflateText(body, 2*limit+1)
	if _, skip := r.Discard(int(body.N)); skip != nil {
		return Clipboard{}, unexpected(skip)
	}
	if err != nil {
		return Clipboard{}, err
	}
	if text != nil {
		c.Text = unixLines(strings.ToValidUTF8(strings.TrimSuffix(string(text), "\x00"), string(utf8.RuneError)))
		size = len(c.Text)
	}
	if c.Size = size; size > limit {
		c.Text, c.TooLong = "", true
	}
	return c, nil
}

// inflateText returns nil and the size when the text is longer than limit.
func inflateText(r *io.LimitedReader, limit int) ([]byte, int, error) {
	z, err := zlib.NewReader(&exactReader{r: r})
	if err != nil {
		return nil, 0, broken("clipboard: %v", err)
	}
	defer z.Close()
	var b [4]byte
	if _, err := io.ReadFull(z, b[:]); err != nil {
		return nil, 0, broken("clipboard: %v", err)
	}
	size := int(binary.BigEndian.Uint32(b[:]))
	if size > limit {
		return nil, size, nil
	}
	// The buffer grows with what really comes, not with what is announced.
	var text bytes.Buffer
	if n, err := io.Copy(&text, io.LimitReader(z, int64(size))); n != int64(size) {
		return nil, 0, broken("clipboard: text of %d bytes ends after %d: %v", size, n, err)
	}
	return append([]byte{}, text.Bytes()...), size, nil
}

// exactReader keeps the inflater from reading ahead of the message.
type exactReader struct{ r *io.LimitedReader }

func (e *exactReader) Read(p []byte) (int, error) { return e.r.Read(p) }

func (e *exactReader) ReadByte() (byte, error) {
	if e.r.N <= 0 {
		return 0, io.EOF
	}
	b, err := e.r.R.(*bufio.Reader).ReadByte()
	if err == nil {
		e.r.N--
	}
	return b, err
}

func unixLines(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

// AppendClipboard appends a message about the clipboard; toServer tells the
// direction. Text is UTF-8.
func AppendClipboard(dst []byte, c Clipboard, toServer bool) []byte {
	t := byte(msgServerCut)
	if toServer {
		t = msgClientCut
	}
	dst = append(dst, t, 0, 0, 0)
	if c.Action == ClipboardText {
		text := latin1(c.Text)
		return append(binary.BigEndian.AppendUint32(dst, uint32(len(text))), text...)
	}
	flags := uint32(c.Action)
	if c.HasText {
		flags |= formatText
	}
	var body []byte
	switch c.Action {
	case ClipboardCaps:
		flags |= uint32(c.Actions)
		if c.HasText {
			body = make([]byte, 4) // nothing unasked
		}
	case ClipboardProvide:
		body = deflateText(c.Text)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(-int32(4+len(body))))
	dst = binary.BigEndian.AppendUint32(dst, flags)
	return append(dst, body...)
}

func deflateText(s string) []byte {
	text := append([]byte(strings.ReplaceAll(unixLines(s), "\n", "\r\n")), 0)
	var out bytes.Buffer
	z, err := zlib.NewWriterLevel(&out, zlib.BestSpeed)
	if err != nil {
		panic(err) // the level is a constant
	}
	_, _ = z.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text)))) // into memory
	_, _ = z.Write(text)
	_ = z.Close()
	return out.Bytes()
}

func latin1(s string) []byte {
	out := make([]byte, 0, len(s))
	for _, r := range unixLines(s) {
		if r > 0xff {
			r = '?'
		}
		out = append(out, byte(r))
	}
	return out
}
