package conn

import (
	"errors"
	"fmt"
	"testing"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

func TestProblem(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"refused", &Refused{Status: 403, Code: "no_role", Public: "No."}, "403 no_role No."},
		{"not there", &Refused{Status: 404, Code: "not_found", Public: "Where?"}, "404 not_found Where?"},
		{"conflict", &Refused{Status: 409, Code: "overlap", Public: "Taken."}, "409 overlap Taken."},
		{"not now", &Refused{Status: 503, Code: "no_router", Public: "Later."}, "503 no_router Later."},
		{"too many", &LimitError{Public: "Too many."}, "503 connection_limit Too many."},
		{"locked", &BlockedError{Public: "Locked."}, "403 locked Locked."},
		{"draining", ErrDraining, "503 draining This core is shutting down."},
	} {
		for _, err := range []error{c.err, fmt.Errorf("open: %w", c.err)} {
			p, ok := errors.AsType[*api.Problem](Problem(err, "web target"))
			if !ok || fmt.Sprint(p.Status, " ", p.Code, " ", p.Detail) != c.want {
				t.Errorf("%s: %+v, want %s", c.name, p, c.want)
			}
		}
	}
	if err := Problem(broken, ""); !errors.Is(err, broken) {
		t.Errorf("anything else became %v", err)
	}
	if err := Over(fmt.Errorf("terminate: %w", db.ErrConflict)); err == nil || Over(nil) != nil || !errors.Is(Over(broken), broken) {
		t.Errorf("over: %v", err)
	}
}
