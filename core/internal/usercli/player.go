package usercli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// player shows an asciicast v2 stream on a terminal in its own time.
type player struct {
	out   io.Writer
	speed float64       // 2 = twice as fast
	idle  time.Duration // longest pause that is played; 0 = as recorded
	from  time.Duration // everything before is shown at once
	// keys are single bytes typed meanwhile; nil when there is no keyboard.
	keys <-chan byte
	wait func(ctx context.Context, d time.Duration) <-chan time.Time
}

// castHeader is the first line of an asciicast v2 file.
type castHeader struct {
	Version int    `json:"version"`
	Width   int    `json:"width"`
	Height  int    `json:"height"`
	Title   string `json:"title"`
}

// castEvent is one further line: [seconds, code, data].
type castEvent struct {
	at   time.Duration
	code string
	data string
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *castEvent) UnmarshalJSON(b []byte) error {
	var raw []json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	if len(raw) != 3 {
		return fmt.Errorf("an event has %d fields, want 3", len(raw))
	}
	var seconds float64
	if err := errors.Join(json.Unmarshal(raw[0], &seconds), json.Unmarshal(raw[1], &c.code)); err != nil {
		return err
	}
	if seconds < 0 || seconds > 1e9 {
		return fmt.Errorf("an event at %v seconds", seconds)
	}
	c.at = time.Duration(seconds * float64(time.Second))
	// Data of codes we do not know may be of any type.
	if json.Unmarshal(raw[2], &c.data) != nil {
		c.data = ""
	}
	return nil
}

// maxCastLine bounds one line of a recording.
const maxCastLine = 4 << 20

// castReader reads a recording line by line.
type castReader struct {
	header castHeader
	scan   *bufio.Scanner
}

func newCastReader(r io.Reader) (*castReader, error) {
	c := &castReader{scan: bufio.NewScanner(r)}
	c.scan.Buffer(make([]byte, 64<<10), maxCastLine)
	if !c.scan.Scan() {
		return nil, errors.Join(errors.New("the recording is empty"), c.scan.Err())
	}
	if err := json.Unmarshal(c.scan.Bytes(), &c.header); err != nil || c.header.Version != 2 {
		return nil, errors.New("this is not an asciicast v2 recording")
	}
	return c, nil
}

// next returns the next event, or io.EOF.
func (c *castReader) next() (castEvent, error) {
	for c.scan.Scan() {
		if len(c.scan.Bytes()) == 0 {
			continue
		}
		var e castEvent
		if err := json.Unmarshal(c.scan.Bytes(), &e); err != nil {
			return e, fmt.Errorf("read the recording: %w", err)
		}
		return e, nil
	}
	if err := c.scan.Err(); err != nil {
		return castEvent{}, fmt.Errorf("read the recording: %w", err)
	}
	return castEvent{}, io.EOF
}

var errQuit = errors.New("stopped by the viewer")

// play shows the recording until its end, q, or the end of ctx.
func (p *player) play(ctx context.Context, r io.Reader) error {
	c, err := newCastReader(r)
	if err != nil {
		return err
	}
	var last time.Duration
	for {
		e, err := c.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		gap := max(e.at-max(last, p.from), 0)
		if p.idle > 0 {
			gap = min(gap, p.idle)
		}
		last = max(last, e.at)
		if gap > 0 {
			if err := p.pause(ctx, gap); err != nil {
				if errors.Is(err, errQuit) {
					return nil
				}
				return err
			}
		}
		if e.code != "o" {
			continue
		}
		if _, err := io.WriteString(p.out, e.data); err != nil {
			return err
		}
	}
}

// pause waits for gap of recorded time and obeys keys: space pauses, + and -
// change the speed, . steps, q ends.
func (p *player) pause(ctx context.Context, gap time.Duration) error {
	paused := false
	keys := p.keys
	for {
		var timer <-chan time.Time
		wctx, stop := context.WithCancel(ctx)
		if !paused {
			timer = p.wait(wctx, time.Duration(float64(gap)/p.speed))
		}
		var key byte
		var ok bool
		select {
		case <-ctx.Done():
			stop()
			return ctx.Err()
		case <-timer:
			stop()
			return nil
		case key, ok = <-keys:
			stop()
		}
		if !ok { // no keyboard any more
			keys, p.keys = nil, nil
			paused = false
			continue
		}
		switch key {
		case ' ':
			paused = !paused
		case '+':
			p.speed = min(p.speed*2, 64)
		case '-':
			p.speed = max(p.speed/2, 1.0/16)
		case '.':
			return nil
		case 'q', 3: // 3 is Ctrl-C on a raw terminal
			return errQuit
		}
	}
}

// timer is the real clock of pause.
func timer(ctx context.Context, d time.Duration) <-chan time.Time {
	t := time.NewTimer(d)
	context.AfterFunc(ctx, func() { t.Stop() })
	return t.C
}
