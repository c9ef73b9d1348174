// Command caponier is the people's command line: log in, reach targets, look
// at connections and recordings.
package main

import (
	"os"

	"caponier/core/internal/usercli"
)

func main() {
	os.Exit(usercli.Main(os.Args[1:], usercli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Environ: os.Environ()}))
}
