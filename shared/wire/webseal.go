package wire

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/json"
	"fmt"
)

// A credential travels sealed (RFC 9180, base mode) from the moment core has
// opened it to the webproxy that uses it: DHKEM(X25519, HKDF-SHA256),
// HKDF-SHA256, AES-256-GCM, with a key made for one ask and a context that
// names the ask. What lies in between in core, JSON and buffers of the tunnel,
// never has it.

// sealContext binds a sealed credential to its ask.
func (a *WebCredentialAsk) sealContext() []byte {
	return []byte("caponier web credential\x00" + a.Session + "\x00" + a.Injection + "\x00" + a.URL)
}

// WebCredentialKey opens the answer to one WebCredentialAsk.
type WebCredentialKey struct{ key hpke.PrivateKey }

// NewWebCredentialKey makes a key and puts its public half into a.
func NewWebCredentialKey(a *WebCredentialAsk) (*WebCredentialKey, error) {
	k, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make credential key: %w", err)
	}
	a.SealTo = k.PublicKey().Bytes()
	return &WebCredentialKey{k}, nil
}

// Open returns what was sealed for a.
func (k *WebCredentialKey) Open(a WebCredentialAsk, sealed []byte) (WebCredential, error) {
	var c WebCredential
	plain, err := hpke.Open(k.key, hpke.HKDFSHA256(), hpke.AES256GCM(), a.sealContext(), sealed)
	if err != nil {
		return c, fmt.Errorf("open credential: %w", err)
	}
	defer clear(plain)
	if err := json.Unmarshal(plain, &c); err != nil {
		// The error of the decoder may quote what it read.
		return WebCredential{}, fmt.Errorf("open credential: not understood")
	}
	return c, nil
}

// SealWebCredential seals a WebCredential, given as its JSON, for who asked.
func SealWebCredential(a WebCredentialAsk, plain []byte) ([]byte, error) {
	to, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(a.SealTo)
	if err != nil {
		return nil, fmt.Errorf("seal credential: %w", err)
	}
	sealed, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), a.sealContext(), plain)
	if err != nil {
		return nil, fmt.Errorf("seal credential: %w", err)
	}
	return sealed, nil
}
