package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Login is an account on a host made by SSHD.
type Login struct {
	Name     string
	Password string // empty: no password login
	Keys     []string
}

// SSHDConfig describes a real sshd.
type SSHDConfig struct {
	NS      string // short namespace name
	Name    string // host name, shown by the prompt and the banner file
	Address string
	Port    int // 0 means 22
	// CAFile is a TrustedUserCAKeys file; it may appear after the start.
	CAFile string
	Logins []Login
	// Lines are added to the configuration; the first mention of a keyword wins,
	// so these override.
	Lines []string
}

// SSHD is a running sshd with accounts of its own: it sees its own passwd and
// shadow files through a private mount namespace.
type SSHD struct {
	Proc    *Proc
	Dir     string
	Address string
	HostKey string // public, authorized_keys form
	HostPEM string // path of the private key
	cfg     SSHDConfig
	net     *Net
}

// StartSSHD starts an sshd inside a namespace of n with its files in dir.
func StartSSHD(ctx context.Context, n *Net, dir string, c SSHDConfig, keep bool) (*SSHD, error) {
	if c.Port == 0 {
		c.Port = 22
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s := &SSHD{Dir: dir, HostPEM: filepath.Join(dir, "host_key"), cfg: c, net: n, Address: fmt.Sprintf("%s:%d", c.Address, c.Port)}
	if err := s.NewHostKey(ctx); err != nil {
		return nil, err
	}
	if err := s.writeAccounts(ctx); err != nil {
		return nil, err
	}
	return s, s.start(ctx, keep)
}

// NewHostKey replaces the host key; sshd uses it after Restart.
func (s *SSHD) NewHostKey(ctx context.Context) error {
	os.Remove(s.HostPEM)
	os.Remove(s.HostPEM + ".pub")
	if out, err := run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", s.cfg.Name, "-f", s.HostPEM); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	pub, err := os.ReadFile(s.HostPEM + ".pub")
	s.HostKey = strings.TrimSpace(string(pub))
	return err
}

// Restart ends sshd with all its sessions and starts it again.
func (s *SSHD) Restart(ctx context.Context) error {
	s.Proc.Kill()
	return s.start(ctx, false)
}

func (s *SSHD) writeAccounts(ctx context.Context) error {
	passwd := []string{"sshd:x:100:65534::/run/sshd:/usr/sbin/nologin", "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"}
	shadow := []string{"sshd:*:19000:0:99999:7:::", "nobody:*:19000:0:99999:7:::"}
	group := []string{"root:x:0:", "tty:x:5:", "nogroup:x:65534:"}
	for i, l := range s.cfg.Logins {
		home := filepath.Join(s.Dir, "home", l.Name)
		if err := os.MkdirAll(filepath.Dir(home), 0o755); err != nil { // accounts pass through here
			return err
		}
		if err := os.MkdirAll(filepath.Join(home, ".ssh"), 0o700); err != nil {
			return err
		}
		uid := 20000 + i
		if l.Name == "root" {
			uid = 0
		} else {
			group = append(group, fmt.Sprintf("%s:x:%d:", l.Name, uid))
		}
		// The prompt names the host, so that tests and people see where they are.
		profile := fmt.Sprintf("PS1='%s@%s:\\w\\$ '\n", l.Name, s.cfg.Name)
		for name, text := range map[string]string{".profile": profile, ".bashrc": profile, ".hushlogin": "", ".ssh/authorized_keys": strings.Join(l.Keys, "\n") + "\n"} {
			if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
				return err
			}
		}
		if _, err := run("chown", "-R", fmt.Sprintf("%d:%d", uid, uid), home); err != nil {
			return err
		}
		hash := "*"
		if l.Password != "" {
			cmd := exec.CommandContext(ctx, "openssl", "passwd", "-6", "-stdin")
			cmd.Stdin = strings.NewReader(l.Password)
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("openssl passwd: %w", err)
			}
			hash = strings.TrimSpace(string(out))
		}
		passwd = append(passwd, fmt.Sprintf("%s:x:%d:%d:%s:%s:/bin/bash", l.Name, uid, uid, l.Name, home))
		shadow = append(shadow, fmt.Sprintf("%s:%s:19000:0:99999:7:::", l.Name, hash))
	}
	files := map[string]string{
		"etc/passwd": strings.Join(passwd, "\n") + "\n",
		"etc/shadow": strings.Join(shadow, "\n") + "\n",
		"etc/group":  strings.Join(group, "\n") + "\n",
		// The name service answers from these files only.
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
		"etc/hostname":      s.cfg.Name + "\n",
		"banner":            "this is " + s.cfg.Name + "\n",
	}
	if err := os.MkdirAll(filepath.Join(s.Dir, "etc"), 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// sshd refuses homes below directories that others may write, unless StrictModes is off.
	lines := append([]string{}, s.cfg.Lines...)
	lines = append(lines,
		fmt.Sprintf("Port %d", s.cfg.Port),
		"ListenAddress "+s.cfg.Address,
		"HostKey "+s.HostPEM,
		"PidFile none",
		"UsePAM no",
		"StrictModes no",
		"UseDNS no",
		"PermitRootLogin yes",
		"PrintMotd no",
		"LogLevel VERBOSE",
		"MaxStartups 500:30:600",
		"MaxSessions 100",
		"Banner "+filepath.Join(s.Dir, "banner"),
		"Subsystem sftp internal-sftp",
		"AuthorizedKeysFile .ssh/authorized_keys",
	)
	if s.cfg.CAFile != "" {
		lines = append(lines, "TrustedUserCAKeys "+s.cfg.CAFile)
	}
	anyPassword := false
	for _, l := range s.cfg.Logins {
		anyPassword = anyPassword || l.Password != ""
	}
	if anyPassword {
		lines = append(lines, "PasswordAuthentication yes", "KbdInteractiveAuthentication no")
	} else {
		lines = append(lines, "PasswordAuthentication no", "KbdInteractiveAuthentication no")
	}
	return os.WriteFile(filepath.Join(s.Dir, "sshd_config"), []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func (s *SSHD) start(ctx context.Context, keep bool) error {
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return err
	}
	sshd, err := lookPath("sshd")
	if err != nil {
		return err
	}
	script := `set -e
for f in passwd shadow group nsswitch.conf; do mount --bind "$1/etc/$f" "/etc/$f"; done
hostname "$3" 2>/dev/null || true
exec "$2" -D -e -f "$1/sshd_config"`
	// unshare -m -u: own mounts and own host name.
	cmd := s.net.Command(context.WithoutCancel(ctx), s.cfg.NS, "unshare", "-m", "-u", "--propagation", "private",
		"sh", "-c", script, "sh", s.Dir, sshd, s.cfg.Name)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	s.Proc, err = Start("sshd-"+s.cfg.Name, s.Dir, cmd, keep)
	if err != nil {
		return err
	}
	return Until(ctx, time.Minute, "sshd "+s.cfg.Name+" answers", func() error {
		select {
		case <-s.Proc.Exited():
			return fmt.Errorf("%w: %s", ErrGone, tail(s.Proc.Output(), 1000))
		default:
		}
		dctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c, err := s.net.Dial(dctx, s.cfg.NS, "tcp", s.Address)
		if err != nil {
			return err
		}
		return c.Close()
	})
}
