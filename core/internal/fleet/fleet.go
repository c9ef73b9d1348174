// Package fleet keeps the edge nodes: enrolment tokens, identities and their
// CA, accepted tunnels, node health, and the choice of a node for a
// destination. It opens streams; what flows in them is not its business.
package fleet

import (
	"context"
	"net"
	"net/http"

	"caponier/shared/wire"
)

// Fleet is the room's entry. Safe for concurrent use.
type Fleet struct{}

// DialRequest asks for a byte pipe to a destination.
type DialRequest struct {
	Site       string // empty = core dials by itself
	Address    string // host:port as the site knows it
	Class      wire.Class
	Connection string // audited connection ID, goes along to the edge
}

// Route tells which way a connection goes.
type Route struct {
	Site      string `json:"site,omitempty"`
	NodeID    string `json:"node_id,omitempty"`
	Node      string `json:"node,omitempty"`
	Transport string `json:"transport,omitempty"` // wss, quic, direct
	Binding   string `json:"binding,omitempty"`
}

// Conn is a dialled destination. CloseWrite half-closes.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Dial connects to a destination through the least loaded live extender of
// the site (or directly) and waits until it is connected or refused. Errors
// are *wire.Error with public text: no extender online, refused by rule, DNS,
// unreachable, timeout. A refusal by the edge's rules is audited.
func (f *Fleet) Dial(ctx context.Context, r DialRequest) (Conn, Route, error) { panic("contract") }

// DialStage is one timed step of a dial, for explain.
type DialStage struct {
	Name string // tunnel, policy, dns, tcp
	OK   bool
	MS   float64
	Text string // public
	Fix  string // what to do about it
}

// Probe tries a destination step by step and leaves nothing open.
func (f *Fleet) Probe(ctx context.Context, r DialRequest) []DialStage { panic("contract") }

// Handler serves /edge/v1/… : tunnels, enrolment, CA and CRL.
func (f *Fleet) Handler() http.Handler { panic("contract") }

// Run accepts QUIC tunnels and does periodic work until ctx ends, then drains.
func (f *Fleet) Run(ctx context.Context) error { panic("contract") }
