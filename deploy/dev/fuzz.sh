#!/bin/sh
# Runs every fuzz target of the tree for the given time each.
set -eu
cd "$(dirname "$0")/../.."
time=${1:-30s}
for file in $(git ls-files -co --exclude-standard '*_test.go' | xargs grep -l '^func Fuzz'); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$file"); do
		echo "fuzz: $target in $(dirname "$file") for $time"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")"
	done
done
echo "fuzz: ok"
