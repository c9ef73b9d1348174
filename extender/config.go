package main

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"time"

	"caponier/shared/config"
	"caponier/shared/dial"
	"caponier/shared/node"
	"caponier/shared/wire"
)

// Config is extender.toml. Every key can be set in the environment too.
type Config struct {
	node.Config

	// Resolver is host:port of the DNS server to ask. Default: the system's.
	Resolver string `toml:"resolver"`
	// UDPIdle is how long a flow of datagrams may be silent, 1s to 1h. Default
	// 2m; a question and an answer are given 30s.
	UDPIdle config.Duration `toml:"udp_idle"`

	Rules  RulesConfig  `toml:"rules"`
	Deploy DeployConfig `toml:"deploy"`
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

func defaults(c *Config) { c.UDPIdle = config.Duration(2 * time.Minute) }

// Validate implements config.Validator.
func (c *Config) Validate() []config.Problem {
	ps := c.Config.Validate()
	add := func(key, text, hint string) { ps = append(ps, config.Problem{Key: key, Text: text, Hint: hint}) }
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
