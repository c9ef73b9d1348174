package upstream

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	// clockSlack is how far the clock of an authority may be ahead.
	clockSlack = 5 * time.Minute
	// ageless is how long an answer counts that does not say when the next is due.
	ageless = 24 * time.Hour
)

var (
	oidNoRevAvail = asn1.ObjectIdentifier{2, 5, 29, 56}               // RFC 9608
	oidFeature    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24} // RFC 7633
	oidIDP        = asn1.ObjectIdentifier{2, 5, 29, 28}               // RFC 5280 §5.2.5
)

// statusRequest is the TLS extension that a feature extension promises.
const statusRequest = 5

func hasExtension(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return true
		}
	}
	return false
}

// mustStaple reports whether the certificate says that its server brings a
// current answer along (RFC 7633).
func mustStaple(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		var features []int
		if e.Id.Equal(oidFeature) {
			if rest, err := asn1.Unmarshal(e.Value, &features); err == nil && len(rest) == 0 {
				return slices.Contains(features, statusRequest)
			}
		}
	}
	return false
}

// readOCSP reads an answer about cert. Errors are public.
func readOCSP(der []byte, cert, issuer *x509.Certificate, now time.Time) (status, time.Time, error) {
	a, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		if _, ok := errors.AsType[ocsp.ResponseError](err); ok {
			return status{}, time.Time{}, errors.New("does not know the certificate")
		}
		return status{}, time.Time{}, errors.New("sends an answer that cannot be believed")
	}
	if err := maySign(a.Certificate, issuer, now); err != nil {
		return status{}, time.Time{}, err
	}
	next := a.NextUpdate
	if next.IsZero() {
		next = a.ThisUpdate.Add(ageless)
	}
	if a.ThisUpdate.After(now.Add(clockSlack)) || !now.Before(next) {
		return status{}, time.Time{}, errors.New("sends an answer that is out of date")
	}
	switch a.Status {
	case ocsp.Good:
		return status{good: true}, until(now, next), nil
	case ocsp.Revoked:
		return status{revoked: &RevokedError{At: a.RevokedAt}}, until(now, next), nil
	}
	return status{}, time.Time{}, errors.New("does not know the certificate")
}

// maySign checks who signed an answer: the issuer itself, or somebody it has
// appointed for that (RFC 6960 §4.2.2.2). The library has checked signatures.
func maySign(by, issuer *x509.Certificate, now time.Time) error {
	switch {
	case by == nil, bytes.Equal(by.Raw, issuer.Raw):
		return nil
	case !slices.Contains(by.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning), !bytes.Equal(by.RawIssuer, issuer.RawSubject):
		return errors.New("sends an answer signed by somebody who may not")
	case now.Before(by.NotBefore), now.After(by.NotAfter):
		return errors.New("sends an answer signed with a certificate that is out of date")
	}
	return nil
}

// askOCSP asks one service. Errors are public.
func askOCSP(ctx context.Context, to string, cert, issuer *x509.Certificate, now func() time.Time, get fetcher) (status, time.Time, error) {
	// SHA-1 names the issuer, as every service understands; it protects nothing.
	ask, err := ocsp.CreateRequest(cert, issuer, nil)
	if err != nil {
		return status{}, time.Time{}, errors.New("cannot be asked about this certificate")
	}
	b, err := get(ctx, to, ask, maxAnswer)
	if err != nil {
		return status{}, time.Time{}, err
	}
	return readOCSP(b, cert, issuer, now())
}

// askList looks the certificate up in a revocation list. Errors are public.
func askList(ctx context.Context, to string, cert, issuer *x509.Certificate, now func() time.Time, get fetcher) (status, time.Time, error) {
	b, err := get(ctx, to, nil, maxList)
	if err != nil {
		return status{}, time.Time{}, err
	}
	return readList(b, cert, issuer, now())
}

// readList looks a certificate up in a list. Errors are public.
func readList(der []byte, cert, issuer *x509.Certificate, now time.Time) (status, time.Time, error) {
	none := func(text string) (status, time.Time, error) { return status{}, time.Time{}, errors.New(text) }
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return none("sends a list that cannot be read")
	}
	if !bytes.Equal(l.RawIssuer, issuer.RawSubject) || l.CheckSignatureFrom(issuer) != nil {
		return none("sends a list of another authority")
	}
	if l.ThisUpdate.After(now.Add(clockSlack)) || l.NextUpdate.IsZero() || !now.Before(l.NextUpdate) {
		return none("sends a list that is out of date")
	}
	for _, e := range l.Extensions {
		if !e.Critical {
			continue
		}
		if !e.Id.Equal(oidIDP) || !covers(e.Value, cert) {
			return none("sends a list of another kind")
		}
	}
	for _, e := range l.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return none("sends a list of another kind") // of several issuers
			}
		}
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return status{revoked: &RevokedError{At: e.RevocationTime}}, until(now, l.NextUpdate), nil
		}
	}
	return status{good: true}, until(now, l.NextUpdate), nil
}

// covers reports whether a list with this issuing distribution point is a
// whole one for cert: all reasons, of one issuer (RFC 5280 §5.2.5).
func covers(value []byte, cert *x509.Certificate) bool {
	var p struct {
		Point     asn1.RawValue  `asn1:"optional,tag:0"`
		OnlyUsers bool           `asn1:"optional,tag:1"`
		OnlyCAs   bool           `asn1:"optional,tag:2"`
		Reasons   asn1.BitString `asn1:"optional,tag:3"`
		Indirect  bool           `asn1:"optional,tag:4"`
		OnlyAttrs bool           `asn1:"optional,tag:5"`
	}
	rest, err := asn1.Unmarshal(value, &p)
	if err != nil || len(rest) > 0 {
		return false
	}
	return p.Reasons.BitLength == 0 && !p.Indirect && !p.OnlyAttrs && (!p.OnlyUsers || !cert.IsCA) && (!p.OnlyCAs || cert.IsCA)
}
