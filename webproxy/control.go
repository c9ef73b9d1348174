package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"caponier/shared/control"
	"caponier/shared/node"
	"caponier/shared/wire"
	"caponier/webproxy/internal/mitm"
	"caponier/webproxy/internal/session"
)

// serveControl serves health, sessions and metrics on the control port, to
// cores and to who has a certificate of one of the named authorities.
func serveControl(ctx context.Context, l net.Listener, p *node.Parts, sessions *session.Manager, credentials func() (tls.Certificate, *x509.CertPool, error), clients *x509.CertPool) error {
	mux := http.NewServeMux()
	p.Health.Register(mux)
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.Registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET "+wire.PathWebProxySessions, func(w http.ResponseWriter, _ *http.Request) {
		control.Reply(w, sessions.States())
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 40 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	tl := tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, roots, err := credentials()
		if err != nil {
			return nil, err
		}
		return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
			ClientAuth: tls.RequireAnyClientCert, VerifyConnection: func(cs tls.ConnectionState) error { return mayControl(cs.PeerCertificates, roots, clients) }}, nil
	}})
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(tl); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control listener: %w", err)
	}
	return nil
}

// mayControl accepts cores, and client certificates of the named authorities.
func mayControl(chain []*x509.Certificate, fleet, clients *x509.CertPool) error {
	if kind, _, err := mitm.Peer(chain, fleet); err == nil && kind == "core" {
		return nil
	}
	if clients == nil || len(chain) == 0 {
		return errors.New("the certificate is not that of a core")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: clients, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// meter registers metrics, and the condition that certificates can be issued.
func meter(p *node.Parts, authority *mitm.Authority, sessions *session.Manager, proxy *mitm.Server) {
	p.Health.Add("authority", true, func(context.Context) error {
		if why := authority.Problem(); why != "" {
			return errors.New(why)
		}
		return nil
	})
	p.Gauge("sessions", "Sessions now.", func() float64 { return float64(len(sessions.States().Sessions)) })
	counter := func(name, help string, f func() uint64) {
		p.Counter(name, help, func() float64 { return float64(f()) })
	}
	c := &proxy.Counts
	counter("requests", "Requests of sessions.", c.Requests.Load)
	counter("blocked_requests", "Requests and connections that no rule allowed.", c.Blocked.Load)
	counter("injected_requests", "Requests that got a stored credential.", c.Injected.Load)
	counter("held_requests", "Requests that waited for a second person.", c.Held.Load)
	counter("failed_requests", "Requests without an answer.", c.Failed.Load)
	counter("refused_connections", "Connections that were not let in.", c.Refused.Load)
	counter("received_bytes", "Bytes of answers' bodies.", c.BytesIn.Load)
	counter("sent_bytes", "Bytes of requests' bodies.", c.BytesOut.Load)
	counter("minted_certificates", "Certificates issued for sessions.", func() uint64 { n, _ := authority.Leaves(); return n })
	counter("cached_certificates", "Times that a certificate was found in the cache.", func() uint64 { _, n := authority.Leaves(); return n })
}
