package user

import (
	"context"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

// Audit events of this room.
const (
	EventLogin           audit.Type = "login.succeeded"
	EventLoginFailed     audit.Type = "login.failed"
	EventLoginLimited    audit.Type = "login.limited"
	EventLoginPaused     audit.Type = "login.paused"
	EventSessionOpened   audit.Type = "session.opened"
	EventSessionRefused  audit.Type = "session.refused"
	EventSessionClosed   audit.Type = "session.closed"
	EventSignedOut       audit.Type = "user.signed_out"
	EventUserCreated     audit.Type = "user.created"
	EventUserChanged     audit.Type = "user.changed"
	EventUserErased      audit.Type = "user.erased"
	EventUserExported    audit.Type = "user.exported"
	EventPasswordSet     audit.Type = "user.password_set"
	EventTOTPEnrolled    audit.Type = "user.totp_enrolled"
	EventTOTPRemoved     audit.Type = "user.totp_removed"
	EventRecoveryUsed    audit.Type = "user.recovery_code_used"
	EventKeyAdded        audit.Type = "user.key_added"
	EventKeyRemoved      audit.Type = "user.key_removed"
	EventTokenCreated    audit.Type = "api_token.created"
	EventTokenRevoked    audit.Type = "api_token.revoked"
	EventTokenIssued     audit.Type = "api_client.token_issued"
	EventClientCreated   audit.Type = "api_client.created"
	EventClientSecretNew audit.Type = "api_client.secret_renewed"
	EventRoleCreated     audit.Type = "role.created"
	EventRoleChanged     audit.Type = "role.changed"
	EventRoleDeleted     audit.Type = "role.deleted"
	EventMemberAdded     audit.Type = "role.member_added"
	EventMemberChanged   audit.Type = "role.member_changed"
	EventMemberRemoved   audit.Type = "role.member_removed"
	EventMemberStarted   audit.Type = "role.member_started"
)

// actorOf is the caller of an operation as the audit log names him.
func actorOf(ctx context.Context) audit.Actor {
	p := api.PrincipalFrom(ctx)
	if p == nil {
		return audit.Actor{Kind: "anonymous", Source: addrText(api.SourceFrom(ctx)), Via: "api"}
	}
	return actorFor(p)
}

func actorFor(p *api.Principal) audit.Actor {
	return audit.Actor{Kind: "user", ID: p.UserID, Name: p.UserName, Source: addrText(p.Source), Via: p.Via}
}

func (u *User) object() audit.Object {
	return audit.Object{Kind: "user", ID: u.ID, Name: u.Name}
}
