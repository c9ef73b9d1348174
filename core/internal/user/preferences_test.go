package user

import (
	"fmt"
	"strings"
	"testing"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func TestPreferences(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s := newSite(t, d)
		_, jane := s.caller("jane")
		_, john := s.caller("john")
		s.want("keep", s.call(jane, "PUT", "/me/preferences/favourites", `{"value":["tgt_1","tgt_2"]}`), 204, "")
		s.want("keep again", s.call(jane, "PUT", "/me/preferences/favourites", `{"value":["tgt_2"]}`), 204, "")
		if a := s.call(jane, "GET", "/me/preferences", ""); !strings.Contains(a.body, `{"favourites":["tgt_2"]}`) {
			t.Errorf("kept: %s", a.body)
		}
		if a := s.call(john, "GET", "/me/preferences", ""); !strings.Contains(a.body, `"values":{}`) {
			t.Errorf("another user has: %s", a.body)
		}
		if a := s.call(jane, "GET", "/users/me/export", ""); !strings.Contains(a.body, "tgt_2") {
			t.Errorf("the export lacks them: %.300s", a.body)
		}
		s.want("a bad name", s.call(jane, "PUT", "/me/preferences/No..Way", `{"value":1}`), 422, "")
		s.want("too long", s.call(jane, "PUT", "/me/preferences/x", `{"value":"`+strings.Repeat("x", maxPreference)+`"}`), 422, "")
		for i := range maxPreferences - 1 {
			s.want("fill", s.call(jane, "PUT", fmt.Sprintf("/me/preferences/p%d", i), `{"value":1}`), 204, "")
		}
		s.want("one too many", s.call(jane, "PUT", "/me/preferences/last", `{"value":1}`), 409, "too_many")
		s.want("change one of them", s.call(jane, "PUT", "/me/preferences/p0", `{"value":null}`), 204, "")
	})
}
