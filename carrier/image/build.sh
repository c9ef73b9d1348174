#!/bin/sh
# Builds the images that browser sessions run in, from Debian packages alone, and
# loads them into Docker: a base of Debian packages (a minute or two, once), and
# on it what is ours. Firefox comes with the profile of one that ran once (half a
# minute): a browser that finds its caches filled is up a quarter sooner. Does
# nothing for images of these very files.
#
#   sh carrier/image/build.sh [BROWSER…]    firefox: caponier-browser
#                                           chromium: caponier-chromium
#
# Without a BROWSER those of CAPONIER_IMAGES, "firefox" by default.
set -eu
cd "$(dirname "$0")"
suite=bookworm
say() { echo "images: $*"; }
label() { docker image inspect -f "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null || :; }

docker version >/dev/null 2>&1 || { say "Docker does not answer: start it (dockerd), or set DOCKER_HOST" >&2; exit 1; }

# What is left out of the base: software rendering needs no GPU drivers, and
# people see pages, not manuals.
#
# PulseAudio comes without what it has for real devices (codecs, 60 packages):
# the daemon, and the modules of a device that nobody hears. Browsers never
# start one by themselves.
slim='set -eu
cd "$1"
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq -o APT::Sandbox::User=root download pulseaudio
mv pulseaudio_*.deb pulseaudio.deb
chroot . dpkg --force-depends -i pulseaudio.deb >said 2>&1 || { cat said >&2; exit 1; }
rm pulseaudio.deb said
find usr/lib/pulse-*/modules -name "*.so" ! -name module-null-sink.so ! -name module-suspend-on-idle.so \
	! -name module-native-protocol-unix.so ! -name libprotocol-native.so ! -name module-simple-protocol-unix.so ! -name libprotocol-simple.so -delete
rm -rf usr/share/pulseaudio usr/share/alsa/*pulse* usr/share/alsa/alsa.conf.d/*pulse* etc/pulse/*.pa etc/alsa/conf.d/*pulse* etc/xdg/autostart/pulseaudio.desktop usr/lib/systemd/user/*pulseaudio*
echo "autospawn = no" >etc/pulse/client.conf
rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/icons/*/*/apps \
	var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/* var/log/* usr/lib/*/dri usr/lib/*/libLLVM* usr/lib/*/libz3*
echo "browser:x:10001:10001::/tmp/home:/usr/sbin/nologin" >>etc/passwd
echo "browser:x:10001:" >>etc/group
mkdir -p run/caponier files
'
# Chromium's lock-down and time zone are the carrier's to say, with each session.
slim_chromium=$slim'
rm -rf etc/chromium/policies etc/localtime usr/lib/chromium/libVk* usr/lib/chromium/chrome_crashpad_handler
mkdir -p etc/chromium/policies
ln -s /run/caponier/policies etc/chromium/policies/managed
ln -s /run/caponier/localtime etc/localtime
'

work=
ran=
drop() {
	[ -z "$ran" ] || docker rm -f "$ran" >/dev/null 2>&1 || :
	[ -z "$work" ] || rm -rf "$work"
	ran= work=
}
trap drop EXIT
trap 'exit 130' INT TERM

# The builder that comes with every engine: nothing is fetched, nothing is run.
build() { DOCKER_BUILDKIT=0 docker build -q --network none -t "$1" "$2" >/dev/null 2>"$work/said" || { cat "$work/said" >&2; exit 1; }; }

# image BROWSER NAME PACKAGES SLIM
image() {
	browser=$1 name=$2 packages=$3 slim=$4
	base=$name-base:$(printf '%s' "$suite $packages $slim" | sha256sum | cut -c1-16)
	recipe=$(cat build.sh init/*.go $(find "files/$browser" files/openbox -type f 2>/dev/null | sort) | sha256sum | cut -c1-16)
	if [ "$(label "$name:latest" caponier.recipe)" = "$recipe" ]; then
		say "$name is up to date ($recipe)"
		return
	fi
	work=$(mktemp -d)
	if [ -z "$(docker image ls -q "$base")" ]; then
		command -v mmdebstrap >/dev/null || { say "mmdebstrap is missing: run make setup" >&2; exit 1; }
		say "$name: Debian $suite with $browser and an X server without a screen (a minute or two)"
		printf '#!/bin/sh\n%s' "$slim" >"$work/slim"
		chmod +x "$work/slim"
		mmdebstrap --quiet --variant=minbase --include="$packages" --customize-hook="$work/slim \"\$1\"" "$suite" "$work/base.tar"
		docker import "$work/base.tar" "$base" >/dev/null
		rm "$work/base.tar"
	else
		say "$name: Debian $suite with $browser is here ($base)"
	fi
	say "$name: process 1 of the container, and how the browser behaves"
	root=$work/context/root
	put() { install -D -m "$1" "$2" "$root/$3"; }
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/init" ./init
	put 0755 "$work/init" usr/lib/caponier/init
	put 0644 files/openbox/rc.xml etc/xdg/openbox/rc.xml
	"of_$browser"
	rm -rf "$work"
	work=
	say "$name is ready ($(docker image inspect -f '{{.Size}}' "$name:latest" | awk '{printf "%d MB", $1/1e6}'))"
}

dockerfile() {
	printf 'FROM %s\nCOPY root/ /\nUSER 10001:10001\nENTRYPOINT ["/usr/lib/caponier/init"]\nLABEL caponier.recipe=%s\n' "$base" "$recipe" >"$work/context/Dockerfile"
}

# Its policies come with each session.
of_chromium() {
	dockerfile
	build "$name:latest" "$work/context"
}

of_firefox() {
	put 0644 files/firefox/policies.json etc/firefox/policies/policies.json
	put 0644 files/firefox/autoconfig.js usr/lib/firefox-esr/defaults/pref/caponier.js
	put 0644 files/firefox/caponier.cfg usr/lib/firefox-esr/caponier.cfg
	dockerfile
	build "$name:unbaked" "$work/context"
	say "$name: run it once, for its profile"
	ran=$(docker run -d --network none --cap-drop ALL --security-opt no-new-privileges --shm-size 256m --label caponier.bake=1 "$name:unbaked")
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
	# Nothing that should differ from session to session, and nothing that tells
	# of a crash or of a page.
	(cd "$work/baked/profile" && rm -rf cert9.db key4.db pkcs11.txt logins.db lock .parentlock .startup-incomplete sessionstore* sessionCheckpoints.json \
		crashes minidumps datareporting cache2 thumbnails safebrowsing bookmarkbackups storage storage.sqlite* cookies.sqlite* permissions.sqlite* \
		content-prefs.sqlite* domain_to* bounce* favicons.sqlite* [0-9a-f]*.sqlite*)
	find "$work/baked" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
	chmod -R a+rX "$work/baked/profile"
	printf 'FROM %s:unbaked\nCOPY profile /usr/share/caponier/profile\n' "$name" >"$work/baked/Dockerfile"
	build "$name:latest" "$work/baked"
	docker rm -f "$ran" >/dev/null
	ran=
	docker rmi "$name:unbaked" >/dev/null 2>&1 || :
}

common=tigervnc-standalone-server,openbox,ca-certificates,fonts-dejavu-core
common=$common,libpulse0,libltdl7,libtdb1,libsoxr0,libspeexdsp1,liborc-0.4-0,libwrap0 # of pulseaudio
[ $# -gt 0 ] || set -- ${CAPONIER_IMAGES:-firefox}
for b; do
	case $b in
	firefox) image firefox caponier-browser "firefox-esr,$common" "$slim" ;;
	chromium) image chromium caponier-chromium "chromium,tzdata,$common" "$slim_chromium" ;;
	*) say "there is no browser \"$b\": firefox, chromium" >&2; exit 1 ;;
	esac
done
