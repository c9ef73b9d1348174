package nft

import (
	"bufio"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"caponier/shared/wire"
)

// dump captures n packets in a namespace; the returned function waits for them.
func (r *rig) dump(ns, dev, filter string, n int) func() (lines []string) {
	r.t.Helper()
	cmd := r.Command(r.t.Context(), ns, "tcpdump", "-i", dev, "-nn", "-v", "-l", "--immediate-mode", "-s", "128", "-B", "4096", "-c", strconv.Itoa(n), filter)
	out, err := cmd.StdoutPipe()
	r.must(err)
	said, err := cmd.StderrPipe()
	r.must(err)
	r.must(cmd.Start())
	ready := bufio.NewScanner(said)
	for ready.Scan() && !strings.Contains(ready.Text(), "listening on") {
	}
	read := make(chan []string, 1)
	go func() {
		var lines []string
		for s := bufio.NewScanner(out); s.Scan(); {
			lines = append(lines, s.Text())
		}
		read <- lines
	}()
	return func() []string {
		late := time.AfterFunc(patience, func() { _ = cmd.Process.Signal(syscall.SIGINT) })
		defer late.Stop()
		for ready.Scan() {
		}
		lines := <-read
		r.must(cmd.Wait())
		return lines
	}
}

var ipLength = regexp.MustCompile(`, length (\d+)\)`)

// What the router counts is what tcpdump sees on both of its sides, and each
// side sees only its own addresses.
func TestCountersEqualTcpdump(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.udpEcho("target", targetAddr+":5161")
	s := session(t, "s", clientAddr, "198.51.100.7 udp 161 -> "+targetAddr+":5161")
	s.Rules.SNAT = true
	tab := r.start(s)
	before := r.dump("client", "c0", "udp", 50)
	behind := r.dump("target", "t1", "udp", 50)
	c := r.passes(clientAddr, "udp", "198.51.100.7:161")
	for range 24 {
		r.must(pingPong(c, patience))
	}
	counts, err := tab.Counters(t.Context(), nil)
	r.must(err)
	for _, side := range []struct {
		name           string
		lines          []string
		client, target string
	}{
		{"client", before(), clientAddr + ".", "198.51.100.7.161"},
		{"target", behind(), targetSide + ".", targetAddr + ".5161"},
	} {
		var seen wire.RouterDestCount
		var length uint64
		for _, line := range side.lines {
			if m := ipLength.FindStringSubmatch(line); m != nil {
				length, _ = strconv.ParseUint(m[1], 10, 64)
				continue
			}
			from, to, ok := strings.Cut(strings.TrimSpace(line), " > ")
			switch {
			case !ok:
			case strings.HasPrefix(from, side.client) && strings.HasPrefix(to, side.target+":"):
				seen.PacketsOut++
				seen.BytesOut += length
			case from == side.target && strings.HasPrefix(to, side.client):
				seen.PacketsIn++
				seen.BytesIn += length
			default:
				t.Errorf("%s side: a packet with foreign addresses: %s", side.name, line)
			}
		}
		seen.Destination = counts[0].Destinations[0].Destination
		if seen != counts[0].Destinations[0] || seen.PacketsOut != 25 {
			t.Errorf("%s side: tcpdump saw %+v, counted %+v", side.name, seen, counts[0].Destinations[0])
		}
	}
}
