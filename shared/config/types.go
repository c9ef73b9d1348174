package config

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(b []byte) error { *s = Secret(b); return nil }

// Duration is a time span written like "30s", "5m", "12h" or "90d".
type Duration time.Duration

// Std returns it as the standard type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes it so that UnmarshalText reads it back.
func (d Duration) String() string {
	if day := 24 * time.Hour; d != 0 && d.Std()%day == 0 {
		return strconv.Itoa(int(d.Std()/day)) + "d"
	}
	return d.Std().String()
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Negative spans are refused.
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			*d = Duration(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration; write it like 30s, 5m, 12h or 90d", s)
	}
	*d = Duration(v)
	return nil
}

// Addr is a listening address "host:port" or ":port"; "off" and the empty
// string switch the listener off.
type Addr string

// Off reports whether the listener is switched off.
func (a Addr) Off() bool { return a == "" || a == "off" }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Addr) UnmarshalText(b []byte) error {
	s := string(b)
	if s != "" && s != "off" {
		_, port, err := net.SplitHostPort(s)
		if err != nil {
			return fmt.Errorf("%q is not an address; write it like 0.0.0.0:443, :443, [::1]:443 or off", s)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("%q has no valid port (0 to 65535)", s)
		}
	}
	*a = Addr(s)
	return nil
}

// PortRange is "low-high", both included; "off" is the zero value.
type PortRange struct{ Low, High int }

// Off reports whether the range is empty.
func (r PortRange) Off() bool { return r.Low == 0 }

// String writes it as UnmarshalText reads it.
func (r PortRange) String() string {
	if r.Off() {
		return "off"
	}
	return fmt.Sprintf("%d-%d", r.Low, r.High)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *PortRange) UnmarshalText(b []byte) error {
	s := string(b)
	if s == "" || s == "off" {
		*r = PortRange{}
		return nil
	}
	lo, hi, ok := strings.Cut(s, "-")
	low, err1 := strconv.Atoi(strings.TrimSpace(lo))
	high, err2 := strconv.Atoi(strings.TrimSpace(hi))
	if !ok || errors.Join(err1, err2) != nil || low < 1 || high > 65535 || low > high {
		return fmt.Errorf("%q is not a port range; write it like 4000-6000, or off", s)
	}
	*r = PortRange{Low: low, High: high}
	return nil
}
