package main

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"caponier/shared/config"
	"caponier/shared/dial"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Config is extender.toml. Every key can be set in the environment too.
type Config struct {
	// Core is the address of core or of its load balancer, https://host[:port]. Required.
	Core string `toml:"core"`
	// State is the directory of the node's identity. Default
	// /var/lib/caponier-extender, or what systemd gives in STATE_DIRECTORY.
	State string `toml:"state"`
	// TokenFile holds the enrolment token; needed only until the node is
	// enrolled. CAPONIER_TOKEN does the same.
	TokenFile string `toml:"token_file"`
	// Name is proposed at enrolment. Default: the host name.
	Name string `toml:"name"`
	// Transport is "wss", "quic" or "auto": both raced, QUIC first, the winner
	// remembered. Default wss, which costs less per byte.
	Transport string `toml:"transport"`
	// QUIC is host:port for QUIC when it differs from Core.
	QUIC string `toml:"quic"`
	// Resolver is host:port of the DNS server to ask. Default: the system's.
	Resolver string `toml:"resolver"`
	// UDPIdle is how long a flow of datagrams may be silent, 1s to 1h. Default
	// 2m; a question and an answer are given 30s.
	UDPIdle config.Duration `toml:"udp_idle"`
	// Debug is where metrics, health and pprof are served. Default off.
	Debug config.Addr `toml:"debug"`
	// Grace is how long live connections may go on after SIGTERM. Default 20s.
	Grace config.Duration `toml:"grace"`

	Rules  RulesConfig         `toml:"rules"`
	Deploy DeployConfig        `toml:"deploy"`
	Log    telemetry.LogConfig `toml:"log"`

	token config.Secret // from --token, --token-file or the environment
}

// RulesConfig says what may be dialled. Core can narrow it, never widen it.
type RulesConfig struct {
	// Allow lists subnets; empty: every ordinary address.
	Allow []string `toml:"allow"`
	// Deny lists subnets; it wins over everything.
	Deny []string `toml:"deny"`
	// Ports lists ports and ranges ("22", "8000-8999"); empty: all.
	Ports []string `toml:"ports"`
	// Exempt lists addresses that are refused by default (loopback, own,
	// link-local) and permitted here all the same. A metadata address must be
	// named alone.
	Exempt []string `toml:"exempt"`
}

// DeployConfig is the listener for hosts of the site.
type DeployConfig struct {
	// Listen is its address. Default off; usual ":8443".
	Listen config.Addr `toml:"listen"`
}

func defaults(getenv func(string) string) Config {
	c := Config{State: "/var/lib/caponier-extender", Transport: string(tunnel.WSS), UDPIdle: config.Duration(2 * time.Minute)}
	if dir, _, _ := strings.Cut(getenv("STATE_DIRECTORY"), ":"); dir != "" {
		c.State = dir
	}
	return c
}

// Validate implements config.Validator.
func (c *Config) Validate() []config.Problem {
	var ps []config.Problem
	add := func(key, text, hint string) { ps = append(ps, config.Problem{Key: key, Text: text, Hint: hint}) }
	u, err := url.Parse(c.Core)
	switch {
	case c.Core == "":
		add("core", "is missing", "give core's address, like core = \"https://pam.example.org\" or --core")
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		add("core", "must look like https://pam.example.org", "")
	}
	if c.State == "" {
		add("state", "is missing", "name a directory that only the extender's user may read")
	}
	if c.Transport != transportAuto && c.Transport != string(tunnel.WSS) && c.Transport != string(tunnel.QUIC) {
		add("transport", "must be wss, quic or auto", "")
	}
	if _, _, err := net.SplitHostPort(c.QUIC); c.QUIC != "" && err != nil {
		add("quic", "must be host:port", "")
	}
	if d := c.UDPIdle.Std(); d < time.Second || d > time.Hour {
		add("udp_idle", "must be 1s to 1h", "")
	}
	if c.Resolver != "" {
		if _, err := netip.ParseAddrPort(c.Resolver); err != nil {
			add("resolver", "must be an IP address and a port", "a resolver's own name could not be resolved")
		}
	}
	return ps
}

// Validate implements config.Validator.
func (r *RulesConfig) Validate() []config.Problem {
	var ps []config.Problem
	if _, err := r.parse(); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			key, text, ok := strings.Cut(line, ": ")
			if !ok {
				key, text = "", line
			}
			ps = append(ps, config.Problem{Key: key, Text: text})
		}
	}
	return ps
}

func (r *RulesConfig) parse() (dial.Rules, error) {
	rules, err := dial.ParseRules(wire.DialRules{Allow: r.Allow, Deny: r.Deny, Ports: r.Ports})
	if err != nil {
		return rules, err
	}
	exempt, err := dial.ParsePrefixes("exempt", r.Exempt)
	rules.Exempt = exempt
	return rules, err
}

// transportAuto races the transports.
const transportAuto = "auto"

func (c *Config) transport() tunnel.Transport {
	if c.Transport == transportAuto {
		return ""
	}
	return tunnel.Transport(c.Transport)
}

// resolver asks one server, or is nil for the system's.
func (c *Config) resolver() dial.Resolver {
	if c.Resolver == "" {
		return nil
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, c.Resolver)
	}}
}
