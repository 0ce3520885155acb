#!/usr/bin/env bash
# Walks the whole way of one VM over REST, as a program would: health, inventory, export with
# conversion, progress, result, and with --import a domain of libvirt.
#
#   examples/hyper2kvm-demo.sh [--daemon-url URL] [--provider NAME] [--vm NAME] [--format FORMAT]
#                              [--daemon-mode] [--import]
#
# Without --vm the first VM of the inventory is taken. HYPERSDK_API_KEY holds the key where login is
# needed. Needs curl and jq. Exit status 0 only when the job is completed.
set -euo pipefail

url=${HYPERSDK_URL:-http://localhost:8080}
provider= vm= format=ovf daemon_mode=false import=

usage() { sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
die() {
    echo "hyper2kvm-demo: $*" >&2
    exit 1
}
while [ $# -gt 0 ]; do
    case $1 in
    --daemon-url) url=${2:?URL is missing} && shift 2 ;;
    --provider) provider=${2:?name is missing} && shift 2 ;;
    --vm) vm=${2:?name is missing} && shift 2 ;;
    --format) format=${2:?format is missing} && shift 2 ;;
    --daemon-mode) daemon_mode=true && shift ;;
    --import) import=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    *) die "unknown argument '$1' (--help)" ;;
    esac
done
url=${url%/}

# Secrets go in by a file descriptor, not by the command line.
call() { # METHOD PATH [BODY]
    local answer status
    answer=$(curl -sS --max-time 60 -X "$1" -H 'Content-Type: application/json' \
        -H @<(printf 'X-API-Key: %s\n' "${HYPERSDK_API_KEY:-}") \
        ${3:+--data "$3"} -w '\n%{http_code}' "$url$2") || die "no answer from $url"
    status=${answer##*$'\n'}
    answer=${answer%$'\n'*}
    [ "$status" -lt 400 ] || die "$1 $2: $status $(jq -r '.message // .error // .' <<<"$answer" 2>/dev/null || echo "$answer")"
    printf '%s\n' "$answer"
}

echo "== 1. health"
call GET /health | jq -r '"\(.status)"'

echo "== 2. virtual machines"
[ -n "$provider" ] || provider=$(call GET /providers/list | jq -r '.providers[0].name // empty')
[ -n "$provider" ] || die "no provider is configured: see README, providers"
list=$(call POST /vms/list "$(jq -n --arg p "$provider" '{provider: $p}')")
jq -r '.[] | "  \(.name)  \(.power_state)  \(.num_cpu) CPU  \(.memory_mb) MB"' <<<"$list"
[ -n "$vm" ] || vm=$(jq -r '.[0].name // empty' <<<"$list")
[ -n "$vm" ] || die "provider '$provider' has no VM"

echo "== 3. export and convert '$vm'"
body=$(jq -n --arg p "$provider" --arg v "$vm" --arg f "$format" --argjson d "$daemon_mode" --arg i "$import" \
    '{provider: $p, vm_path: $v, format: $f, hyper2kvm_integration: {enabled: true, daemon_mode: $d}}
     + (if $i == "" then {} else {libvirt: {if_exists: "rename"}} end)')
job=$(call POST /jobs/submit "$body" | jq -r .job_id)
echo "job $job"

echo "== 4. progress"
last=
while :; do
    now=$(call GET "/jobs/progress/$job")
    line=$(jq -r '"  \(.status) \(.phase // "") \(.percentage // 0 | floor)%"' <<<"$now")
    [ "$line" = "$last" ] || echo "$line"
    last=$line
    case $(jq -r .status <<<"$now") in
    completed) break ;;
    failed | cancelled)
        call GET "/jobs/logs/$job?tail=10" | jq -r '.logs[] | "  \(.level) \(.message)"' >&2
        die "job $job: $(call GET "/jobs/$job" | jq -r '.error // .status')"
        ;;
    esac
    sleep 1
done

echo "== 5. conversion"
result=$(call GET "/jobs/$job" | jq .result)
jq -r '"export      \(.output_path)", "path used   \(.conversion.path_used)",
    (.conversion.output_files[] | "image       \(.)"), "domain XML  \(.conversion.domain_xml)",
    (.conversion.not_done[]? | "not done    \(.)")' <<<"$result"
call GET /api/workflow/status | jq -r '"bridges     \([.bridges[].instance] | join(", "))"'
[ -z "$import" ] || jq -r '"domain      \(.libvirt_domain.name) (\(.libvirt_domain.state))"' <<<"$result"
echo "done"
