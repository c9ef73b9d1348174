package recording

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Format of an exported video.
type Format string

// The formats.
const (
	WebM Format = "webm" // VP9
	MP4  Format = "mp4"  // H.264
)

// Bounds of an export.
const (
	// exportTick is the grid on which pictures are put: 10 a second at most.
	exportTick = 100 * time.Millisecond
	// exportStill is how long a picture may stand until it is given again.
	exportStill = 5 * time.Second
	// exportLongest is the longest export.
	exportLongest = 24 * time.Hour
	// exportBytes bounds the video, which is in memory while it is made.
	exportBytes = 512 << 20
)

// ErrNoFFmpeg: the program that makes videos is not installed.
var ErrNoFFmpeg = errors.New("ffmpeg is not installed on this core: apt-get install ffmpeg")

// clip is what an export shows.
type clip struct {
	format   Format
	from, to time.Duration
	events   bool // with a line of text under the picture
	started  time.Time
}

// encoderArgs are ffmpeg's for a format. Times come from the input, so a
// picture that stands for a minute is one picture.
func encoderArgs(f Format) []string {
	args := []string{
		"-hide_banner", "-nostdin", "-loglevel", "error", "-y", "-threads", "2",
		"-protocol_whitelist", "pipe,file", "-f", "matroska", "-i", "pipe:0",
		"-map", "0:v", "-fps_mode", "passthrough", "-enc_time_base", "1:1000", "-pix_fmt", "yuv420p",
	}
	if f == MP4 {
		return append(args, "-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-g", "100", "-f", "mp4", "/proc/self/fd/3")
	}
	return append(args, "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-row-mt", "1", "-tune-content", "screen",
		"-crf", "34", "-b:v", "0", "-g", "100", "-f", "webm", "/proc/self/fd/3")
}

// makeVideo encodes a clip of a recording into out, which is memory; tell is
// called with the part that is done.
func (s *Store) makeVideo(ctx context.Context, v *webView, f, out *os.File, c clip, tell func(float64)) error {
	path, err := exec.LookPath(s.cfg.FFmpeg)
	if err != nil {
		return ErrNoFFmpeg
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, encoderArgs(c.format)...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{out}
	cmd.WaitDelay = 5 * time.Second
	var said tail
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start ffmpeg: %w", err)
	}
	if err := cmd.Start(); err != nil {
		in.Close()
		return fmt.Errorf("start ffmpeg: %w", err)
	}
	// Live sessions come first, and a video that grows beyond its bound ends.
	limit := unix.Rlimit{Cur: exportBytes, Max: exportBytes}
	perr := errors.Join(unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, 10),
		unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, &limit, nil))
	if perr == nil {
		perr = paint(ctx, in, v, f, c, tell)
	}
	if perr != nil && !errors.Is(perr, unix.EPIPE) {
		cancel() // half a video is none
	}
	in.Close()
	err = cmd.Wait()
	switch {
	case perr != nil && !errors.Is(perr, unix.EPIPE):
		return perr
	case err == nil && perr == nil:
		return nil
	}
	if st, serr := out.Stat(); serr == nil && st.Size() >= exportBytes-(1<<20) {
		return fmt.Errorf("the video grows beyond %d MiB: export it in parts, with from and to", exportBytes>>20)
	}
	return fmt.Errorf("ffmpeg: %w: %s", errors.Join(err, perr), said.text)
}

// tail keeps the start of what a program complains about.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p[:min(len(p), 500-min(len(t.text), 500))]...)
	return len(p), nil
}

// paint gives the pictures of a clip to w, one where something changed.
func paint(ctx context.Context, w io.Writer, v *webView, f *os.File, c clip, tell func(float64)) error {
	width, height := v.size()
	width, height = width+width&1, height+height&1 // 4:2:0 has no odd sizes
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	var line *lineWriter
	if c.events {
		var err error
		if line, err = newLineWriter(); err != nil {
			return err
		}
		img = image.NewRGBA(image.Rect(0, 0, width, height+lineHeight))
	}
	out, err := newRawVideo(w, img.Rect.Dx(), img.Rect.Dy())
	if err != nil {
		return err
	}
	x := newReplay(v, f)
	x.enter(c.from)
	events := v.events[:0:0]
	if c.events {
		events = slices.Clone(v.events)
		slices.SortStableFunc(events, func(a, b Moment) int { return int(1e6*a.T) - int(1e6*b.T) })
	}
	var now *Moment
	given := time.Duration(-1)
	// The last picture stands for a tick: then the video ends, on time.
	end := max(c.to-exportTick, c.from)
	for at := c.from; ; {
		until := at
		if at == end {
			until = c.to
		}
		changed, err := x.show(ctx, until)
		if err != nil {
			return err
		}
		for len(events) > 0 && events[0].T <= until.Seconds() {
			now, changed = &events[0], true
			events = events[1:]
		}
		if changed || given < 0 || at-given >= exportStill || at == end {
			x.draw(img)
			if line != nil {
				line.write(img, eventText(c.started, at, now))
			}
			if err := out.picture(at-c.from, img.Pix); err != nil {
				return err
			}
			given = at
			tell(float64(at-c.from) / float64(max(c.to-c.from, 1)))
		}
		if at == end {
			return nil
		}
		// The next tick at which something is different.
		next := given + exportStill
		if x.next < len(v.frames) {
			next = min(next, v.frames[x.next].at)
		}
		if len(events) > 0 {
			next = min(next, time.Duration(events[0].T*float64(time.Second))+time.Microsecond)
		}
		steps := max((next-c.from+exportTick-1)/exportTick, (at-c.from)/exportTick+1)
		at = min(c.from+steps*exportTick, end)
	}
}

// size is the size of the largest picture.
func (v *webView) size() (w, h int) {
	for _, fr := range v.frames {
		if fr.key {
			w, h = max(w, int(fr.w)), max(h, int(fr.h))
		}
	}
	return max(w, 2), max(h, 2)
}

// memory is a file without a name and without a place on disk.
func memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for a video: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// videoProblem is what the user is told about a failed export.
func videoProblem(err error) string {
	text := err.Error()
	if d, ok := errors.AsType[*DamageError](err); ok {
		text = "the recording is damaged: " + d.Error()
	}
	return strings.TrimSpace(cut(text, 500))
}
