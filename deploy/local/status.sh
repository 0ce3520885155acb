#!/usr/bin/env bash
# What of the suite runs here, and what it is doing. Exit status 0 when all of it is ready.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/suite.sh"

result=0
line() { # NAME PID-FILE PROGRAM READY-COMMAND...
    local name=$1 pid_file=$2 program=$3 state
    shift 3
    if ! pid_alive "$pid_file" "$program"; then
        state="stopped"
        result=1
        printf '%-18s %-8s %s\n' "$name" - "$state"
        return
    fi
    if "$@" >/dev/null 2>&1; then state=ready; else state="not ready" result=1; fi
    printf '%-18s %-8s %s\n' "$name" "$(cat "$pid_file")" "$state"
}

if [ ! -s "$config" ]; then
    say "nothing was started here yet: make run"
    exit 1
fi
data=$(readlink -f "$run/pg/postgres")/data
head -n 1 "$data/postmaster.pid" >"$run/pid/postgres.pid" 2>/dev/null || rm -f "$run/pid/postgres.pid"
line postgresql "$run/pid/postgres.pid" postgres "$here/postgres.sh" status "$run/pg"
line redis "$run/redis/redis.pid" redis-server "$here/redis.sh" status "$run/redis"
for service in $services; do
    line "$service" "$run/pid/$service.pid" "$bin/$service" \
        curl -fsS -m 5 "http://$(admin_address "$service")/readyz"
done
line "demo vSphere" "$run/pid/vsphere-sim.pid" vsphere-sim true
if [ "$result" = 0 ]; then
    say
    "$bin/hyperexport" --daemon-url "$url" status || result=1
fi
exit $result
