package program

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/router/internal/enforce"
	"caponier/shared/netrule"
	"caponier/shared/wire"
)

// vendor is a program as an operator might write it: one file per session,
// named by its ID, holding its hash. What fault.VERB holds decides how a verb
// goes wrong; the word once makes that happen one time.
const vendor = `#!/bin/sh
D=@DIR@
verb=$1
read -r in
echo "$verb" >> "$D/calls"
echo "$in" > "$D/last.$verb"
rest=${in#*'"session":{"id":"'}
id=${rest%%'"'*}
rest=${rest#*'"hash":"'}
hash=${rest%%'"'*}
fault=
if [ -e "$D/fault.$verb" ]; then
	read -r fault arg < "$D/fault.$verb"
fi
case $fault in
hang) trap '' TERM; sleep 1000 & echo $! > "$D/child"; wait; wait ;;
slow) sleep 1000 & echo $! > "$D/child"; wait ;;
exit) exit "$arg" ;;
once) rm "$D/fault.$verb"; exit "$arg" ;;
says) echo "{\"message\": \"$arg\"}"; exit 20 ;;
garbage) echo '<html>'; exit 0 ;;
flood) head -c 20000000 /dev/zero | tr '\0' x; exit 0 ;;
noise) head -c 1000000 /dev/zero | tr '\0' y >&2; exit 1 ;;
esac
# each calls its argument with the id and the hash of every session.
each() {
	rest=$in
	while :; do
		case $rest in *'{"id":"'*) ;; *) return 0 ;; esac
		rest=${rest#*'{"id":"'}
		i=${rest%%'"'*}
		h=${rest#*'"hash":"'}
		"$1" "$i" "${h%%'"'*}" || return 1
	done
}
store() { echo "$2" > "$D/s/$1"; }
there() { [ -e "$D/s/$1" ]; }
count() { printf '{"id":"%s","bytes_out":10,"packets_out":1},' "$1"; }
case $verb in
add) store "$id" "$hash" ;;
del) [ ! -e "$D/s/$id" ] || rm "$D/s/$id" ;;
list)
	out=
	for f in "$D/s/"*; do
		[ -e "$f" ] || continue
		read -r h < "$f"
		out="$out,{\"id\":\"${f##*/}\",\"hash\":\"$h\"}"
	done
	echo "{\"sessions\":[${out#,}]}" ;;
sync)
	for f in "$D/s/"*; do [ ! -e "$f" ] || rm "$f"; done
	each store ;;
renew) each there || exit 20 ;;
counters) printf '{"sessions":['; each count; echo '{"id":"not-ours","bytes_out":5}]}' ;;
check) echo '{"verbs": ["add", "del", "list", "sync", "renew", "counters", "check"]}' ;;
*) exit 11 ;;
esac
[ "$fault" != half ] || kill -9 $$
`

// box is a vendor's program and a backend that uses it.
type box struct {
	*Backend
	t     *testing.T
	dir   string
	state string
}

func newBox(t *testing.T, script string, change func(*Config)) *box {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "s"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vendor")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(script, "@DIR@", dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir, state: t.TempDir()}
	b.restart(change)
	return b
}

// restart begins again with what an earlier process left on disk.
func (b *box) restart(change func(*Config)) {
	b.t.Helper()
	if b.Backend != nil {
		if err := b.Close(); err != nil {
			b.t.Fatal(err)
		}
	}
	run, err := NewLocal(filepath.Join(b.dir, "vendor"))
	if err != nil {
		b.t.Fatal(err)
	}
	c := Config{Runner: run, Type: "exec", Name: "edge-1", Parameters: json.RawMessage(`{"zone":"ot"}`), State: b.state, Quick: 30 * time.Second}
	if change != nil {
		change(&c)
	}
	if b.Backend, err = New(c); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.Close() })
}

func (b *box) fault(verb, how string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, "fault."+verb), []byte(how+"\n"), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) mend(verb string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.dir, "fault."+verb)); err != nil {
		b.t.Fatal(err)
	}
}

// held is what the program really holds.
func (b *box) held() []string {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.dir, "s"))
	if err != nil {
		b.t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

// calls returns the verbs called since the last time.
func (b *box) calls() []string {
	b.t.Helper()
	path := filepath.Join(b.dir, "calls")
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	os.Remove(path)
	return strings.Fields(string(text))
}

func (b *box) apply(add []wire.RouterSession, remove ...string) enforce.Result {
	b.t.Helper()
	res, err := b.Apply(b.t.Context(), add, remove)
	if err != nil {
		b.t.Fatal(err)
	}
	return res
}

func (b *box) sync(want ...wire.RouterSession) enforce.Result {
	b.t.Helper()
	res, err := b.Sync(b.t.Context(), want)
	if err != nil {
		b.t.Fatal(err)
	}
	return res
}

func session(id string) wire.RouterSession {
	return wire.RouterSession{ID: id, Target: "plc-line-3", User: "ann", Provider: "NQX", Static: json.RawMessage(`{"type":"l3rules"}`), Rules: netrule.Rules{
		Client: netip.MustParseAddr("10.8.0.7"), SNAT: true,
		Destinations: []netrule.Destination{
			{Selector: netrule.Selector{Addrs: netrule.Range{First: netip.MustParseAddr("10.20.0.0"), Last: netip.MustParseAddr("10.20.0.255")},
				Proto: netrule.TCP, Ports: netrule.Ports{First: 502, Last: 502}}, DNAT: &netrule.NAT{Addr: netip.MustParseAddr("192.168.1.5"), Port: 5020}},
			{Selector: netrule.Selector{Addrs: netrule.Range{First: netip.MustParseAddr("10.21.0.1"), Last: netip.MustParseAddr("10.21.0.1")}}},
		}}}
}

func ids(fs []wire.RouterFailure) (out []string) {
	for _, f := range fs {
		out = append(out, f.ID)
	}
	return out
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// gone reports whether a process has ended within some seconds.
func gone(ctx context.Context, pid string) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			return true
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return false
		}
	}
}
