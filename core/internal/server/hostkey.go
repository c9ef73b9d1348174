package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/sshca"
	"caponier/shared/telemetry"
)

// hostKeyCheck is how often the bastion's host certificate is looked at: a new
// host authority signs for it at most this much after it was activated.
const hostKeyCheck = 5 * time.Minute

// hostAuthority signs host certificates; *sshca.CA is the real one.
type hostAuthority interface {
	HostSigner(ctx context.Context, names []string) (certified, plain ssh.Signer, err error)
	Keys(ctx context.Context, group string) ([]sshca.Key, error)
}

// hostKey is the bastion's host key with its certificate, which is renewed
// while core runs: when half of its time is over, and when another authority
// signs now.
type hostKey struct {
	ca    hostAuthority
	names []string
	now   func() time.Time
	log   *slog.Logger
	have  atomic.Pointer[hostSigners]
}

type hostSigners struct {
	list []ssh.Signer // certified, plain
	cert *ssh.Certificate
}

func newHostKey(ctx context.Context, ca hostAuthority, names []string, now func() time.Time, log *slog.Logger) (*hostKey, error) {
	h := &hostKey{ca: ca, names: names, now: now, log: log}
	return h, h.renew(ctx)
}

// signers returns what new handshakes present.
func (h *hostKey) signers() []ssh.Signer { return h.have.Load().list }

func (h *hostKey) renew(ctx context.Context) error {
	certified, plain, err := h.ca.HostSigner(ctx, h.names)
	if err != nil {
		return err
	}
	cert, ok := certified.PublicKey().(*ssh.Certificate)
	if !ok {
		return errors.New("the host signer carries no certificate")
	}
	h.have.Store(&hostSigners{list: []ssh.Signer{certified, plain}, cert: cert})
	return nil
}

// check renews the certificate when it is due.
func (h *hostKey) check(ctx context.Context) error {
	cert := h.have.Load().cert
	half := (cert.ValidAfter + cert.ValidBefore) / 2
	if h.now().Unix() < int64(half) {
		keys, err := h.ca.Keys(ctx, access.DefaultGroup)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.Purpose != sshca.ForHosts || k.State != sshca.Active {
				continue
			}
			active, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.PublicKey))
			if err != nil {
				return err
			}
			if bytes.Equal(active.Marshal(), cert.SignatureKey.Marshal()) {
				return nil
			}
		}
	}
	if err := h.renew(ctx); err != nil {
		return err
	}
	h.log.Info("the bastion has a new host certificate", "serial", h.have.Load().cert.Serial)
	return nil
}

// Run looks after the certificate until ctx ends. When it cannot be renewed
// the present one stays, and it is tried again.
func (h *hostKey) Run(ctx context.Context) error {
	t := time.NewTicker(hostKeyCheck)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := h.check(ctx); err != nil && ctx.Err() == nil {
			h.log.Error("renew the bastion's host certificate", telemetry.KeyErr, err)
		}
	}
}
