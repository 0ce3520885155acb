#!/usr/bin/env bash
# Starts the whole suite on this machine, for one person: PostgreSQL, Redis, every service, the
# demo source. Everything lies in ./run; what runs already is left alone, what was built anew is
# started again. Called by `make run`.
#   PORT=8080   of the REST API, on 127.0.0.1     AUTH=1   with login (else dev mode: without)
#   SOURCE=0    without the demo source
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/suite.sh"
umask 077

mkdir -p "$run"/{log,pid,exports,watch,images,keys}
chmod 711 "$run" # PostgreSQL's account passes through

write_config() {
    local sockets=$run/sock
    # socket paths are limited to 107 bytes
    if [ ${#sockets} -gt 90 ]; then
        [ -d "$sockets" ] || ln -sfn "$(mktemp -d /tmp/hypersdk-XXXXXX)" "$sockets"
        sockets=$(readlink -f "$sockets")
    fi
    mkdir -p "$sockets"
    cat >"$config" <<C
# Made by 'make run'; change what you like and run it again ('make stop' first for addresses).
daemon:
  address: 127.0.0.1:$port
  dev_mode: $dev_mode
database:
  url: postgresql://hypersdk_app@127.0.0.1:$(cat "$run/pg/port")/hypersdk
  owner_url: postgresql://hypersdk_owner:$(pg_password hypersdk_owner)@127.0.0.1:$(cat "$run/pg/port")/hypersdk
  password: $(pg_password hypersdk_app)
redis:
  address: 127.0.0.1:$(cat "$run/redis/port")
  password_file: $run/redis/password
bus:
  lease: [ipc://$sockets/lease]
  events: [ipc://$sockets/events]
  announce: [ipc://$sockets/announce]
admin:
$(for service in $services; do
        echo "  $(admin_key "$service"): 127.0.0.1:$(free_port)"
    done)
secrets:
  master_key_file: $run/master.key
  key_dir: $run/keys
export:
  base_path: $run/exports
hyper2kvm:
  watch_dir: $run/watch
  output_dir: $run/images
metrics:
  address: 127.0.0.1:$(free_port)
C
}

pg_password() { sed -n "s/^127.0.0.1:\*:\*:$1://p" "$run/pg/pgpass"; }

start_service() {
    local name=$1 pid_file=$run/pid/$1.pid
    if pid_alive "$pid_file" "$bin/$name"; then
        case $(readlink "/proc/$(cat "$pid_file")/exe") in
        *" (deleted)") stop_pid "$pid_file" "$bin/$name" 30 ;; # built anew
        *) return 0 ;;
        esac
    fi
    (umask 027; exec setsid "$bin/$name" --config "$config" >>"$run/log/$name.stdout" 2>>"$run/log/$name.log" </dev/null) &
    echo $! >"$pid_file"
}

service_ready() {
    pid_alive "$run/pid/$1.pid" "$bin/$1" || {
        tail -n 20 "$run/log/$1.log" >&2
        die "$1 ended (log: run/log/$1.log)"
    }
    curl -fsS -m 5 "http://$(admin_address "$1")/readyz" >/dev/null 2>&1
}

for service in $services; do
    [ -x "$bin/$service" ] || die "$bin/$service is missing: run 'make' first"
done

"$here/postgres.sh" start "$run/pg" >/dev/null
"$here/redis.sh" start "$run/redis" >/dev/null
[ -s "$run/master.key" ] || random_hex 32 >"$run/master.key"
dev_mode=true
[ "${AUTH:-0}" != 1 ] || dev_mode=false
port=${PORT:-8080}
if [ ! -s "$config" ]; then
    write_config
elif ! grep -q "dev_mode: $dev_mode$" "$config" || ! grep -q "address: 127.0.0.1:$port$" "$config"; then
    sed -i -e "s/^  dev_mode: .*/  dev_mode: $dev_mode/" \
        -e "/^daemon:/,/^[^ ]/s/^  address: .*/  address: 127.0.0.1:$port/" "$config"
    stop_pid "$run/pid/api-gateway.pid" "$bin/api-gateway" 30
fi
[ -n "$(ls "$run/keys")" ] || "$bin/api-gateway" --config "$config" --export-keys "$run/keys" \
    2>"$run/log/export-keys.log" || { cat "$run/log/export-keys.log" >&2; die "no keys"; }

if ! pid_alive "$run/pid/api-gateway.pid" "$bin/api-gateway" &&
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    die "port $port is in use by another program: make run PORT=8081"
fi
for service in $services; do
    start_service "$service"
done
for service in $services; do
    wait_for 60 service_ready "$service" || {
        tail -n 20 "$run/log/$service.log" >&2
        curl -sS -m 5 "http://$(admin_address "$service")/readyz" >&2 || true
        die "$service is not ready (log: run/log/$service.log)"
    }
done
. "$here/suite.sh" # the address may be a new one
wait_for 30 curl -fsS -o /dev/null -m 5 "$url/health" || die "the gateway does not answer at $url"
if [ "$dev_mode" = false ]; then
    # the first start with login prints the administrator's password, once
    admin_password() { sed -n "s/^first start: user 'admin' was made with the password //p" "$run/log/api-gateway.stdout" | grep .; }
    if [ ! -s "$run/admin.password" ] && wait_for 20 admin_password >/dev/null; then
        admin_password >"$run/admin.password"
        : >"$run/log/api-gateway.stdout"
    fi
fi
