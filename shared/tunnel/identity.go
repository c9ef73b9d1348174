package tunnel

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"caponier/shared/wire"
)

// ErrIdentity is under every failed proof of identity.
var ErrIdentity = errors.New("identity not accepted")

const (
	// maxChain bounds the certificates in a proof.
	maxChain = 4
	// maxChainText bounds their encoding in bytes.
	maxChainText = 24 << 10
)

// PeerName takes a leaf certificate's URI name "caponier:<kind>:<id>" apart.
// kind is "core" or a wire.NodeKind.
func PeerName(leaf *x509.Certificate) (kind, id string, ok bool) {
	for _, u := range leaf.URIs {
		if u.Scheme != "caponier" {
			continue
		}
		if kind, id, ok = strings.Cut(u.Opaque, ":"); ok && kind != "" && id != "" {
			return kind, id, true
		}
	}
	return "", "", false
}

// verifyCore accepts the chain of a core.
func (id Identity) verifyCore(chain []*x509.Certificate) (*x509.Certificate, error) {
	leaf, err := verifyChain(chain, id.Roots, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	if kind, _, _ := PeerName(leaf); kind != "core" {
		return nil, fmt.Errorf("%w: the certificate is not that of a core", ErrIdentity)
	}
	return leaf, id.ask(leaf)
}

// verifyClient accepts the chain of who dialled.
func (id Identity) verifyClient(chain []*x509.Certificate) (*x509.Certificate, error) {
	leaf, err := verifyChain(chain, id.Roots, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	return leaf, id.ask(leaf)
}

func (id Identity) ask(leaf *x509.Certificate) error {
	if id.VerifyPeer == nil {
		return nil
	}
	return id.VerifyPeer(leaf)
}

func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) (*x509.Certificate, error) {
	if len(chain) == 0 || roots == nil {
		return nil, fmt.Errorf("%w: no certificate or no roots", ErrIdentity)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	return chain[0], nil
}

// ---- the proof that is bound to the outer TLS connection

// The two directions sign different texts, so that neither proof can be
// turned round.
const (
	proofOfClient = "caponier tunnel 1 client"
	proofOfCore   = "caponier tunnel 1 core"
)

// proofText is what a proof signs: who speaks, the exporter value of the TLS
// connection (RFC 9266) and the websocket key as nonce.
func proofText(role string, cs *tls.ConnectionState, nonce string) ([]byte, error) {
	if cs == nil || cs.Version < tls.VersionTLS13 {
		return nil, fmt.Errorf("%w: no TLS 1.3 to bind to", ErrIdentity)
	}
	exporter, err := cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil, fmt.Errorf("export keying material: %w", err)
	}
	text := append([]byte(role), 0)
	text = append(text, exporter...)
	return append(text, nonce...), nil
}

// prove signs text and returns it with the chain, both as header values.
func (id Identity) prove(text []byte) (signature string, err error) {
	key, ok := id.Certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return "", fmt.Errorf("%w: no key to sign with", ErrIdentity)
	}
	sig, err := key.Sign(rand.Reader, text, crypto.Hash(0))
	if err != nil {
		return "", fmt.Errorf("sign proof: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}

// proves checks a signature made by prove.
func proves(leaf *x509.Certificate, text []byte, signature string) bool {
	sig, err := base64.StdEncoding.DecodeString(signature)
	return err == nil && leaf.CheckSignature(x509.PureEd25519, text, sig) == nil
}

// chainText encodes the certificates as a header value, without the CA, which
// the other side has.
func (id Identity) chainText() string {
	var b strings.Builder
	for i, der := range id.Certificate.Certificate {
		if c, err := x509.ParseCertificate(der); i > 0 && (err != nil || string(c.RawIssuer) == string(c.RawSubject)) {
			continue
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(base64.StdEncoding.EncodeToString(der))
	}
	return b.String()
}

// parseChain decodes chainText's result; empty text is an empty chain.
func parseChain(text string) ([]*x509.Certificate, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxChainText {
		return nil, fmt.Errorf("%w: certificates of %d bytes", ErrIdentity, len(text))
	}
	var chain []*x509.Certificate
	for part := range strings.SplitSeq(text, ",") {
		if len(chain) == maxChain {
			return nil, fmt.Errorf("%w: more than %d certificates", ErrIdentity, maxChain)
		}
		der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%w: certificate encoding", ErrIdentity)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// ---- TLS between the ends themselves: inside a websocket, and under QUIC

// alpn is the protocol name of tunnels.
const alpn = "caponier/1"

// clientTLS is the configuration of the dialling end. coreID, if set, is the
// only core accepted.
func (id Identity) clientTLS(coreID string) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{alpn},
		Certificates:                []tls.Certificate{id.Certificate},
		DynamicRecordSizingDisabled: true,
		// The name in the certificate is a node's, not a host's: checked below.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf, err := id.verifyCore(cs.PeerCertificates)
			if err != nil {
				return err
			}
			return wantCore(leaf, coreID)
		},
	}
}

// serverTLS is the configuration of the accepting end.
func (id Identity) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{alpn},
		Certificates:                []tls.Certificate{id.Certificate},
		DynamicRecordSizingDisabled: true,
		SessionTicketsDisabled:      true, // each handshake proves identity anew
		ClientAuth:                  tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := id.verifyClient(cs.PeerCertificates)
			return err
		},
	}
}

func wantCore(leaf *x509.Certificate, coreID string) error {
	if _, id, _ := PeerName(leaf); coreID != "" && id != coreID {
		return fmt.Errorf("%w: reached core %.64q, wanted %.64q", ErrIdentity, id, coreID)
	}
	return nil
}

// pinnedTLS trusts a core whose chain has a CA with the pinned key.
func pinnedTLS(pin [32]byte) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{alpnPinned},
		InsecureSkipVerify: true, // checked below, against the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots := x509.NewCertPool()
			found := false
			for _, c := range cs.PeerCertificates {
				if c.IsCA && sha256.Sum256(c.RawSubjectPublicKeyInfo) == pin {
					roots.AddCert(c)
					found = true
				}
			}
			if !found {
				return fmt.Errorf("%w: core's CA is not the pinned one", ErrIdentity)
			}
			leaf, err := verifyChain(cs.PeerCertificates, roots, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if kind, _, _ := PeerName(leaf); kind != "core" {
				return fmt.Errorf("%w: the certificate is not that of a core", ErrIdentity)
			}
			return nil
		},
	}
}

// alpnPinned is the protocol name of pinned pipes: a tunnel cannot be taken
// for one.
const alpnPinned = "caponier-pinned/1"

// public is what may be told to the peer about why its identity failed.
func public(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	return wire.Errorf(wire.CodeUnauthorized, "%s", wire.CodeUnauthorized.Text())
}
