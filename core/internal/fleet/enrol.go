package fleet

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// enrolTimeout bounds one enrolment, waiting for its turn included.
const enrolTimeout = 30 * time.Second

// serveEnrol answers an enrolment inside TLS that the edge checks against its
// token's pin, whatever ended TLS on the way.
func (f *Fleet) serveEnrol(w http.ResponseWriter, r *http.Request) {
	// The request's context ends with a hijacked connection's handler, which
	// is as long as we need it; it does not end when the client goes.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), enrolTimeout)
	defer cancel()
	if err := f.enrols.Wait(ctx); err != nil {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many enrolments at once; try again", http.StatusServiceUnavailable)
		return
	}
	leaf, _ := f.ca.identity()
	conn, err := tunnel.AcceptPinned(w, r, leaf)
	if err != nil {
		f.log.Debug("enrolment handshake", telemetry.KeyRemote, r.RemoteAddr, telemetry.KeyErr, err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(enrolTimeout))
	var req wire.EnrolRequest
	if err := json.NewDecoder(io.LimitReader(conn, 64<<10)).Decode(&req); err != nil {
		f.log.Debug("enrolment request", telemetry.KeyRemote, r.RemoteAddr, telemetry.KeyErr, err)
		return
	}
	resp, err := f.enrol(ctx, req, r.RemoteAddr)
	if err != nil {
		we, ok := errors.AsType[*wire.Error](err)
		if !ok {
			f.log.Error("enrolment", telemetry.KeyRemote, r.RemoteAddr, telemetry.KeyErr, err)
			we = wire.Errorf(wire.CodeInternal, "internal error")
		}
		resp = &wire.EnrolResponse{Error: we}
	}
	if err := json.NewEncoder(conn).Encode(resp); err != nil {
		f.log.Debug("enrolment answer", telemetry.KeyRemote, r.RemoteAddr, telemetry.KeyErr, err)
	}
}

// enrol checks a request and makes an identity of it.
func (f *Fleet) enrol(ctx context.Context, req wire.EnrolRequest, source string) (*wire.EnrolResponse, error) {
	if !wire.Compatible(req.Version) {
		return nil, wire.Errorf(wire.CodeVersion, "core speaks protocol version %d, this binary %d: install the same release", wire.Version, req.Version)
	}
	if !req.Kind.Valid() {
		return nil, wire.Errorf(wire.CodeBadRequest, "unknown kind of node")
	}
	pub, keyHash, err := csrKey(req.CSR)
	if err != nil {
		return nil, wire.Errorf(wire.CodeBadRequest, "%v", err)
	}
	req.Name, req.Host, req.Build = nodeName(req.Name), limit(req.Host, 128), limit(req.Build, 64)
	var e nodeRow
	var cert *x509.Certificate
	var repeated bool
	err = f.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, "edge-enrol"); err != nil {
			return err
		}
		t, err := checkToken(ctx, tx, req.TokenID, req.Secret, string(req.Kind), f.now())
		if err != nil {
			return err
		}
		e, repeated, err = f.placeNode(ctx, tx, t, req, keyHash)
		if err != nil {
			return err
		}
		if cert, err = f.ca.issueNode(pub, e.Kind, e.ID, e.Name); err != nil {
			return err
		}
		if err := storeCert(ctx, tx, e.ID, cert); err != nil {
			return err
		}
		group, err := siteGroup(ctx, tx, e.Site)
		if err != nil {
			return err
		}
		if err := api.Notify(ctx, tx, "edge", e.ID, group); err != nil {
			return err
		}
		return f.c.Audit.Append(ctx, tx, audit.Event{Type: audit.EdgeEnrolled, Outcome: audit.OK, Group: group,
			Actor:  audit.Actor{Kind: "edge", ID: e.ID, Name: e.Name, Source: source, Via: "tunnel"},
			Object: audit.Object{Kind: "edge", ID: e.ID, Name: e.Name},
			Fields: map[string]string{"token": t.ID, "kind": string(e.Kind), "site": e.Site,
				"serial": serialText(cert), "repeated": strconv.FormatBool(repeated)}})
	})
	if err != nil {
		if ref, ok := errors.AsType[*tokenRefusal](err); ok {
			f.metrics.enrols.WithLabelValues("refused").Inc()
			f.log.Warn("enrolment refused", telemetry.KeyRemote, source, "reason", ref.reason)
			// An unknown token leaves no row: anybody could fill the log with them.
			if ref.known {
				return nil, errors.Join(ref, f.c.Audit.Write(ctx, audit.Event{Type: audit.EnrolmentRefused, Outcome: audit.Denied,
					Actor:  audit.Actor{Kind: "anonymous", Name: req.Name, Source: source, Via: "tunnel"},
					Object: audit.Object{Kind: "enrolment_token", ID: req.TokenID},
					Fields: map[string]string{"reason": ref.reason, "kind": string(req.Kind)}}))
			}
		}
		return nil, err
	}
	f.metrics.enrols.WithLabelValues("ok").Inc()
	f.log.Info("edge enrolled", telemetry.KeyNode, e.Name, "id", e.ID, "kind", string(e.Kind), "site", e.Site)
	if repeated {
		f.ca.forgetCRL()
		f.disconnect(e.ID, wire.Errorf(wire.CodeReplaced, "this node was enrolled again"))
	}
	return &wire.EnrolResponse{NodeID: e.ID, Name: e.Name, Site: e.Site, Certificate: cert.Raw,
		Roots: f.ca.rootsDER(), Cores: []wire.Member{f.member()}}, nil
}

// placeNode decides which row the request gets: a new one, its own from an
// enrolment whose answer was lost (same key), or, if the token allows, the one
// of the same name, whose former identity ends.
func (f *Fleet) placeNode(ctx context.Context, tx *db.Tx, t token, req wire.EnrolRequest, keyHash []byte) (e nodeRow, repeated bool, err error) {
	now := f.now()
	e, err = edgeByKey(ctx, tx, keyHash)
	if err == nil {
		if !e.RevokedAt.IsZero() || e.TokenID != t.ID || e.Kind != req.Kind {
			return e, false, refuseToken("key_known", true, "this key belongs to another or a revoked node; remove the state directory and enrol again")
		}
		return e, false, nil
	}
	if !errors.Is(err, db.ErrNotFound) {
		return e, false, err
	}
	if t.AllowRepeat {
		e, err = edgeByName(ctx, tx, req.Name)
		if err != nil && !errors.Is(err, db.ErrNotFound) {
			return e, false, err
		}
		if err == nil && e.TokenID == t.ID && e.Kind == req.Kind && e.RevokedAt.IsZero() {
			if _, err := tx.ExecContext(ctx, qRevokeCerts, e.ID, micros(now)); err != nil {
				return e, false, fmt.Errorf("end former identity: %w", err)
			}
			if _, err := tx.ExecContext(ctx, qReplace, e.ID, keyHash, req.Host, req.Build); err != nil {
				return e, false, fmt.Errorf("replace identity: %w", err)
			}
			return e, true, nil
		}
	}
	ok, err := useToken(ctx, tx, t.ID, now)
	if err != nil {
		return e, false, fmt.Errorf("use enrolment token: %w", err)
	}
	if !ok {
		return e, false, refuseToken("used_up", true, fmt.Sprintf("this enrolment token was used %d of %d times; ask for a new one", t.Uses, t.MaxUses))
	}
	name, err := freeName(ctx, tx, req.Name)
	if err != nil {
		return e, false, err
	}
	e = nodeRow{ID: db.NewID("edg_"), Kind: req.Kind, Name: name, Site: t.Site, Labels: t.Labels, Rules: t.Rules, TokenID: t.ID,
		KeyHash: keyHash, Host: req.Host, Build: req.Build, CreatedAt: now, Version: 1}
	return e, false, insertEdge(ctx, tx, e)
}

// freeName appends a number to a name that is taken.
func freeName(ctx context.Context, q db.Querier, name string) (string, error) {
	try := name
	for n := 2; n <= 20; n++ {
		_, err := edgeByName(ctx, q, try)
		if errors.Is(err, db.ErrNotFound) {
			return try, nil
		}
		if err != nil {
			return "", err
		}
		try = name + "-" + strconv.Itoa(n)
	}
	// A crowd with one name: stop counting.
	return name + "-" + db.NewID("")[:10], nil
}

func storeCert(ctx context.Context, q db.Querier, id string, cert *x509.Certificate) error {
	if _, err := q.ExecContext(ctx, qInsertCert, serialText(cert), id, micros(cert.NotAfter)); err != nil {
		return fmt.Errorf("store certificate: %w", db.Classify(err))
	}
	if _, err := q.ExecContext(ctx, qRenewEdge, id, serialText(cert), micros(cert.NotAfter)); err != nil {
		return fmt.Errorf("store certificate: %w", db.Classify(err))
	}
	return nil
}

// nodeName makes a valid name of what the edge proposes.
func nodeName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(limit(s, 50)))
	s = strings.Trim(s, "-.")
	if !namePattern.MatchString(s) {
		return "edge"
	}
	return s
}

// limit cuts peer-supplied text.
func limit(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}
