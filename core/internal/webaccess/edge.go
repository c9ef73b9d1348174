package webaccess

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/recording"
	"caponier/shared/control"
	"caponier/shared/wire"
)

// recordsTime bounds one batch of records: reading it over a slow tunnel and
// having it on disk.
const recordsTime = 2 * time.Minute

// ControlPath is the path below which Control serves, with every method.
const ControlPath = "/web/v1/"

// Control serves what carriers and webproxies ask of core inside their tunnels.
func (s *Service) Control() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+wire.PathWebAuthority, s.asked(s.serveRoot, wire.Carrier, wire.WebProxy))
	mux.Handle("POST "+wire.PathWebAuthority, s.asked(s.serveIssuer, wire.WebProxy))
	mux.Handle("POST "+wire.PathWebCredential, s.asked(s.serveCredential, wire.WebProxy))
	mux.Handle("POST "+wire.PathWebApproval, s.asked(s.serveApproval, wire.WebProxy))
	mux.Handle("POST "+wire.PathWebRecords, s.asked(s.serveRecords, wire.Carrier, wire.WebProxy))
	mux.Handle("POST "+wire.PathWebEnded, s.asked(s.serveEnded, wire.Carrier, wire.WebProxy))
	return mux
}

// asked admits nodes of some kinds.
func (s *Service) asked(h func(http.ResponseWriter, *http.Request, fleet.Peer), kinds ...wire.NodeKind) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := fleet.PeerFrom(r.Context())
		if !ok || !slices.Contains(kinds, p.Kind) {
			http.Error(w, "not for a node of this kind", http.StatusForbidden)
			return
		}
		h(w, r, p)
	})
}

func (s *Service) serveRoot(w http.ResponseWriter, _ *http.Request, _ fleet.Peer) {
	control.Reply(w, wire.WebAuthority{Root: s.authority.rootDER()})
}

func (s *Service) serveIssuer(w http.ResponseWriter, r *http.Request, p fleet.Peer) {
	var ask wire.WebAuthorityAsk
	if !control.Read(w, r, &ask) {
		return
	}
	a, err := s.authority.issue(r.Context(), p, ask.CSR)
	if bad, ok := errors.AsType[*requestError](err); ok {
		http.Error(w, bad.Error(), http.StatusBadRequest)
		return
	}
	if err != nil {
		s.cfg.Log.Error("issue for a webproxy", "node", p.Name, "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	control.Reply(w, a)
}

func (s *Service) serveCredential(w http.ResponseWriter, r *http.Request, p fleet.Peer) {
	var ask wire.WebCredentialAsk
	if !control.Read(w, r, &ask) {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	control.Reply(w, s.credential(r.Context(), p, ask))
}

// serveEnded hears that a session ended on a node by itself.
func (s *Service) serveEnded(w http.ResponseWriter, r *http.Request, p fleet.Peer) {
	var e wire.WebEnded
	if !control.Read(w, r, &e) {
		return
	}
	x := s.awaited(r.Context(), e.Session)
	if x == nil && !s.knows() {
		http.Error(w, "core is starting", http.StatusServiceUnavailable)
		return
	}
	if x == nil || !x.has(p.ID) {
		w.WriteHeader(http.StatusNoContent) // it is over here, too
		return
	}
	reason, text := conn.EndReason(e.Reason), clip(strings.ToValidUTF8(e.Text, ""), 512)
	switch reason {
	case conn.EndedByUser, conn.EndedByIdle, conn.EndedByDuration, conn.EndedByTarget, conn.EndedByError:
	default:
		reason = conn.EndedByError
	}
	if text == "" {
		text = "The session has ended."
	}
	x.live.End(reason, text)
	w.WriteHeader(http.StatusNoContent)
}

// has reports whether a node is one of the session's.
func (x *session) has(id string) bool {
	carrier, proxy := x.pair()
	return id != "" && (id == carrier || id == proxy)
}

// serveRecords takes a batch of records.
func (s *Service) serveRecords(w http.ResponseWriter, r *http.Request, p fleet.Peer) {
	rc := http.NewResponseController(w)
	until := time.Now().Add(recordsTime)
	if err := errors.Join(rc.SetReadDeadline(until), rc.SetWriteDeadline(until)); err != nil {
		s.cfg.Log.Warn("records: deadlines not set", "node", p.Name, "err", err)
	}
	id := r.URL.Query().Get("session")
	x := s.find(id)
	if x == nil {
		control.Reply(w, s.nobodys(r.Context(), id))
		return
	}
	if !x.has(p.ID) {
		http.Error(w, "the session is not this node's", http.StatusForbidden)
		return
	}
	body, err := readRecords(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	recs, err := wire.ParseWebRecords(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if x.row.Recorded && x.recording() == nil { // it is being made
		control.Reply(w, wire.WebRecordsAck{Next: 1, Retry: true})
		return
	}
	next, err := x.take(r.Context(), p, recs)
	switch {
	case err == nil:
		s.metrics.records.Add(float64(len(recs)))
		control.Reply(w, wire.WebRecordsAck{Next: next})
	case errors.Is(err, recording.ErrRecords):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case errors.Is(err, recording.ErrClosed):
		control.Reply(w, wire.WebRecordsAck{Next: next, Gone: true})
	default:
		s.cfg.Log.Error("records of a web session not kept", "session", id, "node", p.Name, "err", err)
		x.live.End(conn.EndedByError, "The session was closed because it could not be recorded any more.")
		control.Reply(w, wire.WebRecordsAck{Next: next, Retry: true})
	}
}

// nobodys answers for a session that is not kept here: it may be carried by
// another core, or about to be taken over by this one.
func (s *Service) nobodys(ctx context.Context, id string) wire.WebRecordsAck {
	if !s.knows() {
		return wire.WebRecordsAck{Retry: true}
	}
	core, ended, err := s.owner(ctx, id)
	switch {
	case errors.Is(err, db.ErrNotFound), err == nil && (ended || core == s.cfg.Conns.CoreID()):
		return wire.WebRecordsAck{Gone: true}
	case err != nil:
		s.cfg.Log.Error("records of an unknown web session", "session", clip(id, 64), "err", err)
	}
	return wire.WebRecordsAck{Retry: true}
}

// readRecords reads a batch within its bound.
func readRecords(r *http.Request) ([]byte, error) {
	var in io.Reader = io.LimitReader(r.Body, wire.MaxWebRecords+1)
	switch r.Header.Get("Content-Encoding") {
	case "":
	case "gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, errors.New("the records cannot be read")
		}
		in = io.LimitReader(z, wire.MaxWebRecords+1)
	default:
		return nil, errors.New("the records' encoding is unknown")
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, errors.New("the records cannot be read")
	}
	if len(b) > wire.MaxWebRecords {
		return nil, fmt.Errorf("a batch has at most %d bytes", wire.MaxWebRecords)
	}
	return b, nil
}

// source names a node in a recording, whose numbers count for it.
func source(p fleet.Peer) string { return string(p.Kind) + " " + p.ID }

// take keeps a batch and acts on what is new in it. It returns which record is
// wanted next.
func (x *session) take(ctx context.Context, p fleet.Peer, recs []wire.WebRecord) (uint64, error) {
	from := source(p)
	m := x.stream(from)
	m.Lock()
	defer m.Unlock()
	known := x.wants(from)
	if p.Kind != wire.Carrier && slices.ContainsFunc(recs, func(r wire.WebRecord) bool { return r.Kind == wire.WebFrame }) {
		return known, fmt.Errorf("%w: pictures from a %s", recording.ErrRecords, p.Kind)
	}
	if rec := x.recording(); rec != nil {
		err := rec.Append(from, -p.Skew, recs)
		if gap, ok := errors.AsType[*recording.GapError](err); ok && !x.lacks(from) {
			return gap.Want, nil // it sends them again
		}
		if err != nil {
			return known, err
		}
	} else if n := len(recs); n > 0 {
		if recs[0].Seq > known {
			return known, nil
		}
		x.mu.Lock()
		x.next[from] = max(known, recs[n-1].Seq+1)
		x.mu.Unlock()
	}
	x.mu.Lock()
	delete(x.gaps, from)
	x.happened = x.happened || slices.ContainsFunc(recs, func(r wire.WebRecord) bool { return r.Seq >= known && r.Kind == wire.WebEvent })
	x.mu.Unlock()
	for _, r := range recs {
		if r.Seq < known || r.Kind != wire.WebEvent {
			continue
		}
		var e wire.WebEventBody
		if json.Unmarshal(r.Payload, &e) == nil {
			x.noted(ctx, p, e)
		}
	}
	return x.wants(from), nil
}

// maxGaps is how often in a row a node may leave records out before they count
// as lost.
const maxGaps = 5

// lacks counts a gap and reports whether what is missing will not come.
func (x *session) lacks(from string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.gaps[from]++
	return x.gaps[from] > maxGaps
}

// stream is held while records of a source are taken: their order counts.
func (x *session) stream(from string) *sync.Mutex {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := x.streams[from]
	if m == nil {
		m = &sync.Mutex{}
		x.streams[from] = m
	}
	return m
}

// wants is the number of the record of a source that is wanted next.
func (x *session) wants(from string) uint64 {
	if rec := x.recording(); rec != nil {
		return rec.Next(from)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return max(x.next[from], 1)
}

// noted acts on an event of the timeline that others than its players need.
func (x *session) noted(ctx context.Context, p fleet.Peer, e wire.WebEventBody) {
	f := e.Fields
	switch e.Type {
	case "blocked":
		x.s.metrics.blocked.Inc()
		x.blocked(ctx, p, f)
	case "navigation":
		// The recording has them all. A webproxy that makes them up does not
		// fill what every connection's events wait in.
		if p.Kind == wire.WebProxy && x.visits.AllowN(x.s.cfg.Now(), 1) {
			x.live.Channel("navigation", clip(withoutQuery(f["url"]), 1000))
		}
	case "request":
		if x.forClients() && p.Kind == wire.WebProxy {
			x.asked()
		}
	case "upload", "download":
		x.transferred(ctx, p, e)
		x.announce(ctx) // the list of its files
	}
}

// blocked counts a refused request: a proposal while the target learns, and
// one audit event for each host.
func (x *session) blocked(ctx context.Context, p fleet.Peer, f map[string]string) {
	if p.Kind != wire.WebProxy {
		return
	}
	url := clip(withoutQuery(f["url"]), 1000)
	if rule := f["proposal"]; rule != "" {
		x.s.proposals.add(x.row.TargetID, rule, url)
	}
	host := url
	if parts := strings.SplitN(url, "/", 4); len(parts) > 2 {
		host = parts[2]
	}
	if !x.first("blocked " + host) {
		return
	}
	x.s.append(ctx, audit.Event{
		Type: audit.WebRequestBlocked, Outcome: audit.Denied, Actor: edgeActor(p), Connection: x.row.ID,
		Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName},
		Fields: map[string]string{"user": x.row.UserName, "method": clip(f["method"], 16), "url": clip(url, 500), "reason": clip(f["reason"], 64)},
	})
}

// transferred puts a file that passed the browser on the record.
func (x *session) transferred(ctx context.Context, p fleet.Peer, e wire.WebEventBody) {
	if p.Kind != wire.Carrier {
		return
	}
	typ := audit.WebFileUploaded
	if e.Type == "download" {
		typ = audit.WebFileDownloaded
	}
	fields := map[string]string{"user": x.row.UserName}
	for _, k := range []string{"path", "size", "sha256", "outcome", "reason", "url"} {
		if v := e.Fields[k]; v != "" {
			fields[k] = clip(v, 500)
		}
	}
	outcome := audit.OK
	if o := e.Fields["outcome"]; o != "" && o != "ok" {
		outcome = audit.Denied
	}
	if !x.files.AllowN(x.s.cfg.Now(), 1) {
		x.unlist()
		return
	}
	x.s.append(ctx, audit.Event{Type: typ, Outcome: outcome, Actor: edgeActor(p), Connection: x.row.ID,
		Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName}, Fields: fields})
}

// unlist counts a file that is not in the audit log by itself.
func (x *session) unlist() {
	x.mu.Lock()
	x.unlisted++
	x.allUnlisted++
	absurd := x.allUnlisted == maxUnlisted
	x.mu.Unlock()
	if absurd {
		x.live.End(conn.EndedByError, "The session was closed because its carrier reported more files than anybody moves.")
	}
}

// countUnlisted puts into the audit log how many files are not in it, once in a
// while.
func (x *session) countUnlisted(ctx context.Context, now time.Time, every time.Duration) {
	x.mu.Lock()
	n := x.unlisted
	if n == 0 || now.Sub(x.counted) < every {
		x.mu.Unlock()
		return
	}
	x.unlisted, x.counted = 0, now
	carrier := x.carrier
	x.mu.Unlock()
	x.s.append(ctx, audit.Event{Type: audit.WebFilesUnlisted, Outcome: audit.OK, Connection: x.row.ID,
		Actor:  audit.Actor{Kind: "edge", ID: carrier.ID, Name: carrier.Name, Via: "tunnel"},
		Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName},
		Fields: map[string]string{"user": x.row.UserName, "more": strconv.Itoa(n)}})
}
