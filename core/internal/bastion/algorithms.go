package bastion

import (
	"golang.org/x/crypto/ssh"

	"caponier/core/internal/target"
)

// clientConfig is what the bastion offers to a target (FEATURES C32).
func clientConfig(t *target.Target, account string, trust *hostTrust) (*ssh.ClientConfig, error) {
	algs := ssh.SupportedAlgorithms()
	return &ssh.ClientConfig{
		Config:            ssh.Config{KeyExchanges: algs.KeyExchanges, Ciphers: algs.Ciphers, MACs: algs.MACs},
		User:              account,
		HostKeyAlgorithms: trust.order(algs.HostKeys),
		HostKeyCallback:   trust.callback,
		ClientVersion:     "SSH-2.0-Caponier",
	}, nil
}
