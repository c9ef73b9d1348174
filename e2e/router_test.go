package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// shortLease is network.lease where tests wait for its end, longLease where it
// must not end while a busy machine restarts a router.
const (
	shortLease = 4 * time.Second
	longLease  = 10 * time.Second
)

// late is how much longer than its lease a flow may go on: what was under way
// to a router when its core died may still be taken.
const late = 500 * time.Millisecond

// leased is a plant with a lease of its own, and demo present for as long as the
// test lasts.
func leased(t *testing.T, lease time.Duration) *plant {
	t.Helper()
	p := newPlant(t, options{})
	p.lease(t, lease)
	return p
}

func (p *plant) lease(t *testing.T, lease time.Duration) {
	t.Helper()
	if err := p.core.Admin.Do(t.Context(), http.MethodPut, "/settings",
		map[string]any{"values": map[string]any{"network.lease": lease.String(), "network.presence": "10m"}}, nil, "If-Match", "*"); err != nil {
		t.Fatal(err)
	}
}

// stays checks that a flow is alive for d.
func stays(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := talk(c, cutTime); err != nil {
			t.Fatalf("a valid flow was cut: %v", err)
		}
	}
}

// cutInTime checks that a flow carries nothing any more when the lease that was
// the last is over.
func cutInTime(t *testing.T, c net.Conn, since time.Time) {
	t.Helper()
	took := cut(t, c).Sub(since)
	t.Logf("cut %s after the event", took.Round(10*time.Millisecond))
	if took > shortLease+late {
		t.Errorf("cut after %s, want %s at most", took, shortLease+late)
	}
}

func (p *plant) startRouter(t *testing.T, r *harness.EdgeNode) {
	t.Helper()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.core.Admin.RouterReady(t.Context(), patience, r.Name, r.Proc); err != nil {
		t.Fatal(err)
	}
}

// signal sends one and returns when it was sent; a killed program has ended then.
func (p *plant) signal(t *testing.T, proc *harness.Proc, s syscall.Signal) time.Time {
	t.Helper()
	if err := proc.Signal(s); err != nil {
		t.Fatal(err)
	}
	if s == syscall.SIGKILL {
		<-proc.Exited()
	}
	return time.Now()
}

// A router that dies and comes back in time cuts nobody; one that does not is
// closed by its lease, and so is one whose core died or hangs.
func TestRouterAndCoreDie(t *testing.T) {
	p := leased(t, longLease)
	plc := net.JoinHostPort(plcAddr, "502")
	s := p.open(t, p.user, "plc")
	flow := p.flow(t, harness.UserAddr, plc)
	p.granted(t, longLease)
	// again waits until plc passes. A session that had no router for longer
	// than its lease may have ended meanwhile: then it is opened anew.
	again := func(t *testing.T) {
		t.Helper()
		until(t, patience, "the session passes again", func() error {
			now, err := p.core.Admin.NetworkSession(t.Context(), s.ID)
			if err != nil {
				return err
			}
			if now.State == "ended" {
				if now.EndReason == "user" || now.EndText == "" {
					t.Fatalf("ended by %q, %q", now.EndReason, now.EndText)
				}
				opened, err := p.user.OpenNetwork(t.Context(), "plc")
				if err != nil {
					return err // the routers are not ready for it yet
				}
				s = opened
			}
			return p.passes(t, harness.UserAddr, "tcp", plc)
		})
	}

	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run("router, "+sig.String()+", back at once", func(t *testing.T) {
			p.signal(t, p.router.Proc, sig)
			<-p.router.Proc.Exited()
			p.startRouter(t, p.router)
			stays(t, flow, longLease+time.Second)
		})
	}
	p.lease(t, shortLease)
	p.granted(t, shortLease)
	t.Run("router, killed", func(t *testing.T) {
		cutInTime(t, flow, p.signal(t, p.router.Proc, syscall.SIGKILL))
		p.startRouter(t, p.router)
		again(t)
	})
	t.Run("core, stopped", func(t *testing.T) {
		flow := p.flow(t, harness.UserAddr, plc)
		cutInTime(t, flow, p.signal(t, p.core.Proc, syscall.SIGSTOP))
		p.signal(t, p.core.Proc, syscall.SIGCONT)
		if _, err := p.core.Admin.RouterReady(t.Context(), patience, "gw-1", p.router.Proc); err != nil {
			t.Fatal(err)
		}
		again(t)
	})
	t.Run("core, killed", func(t *testing.T) {
		flow := p.flow(t, harness.UserAddr, plc)
		cutInTime(t, flow, p.signal(t, p.core.Proc, syscall.SIGKILL))
	})
	t.Run("both, killed", func(t *testing.T) {
		// Core is dead; the router dies too, and nothing opens by itself.
		p.signal(t, p.router.Proc, syscall.SIGKILL)
		if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
			t.Error("open though nobody is there to justify it")
		}
		if err := p.router.Start(); err != nil {
			t.Fatal(err)
		}
		if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
			t.Error("a router without core opened what an earlier one had")
		}
		if err := p.core.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.core.Admin.RouterReady(t.Context(), patience, "gw-1", p.router.Proc); err != nil {
			t.Fatal(err)
		}
		again(t)
	})
	flow = p.flow(t, harness.UserAddr, plc)
	if err := p.core.Admin.Do(t.Context(), http.MethodDelete, "/network-sessions/"+s.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	cut(t, flow)
	p.over(t, s.ID)
}

// granted waits until the first router's rules hold for a lease of this length,
// less what its way took.
func (p *plant) granted(t *testing.T, lease time.Duration) {
	t.Helper()
	until(t, patience, "the lease is "+lease.String(), func() error {
		out, err := p.net.Command(t.Context(), "gw", "nft", "list", "set", "inet", "caponier", "lease").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		_, rest, _ := strings.Cut(string(out), " timeout ")
		text, _, _ := strings.Cut(rest, " ")
		if d, err := time.ParseDuration(text); err != nil || d > lease || d <= lease/2 {
			return fmt.Errorf("it is %s", out)
		}
		return nil
	})
}

// Rules changed by hand never open the router, and are put right.
func TestRouterRulesByHand(t *testing.T) {
	p := leased(t, longLease)
	plc := net.JoinHostPort(plcAddr, "502")
	p.open(t, p.user, "plc")
	flow := p.flow(t, harness.UserAddr, plc)
	nft := func(args ...string) string {
		t.Helper()
		out, err := p.net.Command(t.Context(), "gw", "nft", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	closed := func(when string) {
		t.Helper()
		if p.passes(t, benAddr, "tcp", plc) == nil {
			t.Errorf("%s: open for who has no session", when)
		}
	}
	healed := func(when string) {
		t.Helper()
		until(t, patience, when+": the session passes again", func() error { return p.passes(t, harness.UserAddr, "tcp", plc) })
		closed(when)
	}
	for _, change := range []string{"flush ruleset", "delete table inet caponier", "insert rule inet caponier forward accept"} {
		t.Run(change, func(t *testing.T) {
			// While nobody can put it right, it is closed.
			p.signal(t, p.router.Proc, syscall.SIGSTOP)
			nft(strings.Fields(change)...)
			closed("not yet put right")
			if !strings.HasPrefix(change, "insert") && p.passes(t, harness.UserAddr, "tcp", plc) == nil {
				t.Error("passes without rules")
			}
			p.signal(t, p.router.Proc, syscall.SIGCONT)
			healed("put right")
			if rules := nft("list", "chain", "inet", "caponier", "forward"); strings.HasPrefix(change, "insert") && strings.Contains(rules, "\t\taccept\n") {
				t.Errorf("the planted rule is still there:\n%s", rules)
			}
		})
	}
	// A router that works puts it right before anybody notices.
	nft("flush", "ruleset")
	until(t, patience, "an open flow goes on", func() error { return talk(flow, tryTime) })
	closed("in the end")
}

// firewall is the program of an exec router; fault.VERB makes a verb go wrong.
const firewall = `#!/bin/sh
D=@DIR@
read -r in
rest=${in#*'"session":{"id":"'}
id=${rest%%'"'*}
fault=
[ ! -e "$D/fault.$1" ] || read -r fault < "$D/fault.$1"
case $fault in
fail) echo '{"message":"zone ot is locked"}'; exit 20 ;;
hang) trap '' TERM; sleep 600 & wait; wait ;;
garbage) echo '%%%' ; exit 99 ;;
half) : > "$D/s/$id"; kill -9 $$ ;;
esac
case $1 in
add) : > "$D/s/$id" ;;
del) [ ! -e "$D/s/$id" ] || rm "$D/s/$id" ;;
*) exit 11 ;;
esac
`

// Two routers of one pool both get the rules; when the program of one fails in
// any way the session is not opened anywhere, and a removal that fails is
// repeated and never told as an end.
func TestRouterProgramFails(t *testing.T) {
	p := leased(t, longLease)
	dir := filepath.Join(p.dir, "firewall")
	script := filepath.Join(dir, "program")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "s"), 0o755), os.WriteFile(script, []byte(strings.ReplaceAll(firewall, "@DIR@", dir)), 0o755)); err != nil {
		t.Fatal(err)
	}
	fault := func(verb, how string) func() {
		t.Helper()
		file := filepath.Join(dir, "fault."+verb)
		if err := os.WriteFile(file, []byte(how+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	held := func() int {
		entries, err := os.ReadDir(filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	_, token, err := p.core.Admin.EnrolmentToken(t.Context(), map[string]any{"kind": "router"})
	if err != nil {
		t.Fatal(err)
	}
	fw, err := harness.StartEdge(context.Background(), p.net, p.bin.Router, filepath.Join(p.dir, "fw-1"), harness.EdgeConfig{NS: "middle", Name: "fw-1",
		URL: p.core.Ready.URL, Token: token, TOML: fmt.Sprintf("type = \"exec\"\n[program]\npath = %q\ntimeout = \"5s\"\n", script)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fw.Proc.Kill() })
	state, err := p.core.Admin.RouterReady(t.Context(), patience, "fw-1", fw.Proc)
	if err != nil {
		t.Fatal(err)
	}
	if state.Type != "exec" || state.Leased {
		t.Errorf("a program that cannot renew: %+v", state)
	}
	if err := p.core.Admin.Pool(t.Context(), "fw-1", userPool); err != nil {
		t.Fatal(err)
	}
	plc := net.JoinHostPort(plcAddr, "502")
	for _, how := range []string{"fail", "garbage", "half", "hang"} {
		t.Run("add, "+how, func(t *testing.T) {
			mend := fault("add", how)
			_, err := p.user.OpenNetwork(t.Context(), "plc")
			mend()
			if got := refused(err); got != "router_failed" {
				t.Fatalf("opened: %v", got)
			}
			if how == "fail" && !strings.Contains(err.Error(), "zone ot is locked") {
				t.Errorf("the program's own words are missing: %v", err)
			}
			until(t, patience, "the program holds nothing", func() error {
				if n := held(); n != 0 {
					return fmt.Errorf("it holds %d", n)
				}
				return nil
			})
			// Until then it would be in the way of the next one.
			until(t, patience, "nothing is left of it", func() error {
				var all struct{ Items []harness.NetworkSession }
				if err := p.core.Admin.Do(t.Context(), http.MethodGet, "/network-sessions", nil, &all); err != nil {
					return err
				}
				for _, s := range all.Items {
					if s.State != "ended" {
						return fmt.Errorf("%s is %s", s.ID, s.State)
					}
				}
				return nil
			})
			if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
				t.Error("the other router lets it through")
			}
		})
	}
	s := p.open(t, p.user, "plc")
	if err := p.reaches(t, harness.UserAddr, "tcp", plc); err != nil || held() != 1 {
		t.Fatalf("after all faults: %v, the program holds %d", err, held())
	}
	mend := fault("del", "fail")
	if err := p.user.Do(t.Context(), http.MethodDelete, "/network-sessions/"+s.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the router that works has closed", func() error {
		if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
			return errors.New("it still lets the client through")
		}
		return nil
	})
	until(t, patience, "core knows of the removal that fails", func() error {
		r, err := p.core.Admin.Router(t.Context(), "fw-1")
		if err == nil && r.Ending != 1 {
			err = fmt.Errorf("it is %+v", r)
		}
		return err
	})
	if now, err := p.core.Admin.NetworkSession(t.Context(), s.ID); err != nil || now.State == "ended" || held() != 1 {
		t.Errorf("told as ended while the program holds it: %+v, %v", now, err)
	}
	mend()
	p.over(t, s.ID)
	if held() != 0 {
		t.Error("ended, and the program still holds it")
	}
	// A program without a lease of its own is told to end everything when the
	// router stops.
	p.open(t, p.user, "plc")
	if held() != 1 {
		t.Fatal("the program does not hold the session")
	}
	if err := fw.Proc.Stop(patience); err != nil {
		t.Fatal(err)
	}
	if held() != 0 {
		t.Error("the router is gone and its program still holds the session")
	}
}
