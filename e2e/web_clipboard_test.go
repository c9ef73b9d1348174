package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"strings"
	"testing"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// bigText is text of n bytes that no two places of are alike.
func bigText(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of a long text\n", i*7919)
	}
	return b.String()[:n]
}

func sha(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Five megabytes go into the browser's clipboard and out of it unchanged.
func TestWebClipboard(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	u.note(t)
	noteIs(t, u, sha(""))
	in := bigText(5 << 20)
	if err := u.Screen.Paste(in); err != nil {
		t.Fatal(err)
	}
	if err := u.Screen.Press(harness.KeyControl, 'v'); err != nil {
		t.Fatal(err)
	}
	noteIs(t, u, sha(in))
	out := strings.ToUpper(in)
	u.run(t, "const n = document.getElementById('note'); n.value = n.value.toUpperCase(); n.focus(); n.select(); return 1")
	if err := u.Screen.Press(harness.KeyControl, 'c'); err != nil {
		t.Fatal(err)
	}
	if err := u.Screen.Wait(t.Context(), patience, "the text comes out", func(*image.RGBA) error {
		for _, c := range u.Screen.Copied() {
			if sha(c) == sha(out) {
				return nil
			}
		}
		return fmt.Errorf("%d texts came", len(u.Screen.Copied()))
	}); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "both are on record", func() error {
		events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
		if err != nil {
			return err
		}
		n := 0
		for _, e := range events {
			if e.Kind == "clipboard" {
				n++
			}
		}
		if n < 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// Where the policy says no, not one byte passes either way.
func TestWebClipboardForbidden(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"clipboard_in": 0, "clipboard_out": 0}})
	u := w.open(t, s)
	u.shows(t, "the page")
	u.note(t)
	noteIs(t, u, sha(""))
	if err := errors.Join(u.Screen.Paste("forbidden"), u.Screen.Press(harness.KeyControl, 'v'), u.Screen.Type("typed")); err != nil {
		t.Fatal(err)
	}
	noteIs(t, u, sha("typed"))
	if err := errors.Join(u.Screen.Press(harness.KeyControl, 'a'), u.Screen.Press(harness.KeyControl, 'c'), u.Screen.Type("x")); err != nil {
		t.Fatal(err)
	}
	noteIs(t, u, sha("x"))
	if got := u.Screen.Copied(); len(got) != 0 {
		t.Errorf("%q came out", got)
	}
}

// Each way is permitted by itself, up to its size: a byte more does not pass.
func TestWebClipboardLimits(t *testing.T) {
	w := web(t)
	const most = 1000
	fits, large := bigText(most), bigText(most+1)
	for name, way := range map[string]struct{ in, out int }{"only in": {most, 0}, "only out": {0, most}} {
		t.Run(name, func(t *testing.T) {
			s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"clipboard_in": way.in, "clipboard_out": way.out}})
			u := w.open(t, s)
			u.shows(t, "the page")
			u.note(t)
			noteIs(t, u, sha(""))
			empty := "const n = document.getElementById('note'); n.value = ''; n.focus(); return 1"
			for _, text := range []string{large, fits} {
				u.run(t, empty)
				// What is typed afterwards shows that all before it has arrived.
				if err := errors.Join(u.Screen.Paste(text), u.Screen.Press(harness.KeyControl, 'v'), u.Screen.Type("end")); err != nil {
					t.Fatal(err)
				}
				want := "end"
				if way.in > 0 && text == fits {
					want = text + "end"
				}
				noteIs(t, u, sha(want))
			}
			for _, text := range []string{large, fits} {
				u.run(t, fmt.Sprintf("const n = document.getElementById('note'); n.value = %q; n.focus(); n.select(); return 1", strings.ToUpper(text)))
				if err := errors.Join(u.Screen.Press(harness.KeyControl, 'c'), u.Screen.Type("end")); err != nil {
					t.Fatal(err)
				}
				noteIs(t, u, sha("end"))
				if way.out > 0 && text == fits {
					if err := u.Screen.Wait(t.Context(), patience, "the text comes out", func(*image.RGBA) error {
						if got := u.Screen.Copied(); len(got) != 1 || got[0] != strings.ToUpper(fits) {
							return fmt.Errorf("%d texts came", len(got))
						}
						return nil
					}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got := u.Screen.Copied(); way.out == 0 && len(got) != 0 {
				t.Errorf("%q came out", got)
			}
			u.end(t)
			// What was refused is on record, with its size and without a byte of it.
			events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
			if err != nil {
				t.Fatal(err)
			}
			refused := map[string]int{}
			for _, e := range events {
				if e.Kind == "clipboard" && e.Fields["refused"] != "" {
					refused[e.Fields["direction"]]++
					if e.Fields["text"] != "" {
						t.Errorf("a refused text is on record: %v", e.Fields)
					}
				}
			}
			// Where nothing may come out the browser is not even asked what it has.
			if refused["in"] == 0 || way.out > 0 && refused["out"] == 0 {
				t.Errorf("refused on record: %v", refused)
			}
		})
	}
}

// noteIs waits until the page's text has a hash.
func noteIs(t *testing.T, u *webUse, hash string) {
	t.Helper()
	until(t, patience, "the note is as it should be", func() error {
		got := u.run(t, `const n = document.getElementById('note'); if (!n) return 'no note';
			const b = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(n.value)));
			return [...b].map(x => x.toString(16).padStart(2, '0')).join('') + ' ' + n.value.length`)
		if !strings.HasPrefix(got, hash) {
			return errors.New(got)
		}
		return nil
	})
}
