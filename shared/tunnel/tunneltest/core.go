package tunneltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Core is the accepting end of tunnels on a loopback port: an HTTPS server
// with a certificate of nobody's CA, as a core behind its own name has.
type Core struct {
	// URL is where to dial; Addr is host:port.
	URL, Addr string
	// Sessions delivers the accepted sessions, Errors what AcceptWSS returned.
	Sessions chan tunnel.Session
	Errors   chan error

	srv *http.Server
	wg  sync.WaitGroup
}

// NewCore starts one; plain leaves out TLS, as behind something that ends it.
func NewCore(cfg tunnel.AcceptConfig, plain bool) (*Core, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Core{Addr: l.Addr().String(), URL: "http://" + l.Addr().String(), Sessions: make(chan tunnel.Session, 4096), Errors: make(chan error, 4096)}
	mux := http.NewServeMux()
	accept := func(w http.ResponseWriter, r *http.Request) {
		s, err := tunnel.AcceptWSS(w, r, cfg)
		if err != nil {
			select {
			case c.Errors <- err:
			default: // nobody looks
			}
			return
		}
		c.Sessions <- s
	}
	mux.HandleFunc(wire.PathTunnel, accept)
	mux.HandleFunc(wire.PathTunnel+"/", accept)
	c.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	l = tunnel.Listener(l)
	if !plain {
		cert, err := WebCertificate()
		if err != nil {
			return nil, err
		}
		c.URL = "https://" + c.Addr
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, DynamicRecordSizingDisabled: true})
	}
	c.wg.Go(func() { _ = c.srv.Serve(l) })
	return c, nil
}

// Close stops the server; the sessions are their takers'.
func (c *Core) Close() error {
	err := c.srv.Close()
	c.wg.Wait()
	return err
}

// WebCertificate makes a self-signed ECDSA certificate for 127.0.0.1.
func WebCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := template("127.0.0.1")
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
