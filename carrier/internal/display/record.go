package display

import (
	"context"
	"fmt"
	"time"

	"caponier/shared/rfb"
)

// record writes frames while there is something new, at most one per
// RecordEvery, and when ctx has ended the picture that was the last one: last is
// closed when nothing changes it any more.
func (d *Display) record(ctx context.Context, last <-chan struct{}) error {
	select {
	case <-d.ready:
	case <-ctx.Done():
		return nil
	}
	rec := rfb.NewRecorder(d.enc, d.cfg.Keyframes)
	pause := time.NewTimer(RecordEvery)
	defer pause.Stop()
	for {
		changed, err := d.recordFrame(rec)
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			<-last
			_, err := d.recordFrame(rec)
			return err
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Reset(RecordEvery)
	}
}

// recordFrame writes what is new. The channel it returns is closed at the next
// change.
func (d *Display) recordFrame(rec *rfb.Recorder) (<-chan struct{}, error) {
	d.mu.Lock()
	changed, at := d.changed, d.atLocked()
	var frame []byte
	var key bool
	if !d.tornLocked() {
		frame, key = rec.Frame(d.shown, d.pointer, at)
	}
	d.mu.Unlock()
	if frame == nil {
		return changed, nil
	}
	d.frames.record.Add(1)
	d.frames.recordBytes.Add(uint64(len(frame)))
	if err := d.cfg.Record(at, frame, key); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecording, err)
	}
	return changed, nil
}

// tornLocked: the picture shown is the one being drawn in. Who finds it so
// waits for the next change: the end of the update is one.
func (d *Display) tornLocked() bool { return d.updating && d.shown == d.drawn }
