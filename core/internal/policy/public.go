package policy

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"caponier/core/internal/access"
)

// useNames are the uses as people say them.
var useNames = map[access.Feature]string{
	access.Shell: "a shell", access.Exec: "running commands", access.FileTransfer: "file transfer",
	access.Forward: "port forwarding", access.RemoteForward: "remote port forwarding", access.X11: "X11 forwarding",
	access.AgentForward: "agent forwarding", access.Web: "a web session", access.Network: "network access",
}

// public is what the user is told. Without a role for the target it is the
// same whether the target exists or not.
func public(v *Verdict, q Query) string {
	if v.OK() {
		return ""
	}
	switch v.Reason {
	case access.UserDisabled:
		return "Your account is disabled."
	case access.UserLocked:
		return "Your account is locked."
	case access.LoginEnded:
		return "Your login has ended. Log in again."
	}
	if v.Target == nil || v.Reason == access.NoRole || v.Reason == access.Refused {
		return fmt.Sprintf("There is no target %s that you may use.", quoted(q.Target))
	}
	name := v.Target.Name
	account := q.Account
	if v.Account != nil {
		account = v.Account.Name
	}
	switch v.Reason {
	case access.TargetDisabled:
		return fmt.Sprintf("Target %s is disabled at present.", name)
	case access.NoAccount:
		return fmt.Sprintf("There is no account %s on %s that you may use.", quoted(account), name)
	case access.AccountDisabled:
		return fmt.Sprintf("Account %s on %s is disabled at present.", quoted(account), name)
	case access.NoFeature:
		use := useNames[q.Want]
		if use == "" {
			use = "this"
		}
		return fmt.Sprintf("You may use %s, but not for %s.", name, use)
	case access.OutsideWindow:
		return fmt.Sprintf("You may use %s only at certain times, and not now.", name)
	case access.OutsideSource:
		return fmt.Sprintf("You may use %s only from certain networks, and not from %s.", name, q.Source)
	case access.NeedMFA:
		return fmt.Sprintf("Target %s asks for a login with a second factor.", name)
	case access.NeedReason:
		return fmt.Sprintf("Target %s asks for a reason: give one when you connect.", name)
	default:
		return fmt.Sprintf("There is no target %s that you may use.", quoted(q.Target))
	}
}

// quoted shows what a user typed: printable and short.
func quoted(s string) string {
	clean := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if r := []rune(clean); len(r) > 80 {
		clean = string(r[:80]) + "…"
	}
	return `"` + clean + `"`
}

// sentence makes one of a text that begins in lower case.
func sentence(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[n:] + "."
}

// list shows names, at most ten.
func list(names []string) string {
	if len(names) > 10 {
		return strings.Join(names[:10], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}
