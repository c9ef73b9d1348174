package bastion

import (
	"context"

	"caponier/core/internal/conn"
	"caponier/core/internal/recording"
)

type manager struct{ m *conn.Manager }

// FromManager makes the connection manager usable here.
func FromManager(m *conn.Manager) Connections { return manager{m} }

// Open implements Connections.
func (a manager) Open(ctx context.Context, s conn.Spec) (string, Live, error) {
	l, err := a.m.Open(ctx, s)
	if err != nil {
		return "", nil, err
	}
	return l.ID, l, nil
}

type store struct{ s *recording.Store }

// FromStore makes the recording store usable here.
func FromStore(s *recording.Store) Recordings { return store{s} }

// Create implements Recordings.
func (a store) Create(ctx context.Context, m recording.Meta) (string, Recorder, error) {
	w, err := a.s.Create(ctx, m)
	if err != nil {
		return "", nil, err
	}
	return w.ID, recorder{w}, nil
}

type recorder struct{ *recording.Writer }

// File implements Recorder.
func (r recorder) File(ctx context.Context, d recording.Direction, path string) (FileCopy, error) {
	f, err := r.Writer.File(ctx, d, path)
	if err != nil {
		return nil, err
	}
	return f, nil
}
