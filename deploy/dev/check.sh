#!/bin/sh
# The quick gate before a commit: no root, no packages, six minutes of processor
# time.
set -eu
cd "$(dirname "$0")/../.."
step() { echo "check: $*"; }

step "gofmt"
bad=$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l)
[ -z "$bad" ] || { echo "not formatted: $bad" >&2; exit 1; }
step "go vet"
go vet ./...
step "go fix"
# A strings.Builder for a line of a few words reads worse than +=.
diff=$(go fix -stringsbuilder=false -diff ./... 2>&1) || true
[ -z "$diff" ] || { echo "$diff"; echo "run: go fix -stringsbuilder=false ./..." >&2; exit 1; }
step "staticcheck"
go tool staticcheck ./...
step "layout and unit tests"
# -short leaves out load tests; end-to-end tests but the layout are make test's.
go test -short -timeout 10m $(go list ./... | grep -v '/e2e')
go test -count=1 -run '^TestLayout' ./e2e
if [ -d core/internal/webui/node_modules ] && command -v node >/dev/null 2>&1; then
	step "console: types and tests"
	(cd core/internal/webui && npm run --silent check)
fi
step "ok"
