package db

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations
var migrations embed.FS

// SchemaID names the schema this build migrates to: two builds with the same
// migrations have the same one.
func SchemaID() string {
	sum := sha256.New()
	err := fs.WalkDir(migrations, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := migrations.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(b), b)
		return err
	})
	if err != nil {
		panic("db: read embedded migrations: " + err.Error())
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// Migrate brings the schema to the newest version and returns it. On
// PostgreSQL concurrent callers wait for each other under an advisory lock.
func (d *DB) Migrate(ctx context.Context) (version int64, err error) {
	p, err := d.provider()
	if err != nil {
		return 0, err
	}
	if _, err := p.Up(ctx); err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	return p.GetDBVersion(ctx)
}

// Migrated reports up to which version the schema has every migration and the
// newest version this build knows. A release may bring a migration with a
// number between older ones: have is then below it.
func (d *DB) Migrated(ctx context.Context) (have, want int64, err error) {
	p, err := d.provider()
	if err != nil {
		return 0, 0, err
	}
	status, err := p.Status(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("read schema version: %w", err)
	}
	want = status[len(status)-1].Source.Version
	for _, m := range status {
		if m.State == goose.StatePending {
			return have, want, nil
		}
		have = m.Source.Version
	}
	// A newer release may have gone further.
	if have, err = p.GetDBVersion(ctx); err != nil {
		return 0, 0, fmt.Errorf("read schema version: %w", err)
	}
	return have, want, nil
}

func (d *DB) provider() (*goose.Provider, error) {
	dialect, dir := goose.DialectSQLite3, "migrations/sqlite"
	// Rooms number their migrations in ranges of their own, so a later one may
	// have a lower number than what is applied already.
	opts := []goose.ProviderOption{goose.WithVerbose(false), goose.WithAllowOutofOrder(true)}
	if d.engine == Postgres {
		dialect, dir = goose.DialectPostgres, "migrations/postgres"
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
		if err != nil {
			return nil, fmt.Errorf("migrate: %w", err)
		}
		opts = append(opts, goose.WithSessionLocker(locker))
	}
	sub, err := fs.Sub(migrations, dir)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	p, err := goose.NewProvider(dialect, d.write, sub, opts...)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	return p, nil
}
