#!/bin/sh
# Makes this machine ready for `make run` and `make test`: checks Go and
# installs the Debian packages that are missing. Running it again does nothing.
set -eu
cd "$(dirname "$0")"

say() { echo "setup: $*"; }

if ! command -v go >/dev/null 2>&1; then
	say "Go is missing: install Go 1.26 or newer from https://go.dev/dl/ and put it on PATH" >&2
	exit 1
fi

missing=""
for p in $(grep -v '^#' packages); do
	dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
if [ -n "$missing" ]; then
	sudo=""
	if [ "$(id -u)" != 0 ]; then
		if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
			sudo="sudo"
		else
			say "run once: sudo apt-get install -y --no-install-recommends$missing" >&2
			exit 1
		fi
	fi
	if ! command -v apt-get >/dev/null 2>&1; then
		say "this is not Debian; install the equivalents of:$missing" >&2
		exit 1
	fi
	say "installing$missing"
	# Installing must not start services: nginx or sshd would take ports of this machine.
	guard=/usr/sbin/policy-rc.d
	if [ ! -e "$guard" ]; then
		printf '#!/bin/sh\nexit 101\n' | $sudo tee "$guard" >/dev/null
		$sudo chmod 755 "$guard"
		trap '$sudo rm -f "$guard"' EXIT
	fi
	$sudo apt-get update -q
	# shellcheck disable=SC2086
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi
# sshd's privilege separation directory, made by the service manager where one runs.
if [ "$(id -u)" = 0 ]; then
	mkdir -p -m 0755 /run/sshd
fi
# The console needs Node 20.19 or newer; Debian 12 has 18, so it is only told.
if ! command -v node >/dev/null 2>&1; then
	candidate=$(apt-cache policy nodejs 2>/dev/null | sed -n 's/^ *Candidate: *//p')
	if dpkg --compare-versions "${candidate:-0}" ge 20.19 2>/dev/null && [ "$(id -u)" = 0 ]; then
		say "installing nodejs npm"
		env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends nodejs npm
	else
		say "Node 20.19 or newer is not here (Debian offers ${candidate:-none}): core is built without its web console; install Node from https://nodejs.org/ for it"
	fi
fi
say "ready"
