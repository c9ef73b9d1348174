package recording

import (
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// masker decides which typed characters may be written down. Its rule: a
// printable character of the input is kept only if the target's output showed
// it, where an echo would show it. Everything else, passwords above all, is
// replaced by one fixed mask per line, which does not even tell how many
// characters there were. Whatever is unclear is masked: the output is recorded
// in any case, so a masked command is not lost.
//
// How an echo is recognised: characters wait in a queue, in the order typed,
// and the output is compared with its front:
//
//   - the first character of a line must be the first printable character of
//     an output chunk, or follow one that just matched;
//   - after a match on the same line the echo is known to be on, and the next
//     one may stand anywhere in the chunk, because line editors redraw
//     (insertion in the middle, colours, suggestions, completion);
//   - a line is kept only if all of it waiting was echoed; after one character
//     that was not, the rest of the line is masked;
//   - output after the line's own newline is no echo of it;
//   - when the terminal's last line looks like a prompt for a secret, the line
//     is masked whatever follows.
//
// Control characters and escape sequences (arrows, Ctrl-C, Enter) are kept.
// Time passes in calls of tick.
type masker struct {
	in    scanner // takes the input apart
	out   scanner
	queue []typed
	// suspect: a character of this line was not echoed; the rest is masked.
	suspect bool
	// masked: the mask of this line is written already.
	masked bool
	// echoed: a character of the line being typed has been seen echoed.
	echoed bool
	// screen is the last line of the output.
	screen []rune
	// chunkOpen: nothing in this output chunk spoke against an echo yet.
	chunkOpen bool
	// emit receives input that is decided.
	emit func([]byte)
	now  time.Time
	raw  []byte
}

// typed is one unit of input that is not decided.
type typed struct {
	text   string // as typed: a rune, a control character or a sequence
	r      rune   // what the echo would be; 0 for controls
	enter  bool
	at     time.Time
	echoed bool
	closed bool // the line's newline came: no echo can follow
	forced bool // typed at a prompt for a secret
}

// maskText stands for any number of characters that were not echoed.
const maskText = "****"

// echoWait is how long an echo may take. It bounds how long input waits
// before it is written.
const echoWait = 600 * time.Millisecond

// maxQueue bounds the characters that wait; beyond, they count as not echoed.
const maxQueue = 4096

// secretPrompt matches a last line that asks for something secret.
var secretPrompt = regexp.MustCompile(`(?i)(pass(word|phrase|code|wort)?|\bpin\b|secret|kennwort|mot de passe|contrase|otp|one-time|verification code|token|api.?key|private key)[^:：]{0,80}[:：]\s*$`)

// input takes bytes the user typed.
func (m *masker) input(p []byte, now time.Time) {
	m.now = now
	for _, c := range p {
		m.typeByte(c)
	}
	m.decide()
}

// typeByte collects one unit of input: a rune, a control or an escape sequence.
func (m *masker) typeByte(c byte) {
	m.raw = append(m.raw, c)
	before := len(m.queue)
	m.in.scan([]byte{c}, (*typist)(m))
	switch {
	case len(m.queue) > before:
		m.raw = m.raw[:0]
	case m.in.state == scanText && len(m.in.rest) == 0:
		// The end of a sequence that is neither rune nor control.
		m.push(typed{text: string(m.raw)})
		m.raw = m.raw[:0]
	case len(m.raw) > 64 && m.in.state != scanText:
		// A sequence that does not end (terminal answers may be long): what it
		// holds is not known to be harmless.
		m.suspect = true
		m.push(typed{r: utf8.RuneError})
		m.raw = m.raw[:0]
	}
}

// typist is the masker as the sink of the input's scanner.
type typist masker

func (t *typist) printable(r rune) {
	m := (*masker)(t)
	m.push(typed{text: string(m.raw), r: r})
}

func (t *typist) control(c byte) {
	m := (*masker)(t)
	// Enter, Ctrl-C, Ctrl-D, Ctrl-U and Ctrl-Z end what was being typed.
	m.push(typed{text: string(m.raw), enter: c == '\r' || c == '\n' || c == 3 || c == 4 || c == 0x15 || c == 0x1a})
}

func (t *typist) csi(final byte, param []byte) {
	m := (*masker)(t)
	m.push(typed{text: string(m.raw)})
}

func (m *masker) push(u typed) {
	u.at = m.now
	// Once the line is echoed, the screen shows what was typed, not a prompt.
	u.forced = u.r != 0 && m.firstOfLine(len(m.queue)) && secretPrompt.MatchString(string(m.screen))
	if len(m.queue) >= maxQueue {
		m.suspect = true
		m.decide()
	}
	m.queue = append(m.queue, u)
}

// output takes bytes the user is shown.
func (m *masker) output(p []byte, now time.Time) {
	m.now, m.chunkOpen = now, true
	if len(p) > 4096 && !m.waiting() {
		// Nothing waits for an echo: only the last line is of interest.
		m.out, m.screen = scanner{}, m.screen[:0]
		p = p[len(p)-1024:]
	}
	m.out.scan(p, (*screen)(m))
	m.decide()
}

// screen is the masker as the sink of the output's scanner.
type screen masker

func (s *screen) printable(r rune) {
	m := (*masker)(s)
	if len(m.screen) < 512 {
		m.screen = append(m.screen, r)
	}
	i := m.awaited()
	if i < 0 {
		return
	}
	first := m.firstOfLine(i)
	switch {
	case m.queue[i].r == r && (m.chunkOpen || !first):
		m.queue[i].echoed = true
		if !m.lineBefore(i) {
			m.echoed = true
		}
	default:
		m.chunkOpen = false
	}
}

func (s *screen) control(c byte) {
	m := (*masker)(s)
	switch c {
	case '\n':
		m.screen = m.screen[:0]
		// A newline answers the oldest Enter: its line gets no echo any more.
		for i := range m.queue {
			if m.queue[i].closed {
				continue
			}
			if m.queue[i].enter {
				for j := range i + 1 {
					m.queue[j].closed = true
				}
				m.chunkOpen = true
				break
			}
		}
	case '\b':
		if n := len(m.screen); n > 0 {
			m.screen = m.screen[:n-1]
		}
	}
}

func (s *screen) csi(final byte, param []byte) {
	if final == 'J' || final == 'H' {
		s.screen = s.screen[:0]
	}
}

// awaited returns the index of the character whose echo comes next, or -1.
func (m *masker) awaited() int {
	for i := range m.queue {
		if u := &m.queue[i]; u.r != 0 && !u.echoed && !u.closed {
			return i
		}
	}
	return -1
}

// lineBefore reports whether an Enter stands before entry i in the queue.
func (m *masker) lineBefore(i int) bool {
	for _, u := range m.queue[:i] {
		if u.enter {
			return true
		}
	}
	return false
}

// firstOfLine reports whether no character of entry i's line was echoed yet.
func (m *masker) firstOfLine(i int) bool {
	for j := i - 1; j >= 0; j-- {
		if m.queue[j].enter {
			return true
		}
		if m.queue[j].echoed {
			return false
		}
	}
	return !m.echoed
}

// tick lets time pass: echoes that are overdue do not come any more.
func (m *masker) tick(now time.Time) {
	m.now = now
	m.decide()
}

// flush decides everything, at the end of the recording.
func (m *masker) flush() {
	m.now = m.now.Add(time.Hour)
	m.decide()
	if len(m.raw) > 0 {
		m.suspect = true
		m.queue = append(m.queue, typed{r: utf8.RuneError, at: m.now})
		m.raw = m.raw[:0]
		m.decide()
	}
}

// waiting reports whether input waits for its echo.
func (m *masker) waiting() bool { return len(m.queue) > 0 }

// decide emits the front of the queue as far as it is decided, line by line.
func (m *masker) decide() {
	for len(m.queue) > 0 {
		n, whole := m.line()
		line := m.queue[:n]
		echoed, closed, forced := true, false, false
		for _, u := range line {
			if u.r != 0 {
				echoed = echoed && u.echoed
				forced = forced || u.forced
			}
			closed = closed || u.closed
		}
		forced = forced || !echoed && m.firstOfLine(n) && secretPrompt.MatchString(string(m.screen))
		overdue := m.now.Sub(line[0].at) >= echoWait
		switch {
		case m.suspect || forced:
			m.suspect = true
		case echoed && (whole || overdue):
			var b strings.Builder
			for _, u := range line {
				b.WriteString(u.text)
			}
			m.done(n, whole)
			m.emit([]byte(b.String()))
			continue
		case closed || overdue && m.overdue(line):
			m.suspect = true
		default:
			return
		}
		// Masked: one mask per line, controls as they are.
		var b strings.Builder
		for _, u := range line {
			switch {
			case u.text == "\x7f" || u.text == "\b":
				// How much was corrected tells how much was typed.
			case u.r == 0:
				b.WriteString(u.text)
			case !m.masked:
				b.WriteString(maskText)
				m.masked = true
			}
		}
		m.done(n, whole)
		if b.Len() > 0 {
			m.emit([]byte(b.String()))
		}
	}
}

// overdue reports whether the oldest character without echo has waited long enough.
func (m *masker) overdue(line []typed) bool {
	for _, u := range line {
		if u.r != 0 && !u.echoed {
			return m.now.Sub(u.at) >= echoWait
		}
	}
	return false
}

// line returns how many entries belong to the first line in the queue, and
// whether it is whole.
func (m *masker) line() (n int, whole bool) {
	for i, u := range m.queue {
		if u.enter {
			return i + 1, true
		}
	}
	return len(m.queue), false
}

// done removes a decided line or part of one.
func (m *masker) done(n int, whole bool) {
	m.queue = append(m.queue[:0], m.queue[n:]...)
	if whole {
		m.suspect, m.masked, m.echoed = false, false, false
	}
}
