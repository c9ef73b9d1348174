package db

import (
	"context"
	"database/sql"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// PostgreSQL takes no text with NUL or with what is not UTF-8, and peers say
// what they like: a command, a path, a file's name. One such row would hold up
// all that is written with it. In both engines those bytes become U+FFFD, in
// what is stored and in what is looked for.

// ExecContext runs one write.
func (t *Tx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return t.Tx.ExecContext(ctx, query, clean(args)...)
}

// QueryContext runs one read.
func (t *Tx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.Tx.QueryContext(ctx, query, clean(args)...)
}

// QueryRowContext runs one read of one row.
func (t *Tx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return t.Tx.QueryRowContext(ctx, query, clean(args)...)
}

// PrepareContext prepares a statement for use in t.
func (t *Tx) PrepareContext(ctx context.Context, query string) (*Stmt, error) {
	st, err := t.Tx.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &Stmt{st}, nil
}

// Stmt is a prepared statement of a transaction.
type Stmt struct{ st *sql.Stmt }

// ExecContext runs it as a write.
func (s *Stmt) ExecContext(ctx context.Context, args ...any) (sql.Result, error) {
	return s.st.ExecContext(ctx, clean(args)...)
}

// Close gives it back.
func (s *Stmt) Close() error { return s.st.Close() }

// clean returns args with texts that both engines take. The caller's slice is
// not changed.
func clean(args []any) []any {
	out := args
	for i, a := range args {
		s, ok := a.(string)
		if !ok {
			v := reflect.ValueOf(a)
			if v.Kind() != reflect.String {
				continue
			}
			s = v.String() // a named type
		}
		if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
			continue
		}
		if &out[0] == &args[0] {
			out = slices.Clone(args)
		}
		out[i] = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	}
	return out
}
