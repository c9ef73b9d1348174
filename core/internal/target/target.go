// Package target keeps what can be reached: sites, targets, their accounts
// and the grants that open them to roles. Data and validation only; the
// decision is in access, put together in policy.
package target

import (
	"net"
	"strconv"
	"time"

	"caponier/core/internal/access"
)

// Kind of a target.
type Kind string

// The kinds.
const (
	SSH     Kind = "ssh"
	TCP     Kind = "tcp"
	Web     Kind = "web"
	Network Kind = "network"
)

// Site is an address space reached through a group of extenders. Its name
// prefixes addresses: site/host:port. The name never changes: edges and
// targets refer to it.
type Site struct {
	ID        string
	Name      string // [a-z0-9-]{1,63}
	Comment   string
	Group     string // access group
	CreatedAt time.Time
	Version   int64
}

// HostKeyPolicy says how a target's SSH host key is trusted.
type HostKeyPolicy string

// The policies. The default is TOFU.
const (
	HostKeyTOFU   HostKeyPolicy = "tofu"   // first key seen is pinned
	HostKeyPinned HostKeyPolicy = "pinned" // only keys an administrator accepted
	HostKeyCA     HostKeyPolicy = "ca"     // host certificates of a given CA key
)

// Target is something a user may reach.
type Target struct {
	ID       string
	Name     string // unique, [a-z0-9._-]{1,64}
	Kind     Kind
	Site     string // site name; empty = dialled by core itself
	Host     string // name or address as the site knows it, lower case, canonical
	Port     int
	Comment  string
	Group    string   // access group
	Tags     []string // sorted; "key=value" or plain
	Disabled bool
	// MachineID is set when the host registered itself (see RegisterHost).
	MachineID string
	// Origin tells how it came here: empty (by hand), "import imp_…", "host tok_…".
	Origin string

	HostKeyPolicy HostKeyPolicy
	// HostKeyCA is an authorized_keys line; only with policy ca.
	HostKeyCA string
	// SSHAlgorithms overrides the offered algorithms for old hosts; see sshca.Algorithms.
	SSHAlgorithms string
	// Network is what a target of kind network opens, nil for others.
	Network *NetworkSpec
	// Web is what a target of kind web is, nil for others. Host and Port are
	// those of its start URL.
	Web *WebSpec

	CreatedAt time.Time
	UpdatedAt time.Time
	Version   int64
}

// Address is host:port as dialled inside the site; of a network target its
// first destination.
func (t *Target) Address() string {
	if t.Network != nil {
		return t.Network.summary()
	}
	return net.JoinHostPort(t.Host, strconv.Itoa(t.Port))
}

// FullAddress is site/host:port, or host:port without a site.
func (t *Target) FullAddress() string {
	if t.Site == "" {
		return t.Address()
	}
	return t.Site + "/" + t.Address()
}

// Auth is how an account logs in to its target.
type Auth string

// The ways.
const (
	AuthCertificate Auth = "certificate" // just-in-time certificate of our CA
	AuthPassword    Auth = "password"    // stored secret
	AuthKey         Auth = "key"         // stored private key
	AuthAsk         Auth = "ask"         // the user is asked for the password
)

// Account is a login on a target.
type Account struct {
	ID       string
	TargetID string
	Name     string // login on the target, e.g. root
	Auth     Auth
	SecretID string // for password and key: a secret in the vault
	// Features are the feature switches (C31): uses the account permits at
	// all, whatever is granted.
	Features access.Features
	Disabled bool
	Version  int64
}

// HostKey is a host key seen on, or accepted for, a target.
type HostKey struct {
	TargetID    string
	Algorithm   string
	Key         string // authorized_keys form
	Fingerprint string // SHA256:…
	State       HostKeyState
	SeenAt      time.Time
	DecidedBy   string // user name, "first use", "registration"; empty while pending
}

// HostKeyState is what was decided about a host key.
type HostKeyState string

// The states.
const (
	KeyAccepted HostKeyState = "accepted"
	KeyPending  HostKeyState = "pending" // another key than the accepted ones, waiting for an administrator
	KeyRejected HostKeyState = "rejected"
)

// Grant opens a target, or all targets with a tag, to a role.
type Grant struct {
	access.Grant
	Comment   string
	CreatedAt time.Time
	Version   int64

	targetGroup string // access group of the target, if it names one
}
