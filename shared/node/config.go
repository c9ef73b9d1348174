package node

import (
	"log/slog"
	"net"
	"net/url"
	"strings"

	"caponier/shared/config"
	"caponier/shared/daemon"
	"caponier/shared/edge"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Config are the keys that every edge binary has. A binary's own configuration
// embeds it. Every key can be set in the environment too.
type Config struct {
	// Core is the address of core or of its load balancer, https://host[:port]. Required.
	Core string `toml:"core"`
	// State is the directory of the node's identity. Default
	// /var/lib/<binary>, or what systemd gives in STATE_DIRECTORY.
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
	// Debug is where metrics, health and pprof are served. Default off.
	Debug config.Addr `toml:"debug"`
	// Grace is how long live connections may go on after SIGTERM. Default 20s.
	Grace config.Duration `toml:"grace"`

	Log telemetry.LogConfig `toml:"log"`

	token       config.Secret // from --token, --token-file or the environment
	withoutCore bool          // the command needs no core
}

// transportAuto races the transports.
const transportAuto = "auto"

// defaultConfig is the configuration of a binary before anything is read.
func defaultConfig(name string, environ []string) Config {
	c := Config{State: "/var/lib/" + name, Transport: string(tunnel.WSS)}
	if dir, _, _ := strings.Cut(edge.Env(environ, "STATE_DIRECTORY"), ":"); dir != "" {
		c.State = dir
	}
	return c
}

// Validate implements config.Validator. A configuration with rules of its own
// calls it from its Validate, which hides this one.
func (c *Config) Validate() []config.Problem {
	var ps []config.Problem
	add := func(key, text, hint string) { ps = append(ps, config.Problem{Key: key, Text: text, Hint: hint}) }
	u, err := url.Parse(c.Core)
	switch {
	case c.Core == "" && c.withoutCore:
	case c.Core == "":
		add("core", "is missing", "give core's address, like core = \"https://pam.example.org\" or --core")
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		add("core", "must look like https://pam.example.org", "")
	}
	if c.State == "" {
		add("state", "is missing", "name a directory that only the node's user may read")
	}
	if c.Transport != transportAuto && c.Transport != string(tunnel.WSS) && c.Transport != string(tunnel.QUIC) {
		add("transport", "must be wss, quic or auto", "")
	}
	if _, _, err := net.SplitHostPort(c.QUIC); c.QUIC != "" && err != nil {
		add("quic", "must be host:port", "")
	}
	return ps
}

// Edge is what edge.New needs as far as the configuration knows it; the binary
// adds what it serves.
func (c *Config) Edge(kind wire.NodeKind, log *slog.Logger) edge.Config {
	e := edge.Config{URL: c.Core, State: c.State, Token: c.token, Kind: kind, Name: c.Name, Build: daemon.Version,
		QUICAddr: c.QUIC, Grace: c.Grace.Std(), Log: log}
	if c.Transport != transportAuto {
		e.Transport = tunnel.Transport(c.Transport)
	}
	return e
}
