package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/settings"
	"caponier/shared/daemon"
	"caponier/shared/telemetry"
)

// closeTime is how long a stopping core waits for parts after the grace period.
const closeTime = 10 * time.Second

// RunOptions say how a running core tells that it is up.
type RunOptions struct {
	Stdout    io.Writer
	ReadyFile string
}

// Addresses are what core really listens on, for people and scripts.
type Addresses struct {
	URL     string `json:"url"`
	HTTPS   string `json:"https"`
	QUIC    string `json:"quic,omitempty"`
	HTTP    string `json:"http,omitempty"`
	Bastion string `json:"bastion,omitempty"`
	SOCKS   string `json:"socks,omitempty"`
	Metrics string `json:"metrics,omitempty"`
	CAFile  string `json:"ca_file,omitempty"`
	CoreID  string `json:"core_id"`
}

func (s *Server) addresses() Addresses {
	at := func(l net.Listener) string {
		if l == nil {
			return ""
		}
		return l.Addr().String()
	}
	a := Addresses{
		URL: s.cfg.Public.URL, HTTPS: at(s.listen.https), HTTP: at(s.listen.http), Bastion: at(s.listen.bastion),
		SOCKS: at(s.listen.socks), Metrics: at(s.listen.metrics), CoreID: s.id,
	}
	if s.listen.quic != nil {
		a.QUIC = s.listen.quic.LocalAddr().String()
	}
	if s.cfg.TLS.CertFile == "" {
		a.CAFile = CAFile(s.cfg)
	}
	return a
}

// Run serves until ctx ends or a part fails, then stops in this order: not
// ready and no new connections → live connections get the grace period → the
// doors close (people are told) → tunnels, recordings, audit → database.
func (s *Server) Run(ctx context.Context, o RunOptions) error {
	defer s.db.Close()
	defer s.listen.close()

	// back outlives the doors: whoever is still talking needs its tunnels, and
	// every record needs the log.
	back, stopBack := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBack()
	doors, stopDoors := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDoors()

	behind, backCtx := daemon.NewGroup(back)
	behind.Go("settings", s.settings.Run)
	behind.Go("audit", func(ctx context.Context) error { return s.audit.Run(ctx, s.keeper()) })
	behind.Go("recordings", s.recordings.Run)
	behind.Go("fleet", s.fleet.Run)
	if s.listen.metrics != nil {
		behind.Go("metrics", func(ctx context.Context) error {
			return telemetry.ServeDebug(ctx, s.listen.metrics, s.reg, s.health)
		})
	}
	context.AfterFunc(backCtx, stopDoors) // a failed part stops the whole

	// Before the connection manager runs: what an earlier run left is not lost.
	if err := s.network.Restore(ctx); err != nil {
		stopBack()
		return errors.Join(err, behind.Wait())
	}
	if err := s.web.Restore(ctx); err != nil {
		stopBack()
		return errors.Join(err, behind.Wait())
	}
	front, frontCtx := daemon.NewGroup(doors)
	front.Go("connections", func(ctx context.Context) error { return s.conns.Run(ctx, closeTime) })
	front.Go("session ports", s.ports.Run)
	front.Go("network sessions", s.network.Run)
	front.Go("web sessions", s.web.Run)
	front.Go("users", s.users.Run)
	front.Go("sign-in", s.signin.Run)
	if s.certDoor != nil {
		front.Go("client certificates", s.certDoor.Run)
	}
	front.Go("terminals", s.terminals.Run)
	front.Go("https", func(ctx context.Context) error { return s.serveHTTPS(ctx) })
	if s.listen.http != nil {
		front.Go("http", func(ctx context.Context) error {
			return serveHTTP(ctx, &http.Server{Handler: s.plainHandler(), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: writeTime, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}, s.listen.http)
		})
	}
	front.Go("bastion host key", s.hostKey.Run)
	if s.listen.bastion != nil {
		front.Go("bastion", func(ctx context.Context) error { return s.bastion.Serve(ctx, s.listen.bastion) })
	}
	if s.listen.socks != nil {
		front.Go("socks", func(ctx context.Context) error { return s.bastion.ServeSOCKS(ctx, s.listen.socks) })
	}

	ready := s.announce(ctx, o)
	if ready == nil {
		select {
		case <-ctx.Done():
			s.drain(frontCtx)
		case <-frontCtx.Done():
		}
	}
	// The next run takes network and web sessions over: a restart cuts nothing.
	s.network.Leave()
	s.web.Leave()
	stopDoors()
	ferr := front.Wait()
	stopBack()
	return errors.Join(ready, ferr, behind.Wait(), s.writeStopped(context.WithoutCancel(ctx)))
}

// keeper says how the audit log is kept.
func (s *Server) keeper() audit.Keeper {
	return audit.Keeper{Keys: s.auditKeys, HeadFile: headFile(s.cfg), Log: s.log, Retention: func() time.Duration { return days(settings.AuditRetention.Get(s.settings)) }}
}

// announce tells that core is up.
func (s *Server) announce(ctx context.Context, o RunOptions) error {
	event := audit.Event{Type: audit.SystemStarted, Outcome: audit.OK, Actor: audit.System, Object: audit.Object{Kind: "core", ID: s.id, Name: s.cfg.Name}, Fields: map[string]string{"version": daemon.Version}}
	if err := s.audit.Write(ctx, event); err != nil {
		return fmt.Errorf("write to the audit log: %w", err)
	}
	a := s.addresses()
	line, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode addresses: %w", err)
	}
	if o.ReadyFile != "" {
		if err := writeFile(o.ReadyFile, append(line, '\n'), 0o644); err != nil {
			return fmt.Errorf("write ready file: %w", err)
		}
	}
	if o.Stdout != nil {
		fmt.Fprintf(o.Stdout, "caponier-core %s is ready at %s\n", daemon.Version, a.URL)
	}
	s.log.Info("core is ready", "url", a.URL, "https", a.HTTPS, "quic", a.QUIC, "bastion", a.Bastion, "socks", a.SOCKS, "metrics", a.Metrics, "core", s.id, "version", daemon.Version)
	return daemon.Notify("READY=1")
}

// drain refuses new connections and waits for live ones, at most the grace period.
func (s *Server) drain(ctx context.Context) {
	s.health.Drain()
	s.conns.Drain()
	if err := daemon.Notify("STOPPING=1"); err != nil {
		s.log.Warn("cannot tell the service manager", telemetry.KeyErr, err)
	}
	s.log.Info("draining", "connections", s.conns.Count(), "grace", s.cfg.Grace.String())
	deadline := time.NewTimer(s.cfg.Grace.Std())
	defer deadline.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for s.conns.Count() > s.network.Count()+s.web.Count() {
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			return
		case <-look.C:
		}
	}
}

// writeStopped writes the last event and signs over it, so that a log cut at
// its end while core is down is found.
func (s *Server) writeStopped(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	event := audit.Event{Type: audit.SystemStopped, Outcome: audit.OK, Actor: audit.System, Object: audit.Object{Kind: "core", ID: s.id, Name: s.cfg.Name}}
	if err := s.audit.Write(ctx, event); err != nil {
		return fmt.Errorf("write to the audit log: %w", err)
	}
	if _, err := s.audit.SignHead(ctx, s.keeper()); err != nil {
		return fmt.Errorf("sign the audit log: %w", err)
	}
	return nil
}

func (s *Server) serveHTTPS(ctx context.Context) error {
	tc := &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: s.certs.get, NextProtos: []string{"h2", "http/1.1"},
		// Tunnels share this listener; see tunnel.Listener.
		DynamicRecordSizingDisabled: true,
	}
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: writeTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: quiet(s.log)}
	stop := context.AfterFunc(ctx, s.frame.Close) // ends event streams, so that Shutdown can finish
	defer stop()
	return serveHTTP(ctx, srv, tls.NewListener(s.listen.https, tc))
}

// writeTime is how long an answer may take, counted from the request, so that
// nobody holds a connection by not reading. What streams sets deadlines of its
// own, and tunnels leave the HTTP server.
const writeTime = 2 * time.Minute

// serveHTTP serves until ctx ends, then gives requests closeTime to finish.
func serveHTTP(ctx context.Context, srv *http.Server, l net.Listener) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) tlsDir() string { return filepath.Join(s.cfg.StateDir, "tls") }

// quiet turns net/http's complaints (bad TLS handshakes of scanners, mostly)
// into debug lines.
func quiet(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }
