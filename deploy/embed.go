// Package deploy holds the texts people install by, so that what the console
// and the command line print is what stands in these folders.
package deploy

import "embed"

// Files are the systemd units and the cloud-init examples.
//
//go:embed systemd cloud-init
var Files embed.FS
