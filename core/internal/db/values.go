package db

import (
	"crypto/rand"
	"strings"
	"time"
)

// NewID makes the ID of a row: a prefix that names its kind, like "usr_", and
// 130 random bits.
func NewID(prefix string) string { return prefix + strings.ToLower(rand.Text()) }

// Micro is how a time is stored: Unix microseconds UTC, 0 for none.
func Micro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// FromMicro reads what Micro wrote.
func FromMicro(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
