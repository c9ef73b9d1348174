package bastion

import (
	"io"
	"net"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/target"
)

// benchServer accepts SSH connections with any password and answers each exec
// request with serve.
func benchServer(b *testing.B, serve func(ch ssh.Channel, command string)) string {
	b.Helper()
	cfg := &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(newKey(b))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	session := func(nch ssh.NewChannel) {
		ch, reqs, err := nch.Accept()
		if err != nil {
			return
		}
		for r := range reqs {
			_ = r.Reply(r.Type == "exec", nil)
			if r.Type != "exec" {
				continue
			}
			var f stringField
			_ = ssh.Unmarshal(r.Payload, &f)
			wg.Go(func() {
				serve(ch, f.Value)
				_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{}))
				_ = ch.Close()
			})
		}
	}
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = nc.Close() }()
				_, chans, reqs, err := ssh.NewServerConn(nc, cfg)
				if err != nil {
					return
				}
				wg.Go(func() { ssh.DiscardRequests(reqs) })
				for nch := range chans {
					wg.Go(func() { session(nch) })
				}
			})
		}
	})
	b.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func benchClient(b *testing.B, addr, user string) *ssh.Client {
	b.Helper()
	c, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.Password("correct horse")}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c
}

// fetch runs a command that prints n bytes and reads them.
func fetch(c *ssh.Client, w io.Writer, command string) (int64, error) {
	s, err := c.NewSession()
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }()
	out, err := s.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := s.Start(command); err != nil {
		return 0, err
	}
	n, err := io.Copy(w, out)
	if err != nil {
		return n, err
	}
	return n, s.Wait()
}

// BenchmarkCopyOutput measures the output of a command on its way to the user.
// "relay" is the measure for the bastion: two connections of the same SSH
// library joined by io.Copy, and nothing else.
func BenchmarkCopyOutput(b *testing.B) {
	const size = 16 << 20
	far := benchServer(b, func(ch ssh.Channel, command string) {
		n, _ := strconv.Atoi(command)
		buf := make([]byte, 32<<10)
		for n > 0 {
			w, err := ch.Write(buf[:min(n, len(buf))])
			if n -= w; err != nil {
				return
			}
		}
	})
	measure := func(b *testing.B, c *ssh.Client) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			if n, err := fetch(c, io.Discard, strconv.Itoa(size)); n != size || err != nil {
				b.Fatal(n, err)
			}
		}
	}
	b.Run("direct", func(b *testing.B) { measure(b, benchClient(b, far, "app")) })
	b.Run("relay", func(b *testing.B) {
		up := benchClient(b, far, "app")
		measure(b, benchClient(b, benchServer(b, func(ch ssh.Channel, command string) { _, _ = fetch(up, ch, command) }), "app"))
	})
	for name, record := range map[string]bool{"bastion": false, "bastion-recorded": true} {
		b.Run(name, func(b *testing.B) {
			x := newBench(b)
			if record {
				x = newBench(b, func(c *Config) { c.Recordings = newRooms(b).meta })
			}
			x.vault.put("sec_1", "correct horse")
			x.add("db-1", &sshd{addr: far}, func(r *right) {
				r.account.Name, r.account.Auth, r.account.SecretID, r.record = "app", target.AuthPassword, "sec_1", record
			})
			measure(b, benchClient(b, x.addr, "demo%app%db-1"))
		})
	}
}
