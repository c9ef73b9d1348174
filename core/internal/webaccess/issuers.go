package webaccess

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/shared/wire"
)

// Reasons on the revocation list (RFC 5280 §5.3.1).
const (
	reasonSuperseded = 4 // the webproxy has a newer one
	reasonWithdrawn  = 9 // the node was revoked
)

const (
	// listLife is how long a revocation list is valid; listAge how long one is
	// handed out before another is made.
	listLife = 24 * time.Hour
	listAge  = time.Minute
)

const (
	insertIssuerSQL = `insert into web_issuers (serial, authority_id, node_id, names, not_after, issued_at, revoked_at, reason) values ($1, $2, $3, $4, $5, $6, 0, 0)`
	revokeIssuerSQL = `update web_issuers set revoked_at = $2, reason = $3 where node_id = $1 and revoked_at = 0 and serial <> $4`
	forgetIssuerSQL = `delete from web_issuers where not_after < $1`
	livingNodesSQL  = `select distinct node_id from web_issuers where authority_id = $1 and revoked_at = 0`
	revokedSQL      = `select serial, revoked_at, reason from web_issuers where authority_id = $1 and revoked_at <> 0 and not_after > $2 order by serial`
	authoritySQL    = `select certificate, sealed_key from web_authorities where id = $1`
)

// Paths below which certificate and revocation list of the roots are public:
// clients must be able to read them without TLS (RFC 5280 §8).
const (
	PublicPath  = "/pki/web/"
	currentName = "ca.pem"
)

// revocations is a signed list as it is handed out.
type revocations struct {
	der []byte
	at  time.Time
}

// Public serves the roots and their revocation lists, to anybody.
func (s *Service) Public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PublicPath+"{file}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("file")
		if name == currentName {
			w.Header().Set("Content-Type", "application/x-pem-file")
			_, _ = w.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.authority.rootDER()})) // the client may have left
			return
		}
		id, kind, _ := strings.Cut(name, ".")
		var der []byte
		var err error
		switch kind {
		case "crl":
			w.Header().Set("Content-Type", "application/pkix-crl")
			der, err = s.authority.list(r.Context(), id)
		case "crt":
			w.Header().Set("Content-Type", "application/pkix-cert")
			var root *x509.Certificate
			if root, _, err = s.authority.root(r.Context(), id); err == nil {
				der = root.Raw
			}
		default:
			err = db.ErrNotFound
		}
		switch {
		case errors.Is(err, db.ErrNotFound):
			http.NotFound(w, r)
		case err != nil:
			s.cfg.Log.Error("revocation list of web sessions", "err", err)
			http.Error(w, "internal error", http.StatusInternalServerError)
		default:
			w.Header().Set("Cache-Control", "public, max-age=60")
			_, _ = w.Write(der) // the client may have left
		}
	})
	return mux
}

// root reads a root that may have been succeeded since.
func (a *authority) root(ctx context.Context, id string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	a.mu.Lock()
	current, cert, key := a.id, a.cert, a.key
	a.mu.Unlock()
	if id == current {
		return cert, key, nil
	}
	var der, sealed []byte
	if err := db.Classify(a.c.DB.QueryRowContext(ctx, authoritySQL, id).Scan(&der, &sealed)); err != nil {
		return nil, nil, fmt.Errorf("read root %s: %w", clip(id, 40), err)
	}
	return a.open(id, der, sealed)
}

// list returns a root's revocation list (RFC 5280 §5): certificates of
// webproxies that were revoked or that have a newer one.
func (a *authority) list(ctx context.Context, id string) ([]byte, error) {
	a.listing.Lock() // one is made at a time
	defer a.listing.Unlock()
	now := a.c.Now()
	if have, ok := a.lists[id]; ok && now.Sub(have.at) < listAge && !now.Before(have.at) {
		return have.der, nil
	}
	cert, key, err := a.root(ctx, id)
	if err != nil {
		return nil, err
	}
	var entries []x509.RevocationListEntry
	err = a.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := a.withdraw(ctx, tx, id, now); err != nil {
			return err
		}
		entries, err = db.Collect(ctx, tx, scanRevoked, revokedSQL, id, now.Unix())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list revoked certificates: %w", err)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		RevokedCertificateEntries: entries, Number: big.NewInt(now.UnixMicro()), ThisUpdate: now.Add(-clockSlack), NextUpdate: now.Add(listLife),
	}, cert, key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	a.lists[id] = revocations{der, now}
	return der, nil
}

func scanRevoked(r db.Scanner) (e x509.RevocationListEntry, err error) {
	var serial string
	var at int64
	if err := r.Scan(&serial, &at, &e.ReasonCode); err != nil {
		return e, db.Classify(err)
	}
	n, ok := new(big.Int).SetString(serial, 16)
	if !ok {
		return e, fmt.Errorf("serial %q is not hexadecimal", serial)
	}
	e.SerialNumber, e.RevocationTime = n, time.Unix(at, 0).UTC()
	return e, nil
}

// withdraw notes as revoked what belongs to nodes that are.
func (a *authority) withdraw(ctx context.Context, tx *db.Tx, id string, now time.Time) error {
	living, err := db.Collect(ctx, tx, func(r db.Scanner) (s string, err error) { return s, db.Classify(r.Scan(&s)) }, livingNodesSQL, id)
	if err != nil || len(living) == 0 {
		return err
	}
	nodes, err := a.c.Fleet.Nodes(ctx, tx, wire.WebProxy)
	if err != nil {
		return err
	}
	for _, node := range living {
		if slices.ContainsFunc(nodes, func(n fleet.Node) bool { return n.ID == node }) {
			continue
		}
		if _, err := tx.ExecContext(ctx, revokeIssuerSQL, node, now.Unix(), reasonWithdrawn, ""); err != nil {
			return err
		}
	}
	return nil
}

// issued notes a new certificate of a webproxy; the ones before are superseded.
func (a *authority) issued(ctx context.Context, tx *db.Tx, id string, p fleet.Peer, cert *x509.Certificate, names []string) error {
	serial, now := cert.SerialNumber.Text(16), a.c.Now()
	if _, err := tx.ExecContext(ctx, forgetIssuerSQL, now.Add(-listLife).Unix()); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, insertIssuerSQL, serial, id, p.ID, strings.Join(names, ","), cert.NotAfter.Unix(), now.Unix()); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, revokeIssuerSQL, p.ID, now.Unix(), reasonSuperseded, serial); err != nil {
		return err
	}
	return a.c.Audit.Append(ctx, tx, audit.Event{
		Type: audit.WebIssuerIssued, Outcome: audit.OK, Actor: edgeActor(p), Object: audit.Object{Kind: "edge", ID: p.ID, Name: p.Name},
		Fields: map[string]string{"serial": serial, "not_after": cert.NotAfter.UTC().Format(time.RFC3339), "names": clip(strings.Join(names, ","), 500)},
	})
}

// forgetLists has the next lists made anew.
func (a *authority) forgetLists() {
	a.listing.Lock()
	defer a.listing.Unlock()
	clear(a.lists)
}

// generation names what issuing certificates are like now: their root and what
// they are constrained to. A webproxy that has another asks for a new one.
func (a *authority) generation() string {
	names := a.names()
	a.mu.Lock()
	root := a.cert.Raw
	a.mu.Unlock()
	h := sha256.New()
	h.Write(root)
	fmt.Fprintf(h, "%q", names)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// names are what certificates may be issued for, sorted; none: everything.
func (a *authority) names() []string {
	if a.c.Names == nil {
		return nil
	}
	names := slices.Clone(a.c.Names())
	slices.Sort(names)
	return slices.Compact(names)
}

// constrain limits a certificate to names (RFC 5280 §4.2.1.10): a name covers
// itself and everything below, subnets are of addresses. What no name of a
// kind permits is excluded as a whole.
func constrain(t *x509.Certificate, names []string) {
	if len(names) == 0 {
		return
	}
	t.PermittedDNSDomainsCritical = true
	for _, n := range names {
		if p, err := netip.ParsePrefix(n); err == nil {
			t.PermittedIPRanges = append(t.PermittedIPRanges, ipNet(p))
			continue
		}
		t.PermittedDNSDomains = append(t.PermittedDNSDomains, n)
	}
	if len(t.PermittedDNSDomains) == 0 {
		t.ExcludedDNSDomains = []string{""}
	}
	if len(t.PermittedIPRanges) == 0 {
		t.ExcludedIPRanges = []*net.IPNet{ipNet(netip.MustParsePrefix("0.0.0.0/0")), ipNet(netip.MustParsePrefix("::/0"))}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// permitted reports whether certificates may be issued for a host.
func permitted(names []string, host string) bool {
	if len(names) == 0 {
		return true
	}
	addr, err := netip.ParseAddr(host)
	for _, n := range names {
		p, perr := netip.ParsePrefix(n)
		switch {
		case perr == nil && err == nil && p.Contains(addr.Unmap()):
			return true
		case perr != nil && err != nil && (host == n || strings.HasSuffix(host, "."+n)):
			return true
		}
	}
	return false
}

// mayIssue refuses a session whose browser could believe nothing.
func (a *authority) mayIssue(host, target string) *Refused {
	if permitted(a.names(), strings.ToLower(strings.TrimSuffix(host, "."))) {
		return nil
	}
	return &Refused{Status: 503, Code: "name_not_permitted",
		Public: target + " cannot be opened: the setting web.permitted_names does not cover " + clip(host, 100) + ". An administrator must add it."}
}
