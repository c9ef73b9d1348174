package recording

import "unicode/utf8"

// scanner takes a terminal's output apart: printable runes, controls and the
// ends of escape sequences (ECMA-48 §5.4). It keeps what is incomplete for the
// next call, so input may be split anywhere.
type scanner struct {
	state scanState
	// param holds the parameter bytes of a control sequence, at most 16.
	param []byte
	rest  []byte // of a rune
}

type scanState uint8

const (
	scanText   scanState = iota
	scanEscape           // after ESC
	scanCSI              // after ESC [
	scanString           // OSC, DCS, PM, APC, SOS: up to BEL or ST
	scanStringEsc
	scanCharset // ESC (, ESC O and the like take one more byte
)

// sink receives what a scanner finds.
type sink interface {
	// printable is a rune that moves the cursor.
	printable(r rune)
	// control is a C0 control character.
	control(c byte)
	// csi is a complete control sequence.
	csi(final byte, param []byte)
}

func (s *scanner) scan(p []byte, to sink) {
	for i := range p {
		c := p[i]
		switch s.state {
		case scanText:
			s.text(c, to)
		case scanEscape:
			s.escape(c)
		case scanCharset:
			s.state = scanText
		case scanCSI:
			switch {
			case c >= 0x40 && c <= 0x7e:
				s.state = scanText
				to.csi(c, s.param)
			case c < 0x20:
				if c == 0x1b {
					s.state = scanEscape
				} else {
					to.control(c)
				}
			case len(s.param) < 16:
				s.param = append(s.param, c)
			}
		case scanString:
			switch c {
			case 0x07:
				s.state = scanText
			case 0x1b:
				s.state = scanStringEsc
			}
		case scanStringEsc:
			if c == '\\' {
				s.state = scanText
			} else {
				s.escape(c)
			}
		}
	}
}

func (s *scanner) escape(c byte) {
	switch c {
	case '[':
		s.state, s.param = scanCSI, s.param[:0]
	case ']', 'P', '^', '_', 'X':
		s.state = scanString
	case '(', ')', '*', '+', '#', ' ', '%', 'O', 'N':
		s.state = scanCharset
	case 0x1b:
		s.state = scanEscape
	default:
		s.state = scanText
	}
}

func (s *scanner) text(c byte, to sink) {
	if len(s.rest) == 0 && c < utf8.RuneSelf {
		switch {
		case c == 0x1b:
			s.state = scanEscape
		case c < 0x20 || c == 0x7f:
			to.control(c)
		default:
			to.printable(rune(c))
		}
		return
	}
	s.rest = append(s.rest, c)
	if !utf8.FullRune(s.rest) && len(s.rest) < utf8.UTFMax {
		return
	}
	r, n := utf8.DecodeRune(s.rest)
	again := append([]byte(nil), s.rest[n:]...)
	s.rest = s.rest[:0]
	to.printable(r)
	for _, c := range again {
		s.text(c, to)
	}
}
