package harness

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Edge is an edge node as core shows it.
type Edge struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Site   string `json:"site"`
	Health string `json:"health"`
	Tunnel *struct {
		Transport   string    `json:"transport"`
		Binding     string    `json:"binding"`
		ConnectedAt time.Time `json:"connected_at"`
		Relayed     int       `json:"relayed"`
		StartedAt   time.Time `json:"started_at"`
		Build       string    `json:"build"`
		Remote      string    `json:"remote"`
		RTTMS       float64   `json:"rtt_ms"`
	} `json:"tunnel"`
}

// Edges lists the edge nodes of a site.
func (a *API) Edges(ctx context.Context, site string) ([]Edge, error) {
	var out struct {
		Items []Edge `json:"items"`
	}
	err := a.Do(ctx, http.MethodGet, "/edges?site="+site, nil, &out)
	return out.Items, err
}

// Online waits until a node of the site is connected and returns it.
func (a *API) Online(ctx context.Context, limit time.Duration, site string, proc *Proc) (Edge, error) {
	var found Edge
	err := Until(ctx, limit, "an extender of "+site+" is online", func() error {
		if err := gone(proc); err != nil {
			return err
		}
		list, err := a.Edges(ctx, site)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Health == "online" && e.Tunnel != nil {
				found = e
				return nil
			}
		}
		return errors.New("none is")
	})
	return found, err
}
