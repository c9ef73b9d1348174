// Command demo brings the whole product up on one machine, with a private
// network that core has no route to, and removes it again. It is what make run
// and make stop call.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demo up|down ROOT")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1], os.Args[2])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, verb, root string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	d := &demo{root: root, dir: filepath.Join(root, "var", "demo")}
	switch verb {
	case "up":
		if err := d.claim(); err != nil {
			return err
		}
		if _, err := os.Stat(d.stateFile()); err == nil {
			d.say("replacing the demo that is here, with its recordings and logins")
		}
		if err := d.down(); err != nil { // a second run starts from nothing
			return err
		}
		if err := d.up(ctx); err != nil {
			if derr := d.down(); derr != nil {
				fmt.Fprintf(os.Stderr, "demo: clean up: %v\n", derr)
			}
			return err
		}
		return nil
	case "down":
		if err := d.claim(); err != nil {
			return err
		}
		if _, err := os.Stat(d.stateFile()); err != nil {
			d.say("nothing runs here")
		}
		return d.down()
	}
	return fmt.Errorf("unknown verb %q: up or down", verb)
}
