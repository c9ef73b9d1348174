package usercli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/shared/daemon"
)

// newKey makes the key of this login and returns its public half.
func newKey(e *env) (string, error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(priv, "caponier")
	if err != nil {
		return "", err
	}
	if err := e.write(keyFile, string(pem.EncodeToMemory(block))); err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), nil
}

// publicKey is the public half of the login's key.
func publicKey(e *env) (string, error) {
	b, err := os.ReadFile(e.path(keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(e)
	}
	if err != nil {
		return "", err
	}
	signer, err := ssh.ParsePrivateKey(b)
	if err != nil {
		return newKey(e) // damaged: a login's key is made anew at no loss
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), nil
}

// certificate reads the login's certificate; nil when there is none that
// holds for another minute.
func certificate(e *env) *ssh.Certificate {
	b, err := os.ReadFile(e.path(certFile))
	if err != nil {
		return nil
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(b)
	if err != nil {
		return nil
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok || cert.ValidBefore != ssh.CertTimeInfinity && e.now().Add(time.Minute).After(time.Unix(int64(cert.ValidBefore), 0)) {
		return nil
	}
	return cert
}

// ready makes sure that there is a certificate to log in to the bastion with.
func (e *env) ready() (*client, *profile, error) {
	c, p, err := e.session()
	if err != nil {
		return nil, nil, err
	}
	if p.Bastion == "" || certificate(e) == nil {
		if err := renewCertificate(e, c, p); err != nil {
			return nil, nil, err
		}
	}
	return c, p, nil
}

// escape doubles the separator inside a part of an SSH user name.
func escape(p *profile, part string) string {
	return strings.ReplaceAll(part, p.Separator, p.Separator+p.Separator)
}

// sshUser is the user name that leads through the bastion to an account.
func sshUser(p *profile, account, target string) string {
	return escape(p, p.User) + p.Separator + escape(p, account) + p.Separator + escape(p, target)
}

// sshOptions are what ssh, scp and sftp need to reach the bastion as us and
// nothing else.
func sshOptions(e *env, p *profile) ([]string, error) {
	host, port, err := net.SplitHostPort(p.Bastion)
	if err != nil {
		return nil, fmt.Errorf("bastion address %q: %w", p.Bastion, err)
	}
	return []string{
		"-F", "none",
		"-o", "HostName=" + host,
		"-o", "Port=" + port,
		"-o", "ProxyCommand=none",
		"-o", "IdentitiesOnly=yes",
		"-o", "IdentityFile=" + e.path(keyFile),
		"-o", "CertificateFile=" + e.path(certFile),
		"-o", "UserKnownHostsFile=" + e.path(knownHosts),
		"-o", "GlobalKnownHostsFile=none",
		"-o", "StrictHostKeyChecking=yes",
		"-o", "HostKeyAlias=" + hostAlias,
		"-o", "ServerAliveInterval=30",
	}, nil
}

// hostAlias is the name under which the bastion's host CA stands in our
// known_hosts, whatever address it is reached by.
const hostAlias = "caponier-bastion"

// split reads [account@]target.
func split(ref string) (account, target string) {
	if account, target, ok := strings.Cut(ref, "@"); ok {
		return account, target
	}
	return "", ref
}

// resolve finds the account to use on a target: the one given, or the only
// one that may be used.
func resolve(e *env, c *client, ref, account string) (string, string, error) {
	at, target := split(ref)
	if account == "" {
		account = at
	}
	if target == "" {
		return "", "", &daemon.UsageError{Text: "no target given", Hint: "caponier targets lists them"}
	}
	if account != "" {
		return account, target, nil
	}
	entries, err := listTargets(e.ctx, c, target)
	if err != nil {
		return "", "", err
	}
	var names []string
	for _, t := range entries {
		if t.Target.Name == target && t.Target.Kind == "tcp" {
			return "", "", &daemon.UsageError{Text: fmt.Sprintf("%s is a tcp target, not an SSH host", plain(target)), Hint: "caponier forward " + plain(target)}
		}
		if t.Target.Name == target && t.Account != "" {
			names = append(names, t.Account)
		}
	}
	switch len(names) {
	case 1:
		return names[0], target, nil
	case 0:
		return "", "", &hinted{err: fmt.Errorf("you may not reach %q now, or there is no such target", plain(target)), hint: "caponier targets lists what you may reach; caponier explain says why not", code: ExitRefused}
	}
	return "", "", &daemon.UsageError{Text: fmt.Sprintf("%s has several accounts for you: %s", target, strings.Join(names, ", ")), Hint: "name one: " + names[0] + "@" + target}
}

// replace turns this process into the SSH client. Its environment has no
// secrets of ours.
func replace(e *env, tool string, args []string) error {
	path, err := exec.LookPath(tool)
	if err != nil {
		return &hinted{err: fmt.Errorf("no %s on this machine", tool), hint: "install an OpenSSH client (Debian: openssh-client)"}
	}
	var environ []string
	for _, kv := range e.Environ {
		if !strings.HasPrefix(kv, "CAPONIER_") {
			environ = append(environ, kv)
		}
	}
	if err := syscall.Exec(path, append([]string{tool}, args...), environ); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

type sshCmd struct {
	Account string   `short:"l" help:"Account on the target." placeholder:"NAME"`
	Reason  string   `help:"Why you connect, where a reason is asked for." placeholder:"TEXT"`
	Tty     bool     `short:"t" help:"Ask for a terminal also for a command."`
	Target  string   `arg:"" help:"[ACCOUNT@]TARGET or [ACCOUNT@]SITE/HOST[:PORT]."`
	Command []string `arg:"" optional:"" passthrough:"" help:"Command to run instead of a shell."`
}

func (s sshCmd) Run(e *env) error {
	login, args, err := e.toTarget(s.Target, s.Account)
	if err != nil {
		return err
	}
	if s.Reason != "" {
		args = append(args, "-o", "SetEnv=CAPONIER_REASON="+quoteEnv(s.Reason))
	}
	command := s.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if s.Tty {
		args = append(args, "-t")
	}
	args = append(args, "-l", login, "--", hostAlias)
	return replace(e, "ssh", append(args, command...))
}

// toTarget finds what is meant and how ssh gets there: the login name and the
// options.
func (e *env) toTarget(ref, account string) (login string, args []string, err error) {
	c, p, err := e.ready()
	if err != nil {
		return "", nil, err
	}
	account, target, err := resolve(e, c, ref, account)
	if err != nil {
		return "", nil, err
	}
	args, err = sshOptions(e, p)
	return sshUser(p, account, target), args, err
}

// quoteEnv makes a value that ssh's SetEnv takes as one word.
func quoteEnv(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ").Replace(s) + `"`
}

type sftpCmd struct {
	Account string `short:"l" help:"Account on the target." placeholder:"NAME"`
	Target  string `arg:"" help:"[ACCOUNT@]TARGET."`
}

func (s sftpCmd) Run(e *env) error {
	login, args, err := e.toTarget(s.Target, s.Account)
	if err != nil {
		return err
	}
	// The login name goes with the host: newer clients expand % in options.
	return replace(e, "sftp", append(args, "--", login+"@"+hostAlias))
}

type scpCmd struct {
	Recursive bool     `short:"r" help:"Copy directories too."`
	Preserve  bool     `short:"p" help:"Keep times and modes."`
	Account   string   `short:"l" help:"Account on the target." placeholder:"NAME"`
	Paths     []string `arg:"" help:"Sources and destination; remote ones as [ACCOUNT@]TARGET:PATH."`
}

func (s scpCmd) Run(e *env) error {
	if len(s.Paths) < 2 {
		return &daemon.UsageError{Text: "scp needs a source and a destination", Hint: "caponier scp file db-1:/tmp/"}
	}
	c, p, err := e.ready()
	if err != nil {
		return err
	}
	args, err := sshOptions(e, p)
	if err != nil {
		return err
	}
	paths := make([]string, len(s.Paths))
	login := ""
	for i, path := range s.Paths {
		paths[i] = path
		ref, rest, remote := strings.Cut(path, ":")
		if !remote || strings.ContainsAny(ref, "/") {
			continue
		}
		account, target, err := resolve(e, c, ref, s.Account)
		if err != nil {
			return err
		}
		u := sshUser(p, account, target)
		if login != "" && u != login {
			return &daemon.UsageError{Text: "scp between two targets is not possible", Hint: "copy to this machine first"}
		}
		login, paths[i] = u, u+"@"+hostAlias+":"+rest
	}
	if login == "" {
		return &daemon.UsageError{Text: "no remote path given", Hint: "write it as target:path"}
	}
	if s.Recursive {
		args = append(args, "-r")
	}
	if s.Preserve {
		args = append(args, "-p")
	}
	return replace(e, "scp", append(append(args, "--"), paths...))
}

type sshConfigCmd struct {
	Targets []string `arg:"" optional:"" help:"[ACCOUNT@]TARGET; all you may reach when none is given."`
}

func (s sshConfigCmd) Run(e *env) error {
	c, p, err := e.ready()
	if err != nil {
		return err
	}
	type login struct{ account, target string }
	var logins []login
	for _, ref := range s.Targets {
		account, target, err := resolve(e, c, ref, "")
		if err != nil {
			return err
		}
		logins = append(logins, login{account, target})
	}
	if len(s.Targets) == 0 {
		entries, err := listTargets(e.ctx, c, "")
		if err != nil {
			return err
		}
		for _, t := range entries {
			if t.Target.Kind == "ssh" {
				logins = append(logins, login{t.Account, t.Target.Name})
			}
		}
	}
	host, port, err := net.SplitHostPort(p.Bastion)
	if err != nil {
		return fmt.Errorf("bastion address %q: %w", p.Bastion, err)
	}
	percent := "%"
	if expandsUser(e.ctx) {
		percent = "%%"
	}
	seen := map[string]bool{}
	blocks := make([]hostBlock, 0, len(logins))
	for _, l := range logins {
		name := l.target
		if seen[name] { // a second account of the same target
			name = l.account + "." + l.target
		}
		seen[name] = true
		blocks = append(blocks, hostBlock{Host: plain(name), HostName: host, Port: port, User: strings.ReplaceAll(sshUser(p, l.account, l.target), "%", percent),
			HostKeyAlias: hostAlias, IdentityFile: e.path(keyFile), CertificateFile: e.path(certFile), UserKnownHostsFile: e.path(knownHosts)})
	}
	if e.json {
		return e.printJSON(blocks)
	}
	for _, b := range blocks {
		if err := e.printf("Host %s\n  HostName %s\n  Port %s\n  User %s\n  HostKeyAlias %s\n  IdentitiesOnly yes\n  IdentityFile %q\n  CertificateFile %q\n  UserKnownHostsFile %q\n  StrictHostKeyChecking yes\n\n",
			b.Host, b.HostName, b.Port, b.User, b.HostKeyAlias, b.IdentityFile, b.CertificateFile, b.UserKnownHostsFile); err != nil {
			return err
		}
	}
	return nil
}

// hostBlock is what ssh_config(5) needs to know for one login.
type hostBlock struct {
	Host               string `json:"host"`
	HostName           string `json:"hostname"`
	Port               string `json:"port"`
	User               string `json:"user"`
	HostKeyAlias       string `json:"host_key_alias"`
	IdentityFile       string `json:"identity_file"`
	CertificateFile    string `json:"certificate_file"`
	UserKnownHostsFile string `json:"user_known_hosts_file"`
}

// expandsUser says whether the SSH client here expands % in the User keyword,
// as OpenSSH does since version 10.
func expandsUser(ctx context.Context) bool {
	out, err := exec.CommandContext(ctx, "ssh", "-V").CombinedOutput()
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(out), "OpenSSH_")
	major, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n >= 10
}
