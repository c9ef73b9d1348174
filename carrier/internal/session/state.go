package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// saved is a session on disk, for the next process. The session's key is in it
// and opens nothing without this node's identity.
type saved struct {
	Spec      wire.CarrierSession `json:"spec"`
	Slot      string              `json:"slot"`
	Container string              `json:"container"`
	Started   int64               `json:"started"` // unix microseconds
}

// maxSaved bounds a file of a session, in bytes.
const maxSaved = 2 * wire.MaxWebBody

func (m *Manager) file(id string) string { return filepath.Join(m.c.StateDir, id+".json") }

// write replaces a session's file in one step.
func (m *Manager) write(s saved) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save session: %w", err)
	}
	f, err := os.CreateTemp(m.c.StateDir, ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("save session: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), m.file(s.Spec.ID))
	}
	if err != nil {
		return fmt.Errorf("save session: %w", err)
	}
	return nil
}

// save writes a live session's file again.
func (m *Manager) save(l *live) error {
	l.mu.Lock()
	s := saved{Spec: l.spec, Slot: l.slot.Name, Container: l.slot.ID, Started: l.started.UnixMicro()}
	l.mu.Unlock()
	return m.write(s)
}

// forget removes a session's file.
func (m *Manager) forget(id string) error {
	if err := os.Remove(m.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget session: %w", err)
	}
	return nil
}

// saved reads the files of a former process. What cannot be read is removed:
// its container goes with the sweep.
func (m *Manager) saved() ([]saved, error) {
	entries, err := os.ReadDir(m.c.StateDir)
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	var list []saved
	for _, e := range entries {
		path := filepath.Join(m.c.StateDir, e.Name())
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			if strings.HasPrefix(e.Name(), ".new-") {
				err = errors.Join(err, os.Remove(path))
			}
			continue
		}
		s, rerr := readSaved(path, id)
		if rerr != nil {
			m.log.Error("session of a former process", telemetry.KeySession, id, telemetry.KeyErr, rerr)
			err = errors.Join(err, os.Remove(path))
			continue
		}
		list = append(list, s)
	}
	return list, err
}

func readSaved(path, id string) (s saved, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return s, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSaved {
		return s, errors.New("not a session's file")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, err
	}
	if s.Spec.ID != id {
		return s, errors.New("the file is of another session")
	}
	return s, check(s.Spec)
}
