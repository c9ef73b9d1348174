package signin

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"time"
)

// trust is an authority ready to judge certificates.
type trust struct {
	anchor  Anchor
	version int64
	roots   *x509.CertPool
	others  *x509.CertPool
	issuers []*x509.Certificate // roots and intermediates of the bundle
	crls    []*x509.RevocationList
	revoked map[string]map[string]bool // raw issuer → serial
	listed  map[string]map[string]bool // authority (authorityName) of the bundle → serial
	trusted map[string]bool            // authorityName of the roots
	pattern *regexp.Regexp
}

func newTrust(a Anchor) (trust, error) {
	roots, others, err := splitBundle(a.Bundle)
	if err != nil {
		return trust{}, fmt.Errorf("anchor %s: %w", a.ID, err)
	}
	t := trust{anchor: a, version: a.Version, roots: x509.NewCertPool(), others: x509.NewCertPool(), revoked: map[string]map[string]bool{}}
	for _, c := range roots {
		t.roots.AddCert(c)
	}
	for _, c := range others {
		t.others.AddCert(c)
	}
	t.issuers = slices.Concat(roots, others)
	if a.Config.Pattern != "" {
		// The whole value, so that a pattern without anchors is not a search.
		if t.pattern, err = regexp.Compile(`^(?:` + a.Config.Pattern + `)$`); err != nil {
			return trust{}, fmt.Errorf("anchor %s: %w", a.ID, err)
		}
	}
	if t.crls, err = parseCRLs([]byte(a.CRL)); err != nil {
		return trust{}, fmt.Errorf("anchor %s: %w", a.ID, err)
	}
	for _, l := range t.crls {
		serials := t.revoked[string(l.RawIssuer)]
		if serials == nil {
			serials = map[string]bool{}
			t.revoked[string(l.RawIssuer)] = serials
		}
		for _, e := range l.RevokedCertificateEntries {
			serials[serialName(e.SerialNumber)] = true
		}
	}
	t.listed, t.trusted = map[string]map[string]bool{}, map[string]bool{}
	for _, c := range roots {
		t.trusted[authorityName(c)] = true
	}
	for _, c := range t.issuers {
		for _, l := range t.crls {
			if bytes.Equal(l.RawIssuer, c.RawSubject) && l.CheckSignatureFrom(c) == nil {
				t.listed[authorityName(c)] = t.revoked[string(l.RawIssuer)]
			}
		}
	}
	return t, nil
}

// Why a certificate is refused, for the person and the audit log.
var (
	errForeign   = errors.New("it is not from an authority that is trusted here")
	errExpired   = errors.New("it has expired, or is not valid yet")
	errUsage     = errors.New("it is not meant for signing in (extended key usage clientAuth)")
	errRevoked   = errors.New("it was revoked")
	errNoCRL     = errors.New("there is no current revocation list of its authority")
	errLongPath  = errors.New("too many certificates lie between it and its authority")
	errNobody    = errors.New("it names nobody who has an account here")
	errAmbiguous = errors.New("it names several people")
)

// judge checks the chain a client sent, leaf first, against the authority
// (RFC 5280 §6): signatures, time, usage, revocation. It returns the names of
// the certificates it is accepted by.
func (t trust) judge(chain []*x509.Certificate, now time.Time) (path string, err error) {
	leaf := chain[0]
	intermediates := t.others.Clone()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	verified, err := leaf.Verify(x509.VerifyOptions{Roots: t.roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
		switch {
		case ok && invalid.Reason == x509.Expired:
			return "", errExpired
		case ok && invalid.Reason == x509.IncompatibleUsage:
			return "", errUsage
		}
		return "", errForeign
	}
	// One chain that stands is enough; of several the first reason is told.
	var first error
	for _, path := range verified {
		names := pathNames(path)
		err := t.revocation(path, now)
		if err == nil && len(names) > maxPath {
			err = errLongPath
		}
		if err == nil {
			return names, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", first
}

// revocation checks every certificate of a verified path but the root.
func (t trust) revocation(path []*x509.Certificate, now time.Time) error {
	for i, c := range path[:len(path)-1] {
		issuer := path[i+1]
		current := false
		stale := false
		for _, l := range t.crls {
			if !bytes.Equal(l.RawIssuer, issuer.RawSubject) || l.CheckSignatureFrom(issuer) != nil {
				continue
			}
			if t.revoked[string(l.RawIssuer)][serialName(c.SerialNumber)] {
				return errRevoked
			}
			if !l.NextUpdate.IsZero() && now.After(l.NextUpdate.Add(clockSkew)) {
				stale = true
				continue
			}
			current = true
		}
		if !current && (stale || t.anchor.Config.RequireCRL) {
			return errNoCRL
		}
	}
	return nil
}

// fields read the values of a certificate that can name a user.
var fields = map[string]func(*x509.Certificate) []string{
	"subject_cn":     func(c *x509.Certificate) []string { return one(c.Subject.CommonName) },
	"subject_serial": func(c *x509.Certificate) []string { return one(c.Subject.SerialNumber) },
	"subject_email": func(c *x509.Certificate) []string {
		return attribute(c, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1})
	},
	"san_email": func(c *x509.Certificate) []string { return c.EmailAddresses },
	"san_dns":   func(c *x509.Certificate) []string { return c.DNSNames },
	"san_upn":   upns,
	"san_uri": func(c *x509.Certificate) []string {
		var out []string
		for _, u := range c.URIs {
			out = append(out, u.String())
		}
		return out
	},
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func attribute(c *x509.Certificate, oid asn1.ObjectIdentifier) []string {
	var out []string
	for _, a := range c.Subject.Names {
		if s, ok := a.Value.(string); ok && a.Type.Equal(oid) {
			out = append(out, s)
		}
	}
	return out
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	// oidUPN is the otherName by which Microsoft's directory names people.
	oidUPN = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}
)

// maxNames bounds the names of a certificate that are looked at.
const maxNames = 32

// upns reads user principal names (RFC 5280 §4.2.1.6, otherName).
func upns(c *x509.Certificate) []string {
	var out []string
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return nil
		}
		for _, n := range names[:min(len(names), maxNames)] {
			if n.Class != asn1.ClassContextSpecific || n.Tag != 0 {
				continue
			}
			var oid asn1.ObjectIdentifier
			rest, err := asn1.Unmarshal(n.Bytes, &oid)
			if err != nil || !oid.Equal(oidUPN) {
				continue
			}
			var wrapped asn1.RawValue // [0] EXPLICIT
			if _, err := asn1.Unmarshal(rest, &wrapped); err != nil || wrapped.Class != asn1.ClassContextSpecific || wrapped.Tag != 0 {
				continue
			}
			var value string
			if _, err := asn1.UnmarshalWithParams(wrapped.Bytes, &value, "utf8"); err == nil {
				out = append(out, value)
			}
		}
	}
	return out
}

// names are what to look up for a certificate, by the authority's rule.
func (t trust) names(c *x509.Certificate) []string {
	var out []string
	values := fields[t.anchor.Config.Field](c)
	for _, v := range values[:min(len(values), maxNames)] {
		name := v
		if t.pattern != nil {
			m := t.pattern.FindStringSubmatch(v)
			if m == nil {
				continue
			}
			name = m[min(1, len(m)-1)]
		}
		name = lowerASCII(name)
		if name != "" && len(name) <= 254 && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// Bounds of revocation lists.
const (
	maxCRL  = 16 << 20
	maxCRLs = 16
)

// parseCRLs reads revocation lists in PEM, or one in DER.
func parseCRLs(data []byte) ([]*x509.RevocationList, error) {
	if len(data) > maxCRL {
		return nil, errors.New("is larger than 16 MiB")
	}
	var list []*x509.RevocationList
	der := !bytes.Contains(data, []byte("-----BEGIN"))
	if der && len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	for rest := data; ; {
		raw := rest
		if !der {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "X509 CRL" {
				return nil, errors.New("must hold revocation lists only")
			}
			raw = block.Bytes
		}
		l, err := x509.ParseRevocationList(raw)
		if err != nil {
			return nil, errors.New("is not a revocation list")
		}
		if list = append(list, l); len(list) > maxCRLs {
			return nil, errors.New("has too many lists")
		}
		if der {
			break
		}
	}
	return list, nil
}

// mergeCRL adds lists to those of an authority. Each must be signed by a
// certificate of its bundle; a newer one replaces that of the same issuer, an
// older one is refused: it would bring revoked certificates back.
func mergeCRL(a Anchor, data []byte) (string, error) {
	roots, others, err := splitBundle(a.Bundle)
	if err != nil {
		return "", err
	}
	have, err := parseCRLs([]byte(a.CRL))
	if err != nil {
		return "", err
	}
	more, err := parseCRLs(data)
	if err != nil {
		return "", err
	}
	if len(more) == 0 {
		return "", errors.New("has no revocation list")
	}
	for _, l := range more {
		if !slices.ContainsFunc(slices.Concat(roots, others), func(c *x509.Certificate) bool { return l.CheckSignatureFrom(c) == nil }) {
			return "", errors.New("is not signed by a certificate of the bundle")
		}
		at := slices.IndexFunc(have, func(h *x509.RevocationList) bool { return bytes.Equal(h.RawIssuer, l.RawIssuer) })
		switch {
		case at < 0:
			have = append(have, l)
		case older(l, have[at]):
			return "", errors.New("is older than the list there is")
		default:
			have[at] = l
		}
	}
	if len(have) > maxCRLs {
		return "", errors.New("is one list too many")
	}
	var out bytes.Buffer
	for _, l := range have {
		if err := pem.Encode(&out, &pem.Block{Type: "X509 CRL", Bytes: l.Raw}); err != nil {
			return "", err
		}
	}
	return out.String(), nil
}

func older(l, than *x509.RevocationList) bool {
	zero := new(big.Int)
	n, m := l.Number, than.Number
	if n == nil {
		n = zero
	}
	if m == nil {
		m = zero
	}
	return n.Cmp(m) < 0 || n.Cmp(m) == 0 && l.ThisUpdate.Before(than.ThisUpdate)
}
