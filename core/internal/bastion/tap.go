package bastion

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"unicode/utf8"

	"caponier/core/internal/recording"
)

// tap sees the bytes of one session on their way: input before it goes to the
// target, output before it goes to the user. An error ends the session.
type tap interface {
	input(p []byte) error
	output(p []byte, stderr bool) error
	resize(cols, rows int) error
	// exited records the status the program ended with.
	exited(detail string) error
	// event records something that happened to the session as a whole.
	event(kind, detail string, fields map[string]string) error
	// close completes the record; failed tells that the session did not end well.
	close(failed bool) error
}

// errRecording ends a session whose recording cannot be kept.
var errRecording = &refusal{public: "The recording of this session could not be written, so the session has ended.", code: "recording"}

// newTap starts what must be kept of a session.
func (s *session) newTap(u *use, st start, p program) (tap, error) {
	var rec Recorder = noRecorder{}
	if u.verdict.Record {
		cols, rows := s.size()
		ctx, cancel := context.WithTimeout(s.ctx, s.l.s.limits.Dial)
		defer cancel()
		title := st.command
		if st.kind == "shell" {
			title = "shell"
		}
		id, r, err := s.l.s.cfg.Recordings.Create(ctx, recording.Meta{
			ConnectionID: u.id, Kind: p.kind, UserID: s.l.principal.UserID, UserName: s.l.principal.UserName,
			TargetID: u.verdict.Target.ID, TargetName: u.verdict.Target.Name, Account: u.verdict.Account.Name,
			Width: cols, Height: rows, Title: clip(printable(title), 200),
		})
		if err != nil {
			s.l.s.cfg.Log.Error("start recording", "connection", u.id, "err", err)
			return nil, refused("recording", "This session must be recorded, and the recording could not be started.")
		}
		u.live.Recording(id)
		rec = r
	}
	e := events{rec: rec, live: u.live}
	var t tap
	switch {
	case p.name == "sftp":
		t = newSFTPTap(s.ctx, e, s.l.s.cfg.Log.With("connection", u.id))
	case p.name == "scp":
		words, _ := shellWords(st.command)
		t = newSCPTap(s.ctx, e, parseSCP(words), s.l.s.cfg.Log.With("connection", u.id))
	case p.content:
		t = &countTap{events: e, name: p.name}
	default:
		t = &terminalTap{events: e, keepInput: s.pty != nil}
	}
	kind, fields := st.kind, map[string]string{}
	for i, part := range pieces(st.command, maxEventText) {
		name := "command"
		if i > 0 {
			name += "_" + strconv.Itoa(i+1)
		}
		fields[name] = part
	}
	if err := e.event(kind, clip(printable(st.command), 1000), fields); err != nil {
		_ = rec.Close()
		return nil, err
	}
	return t, nil
}

// maxEventText is how much text one field of a recorded event holds; a longer
// command goes on in command_2 and so on, up to maxCommand.
const maxEventText = 4 << 10

// pieces cuts s into parts of at most n bytes, between runes.
func pieces(s string, n int) []string {
	var parts []string
	for len(s) > n {
		cut := n
		for cut > n-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
			cut--
		}
		parts, s = append(parts, s[:cut]), s[cut:]
	}
	if s != "" {
		parts = append(parts, s)
	}
	return parts
}

// events writes structured events to the recording and to the connection.
type events struct {
	rec  Recorder
	live Live
}

func (e events) event(kind, detail string, fields map[string]string) error {
	e.live.Channel(kind, detail)
	if err := e.rec.Event(kind, fields); err != nil {
		return recordError(err)
	}
	return nil
}

func recordError(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(errRecording, err)
}

// exited records how the program ended.
func (e events) exited(detail string) error {
	return e.event("exit", detail, map[string]string{"status": detail})
}

// terminalTap keeps everything: shells and commands.
type terminalTap struct {
	events
	keepInput bool
}

func (t *terminalTap) input(p []byte) error {
	if !t.keepInput {
		return nil
	}
	return recordError(t.rec.Input(p))
}
func (t *terminalTap) output(p []byte, _ bool) error { return recordError(t.rec.Output(p)) }
func (t *terminalTap) resize(cols, rows int) error   { return recordError(t.rec.Resize(cols, rows)) }
func (t *terminalTap) close(bool) error              { return recordError(t.rec.Close()) }

// countTap keeps error output and totals of a program whose data is a format
// of its own (rsync, git; scp within its own tap).
type countTap struct {
	events
	name string

	mu      sync.Mutex
	in, out int64 // guarded by mu
}

func (t *countTap) input(p []byte) error {
	t.mu.Lock()
	t.in += int64(len(p))
	t.mu.Unlock()
	return nil
}

func (t *countTap) output(p []byte, stderr bool) error {
	if stderr {
		return recordError(t.rec.Output(p))
	}
	t.mu.Lock()
	t.out += int64(len(p))
	t.mu.Unlock()
	return nil
}

func (t *countTap) resize(int, int) error { return nil }

func (t *countTap) close(failed bool) error {
	t.mu.Lock()
	in, out := t.in, t.out
	t.mu.Unlock()
	result := "ok"
	if failed {
		result = "failed"
	}
	err := t.event("transfer", fmt.Sprintf("%s: %d bytes in, %d bytes out, %s", t.name, in, out, result), map[string]string{
		"program": t.name, "bytes_in": strconv.FormatInt(in, 10), "bytes_out": strconv.FormatInt(out, 10), "result": result})
	return errors.Join(err, recordError(t.rec.Close()))
}

// noRecorder stands in where nothing needs recording.
type noRecorder struct{}

func (noRecorder) Output([]byte) error                   { return nil }
func (noRecorder) Input([]byte) error                    { return nil }
func (noRecorder) Resize(int, int) error                 { return nil }
func (noRecorder) Event(string, map[string]string) error { return nil }
func (noRecorder) Close() error                          { return nil }
func (noRecorder) File(context.Context, recording.Direction, string) (FileCopy, error) {
	return nil, nil
}
