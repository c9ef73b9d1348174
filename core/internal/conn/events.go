package conn

import (
	"errors"

	"caponier/core/internal/audit"
	"caponier/shared/wire"
)

// The audit events of this room.
const (
	EventRequested  audit.Type = "connection.requested"
	EventConnected  audit.Type = "connection.connected"
	EventClosed     audit.Type = "connection.closed"
	EventTerminated audit.Type = "connection.terminated"
	EventChannel    audit.Type = "connection.channel"
	EventTagged     audit.Type = "connection.tagged"
)

// event makes an audit event about l by its user.
func (l *Live) event(t audit.Type, o audit.Outcome, fields map[string]string) audit.Event {
	p := l.spec.Principal
	if t == EventRequested {
		fields = map[string]string{
			"kind": l.spec.Kind, "account": l.spec.Account, "reason": l.spec.Reason,
			"role": l.spec.Decision.Role, "grant": l.spec.Decision.Grant, "site": l.spec.Site,
		}
	}
	return audit.Event{
		Type: t, Outcome: o, Connection: l.ID, Fields: fields,
		Actor:  audit.Actor{Kind: "user", ID: p.UserID, Name: p.UserName, Source: l.spec.Source.String(), Via: p.Via},
		Object: audit.Object{Kind: "target", ID: l.spec.TargetID, Name: l.spec.TargetName},
	}
}

// publicText is the part of an error a user may read; everything else stays in the log.
func publicText(err error) string {
	if w, ok := errors.AsType[*wire.Error](err); ok {
		return cut(w.Public, wire.MaxPublic)
	}
	if t, ok := errors.AsType[*Terminated](err); ok {
		return cut(t.Public, wire.MaxPublic)
	}
	return "internal error"
}
