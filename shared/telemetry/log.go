// Package telemetry sets up logs, metrics, health and the debug listener the
// same way in every binary, and keeps secrets out of the log.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
)

// Keys of log attributes, the same in every binary.
const (
	KeyNode       = "node"
	KeySession    = "session"
	KeyConnection = "connection"
	KeyTarget     = "target"
	KeyUser       = "user"
	KeyRemote     = "remote"
	KeyErr        = "err"
)

// maxValue cuts peer-supplied text in a log line, in bytes.
const maxValue = 1024

// secretKeys never appear with their values, whoever logs them.
var secretKeys = []string{"password", "passwd", "secret", "token", "cookie", "authorization", "private_key", "kek", "code"}

// LogConfig chooses format and level of the log.
type LogConfig struct {
	// Format is "text" or "json". Default text.
	Format string `toml:"format"`
	// Level is debug, info, warn or error. Default info.
	Level string `toml:"level"`
}

// NewLogger makes the process's logger on w.
func NewLogger(w io.Writer, c LogConfig) (*slog.Logger, error) {
	var level slog.Level
	if c.Level != "" {
		if err := level.UnmarshalText([]byte(c.Level)); err != nil {
			return nil, fmt.Errorf("log level %q is not one of debug, info, warn, error", c.Level)
		}
	}
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: redact}
	switch c.Format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	default:
		return nil, fmt.Errorf("log format %q is not one of text, json", c.Format)
	}
}

func redact(_ []string, a slog.Attr) slog.Attr {
	if slices.Contains(secretKeys, strings.ToLower(a.Key)) {
		return slog.String(a.Key, "***")
	}
	switch a.Value.Kind() {
	case slog.KindString:
		if s := a.Value.String(); len(s) > maxValue {
			return slog.String(a.Key, s[:maxValue]+"…")
		}
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			if s := err.Error(); len(s) > maxValue {
				return slog.String(a.Key, s[:maxValue]+"…")
			}
		}
	}
	return a
}
