package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// A scanner sees what comes and goes: the test virus passes neither way, nor
// into the session's files; what is harmless does.
func TestWebScans(t *testing.T) {
	w := web(t)
	virus := sites.EICAR()
	start := func() *harness.ICAP {
		t.Helper()
		icap, err := harness.StartICAP(t.Context(), w.net, "core", harness.CoreAddr+":1344", filepath.Join(w.dir, "icap"), virus)
		if err != nil {
			harness.Lacks(t, "%v", err)
		}
		t.Cleanup(icap.Proc.Kill)
		return icap
	}
	icap := start()
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{scan: icap.URL})
	u := w.open(t, s)
	u.shows(t, "the page")
	get := func(path string) string {
		return u.run(t, fmt.Sprintf(`try { const r = await fetch(%q);
			const b = new Uint8Array(await crypto.subtle.digest('SHA-256', await r.arrayBuffer()));
			return [...b].map(x => x.toString(16).padStart(2, '0')).join('') } catch (e) { return 'refused' }`, path))
	}
	if got := get("/files/report.bin?size=4000"); got != sites.PatternSum(4000) {
		t.Errorf("a harmless file: %s", got)
	}
	if got := get("/files/eicar.com"); got == sha(string(virus)) {
		t.Error("the virus came")
	}
	send := func(b []byte) string {
		return u.run(t, fmt.Sprintf(`const f = new FormData(); f.append('file', new Blob([Uint8Array.from(atob(%q), c => c.charCodeAt(0))]), 'x.com');
			try { const r = await fetch('/upload', {method: 'POST', body: f}); return r.status } catch (e) { return 'refused' }`, base64.StdEncoding.EncodeToString(b)))
	}
	if got := send([]byte("harmless")); got != "200" || len(s.Uploads()) != 1 {
		t.Errorf("a harmless upload: %s, %+v", got, s.Uploads())
	}
	if got := send(virus); got == "200" || len(s.Uploads()) != 1 {
		t.Errorf("the virus went: %s, %+v", got, s.Uploads())
	}
	if code, text := u.files(t, http.MethodPut, "/harmless.txt", []byte("harmless")); code >= 300 {
		t.Errorf("a harmless file put: %d %s", code, text)
	}
	if code, _ := u.files(t, http.MethodPut, "/virus.com", virus); code < 400 {
		t.Errorf("the virus put: %d", code)
	}
	until(t, patience, "it is on record", func() error {
		events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
		if err != nil {
			return err
		}
		for _, e := range events {
			if strings.Contains(strings.ToLower(fmt.Sprint(e.Fields)), "eicar") && e.Kind != "request" {
				return nil
			}
		}
		return errors.New("no event names the virus")
	})
	// A scanner that does not answer lets nothing through.
	icap.Proc.Kill()
	if code, _ := u.files(t, http.MethodPut, "/unscanned.txt", []byte("harmless")); code < 400 {
		t.Errorf("without a scanner a file is put: %d", code)
	}
	asked := len(s.Requests())
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if got, err := s.Run(ctx, "guest", "return 'answered'"); err == nil {
		t.Errorf("without a scanner the page answers %q (%d requests)", got, asked)
	}
	// When it is back so is all that is harmless, and nothing else.
	start()
	until(t, patience, "a harmless file is put again", func() error {
		if code, text := u.files(t, http.MethodPut, "/again.txt", []byte("harmless")); code >= 300 {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	})
	if code, _ := u.files(t, http.MethodPut, "/virus-again.com", virus); code < 400 {
		t.Errorf("the virus put, with the scanner back: %d", code)
	}
	v := w.open(t, s)
	v.shows(t, "a page scanned again")
}
