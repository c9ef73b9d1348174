// Package access holds the decision: may this user, from there, at this
// moment, use this account on this target in this way? It is pure: it imports
// nothing of ours, does no I/O and reads no clock. Everything that is not
// plainly allowed is refused, with a reason.
package access

import (
	"net/netip"
	"time"
)

// Feature is one way of using a target. A grant lists the ones it allows.
type Feature uint16

// The features. A Request wants exactly one; a Grant allows a set.
const (
	Shell         Feature = 1 << iota // interactive shell
	Exec                              // single commands, rsync, git
	FileTransfer                      // sftp, scp
	Forward                           // -L, -J: raw TCP through the target's SSH or to a tcp target
	RemoteForward                     // -R
	X11
	AgentForward
	Web
	Network
)

// Features is a set of Feature.
type Features = Feature

// AllFeatures is every feature there is.
const AllFeatures Features = Shell | Exec | FileTransfer | Forward | RemoteForward | X11 | AgentForward | Web | Network

// Recorded are the uses a recording is taken of; raw forwarding has no content
// that could be played back.
const Recorded Features = Shell | Exec | FileTransfer | X11 | Web

// Window limits when a grant or membership holds. The zero value always holds;
// a window that makes no sense (see Validate) never does.
type Window struct {
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	// Days are the weekdays it holds, 0 = Sunday; empty means all. A span over
	// midnight belongs to the day it starts on.
	Days []time.Weekday `json:"days,omitempty"`
	// From and To are minutes after local midnight in Zone, 0 to 1440; To is
	// exclusive and may be before From (over midnight). Both zero means all day.
	From int `json:"from,omitempty"`
	To   int `json:"to,omitempty"`
	// Zone is an IANA time zone name; empty means UTC.
	Zone string `json:"zone,omitempty"`
	// Floating, when not zero, starts at the first use: the membership holds
	// for this long from FirstUse on. Only memberships float; a grant whose
	// window floats never holds.
	Floating time.Duration `json:"floating,omitempty"`
}

// Membership is a user's place in a role.
type Membership struct {
	Role     string
	Window   Window
	FirstUse time.Time      // of a floating window; zero = not used yet
	Sources  []netip.Prefix // empty = from anywhere
}

// Subject is the user as the decision sees him.
type Subject struct {
	User        string
	Disabled    bool
	Locked      bool
	MFA         bool // a second factor was given in this login
	Memberships []Membership
}

// Target is the target as the decision sees it.
type Target struct {
	ID       string
	Site     string
	Kind     string
	Disabled bool
	Tags     []string // "key=value" or plain
	// Group is the access group it is in.
	Group string
}

// Grant gives a role access to a target's accounts. It names the target by ID
// or by a tag, never by both.
type Grant struct {
	ID     string
	Role   string
	Target string
	Tag    string
	// Group is the access group of the role: a tag means the targets of this
	// group that have it, so that nobody opens those of others by their tags.
	Group    string
	Accounts []string // names; "*" means every account; empty serves only targets without accounts
	Features Features
	Window   Window
	Sources  []netip.Prefix
	// RequireMFA refuses a login without a second factor.
	RequireMFA bool
	// RequireReason refuses a connection opened without a reason text.
	RequireReason bool
	// NoRecording permits unrecorded shells; the default is to record.
	NoRecording bool
	// MaxDuration ends the connection after this long; 0 = no limit.
	MaxDuration time.Duration
	// Idle ends the connection after this long without input; 0 = no limit.
	Idle     time.Duration
	Disabled bool
}

// Request is one question.
type Request struct {
	Subject Subject
	Target  Target
	// Account is the login on the target; empty for kinds without accounts.
	Account         string
	AccountDisabled bool
	// Mask is what kind and account of the target permit at all (the feature
	// switches, C31). The zero value permits nothing.
	Mask      Features
	Want      Feature // exactly one
	HasReason bool
	Source    netip.Addr
	Now       time.Time
	// Grants are all grants that may matter; those of other targets or roles
	// are ignored.
	Grants []Grant
	// Zones remembers loaded time zones between decisions; nil loads them anew.
	Zones *Zones
}

// Reason is why a request was refused, or Allowed. The zero value refuses.
type Reason uint8

// Reasons, in the order they are checked. A refusal names the one that came
// closest to allowing. Whoever has no role for a target hears NoRole and
// learns nothing else about it.
const (
	Refused Reason = iota // the question makes no sense
	Allowed
	UserDisabled
	UserLocked
	LoginEnded // the login it was opened with is over; never from Decide
	NoRole     // no role of the user grants this target
	TargetDisabled
	NoAccount // granted, but not this account
	AccountDisabled
	NoFeature     // granted, but not this use
	OutsideWindow // outside the time window
	OutsideSource // from an address that is not permitted
	NeedMFA
	NeedReason
)

// Decision is the answer.
type Decision struct {
	Reason Reason
	// Grant and Role are those that allowed it; of a refusal those that came
	// closest, if any.
	Grant, Role string
	// Features are all uses allowed together with the one wanted.
	Features Features
	// Record is whether it must be recorded: some of Features is (see
	// Recorded) and not every grant waives it. Limits add up: where several
	// grants apply the strictest recording rule, duration and idle time hold.
	Record      bool
	MaxDuration time.Duration
	Idle        time.Duration
	// Until is the earliest moment the answer to the same question could be
	// another one because time went by (a window opens or ends); zero = no
	// such moment. Until then it stays the same.
	Until time.Time
	// StartsFloating: the floating window of the membership in Role begins
	// with this use.
	StartsFloating bool
}

// OK reports whether the request is allowed.
func (d Decision) OK() bool { return d.Reason == Allowed }
