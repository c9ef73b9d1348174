package bastion

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseName(t *testing.T) {
	tests := []struct {
		in, sep string
		want    loginName
		bad     bool
	}{
		{in: "demo", want: loginName{User: "demo"}},
		{in: "demo%db-1", want: loginName{User: "demo", Target: "db-1"}},
		{in: "demo%root%db-1", want: loginName{User: "demo", Account: "root", Target: "db-1"}},
		{in: "demo%root%db-1:2222", want: loginName{User: "demo", Account: "root", Target: "db-1:2222"}},
		{in: "demo%root%db-1%2222", want: loginName{User: "demo", Account: "root", Target: "db-1:2222"}},
		{in: "demo%root%a/10.10.0.5", want: loginName{User: "demo", Account: "root", Target: "a/10.10.0.5"}},
		{in: "demo%root%a/10.10.0.5:22", want: loginName{User: "demo", Account: "root", Target: "a/10.10.0.5:22"}},
		{in: "demo%root%a/fd00::5%22", want: loginName{User: "demo", Account: "root", Target: "a/[fd00::5]:22"}},
		{in: "demo%root%a/[fd00::5]%22", want: loginName{User: "demo", Account: "root", Target: "a/[fd00::5]:22"}},
		{in: "de%%mo%CORP%%adm%db-1", want: loginName{User: "de%mo", Account: "CORP%adm", Target: "db-1"}},
		{in: "demo%%%root", want: loginName{User: "demo%", Target: "root"}},
		{in: "demo+root+db%1", sep: "+", want: loginName{User: "demo", Account: "root", Target: "db%1"}},
		{in: "", bad: true},
		{in: "%", bad: true},
		{in: "demo%", bad: true},
		{in: "%root%db-1", bad: true},
		{in: "demo%root%", bad: true},
		{in: "demo%root%db-1%", bad: true},
		{in: "demo%root%db-1%0", bad: true},
		{in: "demo%root%db-1%65536", bad: true},
		{in: "demo%root%db-1%ssh", bad: true},
		{in: "demo%root%db-1%22%x", bad: true},
		{in: "demo\n%root%db-1", bad: true},
		{in: "demo\x00", bad: true},
		{in: strings.Repeat("a", maxName+1), bad: true},
	}
	for _, tt := range tests {
		if tt.sep == "" {
			tt.sep = "%"
		}
		got, err := parseName(tt.in, tt.sep)
		if (err != nil) != tt.bad {
			t.Errorf("parseName(%q): got error %v, want error %v", tt.in, err, tt.bad)
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("parseName(%q) (-want +got):\n%s", tt.in, diff)
		}
	}
}

func TestNameRoundTrip(t *testing.T) {
	part := rapid.StringMatching(`[a-z%+./:@-]{1,12}`)
	rapid.Check(t, func(t *rapid.T) {
		sep := rapid.SampledFrom([]string{"%", "+", "~"}).Draw(t, "sep")
		n := loginName{User: part.Draw(t, "user")}
		switch rapid.IntRange(0, 2).Draw(t, "parts") {
		case 1:
			n.Target = part.Draw(t, "target")
		case 2:
			n.Account, n.Target = part.Draw(t, "account"), part.Draw(t, "target")
		}
		// A separator at the end of a part and the one after it read as a pair
		// first: the format is not meant for names that end in one.
		for _, p := range []string{n.User, n.Account} {
			if strings.HasSuffix(p, sep) {
				t.Skip()
			}
		}
		for _, p := range []string{n.Account, n.Target} {
			if strings.HasPrefix(p, sep) {
				t.Skip()
			}
		}
		got, err := parseName(n.format(sep), sep)
		if err != nil || got != n {
			t.Fatalf("%+v as %q came back as %+v, %v", n, n.format(sep), got, err)
		}
	})
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"demo", "demo%root%db-1", "a%%b%c%d/e:1", "a%b%[::1]%22", "%%%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseName(s, "%")
		if err != nil {
			return
		}
		if n.User == "" || n.Account != "" && n.Target == "" {
			t.Fatalf("parseName(%q) = %+v", s, n)
		}
	})
}

func TestCheckSeparator(t *testing.T) {
	for _, s := range []string{"%", "+", "~", "#", "!"} {
		if err := checkSeparator(s); err != nil {
			t.Errorf("checkSeparator(%q): %v", s, err)
		}
	}
	for _, s := range []string{"", "%%", "a", "0", "/", ":", "@", ".", "-", " ", "\n", "é"} {
		if checkSeparator(s) == nil {
			t.Errorf("checkSeparator(%q) accepted", s)
		}
	}
}

func TestDestination(t *testing.T) {
	tests := []struct {
		host          string
		port          int
		name, address string
	}{
		{"db-1", 22, "db-1", "db-1:22"},
		{"db.example", 5432, "db.example", "db.example:5432"},
		{"10.10.0.5.vpc-a.caponier", 22, "", "vpc-a/10.10.0.5:22"},
		{"db-1.vpc-a.Caponier", 22, "", "vpc-a/db-1:22"},
		{"x.caponier", 22, "x.caponier", "x.caponier:22"},
		{".caponier", 22, ".caponier", ".caponier:22"},
		{"vpc-a/10.10.0.5", 22, "", "vpc-a/10.10.0.5:22"},
		{"fd00::5", 22, "", "[fd00::5]:22"},
	}
	for _, tt := range tests {
		name, address := destination(tt.host, tt.port)
		if name != tt.name || address != tt.address {
			t.Errorf("destination(%q, %d) = %q, %q; want %q, %q", tt.host, tt.port, name, address, tt.name, tt.address)
		}
	}
}
