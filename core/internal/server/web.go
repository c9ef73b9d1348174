package server

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/fleet"
	"caponier/core/internal/settings"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
	"caponier/core/internal/webaccess"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// webDoor hands what the fleet and explanations ask about web sessions to the
// room, which is made after them. Nothing is asked before core runs.
type webDoor struct{ room *webaccess.Service }

func (d *webDoor) stream(ctx context.Context, p fleet.Peer, s tunnel.Stream) {
	if d.room == nil {
		_ = s.Refuse(wire.Errorf(wire.CodeDraining, "core is starting"))
		return
	}
	d.room.Stream(ctx, p, s)
}

// ServeHTTP implements http.Handler.
func (d *webDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.room == nil {
		http.Error(w, "core is starting", http.StatusServiceUnavailable)
		return
	}
	d.room.Control().ServeHTTP(w, r)
}

// ProbeNodes implements policy.WebProber.
func (d *webDoor) ProbeNodes(ctx context.Context, t *target.Target) []fleet.DialStage {
	return d.room.ProbeNodes(ctx, t)
}

// ProbeTLS implements policy.WebProber.
func (d *webDoor) ProbeTLS(ctx context.Context, t *target.Target) []fleet.DialStage {
	return d.room.ProbeTLS(ctx, t)
}

// Problem implements policy.WebProber.
func (d *webDoor) Problem() string { return d.room.Problem() }

// plainURL is where the http listener is found from outside: core's public
// name and the listener's port. Empty when there is none.
func plainURL(host string, l net.Listener) string {
	if l == nil {
		return ""
	}
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	if a.Port == 80 {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		return "http://" + host
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// buildWeb makes the door to web targets.
func (s *Server) buildWeb(ctx context.Context, pub *url.URL) (err error) {
	s.web, err = webaccess.New(ctx, webaccess.Config{
		DB: s.db, Audit: s.audit, Policy: s.policy, Conns: s.conns, Targets: s.targets, Fleet: s.fleet, Vault: s.vault,
		Recordings: webaccess.FromStore(s.recordings), Auth: s.users, Origins: []string{pub.Scheme + "://" + pub.Host},
		Limits: s.connLimits, Anchors: s.groups.Anchors, ScanURL: func() string { return settings.WebScanURL.Get(s.settings) },
		ApprovalWait: func() time.Duration { return settings.WebApprovalWait.Get(s.settings) },
		Person: func(ctx context.Context, id string) (bool, error) {
			u, err := s.users.Get(ctx, id)
			return err == nil && u.Kind == user.Person, err
		},
		Names:    func() []string { return settings.WebPermittedNames.Get(s.settings) },
		PlainURL: func() string { return plainURL(pub.Hostname(), s.listen.http) },
		Publish:  func(e api.Event) { s.frame.Publish(e) },
		Log:      s.log, Now: time.Now, Metrics: s.reg,
	})
	s.webDoor.room = s.web
	return err
}
