package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Postgres is a real PostgreSQL server that takes connections over TLS with a
// password only, at 127.0.0.1:5432 of its namespace.
type Postgres struct {
	Proc *Proc
	ns   string
	dir  string
	bin  string
	net  *Net
}

// StartPostgres makes a database cluster in dir and serves it. The server's
// certificate and key are copied in.
func StartPostgres(ctx context.Context, n *Net, ns, dir, certFile, keyFile, password string) (*Postgres, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("no PostgreSQL server below /usr/lib/postgresql (%v): run make setup", err)
	}
	p := &Postgres{ns: ns, dir: dir, bin: filepath.Dir(slices.Max(found)), net: n}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	passwd := filepath.Join(dir, "password")
	if err := os.WriteFile(passwd, []byte(password+"\n"), 0o600); err != nil {
		return nil, err
	}
	if out, err := run("chown", "-R", "postgres", dir); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	data := filepath.Join(dir, "data")
	initdb := p.command(ctx, filepath.Join(p.bin, "initdb"), "-D", data, "-U", "postgres", "--pwfile", passwd, "-A", "scram-sha-256", "--no-sync", "--no-instructions")
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	for from, to := range map[string]string{certFile: "server.crt", keyFile: "server.key"} {
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(data, to), b, 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("hostssl all all all scram-sha-256\n"), 0o600); err != nil {
		return nil, err
	}
	if out, err := run("chown", "-R", "postgres", data); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return p, p.Start(ctx)
}

// command runs a program as the user postgres, which it insists on.
func (p *Postgres) command(ctx context.Context, prog string, args ...string) *exec.Cmd {
	cmd := p.net.Command(context.WithoutCancel(ctx), p.ns, "setpriv", append([]string{"--reuid=postgres", "--regid=postgres", "--clear-groups", prog}, args...)...)
	cmd.Dir = p.dir
	return cmd
}

// Start serves the cluster, for the first time or again.
func (p *Postgres) Start(ctx context.Context) (err error) {
	p.Proc, err = Start("postgres", filepath.Dir(p.dir), p.command(ctx, filepath.Join(p.bin, "postgres"), "-D", filepath.Join(p.dir, "data"), "-p", "5432", "-k", p.dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "ssl=on", "-c", "fsync=off"), false)
	if err != nil {
		return err
	}
	return Until(ctx, time.Minute, "PostgreSQL answers", func() error {
		select {
		case <-p.Proc.Exited():
			return fmt.Errorf("%w: %s", ErrGone, tail(p.Proc.Output(), 2000))
		default:
		}
		c, err := p.net.Dial(ctx, p.ns, "tcp", net.JoinHostPort("127.0.0.1", "5432"))
		if err != nil {
			return err
		}
		c.Close()
		if !strings.Contains(p.Proc.Output(), "ready to accept connections") {
			return fmt.Errorf("it is starting")
		}
		return nil
	})
}

// Stop ends the server and every connection to it at once.
func (p *Postgres) Stop() error {
	if err := p.Proc.Signal(syscall.SIGQUIT); err != nil { // immediate shutdown
		return err
	}
	_, err := p.Proc.WaitExit(30 * time.Second)
	return err
}
