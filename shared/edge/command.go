package edge

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"caponier/shared/config"
	"caponier/shared/daemon"
	"caponier/shared/wire"
)

// Env finds the last value of a variable in environ, as os/exec would.
func Env(environ []string, key string) (value string) {
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			value = v
		}
	}
	return value
}

// FindToken finds the enrolment token: in the flag, in the file named by a
// flag ("-" is standard input), in CAPONIER_TOKEN, in the file named by the
// configuration. None is fine for an enrolled node.
func FindToken(flag, file, cfgFile string, environ []string) (config.Secret, error) {
	env := Env(environ, config.EnvPrefix+"TOKEN")
	switch {
	case flag != "":
		return config.Secret(flag), nil
	case file == "-":
		b, err := io.ReadAll(io.LimitReader(os.Stdin, wire.MaxToken+1))
		if err != nil {
			return "", fmt.Errorf("read token from standard input: %w", err)
		}
		return config.Secret(strings.TrimSpace(string(b))), nil
	case file != "":
		return readToken(file, false)
	case env != "":
		return config.Secret(env), nil
	case cfgFile != "":
		// It may be gone once the node is enrolled.
		return readToken(cfgFile, true)
	}
	return "", nil
}

func readToken(file string, mayMiss bool) (config.Secret, error) {
	f, err := os.Open(file)
	if mayMiss && errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, wire.MaxToken+1))
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	return config.Secret(strings.TrimSpace(string(b))), nil
}

// Hint adds what to do about errors that end a node of the given kind.
func Hint(err error, kind wire.NodeKind) error {
	text := ""
	we, _ := errors.AsType[*wire.Error](err)
	switch {
	case errors.Is(err, ErrNoToken) && kind == wire.Extender:
		text = "make one with `caponier tokens create --kind extender --site SITE` and start with --token-file FILE"
	case errors.Is(err, ErrNoToken):
		text = fmt.Sprintf("make one with `caponier tokens create --kind %s` and start with --token-file FILE", kind)
	case errors.Is(err, wire.ErrToken):
		text = "copy the whole token, from cap1. to the end"
	case errors.Is(err, ErrWrongCore):
		text = "check --core; if it is right, somebody answers in core's place, or core's database was replaced: do not go on before you know"
	case errors.Is(err, ErrLocked):
		text = fmt.Sprintf("another %s runs with this state directory; give each its own", kind)
	case we != nil && we.Code == wire.CodeIdentityInUse:
		text = "remove this copy's state directory and enrol it with a token of its own"
	case we != nil && we.Code == wire.CodeUnauthorized:
		text = "ask for an enrolment token, remove the state directory and start again with the token"
	}
	if text == "" {
		return err
	}
	return &daemon.Hinted{Err: err, Hint: text}
}
