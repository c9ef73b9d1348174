#!/bin/sh
# Builds the image that browser sessions run in, from Debian packages alone, and
# loads it into Docker: a base of Debian packages (a minute or two, once), and on
# it what is ours, with the profile of a Firefox that ran once (half a minute):
# a browser that finds its caches filled is up a quarter sooner. Does nothing
# when the image of these very files is there.
#
#   sh carrier/image/build.sh [IMAGE]      IMAGE: caponier-browser by default
set -eu
cd "$(dirname "$0")"
image=${1:-caponier-browser}
suite=bookworm
packages=firefox-esr,tigervnc-standalone-server,openbox,ca-certificates,fonts-dejavu-core
say() { echo "images: $*"; }
label() { docker image inspect -f "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null || :; }

docker version >/dev/null 2>&1 || { say "Docker does not answer: start it (dockerd), or set DOCKER_HOST" >&2; exit 1; }

# What is left out of the base: software rendering needs no GPU drivers, and
# people see pages, not manuals.
slim='set -eu
cd "$1"
rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/icons/*/*/apps \
	var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/* var/log/* usr/lib/*/dri usr/lib/*/libLLVM* usr/lib/*/libz3*
echo "browser:x:10001:10001::/tmp/home:/usr/sbin/nologin" >>etc/passwd
echo "browser:x:10001:" >>etc/group
mkdir -p run/caponier files
'
base=caponier-browser-base:$(printf '%s' "$suite $packages $slim" | sha256sum | cut -c1-16)
recipe=$(cat build.sh init/*.go $(find files -type f | sort) | sha256sum | cut -c1-16)
if [ "$(label "$image:latest" caponier.recipe)" = "$recipe" ]; then
	say "$image is up to date ($recipe)"
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
if [ -z "$(docker image ls -q "$base")" ]; then
	command -v mmdebstrap >/dev/null || { say "mmdebstrap is missing: run make setup" >&2; exit 1; }
	say "1/3 Debian $suite with Firefox and an X server without a screen (a minute or two)"
	printf '#!/bin/sh\n%s' "$slim" >"$work/slim"
	chmod +x "$work/slim"
	mmdebstrap --quiet --variant=minbase --include=$packages --customize-hook="$work/slim \"\$1\"" "$suite" "$work/base.tar"
	docker import "$work/base.tar" "$base" >/dev/null
	rm "$work/base.tar"
else
	say "1/3 Debian $suite with Firefox is here ($base)"
fi

say "2/3 process 1 of the container, and how Firefox behaves"
root=$work/context/root
put() { install -D -m "$1" "$2" "$root/$3"; }
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/init" ./init
put 0755 "$work/init" usr/lib/caponier/init
put 0644 files/firefox/policies.json etc/firefox/policies/policies.json
put 0644 files/firefox/autoconfig.js usr/lib/firefox-esr/defaults/pref/caponier.js
put 0644 files/firefox/caponier.cfg usr/lib/firefox-esr/caponier.cfg
put 0644 files/openbox/rc.xml etc/xdg/openbox/rc.xml
cat >"$work/context/Dockerfile" <<EOT
FROM $base
COPY root/ /
USER 10001:10001
ENTRYPOINT ["/usr/lib/caponier/init"]
LABEL caponier.recipe=$recipe
EOT
# The builder that comes with every engine: nothing is fetched, nothing is run.
build() { DOCKER_BUILDKIT=0 docker build -q --network none -t "$1" "$2" >/dev/null 2>"$work/said" || { cat "$work/said" >&2; exit 1; }; }
build "$image:unbaked" "$work/context"

say "3/3 run it once, for its profile"
ran=$(docker run -d --network none --cap-drop ALL --security-opt no-new-privileges --shm-size 256m --label caponier.bake=1 "$image:unbaked")
drop() { docker rm -f "$ran" >/dev/null 2>&1 || :; docker rmi "$image:unbaked" >/dev/null 2>&1 || :; rm -rf "$work"; }
trap drop EXIT INT TERM
n=0
until docker exec "$ran" test -s /tmp/home/profile/prefs.js -a -s /tmp/home/profile/places.sqlite 2>/dev/null; do
	n=$((n + 1))
	[ $n -le 120 ] || { docker logs "$ran" >&2; say "Firefox does not start" >&2; exit 1; }
	sleep 1
done
sleep 5
# It writes its caches when it ends in order.
docker exec "$ran" sh -c 'kill -TERM $(pidof firefox-esr)'
docker wait "$ran" >/dev/null
mkdir -p "$work/baked"
docker cp "$ran:/tmp/home/profile" "$work/baked/profile" >/dev/null
# Nothing that should differ from session to session, and nothing that tells of
# a crash or of a page.
(cd "$work/baked/profile" && rm -rf cert9.db key4.db pkcs11.txt logins.db lock .parentlock .startup-incomplete sessionstore* sessionCheckpoints.json \
	crashes minidumps datareporting cache2 thumbnails safebrowsing bookmarkbackups storage storage.sqlite* cookies.sqlite* permissions.sqlite* \
	content-prefs.sqlite* domain_to* bounce* favicons.sqlite* [0-9a-f]*.sqlite*)
find "$work/baked" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
chmod -R a+rX "$work/baked/profile"
cat >"$work/baked/Dockerfile" <<EOT
FROM $image:unbaked
COPY profile /usr/share/caponier/profile
EOT
build "$image:latest" "$work/baked"
say "$image is ready ($(docker image inspect -f '{{.Size}}' "$image:latest" | awk '{printf "%d MB", $1/1e6}'))"
