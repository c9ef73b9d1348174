package server

import (
	_ "embed"
	"html/template"
	"net"
	"net/http"

	"caponier/shared/daemon"
	"caponier/shared/telemetry"
)

//go:embed status.html
var statusHTML string

// statusPage serves the login-free page at /: whether this core takes
// sessions, and where to go on. It tells nothing about users or targets.
func statusPage(name, url, bastion string, h *telemetry.Health) http.Handler {
	host, port, err := net.SplitHostPort(bastion)
	if err != nil {
		host, port = bastion, "2222"
	}
	page := template.Must(template.New("status").Parse(statusHTML))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		ready := len(h.Ready(r.Context(), false)) == 0
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		page.Execute(w, map[string]any{"Name": name, "Version": daemon.Version, "URL": url, "BastionHost": host, "BastionPort": port, "Ready": ready})
	})
}
