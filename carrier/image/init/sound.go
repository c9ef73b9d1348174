package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"time"
)

// Sound. A session has it while the carrier's socket for it is there; without
// one nothing of this runs. What pages play goes to a PulseAudio of this
// container alone, whose only device is one that nobody hears; from there it is
// offered to the carrier like the screen.
const (
	sound = shared + "/sound.sock"
	// pulse is what browsers connect to when a page first plays, pcm where the
	// samples come out.
	pulseDir = "/tmp/.sound"
	pulse    = pulseDir + "/native"
	pcm      = pulseDir + "/pcm"
)

// blockSize is 20 ms of sound: 48 kHz, two channels, 16 bits each, little endian.
const blockSize = 48000 / 50 * 2 * 2

const (
	// awayTime is how long the socket may be missing before there is no sound
	// any more: the carrier makes it anew when it is started again.
	awayTime = 200 * time.Millisecond
	// listenTime bounds the wait for a carrier that does not read.
	listenTime = 10 * time.Second
)

// sounds serves sound whenever the carrier wants it. It looks after each knock,
// and costs nothing in between: most sessions have no sound, and of what tells
// of new files (inotify) all containers of a machine have few in common.
func sounds(ctx context.Context, env []string, knock <-chan struct{}) {
	for ctx.Err() == nil {
		if _, err := os.Stat(sound); err != nil {
			<-knock
			continue
		}
		if err := serveSound(ctx, env); err != nil {
			fmt.Fprintln(os.Stderr, "init: sound:", err)
			time.Sleep(time.Second) // it is tried again
		}
	}
}

// serveSound runs the sound server until the carrier wants no more of it.
func serveSound(ctx context.Context, env []string) error {
	server, err := startPulse(env)
	if err != nil {
		return err
	}
	runs, over := context.WithCancel(ctx)
	reaped := make(chan struct{})
	go func() {
		_ = server.Wait() // wait may be the one that reaps it
		over()
		close(reaped)
	}()
	defer func() {
		_ = server.Process.Kill() // it may have ended
		<-reaped
		_ = os.RemoveAll(pulseDir)
	}()
	if err := await(runs, pcm, server); err != nil {
		return err
	}
	return offerSound(runs.Done())
}

func startPulse(env []string) (*exec.Cmd, error) {
	if err := os.MkdirAll(pulseDir, 0o700); err != nil {
		return nil, err
	}
	env = append(env[:len(env):len(env)], "PULSE_RUNTIME_PATH="+pulseDir, "PULSE_STATE_PATH="+pulseDir)
	return start(env, "pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disallow-exit", "--disallow-module-loading",
		"--realtime=no", "--high-priority=no", "--disable-shm", "--log-target=stderr", "--log-level=error",
		"-L", "module-null-sink sink_name=out format=s16le rate=48000 channels=2",
		"-L", "module-suspend-on-idle timeout=2",
		"-L", "module-native-protocol-unix auth-anonymous=1 socket="+pulse,
		"-L", "module-simple-protocol-unix record=1 playback=0 source=out.monitor format=s16le rate=48000 channels=2 socket="+pcm)
}

// offerSound keeps one connection to the carrier's socket waiting, until there
// is no such socket any more or the sound server has ended.
func offerSound(over <-chan struct{}) error {
	room := make(chan struct{}, maxJoined)
	there := time.Now()
	for time.Since(there) < awayTime {
		select {
		case room <- struct{}{}:
		case <-over:
		}
		c, _ := wanted(sound, over)
		select {
		case <-over: // also while nobody listens: pages play all the same
			if c != nil {
				c.Close()
			}
			return errors.New("pulseaudio has ended")
		default:
		}
		if _, err := os.Stat(sound); !errors.Is(err, fs.ErrNotExist) {
			there = time.Now()
		}
		if c == nil {
			<-room
			time.Sleep(20 * time.Millisecond)
			continue
		}
		go func() {
			defer func() { <-room }()
			listen(c)
		}()
	}
	return nil
}

// listen sends what is played, in whole blocks and without silence, until the
// carrier has enough.
func listen(c *net.UnixConn) {
	defer c.Close()
	src, err := net.Dial("unix", pcm)
	if err != nil {
		fmt.Fprintln(os.Stderr, "init: sound:", err)
		return
	}
	defer src.Close()
	go func() {
		_, _ = io.Copy(io.Discard, c) // nothing comes but the end
		src.Close()
	}()
	_ = copySound(c, src) // it ends with either side
}

// deadliner is a connection to write to.
type deadliner interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

func copySound(to deadliner, from io.Reader) error {
	block := make([]byte, blockSize)
	silence := make([]byte, blockSize)
	for {
		if _, err := io.ReadFull(from, block); err != nil {
			return err
		}
		if bytes.Equal(block, silence) {
			continue
		}
		if err := to.SetWriteDeadline(time.Now().Add(listenTime)); err != nil {
			return err
		}
		if _, err := to.Write(block); err != nil {
			return err
		}
	}
}
