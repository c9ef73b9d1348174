package usercli

import (
	"errors"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"caponier/shared/daemon"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"caponier": func() {
			os.Exit(Main(os.Args[1:], IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Environ: os.Environ()}))
		},
	})
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("CAPONIER_CONFIG_DIR", env.WorkDir+"/config")
			return nil
		},
	})
}

func TestListLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{0, -1} {
		_, err := (&client{}).all(t.Context(), "/recordings", nil, limit)
		if _, ok := errors.AsType[*daemon.UsageError](err); !ok {
			t.Errorf("limit %d: got %v, want a usage error", limit, err)
		}
	}
}
