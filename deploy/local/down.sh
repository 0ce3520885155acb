#!/usr/bin/env bash
# Ends what up.sh started, by its pid files. Data, exports and logs stay in ./run.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/suite.sh"

for service in api-gateway notifier metrics-exporter exporter-vsphere hyper2kvm-bridge scheduler; do
    stop_pid "$run/pid/$service.pid" "$bin/$service" 30 &
done
wait
"$here/../demo/source.sh" stop
if [ -d "$run/redis" ]; then "$here/redis.sh" stop "$run/redis"; fi
if [ -d "$run/pg" ]; then "$here/postgres.sh" stop "$run/pg"; fi
say "stopped (data stays in ${run#"$PWD/"}; 'rm -rf run' forgets it)"
