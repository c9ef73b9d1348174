package usercli

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"caponier/shared/daemon"
)

type edgesCmd struct {
	List   edgesList   `cmd:"" default:"1" help:"List edge nodes and how they are doing."`
	Revoke edgesRevoke `cmd:"" help:"Revoke a node: its tunnel ends at once and it cannot come back."`
}

type edgeNode struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	Site     string    `json:"site"`
	Health   string    `json:"health"`
	LastSeen time.Time `json:"last_seen"`
	Warnings []string  `json:"warnings"`
	Tunnel   struct {
		Transport string  `json:"transport"`
		Build     string  `json:"build"`
		RTT       float64 `json:"rtt_ms"`
		Relayed   int     `json:"relayed"`
	} `json:"tunnel"`
}

type edgesList struct{}

func (edgesList) Run(e *env) error {
	return list(e, "/edges", nil, maxListed, "ID NAME KIND SITE HEALTH TRANSPORT RTT RELAYED BUILD SEEN WARNINGS", func(n edgeNode) []string {
		rtt := ""
		if n.Tunnel.Transport != "" {
			rtt = strconv.FormatFloat(n.Tunnel.RTT, 'f', 1, 64) + "ms"
		}
		return []string{n.ID, n.Name, n.Kind, n.Site, n.Health, n.Tunnel.Transport, rtt, strconv.Itoa(n.Tunnel.Relayed), n.Tunnel.Build, when(n.LastSeen), strings.Join(n.Warnings, "; ")}
	})
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
	return e.done("revoked", r.ID, r.ID, "revoked")
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
	MaxUses   int       `json:"max_uses"`
	Uses      int       `json:"uses"`
	ExpiresAt time.Time `json:"expires_at"`
	State     string    `json:"state"`
}

type tokensList struct{}

func (tokensList) Run(e *env) error {
	return list(e, "/enrolment-tokens", nil, maxListed, "ID KIND SITE STATE USED EXPIRES", func(t enrolmentToken) []string {
		return []string{t.ID, t.Kind, t.Site, t.State, fmt.Sprintf("%d/%d", t.Uses, t.MaxUses), when(t.ExpiresAt)}
	})
}

type tokensCreate struct {
	Site string        `required:"" help:"Site the node serves; a new name is a new site." placeholder:"NAME"`
	Kind string        `help:"Kind of node: ${enum}." enum:"extender,host" default:"extender"`
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
		Core  string `json:"core,omitempty"`
		// An older core says neither.
		SiteCreated bool `json:"site_created"`
		Commands    struct {
			Shell string `json:"shell"`
		} `json:"commands"`
	}
	in := map[string]any{"kind": t.Kind, "site": t.Site, "max_uses": t.Uses, "ttl_s": int(t.TTL.Seconds())}
	if err := c.do(e.ctx, http.MethodPost, "/enrolment-tokens", in, &answer); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(answer)
	}
	if answer.SiteCreated {
		if err := e.printf("There was no site %s: it was made now. If that was a slip, caponier tokens revoke %s\n\n", t.Site, plain(answer.ID)); err != nil {
			return err
		}
	}
	if t.Kind == "host" {
		return e.printf("On the host, as root, with the script of an extender of %s (docs/enrol.md):\n\n  CAPONIER_TOKEN=%s sh caponier-deploy --accounts root\n\nUses: %d. Ends: %s.\n",
			t.Site, plain(answer.Token), t.Uses, when(answer.ExpiresAt))
	}
	core := answer.Core // an older core does not say
	if core == "" {
		core = p.URL
	}
	command := plain(answer.Commands.Shell)
	if command == "" {
		command = fmt.Sprintf("CAPONIER_TOKEN=%s caponier-%s run --core %s --state ~/.caponier-%s", plain(answer.Token), t.Kind, strings.TrimSuffix(plain(core), "/"), t.Kind)
	}
	return e.printf("On the machine inside %s, run:\n\n  %s\n\nUses: %d. Ends: %s.\n", t.Site, command, t.Uses, when(answer.ExpiresAt))
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
	return e.done("revoked", t.ID, t.ID, "revoked")
}
