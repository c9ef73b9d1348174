#!/bin/sh
# demo.sh up|down: brings the demo up or removes it; root is needed for its
# network namespaces.
set -eu
case "${1-}" in up | down) ;; *)
	echo "usage: demo.sh up|down" >&2
	exit 2
	;;
esac
cd "$(dirname "$0")/../.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
go build -o "$tool/" ./e2e/demo ./e2e/sites/serve
if [ "$(id -u)" = 0 ]; then
	"$tool/demo" "$1" .
elif command -v sudo >/dev/null 2>&1; then
	sudo "$tool/demo" "$1" .
else
	echo "demo: network namespaces need root, and there is no sudo here" >&2
	exit 1
fi
