#!/bin/sh
# The whole proof: unit and store suites on SQLite and a real PostgreSQL with
# the race detector, then the end-to-end tests on real binaries.
set -eu
cd "$(dirname "$0")/../.."
step() { echo "test: $*"; }

if [ -z "${CAPONIER_TEST_PG:-}" ]; then
	. deploy/dev/postgres.sh
	start_postgres
	trap stop_postgres EXIT INT TERM
	export CAPONIER_TEST_PG
fi
# What is not there on a machine that was just set up is a failure, not a skip.
export CAPONIER_TEST_ALL=1
step "go vet and staticcheck"
go vet ./...
go tool staticcheck ./...
step "build the binaries, with the console"
make -s build
if [ -d core/internal/webui/node_modules ]; then
	step "console: types and tests"
	(cd core/internal/webui && npm run --silent check)
fi
step "unit and store suites, race detector on, SQLite and PostgreSQL"
go test -race -p 2 -timeout 30m $(go list ./... | grep -v '/e2e')
step "end to end: real binaries, sshd, nginx and HAProxy in network namespaces"
CAPONIER_TEST_BIN="$PWD/bin" go test -count=1 -timeout 40m ./e2e/...
step "ok"
