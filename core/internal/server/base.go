package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
	"caponier/core/internal/settings"
	"caponier/core/internal/signin"
	"caponier/core/internal/sshca"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
	"caponier/shared/config"
	"caponier/shared/daemon"
)

// auditSigner names the vault's key that signs heads of the audit chain.
const auditSigner = "audit-heads"

// base is what both the running core and the one-shot commands stand on.
type base struct {
	db        *db.DB
	audit     *audit.Log
	vault     *vault.Vault
	auditKeys *vault.Signer
	settings  *settings.Service
	ca        *sshca.CA
	groups    *group.Service
	users     *user.Service
}

// openBase opens database, vault and users. On SQLite it migrates; on
// PostgreSQL an old schema is an error, because other cores may run on it.
func openBase(ctx context.Context, cfg Config, environ []string, log *slog.Logger) (b *base, err error) {
	kek, err := loadKEK(cfg, environ)
	if err != nil {
		return nil, err
	}
	dbc, err := cfg.database()
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, dbc)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := ensureSchema(ctx, d); err != nil {
		return nil, err
	}
	b = &base{db: d, audit: audit.New(d, time.Now)}
	if b.vault, err = vault.New(ctx, vault.Config{DB: d, Audit: b.audit, Log: log, KEK: kek}); err != nil {
		return nil, fmt.Errorf("open vault: %w", err)
	}
	if b.auditKeys, err = b.vault.Signer(ctx, auditSigner); err != nil {
		return nil, fmt.Errorf("open audit signing key: %w", err)
	}
	if b.settings, err = settings.New(ctx, settings.Config{DB: d, Audit: b.audit, Now: time.Now, Log: log}); err != nil {
		return nil, err
	}
	if b.ca, err = sshca.New(ctx, sshca.Config{DB: d, Vault: b.vault, Audit: b.audit, Log: log,
		Bastion: cfg.Public.Bastion, Separator: func() string { return settings.BastionSeparator.Get(b.settings) }}); err != nil {
		return nil, fmt.Errorf("open SSH authorities: %w", err)
	}
	b.groups, err = group.New(group.Config{DB: d, Audit: b.audit, Now: time.Now, Made: b.ca.Found, Removed: b.ca.Abolish})
	if err != nil {
		return nil, err
	}
	b.users, err = user.New(user.Config{DB: d, Audit: b.audit, Sealer: b.vault, Now: time.Now, Log: log, Settings: b.settings, Authority: b.ca})
	return b, err
}

func ensureSchema(ctx context.Context, d *db.DB) error {
	if d.Engine() == db.SQLite {
		_, err := d.Migrate(ctx)
		return err
	}
	have, want, err := d.Migrated(ctx)
	if err != nil {
		return err
	}
	if have < want {
		return &daemon.Hinted{
			Err:  fmt.Errorf("the database schema is at version %d, this build needs %d", have, want),
			Hint: "run: caponier-core migrate --config FILE",
		}
	}
	return nil
}

// loadKEK reads the key-encryption key from CAPONIER_KEK, the configured file,
// or <state_dir>/kek.
func loadKEK(cfg Config, environ []string) (vault.KEK, error) {
	const name = config.EnvPrefix + "KEK"
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok && v != "" {
			kek, err := vault.ParseKEK(v)
			os.Unsetenv(name) // no child inherits it
			if err != nil {
				return vault.KEK{}, fmt.Errorf("read %s: %w", name, err)
			}
			return kek, nil
		}
	}
	file := cfg.Vault.KEKFile
	if file == "" {
		file = filepath.Join(cfg.StateDir, "kek")
	}
	kek, err := vault.LoadKEK(file)
	if errors.Is(err, fs.ErrNotExist) {
		return vault.KEK{}, &daemon.Hinted{
			Err:  fmt.Errorf("there is no key-encryption key at %s", file),
			Hint: "make one with: caponier-core vault keygen --out " + file + "  (or set vault.kek_file, or " + name + ")",
		}
	}
	return kek, err
}

// Migrate brings the schema to this build's version.
func Migrate(ctx context.Context, cfg Config) (int64, error) {
	dbc, err := cfg.database()
	if err != nil {
		return 0, err
	}
	d, err := db.Open(ctx, dbc)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return d.Migrate(ctx)
}

// BootstrapAdmin creates an administrator (or gives him a new password) and
// returns the password, made when none is given.
func BootstrapAdmin(ctx context.Context, cfg Config, environ []string, name, password string) (string, error) {
	b, err := openBase(ctx, cfg, environ, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer b.db.Close()
	_, password, err = b.users.BootstrapAdmin(ctx, name, password)
	return password, err
}

// ErrSetUp says that there is, or was, an administrator.
var ErrSetUp error = signin.ErrSetUp

// SetupCode makes a code by which the first administrator is made in the
// console. ErrSetUp when there is one.
func SetupCode(ctx context.Context, cfg Config, environ []string) (code string, expires time.Time, err error) {
	b, err := openBase(ctx, cfg, environ, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", time.Time{}, err
	}
	defer b.db.Close()
	s, err := signin.New(signin.Config{DB: b.db, Audit: b.audit, Users: b.users, Sealer: b.vault, URL: &url.URL{Scheme: "https", Host: cfg.Name}})
	if err != nil {
		return "", time.Time{}, err
	}
	return s.SetupCode(ctx)
}

// SSHCAKey returns the lines for TrustedUserCAKeys of an access group's
// targets; without a group, of the default one.
func SSHCAKey(ctx context.Context, cfg Config, environ []string, groupID string) (string, error) {
	if groupID == "" {
		groupID = access.DefaultGroup
	}
	b, err := openBase(ctx, cfg, environ, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer b.db.Close()
	keys, err := b.ca.PublicKey(ctx, groupID)
	if err == nil && keys == "" {
		err = &daemon.Hinted{Err: fmt.Errorf("there is no access group %q", groupID), Hint: "its ID is on its page in the console, under Administration, Access groups"}
	}
	return keys, err
}

// RotateKEK re-wraps every data key under the key in newFile.
func RotateKEK(ctx context.Context, cfg Config, environ []string, newFile string) (int, error) {
	next, err := vault.LoadKEK(newFile)
	if err != nil {
		return 0, err
	}
	b, err := openBase(ctx, cfg, environ, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	defer b.db.Close()
	return b.vault.Rotate(ctx, next)
}

// VerifyAudit checks the audit chain and returns a text for people; a broken
// chain is an error naming what is wrong.
func VerifyAudit(ctx context.Context, cfg Config, environ []string) (string, error) {
	b, err := openBase(ctx, cfg, environ, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer b.db.Close()
	r, err := b.audit.Verify(ctx, b.auditKeys, headFile(cfg))
	if err != nil {
		return "", err
	}
	if !r.OK {
		var lines []string
		for _, f := range r.Findings {
			lines = append(lines, fmt.Sprintf("event %d: %s", f.Seq, f.Text))
		}
		return "", fmt.Errorf("the audit log does not verify:\n  %s", strings.Join(lines, "\n  "))
	}
	return fmt.Sprintf("the audit log verifies: %d events, %d signed heads, signed up to event %d", r.Events, r.Heads, r.Signed), nil
}

// headFile is where signed heads of the audit chain are kept outside the database.
func headFile(cfg Config) string { return filepath.Join(cfg.StateDir, "audit-heads.jsonl") }

// coreID is this core's lasting id, made on first use.
func coreID(stateDir string) (string, error) {
	file := filepath.Join(stateDir, "core-id")
	b, err := os.ReadFile(file)
	if err == nil && strings.HasPrefix(string(b), "core_") {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read core id: %w", err)
	}
	id := newCoreID()
	if err := writeFile(file, []byte(id+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("write core id: %w", err)
	}
	return id, nil
}
