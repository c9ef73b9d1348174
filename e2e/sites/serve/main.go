// Command serve runs the sites of package sites: one per argument, for the
// demo and for trying things out by hand.
//
//	serve --cert-dir DIR form=10.10.0.8:8443 basic=10.10.0.8:8444
//
// It writes the authority's certificate to DIR/ca.pem and prints each login it
// receives without the password.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"caponier/e2e/sites"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

// run reads "name password" of the only login from stdin, so that it is on no
// command line.
func run(args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	dir := flags.String("cert-dir", "", "where to write the authority's certificate, ca.pem")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" || flags.NArg() == 0 {
		return errors.New("usage: serve --cert-dir DIR KIND=ADDRESS… (name and password on standard input)")
	}
	var user, password string
	if _, err := fmt.Fscan(stdin, &user, &password); err != nil {
		return fmt.Errorf("name and password on standard input: %w", err)
	}
	ca, err := sites.NewAuthority("Sites of the demo")
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	out := json.NewEncoder(stdout)
	key := []byte(rand.Text())
	var up []*sites.Listening
	for i, arg := range flags.Args() {
		kind, addr, ok := strings.Cut(arg, "=")
		host, _, err := net.SplitHostPort(addr)
		if !ok || err != nil {
			return fmt.Errorf("%q is not KIND=ADDRESS:PORT", arg)
		}
		s, err := sites.New(sites.Config{
			Kind: sites.Kind(kind), Title: "Demo " + kind, Color: sites.Demo[i%len(sites.Demo)],
			Username: user, Password: password, Key: key,
			Heard: func(l sites.Login) {
				out.Encode(map[string]any{"at": time.Now().UTC().Format(time.RFC3339), "kind": l.Kind, "username": l.Username, "password_bytes": len(l.Password), "ok": l.OK})
			},
		})
		if err != nil {
			return err
		}
		cert, err := ca.Certificate(sites.Sound, host)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		up = append(up, sites.Serve(l, s, &cert))
	}
	if err := os.WriteFile(filepath.Join(*dir, "ca.pem"), []byte(ca.PEM), 0o644); err != nil {
		return err
	}
	fmt.Fprintln(stdout, `{"ready":true}`)
	<-ctx.Done()
	for _, s := range up {
		if err := s.Close(context.Background()); err != nil {
			return err
		}
	}
	return nil
}
