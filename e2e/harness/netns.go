package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// namePrefix starts the name of every namespace a test makes.
const namePrefix = "capt-"

var netSeq atomic.Int64

// Net is a set of network namespaces joined by links. Close removes them.
type Net struct {
	prefix string
	spaces []string // short names, in order of creation
}

// NewNet returns an empty set. With an empty prefix the names are unique to
// this process; a fixed prefix is for the demo.
func NewNet(prefix string) *Net {
	if prefix == "" {
		prefix = fmt.Sprintf("%s%d-%d-", namePrefix, os.Getpid(), netSeq.Add(1))
	}
	return &Net{prefix: prefix}
}

// NS is the full name of a namespace of this set.
func (n *Net) NS(short string) string { return n.prefix + short }

// Add makes namespaces with loopback up.
func (n *Net) Add(shorts ...string) error {
	for _, s := range shorts {
		if out, err := run("ip", "netns", "add", n.NS(s)); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		n.spaces = append(n.spaces, s)
		if out, err := run("ip", "-n", n.NS(s), "link", "set", "lo", "up"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// IP runs lines of ip(8) commands inside a namespace.
func (n *Net) IP(short string, lines ...string) error {
	return runIn(strings.Join(lines, "\n")+"\n", "ip", "-n", n.NS(short), "-batch", "-")
}

// NFT loads an nftables script inside a namespace.
func (n *Net) NFT(short, script string) error {
	return runIn(script, "ip", "netns", "exec", n.NS(short), "nft", "-f", "-")
}

// Sysctl sets kernel network settings inside a namespace ("net.ipv4.ip_forward=1").
func (n *Net) Sysctl(short string, settings ...string) error {
	_, err := run("ip", append([]string{"netns", "exec", n.NS(short), "sysctl", "-q", "-w"}, settings...)...)
	return err
}

// Plug joins a namespace to a bridge of another one by a cable: the end in
// short is called dev and gets the addresses.
func (n *Net) Plug(short, dev, at, bridge string, addrs ...string) error {
	port := "p" + short + dev
	if len(port) > 15 {
		port = port[:15]
	}
	if out, err := run("ip", "link", "add", dev, "netns", n.NS(short), "type", "veth", "peer", "name", port, "netns", n.NS(at)); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := n.IP(at, "link set "+port+" master "+bridge+" up"); err != nil {
		return err
	}
	lines := []string{}
	for _, a := range addrs {
		if strings.Contains(a, ":") {
			a += " nodad" // usable at once: nobody else has it
		}
		lines = append(lines, "addr add "+a+" dev "+dev)
	}
	return n.IP(short, append(lines, "link set "+dev+" up")...)
}

// Settled waits until every link of a namespace that is up has its own IPv6
// address and none is checked for duplicates any more (RFC 4862 §5.4): browsers
// give up what they load when an address comes.
func (n *Net) Settled(ctx context.Context, short string) error {
	return Until(ctx, time.Minute, "the addresses of "+short, func() error {
		out, err := exec.CommandContext(ctx, "ip", "-n", n.NS(short), "-json", "addr").Output()
		if err != nil {
			return err
		}
		var links []struct {
			Name  string   `json:"ifname"`
			Flags []string `json:"flags"`
			Addrs []struct {
				Family    string `json:"family"`
				Scope     string `json:"scope"`
				Tentative bool   `json:"tentative"`
			} `json:"addr_info"`
		}
		if err := json.Unmarshal(out, &links); err != nil {
			return err
		}
		for _, l := range links {
			own := l.Name == "lo" || !slices.Contains(l.Flags, "UP")
			for _, a := range l.Addrs {
				if a.Tentative {
					return fmt.Errorf("%s of %s checks its address", l.Name, short)
				}
				own = own || a.Family == "inet6" && a.Scope == "link"
			}
			if !own {
				return fmt.Errorf("%s of %s has no address of its own", l.Name, short)
			}
		}
		return nil
	})
}

// Command prepares a program that runs inside a namespace.
func (n *Net) Command(ctx context.Context, short, prog string, args ...string) *exec.Cmd {
	path, err := lookPath(prog)
	if err != nil {
		path = prog
	}
	ip, err := lookPath("ip")
	if err != nil {
		ip = "ip"
	}
	return exec.CommandContext(ctx, ip, append([]string{"netns", "exec", n.NS(short), path}, args...)...)
}

// Dial connects from inside a namespace to a literal address. A socket stays
// in the namespace it was made in, so only its making happens there.
func (n *Net) Dial(ctx context.Context, short, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := n.Within(short, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens inside a namespace.
func (n *Net) Listen(short, network, addr string) (net.Listener, error) {
	var l net.Listener
	err := n.Within(short, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// Within runs f on a thread that has moved into the namespace.
func (n *Net) Within(short string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		away, err := os.Open(filepath.Join("/run/netns", n.NS(short)))
		if err != nil {
			done <- err
			return
		}
		defer away.Close()
		if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", n.NS(short), err)
			return
		}
		err = f()
		// A thread that cannot come back stays locked and dies with the goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Close removes the namespaces. Processes in them must be gone.
func (n *Net) Close() error {
	var first error
	for i := len(n.spaces) - 1; i >= 0; i-- {
		if out, err := run("ip", "netns", "del", n.NS(n.spaces[i])); err != nil && first == nil {
			first = fmt.Errorf("%w: %s", err, out)
		}
	}
	n.spaces = nil
	return first
}

// Sweep removes namespaces of test processes that no longer live.
func Sweep() {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return // no namespace was ever made here
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), namePrefix)
		if !ours {
			continue
		}
		text, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(text)
		if err != nil {
			continue
		}
		if unix.Kill(pid, 0) == nil {
			continue
		}
		killInside(e.Name())
		run("ip", "netns", "del", e.Name())
	}
}

// killInside ends the processes that live in a namespace.
func killInside(name string) {
	out, err := run("ip", "netns", "pids", name)
	if err != nil {
		return
	}
	for f := range strings.FieldsSeq(out) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}
