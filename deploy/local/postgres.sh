#!/usr/bin/env bash
# A private PostgreSQL for one machine, on 127.0.0.1 with SCRAM passwords:
#   postgres.sh start DIR [PORT]   makes it at the first call; prints the port
#   postgres.sh stop DIR
#   postgres.sh status DIR         exit status tells
# DIR holds port, pgpass (all accounts) and the data. Accounts, each with its own password:
# hypersdk (superuser), hypersdk_owner (owns the database, applies migrations), hypersdk_app (the
# services; SET ROLE to the group role of each). PG_FSYNC=off makes it fast and not crash-safe.
# PostgreSQL refuses to run as root: then it runs as postgres, or nobody.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
umask 077

action=${1:?start, stop or status}
dir=${2:?directory}
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || die "PostgreSQL is not installed (apt-get install postgresql)"
account=$(id -un)
[ "$(id -u)" != 0 ] || account=$(getent passwd postgres nobody | head -n 1 | cut -d: -f1)

as_account() {
    if [ "$(id -u)" = 0 ]; then
        (cd / && setpriv --reuid="$account" --regid="$(id -g "$account")" --clear-groups env HOME=/ "$@")
    else
        "$@"
    fi
}

# Below a home directory that the account cannot enter (a clone in /root) the data lies elsewhere.
make_data_directory() {
    mkdir -p "$dir/postgres"
    chown "$account" "$dir/postgres"
    chmod 711 "$dir"
    if ! as_account test -x "$dir/postgres" 2>/dev/null; then
        rmdir "$dir/postgres"
        local elsewhere
        elsewhere=$(mktemp -d /var/tmp/hypersdk-postgres-XXXXXX)
        chown "$account" "$elsewhere"
        ln -sfn "$elsewhere" "$dir/postgres"
    fi
}

sql() { PGPASSFILE=$dir/pgpass "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(cat "$dir/port")" -U hypersdk "$@"; }

make_cluster() {
    local super owner app pwfile
    make_data_directory
    super=$(random_hex 16) owner=$(random_hex 16) app=$(random_hex 16)
    {
        echo "127.0.0.1:*:*:hypersdk:$super"
        echo "127.0.0.1:*:*:hypersdk_owner:$owner"
        echo "127.0.0.1:*:*:hypersdk_app:$app"
    } >"$dir/pgpass"
    pwfile=$(readlink -f "$dir/postgres")/pw
    echo "$super" >"$pwfile"
    chown "$account" "$pwfile"
    as_account "$bin/initdb" -D "$(readlink -f "$dir/postgres")/data" -U hypersdk -A scram-sha-256 \
        --pwfile="$pwfile" -E UTF8 --locale=C.UTF-8 --no-sync >"$dir/initdb.log" 2>&1 ||
        { cat "$dir/initdb.log" >&2; die "initdb failed"; }
    rm -f "$pwfile"
}

make_accounts() {
    [ "$(sql -d postgres -Atc "SELECT count(*) FROM pg_database WHERE datname = 'hypersdk'")" = 0 ] || return 0
    # group roles first: the accounts of the services are members, each service SETs its own
    for role in gateway scheduler notifier metrics; do
        echo "CREATE ROLE hypersdk_$role NOLOGIN;"
    done | sql -d postgres
    sql -d postgres <<S
CREATE ROLE hypersdk_owner LOGIN CREATEROLE PASSWORD '$(password hypersdk_owner)';
CREATE ROLE hypersdk_app LOGIN PASSWORD '$(password hypersdk_app)';
GRANT hypersdk_gateway, hypersdk_scheduler, hypersdk_notifier, hypersdk_metrics TO hypersdk_app;
S
    sql -d postgres -c "CREATE DATABASE hypersdk OWNER hypersdk_owner"
}

password() { sed -n "s/^127.0.0.1:\*:\*:$1://p" "$dir/pgpass"; }

ready() { "$bin/pg_isready" -q -h 127.0.0.1 -p "$(cat "$dir/port")"; }

start() {
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    [ -s "$dir/postgres/data/PG_VERSION" ] || make_cluster
    if ! [ -s "$dir/port" ] || [ -n "${1:-}" ]; then
        echo "${1:-$(free_port)}" >"$dir/port"
    fi
    local data
    data=$(readlink -f "$dir/postgres")/data
    if ! as_account "$bin/pg_ctl" -D "$data" status >/dev/null 2>&1; then
        as_account "$bin/pg_ctl" -D "$data" -s -w -t 60 -l "$data/../log" \
            -o "-c listen_addresses=127.0.0.1 -p $(cat "$dir/port") -c unix_socket_directories='' -c fsync=${PG_FSYNC:-on} -c max_connections=200" \
            start >/dev/null 2>"$dir/start.log" ||
            { cat "$dir/start.log" "$data/../log" >&2; die "PostgreSQL does not start"; }
    fi
    wait_for 30 ready || die "PostgreSQL does not answer"
    make_accounts
    cat "$dir/port"
}

case $action in
start) start "${3:-}" ;;
stop)
    [ -s "$dir/postgres/data/PG_VERSION" ] || exit 0
    as_account "$bin/pg_ctl" -D "$(readlink -f "$dir/postgres")/data" -s -m "${PG_STOP_MODE:-fast}" stop >/dev/null 2>&1 || true
    ;;
status) [ -s "$dir/port" ] && ready ;;
*) die "unknown action '$action'" ;;
esac
