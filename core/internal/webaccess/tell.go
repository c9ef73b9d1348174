package webaccess

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/conn"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// wanted is what nodes are to be told now.
func (x *session) wanted() want {
	d := x.live.Decision()
	o, _ := x.live.Oversight()
	limits, scan, issuer := x.s.cfg.Limits(), x.s.cfg.ScanURL(), x.s.authority.generation()
	x.mu.Lock()
	defer x.mu.Unlock()
	w := want{features: d.Features & access.FileTransfer, locked: o.Locked, text: o.Text, carrier: x.carrier.ID, address: x.address, scan: scan, issuer: issuer}
	w.idle, w.max = times(&x.spec.Web.Browser, d, limits, x.extended)
	w.version, w.anchors = x.spec.Version, x.anchors
	return w
}

// policy is what the person in front of the browser may do now.
func (x *session) policy(w want) wire.BrowserPolicy {
	x.mu.Lock()
	t := x.spec
	x.mu.Unlock()
	p := t.Web.BrowserPolicy(x.row.UserName, t.Name, x.row.Account, sourceText(x.live), x.s.cfg.Now())
	if w.features&access.FileTransfer == 0 {
		p.UploadMax, p.DownloadMax = 0, 0
	}
	p.IdleS, p.MaxS = int64(w.idle/time.Second), int64(w.max/time.Second)
	if p.ScanURL == "" {
		p.ScanURL = w.scan
	}
	return p
}

func sourceText(l *conn.Live) string {
	if a := l.Spec().Source; a.IsValid() {
		return a.String()
	}
	return ""
}

// forCarrier is the session as its carrier is told.
func (x *session) forCarrier(w want, revision uint64) wire.CarrierSession {
	p := x.policy(w)
	x.mu.Lock()
	defer x.mu.Unlock()
	c := wire.CarrierSession{
		ID: x.row.ID, Revision: revision, User: x.row.UserName, Target: x.spec.Name, StartURL: x.spec.Web.StartURL,
		Width: x.row.Width, Height: x.row.Height, TimeZone: x.row.TimeZone, Policy: p,
		Engine: x.spec.Web.Browser.Engine,
		Proxy:  wire.WebProxyAddress{NodeID: x.proxy.ID, Address: w.address, Key: x.key},
		LeaseS: x.lease(), Recorded: x.row.Recorded, Locked: w.locked,
	}
	if w.locked {
		c.LockText = w.text
	}
	return c
}

// forProxy is the session as its webproxy is told.
func (x *session) forProxy(w want, revision uint64) (wire.WebProxySession, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	rules, err := json.Marshal(x.spec.Web.Policy)
	if err != nil {
		return wire.WebProxySession{}, fmt.Errorf("encode rules: %w", err)
	}
	scan := x.spec.Web.ScanURL
	if scan == "" {
		scan = w.scan
	}
	return wire.WebProxySession{
		ID: x.row.ID, Revision: revision, User: x.row.UserName, Target: x.spec.Name, StartURL: x.spec.Web.StartURL,
		Carrier: x.carrier.ID, Key: x.key, Site: x.spec.Site, Policy: rules, Account: x.injected(), LeaseS: x.lease(), ScanURL: scan, Issuer: w.issuer,
		Locked: w.locked && x.forClients(), NoPopups: x.spec.Web.Browser.Popups == target.PopupBlock,
	}, nil
}

// injected is the account whose credential is injected; empty when its user
// signs in by himself.
func (x *session) injected() string {
	r := &x.spec.Web.Policy.Recipe
	if len(r.Injections) == 0 && r.Login == nil {
		return ""
	}
	return x.row.Account
}

func (x *session) lease() int64 { return int64(x.s.cfg.Limits().Lease / time.Second) }

// nextRevision is higher than every one before, also of earlier runs.
func (x *session) nextRevision() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.revision = max(x.revision+1, uint64(x.s.cfg.Now().UnixMicro()))
	return x.revision
}

// sync tells the nodes what is wanted, unless they know; the one of the kind
// given is told again. Rules go first: what became forbidden is forbidden
// before anything else. It reports whether all that are there know.
func (x *session) sync(ctx context.Context, again wire.NodeKind) bool {
	// Nothing is told any more of a session that ends: finish waits its turn.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(x.live.Context(), cancel)
	defer stop()
	select {
	case x.order <- struct{}{}:
		defer func() { <-x.order }()
	case <-ctx.Done():
		return true
	}
	if ctx.Err() != nil || x.live.Context().Err() != nil {
		return true
	}
	carrier, proxy := x.pair()
	proxyNode, proxyOn := x.present(wire.WebProxy, proxy)
	carrierOn := false
	if !x.forClients() {
		var o fleet.Online
		o, carrierOn = x.present(wire.Carrier, carrier)
		// One that came back is asked first what it has: it may have lost the
		// session, and would begin it anew.
		carrierOn = carrierOn && (again == wire.Carrier || x.s.compared(carrier, o.Tunnel))
	}
	if c := proxyNode.Status.Web; c != nil && c.Address != "" {
		x.mu.Lock()
		x.address = c.Address
		x.mu.Unlock()
	}
	w, told := x.wanted(), true
	if proxyOn && (again == wire.WebProxy || !x.knows(wire.WebProxy, w)) {
		told = x.noteTold(ctx, wire.WebProxy, w, x.tellProxy(ctx, proxy, w, x.nextRevision()))
	}
	if carrierOn && w.address != "" && (again == wire.Carrier || !x.knows(wire.Carrier, w)) {
		_, err := x.tellCarrier(ctx, carrier, w, x.nextRevision())
		told = x.noteTold(ctx, wire.Carrier, w, err) && told
	}
	return told
}

func (x *session) knows(kind wire.NodeKind, w want) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	have, ok := x.told[kind]
	return ok && have == w
}

// noteTold notes that a node was told w, or what came of it: what helps later
// is tried again, what does not ends the session. It reports whether there is
// nothing to try again.
func (x *session) noteTold(ctx context.Context, kind wire.NodeKind, w want, err error) bool {
	if err == nil {
		x.mu.Lock()
		x.told[kind] = w
		x.mu.Unlock()
		return true
	}
	if we, ok := errors.AsType[*wire.Error](err); ok && !passing(we.Code) {
		// What it must enforce it will not: then it enforces nothing.
		x.live.End(conn.EndedByError, "The session was closed because what was changed could not be put into force: "+sentence(we.Public))
		return true
	}
	// It may have been started anew: what it was told before does not count.
	x.mu.Lock()
	delete(x.told, kind)
	x.mu.Unlock()
	if errors.Is(err, fleet.ErrOffline) {
		return true // its return is noticed
	}
	if ctx.Err() == nil {
		x.s.cfg.Log.Warn("a web session's node not told; tried again", "session", x.row.ID, "err", err)
	}
	return false
}

// passing reports whether trying again later may help.
func passing(c wire.Code) bool {
	switch c {
	case wire.CodeTunnelLost, wire.CodeTimeout, wire.CodeReplaced, wire.CodeDraining, wire.CodeLimit, wire.CodeInternal:
		return true
	}
	return false
}

// present finds a node of the session and notes whether it is there.
func (x *session) present(kind wire.NodeKind, id string) (fleet.Online, bool) {
	n, on := x.s.onlineNode(kind, id)
	x.seen(id, on)
	return n, on
}

func (x *session) seen(id string, on bool) {
	now := x.s.cfg.Now()
	x.mu.Lock()
	_, was := x.away[id]
	switch {
	case on:
		delete(x.away, id)
	case !was:
		x.away[id] = now
	}
	x.mu.Unlock()
	if was == on {
		x.announce(x.s.hard)
	}
}

// tellProxy registers the session with a webproxy, or changes it there.
func (x *session) tellProxy(ctx context.Context, id string, w want, revision uint64) error {
	p, err := x.forProxy(w, revision)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var ack wire.WebAck
	if err := x.s.cfg.Fleet.Ask(ctx, id, "PUT", wire.PathWebProxySessions+"/"+x.row.ID, p, &ack); err != nil {
		return fmt.Errorf("tell webproxy %s: %w", id, err)
	}
	if ack.Error != nil {
		return ack.Error
	}
	return nil
}

// tellCarrier starts the session on a carrier, or changes it there.
func (x *session) tellCarrier(ctx context.Context, id string, w want, revision uint64) (warm bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var ack wire.CarrierAck
	if err := x.s.cfg.Fleet.Ask(ctx, id, "PUT", wire.PathCarrierSessions+"/"+x.row.ID, x.forCarrier(w, revision), &ack); err != nil {
		return false, fmt.Errorf("tell carrier %s: %w", id, err)
	}
	if ack.Error != nil {
		return false, ack.Error
	}
	return ack.Warm, nil
}
