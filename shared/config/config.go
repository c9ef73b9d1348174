// Package config reads a binary's configuration: one TOML file, every key also
// as an environment variable, unknown keys refused, all problems reported at
// once with their key paths.
package config

import "log/slog"

// Secret is a value that never shows: fmt, slog, JSON and TOML print "***".
type Secret string

// String implements fmt.Stringer.
func (Secret) String() string { return "***" }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return "***" }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue("***") }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Reveal returns the value for use.
func (s Secret) Reveal() string { return string(s) }
