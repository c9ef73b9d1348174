package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"caponier/shared/config"
	"caponier/shared/icap"
)

// parser turns a JSON value into the setting's Go value. Its errors are read
// by people and say what is wanted.
type parser func(raw json.RawMessage) (any, error)

// maxPrefixes bounds a list of networks.
const maxPrefixes = 256

func parseInt(lowest, highest int) parser {
	return func(raw json.RawMessage) (any, error) {
		var n int
		if err := strict(raw, &n); err != nil || n < lowest || n > highest {
			return nil, fmt.Errorf("must be a whole number from %d to %d", lowest, highest)
		}
		return n, nil
	}
}

func parseDuration(lowest, highest time.Duration) parser {
	return func(raw json.RawMessage) (any, error) {
		want := fmt.Errorf("must be a duration from %s to %s, such as \"90s\" or \"15m\"",
			formatDuration(lowest), formatDuration(highest))
		var text string
		if err := strict(raw, &text); err != nil {
			return nil, want
		}
		var d config.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d.Std() < lowest || d.Std() > highest {
			return nil, want
		}
		return d.Std(), nil
	}
}

func parseBool(raw json.RawMessage) (any, error) {
	var b bool
	if err := strict(raw, &b); err != nil {
		return nil, errors.New("must be true or false")
	}
	return b, nil
}

func parseEnum(values []string) parser {
	return func(raw json.RawMessage) (any, error) {
		var s string
		if err := strict(raw, &s); err != nil || !slices.Contains(values, s) {
			return nil, fmt.Errorf("must be one of %q", values)
		}
		return s, nil
	}
}

// parseURL takes an address of one of the schemes, or nothing.
// parseScanner takes the address of an ICAP service, or nothing.
func parseScanner(raw json.RawMessage) (any, error) {
	var s string
	if err := strict(raw, &s); err != nil || len(s) > 500 {
		return nil, errors.New("must be an address that begins with icap://, or empty")
	}
	if s == "" {
		return s, nil
	}
	if err := icap.CheckURL(s); err != nil {
		return nil, err
	}
	return s, nil
}

func parsePrefixes(raw json.RawMessage) (any, error) {
	var texts []string
	if err := strict(raw, &texts); err != nil {
		return nil, errors.New(`must be a list of networks, such as ["10.1.0.0/16"]`)
	}
	if len(texts) > maxPrefixes {
		return nil, fmt.Errorf("must have at most %d networks", maxPrefixes)
	}
	list := make([]netip.Prefix, 0, len(texts))
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil || p != p.Masked() {
			return nil, fmt.Errorf("%.60q is not a network: write it like 10.1.0.0/16, without host bits", t)
		}
		list = append(list, p)
	}
	return list, nil
}

// strict decodes one JSON value; null is an error (it would leave dst alone).
func strict(raw json.RawMessage, dst any) error {
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return errors.New("null")
	}
	return json.Unmarshal(raw, dst)
}

func formatDuration(d time.Duration) string { return config.Duration(d).String() }

// section is the part of a setting's name before its first dot.
func section(name string) string {
	s, _, _ := strings.Cut(name, ".")
	return s
}
