package db_test

import (
	"testing"
	"time"

	"caponier/core/internal/db"
)

func TestValues(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 4, 12, 0, 0, 123_456_789, time.FixedZone("there", 3600))
	if got := db.FromMicro(db.Micro(at)); !got.Equal(at.Truncate(time.Microsecond)) || got.Location() != time.UTC {
		t.Errorf("%s came back as %s", at, got)
	}
	if us := db.Micro(time.Time{}); us != 0 || !db.FromMicro(us).IsZero() {
		t.Errorf("no time is %d", us)
	}
	if a, b := db.NewID("usr_"), db.NewID("usr_"); a == b || len(a) != len("usr_")+26 || a[:4] != "usr_" {
		t.Errorf("IDs %s, %s", a, b)
	}
}
