package harness

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// RouterState is a router as core shows it.
type RouterState struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Health   string   `json:"health"`
	Pools    []string `json:"pools"`
	Type     string   `json:"type"`
	Leased   bool     `json:"leased"`
	Synced   bool     `json:"synced"`
	Sessions int      `json:"sessions"`
	Ending   int      `json:"ending"`
	Problem  string   `json:"problem"`
}

// Router reads a router by name.
func (a *API) Router(ctx context.Context, name string) (RouterState, error) {
	var out RouterState
	return out, a.Do(ctx, http.MethodGet, "/routers/"+name, nil, &out)
}

// RouterReady waits until core and a router agree.
func (a *API) RouterReady(ctx context.Context, limit time.Duration, name string, proc *Proc) (RouterState, error) {
	var found RouterState
	err := Until(ctx, limit, "router "+name+" is ready", func() error {
		if err := gone(proc); err != nil {
			return err
		}
		var err error
		if found, err = a.Router(ctx, name); err != nil {
			return err
		}
		if found.Health != "online" || !found.Synced || found.Type == "" {
			return fmt.Errorf("it is %+v", found)
		}
		return nil
	})
	return found, err
}

// Pool sets the client addresses whose traffic a router forwards.
func (a *API) Pool(ctx context.Context, name string, pools ...string) error {
	return a.Do(ctx, http.MethodPatch, "/routers/"+name, map[string]any{"pools": pools}, nil, "If-Match", "*")
}

// NetworkSession is a network session as core shows it.
type NetworkSession struct {
	ID        string `json:"id"`
	State     string `json:"state"`
	Target    string `json:"target_name"`
	Client    string `json:"client_ip"`
	BytesOut  int64  `json:"bytes_out"`
	BytesIn   int64  `json:"bytes_in"`
	EndReason string `json:"end_reason"`
	EndText   string `json:"end_text"`
	Routers   []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	} `json:"routers"`
}

// OpenNetwork opens a network target; the session's client is where the
// request comes from.
func (a *API) OpenNetwork(ctx context.Context, target string) (NetworkSession, error) {
	var s NetworkSession
	return s, a.Do(ctx, http.MethodPost, "/network-sessions", map[string]string{"target": target}, &s)
}

// OpenNetworkFor opens a network target for another address.
func (a *API) OpenNetworkFor(ctx context.Context, target, client string) (NetworkSession, error) {
	var s NetworkSession
	return s, a.Do(ctx, http.MethodPost, "/network-sessions", map[string]string{"target": target, "client_ip": client}, &s)
}

// NetworkSession reads a session.
func (a *API) NetworkSession(ctx context.Context, id string) (NetworkSession, error) {
	var s NetworkSession
	return s, a.Do(ctx, http.MethodGet, "/network-sessions/"+id, nil, &s)
}
