package webaccess

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// tlsTimeout bounds the handshake of an explanation.
const tlsTimeout = 10 * time.Second

// ProbeNodes says whether a carrier and a webproxy would take a session of a
// target now.
func (s *Service) ProbeNodes(_ context.Context, t *target.Target) []fleet.DialStage {
	var out []fleet.DialStage
	for _, kind := range []wire.NodeKind{wire.Carrier, wire.WebProxy} {
		began := time.Now()
		st := fleet.DialStage{Name: string(kind)}
		good, why := choose(s.candidates(kind), demandOf(kind, t))
		if why != nil {
			st.Text, st.Fix = why.Public, "start a "+string(kind)+", or see under Fleet what ails the ones there are"
			if kind == wire.Carrier && t.Web != nil && t.Web.Browser.Engine == wire.Chromium {
				st.Fix = "give a carrier Chromium (chromium_image in carrier.toml), or set the target's browser to Firefox"
			}
			if why.Code == "no_room" {
				st.Fix = "close sessions, or add a " + string(kind)
			}
		} else {
			c := good[0]
			st.OK, st.Text = true, fmt.Sprintf("%s would take the session: %d of %d in use", c.Name, c.Web.Live+c.Since, c.Web.Max)
			if kind == wire.Carrier {
				e, _ := c.Web.Engine(demandOf(kind, t).Engine)
				st.Text += fmt.Sprintf(", %s, %d browsers waiting", browserName(e.Name), e.Warm)
			}
		}
		st.MS = ms(began)
		out = append(out, st)
	}
	return out
}

// Problem says why no session of any target could be opened now, as far as
// nodes are concerned; empty: some can.
func (s *Service) Problem() string {
	for _, kind := range []wire.NodeKind{wire.Carrier, wire.WebProxy} {
		all := s.candidates(kind)
		for i := range all {
			all[i].Labels = nil // what labels rule out is another target's
		}
		if _, why := choose(all, demand{Kind: kind}); why != nil {
			return why.Public
		}
	}
	return ""
}

func ms(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

// ProbeTLS makes a TLS handshake with a target through its site, believing
// what sessions believe, and sends nothing.
func (s *Service) ProbeTLS(ctx context.Context, t *target.Target) []fleet.DialStage {
	began := time.Now()
	st := fleet.DialStage{Name: "tls"}
	t, _, err := s.anchored(ctx, t)
	if err != nil {
		s.cfg.Log.Error("explain", "err", err)
		st.Text, st.Fix = "what the target's access group believes could not be read", "see core's log"
		return []fleet.DialStage{st}
	}
	u := t.Web.URL()
	if u == nil || u.Scheme != "https" {
		st.OK, st.Text = true, "the start URL is http: nothing is encrypted, and nothing is injected but where the recipe says insecure"
		return []fleet.DialStage{st}
	}
	ctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	cfg, err := tlsConfig(&t.Web.Policy.TLS, u.Hostname())
	if err == nil {
		st.Text, err = s.handshake(ctx, t, cfg)
	}
	if st.MS = ms(began); err != nil {
		st.Text, st.Fix = tlsProblem(err)
		return []fleet.DialStage{st}
	}
	st.OK = true
	if t.Web.Policy.TLS.Unchecked {
		st.Text += "; its certificate is not checked, so nothing is injected but where the recipe says insecure"
	}
	return []fleet.DialStage{st}
}

// tlsConfig is what sessions of a target believe and offer.
func tlsConfig(t *webrule.TLS, host string) (*tls.Config, error) {
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.Unchecked}
	if t.ServerName != "" {
		cfg.ServerName = t.ServerName
	}
	if t.Anchors != "" {
		anchors, err := webrule.ParseAnchors(t.Anchors)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !t.Only {
			if pool, err = x509.SystemCertPool(); err != nil {
				return nil, fmt.Errorf("read the system's certificates: %w", err)
			}
		}
		for _, a := range anchors {
			pool.AddCert(a)
		}
		cfg.RootCAs = pool
	}
	versions := map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
	if v := versions[t.Min]; v != 0 {
		cfg.MinVersion = v
	}
	cfg.MaxVersion = versions[t.Max]
	return cfg, nil
}

func (s *Service) handshake(ctx context.Context, t *target.Target, cfg *tls.Config) (string, error) {
	c, _, err := s.cfg.Fleet.Dial(ctx, fleet.DialRequest{Site: t.Site, Address: t.Address(), Class: wire.Interactive})
	if err != nil {
		return "", err
	}
	defer c.Close()
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return "", err
	}
	cs := tc.ConnectionState()
	leaf := cs.PeerCertificates[0]
	names := strings.Join(leaf.DNSNames, ", ")
	if names == "" {
		names = leaf.Subject.CommonName
	}
	return fmt.Sprintf("%s, certificate for %s by %s, valid until %s", tls.VersionName(cs.Version), clip(names, 200),
		clip(leaf.Issuer.String(), 200), leaf.NotAfter.UTC().Format(time.RFC3339)), nil
}

// tlsProblem words a failed handshake and what to do about it.
func tlsProblem(err error) (text, fix string) {
	if we, ok := errors.AsType[*wire.Error](err); ok {
		return sentence(we.Public), "see the steps before"
	}
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		if unknown, ok := errors.AsType[x509.UnknownAuthorityError](bad); ok {
			issuer := ""
			if unknown.Cert != nil {
				issuer = " (" + clip(unknown.Cert.Issuer.String(), 200) + ")"
			}
			return "the target's certificate is of an authority that is not believed" + issuer, "add the authority's certificate to the target's trust (policy.tls.anchors)"
		}
		if name, ok := errors.AsType[x509.HostnameError](bad); ok {
			return "the target's certificate is for " + clip(strings.Join(name.Certificate.DNSNames, ", "), 200) + ", not for " + name.Host,
				"correct the start URL, or set the name it must carry (policy.tls.server_name)"
		}
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](bad); ok && invalid.Reason == x509.Expired {
			return "the target's certificate has ended or is not valid yet", "renew the target's certificate; check the clocks"
		}
		return "the target's certificate is not believed: " + clip(bad.Err.Error(), 200), "correct the target's certificate or the target's trust"
	}
	return "the TLS handshake failed: " + clip(err.Error(), 200), "check that the port speaks TLS and which versions (policy.tls.min)"
}
