package api

import "testing"

func TestMissing(t *testing.T) {
	for _, c := range []struct{ op, path, title, detail string }{
		{"/edges/{id}", "/edges/edg_x", "There is no edge edg_x.", ""},
		{"/enrolment-tokens/{id}", "/enrolment-tokens/tok_x", "There is no enrolment token tok_x.", ""},
		{"/edges/{id}/revoke", "/edges/edg_x/revoke", "There is no edge edg_x.", ""},
		{"/roles/{id}/members/{user}", "/roles/r/members/u", "There is no such member.", "Looked for role r, member u."},
		{"/grants", "/grants", "There is no such thing.", ""},
		{"", "/edges/x", "There is no such thing.", ""},
	} {
		p := missing(Op{Path: c.op}, c.path)
		if p.Status != 404 || p.Title != c.title || p.Detail != c.detail {
			t.Errorf("%s: %+v", c.op, p)
		}
	}
}
