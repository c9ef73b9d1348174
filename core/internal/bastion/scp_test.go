package bastion

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"caponier/core/internal/recording"
)

func TestParseSCP(t *testing.T) {
	tests := []struct {
		command string
		want    scpRole
		file    string // what a file "f" in directory "d" is called
	}{
		{"scp -t /tmp/up", scpRole{recording.Upload, "/tmp/up", false, false}, "/tmp/up/d/f"},
		{"scp -r -p -d -t -- dir", scpRole{recording.Upload, "dir", true, true}, "dir/d/f"},
		{"scp -rf /srv/d", scpRole{recording.Download, "/srv/d", true, false}, "/srv/d/f"},
		{"scp -f 'a b'", scpRole{recording.Download, "a b", false, false}, "d/f"},
	}
	for _, tt := range tests {
		words, ok := shellWords(tt.command)
		if got := parseSCP(words); !ok || got != tt.want {
			t.Errorf("%s: got %+v", tt.command, got)
		}
		if got := tt.want.name([]string{"d"}, "f"); got != tt.file {
			t.Errorf("%s: file is called %q, want %q", tt.command, got, tt.file)
		}
	}
	if got := (scpRole{direction: recording.Upload, path: "/tmp/up"}).name(nil, "f"); got != "/tmp/up" {
		t.Errorf("single upload is called %q", got)
	}
}

// A step is what one side says.
type scpStep struct {
	source bool
	say    string
}

func src(s string) scpStep { return scpStep{true, s} }
func dst(s string) scpStep { return scpStep{false, s} }

func TestSCPTap(t *testing.T) {
	tests := []struct {
		name  string
		steps []scpStep
		files map[string]string
		event []string
		fails bool
	}{
		{"one file", []scpStep{dst("\x00"), src("C0644 5 f\n"), dst("\x00"), src("hello\x00"), dst("\x00")},
			map[string]string{"upload /up": "hello"}, []string{"scp upload /up 5 bytes ok"}, false},
		{"a source that does not wait", []scpStep{src("T1 0 1 0\nC0644 5 f\nhello\x00C0600 0 g\n\x00"), dst("\x00\x00\x00\x00\x00")},
			map[string]string{"upload /up": "hello"}, []string{"scp upload /up 5 bytes ok", "scp upload /up 0 bytes ok"}, false},
		{"refused", []scpStep{dst("\x00"), src("C0644 5 f\n"), dst("\x01scp: f: Permission denied\n"), src("C0644 2 g\n"), dst("\x00"), src("ok\x00"), dst("\x00")},
			map[string]string{"upload /up": "ok"}, []string{"scp upload /up 2 bytes ok"}, false},
		{"refused after it was sent", []scpStep{dst("\x00"), src("C0644 50 f\nhello"), dst("\x01no\n")}, nil, nil, true},
		{"the source cannot read", []scpStep{dst("\x00"), src("\x01scp: x: No such file\n"), dst("\x00"), src("C0644 3 f\n"), dst("\x00"), src("abc\x01scp: f: I/O error\n"), dst("\x00")},
			map[string]string{"upload /up": "abc"}, []string{"scp upload /up 3 bytes failed"}, false},
		{"directories", []scpStep{dst("\x00"), src("D0755 0 no\n"), dst("\x01exists\n"), src("D0755 0 d\n"), dst("\x00"), src("C0644 1 f\n"), dst("\x00"), src("x\x00"), dst("\x00"), src("E\n"), dst("\x00")},
			map[string]string{"upload /up/d/f": "x"}, []string{"scp upload /up/d/f 1 bytes ok"}, false},
		{"cut", []scpStep{dst("\x00"), src("C0644 5 f\n"), dst("\x00"), src("he")},
			map[string]string{"upload /up": "he"}, []string{"scp upload /up 2 bytes failed"}, false},
		{"noise", []scpStep{src("Welcome!\n")}, nil, nil, true},
		{"no size", []scpStep{src("C0644 x f\n")}, nil, nil, true},
		{"negative size", []scpStep{src("C0644 -1 f\n")}, nil, nil, true},
		{"an endless line", []scpStep{src("C0644 1 " + strings.Repeat("x", maxSCPLine))}, nil, nil, true},
		{"endless directories", []scpStep{src(strings.Repeat("D0755 0 d\n", maxSCPDepth+1))}, nil, nil, true},
	}
	for _, tt := range tests {
		for _, n := range []int{1, 3, 1 << 20} {
			live, tp := &record{}, &tape{}
			tap := newSCPTap(t.Context(), events{rec: tp, live: live}, scpRole{direction: recording.Upload, path: "/up"}, quiet)
			var err error
			for _, s := range tt.steps {
				for p := range slices.Chunk([]byte(s.say), n) {
					if s.source {
						err = errors.Join(err, tap.input(p))
					} else {
						err = errors.Join(err, tap.output(p, false))
					}
					if err != nil {
						break
					}
				}
			}
			if (err != nil) != tt.fails || err != nil && !errors.Is(err, errSCP) {
				t.Errorf("%s by %d: %v", tt.name, n, err)
			}
			if tt.fails {
				_ = tap.close(true)
				continue
			}
			if err := tap.close(false); err != nil {
				t.Errorf("%s by %d: close: %v", tt.name, n, err)
			}
			if got := live.events[:len(live.events)-1]; !slices.Equal(got, tt.event) {
				t.Errorf("%s by %d: events %q, want %q", tt.name, n, got, tt.event)
			}
			for name, want := range tt.files {
				if f := tp.file(name); f == nil || f.got.String() != want || !f.closed {
					t.Errorf("%s by %d: copy of %s: %+v", tt.name, n, name, f)
				}
			}
		}
	}
}

func FuzzSCP(f *testing.F) {
	f.Add("\x00\x00", "C0644 5 f\nhello\x00E\n")
	f.Add("\x01no\n", "D0755 0 d\nT1 0 1 0\n\x01x\n")
	f.Fuzz(func(t *testing.T, answers, source string) {
		fresh := func() *scpTap {
			return newSCPTap(t.Context(), events{rec: &tape{}, live: &record{}}, scpRole{direction: recording.Download, path: "/x"}, quiet)
		}
		whole, pieces := fresh(), fresh()
		errWhole := whole.input([]byte(answers))
		if errWhole == nil {
			errWhole = whole.output([]byte(source), false)
		}
		var errPieces error
		for p := range slices.Chunk([]byte(answers), 2) {
			if errPieces == nil {
				errPieces = pieces.input(p)
			}
		}
		for p := range slices.Chunk([]byte(source), 2) {
			if errPieces == nil {
				errPieces = pieces.output(p, false)
			}
		}
		if (errWhole == nil) != (errPieces == nil) || whole.state != pieces.state || len(whole.line) > maxSCPLine {
			t.Fatalf("whole: %v in state %d, in pieces: %v in state %d", errWhole, whole.state, errPieces, pieces.state)
		}
		_, _ = whole.close(true), pieces.close(true)
	})
}
