#!/bin/sh
# Builds the console into core/internal/webui/dist when Node is here and
# something changed since the last time. Go needs neither: without it core
# shows a one-line hint instead of the console.
set -eu
cd "$(dirname "$0")/../../core/internal/webui"
say() { echo "console: $*"; }

if ! command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
	say "Node is not here: building without the console (install Node 20.19 or newer and npm for it)"
	exit 0
fi
if ! node -e 'const [a,b]=process.versions.node.split(".").map(Number);process.exit(a>=23||a==22&&b>=12||a==20&&b>=19?0:1)'; then
	say "Node $(node -v) is too old: building without the console (it needs 20.19, 22.12 or newer)"
	exit 0
fi
sum() { cat "$@" | sha256sum | cut -d' ' -f1; }
lock=$(sum package-lock.json)
if [ "$(cat node_modules/.caponier-lock 2>/dev/null)" != "$lock" ]; then
	say "npm ci"
	npm ci --no-audit --no-fund --loglevel=error
	echo "$lock" >node_modules/.caponier-lock
fi
[ "${1:-}" != modules ] || exit 0
src=$(find src public scripts package-lock.json index.html vite.config.ts tsconfig.json -type f ! -name '*.test.*' | LC_ALL=C sort | xargs sha256sum | sum -)
if [ "$(cat dist/.built 2>/dev/null)" = "$src" ]; then
	exit 0
fi
say "vite build -> core/internal/webui/dist"
npm run --silent build -- --logLevel warn
echo "$src" >dist/.built
