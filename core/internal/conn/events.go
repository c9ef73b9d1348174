package conn

import (
	"errors"

	"caponier/core/internal/audit"
	"caponier/shared/wire"
)

// channelEvent is the audit event of a kind of channel.
func channelEvent(kind string) audit.Type {
	switch kind {
	case "exec":
		return audit.ChannelExec
	case "file", "sftp", "scp":
		return audit.ChannelFile
	case "forward", "direct-tcpip", "remote-forward":
		return audit.ChannelForward
	case "port-opened":
		return audit.PortOpened
	case "port-closed":
		return audit.PortClosed
	case "port-denied":
		return audit.PortDenied
	case "denied":
		return audit.ChannelDenied
	}
	return audit.ChannelOpened
}

// event makes an audit event about l by its user.
func (l *Live) event(t audit.Type, o audit.Outcome, fields map[string]string) audit.Event {
	p := l.spec.Principal
	if t == audit.ConnectionRequested {
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

// PublicText is the part of an error a user may read; everything else stays in the log.
func PublicText(err error) string {
	if w, ok := errors.AsType[*wire.Error](err); ok {
		return cut(w.Public, wire.MaxPublic)
	}
	if t, ok := errors.AsType[*Terminated](err); ok {
		return cut(t.Public, wire.MaxPublic)
	}
	if b, ok := errors.AsType[*BlockedError](err); ok {
		return cut(b.Public, wire.MaxPublic)
	}
	return "internal error"
}
