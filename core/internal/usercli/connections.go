package usercli

import (
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

type connectionsCmd struct {
	List      connectionsList `cmd:"" default:"withargs" help:"List connections, the newest first."`
	Show      connectionsShow `cmd:"" help:"Show one connection with its channels."`
	Terminate connectionsEnd  `cmd:"" help:"End a live connection."`
}

// connection is one audited use of a target.
type connection struct {
	ID          string    `json:"id"`
	Kind        string    `json:"kind"`
	State       string    `json:"state"`
	User        string    `json:"user_name"`
	Target      string    `json:"target_name"`
	Account     string    `json:"account"`
	Source      string    `json:"source"`
	RequestedAt time.Time `json:"requested_at"`
	BytesIn     int64     `json:"bytes_in"`
	BytesOut    int64     `json:"bytes_out"`
	EndReason   string    `json:"end_reason"`
	RecordingID string    `json:"recording_id"`
}

type connectionsList struct {
	Live   bool   `help:"Only live ones."`
	Target string `help:"Only of this target." placeholder:"NAME"`
	Limit  int    `help:"At most this many." default:"50"`
}

func (l connectionsList) Run(e *env) error {
	q := url.Values{}
	if l.Live {
		q.Set("live", "true")
	}
	if l.Target != "" {
		q.Set("target", l.Target)
	}
	return list(e, "/connections", q, l.Limit, "ID BEGAN STATE KIND USER TARGET ACCOUNT IN OUT ENDED RECORDING", func(k connection) []string {
		return []string{k.ID, when(k.RequestedAt), k.State, k.Kind, k.User, k.Target, k.Account, size(k.BytesIn), size(k.BytesOut), k.EndReason, k.RecordingID}
	})
}

type connectionsShow struct {
	ID string `arg:"" help:"Connection ID (con_…)."`
}

func (s connectionsShow) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := c.do(e.ctx, http.MethodGet, "/connections/"+url.PathEscape(s.ID), nil, &raw); err != nil {
		return err
	}
	// Everything there is to know, in both formats.
	return e.printJSON(raw)
}

type connectionsEnd struct {
	ID string `arg:"" help:"Connection ID (con_…)."`
}

func (t connectionsEnd) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	if err := c.do(e.ctx, http.MethodDelete, "/connections/"+url.PathEscape(t.ID), nil, nil); err != nil {
		return err
	}
	return e.done("terminated", t.ID, t.ID, "ended")
}
