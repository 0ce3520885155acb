#!/usr/bin/env bash
# Installs the Debian packages that are missing: packages.sh SET...
#   build   compiler and libraries        run    PostgreSQL, Redis and small tools
#   demo    simulator and guest disk      test   what `make test` needs on top of these
#   full    what `make test-full` needs on top of that
# Asks apt only when something is missing; uses sudo when not root. --list prints the names.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

build="gcc make pkg-config libc6-dev protobuf-c-compiler libprotobuf-c-dev libmicrohttpd-dev
 libpq-dev libhiredis-dev libcurl4-openssl-dev libxml2-dev libyaml-dev libjansson-dev libsodium-dev
 libisal-dev libdeflate-dev libzstd-dev libssl-dev zlib1g-dev libnng-dev libwslay-dev libssh-dev
 libvirt-dev"
run="postgresql redis-server redis-tools openssl curl ca-certificates jq tzdata"
demo="golang-go golang-github-vmware-govmomi-dev qemu-utils mtools fdisk e2fsprogs gzip"
test="libcmocka-dev python3-pytest python3-pytest-xdist python3-psycopg2 python3-requests
 python3-websocket python3-pyvmomi python3-yaml python3-jsonschema clang clang-format clang-tidy
 libclang-rt-14-dev cppcheck prometheus nginx-light libnbd-bin libxml2-utils libvirt-clients qemu-system-x86 ovmf openssh-server
 libvirt-daemon libvirt-daemon-driver-qemu python3-libvirt
 zstd memcached swift-proxy swift-account swift-container swift-object python3-boto3"
full="virt-v2v nbdkit mmdebstrap linux-image-cloud-amd64 python3-guestfs python3-hivex"

names=
list=
for set in "$@"; do
    case $set in
    --list) list=1 ;;
    build | run | demo | test | full) names="$names ${!set}" ;;
    *) die "unknown package set '$set' (build, run, demo, test)" ;;
    esac
done
# shellcheck disable=SC2086 # a list of words
if [ -n "$list" ]; then
    printf '%s\n' $names
    exit 0
fi

missing=
for name in $names; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] ||
        missing="$missing $name"
done
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || die "this is not Debian; it needs:$missing"
say "installing:$missing"
log=$(mktemp)
install() {
    as_root apt-get -qq update &&
        # shellcheck disable=SC2086 # a list of words
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
            --no-install-recommends $missing
}
install >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    die "installation failed (log: $log)"
}
rm -f "$log"
