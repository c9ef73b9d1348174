// Package program enforces sessions through a program of the operator's: a
// vendor's tool, a script, or either behind an SSH forced command.
//
// # The contract
//
// The program is called as PROGRAM VERB with one JSON Document on standard
// input. It must be idempotent: a session is known by its ID, and is the same
// as long as its hash is. Verbs:
//
//	add       open session for rules; again with the same hash: nothing to do
//	del       close session; not there is fine
//	list      print {"sessions":[{"id":…,"hash":…}]}
//	sync      make exactly sessions hold; may print {"failed":[{"id":…,"message":…}],"ending":[…]}
//	renew     sessions hold until expires_at and end then by themselves
//	counters  print {"sessions":[{"id":…,"bytes_out":…,"bytes_in":…,"packets_out":…,"packets_in":…}]}
//	check     be able to work; may print {"verbs":["add","del",…]}
//
// It exits with 0 when it is done, 10: the request is wrong, 11: it does not
// know the verb, 20: conflict with what is there, 30: try again. After
// anything else, or when it did not finish in time, nobody knows: it is asked
// to list, and the call is repeated. It may print {"message":"…"} for the
// person who asked; standard error goes to the router's log.
//
// Only add and del are required. Without list the router relies on its own
// journal; without renew rules stay when the router dies, which is told to
// core.
//
// With legacy arguments the program is called as
// PROGRAM add|del NETWORK ROUTER SESSION [STATIC], each a JSON text, with
// nothing on standard input, and exit 0 means done.
package program

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"caponier/shared/netrule"
	"caponier/shared/wire"
)

// The verbs.
const (
	verbAdd      = "add"
	verbDel      = "del"
	verbList     = "list"
	verbSync     = "sync"
	verbRenew    = "renew"
	verbCounters = "counters"
	verbCheck    = "check"
)

// The exit codes that mean something.
const (
	exitDone        = 0
	exitBad         = 10
	exitUnsupported = 11
	exitConflict    = 20
	exitRetry       = 30
)

// Limits of what a program may print, in bytes.
const (
	MaxStdout = 16 << 20
	MaxStderr = 8 << 10
)

// Call is one run of the program.
type Call struct {
	Verb  string
	Args  []string // after the verb
	Stdin []byte
}

// Reply is how it ended.
type Reply struct {
	Exit           int
	Stdout, Stderr []byte
	// Cut: more than the limit was printed, and dropped.
	Cut bool
}

// Runner starts the program. An error means that it could not be started, was
// killed, or did not finish before ctx ended: nobody knows what it has done.
type Runner interface {
	Run(ctx context.Context, c Call) (Reply, error)
	Close() error
}

// Document is what the program reads.
type Document struct {
	V         int    `json:"v"` // 1
	Op        string `json:"op"`
	RequestID string `json:"request_id"`
	// Revision grows with every request of a router, also over restarts.
	Revision int64   `json:"revision"`
	Router   router  `json:"router"`
	Session  *entry  `json:"session,omitempty"` // add, del
	Sessions []entry `json:"sessions,omitzero"` // sync, renew, counters
	// Rules and Static of the session of add and del.
	Rules  *rules          `json:"rules,omitempty"`
	Static json.RawMessage `json:"static_config,omitempty"`
	// LeaseS and ExpiresAt are for renew: how long sessions hold from now.
	LeaseS    int    `json:"lease_s,omitempty"`
	ExpiresAt string `json:"expires_at,omitempty"` // RFC 3339
}

type router struct {
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
}

// entry is one session. In sync it carries its rules.
type entry struct {
	ID        string          `json:"id"`
	Hash      string          `json:"hash,omitempty"`
	Target    string          `json:"target,omitempty"`
	Client    string          `json:"client,omitempty"`
	User      string          `json:"user,omitempty"`
	Provider  string          `json:"provider,omitempty"`
	ExpiresAt string          `json:"expires_at,omitempty"` // RFC 3339; none: until del
	LeaseS    int             `json:"lease_s,omitempty"`
	Rules     *rules          `json:"rules,omitempty"`
	Static    json.RawMessage `json:"static_config,omitempty"`
}

type rules struct {
	Client netip.Addr    `json:"client"`
	Dst    []destination `json:"dst"`
	SNAT   bool          `json:"src_nat"`
}

type destination struct {
	Selector selector `json:"selector"`
	NAT      *nat     `json:"nat,omitempty"`
}

type selector struct {
	IP    span   `json:"ip"`
	Proto string `json:"proto,omitempty"` // tcp, udp; none: any
	Port  *ports `json:"port,omitempty"`  // none: all
}

type span struct {
	Start netip.Addr `json:"start"`
	End   netip.Addr `json:"end"`
}

type ports struct {
	Start uint16 `json:"start"`
	End   uint16 `json:"end"`
}

type nat struct {
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port,omitempty"`
}

func rulesOf(r netrule.Rules) *rules {
	out := &rules{Client: r.Client, SNAT: r.SNAT, Dst: []destination{}}
	for _, d := range r.Destinations {
		to := destination{Selector: selector{IP: span{d.Addrs.First, d.Addrs.Last}}}
		switch d.Proto {
		case netrule.TCP:
			to.Selector.Proto = "tcp"
		case netrule.UDP:
			to.Selector.Proto = "udp"
		}
		if d.Ports != (netrule.Ports{}) {
			to.Selector.Port = &ports{d.Ports.First, d.Ports.Last}
		}
		if d.DNAT != nil {
			to.NAT = &nat{d.DNAT.Addr, d.DNAT.Port}
		}
		out.Dst = append(out.Dst, to)
	}
	return out
}

// hash names what a session allows: the same hash, the same rules.
func hash(s wire.RouterSession) string {
	b, err := json.Marshal(struct {
		Rules    *rules
		Provider string
		Static   json.RawMessage
	}{rulesOf(s.Rules), s.Provider, s.Static})
	if err != nil {
		// Static came as JSON and is checked before.
		b = []byte(s.ID)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func entryOf(s wire.RouterSession) entry {
	return entry{ID: s.ID, Hash: hash(s), Target: s.Target, Client: s.Rules.Client.String(), User: s.User, Provider: s.Provider}
}

// legacyArgs are the arguments of the older form.
func legacyArgs(r router, s wire.RouterSession) ([]string, error) {
	type network struct {
		Name string        `json:"name"`
		Dst  []destination `json:"dst"`
		SNAT bool          `json:"src_nat"`
	}
	type session struct {
		ID     string     `json:"id"`
		Client netip.Addr `json:"client_ip"`
		User   string     `json:"username"`
	}
	out := rulesOf(s.Rules)
	parts := []any{network{s.Target, out.Dst, out.SNAT}, r, session{s.ID, s.Rules.Client, s.User}}
	if len(s.Static) > 0 {
		parts = append(parts, s.Static)
	}
	var args []string
	for _, p := range parts {
		b, err := json.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("session %s: %w", s.ID, err)
		}
		args = append(args, string(b))
	}
	return args, nil
}

// explain is what the person who asked is told about a run that failed.
func explain(r Reply, err error) *wire.Error {
	var said struct {
		Message string `json:"message"`
	}
	if err == nil && !r.Cut && json.Unmarshal(r.Stdout, &said) == nil {
		if text := clean(said.Message); text != "" {
			return wire.Errorf(codeOf(r), "the router's program says: %s", text)
		}
	}
	switch {
	case err != nil:
		return wire.Errorf(wire.CodeTimeout, "the router's program did not finish")
	case r.Exit == exitBad:
		return wire.Errorf(wire.CodeBadRequest, "the router's program rejects the request")
	case r.Exit == exitUnsupported:
		return wire.Errorf(wire.CodeRefused, "the router's program cannot do this")
	case r.Exit == exitConflict:
		return wire.Errorf(wire.CodeRefused, "the router's program reports a conflict with something that is already there")
	case r.Exit == exitRetry:
		return wire.Errorf(wire.CodeLimit, "the router's program is busy: try again later")
	}
	return wire.Errorf(wire.CodeInternal, "the router's program failed with exit code %d", r.Exit)
}

func codeOf(r Reply) wire.Code {
	switch r.Exit {
	case exitBad:
		return wire.CodeBadRequest
	case exitUnsupported, exitConflict:
		return wire.CodeRefused
	case exitRetry:
		return wire.CodeLimit
	}
	return wire.CodeInternal
}

// clean makes text of a program fit for a person's screen.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
