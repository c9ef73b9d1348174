package settings

import (
	"net/netip"
	"time"
)

// Settings about logging in (FEATURES C12, C13).
var (
	LoginBurst = intKey("login.burst", 5, 1, 1000,
		"Failed logins a user may make from one address before he must wait.")
	LoginPerMinute = intKey("login.per_minute", 1, 1, 1000,
		"Further failed logins a user may make from one address, per minute.")
	LoginSubnetBurst = intKey("login.subnet_burst", 60, 1, 100_000,
		"Failed logins of all users together from one subnet (IPv4 /24, IPv6 /56) before it must wait.")
	LoginSubnetPerMinute = intKey("login.subnet_per_minute", 20, 1, 100_000,
		"Further failed logins from one subnet, per minute.")
	LoginAllow = prefixesKey("login.allow_list", nil,
		"Networks whose logins are not limited, for example a monitoring system.")
	LoginLockAfter = intKey("login.lock_after", 100, 0, 1_000_000,
		"Failed password logins in a row, from anywhere, after which password logins of the user pause; 0 = never.")
	LoginLockFor = durationKey("login.lock_for", 15*time.Minute, time.Minute, 24*time.Hour,
		"How long password logins of a user pause after login.lock_after failures. Keys, tokens and open sessions go on.")
	LoginKeyNeedsCode = boolKey("login.key_needs_code", false,
		"Ask users who have a second factor for it when they log in with an SSH key, too.")
	LoginHashes = intKey("login.hash_concurrency", 4, 1, 64,
		"Password checks that run at the same time; each needs 46 MiB of memory for its time.").needsRestart()
	PasswordMinLength = intKey("password.min_length", 12, 8, 128,
		"Shortest password that may be set, in characters.")
)

// Settings about console and command-line sessions (FEATURES C13).
var (
	SessionIdle = durationKey("session.idle", 15*time.Minute, time.Minute, 24*time.Hour,
		"A console session without a request for this long ends.")
	SessionAbsolute = durationKey("session.absolute", 8*time.Hour, 5*time.Minute, 30*24*time.Hour,
		"A session ends this long after login, used or not.")
	SessionBinding = enumKey("session.source_binding", "address", []string{"address", "subnet", "off"},
		"What a session is bound to: the address it was opened from, its subnet (IPv4 /24, IPv6 /56), or nothing.")
	TokenMaxAge = durationKey("token.max_age", 365*24*time.Hour, time.Hour, 10*365*24*time.Hour,
		"Longest life an API token may be given.")
)

// Settings about connections (FEATURES C11).
var (
	ReauthorizeEvery = durationKey("connection.reauthorize_every", 30*time.Second, 5*time.Second, time.Hour,
		"How often the right behind a live connection is checked again; changes are acted on at once besides.")
	ConnectionIdle = durationKey("connection.idle", 0, 0, 24*time.Hour,
		"Ends connections without traffic for this long where the grant says nothing; 0 = no limit.")
	ConnectionMax = durationKey("connection.max_duration", 0, 0, 30*24*time.Hour,
		"Ends connections after this long where the grant says nothing; 0 = no limit.")
	ConnectionLease = durationKey("connection.lease", 5*time.Minute, 10*time.Second, 24*time.Hour,
		"How long live connections go on while the database does not answer; then they are closed.")
	BastionSeparator = charKey("bastion.separator", "%", "%+~,^=",
		"Stands between user, account and target in an SSH login name; doubled, it stands for itself. People's command lines learn it at their next login.")
	ConnectionTellWatched = boolKey("connection.tell_watched", true,
		"Tell users when somebody watches their live connection, and who.")
)

// Settings about network sessions.
var (
	NetworkLease = durationKey("network.lease", 15*time.Second, 2*time.Second, time.Minute,
		"How long a router keeps rules in force without hearing from core; core renews five times as often.")
	NetworkPresence = durationKey("network.presence", 45*time.Second, 10*time.Second, time.Hour,
		"A network session ends when its user's console or command line was not heard of for this long.")
)

// Settings about web sessions.
var (
	WebScanURL = scanKey("web.scan_url",
		"ICAP service that sees every file moved in web sessions of targets that name none, such as icap://scan.example.net:1344/avscan; empty = none.")
	WebApprovalWait = durationKey("web.approval_wait", 5*time.Minute, 10*time.Second, 9*time.Minute,
		"How long a request of a web session that needs a second person waits to be decided on; then it is refused.")
	WebPermittedNames = namesKey("web.permitted_names", nil,
		"Names and networks that webproxies may issue certificates for in web sessions, such as example.net (with all below) or 10.0.0.0/8; empty = all. The certificates say so themselves (X.509 name constraints). Targets elsewhere cannot be opened then.")
)

// Settings about recordings.
var (
	RecordingOwnView = boolKey("recording.own_view", true,
		"Let users list and play the recordings of their own sessions.")
	RecordingFileMax = intKey("recording.file_max_mib", 0, 0, 1<<20,
		"Largest transferred file of which an encrypted copy is kept with the recording, in MiB; 0 keeps none.")
)

// Settings about how long things are kept.
var (
	RecordingRetention = intKey("retention.recording_days", 180, 1, 36_500,
		"Days a recording is kept, counted when it is made: one that exists keeps the end it was given.")
	ConnectionRetention = intKey("retention.connection_days", 730, 1, 36_500,
		"Days the row of a past connection is kept.")
	AuditRetention = intKey("retention.audit_days", 730, 1, 36_500,
		"Days an audit event is kept; removed once an hour.")
)

// All lists every setting in the order they are shown.
func All() []Definition {
	return []Definition{
		LoginBurst.def, LoginPerMinute.def, LoginSubnetBurst.def, LoginSubnetPerMinute.def, LoginAllow.def,
		LoginLockAfter.def, LoginLockFor.def, LoginKeyNeedsCode.def, LoginHashes.def, PasswordMinLength.def,
		SessionIdle.def, SessionAbsolute.def, SessionBinding.def, TokenMaxAge.def,
		ReauthorizeEvery.def, ConnectionIdle.def, ConnectionMax.def, ConnectionLease.def, ConnectionTellWatched.def, BastionSeparator.def,
		NetworkLease.def, NetworkPresence.def, WebScanURL.def, WebApprovalWait.def, WebPermittedNames.def,
		RecordingOwnView.def, RecordingFileMax.def,
		RecordingRetention.def, ConnectionRetention.def, AuditRetention.def,
	}
}

// Key is one setting with values of type T.
type Key[T any] struct {
	def      Definition
	fallback T
}

// Name is the setting's name, "section.name".
func (k Key[T]) Name() string { return k.def.Name }

// Get returns the present value; a nil Service has every default.
func (k Key[T]) Get(s *Service) T {
	if s == nil {
		return k.fallback
	}
	if v, ok := s.current.Load().values[k.def.Name]; ok {
		return v.(T)
	}
	return k.fallback
}

func (k Key[T]) needsRestart() Key[T] {
	k.def.RestartRequired = true
	return k
}

func intKey(name string, def, lowest, highest int, text string) Key[int] {
	return Key[int]{fallback: def, def: Definition{
		Name: name, Type: "integer", Description: text, Default: def, Minimum: lowest, Maximum: highest,
		parse: parseInt(lowest, highest),
	}}
}

func durationKey(name string, def, lowest, highest time.Duration, text string) Key[time.Duration] {
	return Key[time.Duration]{fallback: def, def: Definition{
		Name: name, Type: "duration", Description: text,
		Default: formatDuration(def), Minimum: formatDuration(lowest), Maximum: formatDuration(highest),
		parse: parseDuration(lowest, highest),
	}}
}

func boolKey(name string, def bool, text string) Key[bool] {
	return Key[bool]{fallback: def, def: Definition{
		Name: name, Type: "boolean", Description: text, Default: def, parse: parseBool,
	}}
}

func enumKey(name, def string, values []string, text string) Key[string] {
	return Key[string]{fallback: def, def: Definition{
		Name: name, Type: "string", Description: text, Default: def, Enum: values, parse: parseEnum(values),
	}}
}

func charKey(name, def, from, text string) Key[string] {
	var values []string
	for _, c := range from {
		values = append(values, string(c))
	}
	return enumKey(name, def, values, text)
}

func scanKey(name, text string) Key[string] {
	return Key[string]{def: Definition{Name: name, Type: "string", Description: text, Default: "", parse: parseScanner}}
}

func namesKey(name string, def []string, text string) Key[[]string] {
	return Key[[]string]{fallback: def, def: Definition{
		Name: name, Type: "names", Description: text, Default: []string{}, parse: parseNames,
	}}
}

func prefixesKey(name string, def []netip.Prefix, text string) Key[[]netip.Prefix] {
	return Key[[]netip.Prefix]{fallback: def, def: Definition{
		Name: name, Type: "networks", Description: text, Default: []string{}, parse: parsePrefixes,
	}}
}
