package webrule

import (
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// readings are what servers make of a raw path: they decode it, some twice, some
// drop path parameters, take backslashes for slashes, merge empty segments,
// resolve dot segments, in whatever order, and look at no case of letters.
func readings(raw string) map[string]bool {
	decode := func(s string) string {
		if d, err := url.PathUnescape(s); err == nil {
			return d
		}
		return s
	}
	steps := []func(string) string{
		func(s string) string {
			parts := strings.Split(s, "/")
			for i, p := range parts {
				parts[i], _, _ = strings.Cut(p, ";")
			}
			return strings.Join(parts, "/")
		},
		func(s string) string { return strings.ReplaceAll(s, `\`, "/") },
		merge,
		func(s string) string { return removeDots(strings.Split(strings.TrimPrefix(s, "/"), "/")) },
		strings.ToLower,
		func(s string) string { s, _, _ = strings.Cut(s, "\x00"); return s },
	}
	found := map[string]bool{raw: true}
	apply := func(rounds int) {
		for range rounds {
			for s := range found {
				for _, f := range steps {
					found[f(s)] = true
				}
			}
		}
	}
	apply(2)
	decoded := map[string]bool{}
	for s := range found {
		decoded[decode(s)] = true
	}
	found = decoded
	steps = append(steps, decode)
	apply(4)
	return found
}

// No path is let through that some server reads as one that is denied.
func TestDenyHolds(t *testing.T) {
	deny := compile(t, Policy{Deny: []Rule{{Host: "app.test", Path: "/admin/keys"}}}, "https://app.test")
	hold := compile(t, Policy{Approve: []Approval{{Rule: Rule{Host: "app.test", Path: "/admin/keys"}}}}, "https://app.test")
	pieces := []string{"admin", "Admin", "keys", "KEYS", "x", "..", ".", "", "%2e%2e", "%2E.", "%2f", "%2Fkeys", "..;x", ";x", "admin;a=b", "%5c", `\`, "%252e%252e", "%252fkeys", "%61dmin", "%6beys", "%00", "%3b", "keys%00.png", "%c0%ae%c0%ae", "%"}
	rapid.Check(t, func(t *rapid.T) {
		raw := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 1, 6).Draw(t, "parts"), rapid.SampledFrom([]string{"/", "/", "/", "//"}).Draw(t, "between"))
		r := Request{Scheme: "https", Host: "app.test", Method: "GET", Path: raw}
		denied, held := deny.Decide(r), hold.Decide(r)
		if !denied.Allowed() && !held.Allowed() {
			return
		}
		for s := range readings(raw) {
			if s == "/admin/keys" || strings.HasPrefix(s, "/admin/keys/") {
				t.Fatalf("%s is let through (%q, %q), and some server reads %s", raw, denied.Reason, held.Reason, s)
			}
		}
	})
}
