package access

import (
	"fmt"
	"math/bits"
	"strings"
)

// featureNames are the stable names, by bit.
var featureNames = [...]string{
	"shell", "exec", "file_transfer", "forward", "remote_forward", "x11", "agent_forward", "web", "network",
}

// Names returns the stable names of the set, in the order of the constants.
func (f Feature) Names() []string {
	names := []string{}
	for i, n := range featureNames {
		if f&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

// String implements fmt.Stringer: names with commas.
func (f Feature) String() string {
	if f&^AllFeatures != 0 {
		return fmt.Sprintf("feature(%#x)", uint16(f))
	}
	return strings.Join(f.Names(), ",")
}

// single reports whether f is exactly one known feature.
func (f Feature) single() bool { return bits.OnesCount16(uint16(f)) == 1 && f&^AllFeatures == 0 }

// ParseFeatures reads names as Names writes them; "all" means every feature.
func ParseFeatures(names []string) (Features, error) {
	var f Features
next:
	for _, n := range names {
		if n == "all" {
			f |= AllFeatures
			continue
		}
		for i, known := range featureNames {
			if n == known {
				f |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("unknown feature %q (want %s or all)", n, strings.Join(featureNames[:], ", "))
	}
	return f, nil
}

var reasonNames = [...]string{
	Refused: "refused", Allowed: "allowed", UserDisabled: "user_disabled", UserLocked: "user_locked",
	LoginEnded: "login_ended", NoRole: "no_role", TargetDisabled: "target_disabled", NoAccount: "no_account",
	AccountDisabled: "account_disabled", NoFeature: "no_feature", OutsideWindow: "outside_window",
	OutsideSource: "outside_source", NeedMFA: "need_mfa", NeedReason: "need_reason",
}

// String returns the stable code of the reason, as stored in audit events.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "refused"
}
