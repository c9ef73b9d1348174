package recording

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// castHead is the first line of an asciicast v2.
type castHead struct {
	Version   int               `json:"version"`
	Width     int               `json:"width"`
	Height    int               `json:"height"`
	Timestamp int64             `json:"timestamp"`
	Duration  float64           `json:"duration,omitempty"`
	Title     string            `json:"title,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
}

// WriteCast writes a recording as asciicast v2 and returns its verdict, which
// is also the last line, a marker: "integrity: complete: 212 blocks, 00:03:12".
// Events are markers "exec {json}".
func (s *Store) WriteCast(ctx context.Context, out io.Writer, r *Recording) (Integrity, error) {
	x, f, err := s.reader(r)
	if err != nil {
		return Integrity{}, err
	}
	defer f.Close()
	w := bufio.NewWriterSize(out, 64<<10)
	title := r.Title
	if title == "" {
		title = r.Account + "@" + r.TargetName
	}
	if err := castLine(w, castHead{
		Version: 2, Width: r.Width, Height: r.Height, Timestamp: r.StartedAt.Unix(), Duration: r.Seconds,
		Title: title, Env: map[string]string{"TERM": "xterm-256color"},
	}); err != nil {
		return Integrity{}, err
	}
	// A rune may be split over two items: its start waits for its end.
	var outRest, inRest []byte
	for {
		if err := ctx.Err(); err != nil {
			return Integrity{}, err
		}
		it, err := x.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Integrity{}, err
		}
		at := it.At.Seconds()
		switch it.Kind {
		case ItemOutput:
			var text string
			text, outRest = wholeRunes(outRest, it.Data)
			err = castText(w, at, "o", text)
		case ItemInput:
			var text string
			text, inRest = wholeRunes(inRest, it.Data)
			err = castText(w, at, "i", text)
		case ItemResize:
			err = castText(w, at, "r", fmt.Sprintf("%dx%d", it.Width, it.Height))
		case ItemEvent:
			var b []byte
			if b, err = json.Marshal(it.Fields); err == nil {
				err = castText(w, at, "m", it.Event+" "+string(b))
			}
		}
		if err != nil {
			return Integrity{}, err
		}
	}
	end := x.last.Seconds()
	if err := castText(w, end, "o", string(outRest)); err != nil {
		return Integrity{}, err
	}
	state := x.Integrity()
	if r.Status == Live && state.Status == Incomplete {
		state.Status, state.Text = Live, "still being recorded: "+clock(state.Duration)+" so far"
	}
	if err := castText(w, end, "m", "integrity: "+state.Text); err != nil {
		return Integrity{}, err
	}
	return state, w.Flush()
}

func castText(w io.Writer, at float64, code, text string) error {
	if text == "" {
		return nil
	}
	return castLine(w, []any{json.Number(fmt.Sprintf("%.6f", at)), code, text})
}

func castLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode asciicast: %w", err)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// wholeRunes returns rest+p without an incomplete rune at its end, which it
// returns as the new rest.
func wholeRunes(rest, p []byte) (string, []byte) {
	if len(rest) > 0 {
		p = append(append([]byte(nil), rest...), p...)
	}
	for i := 1; i <= min(utf8.UTFMax-1, len(p)); i++ {
		c := p[len(p)-i]
		if utf8.RuneStart(c) {
			if !utf8.FullRune(p[len(p)-i:]) {
				return string(p[:len(p)-i]), append([]byte(nil), p[len(p)-i:]...)
			}
			break
		}
	}
	return string(p), nil
}
