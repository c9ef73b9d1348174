package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"caponier/shared/config"
	"caponier/shared/dial"
	"caponier/shared/node"
)

// Config is webproxy.toml. Every key can be set in the environment too.
type Config struct {
	node.Config

	// Address is host:port where carriers reach listen.carriers. Default: the
	// host name and the port of listen.carriers.
	Address string `toml:"address"`
	// MaxSessions bounds the sessions, 1 to 100000. Default 500.
	MaxSessions int `toml:"max_sessions"`
	// MaxConnections bounds the connections of all sessions. Default 20000.
	MaxConnections int `toml:"max_connections"`
	// Resolver is host:port of the DNS server to ask. Default: the system's.
	Resolver string `toml:"resolver"`
	// Deny lists subnets that are never dialled from here, whatever a target
	// says. Loopback, link-local, metadata services, core and the machine's own
	// addresses are refused unless a target names them as private.
	Deny []string `toml:"deny"`
	// Scanners lists addresses and subnets of scanners (ICAP) that may be asked
	// although they are near: this machine's own, loopback, link-local. Others
	// need no entry. Default none.
	Scanners []string `toml:"scanners"`
	// Roots is a file of certificates (PEM) believed for servers instead of
	// the operating system's.
	Roots string `toml:"roots"`

	Listen ListenConfig `toml:"listen"`
}

// ListenConfig are the listeners.
type ListenConfig struct {
	// Carriers is for carriers, TLS 1.3 with node certificates. Default ":18443".
	Carriers config.Addr `toml:"carriers"`
	// Control is for core nodes and operators, TLS 1.3 with certificates:
	// health, sessions, metrics. Default off; usual ":18444".
	Control config.Addr `toml:"control"`
	// ControlClients is a file of authorities (PEM) whose client certificates
	// may use the control port, besides cores.
	ControlClients string `toml:"control_clients"`
	// Clear is the cleartext proxy for API clients, on a loopback address or
	// the address of a bridge. Default off; usual "127.0.0.1:18080".
	Clear config.Addr `toml:"clear"`
}

func defaults(c *Config) {
	c.MaxSessions, c.MaxConnections = 500, 20_000
	c.Listen = ListenConfig{Carriers: ":18443", Control: "off", Clear: "off"}
}

// Validate implements config.Validator.
func (c *Config) Validate() []config.Problem {
	ps := c.Config.Validate()
	add := func(key, text, hint string) { ps = append(ps, config.Problem{Key: key, Text: text, Hint: hint}) }
	if _, _, err := net.SplitHostPort(c.Address); c.Address != "" && err != nil {
		add("address", "must be host:port", "")
	}
	if c.MaxSessions < 1 || c.MaxSessions > 100_000 {
		add("max_sessions", "must be 1 to 100000", "")
	}
	if c.MaxConnections < 1 || c.MaxConnections > 1_000_000 {
		add("max_connections", "must be 1 to 1000000", "")
	}
	if c.Resolver != "" {
		if _, err := netip.ParseAddrPort(c.Resolver); err != nil {
			add("resolver", "must be an IP address and a port", "a resolver's own name could not be resolved")
		}
	}
	for key, list := range map[string][]string{"deny": c.Deny, "scanners": c.Scanners} {
		if _, err := dial.ParsePrefixes(key, list); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				key, text, _ := strings.Cut(line, ": ")
				add(key, text, "")
			}
		}
	}
	if c.Listen.Carriers.Off() && c.Listen.Clear.Off() {
		add("listen.carriers", "is off, and so is listen.clear", "nobody could use this webproxy")
	}
	if !c.Listen.Clear.Off() {
		if err := checkClear(string(c.Listen.Clear)); err != nil {
			add("listen.clear", err.Error(), "it carries keys of sessions in clear: use 127.0.0.1:18080, or a bridge of this machine's containers")
		}
	}
	return ps
}

// checkClear accepts loopback addresses and addresses of bridges.
func checkClear(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("must be address:port")
	}
	if host == "localhost" {
		return nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("must be an IP address, not %q", host)
	}
	if a.IsLoopback() {
		return nil
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("this machine's interfaces cannot be listed: %w", err)
	}
	for _, i := range interfaces {
		if _, err := os.Stat(filepath.Join("/sys/class/net", i.Name, "bridge")); err != nil {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return fmt.Errorf("the addresses of %s cannot be listed: %w", i.Name, err)
		}
		for _, x := range addrs {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Unmap() == a.Unmap() {
				return nil
			}
		}
	}
	return fmt.Errorf("%s is neither a loopback address nor that of a bridge", host)
}

// address is what carriers are told.
func (c *Config) address() (string, error) {
	if c.Address != "" || c.Listen.Carriers.Off() {
		return c.Address, nil
	}
	host, port, err := net.SplitHostPort(string(c.Listen.Carriers))
	if err != nil {
		return "", fmt.Errorf("listen.carriers: %w", err)
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("host name: %w", err)
		}
	}
	return net.JoinHostPort(host, port), nil
}
