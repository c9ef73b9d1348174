package audit

import (
	"cmp"
	"slices"
)

// Type names a kind of event, "room.verb": "connection.opened". Append
// refuses a type that has no number in the table below.
type Type string

// The types. Names and numbers are for good: exports and filters of operators
// depend on them. A room that needs another adds it at the end of its block.
const (
	SystemStarted  Type = "system.started"
	SystemStopped  Type = "system.stopped"
	SystemMigrated Type = "system.migrated"
	AuditPruned    Type = "audit.pruned"
	AuditBroken    Type = "audit.broken"
	AuditExported  Type = "audit.exported"
	AuditVerified  Type = "audit.verified"
	VaultRotated   Type = "system.kek_rotated"

	UserCreated         Type = "user.created"
	UserChanged         Type = "user.changed"
	UserDeleted         Type = "user.deleted"
	UserDisabled        Type = "user.disabled"
	UserEnabled         Type = "user.enabled"
	UserLocked          Type = "user.locked"
	UserUnlocked        Type = "user.unlocked"
	UserPasswordSet     Type = "user.password_set"
	UserTOTPEnrolled    Type = "user.totp_enrolled"
	UserTOTPRemoved     Type = "user.totp_removed"
	UserKeyAdded        Type = "user.key_added"
	UserKeyRemoved      Type = "user.key_removed"
	UserErased          Type = "user.erased"
	UserExported        Type = "user.exported"
	UserBootstrapped    Type = "user.bootstrapped"
	UserSessionsRevoked Type = "user.sessions_revoked"
	UserPasskeyAdded    Type = "user.passkey_added"
	UserPasskeyChanged  Type = "user.passkey_changed"
	UserPasskeyRemoved  Type = "user.passkey_removed"
	UserPasskeyCloned   Type = "user.passkey_cloned"
	UserIdentityLinked  Type = "user.identity_linked"
	UserIdentityRemoved Type = "user.identity_removed"

	RoleCreated       Type = "role.created"
	RoleChanged       Type = "role.changed"
	RoleDeleted       Type = "role.deleted"
	RoleMemberAdded   Type = "role.member_added"
	RoleMemberChanged Type = "role.member_changed"
	RoleMemberRemoved Type = "role.member_removed"
	RoleFirstUse      Type = "role.first_use"

	LoginSucceeded  Type = "login.succeeded"
	LoginFailed     Type = "login.failed"
	LoginLimited    Type = "login.limited"
	LoginLogout     Type = "login.logout"
	LoginExpired    Type = "login.expired"
	LoginCodeNeeded Type = "login.code_needed"
	LoginReplayed   Type = "login.replayed"
	LoginSession    Type = "login.session_opened"
	LoginPaused     Type = "login.paused"
	LoginRecovery   Type = "login.recovery_code_used"

	TokenCreated  Type = "token.created"
	TokenRevoked  Type = "token.revoked"
	TokenExpired  Type = "token.expired"
	TokenRefused  Type = "token.refused"
	ClientCreated Type = "token.client_created"
	ClientChanged Type = "token.client_changed"
	ClientDeleted Type = "token.client_deleted"
	ClientGranted Type = "token.client_granted"

	TargetCreated  Type = "target.created"
	TargetChanged  Type = "target.changed"
	TargetDeleted  Type = "target.deleted"
	TargetDisabled Type = "target.disabled"
	TargetEnabled  Type = "target.enabled"
	TargetImported Type = "target.imported"
	TargetProbed   Type = "target.probed"
	TargetHostJoin Type = "target.host_registered"
	TargetHostLeft Type = "target.host_unregistered"

	AccountCreated Type = "account.created"
	AccountChanged Type = "account.changed"
	AccountDeleted Type = "account.deleted"

	GrantCreated Type = "grant.created"
	GrantChanged Type = "grant.changed"
	GrantDeleted Type = "grant.deleted"

	SiteCreated Type = "site.created"
	SiteChanged Type = "site.changed"
	SiteDeleted Type = "site.deleted"

	HostKeyAccepted Type = "hostkey.accepted"
	HostKeyChanged  Type = "hostkey.changed"
	HostKeyRejected Type = "hostkey.rejected"
	HostKeyRemoved  Type = "hostkey.removed"

	EdgeEnrolled     Type = "edge.enrolled"
	EdgeChanged      Type = "edge.changed"
	EdgeRevoked      Type = "edge.revoked"
	EdgeDeleted      Type = "edge.deleted"
	EdgeConnected    Type = "edge.connected"
	EdgeDisconnected Type = "edge.disconnected"
	EdgeRefused      Type = "edge.refused"
	EdgeDialRefused  Type = "edge.dial_refused"
	EdgeRenewed      Type = "edge.renewed"
	EdgeReplaced     Type = "edge.replaced"
	EdgeCopied       Type = "edge.identity_copied"
	EdgeMoved        Type = "edge.moved"
	EdgeDrained      Type = "edge.drained"
	EdgeClockSkew    Type = "edge.clock_skew"
	EdgeHostRefused  Type = "edge.host_refused"

	EnrolmentCreated Type = "enrolment.created"
	EnrolmentUsed    Type = "enrolment.used"
	EnrolmentRevoked Type = "enrolment.revoked"
	EnrolmentRefused Type = "enrolment.refused"

	SecretCreated  Type = "secret.created"
	SecretChanged  Type = "secret.changed"
	SecretWritten  Type = "secret.written"
	SecretDeleted  Type = "secret.deleted"
	SecretUsed     Type = "secret.used"
	SecretRevealed Type = "secret.revealed"
	SecretRefused  Type = "secret.refused"

	ConnectionRequested    Type = "connection.requested"
	ConnectionDenied       Type = "connection.denied"
	ConnectionOpened       Type = "connection.opened"
	ConnectionEstablished  Type = "connection.established"
	ConnectionFailed       Type = "connection.failed"
	ConnectionClosed       Type = "connection.closed"
	ConnectionTerminated   Type = "connection.terminated"
	ConnectionReauthorized Type = "connection.reauthorized"
	ConnectionLost         Type = "connection.lost"
	ConnectionTagged       Type = "connection.tagged"
	ConnectionLocked       Type = "connection.locked"
	ConnectionUnlocked     Type = "connection.unlocked"
	ConnectionWatched      Type = "connection.watched"
	ConnectionUnwatched    Type = "connection.unwatched"

	ChannelOpened  Type = "channel.opened"
	ChannelDenied  Type = "channel.denied"
	ChannelClosed  Type = "channel.closed"
	ChannelExec    Type = "channel.exec"
	ChannelFile    Type = "channel.file"
	ChannelForward Type = "channel.forward"

	RecordingStarted   Type = "recording.started"
	RecordingCompleted Type = "recording.completed"
	RecordingPlayed    Type = "recording.played"
	RecordingExported  Type = "recording.exported"
	RecordingSearched  Type = "recording.searched"
	RecordingDamaged   Type = "recording.damaged"
	RecordingExpired   Type = "recording.expired"
	RecordingDeleted   Type = "recording.deleted"
	RecordingFailed    Type = "recording.failed"
	RecordingHeld      Type = "recording.held"
	RecordingShared    Type = "recording.shared"
	RecordingFileKept  Type = "recording.file_kept"
	RecordingFileSent  Type = "recording.file_sent"
	RecordingResumed   Type = "recording.resumed"

	SettingChanged Type = "setting.changed"

	CACreated   Type = "ca.created"
	CARenewed   Type = "ca.renewed"
	CAActivated Type = "ca.activated"
	CARevoked   Type = "ca.revoked"
	CertIssued  Type = "ca.issued"
	CertRevoked Type = "ca.cert_revoked"
	CertRefused Type = "ca.refused"
	CARules     Type = "ca.algorithms_changed"

	SetupCodeMade Type = "setup.code_made"
	SetupRefused  Type = "setup.refused"
	SSOCreated    Type = "sso.created"
	SSOChanged    Type = "sso.changed"
	SSODeleted    Type = "sso.deleted"
	SSOTested     Type = "sso.tested"
	// SSOLogout: a provider said that a session ended there.
	SSOLogout        Type = "sso.logout"
	SSOLogoutRefused Type = "sso.logout_refused"
	AnchorCreated    Type = "anchor.created"
	AnchorChanged    Type = "anchor.changed"
	AnchorDeleted    Type = "anchor.deleted"
	AnchorCRL        Type = "anchor.crl_loaded"
	// AnchorEnded: sessions ended because the certificate they came by is not
	// good any more.
	AnchorEnded Type = "anchor.sessions_ended"

	PortOpened Type = "port.opened"
	PortClosed Type = "port.closed"
	PortDenied Type = "port.denied"

	NetworkRouterChanged  Type = "network.router_changed"
	NetworkRemovalDelayed Type = "network.removal_delayed"
	NetworkRemovalDone    Type = "network.removal_done"
	NetworkRouterFailed   Type = "network.router_failed"

	WebSessionOpened   Type = "web.session_opened"
	WebSessionClosed   Type = "web.session_closed"
	WebSessionExtended Type = "web.session_extended"
	WebCredentialUsed  Type = "web.credential_used"
	WebRequestBlocked  Type = "web.request_blocked"
	WebDialRefused     Type = "web.dial_refused"
	WebFileUploaded    Type = "web.file_uploaded"
	WebFileDownloaded  Type = "web.file_downloaded"
	WebFileDeleted     Type = "web.file_deleted"
	WebAuthorityMade   Type = "web.authority_created"
	WebIssuerIssued    Type = "web.issuer_issued"
	WebProposalsGone   Type = "web.proposals_cleared"
	// WebFilesUnlisted counts files that a session reported faster than they are
	// listed one by one; its recording has them.
	WebFilesUnlisted Type = "web.files_unlisted"
	// WebSessionHeard: somebody listens to a session, the first time.
	WebSessionHeard Type = "web.session_heard"

	// A request of a web session that needs a second person. Actor: who decided,
	// else the webproxy that holds it.
	WebApprovalAsked     Type = "web.approval_asked"
	WebApprovalApproved  Type = "web.approval_approved"
	WebApprovalDenied    Type = "web.approval_denied"
	WebApprovalExpired   Type = "web.approval_expired"
	WebApprovalWithdrawn Type = "web.approval_withdrawn"
	WebApprovalLost      Type = "web.approval_lost"    // its webproxy has it no more; it was not sent
	WebApprovalSent      Type = "web.approval_sent"    // its webproxy took the approval, and sends it
	WebApprovalRefused   Type = "web.approval_refused" // a decision that was not this person's

	GroupCreated       Type = "group.created"
	GroupChanged       Type = "group.changed"
	GroupDeleted       Type = "group.deleted"
	GroupAnchorAdded   Type = "group.anchor_added"
	GroupAnchorRemoved Type = "group.anchor_removed"
)

// numbers are the stable numbers of the types; a number is never used again.
// Room blocks begin at multiples of 100.
var numbers = map[Type]uint32{
	SystemStarted: 100, SystemStopped: 101, SystemMigrated: 102, AuditPruned: 103, AuditBroken: 104,
	AuditExported: 105, AuditVerified: 106, VaultRotated: 107,

	UserCreated: 200, UserChanged: 201, UserDeleted: 202, UserDisabled: 203, UserEnabled: 204, UserLocked: 205,
	UserUnlocked: 206, UserPasswordSet: 207, UserTOTPEnrolled: 208, UserTOTPRemoved: 209, UserKeyAdded: 210,
	UserKeyRemoved: 211, UserErased: 212, UserExported: 213, UserBootstrapped: 214, UserSessionsRevoked: 215,
	UserPasskeyAdded: 216, UserPasskeyChanged: 217, UserPasskeyRemoved: 218, UserPasskeyCloned: 219,
	UserIdentityLinked: 220, UserIdentityRemoved: 221,

	RoleCreated: 300, RoleChanged: 301, RoleDeleted: 302, RoleMemberAdded: 303, RoleMemberChanged: 304,
	RoleMemberRemoved: 305, RoleFirstUse: 306,

	LoginSucceeded: 400, LoginFailed: 401, LoginLimited: 402, LoginLogout: 403, LoginExpired: 404,
	LoginCodeNeeded: 405, LoginReplayed: 406, LoginSession: 407, LoginPaused: 408, LoginRecovery: 409,

	TokenCreated: 500, TokenRevoked: 501, TokenExpired: 502, TokenRefused: 503, ClientCreated: 504,
	ClientChanged: 505, ClientDeleted: 506, ClientGranted: 507,

	TargetCreated: 600, TargetChanged: 601, TargetDeleted: 602, TargetDisabled: 603, TargetEnabled: 604,
	TargetImported: 605, TargetProbed: 606, TargetHostJoin: 607, TargetHostLeft: 608,

	AccountCreated: 700, AccountChanged: 701, AccountDeleted: 702,
	GrantCreated: 800, GrantChanged: 801, GrantDeleted: 802,
	SiteCreated: 900, SiteChanged: 901, SiteDeleted: 902,
	HostKeyAccepted: 1000, HostKeyChanged: 1001, HostKeyRejected: 1002, HostKeyRemoved: 1003,

	EdgeEnrolled: 1100, EdgeChanged: 1101, EdgeRevoked: 1102, EdgeDeleted: 1103, EdgeConnected: 1104,
	EdgeDisconnected: 1105, EdgeRefused: 1106, EdgeDialRefused: 1107, EdgeRenewed: 1108, EdgeReplaced: 1109,
	EdgeCopied: 1110, EdgeMoved: 1111, EdgeDrained: 1112, EdgeClockSkew: 1113, EdgeHostRefused: 1114,

	EnrolmentCreated: 1200, EnrolmentUsed: 1201, EnrolmentRevoked: 1202, EnrolmentRefused: 1203,

	SecretCreated: 1300, SecretChanged: 1301, SecretWritten: 1302, SecretDeleted: 1303, SecretUsed: 1304,
	SecretRevealed: 1305, SecretRefused: 1306,

	ConnectionRequested: 1400, ConnectionDenied: 1401, ConnectionOpened: 1402, ConnectionEstablished: 1403,
	ConnectionFailed: 1404, ConnectionClosed: 1405, ConnectionTerminated: 1406, ConnectionReauthorized: 1407,
	ConnectionLost: 1408, ConnectionTagged: 1409, ConnectionLocked: 1410, ConnectionUnlocked: 1411, ConnectionWatched: 1412,
	ConnectionUnwatched: 1413,

	ChannelOpened: 1500, ChannelDenied: 1501, ChannelClosed: 1502, ChannelExec: 1503, ChannelFile: 1504, ChannelForward: 1505,

	RecordingStarted: 1600, RecordingCompleted: 1601, RecordingPlayed: 1602, RecordingExported: 1603,
	RecordingSearched: 1604, RecordingDamaged: 1605, RecordingExpired: 1606, RecordingDeleted: 1607,
	RecordingFailed: 1608, RecordingHeld: 1609,
	RecordingShared: 1610, RecordingFileKept: 1611, RecordingFileSent: 1612,
	RecordingResumed: 1613,

	SettingChanged: 1700,

	CACreated: 1800, CARenewed: 1801, CAActivated: 1802, CARevoked: 1803, CertIssued: 1804, CertRevoked: 1805,
	CertRefused: 1806, CARules: 1807,

	SetupCodeMade: 4000, SetupRefused: 4001, SSOCreated: 4002, SSOChanged: 4003, SSODeleted: 4004, SSOTested: 4005,
	AnchorCreated: 4006, AnchorChanged: 4007, AnchorDeleted: 4008, AnchorCRL: 4009,
	SSOLogout: 4010, SSOLogoutRefused: 4011, AnchorEnded: 4012,

	PortOpened: 1900, PortClosed: 1901, PortDenied: 1902,

	NetworkRouterChanged: 2100, NetworkRemovalDelayed: 2101, NetworkRemovalDone: 2102, NetworkRouterFailed: 2103,

	WebSessionOpened: 2200, WebSessionClosed: 2201, WebSessionExtended: 2202, WebCredentialUsed: 2203, WebRequestBlocked: 2204,
	WebDialRefused: 2205, WebFileUploaded: 2206, WebFileDownloaded: 2207, WebFileDeleted: 2208, WebAuthorityMade: 2209,
	WebIssuerIssued: 2210, WebProposalsGone: 2211, WebFilesUnlisted: 2212, WebSessionHeard: 2213,
	WebApprovalAsked: 2220, WebApprovalApproved: 2221, WebApprovalDenied: 2222, WebApprovalExpired: 2223, WebApprovalWithdrawn: 2224,
	WebApprovalRefused: 2225, WebApprovalLost: 2226, WebApprovalSent: 2227,

	GroupCreated: 2300, GroupChanged: 2301, GroupDeleted: 2302, GroupAnchorAdded: 2303, GroupAnchorRemoved: 2304,
}

// Number returns t's stable number, 0 for an unknown type.
func (t Type) Number() uint32 { return numbers[t] }

// Types lists all types in the order of their numbers.
func Types() []TypeNumber {
	out := make([]TypeNumber, 0, len(numbers))
	for t, n := range numbers {
		out = append(out, TypeNumber{t, n})
	}
	slices.SortFunc(out, func(a, b TypeNumber) int { return cmp.Compare(a.Number, b.Number) })
	return out
}
