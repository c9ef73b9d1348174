// Package e2e proves the product from outside: real binaries, real sshd,
// nginx, HAProxy and PostgreSQL, in network namespaces. It imports nothing of
// core but what is public by design; layout_test.go holds the tree to its plan.
package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rooms gives each package of core its height: imports point down only, and
// rooms of one height do not know each other.
var rooms = map[string]int{
	"access":               0, // imports nothing of ours
	"db":                   1,
	"db/migrations/sqlite": 1, "db/migrations/postgres": 1,
	"db/dbtest":      2,
	"api":            2,
	"audit":          3,
	"group":          4,
	"settings":       4,
	"vault":          5,
	"user":           6,
	"target":         6,
	"sshca":          6,
	"fleet":          6,
	"conn":           7,
	"signin":         7,
	"recording":      7,
	"cluster":        7,
	"policy":         8,
	"bastion":        9,
	"portaccess":     9,
	"netaccess":      9,
	"webterm":        10,
	"webaccess":      9,
	"webui":          9,
	"overview":       9,
	"server":         11,
	"cli":            12,
	"usercli":        12, // a client: see TestLayoutLinks
	"webterm/screen": 0,
}

// sharedOrder is the import order of shared; leaves have height 0.
var sharedOrder = map[string]int{
	"netrule": 0, "webrule": 0, "rfb": 0, "tlsconn": 0, "config": 0, "telemetry": 0, "wire": 1, "node": 5, "dial": 2, "tunnel": 2, "tunnel/tunneltest": 3, "control": 3, "spool": 4, "daemon": 3, "icap": 3, "edge": 4,
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Error      *struct{ Err string }
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=ImportPath,Imports,Deps,Error"}, args...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Error != nil {
			t.Fatalf("%s: %s", p.ImportPath, p.Error.Err)
		}
		all = append(all, p)
	}
}

func TestLayoutImportsPointDown(t *testing.T) {
	check := func(prefix string, height map[string]int) {
		for _, p := range list(t, "./"+prefix+"...") {
			from := strings.TrimPrefix(p.ImportPath, "caponier/"+prefix)
			high, known := height[from]
			if !known {
				t.Errorf("%s has no place in the plan: give it one in layout_test.go", p.ImportPath)
				continue
			}
			for _, imp := range p.Imports {
				to, ours := strings.CutPrefix(imp, "caponier/"+prefix)
				if !ours {
					continue
				}
				if low, ok := height[to]; ok && low >= high {
					t.Errorf("%s (height %d) imports %s (height %d)", from, high, to, low)
				}
			}
		}
	}
	check("core/internal/", rooms)
	check("shared/", sharedOrder)
}

func TestLayoutSharedKnowsNoBinary(t *testing.T) {
	for _, p := range list(t, "./shared/...") {
		for _, d := range p.Deps {
			if rest, ours := strings.CutPrefix(d, "caponier/"); ours && !strings.HasPrefix(rest, "shared/") {
				t.Errorf("%s depends on %s", p.ImportPath, d)
			}
		}
	}
}

// Who may link what.
func TestLayoutLinks(t *testing.T) {
	// database/sql itself comes with the metrics library's collectors.
	drivers := []string{"modernc.org/sqlite", "github.com/jackc/pgx/v5", "github.com/pressly/goose/v3"}
	docker := []string{"github.com/docker/docker", "github.com/moby/moby"}
	mitm := []string{"github.com/elazarl/goproxy"}
	for _, c := range []struct {
		pkg    string
		refuse []string
	}{
		{"./extender", slices.Concat(drivers, docker, mitm, []string{"caponier/core", "golang.org/x/crypto/ssh"})},
		{"./router", slices.Concat(drivers, docker, mitm, []string{"caponier/core", "caponier/extender"})},
		{"./carrier", slices.Concat(drivers, mitm, []string{"caponier/core", "caponier/extender", "caponier/router", "golang.org/x/crypto/ssh"})},
		{"./webproxy", slices.Concat(drivers, docker, mitm, []string{"caponier/core", "caponier/extender", "caponier/router"})},
		{"./core", slices.Concat(docker, mitm, []string{"caponier/extender", "testing"})},
		{"./core/cmd/caponier", slices.Concat(drivers, docker, mitm, []string{"caponier/extender", "caponier/shared/tunnel", "caponier/core/internal/server"})},
		{"./core/internal/access", slices.Concat(drivers, []string{"net/http", "database/sql", "caponier"})},
		{"./shared/wire", slices.Concat(drivers, []string{"net/http", "database/sql"})},
	} {
		found := list(t, c.pkg)
		if len(found) != 1 {
			t.Errorf("%s: %d packages", c.pkg, len(found))
			continue
		}
		for _, d := range found[0].Deps {
			for _, r := range c.refuse {
				if d == r || strings.HasPrefix(d, r+"/") {
					t.Errorf("%s links %s", c.pkg, d)
				}
			}
		}
	}
}

// The top level is what the README draws, nothing else.
func TestLayoutTopLevel(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "git", "-C", "..", "ls-files").Output()
	if err != nil {
		t.Skip("not a git checkout: ", err)
	}
	want := []string{"core", "extender", "carrier", "webproxy", "router", "shared", "deploy", "e2e", "docs",
		"go.mod", "go.sum", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		top, _, _ := strings.Cut(strings.TrimSpace(line), "/")
		if seen[top] || strings.HasPrefix(top, ".") {
			continue
		}
		seen[top] = true
		if !slices.Contains(want, top) {
			t.Errorf("%s does not belong on the top level", top)
		}
	}
}
