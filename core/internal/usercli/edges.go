package usercli

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"caponier/shared/daemon"
)

type edgesCmd struct {
	List   edgesList   `cmd:"" default:"1" help:"List edge nodes and how they are doing."`
	Revoke edgesRevoke `cmd:"" help:"Revoke a node: its tunnel ends at once and it cannot come back."`
}

type edgeNode struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Kind      string    `json:"kind"`
	Site      string    `json:"site"`
	State     string    `json:"state"`
	Version   string    `json:"version"`
	Transport string    `json:"transport"`
	RTT       float64   `json:"rtt_ms"`
	Streams   int       `json:"streams"`
	LastSeen  time.Time `json:"last_seen_at"`
}

type edgesList struct{}

func (edgesList) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	items, err := c.all(e.ctx, "/edges", nil, maxListed)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(nonNil(items))
	}
	list, err := decodeAll[edgeNode](items)
	if err != nil {
		return err
	}
	rows := make([][]string, len(list))
	for i, n := range list {
		rows[i] = []string{n.ID, n.Name, n.Kind, n.Site, n.State, n.Transport, n.Version, when(n.LastSeen)}
	}
	return e.table("ID NAME KIND SITE STATE TRANSPORT VERSION SEEN", rows)
}

type edgesRevoke struct {
	ID string `arg:"" help:"Node ID (edg_…)."`
}

func (r edgesRevoke) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	if err := c.do(e.ctx, http.MethodPost, "/edges/"+url.PathEscape(r.ID)+"/revoke", nil, nil); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]string{"revoked": r.ID})
	}
	return e.printf("%s revoked\n", r.ID)
}

type tokensCmd struct {
	List   tokensList   `cmd:"" default:"1" help:"List enrolment tokens."`
	Create tokensCreate `cmd:"" help:"Create a token and print the one command to run on the new node."`
	Revoke tokensRevoke `cmd:"" help:"Revoke a token."`
}

type enrolmentToken struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`
	Site      string    `json:"site"`
	Uses      int       `json:"uses"`
	Used      int       `json:"used"`
	ExpiresAt time.Time `json:"expires_at"`
	State     string    `json:"state"`
}

type tokensList struct{}

func (tokensList) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	items, err := c.all(e.ctx, "/enrolment-tokens", nil, maxListed)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(nonNil(items))
	}
	list, err := decodeAll[enrolmentToken](items)
	if err != nil {
		return err
	}
	rows := make([][]string, len(list))
	for i, t := range list {
		rows[i] = []string{t.ID, t.Kind, t.Site, t.State, when(t.ExpiresAt)}
	}
	return e.table("ID KIND SITE STATE EXPIRES", rows)
}

type tokensCreate struct {
	Site string        `required:"" help:"Site the node serves." placeholder:"NAME"`
	Kind string        `help:"Kind of node: ${enum}." enum:"extender" default:"extender"`
	Uses int           `help:"How many nodes may enrol with it." default:"1"`
	TTL  time.Duration `help:"How long it can be used." default:"1h"`
}

func (t tokensCreate) Run(e *env) error {
	if t.Uses < 1 || t.TTL < time.Minute {
		return &daemon.UsageError{Text: "uses must be at least 1 and ttl at least 1m", Hint: "caponier tokens create --site vpc-a"}
	}
	c, p, err := e.session()
	if err != nil {
		return err
	}
	var answer struct {
		enrolmentToken
		Token string `json:"token"`
	}
	in := map[string]any{"kind": t.Kind, "site": t.Site, "uses": t.Uses, "ttl_seconds": int(t.TTL.Seconds())}
	if err := c.do(e.ctx, http.MethodPost, "/enrolment-tokens", in, &answer); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(answer)
	}
	return e.printf("On the machine inside %s, run:\n\n  CAPONIER_TOKEN=%s caponier-%s run --core %s --state /var/lib/caponier-%s\n\nIt can be used %d times until %s.\n",
		t.Site, plain(answer.Token), t.Kind, strings.TrimSuffix(p.URL, "/"), t.Kind, t.Uses, when(answer.ExpiresAt))
}

type tokensRevoke struct {
	ID string `arg:"" help:"Token ID."`
}

func (t tokensRevoke) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	if err := c.do(e.ctx, http.MethodDelete, "/enrolment-tokens/"+url.PathEscape(t.ID), nil, nil); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]string{"revoked": t.ID})
	}
	return e.printf("%s revoked\n", t.ID)
}
