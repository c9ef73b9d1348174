// Command caponier-core is the privileged-access server.
package main

import (
	"os"

	"caponier/core/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ())) }
