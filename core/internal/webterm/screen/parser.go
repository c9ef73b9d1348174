package screen

import "unicode/utf8"

// parser takes output apart; what is incomplete waits for the next byte.
type parser struct {
	state   state
	params  []int
	sub     []bool // params[i] was joined to the one before by a colon
	has     bool   // a digit of the last parameter was seen
	private byte
	inter   byte // intermediate byte
	text    []byte
	rest    []byte // of a rune
	from    state  // of a string, where ESC came in
}

type state uint8

const (
	ground state = iota
	escape
	csi
	osc
	ignored // DCS, APC, PM, SOS
	stringEnd
)

const (
	maxParams = 32
	maxParam  = 65535
	maxText   = 512 // bytes of a title
)

func (p *parser) feed(s *Screen, c byte) {
	switch p.state {
	case ground:
		p.ground(s, c)
	case escape:
		p.escape(s, c)
	case csi:
		p.csi(s, c)
	case osc, ignored:
		switch {
		case c == 0x07 || c == 0x18 || c == 0x1a:
			p.finish(s, p.state, c == 0x07)
		case c == 0x1b:
			p.from, p.state = p.state, stringEnd
		case p.state == osc && len(p.text) < maxText:
			p.text = append(p.text, c)
		}
	case stringEnd:
		p.finish(s, p.from, c == '\\')
		if c != '\\' {
			p.inter = 0
			p.state = escape
			p.escape(s, c)
		}
	}
}

func (p *parser) finish(s *Screen, was state, whole bool) {
	p.state = ground
	if was == osc && whole && len(p.text) >= 2 && (p.text[0] == '0' || p.text[0] == '2') && p.text[1] == ';' {
		s.setTitle(string(p.text[2:]))
	}
	p.text = p.text[:0]
}

func (p *parser) ground(s *Screen, c byte) {
	if len(p.rest) == 0 && c < utf8.RuneSelf {
		switch {
		case c < ' ':
			p.control(s, c)
		case c != 0x7f:
			s.put(rune(c))
		}
		return
	}
	if len(p.rest) > 0 && utf8.RuneStart(c) {
		p.rest = p.rest[:0]
		s.put(utf8.RuneError)
		p.ground(s, c)
		return
	}
	p.rest = append(p.rest, c)
	if !utf8.FullRune(p.rest) {
		return
	}
	r, _ := utf8.DecodeRune(p.rest)
	p.rest = p.rest[:0]
	if r >= 0x80 && r < 0xa0 { // C1 in UTF-8: not used by programs of today
		return
	}
	s.put(r)
}

func (p *parser) control(s *Screen, c byte) {
	cur := &s.cursor
	switch c {
	case '\b':
		cur.x, cur.wrap = max(cur.x-1, 0), false
	case '\t':
		s.tab(1)
	case '\n', 0x0b, 0x0c:
		cur.wrap = false
		s.lineFeed()
	case '\r':
		cur.x, cur.wrap = 0, false
	case 0x0e:
		cur.shift = 1
	case 0x0f:
		cur.shift = 0
	case 0x18, 0x1a:
		p.state = ground
	case 0x1b:
		p.state, p.inter = escape, 0
	}
}

func (p *parser) escape(s *Screen, c byte) {
	switch {
	case c < ' ':
		p.state = ground
		p.control(s, c)
		if p.state == ground && c != 0x18 && c != 0x1a {
			p.state = escape
		}
		return
	case c < '0':
		p.inter = c
		return
	case p.inter == 0 && c == '[':
		p.state = csi
		p.params, p.sub, p.has, p.private, p.inter = append(p.params[:0], 0), append(p.sub[:0], false), false, 0, 0
		return
	case p.inter == 0 && c == ']':
		p.state, p.text = osc, p.text[:0]
		return
	case p.inter == 0 && (c == 'P' || c == 'X' || c == '^' || c == '_'):
		p.state = ignored
		return
	}
	p.state = ground
	s.escape(p.inter, c)
}

func (p *parser) csi(s *Screen, c byte) {
	last := len(p.params) - 1
	switch {
	case c < ' ':
		p.state = ground
		p.control(s, c)
		if p.state == ground && c != 0x18 && c != 0x1a {
			p.state = csi
		}
	case c >= '0' && c <= '9':
		p.has = true
		p.params[last] = min(p.params[last]*10+int(c-'0'), maxParam)
	case c == ';' || c == ':':
		if len(p.params) < maxParams {
			p.params, p.sub = append(p.params, 0), append(p.sub, c == ':')
		}
	case c >= '<' && c <= '?':
		p.private = c
	case c < '0':
		p.inter = c
	case c >= 0x40 && c <= 0x7e:
		p.state = ground
		s.control(p, c)
	}
}

// n returns parameter i, or def when it is missing or 0.
func (p *parser) n(i, def int) int {
	if i >= len(p.params) || p.params[i] == 0 {
		return def
	}
	return p.params[i]
}
