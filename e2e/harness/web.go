package harness

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// WebEdge is a carrier or webproxy as core shows it.
type WebEdge struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Health string `json:"health"`
	Tunnel struct {
		Web *WebLoad `json:"web"`
	} `json:"tunnel"`
	Web *WebLoad `json:"-"` // as the node said last; nil: nothing yet
}

// WebLoad is what a carrier or webproxy has and has room for.
type WebLoad struct {
	Live    int    `json:"live"`
	Warm    int    `json:"warm"`
	Max     int    `json:"max"`
	Room    int    `json:"room"`
	Problem string `json:"problem"`
	Address string `json:"address"`
}

// WebEdge reads a carrier or webproxy by name.
func (a *API) WebEdge(ctx context.Context, name string) (WebEdge, error) {
	var out struct {
		Items []WebEdge `json:"items"`
	}
	if err := a.Do(ctx, http.MethodGet, "/edges?limit=500", nil, &out); err != nil {
		return WebEdge{}, err
	}
	for _, e := range out.Items {
		if e.Name == name {
			e.Web = e.Tunnel.Web
			return e, nil
		}
	}
	return WebEdge{}, fmt.Errorf("core knows no node %s", name)
}

// WebReady waits until a node has room for warm parked browsers, or what ready
// asks of it.
func (a *API) WebReady(ctx context.Context, limit time.Duration, e *EdgeNode, ready func(WebEdge) error) (WebEdge, error) {
	var found WebEdge
	err := Until(ctx, limit, e.Name+" is ready", func() error {
		if err := gone(e.Proc); err != nil {
			return err
		}
		var err error
		if found, err = a.WebEdge(ctx, e.Name); err != nil {
			return err
		}
		if found.Health != "online" || found.Web == nil {
			return fmt.Errorf("it is %s and has said %+v", found.Health, found.Web)
		}
		return ready(found)
	})
	return found, err
}

// HasRoom asks for room and at least warm parked browsers.
func HasRoom(warm int) func(WebEdge) error {
	return func(e WebEdge) error {
		if e.Web.Problem != "" || e.Web.Room == 0 || e.Web.Warm < warm {
			return fmt.Errorf("it has %+v", *e.Web)
		}
		return nil
	}
}

// WebTarget is a target of kind web as it is made and read; Policy is a
// webrule.Policy.
type WebTarget struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	Site     string    `json:"site,omitempty"`
	Comment  string    `json:"comment,omitempty"`
	Tags     []string  `json:"tags,omitempty"`
	Accounts []Account `json:"accounts,omitempty"`
	Web      Web       `json:"web"`
}

// Web is what a target of kind web says besides.
type Web struct {
	StartURL string         `json:"start_url"`
	Insecure bool           `json:"insecure,omitempty"`
	API      bool           `json:"api,omitempty"`
	Policy   any            `json:"policy,omitempty"`
	Browser  map[string]any `json:"browser,omitempty"`
	ScanURL  string         `json:"scan_url,omitempty"`
}

// WebSession is a web session as core shows it.
type WebSession struct {
	ID          string `json:"id"`
	State       string `json:"state"`
	TargetName  string `json:"target_name"`
	Recorded    bool   `json:"recorded"`
	RecordingID string `json:"recording_id"`
	Carrier     string `json:"carrier"`
	WebProxy    string `json:"webproxy"`
	Warm        bool   `json:"warm"`
	IdleS       int    `json:"idle_s"`
	NoticeS     int    `json:"notice_s"`
	Extend      bool   `json:"extend"`
	EndReason   string `json:"end_reason"`
	EndText     string `json:"end_text"`
	Problem     string `json:"problem"`
	Locked      bool   `json:"locked"`
	LockText    string `json:"lock_text"`
}

// OpenWeb opens a web target in a browser of 1024 by 768 pixels.
func (a *API) OpenWeb(ctx context.Context, target string) (WebSession, error) {
	return a.OpenWebIn(ctx, target, "")
}

// OpenWebIn opens a web target for somebody in a time zone.
func (a *API) OpenWebIn(ctx context.Context, target, zone string) (WebSession, error) {
	var s WebSession
	return s, a.Do(ctx, http.MethodPost, "/web-sessions", map[string]any{"target_id": target, "width": 1024, "height": 768, "time_zone": zone}, &s)
}

// WebSession reads a session.
func (a *API) WebSession(ctx context.Context, id string) (WebSession, error) {
	var s WebSession
	return s, a.Do(ctx, http.MethodGet, "/web-sessions/"+id, nil, &s)
}

// EndWeb ends a session.
func (a *API) EndWeb(ctx context.Context, id string) error {
	return a.Do(ctx, http.MethodDelete, "/web-sessions/"+id, nil, nil)
}

// TimelineEvent is one entry of a web recording's timeline; T is in seconds
// since its beginning.
type TimelineEvent struct {
	T      float64           `json:"t"`
	Kind   string            `json:"kind"`
	Source string            `json:"source"`
	Fields map[string]string `json:"fields"`
}

// Timeline reads the whole timeline of a recording.
func (a *API) Timeline(ctx context.Context, recording string) ([]TimelineEvent, error) {
	var all []TimelineEvent
	for after := 0; ; {
		var page struct {
			Events []TimelineEvent `json:"events"`
			Next   int             `json:"next"`
			More   bool            `json:"more"`
		}
		if err := a.Do(ctx, http.MethodGet, fmt.Sprintf("/recordings/%s/timeline?limit=1000&after=%d", recording, after), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Events...)
		if !page.More {
			return all, nil
		}
		after = page.Next
	}
}
