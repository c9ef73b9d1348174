package user

import "testing"

func TestSameAddress(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"jane@example.org", "Jane@Example.ORG", true},
		{"mike@example.org", "mi\u212ae@example.org", false},
		{"admin@example.org", "adm\u0130n@example.org", false},
		{"jane@example.org", "jane@example.com", false},
	} {
		if got := sameAddress(c.a, c.b); got != c.same {
			t.Errorf("%q and %q: %v", c.a, c.b, got)
		}
	}
}
