#!/bin/sh
# Builds the image that browser sessions run in, from Debian packages alone, and
# loads it into Docker. Does nothing when the image of these very files is there.
#
#   sh carrier/image/build.sh [IMAGE]      IMAGE: caponier-browser by default
set -eu
cd "$(dirname "$0")"
image=${1:-caponier-browser}
suite=bookworm
say() { echo "images: $*"; }

command -v mmdebstrap >/dev/null || { say "mmdebstrap is missing: run make setup" >&2; exit 1; }
docker version >/dev/null 2>&1 || { say "Docker does not answer: start it (dockerd), or set DOCKER_HOST" >&2; exit 1; }

recipe=$(cat build.sh init/*.go $(find files -type f | sort) | sha256sum | cut -c1-16)
if [ "$(docker image inspect -f '{{index .Config.Labels "caponier.recipe"}}' "$image:latest" 2>/dev/null)" = "$recipe" ]; then
	say "$image is up to date ($recipe)"
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
say "1/3 process 1 of the container"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/init" ./init

say "2/3 Debian $suite with Firefox and an X server without a screen (a minute or two)"
cp -r files "$work/files"
# What is left out: software rendering needs no GPU drivers, and people see
# pages, not manuals.
cat >"$work/slim" <<'EOT'
#!/bin/sh
set -eu
cd "$1"
rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/icons/*/*/apps \
	var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/* var/log/* usr/lib/*/dri usr/lib/*/libLLVM* usr/lib/*/libz3*
install -D -m 0755 "$WORK/init" usr/lib/caponier/init
install -D -m 0644 "$WORK/files/firefox/policies.json" etc/firefox/policies/policies.json
install -D -m 0644 "$WORK/files/firefox/autoconfig.js" usr/lib/firefox-esr/defaults/pref/caponier.js
install -D -m 0644 "$WORK/files/firefox/caponier.cfg" usr/lib/firefox-esr/caponier.cfg
install -D -m 0644 "$WORK/files/openbox/rc.xml" etc/xdg/openbox/rc.xml
echo 'browser:x:10001:10001::/tmp/home:/usr/sbin/nologin' >>etc/passwd
echo 'browser:x:10001:' >>etc/group
mkdir -p run/caponier
EOT
chmod +x "$work/slim"
WORK=$work mmdebstrap --quiet --variant=minbase \
	--include=firefox-esr,tigervnc-standalone-server,openbox,ca-certificates,fonts-dejavu-core \
	--customize-hook="WORK=$work $work/slim \"\$1\"" "$suite" "$work/root.tar"

say "3/3 load it into Docker as $image"
docker import --change 'ENTRYPOINT ["/usr/lib/caponier/init"]' --change 'USER 10001:10001' \
	--change "LABEL caponier.recipe=$recipe" "$work/root.tar" "$image:latest" >/dev/null
say "$image is ready ($(docker image inspect -f '{{.Size}}' "$image:latest" | awk '{printf "%d MB", $1/1e6}'))"
