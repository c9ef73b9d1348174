#!/bin/sh
# Prints the tunnel table (core and extender as processes of their own beside a
# one-hop TLS relay) and the decision benchmarks.
set -eu
cd "$(dirname "$0")/../.."
echo "bench: access decision with 100,000 users, 10,000 targets, 1,000 roles"
go test -run '^$' -bench . -benchmem ./core/internal/access/ ./core/internal/policy/
echo "bench: import of 20,000 hosts"
go test -count=1 -v -run '^TestImportMany$' ./core/internal/target/ -hosts 20000 | grep -E 'hosts|FAIL|ok'
if [ "$(id -u)" = 0 ]; then
	echo "bench: router, 10,000 sessions, in network namespaces"
	go test -count=1 -v -timeout 5m -run '^TestBench$' ./router/internal/nft -sessions 10000 | grep -v '^[=-]'
else
	echo "bench: router: skipped, it needs root for network namespaces"
fi
echo "bench: picture of a web session, 1280x800 (bytes and time per frame)"
go test -run '^$' -bench . ./shared/rfb/ | grep -E '^Benchmark|FAIL'
echo "bench: web sessions: decision, search for credentials, proxies before one server"
go test -run '^$' -bench 'Decide' -benchmem ./shared/webrule/
go test -run '^$' -bench 'Stream' ./webproxy/internal/mask/
go test -run '^$' -bench 'Proxy|Leaf' -benchtime 2s ./webproxy/internal/mitm/ | awk '
	/^Benchmark/ { print }
	/^BenchmarkProxy/ { split($1, n, "/"); sub(/-[0-9]+$/, "", n[4]); k = n[2] "/" n[3] "/" n[4]; v[k] = $5; c[k] = $7 }
	END { print "bench: the proxy\047s rate, and in brackets what a processor does, as multiples of goproxy (target 0.60)"
		printf "%-28s %18s %18s %18s\n", "", "plain http://", "CONNECT tunnel", "opening TLS"
		for (k in v) if (k ~ /\/webproxy/) { split(k, n, "/"); line = sprintf("%-28s", k)
			for (i = 1; i <= 3; i++) { base = n[1] "/" (i == 1 ? "h1/goproxy-http" : n[2] (i == 2 ? "/goproxy-blind" : "/goproxy-mitm"))
				line = line sprintf(" %10.2f (%.2f) ", v[k] / v[base], c[base] / c[k]) }
			print line | "sort" } }'
if [ "$(id -u)" = 0 ]; then
	echo "bench: web sessions by pixels: click, memory, idle, cold, a killed carrier (4 minutes)"
	CAPONIER_TEST_BIN="$PWD/bin" go test -count=1 -v -timeout 20m -run '^$' -bench '^BenchmarkWeb$' -benchtime 1x ./e2e | grep -E '^  |FAIL|^web sessions'
else
	echo "bench: web sessions by pixels: skipped, they need root for network namespaces"
fi
echo "bench: recordings of web sessions (an hour of 331 MB)"
go test -run '^$' -bench Web ./core/internal/recording/ | grep -E '^Benchmark|FAIL'
echo "bench: tunnel"
go run ./e2e/tunnelbench "$@"
