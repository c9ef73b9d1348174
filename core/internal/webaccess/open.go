package webaccess

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

const (
	// startTimeout bounds a carrier's start of a browser that did not wait.
	startTimeout = 25 * time.Second
	// tries is how many nodes of a kind are asked.
	tries = 3
)

// Request asks for a session.
type Request struct {
	Target, Account, Reason string
	Width, Height           int
	TimeZone                string
	UserAgent               string // client program, for the record
	API                     bool   // for API clients: without a browser
}

// Open decides, records and starts a session, and returns when its browser has
// been told where to go. What was begun is undone when it fails.
func (s *Service) Open(ctx context.Context, p *api.Principal, r Request) (*session, error) {
	began := time.Now()
	x, err := s.open(ctx, p, r)
	if refused, ok := errors.AsType[*Refused](err); ok {
		s.metrics.refused.WithLabelValues(refused.Code).Inc()
		if err := s.denied(ctx, p, r, refused); err != nil {
			return nil, err
		}
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	start := "cold"
	switch {
	case r.API:
		start = "api"
	case x.isWarm():
		start = "warm"
	}
	s.metrics.opened.WithLabelValues(start).Inc()
	s.metrics.open.Observe(time.Since(began).Seconds())
	return x, nil
}

func (s *Service) open(ctx context.Context, p *api.Principal, r Request) (*session, error) {
	v, err := s.decide(ctx, p, r)
	if err != nil {
		return nil, err
	}
	t := v.Target
	carriers := []candidate{{}} // none
	if r.API {
		if why := mayClients(t); why != nil {
			return nil, why
		}
	} else if cs, why := choose(s.candidates(wire.Carrier), demandOf(wire.Carrier, t)); why != nil {
		return nil, why
	} else {
		carriers = cs
	}
	if why := s.authority.mayIssue(t.Host, t.Name); why != nil {
		return nil, why
	}
	proxies, why := choose(s.candidates(wire.WebProxy), demandOf(wire.WebProxy, t))
	if why != nil {
		return nil, why
	}
	x, err := s.record(ctx, p, r, v, carriers[0], proxies[0])
	if err != nil {
		return nil, err
	}
	// The caller may go away; the outcome is waited for all the same.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout+askTimeout)
	defer cancel()
	stop := context.AfterFunc(x.live.Context(), cancel)
	defer stop()
	if err := x.begin(wctx, carriers[:min(len(carriers), tries)], proxies[:min(len(proxies), tries)]); err != nil {
		return nil, x.undo(ctx, err)
	}
	if err := s.keep(ctx, x); err != nil {
		return nil, x.undo(ctx, err)
	}
	return x, nil
}

// decide asks whether the user may.
func (s *Service) decide(ctx context.Context, p *api.Principal, r Request) (policy.Verdict, error) {
	v, err := s.cfg.Policy.Decide(ctx, policy.Query{Principal: p, Target: r.Target, Account: r.Account, Want: access.Web, Reason: r.Reason, Source: p.Source})
	if err != nil {
		return v, fmt.Errorf("open web session: %w", err)
	}
	if v.OK() {
		if v.Target == nil || v.Target.Web == nil {
			return v, fmt.Errorf("open web session: the decision about %s names no web target", clip(r.Target, 64))
		}
		return v, nil
	}
	code := "denied"
	switch v.Reason {
	case access.NeedReason:
		code = "reason_needed"
	case access.NeedMFA:
		code = "need_mfa"
	case access.NoAccount:
		if r.Account == "" {
			code = "account_needed"
		}
	}
	if v.Target != nil && v.Target.Kind != target.Web {
		code, v.Public = "not_web", v.Target.Name+" is no web target."
	}
	return v, &Refused{Status: 403, Code: code, Public: v.Public}
}

// record writes the session down, with the nodes it is meant for.
func (s *Service) record(ctx context.Context, p *api.Principal, r Request, v policy.Verdict, carrier, proxy candidate) (*session, error) {
	t := v.Target
	w := row{
		CoreID: s.cfg.Conns.CoreID(), State: Opening, UserID: p.UserID, UserName: p.UserName, TargetID: t.ID, TargetName: t.Name,
		CarrierID: carrier.ID, CarrierName: carrier.Name, ProxyID: proxy.ID, ProxyName: proxy.Name,
		Recorded: v.Record, Width: r.Width, Height: r.Height, TimeZone: r.TimeZone, OpenedAt: s.cfg.Now(),
	}
	if v.Account != nil {
		w.Account = v.Account.Name
	}
	key := newKey()
	live, err := s.cfg.Conns.Open(ctx, conn.Spec{
		Kind: "web", Principal: p, TargetID: t.ID, TargetName: t.Name, TargetAddress: t.Address(), Site: t.Site, Account: w.Account,
		Want: access.Web, Source: p.Source, UserAgent: r.UserAgent, Reason: r.Reason, Decision: v.Decision, Lockable: true,
		Along: func(ctx context.Context, tx *db.Tx, id string) error {
			sealed, err := s.cfg.Vault.Seal(keyPlace(id), []byte(key))
			if err != nil {
				return fmt.Errorf("seal key: %w", err)
			}
			w.ID, w.SealedKey = id, sealed
			if err := insertRow(ctx, tx, &w); err != nil {
				return err
			}
			return tell(ctx, tx, id, p.UserID)
		},
	})
	if err != nil {
		return nil, err
	}
	w.ID = live.ID
	x := newSession(s, w, live)
	x.key, x.address = key, proxy.Web.Address
	unread := x.setTarget(ctx, t)
	// Known before any node is told, so that none takes it for a stray.
	s.mu.Lock()
	closing := s.left || s.run == nil
	if !closing {
		s.sessions[w.ID] = x
		s.work.Add(1)
	}
	s.mu.Unlock()
	if closing {
		if err := s.writeEnd(context.WithoutCancel(ctx), &x.row, conn.EndedByShutdown, "The server is shutting down."); err != nil {
			s.cfg.Log.Error("end of a web session not written", "session", w.ID, "err", err)
		}
		live.Close(conn.EndedByError, wire.Errorf(wire.CodeDraining, "core is shutting down"))
		return nil, conn.ErrDraining
	}
	if unread != nil {
		return nil, x.undo(ctx, unread)
	}
	if x.ready() {
		return x, nil
	}
	return nil, x.undo(ctx, &Refused{Status: 503, Code: "bad_rules", Public: "The rules of " + t.Name + " cannot be put into force. An administrator must correct the target."})
}

func (x *session) ready() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rules != nil
}

func (x *session) isWarm() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.warm
}

// newKey is a session's proof towards its webproxy.
func newKey() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// begin registers the session with a webproxy while its recording is made, and
// starts it on a carrier then: the browser's first request finds its rules.
func (x *session) begin(ctx context.Context, carriers, proxies []candidate) error {
	x.live.Connecting()
	var made error
	var g sync.WaitGroup
	if x.row.Recorded {
		g.Go(func() { made = x.makeRecording(ctx) })
	}
	err := x.placeProxy(ctx, proxies)
	g.Wait()
	if err := errors.Join(made, err); err != nil {
		return err
	}
	if x.forClients() {
		return nil
	}
	return x.placeCarrier(ctx, carriers)
}

func (x *session) makeRecording(ctx context.Context) error {
	x.mu.Lock()
	title := x.spec.Web.StartURL
	x.mu.Unlock()
	rec, id, err := x.s.cfg.Recordings.Create(ctx, recording.Meta{
		ConnectionID: x.row.ID, UserID: x.row.UserID, UserName: x.row.UserName, TargetID: x.row.TargetID, TargetName: x.row.TargetName,
		Account: x.row.Account, Width: x.row.Width, Height: x.row.Height, Title: title,
	})
	if err != nil {
		x.s.cfg.Log.Error("recording of a web session not made", "session", x.row.ID, "err", err)
		text := "The session must be recorded, and it cannot be now. Tell an administrator."
		if errors.Is(err, recording.ErrFull) {
			text = "The session must be recorded, and there is no room for recordings. Tell an administrator."
		}
		return &Refused{Status: 503, Code: "no_recording", Public: text}
	}
	x.mu.Lock()
	x.rec, x.recordingID = rec, id
	x.mu.Unlock()
	x.live.Recording(id)
	return nil
}

// placeProxy registers the session with the first webproxy that takes it.
func (x *session) placeProxy(ctx context.Context, proxies []candidate) error {
	var last error
	for _, c := range proxies {
		x.mu.Lock()
		x.proxy, x.address = node{c.ID, c.Name}, c.Web.Address
		x.mu.Unlock()
		w := x.wanted()
		err := x.tellProxy(ctx, c.ID, w, x.nextRevision())
		if err == nil {
			x.mu.Lock()
			x.told[wire.WebProxy] = w
			x.mu.Unlock()
			return nil
		}
		x.s.cfg.Log.Warn("webproxy did not take a session", "session", x.row.ID, "node", c.Name, "err", err)
		x.drop(wire.WebProxy, c.ID)
		if last = err; ctx.Err() != nil || !elsewhere(err) {
			break
		}
	}
	return notTaken("webproxy", last)
}

// placeCarrier starts the session on the first carrier that takes it.
func (x *session) placeCarrier(ctx context.Context, carriers []candidate) error {
	var last error
	for i, c := range carriers {
		x.mu.Lock()
		x.carrier = node{c.ID, c.Name}
		proxy := x.proxy.ID
		x.mu.Unlock()
		w := x.wanted()
		if i > 0 || c.ID != x.row.CarrierID {
			// The webproxy must know whose connections to take.
			if err := x.tellProxy(ctx, proxy, w, x.nextRevision()); err != nil {
				return notTaken("webproxy", err)
			}
			x.mu.Lock()
			x.told[wire.WebProxy] = w
			x.mu.Unlock()
		}
		warm, err := x.tellCarrier(ctx, c.ID, w, x.nextRevision())
		if err == nil {
			x.mu.Lock()
			x.told[wire.Carrier], x.warm = w, warm
			x.mu.Unlock()
			return nil
		}
		x.s.cfg.Log.Warn("carrier did not take a session", "session", x.row.ID, "node", c.Name, "err", err)
		x.drop(wire.Carrier, c.ID)
		if last = err; ctx.Err() != nil || !elsewhere(err) {
			break
		}
	}
	return notTaken("carrier", last)
}

// elsewhere reports whether another node may do better.
func elsewhere(err error) bool {
	if we, ok := errors.AsType[*wire.Error](err); ok {
		return passing(we.Code)
	}
	return true
}

// notTaken words why no node took the session.
func notTaken(kind string, err error) error {
	if r, ok := errors.AsType[*Refused](err); ok {
		return r
	}
	r := &Refused{Status: 503, Code: kind + "_failed"}
	we, ok := errors.AsType[*wire.Error](err)
	switch {
	case ok && we.Code == wire.CodeLimit:
		r.Code, r.Public = "no_room", fmt.Sprintf("All %s are full: %s Try again when others have closed their sessions.", plural(kind), sentence(we.Public))
	case ok:
		r.Public = fmt.Sprintf("A %s did not take the session: %s", kind, sentence(we.Public))
	case errors.Is(err, context.DeadlineExceeded):
		r.Public = fmt.Sprintf("The %s did not answer in time.", kind)
	default:
		r.Public = fmt.Sprintf("The %s could not be reached. Try again in a moment.", kind)
	}
	return r
}

// drop has a node forget a session that it may have taken all the same; when
// it cannot be told, it is found and ended at its next connection.
func (x *session) drop(kind wire.NodeKind, id string) {
	if id == "" {
		return
	}
	x.s.work.Go(func() {
		ctx, cancel := context.WithTimeout(x.s.hard, askTimeout)
		defer cancel()
		path := wire.PathCarrierSessions
		if kind == wire.WebProxy {
			path = wire.PathWebProxySessions
		}
		var ack wire.WebAck
		err := x.s.cfg.Fleet.Ask(ctx, id, "DELETE", path+"/"+x.row.ID, nil, &ack)
		if err != nil && !errors.Is(err, fleet.ErrOffline) {
			x.s.cfg.Log.Warn("a node not told that a session was not opened", "session", x.row.ID, "node", id, "err", err)
		}
	})
}

// undo takes back what was begun and returns why. The session's work was
// counted by record.
func (x *session) undo(ctx context.Context, why error) error {
	defer x.s.work.Done()
	if ended, text := x.live.Ended(); ended != "" {
		why = &Refused{Status: 409, Code: "ended", Public: text}
	}
	text := "The session could not be opened."
	if r, ok := errors.AsType[*Refused](why); ok {
		text = r.Public
	}
	x.mu.Lock()
	x.state = Ending
	rec := x.rec
	x.mu.Unlock()
	carrier, proxy := x.pair()
	x.drop(wire.Carrier, carrier)
	x.drop(wire.WebProxy, proxy)
	if rec != nil {
		if err := errors.Join(rec.Event("session-failed", map[string]string{"text": text}), rec.Close()); err != nil {
			x.s.cfg.Log.Error("recording of a web session not closed", "session", x.row.ID, "err", err)
		}
	}
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	if err := x.s.writeEnd(wctx, &x.row, conn.EndedByError, text); err != nil {
		x.s.cfg.Log.Error("end of a web session not written", "session", x.row.ID, "err", err)
	}
	x.live.Close(conn.EndedByError, wire.Errorf(wire.CodeUnreachable, "%s", text))
	x.s.mu.Lock()
	delete(x.s.sessions, x.row.ID)
	x.s.mu.Unlock()
	close(x.ended)
	return why
}

// keep marks a session open that both nodes have, and drives it from now on.
func (s *Service) keep(ctx context.Context, x *session) error {
	x.mu.Lock()
	x.row.CarrierID, x.row.CarrierName, x.row.ProxyID, x.row.ProxyName = x.carrier.ID, x.carrier.Name, x.proxy.ID, x.proxy.Name
	x.row.RecordingID, x.row.Warm = x.recordingID, x.warm
	r := x.row
	x.mu.Unlock()
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	err := s.cfg.DB.Tx(wctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(wctx, openSQL, r.ID, r.CarrierID, r.CarrierName, r.ProxyID, r.ProxyName, r.RecordingID, r.Warm); err != nil {
			return err
		}
		if err := tell(wctx, tx, r.ID, r.UserID); err != nil {
			return err
		}
		return s.cfg.Audit.Append(wctx, tx, audit.Event{
			Type: audit.WebSessionOpened, Outcome: audit.OK, Actor: actor(ctx), Connection: r.ID,
			Object: audit.Object{Kind: "target", ID: r.TargetID, Name: r.TargetName},
			Fields: map[string]string{"account": r.Account, "carrier": r.CarrierName, "webproxy": r.ProxyName, "recording": r.RecordingID,
				"warm": strconv.FormatBool(r.Warm), "site": x.live.Spec().Site},
		})
	})
	if err != nil {
		return fmt.Errorf("open web session: %w", err)
	}
	x.mu.Lock()
	x.state = Open
	x.mu.Unlock()
	route := fleet.Route{Site: x.live.Spec().Site, NodeID: r.CarrierID, Node: r.CarrierName, Transport: "browser"}
	if x.forClients() {
		route.NodeID, route.Node, route.Transport = r.ProxyID, r.ProxyName, "proxy"
	}
	x.live.Connected(route)
	s.mu.Lock()
	run := s.run
	s.mu.Unlock()
	if run == nil {
		return conn.ErrDraining
	}
	go func() {
		defer s.work.Done()
		x.drive(run)
	}()
	return nil
}

// denied audits a refusal.
func (s *Service) denied(ctx context.Context, p *api.Principal, r Request, why *Refused) error {
	e := audit.Event{
		Type: audit.ConnectionDenied, Outcome: audit.Denied, Actor: audit.By(p),
		Object: audit.Object{Kind: "target", Name: clip(r.Target, 64)},
		Fields: map[string]string{"kind": "web", "account": clip(r.Account, 64), "code": why.Code},
	}
	if err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return s.cfg.Audit.Append(ctx, tx, e) }); err != nil {
		return fmt.Errorf("open web session: %w", err)
	}
	return nil
}

// shown keeps a list from being nil.
func shown(list []string) []string {
	if list == nil {
		return []string{}
	}
	return slices.Clone(list)
}
