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

// shortLease is network.lease of these tests.
const shortLease = 4 * time.Second

// leased is a plant with a short lease, and demo present for as long as the
// test lasts.
func leased(t *testing.T) *plant {
	t.Helper()
	p := newPlant(t, options{})
	if err := p.core.Admin.Do(t.Context(), http.MethodPut, "/settings",
		map[string]any{"values": map[string]any{"network.lease": shortLease.String(), "network.presence": "10m"}}, nil, "If-Match", "*"); err != nil {
		t.Fatal(err)
	}
	return p
}

// soon waits until something holds.
func soon(t *testing.T, limit time.Duration, what string, ok func() error) {
	t.Helper()
	if err := harness.Until(t.Context(), limit, what, ok); err != nil {
		t.Fatal(err)
	}
}

// stays checks that a flow is alive for d.
func stays(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := talk(c); err != nil {
			t.Fatalf("a valid flow was cut: %v", err)
		}
	}
}

// cutWithin checks that a flow carries nothing any more limit after since, and
// was not cut before least.
func cutWithin(t *testing.T, c net.Conn, since time.Time, least, limit time.Duration) {
	t.Helper()
	took := cut(t, c).Sub(since)
	t.Logf("cut %s after the event", took.Round(10*time.Millisecond))
	if took < least || took > limit {
		t.Errorf("cut after %s, want %s to %s", took, least, limit)
	}
}

func (p *plant) startRouter(t *testing.T, r *harness.EdgeNode) {
	t.Helper()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.core.Admin.RouterReady(t.Context(), 30*time.Second, r.Name, r.Proc); err != nil {
		t.Fatal(err)
	}
}

func (p *plant) signal(t *testing.T, proc *harness.Proc, s syscall.Signal) time.Time {
	t.Helper()
	at := time.Now()
	if err := proc.Signal(s); err != nil {
		t.Fatal(err)
	}
	if s == syscall.SIGKILL {
		<-proc.Exited()
	}
	return at
}

// A router that dies and comes back in time cuts nobody; one that does not is
// closed by its lease, and so is one whose core died or hangs.
func TestRouterAndCoreDie(t *testing.T) {
	p := leased(t)
	plc := net.JoinHostPort(plcAddr, "502")
	s := p.open(t, p.user, "plc")
	flow := p.flow(t, harness.UserAddr, plc)
	// What follows counts on the new lease.
	stays(t, flow, 2*time.Second)
	// again waits until plc passes. A session that had no router for longer
	// than its lease may have ended meanwhile: then it is opened anew.
	again := func(t *testing.T) {
		t.Helper()
		soon(t, 15*time.Second, "the session passes again", func() error {
			now, err := p.core.Admin.NetworkSession(t.Context(), s.ID)
			if err != nil {
				return err
			}
			if now.State == "ended" {
				if now.EndReason == "user" || now.EndText == "" {
					t.Fatalf("ended by %q, %q", now.EndReason, now.EndText)
				}
				if s, err = p.user.OpenNetwork(t.Context(), "plc"); err != nil {
					return err
				}
			}
			return p.passes(t, harness.UserAddr, "tcp", plc)
		})
	}

	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run("router, "+sig.String()+", back at once", func(t *testing.T) {
			p.signal(t, p.router.Proc, sig)
			<-p.router.Proc.Exited()
			p.startRouter(t, p.router)
			stays(t, flow, shortLease+time.Second)
		})
	}
	t.Run("router, killed", func(t *testing.T) {
		cutWithin(t, flow, p.signal(t, p.router.Proc, syscall.SIGKILL), 0, shortLease+500*time.Millisecond)
		p.startRouter(t, p.router)
		again(t)
	})
	t.Run("core, stopped", func(t *testing.T) {
		flow := p.flow(t, harness.UserAddr, plc)
		cutWithin(t, flow, p.signal(t, p.core.Proc, syscall.SIGSTOP), 0, shortLease+500*time.Millisecond)
		p.signal(t, p.core.Proc, syscall.SIGCONT)
		if _, err := p.core.Admin.RouterReady(t.Context(), 30*time.Second, "gw-1", p.router.Proc); err != nil {
			t.Fatal(err)
		}
		again(t)
	})
	t.Run("core, killed", func(t *testing.T) {
		flow := p.flow(t, harness.UserAddr, plc)
		cutWithin(t, flow, p.signal(t, p.core.Proc, syscall.SIGKILL), 0, shortLease+500*time.Millisecond)
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
		if _, err := p.core.Admin.RouterReady(t.Context(), 30*time.Second, "gw-1", p.router.Proc); err != nil {
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

// Rules changed by hand never open the router, and are put right.
func TestRouterRulesByHand(t *testing.T) {
	p := leased(t)
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
		soon(t, 10*time.Second, when+": the session passes again", func() error { return p.passes(t, harness.UserAddr, "tcp", plc) })
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
	soon(t, 10*time.Second, "an open flow goes on", func() error { return talk(flow) })
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
	p := leased(t)
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
		URL: p.core.Ready.URL, Token: token, TOML: fmt.Sprintf("type = \"exec\"\n[program]\npath = %q\ntimeout = \"1s\"\n", script)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fw.Proc.Kill() })
	state, err := p.core.Admin.RouterReady(t.Context(), 30*time.Second, "fw-1", fw.Proc)
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
			soon(t, 10*time.Second, "the program holds nothing", func() error {
				if n := held(); n != 0 {
					return fmt.Errorf("it holds %d", n)
				}
				return nil
			})
			if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
				t.Error("the other router lets it through")
			}
		})
	}
	s := p.open(t, p.user, "plc")
	if err := p.passes(t, harness.UserAddr, "tcp", plc); err != nil || held() != 1 {
		t.Fatalf("after all faults: %v, the program holds %d", err, held())
	}
	mend := fault("del", "fail")
	if err := p.user.Do(t.Context(), http.MethodDelete, "/network-sessions/"+s.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	soon(t, 5*time.Second, "the router that works has closed", func() error {
		if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
			return errors.New("it still lets the client through")
		}
		return nil
	})
	soon(t, 20*time.Second, "core knows of the removal that fails", func() error {
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
	if err := fw.Proc.Stop(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	if held() != 0 {
		t.Error("the router is gone and its program still holds the session")
	}
}
