// Package sshprogram runs the router's program on another machine over SSH. It
// trusts one pinned host key and has one key of its own, which should be bound
// there to a forced command (sshd(8), command="…",restrict).
//
// The command line sent is the verb, after the configured command if there is
// one; a forced command finds it in SSH_ORIGINAL_COMMAND. One connection is
// kept and made again when it is lost.
package sshprogram

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/router/internal/program"
	"caponier/shared/telemetry"
)

// Config is what a Runner needs. All but Command and Log are required.
type Config struct {
	// Address is host:port, User the login there.
	Address, User string
	// KeyFile holds the private key, unencrypted, readable by its owner only.
	KeyFile string
	// HostKey is the other machine's, as in authorized_keys.
	HostKey string
	// Command stands before the verb; empty: the verb alone.
	Command string
	Log     *slog.Logger // nil: discard
}

const (
	// connectTimeout bounds connecting and logging in.
	connectTimeout = 8 * time.Second
	// termGrace is how long a program may go on after SIGTERM.
	termGrace = 2 * time.Second
	// writeTimeout bounds one write to the network.
	writeTimeout = 10 * time.Second
	// maxKeyFile bounds the key file in bytes.
	maxKeyFile = 64 << 10
)

// Runner is a program.Runner. Safe for concurrent use.
type Runner struct {
	c      Config
	log    *slog.Logger
	client ssh.ClientConfig
	dialer net.Dialer

	// turn is held while connecting: one at a time.
	turn chan struct{}

	mu     sync.Mutex
	conn   *ssh.Client // guarded by mu; nil while there is none
	closed bool        // guarded by mu
	waits  sync.WaitGroup
}

// New reads the key; it does not connect.
func New(c Config) (*Runner, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	host, err := ParseHostKey(c.HostKey)
	if err != nil {
		return nil, err
	}
	signer, err := readKey(c.KeyFile)
	if err != nil {
		return nil, err
	}
	r := &Runner{c: c, log: c.Log, turn: make(chan struct{}, 1)}
	r.client = ssh.ClientConfig{
		User: c.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.FixedHostKey(host), HostKeyAlgorithms: algorithms(host),
		Timeout: connectTimeout, ClientVersion: "SSH-2.0-caponier-router",
	}
	return r, nil
}

// ParseHostKey reads a line of authorized_keys, or of known_hosts without its
// host names.
func ParseHostKey(line string) (ssh.PublicKey, error) {
	k, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(strings.TrimSpace(line)))
	if err != nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the pinned host key must be one line like: ssh-ed25519 AAAA…")
	}
	return k, nil
}

// algorithms are the signature algorithms of the pinned key, so that the
// server offers that key and no other.
func algorithms(k ssh.PublicKey) []string {
	if k.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{k.Type()}
}

func readKey(file string) (ssh.Signer, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("ssh key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("ssh key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("ssh key %s can be read by others: chmod 600", file)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("ssh key: %w", err)
	}
	s, err := ssh.ParsePrivateKey(b)
	if err != nil {
		// The error's own text could quote the file.
		return nil, fmt.Errorf("ssh key %s is not an unencrypted private key", file)
	}
	return s, nil
}

// Close implements program.Runner.
func (r *Runner) Close() error {
	r.mu.Lock()
	r.closed = true
	c := r.conn
	r.conn = nil
	r.mu.Unlock()
	if c != nil {
		// It may have broken before; nothing depends on it.
		_ = c.Close()
	}
	r.waits.Wait()
	return nil
}

// connected returns the live connection, or makes one.
func (r *Runner) connected(ctx context.Context) (*ssh.Client, error) {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-r.turn }()
	r.mu.Lock()
	c, closed := r.conn, r.closed
	r.mu.Unlock()
	if c != nil {
		return c, nil
	}
	if closed {
		return nil, net.ErrClosed
	}
	dctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	nc, err := r.dialer.DialContext(dctx, "tcp", r.c.Address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	stop := context.AfterFunc(dctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	sc, chans, reqs, err := ssh.NewClientConn(&bounded{nc}, r.c.Address, &r.client)
	if !stop() && err == nil {
		sc.Close()
		err = context.Cause(dctx)
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("log in to %s as %s: %w", r.c.Address, r.c.User, err)
	}
	c = ssh.NewClient(sc, chans, reqs)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	r.conn = c
	r.waits.Go(func() {
		err := c.Wait()
		r.drop(c)
		r.log.Debug("ssh connection ended", "address", r.c.Address, telemetry.KeyErr, err)
	})
	return c, nil
}

// drop forgets a connection that is of no use any more.
func (r *Runner) drop(c *ssh.Client) {
	r.mu.Lock()
	if r.conn == c {
		r.conn = nil
	}
	r.mu.Unlock()
	_ = c.Close()
}

// bounded gives each write a deadline.
type bounded struct{ net.Conn }

func (b *bounded) Write(p []byte) (int, error) {
	if err := b.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return b.Conn.Write(p)
}

// Run implements program.Runner. When ctx ends the program is told to
// terminate, then killed, as far as the server passes signals on; after that
// the connection is dropped, so that nothing of it can be mistaken later.
func (r *Runner) Run(ctx context.Context, c program.Call) (program.Reply, error) {
	client, err := r.connected(ctx)
	if err != nil {
		return program.Reply{}, fmt.Errorf("ssh: %w", err)
	}
	type outcome struct {
		reply program.Reply
		err   error
	}
	sessions := make(chan *ssh.Session, 1)
	done := make(chan outcome, 1)
	r.waits.Go(func() {
		s, err := client.NewSession()
		if err != nil {
			r.drop(client)
			done <- outcome{err: fmt.Errorf("ssh: open session: %w", err)}
			return
		}
		sessions <- s
		reply, err := talk(s, r.commandLine(c), c.Stdin)
		done <- outcome{reply, err}
	})
	select {
	case o := <-done:
		return o.reply, o.err
	case <-ctx.Done():
	}
	select {
	case s := <-sessions:
		// Without an answer there is nothing to do about an error.
		_ = s.Signal(ssh.SIGTERM)
		timer := time.NewTimer(termGrace)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
			_ = s.Signal(ssh.SIGKILL)
			r.drop(client)
		}
	default:
		r.drop(client)
	}
	return program.Reply{}, fmt.Errorf("ssh %s: %w", c.Verb, context.Cause(ctx))
}

// talk runs one command in a session and closes it.
func talk(s *ssh.Session, command string, stdin []byte) (program.Reply, error) {
	defer s.Close()
	stdout, stderr := &program.Bounded{Limit: program.MaxStdout}, &program.Bounded{Limit: program.MaxStderr}
	s.Stdin, s.Stdout, s.Stderr = bytes.NewReader(stdin), stdout, stderr
	err := s.Run(command)
	reply := program.Reply{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Cut: stdout.Cut}
	exit, exited := errors.AsType[*ssh.ExitError](err)
	switch {
	case err == nil:
	case exited && exit.Signal() == "":
		reply.Exit = exit.ExitStatus()
	case errors.Is(err, io.EOF):
		// A program that does not read everything; its exit status was fine.
	default:
		return reply, fmt.Errorf("ssh: %w", err)
	}
	return reply, nil
}

// commandLine is what the login shell, or the forced command, gets.
func (r *Runner) commandLine(c program.Call) string {
	words := []string{c.Verb}
	if r.c.Command != "" {
		words = []string{r.c.Command, c.Verb}
	}
	for _, a := range c.Args {
		words = append(words, quote(a))
	}
	return strings.Join(words, " ")
}

// quote makes one word of s for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
