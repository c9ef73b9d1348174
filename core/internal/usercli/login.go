package usercli

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"caponier/shared/config"
	"caponier/shared/daemon"
)

type loginCmd struct {
	URL           string `arg:"" optional:"" help:"Address of core, https://…; the last one by default."`
	User          string `short:"u" help:"Login name; the last one by default." placeholder:"NAME"`
	CA            string `help:"CA certificate (PEM) that vouches for core; kept with the login." type:"existingfile" placeholder:"FILE"`
	Code          string `help:"Code of the second factor; asked for when needed." placeholder:"DIGITS"`
	PasswordStdin bool   `help:"Read the password from standard input. CAPONIER_PASSWORD works too."`
}

// loginAnswer is what a login yields.
type loginAnswer struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
}

func (l loginCmd) Run(e *env) error {
	p, err := loadProfile(e)
	if errors.Is(err, errNotLoggedIn) {
		p, err = &profile{Separator: "%"}, nil
	}
	if err != nil {
		return err
	}
	if l.URL != "" && strings.TrimSuffix(l.URL, "/") != p.URL {
		p = &profile{URL: strings.TrimSuffix(l.URL, "/"), Separator: "%", User: p.User, CAFile: e.getenv("CAPONIER_CA_FILE")}
		if !strings.Contains(p.URL, "://") {
			p.URL = "https://" + p.URL
		}
		if list := p.Validate(); len(list) > 0 {
			return &daemon.UsageError{Text: list[0].Text, Hint: list[0].Hint}
		}
	}
	if l.User != "" {
		p.User = l.User
	}
	switch {
	case p.URL == "":
		return &daemon.UsageError{Text: "which core?", Hint: "caponier login https://pam.example.org --user alice"}
	case p.User == "":
		return &daemon.UsageError{Text: "which user?", Hint: "add --user NAME"}
	}
	if l.CA != "" {
		pem, err := os.ReadFile(l.CA)
		if err != nil {
			return err
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return &daemon.UsageError{Text: plain(l.CA) + " holds no PEM certificate", Hint: "an administrator finds it with: caponier-core ca show"}
		}
		if err := e.write(caFile, string(pem)); err != nil {
			return err
		}
		p.CAFile = e.path(caFile)
	}
	c, err := connect(p)
	if err != nil {
		return err
	}
	lines := bufio.NewReader(io.LimitReader(e.In, 8<<10))
	password, err := l.password(e, p, lines)
	if err != nil {
		return err
	}
	answer, err := l.authenticate(e, c, p, lines, password)
	if err != nil {
		return err
	}
	if err := e.write(tokenFile, answer.Token+"\n"); err != nil {
		return err
	}
	c.token = config.Secret(answer.Token)
	if !answer.ExpiresAt.IsZero() {
		p.Expires = answer.ExpiresAt.UTC().Format(time.RFC3339)
	}
	if _, err := newKey(e); err != nil {
		return err
	}
	if err := renewCertificate(e, c, p); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"user": p.User, "url": p.URL, "expires_at": answer.ExpiresAt})
	}
	return e.printf("logged in to %s as %s until %s\nnext: caponier targets\n", p.URL, p.User, when(answer.ExpiresAt))
}

// password comes from the environment, standard input or the terminal.
func (l loginCmd) password(e *env, p *profile, lines *bufio.Reader) (string, error) {
	if v := e.getenv("CAPONIER_PASSWORD"); v != "" {
		return v, nil
	}
	if !l.PasswordStdin && term.IsTerminal(int(e.In.Fd())) {
		fmt.Fprintf(e.Err, "Password of %s: ", p.User)
		b, err := term.ReadPassword(int(e.In.Fd()))
		fmt.Fprintln(e.Err)
		return string(b), err
	}
	if !l.PasswordStdin {
		return "", &daemon.UsageError{Text: "no terminal to ask for the password", Hint: "use --password-stdin or CAPONIER_PASSWORD"}
	}
	line, err := lines.ReadString('\n')
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", &daemon.UsageError{Text: "standard input holds no password", Hint: "printf '%s\\n' \"$password\" | caponier login … --password-stdin"}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return line, nil
}

// authenticate logs in and asks for the second factor when core wants it.
func (l loginCmd) authenticate(e *env, c *client, p *profile, lines *bufio.Reader, password string) (*loginAnswer, error) {
	name := "cli"
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	code := l.Code
	for {
		answer := &loginAnswer{}
		err := c.do(e.ctx, http.MethodPost, "/login", map[string]string{"username": p.User, "password": password, "code": code, "name": name}, answer)
		if err == nil {
			return answer, nil
		}
		pr, ok := errors.AsType[*problem](err)
		if !ok || pr.Code != "code_needed" || code != "" {
			return nil, err
		}
		fmt.Fprint(e.Err, "Code: ")
		line, rerr := lines.ReadString('\n')
		if code = strings.TrimSpace(line); code == "" {
			return nil, errors.Join(err, rerr)
		}
	}
}

// certificateAnswer is a signed certificate for the login's key.
type certificateAnswer struct {
	Certificate string    `json:"certificate"`
	ExpiresAt   time.Time `json:"expires_at"`
}

// authorityAnswer is what a client must know of the SSH side of core.
type authorityAnswer struct {
	HostCA    string `json:"host_ca"`
	Bastion   string `json:"bastion"`
	Separator string `json:"separator"`
}

// renewCertificate fetches a certificate for the login's key, and what is
// needed to trust the bastion.
func renewCertificate(e *env, c *client, p *profile) error {
	pub, err := publicKey(e)
	if err != nil {
		return err
	}
	var cert certificateAnswer
	if err := c.do(e.ctx, http.MethodPost, "/ssh-certificates", map[string]string{"public_key": pub}, &cert); err != nil {
		return fmt.Errorf("get an SSH certificate: %w", err)
	}
	if err := e.write(certFile, strings.TrimSpace(cert.Certificate)+"\n"); err != nil {
		return err
	}
	var ca authorityAnswer
	if err := c.do(e.ctx, http.MethodGet, "/ssh-ca", nil, &ca); err != nil {
		return fmt.Errorf("get the SSH authority: %w", err)
	}
	var known strings.Builder
	for line := range strings.Lines(ca.HostCA) { // one per generation of the authority
		if line = strings.TrimSpace(line); line != "" {
			known.WriteString("@cert-authority " + hostAlias + " " + line + "\n")
		}
	}
	if err := e.write(knownHosts, known.String()); err != nil {
		return err
	}
	p.Bastion = ca.Bastion
	if ca.Separator != "" {
		p.Separator = ca.Separator
	}
	return p.save(e)
}

type logoutCmd struct{}

func (logoutCmd) Run(e *env) error {
	c, _, err := e.session()
	if errors.Is(err, errNotLoggedIn) {
		return e.printf("not logged in\n")
	}
	var remote error
	if err == nil {
		ctx, cancel := context.WithTimeout(e.ctx, 10*time.Second)
		defer cancel()
		remote = c.do(ctx, http.MethodPost, "/logout", nil, nil)
		if p, ok := errors.AsType[*problem](remote); ok && p.Status == http.StatusUnauthorized {
			remote = nil // it had ended already
		}
	}
	// Local secrets go in any case.
	for _, f := range []string{tokenFile, keyFile, certFile} {
		if rerr := os.Remove(filepath.Join(e.dir, f)); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			remote = errors.Join(remote, rerr)
		}
	}
	if remote != nil {
		return &hinted{err: fmt.Errorf("the secrets here are removed, but core was not told: %w", remote), hint: "the token ends by itself; an administrator can revoke it", code: ExitUnreachable}
	}
	return e.printf("logged out\n")
}

type whoamiCmd struct{}

func (whoamiCmd) Run(e *env) error {
	c, p, err := e.session()
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := c.do(e.ctx, http.MethodGet, "/me", nil, &raw); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(raw)
	}
	return e.printf("%s on %s, token until %s\n", p.User, p.URL, p.Expires)
}
