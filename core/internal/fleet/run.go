package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Handler serves /edge/v1/… : tunnels, enrolment, CA and CRL.
func (f *Fleet) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathTunnel, f.serveTunnel)
	mux.HandleFunc("GET "+wire.PathTunnel+"/{core}", f.serveTunnel)
	mux.HandleFunc("GET "+wire.PathEnrol, f.serveEnrol)
	mux.HandleFunc("GET "+wire.PathCA, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-pem-file")
		w.Write(f.ca.pem())
	})
	mux.HandleFunc("GET "+wire.PathCRL, func(w http.ResponseWriter, r *http.Request) {
		der, err := f.ca.revocationList(r.Context())
		if err != nil {
			f.log.Error("revocation list", telemetry.KeyErr, err)
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/pkix-crl")
		w.Header().Set("Cache-Control", "public, max-age=300")
		w.Write(der)
	})
	return mux
}

func (f *Fleet) serveTunnel(w http.ResponseWriter, r *http.Request) {
	select {
	case <-f.draining:
		f.deferred(w, 2*time.Second)
		return
	default:
	}
	if core := r.PathValue("core"); core != "" && core != f.c.CoreID {
		// The load balancer does not know the hint; the edge tries elsewhere.
		http.Error(w, "this is core "+f.c.CoreID, http.StatusMisdirectedRequest)
		return
	}
	retry, ok := f.admit.enter(r.Context())
	if !ok {
		f.deferred(w, retry)
		return
	}
	s, err := func() (tunnel.Session, error) {
		defer f.admit.leave()
		return tunnel.AcceptWSS(w, r, f.acceptConfig())
	}()
	if err != nil {
		f.metrics.tunnels.WithLabelValues("failed").Inc()
		f.log.Info("tunnel refused", telemetry.KeyRemote, r.RemoteAddr, telemetry.KeyErr, err)
		return
	}
	// The connection is the tunnel's from here; it outlives the request.
	ctx := context.WithoutCancel(r.Context())
	f.serving.Go(func() { f.serve(ctx, s) })
}

func (f *Fleet) deferred(w http.ResponseWriter, retry time.Duration) {
	f.metrics.tunnels.WithLabelValues("deferred").Inc()
	tunnel.Refuse(w, http.StatusServiceUnavailable, retry, wire.Errorf(wire.CodeLimit, "core takes no more tunnels at this moment"))
}

func (f *Fleet) acceptConfig() tunnel.AcceptConfig {
	leaf, roots := f.ca.identity()
	return tunnel.AcceptConfig{
		Identity: tunnel.Identity{Certificate: leaf, Roots: roots, VerifyPeer: verifyPeer},
		Limits:   webProxyLimits,
		LimitsOf: limitsOf,
		Logger:   f.log,
	}
}

// Run accepts QUIC tunnels and does periodic work until ctx ends, then drains:
// it takes no new tunnels, ends the live ones telling the edges so, and
// returns when nothing of them is left.
func (f *Fleet) Run(ctx context.Context) error {
	// The writer outlives the tunnels, whose ends it records.
	wctx, stopWriter := context.WithCancel(context.WithoutCancel(ctx))
	written := make(chan struct{})
	go func() {
		defer close(written)
		f.events.run(wctx)
	}()
	g, gctx := errgroup.WithContext(ctx)
	notes := f.c.DB.Subscribe(gctx) // before the first Hello: no change of a node is missed
	g.Go(func() error {
		if err := f.control.Serve(f.streams); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("serve control streams: %w", err)
		}
		return nil
	})
	g.Go(func() error { return f.watch(gctx, notes) })
	g.Go(func() error { return f.tend(gctx) })
	g.Go(func() error { return f.pulse(gctx) })
	if f.c.QUIC != nil {
		g.Go(func() error { return f.acceptQUIC(gctx) })
	}
	g.Go(func() error {
		<-gctx.Done()
		f.shutdown()
		return nil
	})
	err := g.Wait()
	f.serving.Wait()
	stopWriter()
	<-written
	if f.c.QUIC != nil {
		f.c.QUIC.Close()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// shutdown ends every tunnel. It is called once, by Run.
func (f *Fleet) shutdown() {
	close(f.draining)
	f.mu.Lock()
	f.stopped = true
	all := make([]*node, 0, len(f.tunnels))
	for n := range f.tunnels {
		all = append(all, n)
	}
	f.mu.Unlock()
	f.streams.Close()
	f.control.Close()
	why := wire.Errorf(wire.CodeDraining, "core %s is shutting down", f.c.CoreName)
	var g errgroup.Group
	g.SetLimit(64)
	for _, n := range all {
		g.Go(func() error { return n.close(why) })
	}
	// Closing a dead connection is no failure.
	_ = g.Wait()
}

func (f *Fleet) acceptQUIC(ctx context.Context) error {
	l, err := tunnel.ListenQUIC(f.c.QUIC, f.acceptConfig)
	if err != nil {
		return fmt.Errorf("listen for quic tunnels: %w", err)
	}
	defer l.Close()
	for {
		s, err := l.Accept(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept quic tunnels: %w", err)
		}
		f.serving.Go(func() { f.serve(context.WithoutCancel(ctx), s) })
	}
}

// watch acts on changes of nodes, made on this core or another.
func (f *Fleet) watch(ctx context.Context, notes <-chan db.Note) error {
	for n := range notes {
		switch n.Topic {
		case "edge":
			if n.ID == "" {
				continue // no row changed
			}
			f.ca.forgetCRL()
			if err := f.recheck(ctx, n.ID); err != nil && ctx.Err() == nil {
				f.log.Warn("edge changed", telemetry.KeyNode, n.ID, telemetry.KeyErr, err)
			}
		case db.TopicResync:
			f.ca.forgetCRL()
			f.recheckAll(ctx)
		}
	}
	return ctx.Err()
}

// recheckAll compares every live node with its row.
func (f *Fleet) recheckAll(ctx context.Context) {
	live := map[string]*node{}
	for _, n := range f.all() {
		live[n.id] = n
	}
	check := func(id string) {
		if err := f.recheck(ctx, id); err != nil && ctx.Err() == nil {
			f.log.Warn("edge changed", telemetry.KeyNode, id, telemetry.KeyErr, err)
		}
	}
	for after := ""; ; {
		page, err := listEdges(ctx, f.c.DB, after, "", "", access.Everywhere(), 500)
		if err != nil {
			if ctx.Err() == nil {
				f.log.Warn("check edges", telemetry.KeyErr, err)
			}
			return // the database is away: live tunnels stay
		}
		for _, e := range page {
			if n := live[e.ID]; n != nil && (n.row.Load().Version != e.Version || !e.RevokedAt.IsZero()) {
				check(e.ID)
			}
			delete(live, e.ID)
			after = e.ID
		}
		if len(page) < 500 {
			break
		}
	}
	for id := range live {
		check(id)
	}
}

// pulseEvery bounds how often readers of the fleet are told of new figures.
const pulseEvery = 10 * time.Second

// pulse tells readers that nodes have reported since the last time. What they
// reported is in memory only, so no row and no other note says so.
func (f *Fleet) pulse(ctx context.Context) error {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !f.reported.Swap(false) {
			continue
		}
		err := f.c.DB.Tx(ctx, func(tx *db.Tx) error {
			groups, err := collect(ctx, tx, "read access groups of edges", func(s scanner) (g string, err error) {
				err = s.Scan(&g)
				return g, err
			}, qEdgesGroups)
			if err != nil {
				return err
			}
			return api.Notify(ctx, tx, "edge", "", groups...)
		})
		if err != nil && ctx.Err() == nil {
			f.log.Warn("readers of the fleet are not told", telemetry.KeyErr, err)
		}
	}
}

// tend does the periodic work: the CA's and core's own certificate, when
// nodes were last seen, and a re-check of every node.
func (f *Fleet) tend(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		if _, err := f.ca.maintain(ctx); err != nil && ctx.Err() == nil {
			f.log.Error("edge ca", telemetry.KeyErr, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		f.recheckAll(ctx)
		now := f.now()
		for _, n := range f.all() {
			f.events.put(note{query: qTouchEdge, args: []any{n.id, micros(now)}})
		}
		f.events.put(note{query: qPruneCerts, args: []any{micros(now)}})
	}
}
