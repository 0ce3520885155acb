#!/usr/bin/env bash
# The demo source: a vCenter made from Debian's govmomi simulator, the demo guest behind the
# running VM "demo-guest". source.sh start|stop|address. Account user / pass; its certificate is
# run/demo/cert.pem.
set -eu
here=$(cd "$(dirname "$0")/../local" && pwd)
. "$here/lib.sh"
. "$here/suite.sh"

demo=$run/demo
program=$root/build/peers/vsphere-sim
pid_file=$run/pid/vsphere-sim.pid

start() {
    mkdir -p "$demo" "$run/pid" "$run/log"
    bash "$root/deploy/demo/mkguest.sh" "$demo/guest"
    if pid_alive "$pid_file" "$program"; then return 0; fi
    # an own certificate: the simulator's built-in one has a key that OpenSSL finds too weak
    [ -s "$demo/cert.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -keyout "$demo/key.pem" -out "$demo/cert.pem" -days 3650 -subj /CN=demo-vcenter \
        -addext subjectAltName=IP:127.0.0.1,DNS:localhost 2>/dev/null
    [ -s "$demo/port" ] || free_port >"$demo/port"
    rm -rf "$demo"/govcsim-* "$demo/ready"
    TMPDIR=$demo setsid "$program" -listen "127.0.0.1:$(cat "$demo/port")" \
        -cert "$demo/cert.pem" -key "$demo/key.pem" \
        -vm "name=demo-guest,firmware=bios,power=on,disk=$demo/guest/disk.raw" \
        >"$demo/ready" 2>>"$run/log/vsphere-sim.log" </dev/null &
    echo $! >"$pid_file"
    wait_for 30 test -s "$demo/ready" || {
        tail -n 5 "$run/log/vsphere-sim.log" >&2
        die "the simulator does not start (log: run/log/vsphere-sim.log)"
    }
}

case ${1:?start, stop or address} in
start) start ;;
stop) stop_pid "$pid_file" "$program" 10 ;;
address) echo "127.0.0.1:$(cat "$demo/port")" ;;
*) die "unknown action '$1'" ;;
esac
