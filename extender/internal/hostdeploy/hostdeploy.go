// Package hostdeploy is the extender's listener for the hosts of its own
// network: through it they fetch the CA key and the deployment script and
// register themselves. It passes exactly these three routes on to core and
// answers 404 to everything else.
//
// Its certificate is self-signed; hosts know it by the hash of its key, which
// core shows to operators.
package hostdeploy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/semaphore"

	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Config is what a Door needs.
type Config struct {
	// Session returns the live tunnel or nil.
	Session func() tunnel.Session
	Log     *slog.Logger // nil: discard
}

const (
	// maxBody bounds what a host may send and core may answer, in bytes.
	maxBody = 64 << 10
	// atOnce bounds requests passed on at one time.
	atOnce = 32
	// timeout bounds one request on its way to core and back.
	timeout = 20 * time.Second
)

// Headers by which core learns how the host reached us; see core's fleet.
const (
	headerBase = "Caponier-Base"
	headerHost = "Caponier-Host-Address"
)

// Handler serves the deployment routes.
func Handler(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	d := &door{c: c, slots: semaphore.NewWeighted(atOnce)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathDeployCA, d.pass)
	mux.HandleFunc("GET "+wire.PathDeployScript, d.pass)
	mux.HandleFunc("POST "+wire.PathDeployRegister, d.pass)
	return mux
}

type door struct {
	c     Config
	slots *semaphore.Weighted
}

// pass sends the request on to core. Of what the host sent only method, route
// and body go along.
func (d *door) pass(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if d.slots.Acquire(ctx, 1) != nil {
		http.Error(w, "the extender is busy; try again", http.StatusServiceUnavailable)
		return
	}
	defer d.slots.Release(1)
	s := d.c.Session()
	if s == nil {
		http.Error(w, "the extender has no connection to core at this moment", http.StatusBadGateway)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "the request is too long", http.StatusRequestEntityTooLarge)
		return
	}
	out, err := http.NewRequestWithContext(ctx, r.Method, "http://core"+r.Pattern[len(r.Method)+1:], bytes.NewReader(body))
	if err != nil {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	out.Header.Set("Content-Type", "application/json")
	out.Header.Set(headerBase, "https://"+r.Host)
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		out.Header.Set(headerHost, a.Addr().Unmap().WithZone("").String())
	}
	resp, err := control.RoundTrip(ctx, s, out)
	if err != nil {
		d.c.Log.Warn("host deployment", telemetry.KeyRemote, r.RemoteAddr, telemetry.KeyErr, err)
		http.Error(w, "core did not answer", http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for _, h := range []string{"Content-Type", "Cache-Control"} {
		if v := resp.Header.Get(h); v != "" {
			w.Header().Set(h, v)
		}
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, io.LimitReader(resp.Body, maxBody)); err != nil {
		d.c.Log.Debug("host deployment answer", telemetry.KeyRemote, r.RemoteAddr, telemetry.KeyErr, err)
	}
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, cert tls.Certificate, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		srv.Close()
	})
	err := srv.Serve(tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}))
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("host deployment listener: %w", err)
}

// keyFile holds the listener's key in the state directory.
const keyFile = "deploy.key"

// certLife is the life of the listener's certificate, which is made anew at
// each start on the same key.
const certLife = 10 * 365 * 24 * time.Hour

// Certificate makes the listener's certificate on the key in dir, which is
// made on first use, and returns it with its pin ("sha256//…").
func Certificate(dir string, now time.Time) (tls.Certificate, string, error) {
	key, err := loadKey(filepath.Join(dir, keyFile))
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("host deployment key: %w", err)
	}
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("host deployment certificate: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: n,
		Subject:      pkix.Name{CommonName: "Caponier extender"},
		NotBefore:    now.Add(-24 * time.Hour), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"caponier-extender"},
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "Caponier extender"}}, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("host deployment certificate: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("host deployment certificate: %w", err)
	}
	sum := sha256.Sum256(spki)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, "sha256//" + base64.StdEncoding.EncodeToString(sum[:]), nil
}

func loadKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM; remove it to get a new one", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an ECDSA key; remove it to get a new one", path)
	}
	return key, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, err
	}
	return key, os.Rename(tmp, path)
}
