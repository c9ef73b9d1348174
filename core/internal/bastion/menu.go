package bastion

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"caponier/core/internal/access"
	"caponier/core/internal/policy"
	"caponier/core/internal/target"
)

// maxMenu bounds how many entries a menu holds; more are found by searching.
const maxMenu = 2000

// choose finds out where a plain login wants to go: a menu on a terminal, a
// list elsewhere.
func (s *session) choose(st start) (loginName, error) {
	l := s.l
	if st.kind != "shell" {
		return loginName{}, refused("usage", "Say which target: ssh '%s'@%s, or use the bastion as a jump host: ssh -J %s@%s ACCOUNT@TARGET",
			loginName{User: l.name.User, Account: "ACCOUNT", Target: "TARGET"}.format(l.s.cfg.Separator()), l.s.cfg.Address, l.name.User, l.s.cfg.Address)
	}
	if s.pty == nil {
		return loginName{}, s.list()
	}
	m := &menu{user: l.name.User, plain: plainTerminal(s.pty.Term), stale: true}
	for {
		if m.stale {
			if err := s.fill(m); err != nil {
				return loginName{}, err
			}
		}
		m.cols, m.rows = s.size()
		if _, err := s.ch.Write([]byte(m.draw())); err != nil {
			return loginName{}, errUserGone
		}
		for {
			k, err := s.keys.next(s, l.s.limits.MenuIdle)
			if err != nil {
				return loginName{}, err
			}
			echo, done := m.key(k)
			if echo != "" {
				_, _ = s.ch.Write([]byte(echo))
			}
			switch {
			case done == menuLeave:
				_, _ = s.ch.Write([]byte("\r\n"))
				return loginName{}, errListed
			case done == menuPick:
				e := m.entries[m.picked]
				_, _ = fmt.Fprintf(s.ch, "\r\nConnecting to %s as %s ...\r\n", e.Target.Name, e.Account)
				return loginName{User: l.name.User, Account: e.Account, Target: e.Target.ID}, nil
			}
			// Type-ahead is taken in whole before anything is drawn again.
			if m.redraw && len(s.keys.pending) == 0 {
				m.redraw = false
				break
			}
		}
	}
}

// fill reads the entries that match the search.
func (s *session) fill(m *menu) error {
	m.entries, m.more, m.stale = nil, false, false
	m.cursor, m.top = 0, 0
	return s.l.s.each(s.ctx, s.l.principal, s.l.source, m.search(), func(e policy.Entry) bool {
		if len(m.entries) >= maxMenu {
			m.more = true
			return false
		}
		if e.Target.Kind == target.SSH && e.Features&access.Shell != 0 {
			m.entries = append(m.entries, e)
		}
		return true
	})
}

// list prints everything the user may reach, one per line: name, account,
// kind, address.
func (s *session) list() error {
	var b strings.Builder
	err := s.l.s.each(s.ctx, s.l.principal, s.l.source, "", func(e policy.Entry) bool {
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\n", e.Target.Name, dash(e.Account), e.Target.Kind, place(&e.Target))
		return true
	})
	if err != nil {
		return err
	}
	if b.Len() == 0 {
		s.say("You may not reach any target at present.")
		return errListed
	}
	if _, err := s.ch.Write([]byte(b.String())); err != nil {
		return errUserGone
	}
	return errListed
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// place writes a target's address the way it can be typed in a login name.
func place(t *target.Target) string {
	if t.Site == "" {
		return addressOf(t)
	}
	return t.Site + "/" + addressOf(t)
}

// plainTerminal says that the terminal cannot move its cursor.
func plainTerminal(term string) bool {
	switch term {
	case "", "dumb", "unknown", "network", "dialup", "emacs":
		return true
	}
	return false
}

type menuEnd int

const (
	menuOpen menuEnd = iota
	menuPick
	menuLeave
)

// menu is the state of the target menu; it does no I/O.
type menu struct {
	user       string
	plain      bool // a terminal without cursor movement
	cols, rows int
	entries    []policy.Entry
	more       bool // not all entries fit in the menu
	text       string
	cursor     int // highlighted entry
	top        int // first entry of the page
	picked     int
	stale      bool // entries must be read again
	redraw     bool
	message    string
}

// search is the text to look for; a number is a choice, not a search.
func (m *menu) search() string {
	if _, err := strconv.Atoi(m.text); err == nil {
		return ""
	}
	return strings.TrimPrefix(m.text, "/")
}

// perPage is how many entries fit on the screen.
func (m *menu) perPage() int { return max(3, min(m.rows, 200)-6) }

// key takes one key. echo is what a plain terminal shows at once.
func (m *menu) key(k int) (echo string, end menuEnd) {
	before := m.search()
	m.message = ""
	switch {
	case k == '\r' || k == '\n':
		return "", m.enter()
	case k == 3 || k == 4 || k == 'q' && m.text == "" && m.plain:
		return "", menuLeave
	case k == 0x7f || k == 8:
		if m.text != "" {
			_, n := utf8.DecodeLastRuneInString(m.text)
			m.text = m.text[:len(m.text)-n]
			echo = "\b \b"
		}
	case k == 0x15 || k == 0x1b: // Ctrl-U, Escape
		if m.plain {
			echo = strings.Repeat("\b \b", utf8.RuneCountInString(m.text))
		}
		m.text = ""
	case k == keyUp:
		m.move(-1)
	case k == keyDown:
		m.move(1)
	case k == keyPageUp || k == 2: // Ctrl-B
		m.move(-m.perPage())
	case k == keyPageDown || k == 6 || k == '\t': // Ctrl-F
		m.move(m.perPage())
	case k >= ' ' && k < 256 && len(m.text) < 64:
		m.text += string([]byte{byte(k)})
		echo = string([]byte{byte(k)})
	}
	if m.plain {
		// Searching waits for Enter; only moving draws again.
		m.redraw = k >= keyUp && k != keyIgnored || k == 2 || k == 6 || k == '\t'
		return echo, menuOpen
	}
	m.stale = m.stale || m.search() != before
	m.redraw = true
	if n, err := strconv.Atoi(m.text); err == nil && !m.stale && n >= 1 && n <= len(m.entries) {
		m.move(n - 1 - m.cursor) // show what the number means
	}
	return "", menuOpen
}

func (m *menu) move(by int) {
	m.cursor = max(0, min(len(m.entries)-1, m.cursor+by))
	m.top = m.cursor / m.perPage() * m.perPage()
}

// enter acts on the line: a number picks, on a plain terminal text searches,
// an empty line picks what is highlighted or turns the page.
func (m *menu) enter() menuEnd {
	m.redraw = true
	if n, err := strconv.Atoi(m.text); err == nil {
		if n >= 1 && n <= len(m.entries) {
			m.picked = n - 1
			return menuPick
		}
		m.message, m.text = fmt.Sprintf("There is no number %d.", n), ""
		return menuOpen
	}
	if !m.plain {
		if len(m.entries) == 0 {
			return menuOpen
		}
		m.picked = m.cursor
		return menuPick
	}
	if m.text == "" {
		if m.top+m.perPage() < len(m.entries) {
			m.move(m.perPage())
		} else {
			m.cursor, m.top = 0, 0
			m.stale = true
		}
		return menuOpen
	}
	m.stale = true
	return menuOpen
}

// draw renders the menu; every line fits the width.
func (m *menu) draw() string {
	var b strings.Builder
	line := func(s string) {
		b.WriteString(fit(s, m.cols-1))
		b.WriteString("\r\n")
	}
	if m.plain {
		line("")
	} else {
		b.WriteString("\x1b[H\x1b[2J")
	}
	page := m.perPage()
	last := min(len(m.entries), m.top+page)
	line(m.title(last))
	line("")
	nameWidth, acctWidth := 0, 0
	for _, e := range m.entries[m.top:last] {
		nameWidth = max(nameWidth, utf8.RuneCountInString(e.Target.Name))
		acctWidth = max(acctWidth, utf8.RuneCountInString(e.Account))
	}
	// A long name leaves room for the account and a part of the address.
	nameWidth = min(nameWidth, max(12, m.cols/2))
	for i := m.top; i < last; i++ {
		e := m.entries[i]
		mark := "  "
		if i == m.cursor && !m.plain {
			mark = "> "
		}
		row := fmt.Sprintf("%s%4d  %-*s  %-*s  %s", mark, i+1, nameWidth, elide(e.Target.Name, nameWidth), acctWidth, e.Account, place(&e.Target))
		if e.NeedMFA {
			row += "  (second factor)"
		}
		if e.NeedReason {
			row += "  (asks for a reason)"
		}
		if e.Target.Comment != "" {
			row += "  " + e.Target.Comment
		}
		line(printable(strings.ReplaceAll(row, "\n", " ")))
	}
	if len(m.entries) == 0 {
		if m.search() == "" {
			line("  You may not reach any target at present.")
		} else {
			line("  Nothing you may reach matches.")
		}
	}
	line("")
	if m.message != "" {
		line(m.message)
	} else {
		line(m.help())
	}
	shown := m.text
	if m.plain {
		shown, m.text = "", ""
	}
	b.WriteString("> " + printable(shown))
	return b.String()
}

func (m *menu) title(last int) string {
	t := fmt.Sprintf("Caponier: targets of %s", m.user)
	if n := len(m.entries); n > 0 {
		t += fmt.Sprintf(", %d-%d of %d", m.top+1, last, n)
		if m.more {
			t += " or more"
		}
	}
	return t
}

func (m *menu) help() string {
	switch {
	case m.plain && m.cols < 56:
		return "Number, text or Enter; q leaves."
	case m.plain:
		return "Number connects, text searches, Enter pages, q leaves."
	case m.cols < 80:
		return "Type or move, Enter; Ctrl-D leaves."
	}
	return "Type to search. Number or arrows and Enter connect. Tab pages, Ctrl-D leaves."
}

// elide shortens s to width runes, showing that something is missing.
func elide(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// fit cuts s to width columns, counting a rune as one.
func fit(s string, width int) string {
	if width <= 0 || utf8.RuneCountInString(s) <= width {
		return s
	}
	r := []rune(s)
	return string(r[:width])
}
