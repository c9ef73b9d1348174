package session

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"caponier/shared/wire"
)

// A session that has ended by itself is listed as ending until core was told
// why, and is not begun again meanwhile.
func TestEndsAreListed(t *testing.T) {
	dir := t.TempDir()
	changed := 0
	m, err := New(Config{RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), Warm: map[string]int{wire.Firefox: 1}, Max: 10,
		Changed: func() { changed++ }})
	if err != nil {
		t.Fatal(err)
	}
	close(m.adopted)
	m.tell(wire.WebEnded{Session: "con_lost", Reason: "error", Text: "It was lost."})
	m.tails["con_rest"] = &tail{ends: true}
	m.tails["con_asked"] = &tail{} // core asked for its end
	want := []wire.WebState{{ID: "con_lost", Ending: true}, {ID: "con_rest", Ending: true}}
	if d := cmp.Diff(want, m.states().Sessions); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	for _, id := range []string{"con_lost", "con_rest"} {
		spec := wire.CarrierSession{ID: id, Revision: 2, StartURL: "https://wiki.test/", Proxy: wire.WebProxyAddress{Address: "proxy.test:18443", NodeID: "nod_p", Key: "0123456789abcdef0123"}}
		if ack := m.put(t.Context(), spec); ack.Error == nil || ack.Error.Code != wire.CodeRefused {
			t.Errorf("%s is begun again: %+v", id, ack.Error)
		}
	}
	if changed != 0 {
		t.Errorf("core is told of %d changes and there was none", changed)
	}
}
