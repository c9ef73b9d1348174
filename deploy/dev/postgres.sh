# Sourced: start_postgres runs a throw-away PostgreSQL on a free loopback port
# and sets CAPONIER_TEST_PG; stop_postgres removes it.

start_postgres() {
	pg_bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
	if [ -z "$pg_bin" ]; then
		echo "test: no PostgreSQL server found; run make setup" >&2
		return 1
	fi
	pg_dir=$(mktemp -d /tmp/caponier-pg.XXXXXX)
	pg_as=""
	if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
		chown postgres "$pg_dir"
		pg_as="setpriv --reuid=postgres --regid=postgres --clear-groups"
	fi
	$pg_as "$pg_bin/initdb" -D "$pg_dir/data" -U postgres -A trust --no-sync >"$pg_dir.log" 2>&1 || {
		cat "$pg_dir.log" >&2
		return 1
	}
	# A port that was just free may be taken again: try a few.
	for try in 1 2 3 4 5; do
		pg_port=$((20000 + ($$ * 7 + try * 131) % 12000))
		if $pg_as "$pg_bin/pg_ctl" -D "$pg_dir/data" -w -t 30 -s -l "$pg_dir/server.log" \
			-o "-p $pg_port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$pg_dir -c fsync=off -c max_connections=300" start; then
			CAPONIER_TEST_PG="postgres://postgres@127.0.0.1:$pg_port/postgres?sslmode=disable"
			echo "test: PostgreSQL on port $pg_port"
			return 0
		fi
	done
	cat "$pg_dir/server.log" >&2
	return 1
}

stop_postgres() {
	[ -n "${pg_dir:-}" ] || return 0
	$pg_as "$pg_bin/pg_ctl" -D "$pg_dir/data" -m immediate -s stop || true
	rm -rf "$pg_dir" "$pg_dir.log"
	pg_dir=""
}
