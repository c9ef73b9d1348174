package webaccess

import (
	"slices"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/shared/wire"
)

// maxAsked bounds the requests of one session that wait for approval.
const maxAsked = 16

// mayAsk decides whether a webproxy's request may be put before approvers.
func mayAsk(v view, asker string, ask wire.WebApprovalAsk, waiting int) *wire.Error {
	switch {
	case asker == "" || asker != v.Proxy:
		return wire.Errorf(wire.CodeRefused, "the session is not this webproxy's")
	case !v.Live:
		return wire.Errorf(wire.CodeRefused, "the session is over")
	case v.Locked:
		return wire.Errorf(wire.CodeRefused, "the session is locked")
	case ask.Hold == "" || len(ask.Hold) > 64 || ask.Method == "" || len(ask.Method) > 32 || len(ask.URL) > 4<<10 || len(ask.ContentType) > 256 ||
		len(ask.Digest) > 64 || len(ask.Rule) > 2<<10 || len(ask.Why) > 1<<10:
		return wire.Errorf(wire.CodeBadRequest, "the request to approve is malformed")
	case len(ask.RuleMethod) > 64 || ask.Preview != nil && (len(ask.Preview.Text) > wire.MaxWebPreview || !slices.Contains([]string{"form", "json", "multipart"}, ask.Preview.Kind)):
		return wire.Errorf(wire.CodeBadRequest, "the request to approve is malformed")
	case !strings.HasPrefix(ask.URL, "https://") && !strings.HasPrefix(ask.URL, "http://"):
		return wire.Errorf(wire.CodeBadRequest, "the request to approve has no URL")
	case waiting >= maxAsked:
		return wire.Errorf(wire.CodeLimit, "%d requests of this session wait already", maxAsked)
	}
	return nil
}

// petition is all that is decided on when somebody approves or denies.
type petition struct {
	By      *api.Principal
	Person  bool   // the decider is one, not an API client
	Owner   string // whose request it is
	Group   string // the access group of the session
	State   wire.ApprovalState
	Expires time.Time
	// Over and Locked are of the session.
	Over, Locked bool
	Approve      bool // else to deny
}

// hidden is the code of a refusal that must not tell that there is anything.
const hidden = "hidden"

// mayDecide decides whether a request is approved or denied by who wants to.
// Nobody decides on what he asked for himself, by whatever login; what was
// decided stays so. nil: he may.
func mayDecide(p petition, now time.Time) *Refused {
	switch {
	case p.By == nil || p.By.UserID == "" || p.Owner == "" || p.Group == "" || !p.By.Scope(api.WebApprove).Has(p.Group):
		return &Refused{Status: 404, Code: hidden, Public: "There is no such request."}
	case p.By.UserID == p.Owner:
		return &Refused{Status: 403, Code: "own_request", Public: "You cannot decide on a request of your own. Ask somebody else."}
	case !p.Person:
		return &Refused{Status: 403, Code: "not_a_person", Public: "Requests are decided on by people, not by API clients."}
	case p.State == wire.ApprovalLost:
		return &Refused{Status: 409, Code: "lost", Public: "This request does not wait any more: its webproxy was restarted or lost. It was not sent."}
	case p.State != wire.ApprovalWaiting:
		return &Refused{Status: 409, Code: "decided", Public: "This request does not wait any more: it is " + string(p.State) + "."}
	case !now.Before(p.Expires):
		return &Refused{Status: 409, Code: "decided", Public: "This request does not wait any more: its time is over."}
	case p.Over:
		return &Refused{Status: 409, Code: "decided", Public: "This request does not wait any more: its session is over."}
	case p.Locked && p.Approve:
		return &Refused{Status: 409, Code: "locked", Public: "The session is locked. Unlock it first, or deny the request."}
	}
	return nil
}
