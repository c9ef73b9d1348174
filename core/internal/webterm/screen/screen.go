// Package screen keeps what stands on a terminal's screen while a program's
// output runs through it, and draws that picture again for somebody who comes
// later: cells with colours, the alternate screen, cursor, scroll region, tab
// stops, character sets and the modes that change what keys send. It follows
// ECMA-48 and the xterm control sequences that programs use.
//
// It keeps no scrollback and answers no queries. Lines are not wrapped anew
// when the size changes: programs redraw after that.
package screen

import "unicode/utf8"

// MaxSize bounds columns and rows.
const MaxSize = 1000

// Screen is one terminal's screen. Not safe for concurrent use.
type Screen struct {
	cols, rows int
	// grid is the buffer in use: main or alternate.
	grid, main []line
	alt        bool
	cursor     cursor
	saved      cursor // of the buffer in use (DECSC)
	savedMain  cursor // of the main screen while the alternate one is in use
	top, end   int    // scroll region: rows top to end-1
	tabs       []bool
	modes      modes
	title      string
	shape      int // of the cursor (DECSCUSR)

	parser
}

type line []cell

// cell is one place: a rune with the marks combined with it. The place right
// of a wide rune has r 0.
type cell struct {
	r     rune
	marks string
	style style
}

// colour is 0 for the default, else a kind in the upper byte.
type colour uint32

const (
	indexed colour = 1 << 24
	direct  colour = 2 << 24
)

type style struct {
	fg, bg colour
	attrs  attrs
}

type attrs uint16

const (
	bold attrs = 1 << iota
	faint
	italic
	underline
	blink
	inverse
	hidden
	struck
)

type cursor struct {
	x, y int
	// wrap: the last column was written; the next rune goes to the next line.
	wrap   bool
	style  style
	sets   [2]byte // G0 and G1: 'B' or '0'
	shift  byte    // which of them is in use
	origin bool
}

// modes are those a later watcher must have, too.
type modes struct {
	nowrap, insert, appCursor, appKeypad, hidden, reverse, paste, focus bool
	// mouse is the tracking mode (9, 1000, 1002, 1003), encoding 1005, 1006 or
	// 1015; 0 = none.
	mouse, encoding int
}

var blank = cell{r: ' '}

// New makes an empty screen.
func New(cols, rows int) *Screen {
	s := &Screen{}
	s.reset(clamp(cols, 1, MaxSize), clamp(rows, 1, MaxSize))
	return s
}

func (s *Screen) reset(cols, rows int) {
	*s = Screen{cols: cols, rows: rows, end: rows, cursor: cursor{sets: [2]byte{'B', 'B'}}}
	s.saved, s.savedMain = s.cursor, s.cursor
	s.main = newGrid(cols, rows)
	s.grid = s.main
	s.tabs = defaultTabs(cols)
}

func newGrid(cols, rows int) []line {
	g := make([]line, rows)
	for i := range g {
		g[i] = newLine(cols, blank)
	}
	return g
}

func newLine(cols int, c cell) line {
	l := make(line, cols)
	for i := range l {
		l[i] = c
	}
	return l
}

func defaultTabs(cols int) []bool {
	t := make([]bool, cols)
	for i := 8; i < cols; i += 8 {
		t[i] = true
	}
	return t
}

func clamp(n, low, high int) int { return min(max(n, low), high) }

// Size returns columns and rows.
func (s *Screen) Size() (cols, rows int) { return s.cols, s.rows }

// Write lets output run over the screen. It never fails.
func (s *Screen) Write(p []byte) (int, error) {
	for _, c := range p {
		s.feed(s, c)
	}
	return len(p), nil
}

// Resize changes the size. Rows go and come at the bottom, unless the cursor
// would be lost.
func (s *Screen) Resize(cols, rows int) {
	cols, rows = clamp(cols, 1, MaxSize), clamp(rows, 1, MaxSize)
	if cols == s.cols && rows == s.rows {
		return
	}
	drop := max(0, s.cursor.y-rows+1)
	s.grid = fit(s.grid, cols, rows, drop)
	if s.alt {
		s.main = fit(s.main, cols, rows, max(0, s.savedMain.y-rows+1))
	} else {
		s.main = s.grid
	}
	tabs := defaultTabs(cols)
	copy(tabs, s.tabs)
	s.cols, s.rows, s.tabs, s.top, s.end = cols, rows, tabs, 0, rows
	s.cursor.y -= drop
	for _, c := range []*cursor{&s.cursor, &s.saved, &s.savedMain} {
		c.x, c.y, c.wrap = clamp(c.x, 0, cols-1), clamp(c.y, 0, rows-1), false
	}
}

func fit(g []line, cols, rows, drop int) []line {
	out := newGrid(cols, rows)
	for y := range out {
		if y+drop < len(g) {
			copy(out[y], g[y+drop])
			mend(out[y])
		}
	}
	return out
}

// mend blanks halves of wide runes.
func mend(l line) {
	for x := range l {
		if l[x].r == 0 && (x == 0 || width(l[x-1].r) != 2) || width(l[x].r) == 2 && (x+1 == len(l) || l[x+1].r != 0) {
			l[x] = cell{r: ' ', style: l[x].style}
		}
	}
}

// put writes a rune at the cursor.
func (s *Screen) put(r rune) {
	c := &s.cursor
	if c.sets[c.shift] == '0' && r >= 0x60 && r <= 0x7e {
		r = graphics[r-0x60]
	}
	w := width(r)
	if w == 0 {
		s.combine(r)
		return
	}
	if c.wrap && !s.modes.nowrap {
		c.x, c.wrap = 0, false
		s.lineFeed()
	}
	if w == 2 && c.x == s.cols-1 {
		if s.cols < 2 {
			return
		}
		if s.modes.nowrap {
			c.x--
		} else {
			s.grid[c.y][c.x] = cell{r: ' ', style: c.style}
			mend(s.grid[c.y])
			c.x = 0
			s.lineFeed()
		}
	}
	l := s.grid[c.y]
	if s.modes.insert {
		copy(l[min(c.x+w, s.cols):], l[c.x:])
	}
	l[c.x] = cell{r: r, style: c.style}
	if w == 2 {
		l[c.x+1] = cell{style: c.style}
	}
	mend(l)
	if c.x += w; c.x >= s.cols {
		c.x, c.wrap = s.cols-1, !s.modes.nowrap
	} else {
		c.wrap = false
	}
}

// maxMarks bounds what is combined with one rune, in bytes.
const maxMarks = 32

// combine adds a mark to the rune before the cursor.
func (s *Screen) combine(r rune) {
	x := s.cursor.x
	if !s.cursor.wrap {
		x--
	}
	l := s.grid[s.cursor.y]
	if x > 0 && l[x].r == 0 {
		x--
	}
	if x < 0 || l[x].r == 0 || len(l[x].marks)+utf8.RuneLen(r) > maxMarks {
		return
	}
	l[x].marks += string(r)
}

// lineFeed moves down, scrolling at the end of the region.
func (s *Screen) lineFeed() {
	switch y := s.cursor.y; {
	case y == s.end-1:
		s.scroll(s.top, s.end, 1)
	case y < s.rows-1:
		s.cursor.y++
	}
}

// scroll moves the rows top to end-1 up by n (down when negative).
func (s *Screen) scroll(top, end, n int) {
	n = clamp(n, top-end, end-top)
	fill := cell{r: ' ', style: style{bg: s.cursor.style.bg}}
	region := s.grid[top:end]
	if n > 0 {
		gone := append([]line(nil), region[:n]...)
		copy(region, region[n:])
		copy(region[len(region)-n:], gone)
		region = region[len(region)-n:]
	} else {
		n = -n
		gone := append([]line(nil), region[len(region)-n:]...)
		copy(region[n:], region)
		copy(region, gone)
		region = region[:n]
	}
	for i := range region {
		for x := range region[i] {
			region[i][x] = fill
		}
	}
}

// erase blanks the cells from to to-1 of row y.
func (s *Screen) erase(y, from, to int) {
	l := s.grid[y]
	for x := max(from, 0); x < min(to, s.cols); x++ {
		l[x] = cell{r: ' ', style: style{bg: s.cursor.style.bg}}
	}
	mend(l)
}

// alternate switches to the alternate screen or back.
func (s *Screen) alternate(on, clear bool) {
	if on == s.alt {
		return
	}
	s.alt = on
	if on {
		s.main = s.grid
		s.grid = newGrid(s.cols, s.rows)
		s.savedMain, s.saved = s.saved, cursor{sets: [2]byte{'B', 'B'}}
		return
	}
	s.grid = s.main
	s.saved = s.savedMain
}

func (s *Screen) home(x, y int) {
	c := &s.cursor
	low, high := 0, s.rows-1
	if c.origin {
		low, high = s.top, s.end-1
		y += s.top
	}
	c.x, c.y, c.wrap = clamp(x, 0, s.cols-1), clamp(y, low, high), false
}

// graphics is the DEC special set from 0x60 on.
var graphics = []rune("◆▒␉␌␍␊°±␤␋┘┐┌└┼⎺⎻─⎼⎽├┤┴┬│≤≥π≠£·")
