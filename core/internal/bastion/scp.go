package bastion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"sync"

	"caponier/core/internal/recording"
)

// Bounds of the passive reader of the old scp protocol.
const (
	maxSCPLine  = 8 << 10 // bytes of a control line
	maxSCPDepth = 256     // directories within each other
)

var errSCP = &refusal{public: "The scp protocol could not be followed, so the session has ended.", code: "scp"}

// scpRole is what scp runs for at the target.
type scpRole struct {
	direction recording.Direction
	path      string // as asked for
	recursive bool
	directory bool // -d: path is a directory
}

// parseSCP reads the command of a transfer that classify took for scp.
func parseSCP(words []string) scpRole {
	r := scpRole{direction: recording.Download}
	for i, a := range words[1:] {
		if a == "--" {
			r.path = strings.Join(words[i+2:], " ")
			return r
		}
		if len(a) < 2 || a[0] != '-' {
			r.path = strings.Join(words[i+1:], " ")
			return r
		}
		if strings.Contains(a, "t") {
			r.direction = recording.Upload
		}
		r.recursive = r.recursive || strings.Contains(a, "r")
		r.directory = r.directory || strings.Contains(a, "d")
	}
	return r
}

// name is where a file of the transfer lies at the target, as far as it can
// be told: whether the path of an upload is a directory is not said.
func (r scpRole) name(dirs []string, file string) string {
	base := r.path
	switch {
	case r.direction == recording.Download:
		base = path.Dir(r.path)
	case len(dirs) == 0 && !r.directory && !r.recursive:
		return r.path
	}
	return path.Join(append(append([]string{base}, dirs...), file)...)
}

// scpTap follows an scp transfer passively. One side, the source, sends
// control lines and file contents; the other answers each with a byte.
//
//	C<mode> <size> <name>\n  then size bytes and a status byte
//	D<mode> 0 <name>\n … E\n a directory
//	T<times>\n               times of what follows
//	\1<text>\n, \2<text>\n   an error of the source
type scpTap struct {
	countTap
	role   scpRole
	copies *copies

	mu     sync.Mutex
	line   []byte    // guarded by mu: the control line being read
	state  scpState  // guarded by mu
	left   int64     // guarded by mu: bytes of the content to come
	at     int64     // guarded by mu: bytes of the content seen
	path   string    // guarded by mu: of the file at hand
	copy   *fileCopy // guarded by mu
	dirs   []string  // guarded by mu
	last   byte      // guarded by mu: kind of the last control line
	answer scpAnswer // guarded by mu: to it
	text   bool      // guarded by mu: the other side's answer is in its text
}

type scpState int

const (
	scpControl scpState = iota // between control lines, or in one
	scpOffered                 // a file was announced; the other side may refuse it
	scpContent
	scpStatus // the byte after the content
	scpSkip   // the text of an error
)

type scpAnswer int

const (
	scpNone scpAnswer = iota
	scpTaken
	scpRefused
)

func newSCPTap(ctx context.Context, e events, role scpRole, log *slog.Logger) *scpTap {
	return &scpTap{countTap: countTap{events: e, name: "scp"}, role: role, copies: newCopies(ctx, e.rec, log)}
}

func (t *scpTap) input(p []byte) error {
	if err := t.countTap.input(p); err != nil {
		return err
	}
	return t.feed(p, t.role.direction == recording.Upload)
}

func (t *scpTap) output(p []byte, stderr bool) error {
	if err := t.countTap.output(p, stderr); err != nil || stderr {
		return err
	}
	return t.feed(p, t.role.direction == recording.Download)
}

func (t *scpTap) feed(p []byte, source bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !source {
		return t.answers(p)
	}
	for len(p) > 0 {
		n, err := t.source(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// answers follows the receiving side.
func (t *scpTap) answers(p []byte) error {
	for _, c := range p {
		switch {
		case t.text:
			t.text = c != '\n'
		case t.answer != scpNone:
			t.text = c != 0
		case c == 0:
			t.answer = scpTaken
		default:
			t.answer, t.text = scpRefused, true
			if t.state == scpContent || t.state == scpStatus {
				return errSCP // refused after the content went on its way
			}
			if t.last == 'D' && len(t.dirs) > 0 {
				t.dirs = t.dirs[:len(t.dirs)-1] // a directory that is left out
			}
		}
	}
	return nil
}

// source follows the sending side and returns how many bytes it took.
func (t *scpTap) source(p []byte) (int, error) {
	switch t.state {
	case scpOffered:
		if t.answer == scpRefused {
			t.state = scpControl
			return 0, nil
		}
		// No answer yet: a source that does not wait for it.
		t.copy = t.copies.start(t.role.direction, t.path)
		t.state = scpContent
		if t.left == 0 {
			t.state = scpStatus
		}
		return 0, nil
	case scpContent:
		n := int(min(t.left, int64(len(p))))
		t.copy.put(p[:n], t.at)
		t.at += int64(n)
		if t.left -= int64(n); t.left == 0 {
			t.state = scpStatus
		}
		return n, nil
	case scpStatus:
		t.state = scpControl
		if p[0] != 0 {
			t.state = scpSkip
		}
		return 1, t.fileOver(p[0] == 0)
	case scpSkip:
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			t.state = scpControl
			return i + 1, nil
		}
		return len(p), nil
	}
	if len(t.line) == 0 && (p[0] == 1 || p[0] == 2) {
		t.state = scpSkip
		return 1, nil
	}
	i := bytes.IndexByte(p, '\n')
	n := i + 1
	if i < 0 {
		n = len(p)
	}
	if len(t.line)+n > maxSCPLine {
		return 0, errSCP
	}
	t.line = append(t.line, p[:n]...)
	if i < 0 {
		return n, nil
	}
	line := string(t.line[:len(t.line)-1])
	t.line = nil
	return n, t.control(line)
}

// control takes one control line.
func (t *scpTap) control(line string) error {
	t.answer = scpNone
	if line == "" {
		return errSCP
	}
	t.last = line[0]
	switch line[0] {
	case 'T':
		return nil
	case 'E':
		if len(t.dirs) > 0 {
			t.dirs = t.dirs[:len(t.dirs)-1]
		}
		return nil
	case 'C', 'D':
		words := strings.SplitN(line[1:], " ", 3)
		if len(words) != 3 {
			return errSCP
		}
		size, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil || size < 0 {
			return errSCP
		}
		if line[0] == 'D' {
			if len(t.dirs) == maxSCPDepth {
				return errSCP
			}
			t.dirs = append(t.dirs, words[2])
			return nil
		}
		t.state, t.left, t.at, t.path = scpOffered, size, 0, t.role.name(t.dirs, words[2])
		return nil
	}
	return errSCP
}

// fileOver reports a file that went through, or was cut.
func (t *scpTap) fileOver(ok bool) error {
	t.copy.finish()
	t.copy = nil
	result := "ok"
	if !ok {
		result = "failed"
	}
	n := strconv.FormatInt(t.at, 10)
	return t.event("scp", clip(printable(fmt.Sprintf("%s %s %s bytes", t.role.direction, t.path, n)), 1000)+" "+result, map[string]string{
		"op": string(t.role.direction), "path": t.path, "bytes": n, "result": result})
}

func (t *scpTap) close(failed bool) error {
	t.mu.Lock()
	var err error
	if t.state == scpContent || t.state == scpStatus {
		err = t.fileOver(false)
		t.state = scpControl
	}
	t.mu.Unlock()
	t.copies.wait()
	return errors.Join(err, t.countTap.close(failed))
}
