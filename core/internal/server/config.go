package server

import (
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"caponier/core/internal/db"
	"caponier/shared/config"
	"caponier/shared/telemetry"
)

// Config is core's configuration file. Every key has a default that works for
// one core on one machine, except the vault's key.
type Config struct {
	// StateDir holds the embedded database, recordings and the built-in TLS
	// certificate unless those say otherwise. Default /var/lib/caponier.
	StateDir string `toml:"state_dir"`
	// Name of this core, shown to operators. Default the host name.
	Name string `toml:"name"`

	Public    Public              `toml:"public"`
	Listen    Listen              `toml:"listen"`
	Database  Database            `toml:"database"`
	Vault     Vault               `toml:"vault"`
	TLS       TLS                 `toml:"tls"`
	Recording Recording           `toml:"recording"`
	Proxy     Proxy               `toml:"proxy"`
	Dial      Dial                `toml:"dial"`
	Limits    Limits              `toml:"limits"`
	Network   Network             `toml:"network"`
	Log       telemetry.LogConfig `toml:"log"`

	// Grace is how long a stopping core waits for live connections before it
	// ends them. Default 30s.
	Grace config.Duration `toml:"grace"`
}

// Public is how core is reached from outside.
type Public struct {
	// URL of console and API, e.g. https://pam.example.org. Default
	// https://<name> with the port of listen.https.
	URL string `toml:"url"`
	// Bastion is host:port of the SSH front door as people dial it. Default
	// the host of url with the port of listen.bastion.
	Bastion string `toml:"bastion"`
	// Edge is the URL edge nodes dial. Default url.
	Edge string `toml:"edge"`
	// Certificates is the URL of listen.certificates as people reach it, on the
	// host of url. Default that host with the port of listen.certificates.
	Certificates string `toml:"certificates"`
}

// Listen is where core listens; "off" switches a listener off.
type Listen struct {
	HTTPS   config.Addr `toml:"https"`   // console, API, tunnels. Default :443
	QUIC    config.Addr `toml:"quic"`    // tunnels over UDP. Default as https
	HTTP    config.Addr `toml:"http"`    // redirect to https, CRL. Default :80
	Bastion config.Addr `toml:"bastion"` // SSH. Default :2222
	SOCKS   config.Addr `toml:"socks"`   // SOCKS5. Default :1080
	// Certificates is where people sign in with a client certificate. It is open
	// only while an authority is configured for them. Default :8443.
	Certificates config.Addr `toml:"certificates"`
	Metrics      config.Addr `toml:"metrics"` // metrics, pprof; no login: keep it on loopback. Default 127.0.0.1:9464
	// Sessions is the range of dynamic session ports, closed unless a session
	// owns one. Default 4000-6000.
	Sessions config.PortRange `toml:"sessions"`
	// SessionsHost is the address dynamic ports listen on. Default all.
	SessionsHost string `toml:"sessions_host"`
}

// Database says where state is kept.
type Database struct {
	Engine string `toml:"engine"` // sqlite or postgres. Default sqlite
	Path   string `toml:"path"`   // SQLite file. Default <state_dir>/core.db
	// URL of PostgreSQL; a host that is not local needs sslmode=verify-full.
	URL config.Secret `toml:"url"`
	// URLFile holds the URL instead.
	URLFile        string `toml:"url_file"`
	AllowPlaintext bool   `toml:"allow_plaintext"`
	MaxConns       int    `toml:"max_conns"` // default 20
}

// Vault says where the key-encryption key is. With neither file nor the
// environment variable CAPONIER_KEK, <state_dir>/kek is used.
type Vault struct {
	KEKFile string `toml:"kek_file"`
}

// TLS is the certificate of listen.https. Without files core makes its own CA
// and certificate under <state_dir>/tls.
type TLS struct {
	CertFile string `toml:"cert_file"`
	KeyFile  string `toml:"key_file"`
}

// Recording says where recordings are kept.
type Recording struct {
	Dir string `toml:"dir"` // default <state_dir>/recordings
	// MinFree is the free space in MiB below which no recorded session
	// starts. Default 256.
	MinFree int `toml:"min_free_mib"`
}

// Proxy says which load balancers may tell the client's address.
type Proxy struct {
	Trusted []string `toml:"trusted"` // CIDRs. Default none
	Hops    int      `toml:"hops"`    // trusted entries of X-Forwarded-For. Default 1
}

// Dial limits what core dials by itself (targets without a site). Loopback,
// link-local, metadata and core's own addresses are refused unless listed.
type Dial struct {
	Allow []string `toml:"allow"` // CIDRs. Default none
}

// Limits bound what people can open.
type Limits struct {
	Connections        int `toml:"connections"`          // live on this core. Default 5000
	ConnectionsPerUser int `toml:"connections_per_user"` // default 200
}

// Network says where sessions to network targets behind a site arrive: routers
// send their packets to ports of core.
type Network struct {
	// RelayAddresses are core's own addresses as routers reach them, one IPv4
	// and one IPv6 at most. Default none: network targets cannot have a site.
	RelayAddresses []string         `toml:"relay_addresses"`
	RelayTCP       config.PortRange `toml:"relay_tcp"` // default 11000-11999
	RelayUDP       config.PortRange `toml:"relay_udp"` // default 12000-12999
}

// Default is the configuration before file and environment.
func Default() Config {
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "core"
	}
	return Config{
		StateDir: "/var/lib/caponier",
		Name:     name,
		Listen: Listen{
			HTTPS: ":443", HTTP: ":80", Bastion: ":2222", SOCKS: ":1080", Metrics: "127.0.0.1:9464",
			Certificates: ":8443",
			Sessions:     config.PortRange{Low: 4000, High: 6000},
		},
		Database:  Database{Engine: "sqlite", MaxConns: 20},
		Recording: Recording{MinFree: 256},
		Proxy:     Proxy{Hops: 1},
		Limits:    Limits{Connections: 5000, ConnectionsPerUser: 200},
		Network:   Network{RelayTCP: config.PortRange{Low: 11000, High: 11999}, RelayUDP: config.PortRange{Low: 12000, High: 12999}},
		Grace:     config.Duration(30 * time.Second),
	}
}

// Load reads the configuration and fills what depends on other keys.
func Load(file string, environ []string) (Config, error) {
	c := Default()
	if err := config.Load(&c, file, environ); err != nil {
		return Config{}, err
	}
	c.complete()
	return c, nil
}

func (c *Config) complete() {
	in := func(v *string, parts ...string) {
		if *v == "" {
			*v = filepath.Join(append([]string{c.StateDir}, parts...)...)
		}
	}
	in(&c.Database.Path, "core.db")
	in(&c.Recording.Dir, "recordings")
	if c.Listen.QUIC == "" {
		c.Listen.QUIC = c.Listen.HTTPS
	}
}

// Validate implements config.Validator.
func (c *Config) Validate() []config.Problem {
	var list []config.Problem
	bad := func(key, text, hint string) { list = append(list, config.Problem{Key: key, Text: text, Hint: hint}) }
	if c.StateDir == "" {
		bad("state_dir", "must not be empty", "name a directory only core can read")
	}
	if c.Name == "" {
		bad("name", "must not be empty", "")
	}
	if c.Listen.HTTPS.Off() {
		bad("listen.https", "cannot be off", "core is reached through it")
	}
	for key, raw := range map[string]string{"public.url": c.Public.URL, "public.edge": c.Public.Edge} {
		if u, err := url.Parse(raw); raw != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
			bad(key, fmt.Sprintf("%q is not an https URL", raw), "write it like https://pam.example.org")
		}
	}
	if u, err := url.Parse(c.Public.Certificates); c.Public.Certificates != "" {
		console, _ := url.Parse(c.Public.URL)
		if err != nil || u.Scheme != "https" || console == nil || u.Hostname() != console.Hostname() {
			bad("public.certificates", "must be an https URL on the host of public.url", "the login is handed to the console by a cookie, which knows hosts and not ports")
		}
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls", "cert_file and key_file go together", "give both, or neither to let core make its own")
	}
	for key, f := range map[string]string{"tls.cert_file": c.TLS.CertFile, "tls.key_file": c.TLS.KeyFile, "vault.kek_file": c.Vault.KEKFile, "database.url_file": c.Database.URLFile} {
		if _, err := os.Stat(f); f != "" && err != nil {
			bad(key, fmt.Sprintf("%s cannot be read", f), "check the path and who owns it")
		}
	}
	switch db.Engine(c.Database.Engine) {
	case db.SQLite:
	case db.Postgres:
		if (c.Database.URL == "") == (c.Database.URLFile == "") {
			bad("database.url", "exactly one of url and url_file is needed with engine postgres", "")
		}
	default:
		bad("database.engine", fmt.Sprintf("%q is not an engine", c.Database.Engine), "sqlite or postgres")
	}
	for key, cidrs := range map[string][]string{"proxy.trusted": c.Proxy.Trusted, "dial.allow": c.Dial.Allow} {
		for i, p := range cidrs {
			if _, err := netip.ParsePrefix(p); err != nil {
				bad(fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("%q is not a CIDR", p), "write it like 10.0.0.0/8 or 192.0.2.1/32")
			}
		}
	}
	for i, text := range c.Network.RelayAddresses {
		if a, err := netip.ParseAddr(text); err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			bad(fmt.Sprintf("network.relay_addresses[%d]", i), fmt.Sprintf("%q is not an address of core", text), "write it like 10.0.0.2: the address routers reach core by")
		}
	}
	for key, r := range map[string]config.PortRange{"network.relay_tcp": c.Network.RelayTCP, "network.relay_udp": c.Network.RelayUDP} {
		if len(c.Network.RelayAddresses) > 0 && (r.Low < 1 || r.High < r.Low) {
			bad(key, "is not a range of ports", "write it like 11000-11999")
		}
	}
	if c.Proxy.Hops < 1 || c.Proxy.Hops > 10 {
		bad("proxy.hops", "must be 1 to 10", "")
	}
	if c.Limits.Connections < 1 || c.Limits.ConnectionsPerUser < 1 {
		bad("limits", "must be at least 1", "")
	}
	if c.Recording.MinFree < 0 {
		bad("recording.min_free_mib", "must not be negative", "")
	}
	if _, err := telemetry.NewLogger(&strings.Builder{}, c.Log); err != nil {
		bad("log", err.Error(), "")
	}
	return list
}

// database turns the configuration into what db.Open takes.
func (c *Config) database() (db.Config, error) {
	u := c.Database.URL.Reveal()
	if c.Database.URLFile != "" {
		b, err := os.ReadFile(c.Database.URLFile)
		if err != nil {
			return db.Config{}, fmt.Errorf("read database url: %w", err)
		}
		u = strings.TrimSpace(string(b))
	}
	return db.Config{Engine: db.Engine(c.Database.Engine), Path: c.Database.Path, URL: u, AllowPlaintext: c.Database.AllowPlaintext, MaxConns: c.Database.MaxConns}, nil
}

// relayAddresses are those of the configuration, which was validated.
func (c *Config) relayAddresses() []netip.Addr {
	out := make([]netip.Addr, 0, len(c.Network.RelayAddresses))
	for _, s := range c.Network.RelayAddresses {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(cidrs []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(cidrs))
	for _, s := range cidrs {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
