// Package slot is one browser container with its directory of sockets:
//
//	egress.sock   what the browser asks its proxy (see egress)
//	rfb.sock      connections of the container's process 1 that lead to the screen
//	x11.sock      the same to its X server, for clipboards that RFB cannot carry
//	files.sock    the same to its service of files
//	sound.sock    the same to what it plays, while there is to be sound
//	ca.pem        whom the browser believes
//	session.json  what Firefox's own lock-down must know of the session
//	policies      the lock-down of Chromium, that of the session included
//
// All of it belongs to the carrier; the container can only read it. A slot is
// used once: Close leaves nothing of it.
package slot

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/egress"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// Engine runs containers; *browser.Engine does.
type Engine interface {
	Start(ctx context.Context, s browser.Spec) (string, error)
	Raise(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Inspect(ctx context.Context, id string) (browser.Container, bool, error)
	Ended(ctx context.Context, id string) error
	Logs(ctx context.Context, id string) string
}

// Config is what a slot needs.
type Config struct {
	Engine Engine
	// Dir holds the slots' directories. Nobody but the carrier may enter it.
	Dir string
	// Root is the certificate that browsers believe, DER.
	Root []byte
	// Screen is what a new browser's screen measures, WIDTHxHEIGHT; empty: Screen.
	Screen string
	// Named is told the name of a slot before anything of it exists; may be nil.
	Named func(name string)
	// Browser is which browser runs, a wire name.
	Browser string
	Needs
	Log *slog.Logger
}

// Needs are what a Chromium has from its start, or never.
type Needs struct {
	Bars  bool // above the page; it cannot show or hide them while it runs
	Tools bool // developer tools can be permitted
}

// Slot is a container, running or about to. Safe for concurrent use.
type Slot struct {
	Name string
	ID   string // of the container
	Door *egress.Door

	c      Config
	dir    string
	screen *waiting
	x11    *waiting
	files  *waiting
	once   sync.Once

	mu    sync.Mutex
	sound *waiting // guarded by mu; nil: no sound
	given bool     // guarded by mu; its sockets were given back
}

// Screen is what a parked browser's screen measures when nobody asked for a size yet.
const Screen = "1280x800"

// Start makes a slot and starts its container; the browser is not up yet.
func Start(ctx context.Context, c Config) (*Slot, error) {
	name := strings.ToLower(rand.Text()[:16])
	if c.Named != nil {
		c.Named(name)
	}
	s, err := open(c, name, true)
	if err != nil {
		return nil, err
	}
	s.ID, err = c.Engine.Start(ctx, browser.Spec{Slot: s.Name, Dir: s.dir, Screen: cmp.Or(c.Screen, Screen), Engine: c.Browser, Tools: c.Tools})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// Adopt takes over a slot whose container outlived a former process.
func Adopt(c Config, name, id string) (*Slot, error) {
	if !Named(name) || id == "" {
		return nil, fmt.Errorf("adopt slot %q: not a slot's name", name)
	}
	s, err := open(c, name, false)
	if err != nil {
		return nil, err
	}
	s.ID = id
	return s, nil
}

// Named reports whether name can be a slot's.
func Named(name string) bool {
	return len(name) == 16 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

func open(c Config, name string, fresh bool) (_ *Slot, err error) {
	s := &Slot{Name: name, c: c, dir: filepath.Join(c.Dir, name)}
	if fresh {
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			return nil, fmt.Errorf("slot: %w", err)
		}
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("slot: %w", err)
			s.close()
		}
	}()
	if fresh {
		// The process's umask does not count: the container's user reads this.
		if err := os.Chmod(s.dir, 0o755); err != nil {
			return nil, err
		}
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Root})
		if err := s.write("ca.pem", ca); err != nil {
			return nil, err
		}
		if c.Browser == wire.Chromium {
			if err := s.makePolicies(); err != nil {
				return nil, err
			}
		}
	}
	if s.Door, err = egress.Open(filepath.Join(s.dir, "egress.sock"), c.Log); err != nil {
		return nil, err
	}
	if s.screen, err = wait(filepath.Join(s.dir, "rfb.sock")); err != nil {
		return nil, err
	}
	if s.x11, err = wait(filepath.Join(s.dir, "x11.sock")); err != nil {
		return nil, err
	}
	s.files, err = wait(filepath.Join(s.dir, "files.sock"))
	return s, err
}

// write replaces a file that the container's user reads.
func (s *Slot) write(name string, data []byte) error {
	tmp, err := s.prepare(name, data)
	if err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir, name))
}

// prepare makes a file that will be called name.
func (s *Slot) prepare(name string, data []byte) (string, error) {
	// Chromium reads every file of its directory: a new one begins elsewhere.
	tmp := filepath.Join(s.dir, "."+filepath.Base(name))
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return "", err
	}
	return tmp, os.Chmod(tmp, 0o644)
}

// Settings are what the browser's own lock-down must know; it reads them from
// session.json.
type Settings struct {
	Mode      string `json:"mode"`     // kiosk, bar, auto
	DevTools  bool   `json:"devtools"` // developer tools may be opened
	Uploads   bool   `json:"uploads"`
	Downloads bool   `json:"downloads"`
	TimeZone  string `json:"time_zone"` // IANA; empty: UTC
	Sound     bool   `json:"-"`         // not the browser's business
}

// Set tells the browser about its session; changes act within a second, in a
// Chromium that is still starting within ten.
func (s *Slot) Set(v Settings) error {
	if err := s.setSound(v.Sound); err != nil {
		return fmt.Errorf("slot: %w", err)
	}
	if s.c.Browser == wire.Chromium {
		if err := s.retell(v, heedTime); err != nil {
			return fmt.Errorf("slot: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("slot: %w", err)
	}
	if err := s.write("session.json", b); err != nil {
		return fmt.Errorf("slot: %w", err)
	}
	return nil
}

// Browser is which browser runs in it.
func (s *Slot) Browser() string { return s.c.Browser }

// DialScreen connects to the X server's RFB side. It waits until the container is that far.
func (s *Slot) DialScreen(ctx context.Context) (net.Conn, error) { return s.screen.use(ctx) }

// DialX connects to the X server itself.
func (s *Slot) DialX(ctx context.Context) (net.Conn, error) { return s.x11.use(ctx) }

// DialFiles connects to the service of files.
func (s *Slot) DialFiles(ctx context.Context) (net.Conn, error) { return s.files.use(ctx) }

// setSound says whether there is sound: process 1 of the container starts a
// sound server when there is a knock and it sees the socket, and ends it when
// that is gone.
func (s *Slot) setSound(on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dir, "sound.sock")
	switch {
	case on && s.given:
		return net.ErrClosed
	case on && s.sound == nil:
		w, err := wait(path)
		if err != nil {
			return err
		}
		w.ln.SetUnlinkOnClose(false) // it stays for the next process
		w.wg.Go(func() { s.knock(w) })
		s.sound = w
	case !on:
		if s.sound != nil {
			s.sound.close()
			s.sound = nil
		}
		// A former process may have left it.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// knock has process 1 of the container look whether there is to be sound: it does
// whenever its service of files is used.
func (s *Slot) knock(sound *waiting) {
	for {
		select {
		case c := <-s.files.next:
			_, err := c.Write([]byte{1})
			c.Close()
			if err == nil {
				return
			}
		case <-sound.met: // it has seen
			return
		case <-sound.done:
			return
		}
	}
}

// DialSound connects to the sound of the container: blocks of wire.SoundBlock.
func (s *Slot) DialSound(ctx context.Context) (net.Conn, error) {
	w, err := s.sounds()
	if err != nil {
		return nil, err
	}
	return w.use(ctx)
}

// Sounds waits until what pages play is heard, where there is to be sound.
func (s *Slot) Sounds(ctx context.Context) error {
	w, err := s.sounds()
	if err != nil {
		return err
	}
	select {
	case <-w.met:
		return nil
	case <-w.done:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errSilent: the session has no sound.
var errSilent = errors.New("there is no sound")

func (s *Slot) sounds() (*waiting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sound == nil {
		return nil, errSilent
	}
	return s.sound, nil
}

// Raise gives the container its full share of the CPU.
func (s *Slot) Raise(ctx context.Context) error { return s.c.Engine.Raise(ctx, s.ID) }

// Ended waits until the container does not run any more and tells how it is.
func (s *Slot) Ended(ctx context.Context) (browser.Container, error) {
	if err := s.c.Engine.Ended(ctx, s.ID); err != nil {
		return browser.Container{}, err
	}
	c, _, err := s.c.Engine.Inspect(ctx, s.ID)
	if err == nil && c.Running { // a daemon that stops ends the wait, not the container
		err = errors.New("the container still runs")
	}
	return c, err
}

// Logs returns the container's last lines.
func (s *Slot) Logs(ctx context.Context) string { return s.c.Engine.Logs(ctx, s.ID) }

// Close removes the container and everything of the slot. When the engine
// cannot do it the directory goes all the same; the container is found by its
// label later. It may be called more than once.
func (s *Slot) Close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		err = s.c.Engine.Remove(ctx, s.ID)
		s.close()
	})
	return err
}

// Leave gives the sockets back and leaves container and directory to the next
// process.
func (s *Slot) Leave() { s.once.Do(s.release) }

func (s *Slot) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given {
		return
	}
	for _, w := range []*waiting{s.screen, s.x11, s.files, s.sound} {
		if w != nil {
			w.close()
		}
	}
	s.sound, s.given = nil, true
	if s.Door != nil {
		s.Door.Close()
	}
}

func (s *Slot) close() {
	s.release()
	if err := os.RemoveAll(s.dir); err != nil {
		s.c.Log.Error("slot", telemetry.KeyErr, err)
	}
}

// waiting holds one connection of a container's process 1 until it is wanted.
type waiting struct {
	ln   *net.UnixListener
	next chan *net.UnixConn
	met  chan struct{} // closed when the first has come
	done chan struct{}
	wg   sync.WaitGroup
}

func wait(path string) (*waiting, error) {
	ln, err := egress.Listen(path)
	if err != nil {
		return nil, err
	}
	w := &waiting{ln: ln, next: make(chan *net.UnixConn), met: make(chan struct{}), done: make(chan struct{})}
	w.wg.Go(w.accept)
	return w, nil
}

// accept hands one connection after another over; the container has one
// waiting, what it connects besides waits in the kernel's short queue.
func (w *waiting) accept() {
	for first := true; ; first = false {
		c, err := w.ln.AcceptUnix()
		if err != nil {
			return
		}
		if first {
			close(w.met)
		}
		select {
		case w.next <- c:
		case <-w.done:
			c.Close()
			return
		}
	}
}

// use takes a connection and says so to its other end.
func (w *waiting) use(ctx context.Context) (net.Conn, error) {
	for {
		select {
		case c := <-w.next:
			if c.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
				if _, err := c.Write([]byte{1}); err == nil {
					return c, c.SetWriteDeadline(time.Time{})
				}
			}
			c.Close() // its process 1 has ended meanwhile, or a former one's
		case <-w.done:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, errors.Join(errors.New("the container does not connect"), ctx.Err())
		}
	}
}

func (w *waiting) close() {
	close(w.done)
	w.ln.Close()
	w.wg.Wait()
}
