package program

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"caponier/shared/wire"
)

// journal remembers, over crashes, which sessions the program may hold: one
// JSON line before each add, one after each success and each removal. It is
// rewritten when most of its lines are history.
type journal struct {
	path string

	mu    sync.Mutex
	file  *os.File               // guarded by mu
	lines int                    // in file; guarded by mu
	notes int                    // since the start; guarded by mu
	held  map[string]journalLine // guarded by mu
}

// journalLine is one session. Only one of the fields Add, OK and Del is set in
// the file.
type journalLine struct {
	Add *wire.RouterSession `json:"add,omitempty"`
	OK  string              `json:"ok,omitempty"`
	Del string              `json:"del,omitempty"`

	sure bool // added successfully
}

// maxHistory is how many lines more than needed the file may have.
const maxHistory = 1000

func openJournal(path string) (*journal, error) {
	j := &journal{path: path, held: map[string]journalLine{}}
	b, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("journal: %w", err)
	default:
		err := j.read(b)
		b.Close()
		if err != nil {
			return nil, err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j, j.rewriteLocked()
}

func (j *journal) read(f *os.File) error {
	r := bufio.NewReader(f)
	for {
		b, err := r.ReadBytes('\n')
		if err != nil {
			// What is not a whole line was being written when the process died,
			// and its add has not begun.
			return nil
		}
		var l journalLine
		if err := json.Unmarshal(b, &l); err != nil {
			return fmt.Errorf("journal %s is damaged: %w; remove by hand what the program still holds, then the file", j.path, err)
		}
		j.enter(l)
	}
}

// enter applies one line to held.
func (j *journal) enter(l journalLine) {
	switch {
	case l.Add != nil:
		j.held[l.Add.ID] = l
	case l.OK != "":
		if h, ok := j.held[l.OK]; ok {
			h.sure = true
			j.held[l.OK] = h
		}
	case l.Del != "":
		delete(j.held, l.Del)
	}
}

// note writes lines and waits until they are on disk.
func (j *journal) note(lines ...journalLine) error {
	if len(lines) == 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var b []byte
	for _, l := range lines {
		one, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		b = append(append(b, one...), '\n')
	}
	if j.file == nil {
		return errors.New("journal: not open")
	}
	if _, err := j.file.Write(b); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	for _, l := range lines {
		j.enter(l)
	}
	j.lines += len(lines)
	j.notes++
	if j.lines > 2*len(j.held)+maxHistory {
		return j.rewriteLocked()
	}
	return nil
}

func (j *journal) rewriteLocked() error {
	tmp, err := os.CreateTemp(filepath.Dir(j.path), ".journal-")
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer os.Remove(tmp.Name()) // gone if it was renamed
	w := bufio.NewWriter(tmp)
	enc := json.NewEncoder(w)
	n := 0
	for id, l := range j.held {
		err = errors.Join(err, enc.Encode(journalLine{Add: l.Add}))
		n++
		if l.sure {
			err = errors.Join(err, enc.Encode(journalLine{OK: id}))
			n++
		}
	}
	err = errors.Join(err, w.Flush(), tmp.Sync())
	if err == nil {
		err = os.Rename(tmp.Name(), j.path)
	}
	if err != nil {
		tmp.Close()
		return fmt.Errorf("journal: %w", err)
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.lines = tmp, n
	return nil
}

// get returns what was noted of a session.
func (j *journal) get(id string) (s wire.RouterSession, sure, known bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l, ok := j.held[id]
	if !ok {
		return wire.RouterSession{ID: id}, false, false
	}
	return *l.Add, l.sure, true
}

// all returns every session that may hold, and whether it surely does.
func (j *journal) all() map[string]bool {
	out, _ := j.allAt()
	return out
}

// allAt is all with a number that changes with every note.
func (j *journal) allAt() (map[string]bool, int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make(map[string]bool, len(j.held))
	for id, l := range j.held {
		out[id] = l.sure
	}
	return out, j.notes
}

func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
