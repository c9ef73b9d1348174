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

// parseNames reads names (each with all below) and networks.
func parseNames(raw json.RawMessage) (any, error) {
	var texts []string
	if err := strict(raw, &texts); err != nil {
		return nil, errors.New(`must be a list of names and networks, such as ["example.net", "10.0.0.0/8"]`)
	}
	if len(texts) > maxPrefixes {
		return nil, fmt.Errorf("must have at most %d entries", maxPrefixes)
	}
	list := make([]string, 0, len(texts))
	for _, t := range texts {
		if p, err := netip.ParsePrefix(t); err == nil && p == p.Masked() {
			list = append(list, t)
			continue
		}
		if !isName(t) {
			return nil, fmt.Errorf("%.60q is neither a name like example.net nor a network like 10.1.0.0/16, without host bits", t)
		}
		list = append(list, t)
	}
	return list, nil
}

// isName reports whether t is a lower-case host name (RFC 1123 §2.1), which is
// no address.
func isName(t string) bool {
	if len(t) > 253 {
		return false
	}
	letter := false
	for label := range strings.SplitSeq(t, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			switch {
			case 'a' <= c && c <= 'z':
				letter = true
			case '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return letter
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
