package screen

import "strings"

// escape carries out ESC inter c.
func (s *Screen) escape(inter, c byte) {
	cur := &s.cursor
	switch inter {
	case '(', ')':
		if c != '0' {
			c = 'B'
		}
		cur.sets[inter-'('] = c
		return
	case '#':
		if c == '8' {
			for _, l := range s.grid {
				for x := range l {
					l[x] = cell{r: 'E'}
				}
			}
			s.top, s.end = 0, s.rows
			s.home(0, 0)
		}
		return
	case 0:
	default:
		return
	}
	switch c {
	case '7':
		s.saved = *cur
	case '8':
		s.restore()
	case 'D':
		cur.wrap = false
		s.lineFeed()
	case 'E':
		cur.x, cur.wrap = 0, false
		s.lineFeed()
	case 'H':
		s.tabs[cur.x] = true
	case 'M':
		cur.wrap = false
		switch {
		case cur.y == s.top:
			s.scroll(s.top, s.end, -1)
		case cur.y > 0:
			cur.y--
		}
	case 'c':
		s.reset(s.cols, s.rows)
	case '=':
		s.modes.appKeypad = true
	case '>':
		s.modes.appKeypad = false
	}
}

func (s *Screen) restore() {
	s.cursor = s.saved
	s.cursor.x, s.cursor.y = clamp(s.cursor.x, 0, s.cols-1), clamp(s.cursor.y, 0, s.rows-1)
	s.cursor.wrap = s.cursor.wrap && s.cursor.x == s.cols-1 && !s.modes.nowrap
}

func (s *Screen) tab(n int) {
	c := &s.cursor
	c.wrap = false
	for ; n > 0 && c.x < s.cols-1; n-- {
		for c.x++; c.x < s.cols-1 && !s.tabs[c.x]; c.x++ {
		}
	}
	for ; n < 0 && c.x > 0; n++ {
		for c.x--; c.x > 0 && !s.tabs[c.x]; c.x-- {
		}
	}
}

func (s *Screen) setTitle(t string) {
	s.title = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(t, ""))
}

// control carries out a control sequence.
func (s *Screen) control(p *parser, final byte) {
	if p.private == '?' && p.inter == 0 && (final == 'h' || final == 'l') {
		for _, m := range p.params {
			s.privateMode(m, final == 'h')
		}
		return
	}
	if p.inter == '!' && final == 'p' {
		s.softReset()
		return
	}
	if p.inter == ' ' && final == 'q' {
		s.shape = clamp(p.params[0], 0, 6)
		return
	}
	if p.private != 0 && !(p.private == '?' && (final == 'J' || final == 'K')) || p.inter != 0 {
		return
	}
	cur := &s.cursor
	n := p.n(0, 1)
	low, high := 0, s.rows-1
	if cur.y >= s.top && cur.y < s.end {
		low, high = s.top, s.end-1
	}
	switch final {
	case 'A':
		cur.y, cur.wrap = clamp(cur.y-n, low, high), false
	case 'B', 'e':
		cur.y, cur.wrap = clamp(cur.y+n, low, high), false
	case 'C', 'a':
		cur.x, cur.wrap = min(cur.x+n, s.cols-1), false
	case 'D':
		cur.x, cur.wrap = max(cur.x-n, 0), false
	case 'E':
		cur.x, cur.y, cur.wrap = 0, clamp(cur.y+n, low, high), false
	case 'F':
		cur.x, cur.y, cur.wrap = 0, clamp(cur.y-n, low, high), false
	case 'G', '`':
		cur.x, cur.wrap = clamp(n-1, 0, s.cols-1), false
	case 'H', 'f':
		s.home(p.n(1, 1)-1, n-1)
	case 'd':
		s.home(cur.x, n-1)
	case 'I':
		s.tab(n)
	case 'Z':
		s.tab(-n)
	case 'J':
		s.eraseScreen(p.params[0])
	case 'K':
		cur.wrap = false
		switch p.params[0] {
		case 0:
			s.erase(cur.y, cur.x, s.cols)
		case 1:
			s.erase(cur.y, 0, cur.x+1)
		case 2:
			s.erase(cur.y, 0, s.cols)
		}
	case 'L', 'M':
		if cur.y >= s.top && cur.y < s.end {
			if final == 'L' {
				n = -n
			}
			s.scroll(cur.y, s.end, n)
			cur.x, cur.wrap = 0, false
		}
	case 'P':
		l := s.grid[cur.y]
		n = min(n, s.cols-cur.x)
		copy(l[cur.x:], l[cur.x+n:])
		s.erase(cur.y, s.cols-n, s.cols)
		cur.wrap = false
	case '@':
		l := s.grid[cur.y]
		n = min(n, s.cols-cur.x)
		copy(l[cur.x+n:], l[cur.x:])
		s.erase(cur.y, cur.x, cur.x+n)
		cur.wrap = false
	case 'X':
		s.erase(cur.y, cur.x, cur.x+n)
		cur.wrap = false
	case 'S':
		s.scroll(s.top, s.end, n)
	case 'T':
		if len(p.params) == 1 {
			s.scroll(s.top, s.end, -n)
		}
	case 'g':
		switch p.params[0] {
		case 0:
			s.tabs[cur.x] = false
		case 3:
			clear(s.tabs)
		}
	case 'h', 'l':
		for _, m := range p.params {
			if m == 4 {
				s.modes.insert = final == 'h'
			}
		}
	case 'm':
		s.cursor.style = sgr(s.cursor.style, p.params, p.sub)
	case 'r':
		top, end := p.n(0, 1)-1, min(p.n(1, s.rows), s.rows)
		if top < end-1 {
			s.top, s.end = top, end
			s.home(0, 0)
		}
	case 's':
		s.saved = *cur
	case 'u':
		s.restore()
	case 'b':
		// Repeat: rare; programs send it only after asking what we are.
	}
}

func (s *Screen) eraseScreen(how int) {
	cur := &s.cursor
	from, to := 0, s.rows
	switch how {
	case 0:
		s.erase(cur.y, cur.x, s.cols)
		from = cur.y + 1
	case 1:
		s.erase(cur.y, 0, cur.x+1)
		to = cur.y
	case 2:
	default:
		return
	}
	cur.wrap = false
	for y := from; y < to; y++ {
		s.erase(y, 0, s.cols)
	}
}

func (s *Screen) softReset() {
	m := &s.modes
	m.nowrap, m.insert, m.appCursor, m.appKeypad, m.hidden = false, false, false, false, false
	s.top, s.end = 0, s.rows
	c := &s.cursor
	c.style, c.sets, c.shift, c.origin, c.wrap = style{}, [2]byte{'B', 'B'}, 0, false, false
	s.saved = cursor{sets: c.sets}
}

func (s *Screen) privateMode(n int, on bool) {
	m := &s.modes
	switch n {
	case 1:
		m.appCursor = on
	case 5:
		m.reverse = on
	case 6:
		s.cursor.origin = on
		s.home(0, 0)
	case 7:
		m.nowrap = !on
		if !on {
			s.cursor.wrap = false
		}
	case 25:
		m.hidden = !on
	case 66:
		m.appKeypad = on
	case 9, 1000, 1002, 1003:
		m.mouse = 0
		if on {
			m.mouse = n
		}
	case 1005, 1006, 1015:
		m.encoding = 0
		if on {
			m.encoding = n
		}
	case 1004:
		m.focus = on
	case 2004:
		m.paste = on
	case 47, 1047:
		s.alternate(on, true)
	case 1048:
		if on {
			s.saved = s.cursor
		} else {
			s.restore()
		}
	case 1049:
		if on == s.alt {
			return
		}
		if on {
			s.saved = s.cursor
			s.alternate(true, true)
		} else {
			s.alternate(false, true)
			s.restore()
		}
	}
}

// sgr applies a sequence of graphic renditions (ECMA-48 §8.3.117; ISO 8613-6
// for colours, with semicolons or colons).
func sgr(st style, params []int, sub []bool) style {
	for i := 0; i < len(params); i++ {
		if sub[i] {
			continue
		}
		switch n := params[i]; {
		case n == 0:
			st = style{}
		case n == 1:
			st.attrs |= bold
		case n == 2:
			st.attrs |= faint
		case n == 3:
			st.attrs |= italic
		case n == 4:
			st.attrs |= underline
			if i+1 < len(params) && sub[i+1] && params[i+1] == 0 {
				st.attrs &^= underline
			}
		case n == 5 || n == 6:
			st.attrs |= blink
		case n == 7:
			st.attrs |= inverse
		case n == 8:
			st.attrs |= hidden
		case n == 9:
			st.attrs |= struck
		case n == 21:
			st.attrs |= underline
		case n == 22:
			st.attrs &^= bold | faint
		case n == 23:
			st.attrs &^= italic
		case n == 24:
			st.attrs &^= underline
		case n == 25:
			st.attrs &^= blink
		case n == 27:
			st.attrs &^= inverse
		case n == 28:
			st.attrs &^= hidden
		case n == 29:
			st.attrs &^= struck
		case n >= 30 && n <= 37:
			st.fg = indexed | colour(n-30)
		case n == 39:
			st.fg = 0
		case n >= 40 && n <= 47:
			st.bg = indexed | colour(n-40)
		case n == 49:
			st.bg = 0
		case n >= 90 && n <= 97:
			st.fg = indexed | colour(n-90+8)
		case n >= 100 && n <= 107:
			st.bg = indexed | colour(n-100+8)
		case n == 38 || n == 48 || n == 58:
			c, used := extended(params[i+1:], sub[i+1:])
			i += used
			switch {
			case c == 0:
			case n == 38:
				st.fg = c
			case n == 48:
				st.bg = c
			}
		}
	}
	return st
}

// extended reads 5;n or 2;r;g;b, also with colons, then with an optional
// colour space before r.
func extended(p []int, sub []bool) (c colour, used int) {
	if len(p) == 0 {
		return 0, 0
	}
	if sub[0] {
		for used < len(p) && sub[used] {
			used++
		}
		p = p[:used]
		if len(p) >= 5 && p[0] == 2 {
			p = append([]int{2}, p[2:]...)
		}
	} else {
		used = map[int]int{5: 2, 2: 4}[p[0]]
	}
	switch {
	case p[0] == 5 && len(p) >= 2:
		return indexed | colour(p[1]&0xff), used
	case p[0] == 2 && len(p) >= 4:
		return direct | colour(p[1]&0xff)<<16 | colour(p[2]&0xff)<<8 | colour(p[3]&0xff), used
	}
	return 0, used
}
