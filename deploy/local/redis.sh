#!/usr/bin/env bash
# A private Redis for one machine, on 127.0.0.1 with a password, nothing on disk:
#   redis.sh start DIR [PORT]   prints the port; DIR holds port, password, redis.pid, redis.log
#   redis.sh stop DIR
#   redis.sh status DIR         exit status tells
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
umask 077

action=${1:?start, stop or status}
dir=${2:?directory}

ready() {
    [ "$(printf 'AUTH %s\nPING\n' "$(cat "$dir/password")" |
        redis-cli -h 127.0.0.1 -p "$(cat "$dir/port")" 2>/dev/null | tail -n 1)" = PONG ]
}

start() {
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    [ -s "$dir/password" ] || random_hex 16 >"$dir/password"
    if ! [ -s "$dir/port" ] || [ -n "${1:-}" ]; then
        echo "${1:-$(free_port)}" >"$dir/port"
    fi
    if ! pid_alive "$dir/redis.pid" redis-server; then
        # by a file: arguments are visible to everybody
        cat >"$dir/redis.conf" <<C
bind 127.0.0.1
port $(cat "$dir/port")
requirepass $(cat "$dir/password")
save ""
appendonly no
dir "$dir"
pidfile "$dir/redis.pid"
logfile "$dir/redis.log"
daemonize yes
maxmemory 256mb
maxmemory-policy allkeys-lru
C
        redis-server "$dir/redis.conf" >/dev/null
    fi
    wait_for 20 ready || { cat "$dir/redis.log" >&2; die "Redis does not answer"; }
    cat "$dir/port"
}

case $action in
start) start "${3:-}" ;;
stop) stop_pid "$dir/redis.pid" redis-server 10 ;;
status) [ -s "$dir/port" ] && pid_alive "$dir/redis.pid" redis-server && ready ;;
*) die "unknown action '$action'" ;;
esac
