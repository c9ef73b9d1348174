package main

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"caponier/router/internal/program"
	"caponier/router/internal/sshprogram"
	"caponier/shared/config"
	"caponier/shared/node"
)

// The types of routers.
const (
	typeNFTables = "nftables"
	typeExec     = "exec"
	typeSSHExec  = "sshexec"
	typeLogger   = "logger"
)

// Config is router.toml. Every key can be set in the environment too. State
// holds the journal of programs as well, and Name is told to them.
type Config struct {
	node.Config

	// Type is what enforces: nftables (this machine forwards), exec (a program
	// here), sshexec (a program elsewhere) or logger (nothing is enforced).
	// Default nftables.
	Type string `toml:"type"`
	// MaxLease bounds how long rules hold after core was heard last. Core asks
	// for less: this is for the case that it asks for too much. 1s to 10m,
	// default 30s.
	MaxLease config.Duration `toml:"max_lease"`

	NFTables NFTablesConfig `toml:"nftables"`
	Program  ProgramConfig  `toml:"program"`
	SSH      SSHConfig      `toml:"ssh"`
}

// NFTablesConfig is for the type nftables.
type NFTablesConfig struct {
	// Clients lists the interfaces that clients come in by; others never
	// become part of a session. Default: any interface.
	Clients []string `toml:"clients"`
	// Table is the name of the nftables table. Default caponier.
	Table string `toml:"table"`
	// RulePriority is the first of four priorities of routing rules (ip rule)
	// that keep everything else from being forwarded. Default 10.
	RulePriority int `toml:"rule_priority"`
}

// ProgramConfig is for the types exec and sshexec.
type ProgramConfig struct {
	// Path is the program, absolute, writable by nobody but root (exec); or
	// the command on the other machine, empty when its forced command knows
	// (sshexec).
	Path string `toml:"path"`
	// Legacy calls it with JSON arguments instead of standard input.
	Legacy bool `toml:"legacy"`
	// Parameters is a JSON object that goes along with every call.
	Parameters string `toml:"parameters"`
	// Timeout bounds one run, SyncTimeout one that replaces everything.
	// Defaults 10s and 60s.
	Timeout     config.Duration `toml:"timeout"`
	SyncTimeout config.Duration `toml:"sync_timeout"`
	// Lease is how long the program keeps sessions when the router has died.
	// Default 60s.
	Lease config.Duration `toml:"lease"`
	// CheckEvery is how often the program's list is compared. Default 60s.
	CheckEvery config.Duration `toml:"check_every"`
	// Parallel is how many runs there may be at one time, 1 to 64. Default 4.
	Parallel int `toml:"parallel"`
}

// SSHConfig is for the type sshexec.
type SSHConfig struct {
	// Host is host or host:port; User the login there.
	Host string `toml:"host"`
	User string `toml:"user"`
	// KeyFile is the private key, unencrypted, mode 0600.
	KeyFile string `toml:"key_file"`
	// HostKey is the host's key, like "ssh-ed25519 AAAA…". Required: nothing is
	// trusted on first use.
	HostKey string `toml:"host_key"`
}

func defaults(c *Config) {
	c.Type, c.MaxLease = typeNFTables, config.Duration(30*time.Second)
	c.NFTables = NFTablesConfig{Table: "caponier", RulePriority: 10}
	c.Program = ProgramConfig{Timeout: config.Duration(10 * time.Second), SyncTimeout: config.Duration(time.Minute),
		Lease: config.Duration(time.Minute), CheckEvery: config.Duration(time.Minute), Parallel: 4}
}

// Validate implements config.Validator.
func (c *Config) Validate() []config.Problem {
	ps := c.Config.Validate()
	add := func(key, text, hint string) { ps = append(ps, config.Problem{Key: key, Text: text, Hint: hint}) }
	if d := c.MaxLease.Std(); d < time.Second || d > 10*time.Minute {
		add("max_lease", "must be 1s to 10m", "")
	}
	switch c.Type {
	case typeNFTables:
		c.checkNFTables(add)
	case typeExec:
		if c.Program.Path == "" {
			add("program.path", "is missing", "name the program that opens and closes sessions")
		} else if err := program.Trusted(c.Program.Path); err != nil {
			add("program.path", err.Error(), "who can change it could open what they like")
		}
		c.checkProgram(add)
	case typeSSHExec:
		c.checkProgram(add)
		c.checkSSH(add)
	case typeLogger:
	default:
		add("type", "must be nftables, exec, sshexec or logger", "")
	}
	return ps
}

func (c *Config) checkNFTables(add func(key, text, hint string)) {
	for i, name := range c.NFTables.Clients {
		if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\"*") {
			add(fmt.Sprintf("nftables.clients[%d]", i), fmt.Sprintf("%q is not the name of an interface", name), "`ip link` lists them")
		}
	}
	if t := c.NFTables.Table; t == "" || len(t) > 31 || strings.Trim(t, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		add("nftables.table", "must be 1 to 31 lower-case letters, digits and underscores", "")
	}
	// 0 is the kernel's rule for local addresses, 32766 its main table.
	if p := c.NFTables.RulePriority; p < 1 || p > 32000 {
		add("nftables.rule_priority", "must be 1 to 32000", "")
	}
}

func (c *Config) checkProgram(add func(key, text, hint string)) {
	p := &c.Program
	var object map[string]json.RawMessage
	if p.Parameters != "" && json.Unmarshal([]byte(p.Parameters), &object) != nil {
		add("program.parameters", "must be a JSON object", "")
	}
	for key, d := range map[string]config.Duration{"program.timeout": p.Timeout, "program.sync_timeout": p.SyncTimeout} {
		if d.Std() < 100*time.Millisecond || d.Std() > time.Minute {
			add(key, "must be 100ms to 60s", "core waits no longer")
		}
	}
	if d := p.Lease.Std(); d < 3*time.Second || d > 24*time.Hour {
		add("program.lease", "must be 3s to 24h", "")
	}
	if d := p.CheckEvery.Std(); d < time.Second {
		add("program.check_every", "must be at least 1s", "")
	}
	if p.Parallel < 1 || p.Parallel > 64 {
		add("program.parallel", "must be 1 to 64", "")
	}
}

func (c *Config) checkSSH(add func(key, text, hint string)) {
	for key, v := range map[string]string{"ssh.host": c.SSH.Host, "ssh.user": c.SSH.User, "ssh.key_file": c.SSH.KeyFile} {
		if v == "" {
			add(key, "is missing", "")
		}
	}
	if _, err := sshprogram.ParseHostKey(c.SSH.HostKey); err != nil {
		add("ssh.host_key", err.Error(), "ssh-keyscan HOST prints it; compare it with the host's own before you trust it")
	}
}

// address is ssh.host with its port.
func (s *SSHConfig) address() string {
	if _, _, err := net.SplitHostPort(s.Host); err == nil {
		return s.Host
	}
	return net.JoinHostPort(strings.Trim(s.Host, "[]"), "22")
}
