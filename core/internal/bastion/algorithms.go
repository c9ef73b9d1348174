package bastion

import (
	"context"
	"fmt"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/target"
)

// clientConfig is what the bastion offers to a target: safe algorithms, older
// ones only where a rule says so (FEATURES C32).
func (s *Server) clientConfig(ctx context.Context, t *target.Target, account string, trust *hostTrust) (*ssh.ClientConfig, error) {
	algs, err := s.cfg.CA.Algorithms(ctx, t.Site, t.Host, t.SSHAlgorithms)
	if err != nil {
		return nil, fmt.Errorf("algorithms for %s: %w", t.ID, err)
	}
	c := &ssh.ClientConfig{User: account, HostKeyCallback: trust.callback, ClientVersion: "SSH-2.0-Caponier"}
	algs.Apply(c)
	c.HostKeyAlgorithms = trust.order(c.HostKeyAlgorithms)
	return c, nil
}
