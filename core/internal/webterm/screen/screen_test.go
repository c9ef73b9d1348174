package screen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// text is what stands on the screen, one line per row.
func text(s *Screen) string {
	var b strings.Builder
	for _, l := range s.grid {
		var row strings.Builder
		for _, c := range l {
			if c.r != 0 {
				row.WriteRune(c.r)
				row.WriteString(c.marks)
			}
		}
		b.WriteString(strings.TrimRight(row.String(), " ") + "\n")
	}
	return b.String()
}

func TestWhatStandsThere(t *testing.T) {
	for _, c := range []struct{ name, out, want string }{
		{"lines", "one\r\ntwo", "one\ntwo\n\n\n"},
		{"wraps", "0123456789abc", "0123456789\nabc\n\n\n"},
		{"waits at the end of a line", "0123456789\rX", "X123456789\n\n\n\n"},
		{"no wrap", "\x1b[?7l0123456789abc", "012345678c\n\n\n\n"},
		{"scrolls", "1\r\n2\r\n3\r\n4\r\n5", "2\n3\n4\n5\n"},
		{"moves", "\x1b[3;4Hx\x1b[Ay\x1b[2Dz", "\n   zy\n   x\n\n"},
		{"erases", "abcdef\x1b[3D\x1b[Kx", "abcx\n\n\n\n"},
		{"erases all", "abc\r\ndef\x1b[2J\x1b[Hx", "x\n\n\n\n"},
		{"inserts and deletes", "abcdef\x1b[1;3H\x1b[2@XY\x1b[1;1H\x1b[P", "bXYcdef\n\n\n\n"},
		{"inserts lines", "1\r\n2\r\n3\x1b[2;1H\x1b[Lx", "1\nx\n2\n3\n"},
		{"region", "1\r\n2\r\n3\r\n4\x1b[2;3r\x1b[3;1H\nx", "1\n3\nx\n4\n"},
		{"reverse index", "1\r\n2\x1b[H\x1bMx", "x\n1\n2\n\n"},
		{"tabs", "a\tb", "a       b\n\n\n\n"},
		{"graphics", "\x1b(0lqk\x1b(B q", "┌─┐ q\n\n\n\n"},
		{"wide", "日本\x1b[1;2Hx", " x本\n\n\n\n"},
		{"wide at the end", "012345678日", "012345678\n日\n\n\n"},
		{"combining", "e\u0301a", "e\u0301a\n\n\n\n"},
		{"rubbish", "a\xff\xc3b", "a\ufffd\ufffdb\n\n\n\n"},
		{"alternate and back", "main\x1b[?1049hother\x1b[?1049l!", "main!\n\n\n\n"},
		{"strings are not text", "a\x1b]0;title\x07b\x1bPq junk\x1b\\c", "abc\n\n\n\n"},
		{"colours are not text", "\x1b[38;2;1;2;3ma\x1b[48:5:7mb\x1b[m", "ab\n\n\n\n"},
		{"reset", "abc\x1bcx", "x\n\n\n\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(10, 4)
			s.Write([]byte(c.out))
			if got := text(s); got != c.want {
				t.Errorf("%q\n got %q\nwant %q", c.out, got, c.want)
			}
		})
	}
}

// pieces of output that programs send, with which random output is made.
func piece(t *rapid.T) string {
	n := func(hi int) int { return rapid.IntRange(0, hi).Draw(t, "n") }
	return rapid.OneOf(
		rapid.StringMatching(`[a-z ]{1,12}`),
		rapid.SampledFrom([]string{"\r", "\n", "\b", "\t", "\r\n", "日本", "é", "e\u0301", "👍", "\x0e", "\x0f", "\x1b7", "\x1b8", "\x1bM", "\x1bD", "\x1bE",
			"\x1bH", "\x1b(0", "\x1b(B", "\x1b)0", "\x1b=", "\x1b>", "\x1b[?1049h", "\x1b[?1049l", "\x1b[?47h", "\x1b[?25l", "\x1b[?25h", "\x1b[?7l", "\x1b[?7h",
			"\x1b[?6h", "\x1b[?6l", "\x1b[4h", "\x1b[4l", "\x1b[?1h", "\x1b[?2004h", "\x1b[?1002h", "\x1b[?1006h", "\x1b]2;title\x07", "\x1b[m", "\x1b[1;4m",
			"\x1b[38;5;200m", "\x1b[48;2;1;2;3m", "\x1b[31m", "\x1b[107m", "\x1b[g", "\x1b[3g", "\x1b[4 q", "\x1b#8", "\x1b[!p", "\x1b[s", "\x1b[u"}),
		rapid.Custom(func(t *rapid.T) string {
			final := rapid.SampledFrom(strings.Split("A B C D E F G H I J K L M P S T X Z @ d r f", " ")).Draw(t, "final")
			return fmt.Sprintf("\x1b[%d;%d%s", n(14), n(14), final)
		}),
		rapid.Custom(func(t *rapid.T) string {
			final := rapid.SampledFrom(strings.Split("A B C D G J K L M P S T X @ d", " ")).Draw(t, "final")
			return fmt.Sprintf("\x1b[%d%s", n(14), final)
		}),
	).Draw(t, "piece")
}

// state is everything a later viewer must share.
type snapshot struct {
	Grid, Main []line
	Alt        bool
	Cursor     cursor
	Top, End   int
	Tabs       []bool
	Modes      modes
	Title      string
	Shape      int
}

func stateOf(s *Screen) snapshot {
	x := snapshot{Grid: s.grid, Alt: s.alt, Cursor: s.cursor, Top: s.top, End: s.end, Tabs: s.tabs, Modes: s.modes, Title: s.title, Shape: s.shape}
	if s.alt {
		x.Main = s.main
	}
	return x
}

// TestDrawShowsTheSame: whatever a program printed, drawing the screen on a
// terminal that showed something else gives the same screen.
func TestDrawShowsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		run := func(s *Screen, what string) string {
			var all strings.Builder
			for range rapid.IntRange(0, 60).Draw(t, what) {
				all.WriteString(piece(t))
			}
			s.Write([]byte(all.String()))
			return all.String()
		}
		cols, rows := rapid.IntRange(1, 12).Draw(t, "cols"), rapid.IntRange(1, 6).Draw(t, "rows")
		a, b := New(cols, rows), New(cols, rows)
		out := run(a, "shown")
		run(b, "shown before")
		b.Write([]byte("\x18")) // whatever sequence was open is over
		b.Write(a.Draw())
		want := stateOf(a)
		if d := cmp.Diff(want, stateOf(b), cmp.AllowUnexported(cell{}, style{}, cursor{}, modes{})); d != "" {
			t.Fatalf("%q\ndrawn as %q\n(-shown +drawn)\n%s", out, a.Draw(), d)
		}
	})
}

// TestPiecesDoNotMatter: output may be cut anywhere.
func TestPiecesDoNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all strings.Builder
		for range rapid.IntRange(0, 40).Draw(t, "pieces") {
			all.WriteString(piece(t))
		}
		out := []byte(all.String())
		a, b := New(11, 5), New(11, 5)
		a.Write(out)
		for len(out) > 0 {
			n := rapid.IntRange(1, len(out)).Draw(t, "cut")
			b.Write(out[:n])
			out = out[n:]
		}
		if d := cmp.Diff(stateOf(a), stateOf(b), cmp.AllowUnexported(cell{}, style{}, cursor{}, modes{})); d != "" {
			t.Fatal(d)
		}
	})
}

func TestResizeKeepsTheCursorLine(t *testing.T) {
	s := New(10, 4)
	s.Write([]byte("1\r\n2\r\n3\r\n4"))
	s.Resize(8, 2)
	if got := text(s); got != "3\n4\n" {
		t.Errorf("after shrinking: %q", got)
	}
	s.Resize(5, 3)
	s.Write([]byte("\r\nabcdefg"))
	if got := text(s); got != "4\nabcde\nfg\n" {
		t.Errorf("after growing: %q", got)
	}
}

// FuzzWrite: no output and no size breaks the screen, and drawing it again
// changes nothing.
func FuzzWrite(f *testing.F) {
	f.Add([]byte("\x1b[38:2::1:2:3mhello\x1b[?1049h\x1b[2;1r"), uint8(3), uint8(2))
	f.Add([]byte("日\x1b[31@\x1b[4h日\xe6\x97"), uint8(2), uint8(1))
	f.Fuzz(func(t *testing.T, out []byte, cols, rows uint8) {
		s := New(int(cols), int(rows))
		half := len(out) / 2
		s.Write(out[:half])
		s.Resize(int(rows)+1, int(cols)+1)
		s.Write(out[half:])
		again := New(s.Size())
		again.Write(s.Draw())
		if d := cmp.Diff(stateOf(s), stateOf(again), cmp.AllowUnexported(cell{}, style{}, cursor{}, modes{})); d != "" {
			t.Fatalf("(-shown +drawn)\n%s", d)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	out := []byte(strings.Repeat("\x1b[32mdrwxr-xr-x\x1b[0m 2 root root 4096 Nov 22 10:00 some-directory-name\r\n", 100))
	s := New(120, 40)
	b.SetBytes(int64(len(out)))
	b.ReportAllocs()
	for b.Loop() {
		s.Write(out)
	}
}
