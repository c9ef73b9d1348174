package wire

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf8"
)

// Layout of an error: code (two bytes), length of the text (two bytes), text.
const maxErrorBytes = 4 + MaxPublic

// MaxError is the length limit of an encoded error in bytes.
const MaxError = maxErrorBytes

// ErrError is returned for bytes that are no encoded error.
var ErrError = errors.New("malformed error message")

// Known reports whether c is a code of this version.
func (c Code) Known() bool { return c >= CodeInternal && c <= CodeTerminated }

// Text is what is shown for a code that came without words.
func (c Code) Text() string {
	switch c {
	case CodeRefused:
		return "the destination is not allowed"
	case CodeDNS:
		return "the name does not resolve"
	case CodeUnreachable:
		return "the destination is unreachable"
	case CodeConnRefused:
		return "the destination refused the connection"
	case CodeTimeout:
		return "the destination did not answer in time"
	case CodeLimit:
		return "a limit is reached, try again later"
	case CodeDraining:
		return "the node takes no new connections"
	case CodeUnauthorized:
		return "the identity is not accepted"
	case CodeVersion:
		return "the versions are too far apart"
	case CodeReplaced:
		return "a newer tunnel took over"
	case CodeBadRequest:
		return "the request is malformed"
	case CodeTunnelLost:
		return "the tunnel was lost"
	case CodeIdentityInUse:
		return "the identity is in use elsewhere"
	case CodeTerminated:
		return "the connection was terminated"
	}
	return "internal error"
}

// AppendError appends the encoding of e to b; nil is an internal error.
func AppendError(b []byte, e *Error) []byte {
	if e == nil {
		e = &Error{Code: CodeInternal}
	}
	text := clip(e.Public)
	b = binary.BigEndian.AppendUint16(b, uint16(e.Code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// ParseError decodes b, which holds one error and nothing else. Unknown codes
// become CodeInternal, a missing text that of the code.
func ParseError(b []byte) (*Error, error) {
	if len(b) < 4 || len(b) > maxErrorBytes || int(binary.BigEndian.Uint16(b[2:]))+4 != len(b) {
		return nil, ErrError
	}
	e := &Error{Code: Code(binary.BigEndian.Uint16(b)), Public: clip(string(b[4:]))}
	if !e.Code.Known() {
		e.Code = CodeInternal
	}
	if e.Public == "" {
		e.Public = e.Code.Text()
	}
	return e, nil
}

// clip makes s safe to show: UTF-8, no control characters, at most MaxPublic
// bytes and cut between characters.
func clip(s string) string {
	if !printable(s) {
		s = strings.Map(func(r rune) rune {
			if r < 0x20 || r == 0x7f {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(s, "?"))
	}
	if len(s) > MaxPublic {
		s = s[:MaxPublic]
		for len(s) > 0 && !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s
}

// Verdict is the acceptor's answer to a preface on a transport whose streams
// have no frames of ours (QUIC): the first byte towards the opener is 1 for
// accepted; or 2, followed by the length of an encoded error in two bytes and
// that error.
const (
	VerdictAccepted = 1
	VerdictRefused  = 2
)

// AppendVerdict appends the verdict "accepted" (why is nil) or "refused".
func AppendVerdict(b []byte, why *Error) []byte {
	if why == nil {
		return append(b, VerdictAccepted)
	}
	e := AppendError(nil, why)
	b = append(b, VerdictRefused)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e)))
	return append(b, e...)
}
