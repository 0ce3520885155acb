# What the scripts of this folder know of the suite; source it after lib.sh.

root=$(cd "$here/../.." && pwd)
run=${RUN:-$root/run}
bin=$root/build/${VARIANT:-release}/bin
config=$run/config.yaml
services="scheduler api-gateway exporter-vsphere hyper2kvm-bridge notifier metrics-exporter"

# The key of a service's address in section admin of the configuration.
admin_key() {
    case $1 in
    exporter-*) echo exporter ;;
    *) echo "${1//-/_}" ;;
    esac
}

admin_address() {
    sed -n "/^admin:/,/^[^ ]/s/^  $(admin_key "$1"): //p" "$config" 2>/dev/null || true
}

# Set when there is a configuration: where the gateway answers.
url=http://$(sed -n '/^daemon:/,/^[^ ]/s/^  address: //p' "$config" 2>/dev/null || true)
[ "$url" != http:// ] || url=http://127.0.0.1:${PORT:-8080}
