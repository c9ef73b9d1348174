// Command tunnelbench measures tunnels beside a plain TLS hop, in one run on
// one machine, and says which figures of the design are reached.
//
// Every subject is two processes between an entry port and a target, all on
// loopback: user → entry → [core ⇄ tunnel ⇄ edge] → target, and for the hop
// user → entry → [near ⇄ one TLS 1.3 connection per stream, 32 dialled ahead ⇄
// far] → target. The load runs in this process; CPU and memory are those of
// the two. Subjects take turns within every row, and medians are shown: on a
// busy machine ratios hold, absolute figures do not.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "role=") {
		if err := play(strings.TrimPrefix(os.Args[1], "role="), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "tunnelbench:", os.Args[1]+":", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.rows, "rows", "bulk,ping,open,far,idle,stall", "rows to run, by comma")
	flag.StringVar(&o.only, "only", "", "regular expression of the figures to measure in the bulk, ping and far rows")
	flag.StringVar(&o.subjects, "subjects", "wss,quic", "what to compare with the hop, by comma")
	flag.DurationVar(&o.time, "time", 1500*time.Millisecond, "length of one measurement")
	flag.IntVar(&o.rounds, "rounds", 3, "measurements per figure; the median is shown")
	flag.DurationVar(&o.rtt, "rtt", 80*time.Millisecond, "round trip of the far rows")
	flag.StringVar(&o.profile, "profile", "", "directory for CPU profiles of the subjects' processes")
	flag.Parse()
	only, err := regexp.Compile(o.only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tunnelbench: -only:", err)
		os.Exit(2)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	b := &bench{options: o, figures: only}
	done := make(chan error, 1)
	go func() { done <- b.run() }()
	select {
	case err = <-done:
	case <-stop:
		err = fmt.Errorf("interrupted")
	}
	b.close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tunnelbench:", err)
		os.Exit(1)
	}
}

type options struct {
	rows, subjects, profile, only string
	time, rtt                     time.Duration
	rounds                        int
}

func (o options) has(row string) bool {
	for r := range strings.SplitSeq(o.rows, ",") {
		if r == row {
			return true
		}
	}
	return false
}

func (b *bench) run() error {
	begin := time.Now()
	if err := b.start(); err != nil {
		return err
	}
	fmt.Printf("%s, %s/%s, %d CPUs, %s; %d × %v per figure\n\n", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), b.rounds, b.time)
	fmt.Printf("%-46s %10s %18s %18s   %s\n", "", "TLS hop", "wss", "quic", "target (wss)")
	for _, row := range []struct {
		name string
		run  func() error
	}{{"bulk", b.bulk}, {"ping", b.ping}, {"open", b.open}, {"far", b.far}, {"idle", b.idle}, {"stall", b.stall}} {
		if !b.has(row.name) {
			continue
		}
		if err := row.run(); err != nil {
			return fmt.Errorf("row %s: %w", row.name, err)
		}
	}
	fmt.Printf("\n%d of %d figures with a target reached, in %v\n", b.passed, b.judged, time.Since(begin).Round(time.Second))
	return nil
}
