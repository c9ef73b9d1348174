// Package webui serves the console: the files that Vite built into dist/,
// embedded in the binary. Go builds and tests without them; core then shows a
// one-line hint instead of the console.
//
// It knows nothing about users or sessions. The pages talk to /api/v1 like any
// other client, so whatever is served here is public.
package webui

import (
	"embed"
	"io/fs"
)

//go:embed all:dist
var embedded embed.FS

func built() fs.FS {
	sub, err := fs.Sub(embedded, "dist")
	if err != nil {
		panic(err) // dist is embedded above
	}
	return sub
}
