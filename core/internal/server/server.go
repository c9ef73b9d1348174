// Package server builds core from its rooms, runs it and stops it in order.
// New reads top-down: what stands above is used by what stands below.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"caponier/core/internal/api"
	"caponier/core/internal/bastion"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/netaccess"
	"caponier/core/internal/overview"
	"caponier/core/internal/policy"
	"caponier/core/internal/portaccess"
	"caponier/core/internal/recording"
	"caponier/core/internal/settings"
	"caponier/core/internal/signin"
	"caponier/core/internal/sshca"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
	"caponier/core/internal/webaccess"
	"caponier/core/internal/webterm"
	"caponier/core/internal/webui"
	"caponier/shared/config"
	"caponier/shared/daemon"
	"caponier/shared/dial"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Deps is what New needs besides the configuration.
type Deps struct {
	Log     *slog.Logger
	Environ []string // for CAPONIER_KEK
}

// Server is a built core. Run it once.
type Server struct {
	cfg    Config
	log    *slog.Logger
	id     string
	health *telemetry.Health
	reg    *prometheus.Registry
	listen *listeners
	certs  *certSource

	*base
	frame      *api.Frame
	signin     *signin.Service
	certDoor   *signin.Door // nil = off
	fleet      *fleet.Fleet
	targets    *target.Service
	policy     *policy.Service
	conns      *conn.Manager
	recordings *recording.Store
	ports      *portaccess.Service
	network    *netaccess.Service
	bastion    *bastion.Server
	console    http.Handler
	hostKey    *hostKey // of the bastion
	terminals  *webterm.Service
	web        *webaccess.Service
	webDoor    *webDoor
}

func newCoreID() string { return "core_" + strings.ToLower(rand.Text()) }

// New opens the database and the vault, binds every listener and builds all
// rooms. On error nothing is left open.
func New(ctx context.Context, cfg Config, deps Deps) (_ *Server, err error) {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := os.MkdirAll(cfg.Recording.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make recording directory: %w", err)
	}
	s := &Server{cfg: cfg, log: deps.Log, health: telemetry.NewHealth(), reg: telemetry.NewRegistry("core", daemon.Version)}
	if s.id, err = coreID(cfg.StateDir); err != nil {
		return nil, err
	}
	if s.listen, err = bind(cfg.Listen); err != nil {
		return nil, err
	}
	s.completePublic()
	if s.base, err = openBase(ctx, s.cfg, deps.Environ, s.log); err != nil {
		s.listen.close()
		return nil, err
	}
	defer func() {
		if err != nil {
			s.listen.close()
			s.db.Close()
		}
	}()
	if err := s.buildRooms(ctx); err != nil {
		return nil, err
	}
	if err := s.buildDoors(ctx); err != nil {
		return nil, err
	}
	s.buildHealth()
	return s, nil
}

// completePublic fills public addresses that were left to defaults from what
// is really listened on.
func (s *Server) completePublic() {
	host := s.cfg.Name
	if h, _, err := net.SplitHostPort(s.listen.https.Addr().String()); err == nil {
		if ip := net.ParseIP(h); ip != nil && !ip.IsUnspecified() {
			host = h
		}
	}
	at := func(l net.Listener) string {
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return net.JoinHostPort(host, port)
	}
	if s.cfg.Public.URL == "" {
		s.cfg.Public.URL = "https://" + strings.TrimSuffix(at(s.listen.https), ":443")
	}
	if s.cfg.Public.Edge == "" {
		s.cfg.Public.Edge = s.cfg.Public.URL
	}
	if s.cfg.Public.Bastion == "" && s.listen.bastion != nil {
		s.cfg.Public.Bastion = at(s.listen.bastion)
	}
}

// buildRooms makes the rooms, lowest first.
func (s *Server) buildRooms(ctx context.Context) (err error) {
	hosts := &hostRegistrar{}
	s.webDoor = &webDoor{}
	s.fleet, err = fleet.New(ctx, fleet.Config{
		DB: s.db, Audit: s.audit, Vault: s.vault, CoreID: s.id, CoreName: s.cfg.Name,
		Addresses: []string{s.cfg.Public.Edge}, QUIC: s.listen.quic,
		Direct: dial.Rules{Exempt: prefixes(s.cfg.Dial.Allow)},
		Hosts:  hosts, Sites: hosts, UserCA: s.ca,
		Streams: s.webDoor.stream, Control: map[string]http.Handler{webaccess.ControlPath: s.webDoor},
		Log: s.log, Metrics: s.reg,
	})
	if err != nil {
		return err
	}
	s.targets, err = target.New(target.Config{
		DB: s.db, Audit: s.audit, Roles: s.users, Secrets: s.vault, SiteUses: []target.SiteUser{s.fleet},
		CheckAlgorithms: func(rule string) error { _, err := sshca.ParseTargetRule(rule); return err },
		Now:             time.Now, Log: s.log,
	})
	if err != nil {
		return err
	}
	hosts.targets = s.targets
	prober, err := policy.NewSSHProber(policy.SSHProberConfig{DB: s.db, Dialer: s.fleet, Targets: s.targets, CA: s.ca, Secrets: s.vault})
	if err != nil {
		return err
	}
	s.policy, err = policy.New(policy.Config{
		DB: s.db, Users: s.users, Targets: s.targets, Network: s.fleet,
		Prober: prober, Web: s.webDoor, Now: time.Now, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.recordings, err = recording.New(recording.Config{
		DB: s.db, Audit: s.audit, Keys: s.vault, Dir: s.cfg.Recording.Dir, CoreID: s.id,
		RolesOf: s.users.RoleIDs, RoleGroup: s.users.RoleGroup, Limits: s.recordingLimits,
		Now: time.Now, Log: s.log, Metrics: s.reg,
	})
	if err != nil {
		return err
	}
	s.conns, err = conn.New(conn.Config{
		DB: s.db, Audit: s.audit, Authorizer: s.policy, Logins: s.users, LoginGone: loginGone,
		RoleNames: s.roleNames, RecordingStatus: s.recordings.Statuses, CoreID: s.id,
		TellWatched: func() bool { return settings.ConnectionTellWatched.Get(s.settings) },
		Limits:      s.connLimits, Now: time.Now, Log: s.log, Metrics: s.reg,
	})
	return err
}

// loginGone tells a login that has ended from one that could not be checked:
// a database that does not answer ends nobody's login.
func loginGone(err error) bool {
	return errors.Is(err, user.ErrEnded) || errors.Is(err, db.ErrNotFound)
}

// roleNames names the roles a user holds now, for the connection record.
func (s *Server) roleNames(ctx context.Context, userID string) ([]string, error) {
	ids, err := s.users.RoleIDs(ctx, userID)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		name, err := s.users.RoleName(ctx, s.db, id)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func (s *Server) connLimits() conn.Limits {
	l := conn.DefaultLimits()
	l.Live, l.PerUser = s.cfg.Limits.Connections, s.cfg.Limits.ConnectionsPerUser
	l.Reauthorize = settings.ReauthorizeEvery.Get(s.settings)
	l.Lease = settings.ConnectionLease.Get(s.settings)
	l.Idle, l.MaxDuration = settings.ConnectionIdle.Get(s.settings), settings.ConnectionMax.Get(s.settings)
	l.Retention = days(settings.ConnectionRetention.Get(s.settings))
	return l
}

func days(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }

func (s *Server) recordingLimits() recording.Limits {
	l := recording.DefaultLimits()
	l.MinFree = int64(s.cfg.Recording.MinFree) << 20
	l.Retention = days(settings.RecordingRetention.Get(s.settings))
	l.OwnView = settings.RecordingOwnView.Get(s.settings)
	l.FileMax = int64(settings.RecordingFileMax.Get(s.settings)) << 20
	return l
}

// buildDoors makes what people and programs come in by.
func (s *Server) buildDoors(ctx context.Context) (err error) {
	pub, err := url.Parse(s.cfg.Public.URL)
	if err != nil {
		return fmt.Errorf("public url: %w", err)
	}
	if s.cfg.TLS.CertFile != "" {
		s.certs, err = fileCerts(s.cfg.TLS.CertFile, s.cfg.TLS.KeyFile, time.Now)
	} else {
		s.certs, err = builtinCerts(s.tlsDir(), certNames(pub.Hostname(), s.cfg.Name), s.vault, time.Now)
	}
	if err != nil {
		return err
	}
	s.ports, err = portaccess.New(portaccess.Config{
		DB: s.db, Audit: s.audit, Policy: s.policy, Conns: s.conns, Dialer: s.fleet,
		Bind: s.cfg.Listen.SessionsHost, First: s.cfg.Listen.Sessions.Low, Last: s.cfg.Listen.Sessions.High,
		Log: s.log, Now: time.Now,
	})
	if err != nil {
		return err
	}
	if err := s.buildNetwork(); err != nil {
		return err
	}
	if err := s.buildWeb(ctx, pub); err != nil {
		return err
	}
	// Also without an SSH port: terminals in browsers go through it.
	if err := s.buildBastion(ctx, pub.Hostname()); err != nil {
		return err
	}
	s.terminals, err = webterm.New(webterm.Config{
		Bastion: s.bastion, Policy: s.policy, Connections: s.conns, Recordings: s.recordings, Notes: s.db, Auth: s.users,
		Origins: []string{pub.Scheme + "://" + pub.Host}, Log: s.log, Now: time.Now, Metrics: s.reg,
	})
	if err != nil {
		return err
	}
	if err := s.buildSignIn(pub); err != nil {
		return err
	}
	s.frame, err = api.New(api.Config{
		Auth: s.users, DB: s.db, Log: s.log,
		Proxies: api.TrustedProxies{Networks: prefixes(s.cfg.Proxy.Trusted), Hops: s.cfg.Proxy.Hops},
		Origins: []string{pub.Scheme + "://" + pub.Host}, Metrics: s.reg, Version: daemon.Version,
	})
	if err != nil {
		return err
	}
	if s.console, err = webui.Handler(); err != nil {
		return err
	}
	s.audit.Routes(s.frame, s.auditKeys, headFile(s.cfg))
	s.vault.Routes(s.frame, s.users, s.targets)
	s.settings.Routes(s.frame)
	s.users.Routes(s.frame, s.vault, s.conns, s.recordings, s.signin, s.network, s.web)
	s.signin.Routes(s.frame)
	s.ca.Routes(s.frame)
	s.groups.Routes(s.frame)
	s.fleet.Routes(s.frame)
	s.targets.Routes(s.frame)
	s.policy.Routes(s.frame)
	s.recordings.Routes(s.frame)
	s.conns.Routes(s.frame)
	s.ports.Routes(s.frame)
	s.network.Routes(s.frame)
	s.web.Routes(s.frame)
	look, err := overview.New(overview.Config{
		DB: s.db, Audit: s.audit, Edges: s.fleet, Certificates: s.certificates, Space: s.recordings.Space,
		Now: time.Now, Log: s.log,
	})
	if err != nil {
		return err
	}
	look.Routes(s.frame)
	s.terminals.Routes(s.frame)
	return nil
}

// certificates are those of core itself, for the overview.
func (s *Server) certificates() []overview.Certificate {
	var list []overview.Certificate
	if c, err := s.certs.get(nil); err == nil && c.Leaf != nil {
		list = append(list, overview.Certificate{Name: "console and API", NotAfter: c.Leaf.NotAfter, Renews: s.cfg.TLS.CertFile == ""})
	}
	for _, c := range s.fleet.Roots()[:1] {
		list = append(list, overview.Certificate{Name: "edge CA", NotAfter: c.NotAfter, Renews: true})
	}
	return list
}

// buildNetwork makes the door to network targets. Consoles exist only after
// it, so it publishes through the frame of the moment.
func (s *Server) buildNetwork() (err error) {
	s.network, err = netaccess.New(netaccess.Config{
		DB: s.db, Audit: s.audit, Policy: s.policy, Conns: s.conns, Targets: s.targets, Fleet: s.fleet,
		Lease:    func() time.Duration { return settings.NetworkLease.Get(s.settings) },
		Presence: func() time.Duration { return settings.NetworkPresence.Get(s.settings) },
		Away:     func() time.Duration { return settings.ConnectionLease.Get(s.settings) },
		Relay: netaccess.Relay{
			Dialer: s.fleet, Addresses: s.cfg.relayAddresses(),
			TCPFirst: s.cfg.Network.RelayTCP.Low, TCPLast: s.cfg.Network.RelayTCP.High,
			UDPFirst: s.cfg.Network.RelayUDP.Low, UDPLast: s.cfg.Network.RelayUDP.High,
		},
		Publish: func(e api.Event) { s.frame.Publish(e) },
		Log:     s.log, Now: time.Now, Metrics: s.reg,
	})
	return err
}

// bastionAlias is a name in the bastion's host certificate that holds under
// any address and port: clients set HostKeyAlias to it.
const bastionAlias = "caponier-bastion"

func (s *Server) buildBastion(ctx context.Context, host string) (err error) {
	s.hostKey, err = newHostKey(ctx, s.ca, certNames(host, s.cfg.Name, bastionAlias), time.Now, s.log)
	if err != nil {
		return fmt.Errorf("bastion host key: %w", err)
	}
	s.bastion, err = bastion.New(bastion.Config{
		Users: s.users, Policy: s.policy, Connections: bastion.FromManager(s.conns), Recordings: bastion.FromStore(s.recordings),
		Dialer: s.fleet, CA: s.ca, Vault: s.vault, HostKeys: s.targets, Audit: s.audit,
		Signers: s.hostKey.signers, LoginGone: loginGone,
		Separator: func() string { return settings.BastionSeparator.Get(s.settings) }, Address: s.cfg.Public.Bastion,
		Log: s.log, Now: time.Now,
	})
	return err
}

// certNames are the names core's own certificates carry.
func certNames(names ...string) []string {
	out := []string{"localhost", "127.0.0.1", "::1"}
	for _, n := range names {
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func (s *Server) buildHealth() {
	s.health.Add("recordings", false, s.recordings.Check)
	s.health.Add("database", true, func(ctx context.Context) error {
		if s.db.Ping(ctx) != nil {
			return errors.New("the database does not answer")
		}
		return nil
	})
}

// hostRegistrar hands hosts that register themselves to the target room.
type hostRegistrar struct{ targets *target.Service }

// RegisterHost implements fleet.HostRegistrar.
func (h *hostRegistrar) RegisterHost(ctx context.Context, tx *db.Tx, host fleet.Host) (string, bool, error) {
	return h.targets.RegisterHost(ctx, tx, target.Host(host))
}

// EnsureSite implements fleet.SiteMaker.
func (h *hostRegistrar) EnsureSite(ctx context.Context, tx *db.Tx, name string) (bool, error) {
	return h.targets.EnsureSite(ctx, tx, name)
}

// handler serves everything on the https listener.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	s.health.Register(mux)
	mux.Handle("/api/", s.frame.Handler())
	mux.Handle("/edge/", s.fleet.Handler())
	mux.Handle(webaccess.PublicPath, s.web.Public())
	mux.Handle("/", s.console)
	return hsts(mux)
}

func hsts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
		next.ServeHTTP(w, r)
	})
}

// plainHandler serves the http listener: certificates of our authorities and
// their revocation lists, which clients must be able to read without TLS (RFC
// 5280 §8), and a redirect for people.
func (s *Server) plainHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+wire.PathCRL, s.fleet.Handler())
	mux.Handle("GET "+wire.PathCA, s.fleet.Handler())
	mux.Handle("GET "+webaccess.PublicPath, s.web.Public())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, s.cfg.Public.URL+r.URL.RequestURI(), http.StatusMovedPermanently)
	})
	return mux
}

// listeners are all sockets of core, bound before anything starts so that a
// taken port is told at once. A nil one is off.
type listeners struct {
	https, http, bastion, socks, metrics net.Listener
	quic                                 net.PacketConn
}

func bind(c Listen) (l *listeners, err error) {
	l = &listeners{}
	defer func() {
		if err != nil {
			l.close()
			l = nil
		}
	}()
	tcp := func(key string, addr config.Addr) (net.Listener, error) {
		if addr.Off() {
			return nil, nil
		}
		ln, err := net.Listen("tcp", string(addr))
		if err != nil {
			return nil, &daemon.Hinted{Err: fmt.Errorf("listen.%s: %w", key, err), Hint: "is another program using the port? choose another address, or \"off\""}
		}
		return ln, nil
	}
	if l.https, err = tcp("https", c.HTTPS); err != nil {
		return l, err
	}
	l.https = tunnel.Listener(l.https)
	if l.http, err = tcp("http", c.HTTP); err != nil {
		return l, err
	}
	if l.bastion, err = tcp("bastion", c.Bastion); err != nil {
		return l, err
	}
	if l.socks, err = tcp("socks", c.SOCKS); err != nil {
		return l, err
	}
	if l.metrics, err = tcp("metrics", c.Metrics); err != nil {
		return l, err
	}
	if c.QUIC.Off() {
		return l, nil
	}
	addr := string(c.QUIC)
	if c.QUIC == c.HTTPS {
		addr = l.https.Addr().String() // the same port even when it was chosen by the kernel
	}
	if l.quic, err = net.ListenPacket("udp", addr); err != nil {
		return l, &daemon.Hinted{Err: fmt.Errorf("listen.quic: %w", err), Hint: "choose another address, or \"off\": tunnels then use the secure websocket only"}
	}
	return l, nil
}

func (l *listeners) close() {
	if l == nil {
		return
	}
	for _, c := range []net.Listener{l.https, l.http, l.bastion, l.socks, l.metrics} {
		if c != nil {
			c.Close()
		}
	}
	if l.quic != nil {
		l.quic.Close()
	}
}
