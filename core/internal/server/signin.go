package server

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/signin"
)

// buildSignIn makes the ways to sign in besides the password.
func (s *Server) buildSignIn(pub *url.URL) (err error) {
	c := signin.Config{DB: s.db, Audit: s.audit, Users: s.users, Sealer: s.vault, URL: pub, Settings: s.settings, Now: time.Now, Log: s.log}
	off := s.cfg.Listen.Certificates.Off()
	if !off {
		_, port, err := net.SplitHostPort(string(s.cfg.Listen.Certificates))
		if err != nil {
			return fmt.Errorf("listen.certificates: %w", err)
		}
		// Always the console's host: the login is handed over by a cookie.
		c.CertificateURL = "https://" + net.JoinHostPort(pub.Hostname(), port) + "/"
		if s.cfg.Public.Certificates != "" {
			c.CertificateURL = s.cfg.Public.Certificates
		}
	}
	if s.signin, err = signin.New(c); err != nil || off {
		return err
	}
	s.certDoor = &signin.Door{
		Service: s.signin, Certificate: s.certs.get, Log: s.log,
		Listen: func() (net.Listener, error) { return net.Listen("tcp", string(s.cfg.Listen.Certificates)) },
		// Client certificates end at core, so nothing in front can tell an address.
		Source: func(r *http.Request) netip.Addr { return api.ClientAddr(r, api.TrustedProxies{}) },
	}
	return nil
}
