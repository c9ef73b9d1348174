package audit

import (
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func TestAppendAndFind(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
		l := New(d, func() time.Time { at = at.Add(time.Second); return at })
		for _, e := range []Event{
			{Type: LoginSucceeded, Actor: Actor{Kind: "user", ID: "usr_1", Name: "ada"}},
			{Type: LoginFailed, Outcome: Denied, Actor: Actor{Kind: "anonymous"}, Fields: map[string]string{"reason": "password"}},
			{Type: TargetCreated, Actor: Actor{Kind: "user", ID: "usr_1", Name: "ada"}, Object: Object{Kind: "target", ID: "tgt_1", Name: "db"}},
		} {
			if err := l.Write(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		got, err := l.Find(t.Context(), d, Filter{Type: "login."}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 2 || got[0].Seq != 2 || got[0].Fields["reason"] != "password" || got[1].Actor.Name != "ada" || got[1].Outcome != OK {
			t.Errorf("login events: %+v", got)
		}
		got, err = l.After(t.Context(), d, Filter{About: "usr_1"}, 1, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].Object.ID != "tgt_1" || !got[0].Time.Equal(at) {
			t.Errorf("after 1: %+v", got)
		}
	})
}
