package usercli

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const sample = `{"version":2,"width":80,"height":24}
[0.5,"o","one "]
[0.6,"i","x"]
[10.5,"o","two "]
[10.5,"r","100x30"]
[11,"o","three"]
`

// playSample plays with a clock that passes at once and notes the pauses.
func playSample(t *testing.T, p *player) (string, []time.Duration) {
	t.Helper()
	var out strings.Builder
	var waits []time.Duration
	p.out = &out
	p.wait = func(_ context.Context, d time.Duration) <-chan time.Time {
		waits = append(waits, d)
		c := make(chan time.Time, 1)
		c <- time.Time{}
		return c
	}
	if err := p.play(t.Context(), strings.NewReader(sample)); err != nil {
		t.Fatal(err)
	}
	return out.String(), waits
}

func TestPlayerKeepsTime(t *testing.T) {
	ms := func(list ...int) (out []time.Duration) {
		for _, n := range list {
			out = append(out, time.Duration(n)*time.Millisecond)
		}
		return out
	}
	for name, c := range map[string]struct {
		player player
		waits  []time.Duration
	}{
		"as recorded":  {player{speed: 1}, ms(500, 100, 9900, 500)},
		"twice":        {player{speed: 2}, ms(250, 50, 4950, 250)},
		"idle limit":   {player{speed: 1, idle: 2 * time.Second}, ms(500, 100, 2000, 500)},
		"from 10.75 s": {player{speed: 1, from: 10750 * time.Millisecond}, ms(250)},
	} {
		t.Run(name, func(t *testing.T) {
			out, waits := playSample(t, &c.player)
			if out != "one two three" {
				t.Errorf("shown: %q", out)
			}
			if d := cmp.Diff(waits, c.waits); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPlayerObeysKeys(t *testing.T) {
	keys := make(chan byte)
	var out strings.Builder
	p := &player{out: &out, speed: 1, keys: keys, wait: func(context.Context, time.Duration) <-chan time.Time { return nil }}
	done := make(chan error, 1)
	go func() { done <- p.play(t.Context(), strings.NewReader(sample)) }()
	for _, k := range []byte{' ', '+', '+', '-', '.', 'q'} { // time stands still: only . moves on
		keys <- k
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if out.String() != "one " || p.speed != 2 {
		t.Errorf("shown %q at speed %v, want %q at 2", out.String(), p.speed, "one ")
	}
}

func TestPlayerRefusesWhatIsNoRecording(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"other version": `{"version":1}`,
		"no header":     "hello\n",
		"two fields":    "{\"version\":2}\n[1,\"o\"]\n",
		"negative":      "{\"version\":2}\n[-1,\"o\",\"x\"]\n",
		"cut line":      "{\"version\":2}\n[1,\"o\",\"x",
	} {
		p := &player{out: &strings.Builder{}, speed: 1, wait: func(context.Context, time.Duration) <-chan time.Time { return nil }}
		if err := p.play(t.Context(), strings.NewReader(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzCast(f *testing.F) {
	f.Add(sample)
	f.Add("{\"version\":2}\n[1e400,\"o\",1]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := newCastReader(strings.NewReader(text))
		if err != nil {
			return
		}
		for {
			e, err := c.next()
			if err != nil {
				return
			}
			if e.at < 0 {
				t.Errorf("event at %v", e.at)
			}
		}
	})
}

func TestPlainKeepsTerminalSafe(t *testing.T) {
	if got, want := plain("a\x1b[2Jb\u202ec\n"), "a·[2Jb·c·"; got != want {
		t.Errorf("plain: %q, want %q", got, want)
	}
}

func TestSSHUserEscapesSeparator(t *testing.T) {
	p := &profile{User: "a%b", Separator: "%"}
	if got, want := sshUser(p, "root", "site/10.0.0.1:22"), "a%%b%root%site/10.0.0.1:22"; got != want {
		t.Errorf("sshUser: %q, want %q", got, want)
	}
}
