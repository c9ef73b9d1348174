// Package db opens core's database, embedded SQLite or PostgreSQL 13+, and
// gives every domain package the same three things: transactions, migrations
// and classified errors.
//
// One query text serves both engines: `$n` placeholders, no engine functions,
// times as microseconds since the Unix epoch in UTC (bigint), booleans as
// `boolean` on PostgreSQL and `integer` on SQLite, documents as JSON in text.
// Domain packages own their SQL; this package knows none of their tables.
//
// A write transaction may Notify: subscribers, on this core and on PostgreSQL
// on every core, hear of it after the commit and never without one.
package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // PostgreSQL driver "pgx"
	_ "modernc.org/sqlite"             // SQLite driver "sqlite"
)

// Engine is the kind of database behind a DB.
type Engine string

// The engines core runs on.
const (
	SQLite   Engine = "sqlite"
	Postgres Engine = "postgres"
)

// Config says which database to open.
type Config struct {
	// Engine selects the driver. No default.
	Engine Engine
	// Path is the SQLite file; its directory is created with mode 0700.
	Path string
	// URL is the PostgreSQL connection URL (postgres://…). Anything that is
	// not a unix socket or a loopback address must say sslmode=verify-full,
	// unless AllowPlaintext is set.
	URL string
	// AllowPlaintext permits a PostgreSQL connection without verified TLS.
	AllowPlaintext bool
	// MaxConns bounds open PostgreSQL connections; 0 means 20.
	MaxConns int
}

// Querier is what a store needs to run queries: a *Tx, or a *DB for single reads.
type Querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// DB is an open database. Safe for concurrent use.
type DB struct {
	engine Engine
	// write is the pool of write transactions (one connection on SQLite).
	write *sql.DB
	// read is the pool of reads; the same pool as write on PostgreSQL.
	read *sql.DB
	bus  *bus
	// cancel stops the PostgreSQL listener; done closes when it has returned.
	cancel context.CancelFunc
	done   chan struct{}
}

// Tx is a transaction. Use it only on the goroutine that was handed it.
type Tx struct {
	*sql.Tx
	engine Engine
	notes  []Note
}

// Open connects, checks that the database answers, and starts the listener
// for notifications. It does not migrate: see Migrate.
func Open(ctx context.Context, c Config) (*DB, error) {
	switch c.Engine {
	case SQLite:
		return openSQLite(ctx, c)
	case Postgres:
		return openPostgres(ctx, c)
	default:
		return nil, fmt.Errorf("open database: unknown engine %q (want sqlite or postgres)", c.Engine)
	}
}

func openSQLite(ctx context.Context, c Config) (*DB, error) {
	if c.Path == "" {
		return nil, errors.New("open database: path is empty")
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, fmt.Errorf("open database %s: %w", c.Path, err)
	}
	f, err := os.OpenFile(c.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", c.Path, err)
	}
	f.Close()
	dsn := func(extra string) string {
		return "file:" + (&url.URL{Path: c.Path}).EscapedPath() +
			"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_pragma=synchronous(full)&_pragma=foreign_keys(1)" + extra
	}
	write, err := sql.Open("sqlite", dsn("&_txlock=immediate"))
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", c.Path, err)
	}
	write.SetMaxOpenConns(1)
	read, err := sql.Open("sqlite", dsn("&_pragma=query_only(1)"))
	if err != nil {
		write.Close()
		return nil, fmt.Errorf("open database %s: %w", c.Path, err)
	}
	read.SetMaxOpenConns(8)
	read.SetMaxIdleConns(8)
	d := &DB{engine: SQLite, write: write, read: read, bus: newBus(), cancel: func() {}, done: closedChan()}
	// The first write connection switches the file to WAL before any reader opens it.
	if err := write.PingContext(ctx); err != nil {
		d.Close()
		return nil, fmt.Errorf("open database %s: %w", c.Path, err)
	}
	return d, nil
}

func openPostgres(ctx context.Context, c Config) (*DB, error) {
	if err := checkPostgresURL(c); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	pool, err := sql.Open("pgx", c.URL)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", redactURL(err, c.URL))
	}
	n := c.MaxConns
	if n == 0 {
		n = 20
	}
	pool.SetMaxOpenConns(n)
	pool.SetMaxIdleConns(n)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	if err := pool.PingContext(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("open database: %w", redactURL(err, c.URL))
	}
	lctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d := &DB{engine: Postgres, write: pool, read: pool, bus: newBus(), cancel: cancel, done: make(chan struct{})}
	heard := make(chan struct{})
	go func() {
		defer close(d.done)
		listen(lctx, c.URL, d.bus, heard)
	}()
	// Nobody may change anything before we would hear of it.
	select {
	case <-heard:
		return d, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(listenTimeout):
		err = errors.New("the listener for notifications cannot connect")
	}
	return nil, errors.Join(fmt.Errorf("open database: %w", err), d.Close())
}

// listenTimeout bounds the wait for the first connection of the listener.
const listenTimeout = 30 * time.Second

// checkPostgresURL refuses a URL that would speak to another machine without
// verified TLS.
func checkPostgresURL(c Config) error {
	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return errors.New("database url must look like postgres://user@host/database?sslmode=verify-full")
	}
	host := u.Hostname()
	if h := u.Query().Get("host"); h != "" {
		host = h
	}
	local := host == "" || strings.HasPrefix(host, "/") || host == "localhost" || host == "127.0.0.1" || host == "::1"
	if local || c.AllowPlaintext || u.Query().Get("sslmode") == "verify-full" {
		return nil
	}
	return fmt.Errorf("database host %s is not local: add sslmode=verify-full (and sslrootcert=…) to the url", host)
}

// redactURL keeps a password in the connection URL out of an error text.
func redactURL(err error, raw string) error {
	u, perr := url.Parse(raw)
	if perr != nil {
		return errors.New("invalid database url")
	}
	if pw, ok := u.User.Password(); ok && pw != "" && strings.Contains(err.Error(), pw) {
		return errors.New(strings.ReplaceAll(err.Error(), pw, "***"))
	}
	return err
}

func closedChan() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Engine tells which engine the database runs on.
func (d *DB) Engine() Engine { return d.engine }

// Ping reports whether the database answers.
func (d *DB) Ping(ctx context.Context) error { return d.read.PingContext(ctx) }

// Close stops the listener, ends all subscriptions and closes the pools.
func (d *DB) Close() error {
	d.cancel()
	<-d.done
	d.bus.close()
	err := d.write.Close()
	if d.read != d.write {
		err = errors.Join(err, d.read.Close())
	}
	return err
}

// ExecContext runs one statement outside a transaction.
func (d *DB) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return d.write.ExecContext(ctx, query, clean(args)...)
}

// QueryContext runs one read outside a transaction.
func (d *DB) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return d.read.QueryContext(ctx, query, clean(args)...)
}

// QueryRowContext runs one read of one row outside a transaction.
func (d *DB) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return d.read.QueryRowContext(ctx, query, clean(args)...)
}

// View runs f in a read-only snapshot: every query in it sees the same state.
func (d *DB) View(ctx context.Context, f func(*Tx) error) error {
	opts := &sql.TxOptions{ReadOnly: true}
	if d.engine == Postgres {
		opts.Isolation = sql.LevelRepeatableRead
	}
	tx, err := d.read.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("begin read: %w", err)
	}
	defer tx.Rollback()
	return f(&Tx{Tx: tx, engine: d.engine})
}

// txAttempts bounds how often Tx runs its function when the engine reports a
// serialisation failure or a deadlock.
const txAttempts = 8

// Tx runs f in one write transaction and commits when f returns nil. It is
// run again, up to 8 times, when the engine asks for a retry, so f must have
// no effect outside the transaction. Isolation is serializable on SQLite and
// read committed on PostgreSQL: use Lock or row locks to serialise decisions.
func (d *DB) Tx(ctx context.Context, f func(*Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := d.tryTx(ctx, f)
		if err == nil || attempt == txAttempts || !retryable(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(attempt*attempt) * 5 * time.Millisecond):
		}
	}
}

func (d *DB) tryTx(ctx context.Context, f func(*Tx) error) error {
	tx, err := d.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin write: %w", err)
	}
	defer tx.Rollback()
	t := &Tx{Tx: tx, engine: d.engine}
	if err := f(t); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if d.engine == SQLite {
		for _, n := range t.notes {
			d.bus.publish(n)
		}
	}
	return nil
}

// Engine tells which engine the transaction runs on.
func (t *Tx) Engine() Engine { return t.engine }

// Lock serialises transactions that name the same lock until they end. On
// SQLite write transactions are serial anyway.
func (t *Tx) Lock(ctx context.Context, name string) error {
	if t.engine == SQLite {
		return nil
	}
	_, err := t.ExecContext(ctx, `select pg_advisory_xact_lock(hashtextextended($1, 0))`, name)
	if err != nil {
		return fmt.Errorf("lock %s: %w", name, err)
	}
	return nil
}
