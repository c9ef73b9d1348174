package usercli

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// A video is asked for, waited for, fetched, and forgotten, also when it fails.
func TestFetchVideo(t *testing.T) {
	for name, c := range map[string]struct {
		states, body, want string
		calls              []string
	}{
		"made":   {"waiting running done", "the video", "", []string{"POST", "GET", "GET", "GET file", "DELETE"}},
		"failed": {"running failed", "", "the video was not made: no luck", []string{"POST", "GET", "DELETE"}},
		"short":  {"done", "the vid", "got 7 of 9 bytes", []string{"POST", "GET file", "DELETE"}},
	} {
		t.Run(name, func(t *testing.T) {
			states := strings.Fields(c.states)
			var calls []string
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/file"):
					calls = append(calls, "GET file")
					io.WriteString(w, c.body)
					return
				case r.Method == http.MethodDelete:
					calls = append(calls, "DELETE")
					w.WriteHeader(http.StatusNoContent)
					return
				}
				calls = append(calls, r.Method)
				fmt.Fprintf(w, `{"id":"rfl_x","state":%q,"progress":0.5,"error":"no luck","size_bytes":9}`, states[0])
				states = states[1:]
			}))
			defer srv.Close()
			var got strings.Builder
			_, err := fetchVideo(t.Context(), &client{base: srv.URL, http: srv.Client()}, recordingsExport{ID: "rec_x", Format: "mp4"},
				func(float64) error { return nil }, func(r io.Reader) (int64, error) { return io.Copy(&got, r) })
			if c.want == "" && (err != nil || got.String() != c.body) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, %q", err, got.String())
			}
			if !slices.Equal(calls, c.calls) {
				t.Errorf("calls %v, want %v", calls, c.calls)
			}
		})
	}
}
