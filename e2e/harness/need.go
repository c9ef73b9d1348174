package harness

import (
	"os"
	"testing"
)

// EnvAll is set by `make test`, which has installed whatever tests need: what
// is missing then has failed.
const EnvAll = "CAPONIER_TEST_ALL"

// Lacks ends a test that cannot run here: as a failure under `make test`, as
// skipped elsewhere. Say what is missing and how to get it.
func Lacks(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(EnvAll) != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
