package usercli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"golang.org/x/term"

	"caponier/shared/daemon"
)

type recordingsCmd struct {
	List   recordingsList   `cmd:"" default:"withargs" help:"List recordings, the newest first."`
	Play   recordingsPlay   `cmd:"" help:"Play a recording on this terminal."`
	Export recordingsExport `cmd:"" help:"Save a recording as an asciicast v2 file, or a web session as a video."`
	Search recordingsSearch `cmd:"" help:"Find text in what was typed and shown."`
	Files  recordingsFiles  `cmd:"" help:"List the files transferred in a recorded session."`
	Fetch  recordingsFetch  `cmd:"" help:"Download the kept copy of a transferred file."`
}

type recordingInfo struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`
	User      string    `json:"user_name"`
	Target    string    `json:"target_name"`
	Account   string    `json:"account"`
	StartedAt time.Time `json:"started_at"`
	Status    string    `json:"status"`
	Duration  float64   `json:"duration_s"`
	Size      int64     `json:"size"`
}

type recordingsList struct {
	Limit int `help:"At most this many." default:"50"`
}

func (l recordingsList) Run(e *env) error {
	return list(e, "/recordings", nil, l.Limit, "ID BEGAN STATUS LENGTH SIZE USER TARGET ACCOUNT", func(r recordingInfo) []string {
		length := (time.Duration(r.Duration*1000) * time.Millisecond).Round(100 * time.Millisecond).String()
		return []string{r.ID, when(r.StartedAt), r.Status, length, size(r.Size), r.User, r.Target, r.Account}
	})
}

// cast opens the asciicast of a recording.
func cast(e *env, id string) (*http.Response, error) {
	c, _, err := e.session()
	if err != nil {
		return nil, err
	}
	return c.open(e.ctx, http.MethodGet, "/recordings/"+url.PathEscape(id)+"/asciicast", nil)
}

type recordingsPlay struct {
	ID    string        `arg:"" help:"Recording ID (rec_…)."`
	Speed float64       `help:"Playing speed; 2 is twice as fast." default:"1"`
	Idle  time.Duration `help:"Longest pause; 0 plays pauses as they were." default:"2s"`
	From  time.Duration `help:"Begin here (90s, 1h2m)."`
}

func (r recordingsPlay) Run(e *env) error {
	if r.Speed <= 0 || r.Speed > 1000 {
		return &daemon.UsageError{Text: "speed must be above 0 and at most 1000", Hint: "caponier recordings play " + r.ID + " --speed 2"}
	}
	if r.From < 0 || r.Idle < 0 {
		return &daemon.UsageError{Text: "from and idle must not be negative", Hint: "caponier recordings play " + r.ID + " --from 90s"}
	}
	resp, err := cast(e, r.ID)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	p := &player{out: e.Out, speed: r.Speed, idle: r.Idle, from: r.From, wait: timer}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	if fd := int(e.In.Fd()); term.IsTerminal(fd) {
		fmt.Fprintf(e.Err, "space pauses, + and - change the speed, . skips a pause, q ends\r\n")
		state, err := term.MakeRaw(fd)
		if err != nil {
			return err
		}
		defer func() {
			// The recording may have left colours, modes or the other screen on.
			fmt.Fprint(e.Out, "\x1b[?1049l\x1b[?25h\x1b[0m\r\n")
			term.Restore(fd, state)
		}()
		p.keys = readKeys(ctx, e.In)
	}
	if err := p.play(ctx, resp.Body); err != nil {
		return err
	}
	return trailer(resp)
}

// readKeys passes typed bytes on. The reader ends with the process: a read
// from a terminal cannot be interrupted.
func readKeys(ctx context.Context, in io.Reader) <-chan byte {
	keys := make(chan byte)
	go func() {
		defer close(keys)
		b := make([]byte, 1)
		for {
			if _, err := in.Read(b); err != nil {
				return
			}
			select {
			case keys <- b[0]:
			case <-ctx.Done():
				return
			}
		}
	}()
	return keys
}

// trailer tells when core found out, at the end, that a recording is not whole.
func trailer(resp *http.Response) error {
	switch status := resp.Trailer.Get("Caponier-Recording-Status"); status {
	case "", "complete", "recording":
		return nil
	default:
		return &hinted{err: fmt.Errorf("the recording is %s", plain(status)), hint: "what was played is authentic; the rest is missing"}
	}
}

type recordingsExport struct {
	ID     string `arg:"" help:"Recording ID (rec_…)."`
	File   string `arg:"" optional:"" help:"File to write, - for standard output; ID.cast, ID.webm or ID.mp4 by default."`
	Format string `help:"cast for terminals, webm or mp4 for web sessions." enum:"cast,webm,mp4" default:"cast"`
	Events bool   `help:"Videos: a line under the picture with the time and the last event."`
}

func (r recordingsExport) Run(e *env) error {
	if r.Format != "cast" {
		return r.video(e)
	}
	resp, err := cast(e, r.ID)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if r.File == "-" {
		if _, err := io.Copy(e.Out, resp.Body); err != nil {
			return err
		}
		return trailer(resp)
	}
	name := r.File
	if name == "" {
		name = plain(r.ID) + ".cast"
	}
	n, err := save(name, resp.Body)
	if err != nil {
		return err
	}
	if err := trailer(resp); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"file": name, "size": n})
	}
	return e.printf("%s: %s\n", name, size(n))
}

type recordingsSearch struct {
	Text  string `arg:"" help:"Text to find."`
	Limit int    `help:"At most this many recordings." default:"50"`
}

// hits is one recording in which a search found something.
type hits struct {
	Recording recordingInfo `json:"recording"`
	Hits      []struct {
		At   int64  `json:"at"` // nanoseconds
		Line string `json:"line"`
	} `json:"hits"`
}

func (r recordingsSearch) Run(e *env) error {
	if r.Text == "" {
		return &daemon.UsageError{Text: "no text to find", Hint: "caponier recordings search 'rm -rf'"}
	}
	c, _, err := e.session()
	if err != nil {
		return err
	}
	items, err := c.all(e.ctx, "/recordings/search", url.Values{"q": {r.Text}}, r.Limit)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(nonNil(items))
	}
	found, err := decodeAll[hits](items)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, h := range found {
		for _, at := range h.Hits {
			rows = append(rows, []string{h.Recording.ID, time.Duration(at.At).Round(100 * time.Millisecond).String(), h.Recording.User, h.Recording.Target, at.Line})
		}
	}
	return e.table("RECORDING AT USER TARGET LINE", rows)
}

// save writes a new file. Recordings and what belongs to them show what people
// did: not for other users of this machine.
func save(name string, from io.Reader) (int64, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return 0, &hinted{err: err, hint: "name another file"}
	}
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, from)
	if err = errors.Join(err, f.Close()); err != nil {
		return n, errors.Join(err, os.Remove(name))
	}
	return n, nil
}

// transferredFile is a file that passed in a recorded session.
type transferredFile struct {
	ID        string    `json:"id"`
	Direction string    `json:"direction"`
	Path      string    `json:"path"`
	Size      int64     `json:"size_bytes"`
	SHA256    string    `json:"sha256"`
	Status    string    `json:"status"`
	StoredAt  time.Time `json:"stored_at"`
}

type recordingsFiles struct {
	ID string `arg:"" help:"Recording ID (rec_…)."`
}

func (r recordingsFiles) Run(e *env) error {
	items, err := transferred(e, r.ID)
	if err != nil {
		return err
	}
	return printItems(e, items, "ID AT DIRECTION SIZE COPY SHA256 PATH", func(f transferredFile) []string {
		return []string{f.ID, when(f.StoredAt), f.Direction, size(f.Size), f.Status, f.SHA256, f.Path}
	})
}

func transferred(e *env, recording string) ([]json.RawMessage, error) {
	c, _, err := e.session()
	if err != nil {
		return nil, err
	}
	return c.all(e.ctx, "/recordings/"+url.PathEscape(recording)+"/files", nil, 10_000)
}

type recordingsFetch struct {
	ID   string `arg:"" help:"Recording ID (rec_…)."`
	File string `arg:"" help:"File ID (rfl_…), see recordings files."`
	To   string `arg:"" optional:"" help:"File to write, - for standard output; FILE-ID.bin by default."`
}

func (r recordingsFetch) Run(e *env) error {
	items, err := transferred(e, r.ID)
	if err != nil {
		return err
	}
	list, err := decodeAll[transferredFile](items)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(f transferredFile) bool { return f.ID == r.File })
	if i < 0 {
		return &hinted{err: fmt.Errorf("the recording has no file %s", plain(r.File)), hint: "run: caponier recordings files " + plain(r.ID), code: ExitNotFound}
	}
	c, _, err := e.session()
	if err != nil {
		return err
	}
	var ticket struct {
		Ticket string `json:"ticket"`
	}
	if err := c.do(e.ctx, http.MethodPost, "/recordings/"+url.PathEscape(r.ID)+"/files/"+url.PathEscape(r.File)+"/ticket", nil, &ticket); err != nil {
		return err
	}
	resp, err := c.open(e.ctx, http.MethodGet, "/recording-files/"+url.PathEscape(ticket.Ticket), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sum := sha256.New()
	body := io.TeeReader(resp.Body, sum)
	name, n := r.To, int64(0)
	if name == "" {
		name = plain(r.File) + ".bin"
	}
	if name == "-" {
		n, err = io.Copy(e.Out, body)
	} else {
		n, err = save(name, body)
	}
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != list[i].SHA256 {
		return &hinted{err: fmt.Errorf("the copy differs from what was transferred: its SHA-256 is %s, want %s", got, plain(list[i].SHA256)), hint: "do not use it, and tell an administrator"}
	}
	switch {
	case name == "-":
		return nil
	case e.json:
		return e.printJSON(map[string]any{"file": name, "size": n, "sha256": list[i].SHA256})
	}
	return e.printf("%s: %s\n", name, size(n))
}
