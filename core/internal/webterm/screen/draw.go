package screen

import (
	"fmt"
	"strings"
)

// Draw returns output that makes any terminal of this size show the same,
// whatever it showed before.
func (s *Screen) Draw() []byte {
	d := &drawing{}
	// A known state: main screen, no modes, an empty screen.
	d.text("\x1b[?1049l\x1b[!p\x1b[0m\x1b[r\x1b[?6l\x1b[4l\x1b[?1l\x1b>\x1b(B\x1b)B\x0f\x1b[?7h\x1b[?5l\x1b[?9l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?1004l\x1b[?2004l\x1b[2J\x1b[3g")
	for x, on := range s.tabs {
		if on {
			fmt.Fprintf(d, "\x1b[1;%dH\x1bH", x+1)
		}
	}
	d.text("\x1b]2;" + s.title + "\x07")
	if s.alt {
		d.grid(s.main)
		d.cursorAt(s.savedMain, s.main, s)
		d.text("\x1b[?7h\x1b[?6l\x1b[0m\x1b(B\x1b)B\x0f\x1b[?1049h\x1b[2J")
	}
	d.grid(s.grid)
	// What DECSC would bring back, then what holds now.
	d.region(s)
	d.cursorAt(s.saved, s.grid, s)
	d.text("\x1b7")
	d.cursorAt(s.cursor, s.grid, s)
	d.modes(s)
	return []byte(d.String())
}

type drawing struct {
	strings.Builder
	style style
}

func (d *drawing) text(t string) { d.WriteString(t) }

func (d *drawing) grid(g []line) {
	d.setStyle(style{})
	for y, l := range g {
		n := len(l)
		for n > 0 && l[n-1] == blank {
			n--
		}
		if n == 0 {
			continue
		}
		fmt.Fprintf(d, "\x1b[%d;1H", y+1)
		for _, c := range l[:n] {
			d.cell(c)
		}
	}
	d.setStyle(style{})
}

func (d *drawing) cell(c cell) {
	if c.r == 0 {
		return // the wide rune before covers it
	}
	d.setStyle(c.style)
	d.WriteRune(c.r)
	d.WriteString(c.marks)
}

func (d *drawing) setStyle(st style) {
	if st == d.style {
		return
	}
	d.style = st
	d.WriteString("\x1b[0")
	for i, code := range []int{1, 2, 3, 4, 5, 7, 8, 9} {
		if st.attrs&(1<<i) != 0 {
			fmt.Fprintf(d, ";%d", code)
		}
	}
	d.colour(st.fg, 38)
	d.colour(st.bg, 48)
	d.WriteByte('m')
}

func (d *drawing) colour(c colour, base int) {
	switch n := int(c & 0xffffff); {
	case c&indexed != 0 && n < 8:
		fmt.Fprintf(d, ";%d", base-8+n)
	case c&indexed != 0:
		fmt.Fprintf(d, ";%d;5;%d", base, n)
	case c&direct != 0:
		fmt.Fprintf(d, ";%d;2;%d;%d;%d", base, n>>16, n>>8&0xff, n&0xff)
	}
}

func (d *drawing) region(s *Screen) {
	if s.top != 0 || s.end != s.rows {
		fmt.Fprintf(d, "\x1b[%d;%dr", s.top+1, s.end)
	}
}

// cursorAt moves to c with its attributes. Waiting at the end of a line is
// brought about by writing the last cell again.
func (d *drawing) cursorAt(c cursor, g []line, s *Screen) {
	y := c.y
	if c.origin {
		d.text("\x1b[?6h")
		y -= s.top
	} else {
		d.text("\x1b[?6l")
	}
	fmt.Fprintf(d, "\x1b[%d;%dH", y+1, c.x+1)
	if c.wrap && c.y < len(g) && c.x == s.cols-1 {
		x := c.x
		if g[c.y][x].r == 0 && x > 0 {
			x--
			d.text("\x1b[D")
		}
		d.text("\x1b[?7h\x1b(B\x0f")
		d.cell(g[c.y][x])
	}
	d.setStyle(c.style)
	fmt.Fprintf(d, "\x1b(%c\x1b)%c", c.sets[0], c.sets[1])
	if c.shift == 1 {
		d.WriteByte(0x0e)
	} else {
		d.WriteByte(0x0f)
	}
}

func (d *drawing) modes(s *Screen) {
	m := s.modes
	for _, x := range []struct {
		on   bool
		text string
	}{
		{!m.nowrap, "\x1b[?7h"}, {m.nowrap, "\x1b[?7l"}, {m.insert, "\x1b[4h"}, {m.appCursor, "\x1b[?1h"}, {m.appKeypad, "\x1b="},
		{m.hidden, "\x1b[?25l"}, {!m.hidden, "\x1b[?25h"}, {m.reverse, "\x1b[?5h"}, {m.paste, "\x1b[?2004h"}, {m.focus, "\x1b[?1004h"},
	} {
		if x.on {
			d.text(x.text)
		}
	}
	if m.mouse != 0 {
		fmt.Fprintf(d, "\x1b[?%dh", m.mouse)
	}
	if m.encoding != 0 {
		fmt.Fprintf(d, "\x1b[?%dh", m.encoding)
	}
	fmt.Fprintf(d, "\x1b[%d q", s.shape)
}
