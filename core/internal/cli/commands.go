package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"caponier/core/internal/server"
	"caponier/core/internal/vault"
	"caponier/shared/daemon"
	"caponier/shared/telemetry"
)

type serveCmd struct {
	ReadyFile string `help:"Write the addresses really listened on to FILE as JSON once everything is up." placeholder:"FILE"`
}

func (c serveCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	log, err := telemetry.NewLogger(e.stderr, cfg.Log)
	if err != nil {
		return err
	}
	s, err := server.New(e.ctx, cfg, server.Deps{Log: log, Environ: e.environ})
	if err != nil {
		return err
	}
	return s.Run(e.ctx, server.RunOptions{Stdout: e.stdout, ReadyFile: c.ReadyFile})
}

type migrateCmd struct{}

func (migrateCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	version, err := server.Migrate(e.ctx, cfg)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "the schema is at version %d\n", version)
	return err
}

type adminCmds struct {
	Bootstrap bootstrapCmd `cmd:"" help:"Create the first administrator, or give one a new password."`
	Code      codeCmd      `cmd:"" help:"Make a new set-up code for the first administrator, to enter in the console."`
}

type codeCmd struct{}

func (codeCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	code, until, err := server.SetupCode(e.ctx, cfg, e.environ)
	if errors.Is(err, server.ErrSetUp) {
		return &daemon.Hinted{Err: errors.New("there is an administrator already"), Hint: "if nobody can get in: caponier-core admin bootstrap --name NAME gives an administrator a new password"}
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, code)
	fmt.Fprintf(e.stderr, "enter it in the console before %s; codes made before are void\n", until.Local().Format("15:04"))
	return nil
}

type bootstrapCmd struct {
	Name          string `help:"Login name." default:"admin"`
	PasswordStdin bool   `help:"Read the password from the first line of standard input; otherwise one is made and printed once."`
}

func (c bootstrapCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	var password string
	if c.PasswordStdin {
		line, err := bufio.NewReader(e.stdin).ReadString('\n')
		if password = strings.TrimRight(line, "\r\n"); password == "" {
			return &daemon.UsageError{Text: "no password on standard input", Hint: fmt.Sprintf("echo it into the command (%v)", err)}
		}
	}
	made, err := server.BootstrapAdmin(e.ctx, cfg, e.environ, c.Name, password)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "administrator %s is ready\n", c.Name)
	if password == "" {
		fmt.Fprintf(e.stdout, "password (shown once): %s\n", made)
	}
	return nil
}

type caCmds struct {
	Show caShowCmd `cmd:"" help:"Print the SSH CA key (for TrustedUserCAKeys) and where the TLS CA certificate is."`
}

type caShowCmd struct {
	Group string `help:"Access group, by ID: its SSH CA key; the default group when left out." placeholder:"ID"`
}

func (c caShowCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	key, err := server.SSHCAKey(e.ctx, cfg, e.environ, c.Group)
	if err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, strings.TrimSpace(key))
	if cfg.TLS.CertFile == "" {
		fmt.Fprintf(e.stderr, "TLS CA certificate: %s\n", server.CAFile(cfg))
	}
	return nil
}

type vaultCmds struct {
	Keygen keygenCmd `cmd:"" help:"Make a new key-encryption key file."`
	Rotate rotateCmd `cmd:"" help:"Re-wrap every data key with a new key-encryption key; no stored value is rewritten."`
}

type keygenCmd struct {
	Out string `help:"File to write (mode 0600); it must not exist." required:"" placeholder:"FILE"`
}

func (c keygenCmd) Run(e *env) error {
	if err := os.MkdirAll(filepath.Dir(c.Out), 0o700); err != nil {
		return fmt.Errorf("make key file: %w", err)
	}
	err := vault.WriteKEK(c.Out, vault.GenerateKEK())
	if errors.Is(err, fs.ErrExist) {
		return &daemon.Hinted{Err: fmt.Errorf("%s exists", c.Out), Hint: "a key-encryption key is never overwritten: without it nothing in the vault can be opened; choose another file"}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "wrote %s: keep a copy in a safe place, nothing can be opened without it\n", c.Out)
	return err
}

type rotateCmd struct {
	NewKEKFile string `help:"File with the new key (see keygen). Afterwards name it in vault.kek_file and restart." required:"" name:"new-kek-file" placeholder:"FILE"`
}

func (c rotateCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	n, err := server.RotateKEK(e.ctx, cfg, e.environ, c.NewKEKFile)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%d data keys re-wrapped; set vault.kek_file to %s and restart core\n", n, c.NewKEKFile)
	return err
}

type auditCmds struct {
	Verify auditVerifyCmd `cmd:"" help:"Check the hash chain and the signed heads of the audit log."`
}

type auditVerifyCmd struct{}

func (auditVerifyCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	text, err := server.VerifyAudit(e.ctx, cfg, e.environ)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.stdout, text)
	return err
}
