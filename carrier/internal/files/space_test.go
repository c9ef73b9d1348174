package files

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"caponier/shared/wire"
)

// Files that wait for the scanner take no more than they may, of all sessions
// together, and leave some of the file system to others.
func TestScanSpace(t *testing.T) {
	b := &browser{}
	inside, goOn := make(chan struct{}), make(chan struct{})
	scan := func(_ context.Context, _ string, _ Direction, name string, in io.Reader, _ int64, out io.Writer) error {
		_, err := io.Copy(out, in)
		if name == "slow" {
			inside <- struct{}{}
			<-goOn
		}
		return err
	}
	p := wire.BrowserPolicy{DownloadMax: 1000, UploadMax: 1000, ScanURL: "icap://scan.test/x"}
	one, events := service(t, b, p, scan)
	other, others := service(t, b, p, scan)
	space := NewSpace(t.TempDir(), 100)
	one.c.Space, other.c.Space = space, space
	done := make(chan int)
	go func() {
		status, _, _ := ask(one, "PUT", "/files/slow", strings.Repeat("x", 60))
		done <- status
	}()
	<-inside
	if n := space.Used(); n != 60 {
		t.Errorf("%d bytes are taken", n)
	}
	if status, text, _ := ask(other, "PUT", "/files/second", strings.Repeat("y", 41)); status != 507 || !strings.Contains(text, "Try again in a moment") {
		t.Errorf("a second file: %d %s", status, text)
	}
	if status, text, _ := ask(other, "PUT", "/files/small", strings.Repeat("y", 40)); status != 204 {
		t.Errorf("one that fits: %d %s", status, text)
	}
	goOn <- struct{}{}
	if status := <-done; status != 204 {
		t.Errorf("the first: %d", status)
	}
	if n := space.Used(); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
	if status, text, _ := ask(other, "PUT", "/files/second", strings.Repeat("y", 41)); status != 204 {
		t.Errorf("afterwards: %d %s", status, text)
	}
	if status, text, _ := ask(other, "PUT", "/files/never", strings.Repeat("y", 101)); status != 507 || !strings.Contains(text, "too large to be scanned") {
		t.Errorf("one that never fits: %d %s", status, text)
	}
	// The file system is nearly full: of 1000 bytes a tenth is left alone.
	space.free = func(string) (int64, int64, error) { return 130, 1000, nil }
	if status, text, _ := ask(other, "PUT", "/files/third", strings.Repeat("y", 31)); status != 507 {
		t.Errorf("on a full disk: %d %s", status, text)
	}
	space.free = func(string) (int64, int64, error) { return 0, 0, errors.New("no such place") }
	if status, text, _ := ask(other, "PUT", "/files/fourth", "y"); status != 502 {
		t.Errorf("where nobody knows: %d %s", status, text)
	}
	if got, want := strings.Join(*others, ", "), "upload second 41 no room to scan, upload small 40 ok, upload second 41 ok, upload never 101 no room to scan, upload third 31 no room to scan"; got != want {
		t.Errorf("events %s", got)
	}
	if got := strings.Join(*events, ", "); got != "upload slow 60 ok" {
		t.Errorf("events %s", got)
	}
	if n := space.Refused(); n != 3 {
		t.Errorf("%d refused", n)
	}
}

// Whatever is written, in whatever order: never more than the limit, nothing is
// kept in the end.
func TestScanSpaceIsBounded(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(0, 1000).Draw(t, "limit")
		s := NewSpace(dir, limit)
		var open []*room
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "do") {
			case 0:
				r, err := s.open(rapid.Int64Range(-1, 1200).Draw(t, "size"))
				if err == nil {
					open = append(open, r)
				} else if !errors.Is(err, errFull) {
					t.Fatal(err)
				}
			case 1:
				if len(open) > 0 {
					r := open[rapid.IntRange(0, len(open)-1).Draw(t, "which")]
					if _, err := r.Write(make([]byte, rapid.IntRange(0, 400).Draw(t, "bytes"))); err != nil && !r.full {
						t.Fatal(err)
					}
				}
			case 2:
				if len(open) > 0 {
					if err := open[0].Close(); err != nil {
						t.Fatal(err)
					}
					open = open[1:]
				}
			}
			if n := s.Used(); n < 0 || n > limit || s.written != n {
				t.Fatalf("%d of %d are taken, %d written", n, limit, s.written)
			}
		}
		for _, r := range open {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if s.Used() != 0 || s.written != 0 {
			t.Fatalf("%d are kept", s.Used())
		}
	})
}
