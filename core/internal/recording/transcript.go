package recording

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Line is one line of a transcript: what stood there when it was finished,
// and when that was.
type Line struct {
	AtMS int64  `json:"t"`
	Text string `json:"s"`
}

// transcript turns a timeline into lines of text: it plays a terminal of one
// line, which is enough for search. It is a sink.
type transcript struct {
	scan  scanner
	line  []rune
	col   int
	at    time.Duration
	dirty bool
	emit  func(Line) error
	err   error
}

// maxLine bounds a line of a transcript, in runes.
const maxLine = 2000

// item takes the next item of the timeline.
func (t *transcript) item(it Item) error {
	switch it.Kind {
	case ItemOutput:
		t.at = it.At
		t.scan.scan(it.Data, t)
	case ItemEvent:
		t.flush()
		t.at = it.At
		t.put(eventLine(it))
	}
	return t.err
}

// eventLine renders an event for search: "exec: command=ls -l".
func eventLine(it Item) string {
	var b strings.Builder
	b.WriteString(it.Event)
	b.WriteByte(':')
	for _, k := range sortedKeys(it.Fields) {
		b.WriteString(" " + k + "=" + it.Fields[k])
	}
	return b.String()
}

// Bounds of a line that holds an event: what is longer, such as a text that was
// pasted, becomes several lines which overlap, so that a search across their
// border finds it.
const (
	maxEventLine = 16 << 10
	eventOverlap = 1 << 10
)

func (t *transcript) put(s string) {
	for len(s) > maxEventLine && t.err == nil {
		part := cut(s, maxEventLine)
		t.err = t.emit(Line{AtMS: t.at.Milliseconds(), Text: part})
		next := maxEventLine - eventOverlap
		for next > 0 && !utf8.RuneStart(s[next]) {
			next--
		}
		s = s[next:]
	}
	if t.err == nil && strings.TrimSpace(s) != "" {
		t.err = t.emit(Line{AtMS: t.at.Milliseconds(), Text: s})
	}
}

// flush emits the line as it stands.
func (t *transcript) flush() {
	if t.dirty {
		t.put(strings.TrimRight(string(t.line), " "))
	}
	t.line, t.col, t.dirty = t.line[:0], 0, false
}

func (t *transcript) printable(r rune) {
	if t.col >= maxLine {
		t.flush()
	}
	for len(t.line) <= t.col {
		t.line = append(t.line, ' ')
	}
	t.line[t.col] = r
	t.col++
	t.dirty = true
}

func (t *transcript) control(c byte) {
	switch c {
	case '\n', 0x0b, 0x0c:
		t.flush()
	case '\r':
		t.col = 0
	case '\b':
		t.col = max(t.col-1, 0)
	case '\t':
		t.col = min(t.col/8*8+8, maxLine)
	}
}

func (t *transcript) csi(final byte, param []byte) {
	n := 0
	for _, c := range param {
		if c < '0' || c > '9' {
			break
		}
		n = min(n*10+int(c-'0'), maxLine)
	}
	switch one := max(n, 1); final {
	case 'C':
		t.col = min(t.col+one, maxLine)
	case 'D':
		t.col = max(t.col-one, 0)
	case 'G':
		t.col = one - 1
	case 'K':
		switch {
		case n == 0 && t.col < len(t.line):
			t.line = t.line[:t.col]
		case n == 2:
			t.line = t.line[:0]
		}
	case 'P':
		if t.col < len(t.line) {
			t.line = append(t.line[:t.col], t.line[min(t.col+one, len(t.line)):]...)
		}
	case '@':
		if t.col < len(t.line) && len(t.line)+one <= maxLine {
			rest := append([]rune(nil), t.line[t.col:]...)
			t.line = t.line[:t.col]
			for range one {
				t.line = append(t.line, ' ')
			}
			t.line = append(t.line, rest...)
		}
	case 'A', 'B', 'E', 'F', 'H', 'J', 'd', 'f':
		// The cursor leaves the line: what stands there is finished.
		t.flush()
	}
}
