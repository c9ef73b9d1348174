package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/slot"
	"caponier/e2e/harness"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// block is 20 ms of a tone.
func block(hz float64) []byte {
	b := make([]byte, 0, wire.SoundBlock)
	for i := range wire.SoundBlock / 4 {
		v := uint16(int16(8000 * math.Sin(2*math.Pi*hz*float64(i)/wire.SoundRate)))
		b = binary.LittleEndian.AppendUint16(b, v)
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

func TestShare(t *testing.T) {
	for _, hz := range []float64{220, 440, 880} {
		if got := harness.ToneShare(block(hz), 440); (got > 0.9) != (hz == 440) {
			t.Errorf("%v Hz: share of 440 Hz is %.2f", hz, got)
		}
	}
	if got := harness.ToneShare(make([]byte, wire.SoundBlock), 440); got != 0 {
		t.Errorf("silence: %.2f", got)
	}
}

// numbered is a block that is told from others.
func numbered(n int) []byte {
	b := make([]byte, wire.SoundBlock)
	binary.BigEndian.PutUint64(b, uint64(n))
	return b
}

func number(b []byte) int { return int(binary.BigEndian.Uint64(b)) }

// carried is carrySound between two pipes; the test has the other ends.
func carried(ctx context.Context) (player, listener net.Conn, ended chan error) {
	player, from := net.Pipe()
	to, listener := net.Pipe()
	ended = make(chan error, 1)
	go func() {
		err := carrySound(ctx, to, func(context.Context) (net.Conn, error) { return from, nil })
		to.Close()
		ended <- err
	}()
	return player, listener, ended
}

// Who says nothing of what he hears gets half a second, and then nothing; what
// is played meanwhile is not kept for him.
func TestLateSoundIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		player, listener, ended := carried(t.Context())
		played := func(from, to int) {
			for i := from; i < to; i++ {
				if _, err := player.Write(numbered(i)); err != nil {
					t.Errorf("block %d: %v", i, err)
				}
			}
		}
		heard := make(chan int, 1000)
		go func() {
			for b := make([]byte, wire.SoundBlock); ; {
				if _, err := io.ReadFull(listener, b); err != nil {
					close(heard)
					return
				}
				heard <- number(b)
			}
		}()
		played(0, 500)
		synctest.Wait()
		if n := len(heard); n != wire.SoundAhead {
			t.Fatalf("%d blocks without a word, want %d", n, wire.SoundAhead)
		}
		for i := range wire.SoundAhead {
			if n := <-heard; n != i {
				t.Fatalf("block %d is %d", i, n)
			}
		}
		// He heard three of them: he gets three of what is played now.
		if _, err := listener.Write(make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		played(500, 600)
		synctest.Wait()
		for i := 500; i < 503; i++ {
			if n := <-heard; n != i {
				t.Fatalf("got %d, want %d", n, i)
			}
		}
		if n := len(heard); n != 0 {
			t.Fatalf("%d blocks more than were heard of", n)
		}
		player.Close()
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("ended with %v", err)
		}
		if _, ok := <-heard; ok {
			t.Error("more after the end")
		}
	})
}

// Any of three ends it: who listens, who plays, and who permits.
func TestSoundEnds(t *testing.T) {
	for _, by := range []string{"listener", "player", "permission"} {
		t.Run(by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				player, listener, ended := carried(ctx)
				var wg sync.WaitGroup
				wg.Go(func() {
					for i := 0; ; i++ {
						if _, err := player.Write(numbered(i)); err != nil {
							return
						}
					}
				})
				goesOn := make(chan struct{})
				wg.Go(func() {
					b := make([]byte, wire.SoundBlock)
					for n := 1; ; n++ {
						if _, err := io.ReadFull(listener, b); err != nil {
							return
						}
						if _, err := listener.Write([]byte{1}); err != nil {
							return
						}
						if n == 10*wire.SoundAhead {
							close(goesOn)
						}
					}
				})
				<-goesOn
				switch by {
				case "listener":
					listener.Close()
				case "player":
					player.Close()
				case "permission":
					cancel()
				}
				if err := <-ended; err == nil {
					t.Error("it ended without a reason")
				}
				player.Close()
				listener.Close()
				wg.Wait()
			})
		})
	}
}

// Who says that he heard more than he got has nothing of it: he does not read,
// and what is on the way to him stays half a second.
func TestSoundIsNotHeardAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, listener := net.Pipe()
		player, from := net.Pipe()
		sent := &kept{Conn: to}
		ended := make(chan error, 1)
		go func() {
			ended <- carrySound(t.Context(), sent, func(context.Context) (net.Conn, error) { return from, nil })
		}()
		if _, err := listener.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for i := range 100 {
			if _, err := player.Write(numbered(i)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := sent.blocks.Load(); n != wire.SoundAhead {
			t.Errorf("%d blocks were sent, want %d", n, wire.SoundAhead)
		}
		listener.Close()
		<-ended
		player.Close()
		to.Close()
	})
}

// kept takes all that is written and counts it.
type kept struct {
	net.Conn
	blocks atomic.Int64
}

func (k *kept) Write(b []byte) (int, error) {
	k.blocks.Add(1)
	return len(b), nil
}

// A container that sends sound faster than it is played is made to wait.
func TestSoundFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		player, listener, ended := carried(t.Context())
		began := time.Now()
		for i := range 10 * soundPace {
			if _, err := player.Write(numbered(i)); err != nil {
				t.Fatal(err)
			}
			if i < wire.SoundAhead { // nobody reads what comes after these
				if _, err := io.ReadFull(listener, make([]byte, wire.SoundBlock)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if took := time.Since(began); took < 8*time.Second {
			t.Errorf("what is played in %s was taken in %s", 10*soundPace*20*time.Millisecond, took)
		}
		player.Close()
		<-ended
		listener.Close()
	})
}

// Who leaves before there is sound to be had, from a container that never gives
// any, is waited for by nobody.
func TestSoundBeforeItIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to, listener := net.Pipe()
		ended := make(chan error, 1)
		go func() {
			ended <- carrySound(t.Context(), to, func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
		}()
		synctest.Wait()
		listener.Close()
		synctest.Wait()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it ended without a reason")
			}
		default:
			t.Fatal("it waits for a container, for nobody")
		}
		to.Close()
	})
}

// inert is an engine whose containers do nothing, and run.
type inert struct{ Engine }

func (inert) Start(context.Context, browser.Spec) (string, error) { return "inert", nil }
func (inert) Raise(context.Context, string) error                 { return nil }
func (inert) Remove(context.Context, string) error                { return nil }
func (inert) List(context.Context) ([]browser.Container, error)   { return nil, nil }
func (inert) Logs(context.Context, string) string                 { return "" }
func (inert) Check(context.Context, string) error                 { return nil }
func (inert) Ended(ctx context.Context, _ string) error           { <-ctx.Done(); return ctx.Err() }
func (inert) Starved(ctx context.Context, _ time.Time, _ func(string)) error {
	<-ctx.Done()
	return ctx.Err()
}

// A carrier that stops while a session waits for its sound server does not begin
// it any more.
func TestStopWhileSoundIsAwaited(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "capc") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c := newCore()
	m, err := New(Config{Engine: inert{}, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), Warm: map[string]int{wire.Firefox: 0}, Max: 1,
		Connected: c.up, Post: c.post, Ended: c.endedBy, Log: slogger(t),
		Credentials: func() (tls.Certificate, *x509.CertPool, error) { return tls.Certificate{}, nil, errors.New("none") },
		Authority:   func(context.Context) (wire.WebAuthority, error) { return wire.WebAuthority{}, errors.New("none") }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	sc := m.slotConfig(newRoot(t), wire.Firefox, slot.Needs{})
	sc.Named = func(name string) { // it belongs to somebody
		m.pool.mu.Lock()
		defer m.pool.mu.Unlock()
		m.pool.making[name] = true
	}
	sl, err := slot.Start(ctx, sc)
	if err != nil {
		t.Fatal(err)
	}
	spec := wire.CarrierSession{ID: "con_loud", Revision: 1, StartURL: "http://target.test/", LeaseS: 60, Recorded: true, Policy: wire.BrowserPolicy{Sound: true}}
	began := make(chan error, 1)
	go func() {
		_, err := m.begin(spec, sl, time.Now(), false)
		began <- err
	}()
	socket := filepath.Join(dir, "run", sl.Name, "sound.sock")
	if err := harness.Until(t.Context(), patience, "the socket of the sound server", func() error {
		_, err := os.Stat(socket)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-began; err != nil && !errors.Is(err, errStopping) { // nil: the test was slow
		t.Errorf("begin: %v", err)
	}
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if m.find(spec.ID) != nil {
		t.Error("the session has begun")
	}
	sl.Leave()
}

// tonePage plays a tone as soon as somebody clicks on it.
const tonePage = `<!doctype html><title>tone</title><body style="margin:0;background:rgb(%d,%d,%d)"><script>
let player;
document.addEventListener("click", () => {
  if (player) return;
  player = new AudioContext();
  const tone = player.createOscillator();
  tone.frequency.value = 440;
  tone.connect(player.destination);
  tone.start();
});
</script>`

// ear is somebody who listens to a session.
type ear struct {
	s    tunnel.Stream
	gone chan struct{}

	mu   sync.Mutex
	tone int   // guarded by mu; blocks of 440 Hz
	err  error // guarded by mu; why it ended
}

// listens opens the sound of a session.
func (r *rig) listens(t tunnel.Session, session string) *ear {
	r.t.Helper()
	s, err := t.Open(r.t.Context(), wire.Preface{Kind: wire.StreamDial, Connection: session, Network: "tcp", Dest: wire.SessionSound})
	if err != nil {
		r.t.Fatal(err)
	}
	e := &ear{s: s, gone: make(chan struct{})}
	go func() {
		defer close(e.gone)
		for b := make([]byte, wire.SoundBlock); ; {
			_, err := io.ReadFull(s, b)
			if err == nil {
				_, err = s.Write([]byte{1})
			}
			e.mu.Lock()
			if e.err = err; err == nil && harness.ToneShare(b, 440) > 0.9 {
				e.tone++
			}
			e.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	r.t.Cleanup(func() {
		s.Close()
		<-e.gone
	})
	return e
}

// deaf is what somebody is told who may not listen.
func (r *rig) deaf(t tunnel.Session, session string) string {
	r.t.Helper()
	e := r.listens(t, session)
	r.ends(e)
	we, ok := errors.AsType[*wire.Error](e.err)
	if !ok || e.tone > 0 {
		r.t.Errorf("%s is heard: %d blocks, %v", session, e.tone, e.err)
		return ""
	}
	return we.Public
}

// hears is nil when an ear has heard a second of the tone since it was asked first.
func (e *ear) hears() func() error {
	e.mu.Lock()
	before := e.tone
	e.mu.Unlock()
	return func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if n := e.tone - before; n < 50 {
			return fmt.Errorf("%d blocks of the tone, %v", n, e.err)
		}
		return nil
	}
}

// played clicks on the page until its tone is heard: browsers drop a click that
// comes right after a page's first picture.
func played(v *viewer, hears func() error) func() error {
	return func() error {
		v.click(640, 300)
		return harness.Until(context.Background(), 3*time.Second, "the tone", hears)
	}
}

// pulses lists what there is of a sound server in a session's container.
func (r *rig) pulses(l *live) string {
	return strings.TrimSpace(r.inside(l, `grep -l -x pulseaudio /proc/[0-9]*/comm 2>/dev/null; ls -d /tmp/.sound /tmp/.sound/* /tmp/pulse* /run/caponier/sound.sock 2>/dev/null`))
}

// tones starts the carrier before an application whose pages play a tone.
func (r *rig) tones() tunnel.Session {
	r.t.Helper()
	r.web.handler = func(w http.ResponseWriter, req *http.Request) {
		k := colour(req.URL.Path)
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, tonePage, k.R, k.G, k.B)
	}
	r.start()
	r.warm(1)
	return r.tunnel()
}

// There is sound where a session has it, and no part of it where it has not.
func TestSound(t *testing.T) { each(t, testSound) }

func testSound(t *testing.T, r *rig) {
	tn := r.tones()
	s := r.spec("con_loud")
	s.Policy.Sound = true
	l := r.open(s)
	r.shows(l, colour("/con_loud"), patience)
	one := r.listens(tn, s.ID)
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	r.until(patience, "the page's tone is heard", played(v, one.hears()))
	two := r.listens(tn, s.ID)
	r.until(patience, "a second one hears it", two.hears())

	s.Revision, s.Locked, s.LockText = 2, true, "Locked by an auditor."
	r.open(s)
	for _, e := range []*ear{one, two} {
		r.ends(e)
	}
	if got := r.deaf(tn, s.ID); got != "The session is locked." {
		t.Errorf("a listener of a locked session is told %q", got)
	}
	s.Revision, s.Locked = 3, false
	r.open(s)
	one = r.listens(tn, s.ID)
	r.until(patience, "the tone after the lock", one.hears())

	r.stop()
	r.ends(one)
	r.start()
	r.until(patience, "the session is taken over", func() error {
		if l = r.m.find(s.ID); l == nil {
			return errors.New("not yet")
		}
		return nil
	})
	one = r.listens(tn, s.ID)
	r.until(patience, "the tone after the carrier was restarted", one.hears())
	if r.pulses(l) == "" {
		t.Error("nothing of the sound server is seen where it runs")
	}

	s.Revision, s.Policy.Sound = 4, false
	r.open(s)
	r.ends(one)
	r.silent(tn, l)
}

// A session without sound has neither process nor socket of it, whatever its
// page plays; one whose page has not tried may get it later.
func TestNoSound(t *testing.T) { each(t, testNoSound) }

func testNoSound(t *testing.T, r *rig) {
	tn := r.tones()
	s := r.spec("con_mute")
	l := r.open(s)
	r.shows(l, colour("/con_mute"), patience)
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	v.click(640, 300)
	r.silent(tn, l)
	if err := r.m.delete(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}

	s = r.spec("con_later")
	l = r.open(s)
	r.shows(l, colour("/con_later"), patience)
	r.silent(tn, l)
	s.Revision, s.Policy.Sound = 2, true
	r.open(s)
	r.until(patience, "the sound server runs", func() error { return l.slot.Sounds(t.Context()) })
	e := r.listens(tn, s.ID)
	v = r.viewer(tn, s.ID, wire.ScreenControl)
	r.until(patience, "the page's tone, which was not permitted at first", played(v, e.hears()))
}

// ends waits until somebody hears nothing more.
func (r *rig) ends(e *ear) {
	r.t.Helper()
	r.until(patience, "the stream of sound ends", func() error {
		select {
		case <-e.gone:
			return nil
		default:
			return errors.New("it goes on")
		}
	})
}

// silent waits until nothing of a sound server is there, and asks for its sound
// in vain.
func (r *rig) silent(tn tunnel.Session, l *live) {
	r.t.Helper()
	if got := r.deaf(tn, l.id); got != "This session has no sound." {
		r.t.Errorf("a listener of a session without sound is told %q", got)
	}
	r.until(patience, "no sound server in the container", func() error {
		if s := r.pulses(l); s != "" {
			return errors.New(s)
		}
		return nil
	})
	if s := r.inside(l, "ls /tmp/.X11-unix/X1 /run/caponier/egress.sock"); !strings.Contains(s, "X1") || strings.Contains(s, "sound") {
		r.t.Errorf("the container's sockets: %s", s)
	}
}
