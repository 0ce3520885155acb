#!/usr/bin/env bash
# `make demo`: exports the running VM "demo-guest" of the demo source with conversion for KVM, then
# checks with other programs (sha256sum, openssl, qemu-img, debugfs) that what was written is what
# was there. Exit status 0 only if every line holds.
set -eu
here=$(cd "$(dirname "$0")/../local" && pwd)
. "$here/lib.sh"
PATH=$PATH:/usr/sbin:/sbin

say "== the suite"
"$here/up.sh"
. "$here/suite.sh"
say "running at $url"
say "== the source: a simulated vCenter, a real guest disk behind a running VM"
"$root/deploy/demo/source.sh" start
. "$root/deploy/demo/provider.sh"
hyperexport providers validate demo
hyperexport --provider demo --vm demo-guest --vm-info

say "== export with conversion"
hyperexport --provider demo --vm demo-guest --convert
job=$(hyperexport --quiet jobs list --vm demo-guest --limit 1 | cut -f 1)
hyperexport --json jobs get "$job" >"$run/demo/job.json"

problems=0
check() { # TEXT COMMAND...
    local text=$1
    shift
    if "$@" >"$run/demo/check.log" 2>&1; then
        say "  ok      $text"
    else
        say "  FAILED  $text"
        sed 's/^/          /' "$run/demo/check.log"
        problems=$((problems + 1))
    fi
}

dir=$(jq -r .result.output_path "$run/demo/job.json")
[ -d "$dir" ] || die "job $job names no directory: see $run/demo/job.json"
guest=$run/demo/guest
say "== what was written to $dir"
(cd "$dir" && ls -lh --time-style=+ | sed -n '2,$p')
(cd "$dir" && cat ./*.mf)
ovf=$(jq -r .result.ovf_path "$run/demo/job.json")
qcow2=$(jq -r '[.result.conversion.output_files[]? | select(endswith(".qcow2"))][0]' "$run/demo/job.json")

# Every line of the .mf against two independent programs.
digests_hold() {
    local name hex lines=0
    while IFS= read -r line; do
        [[ $line =~ ^SHA256\((.*)\)=\ ([0-9a-f]{64})$ ]] || return 1
        name=${BASH_REMATCH[1]} hex=${BASH_REMATCH[2]}
        echo "$hex  $dir/$name" | sha256sum --quiet -c - || return 1
        [ "$(openssl dgst -sha256 -r "$dir/$name" | cut -d' ' -f1)" = "$hex" ] || return 1
        lines=$((lines + 1))
    done <"${ovf%.ovf}.mf"
    [ $lines -ge 2 ] # descriptor and disk
}

# The manifest's checksum of each disk file.
manifest_holds() {
    local path sum
    grep -q '^manifest_version: "1.0"' "$dir/manifest.yaml" || return 1
    jq -r '.disks[] | [.local_path, .checksum] | @tsv' "$dir/artifact-manifest.json" |
        while IFS=$'\t' read -r path sum; do
            echo "${sum#sha256:}  $path" | sha256sum --quiet -c - || exit 1
        done
}

# A file out of the second partition, without mounting: as demo-guest.md does.
file_of_image() { # IMAGE PATH
    local part=$run/demo/partition.img
    qemu-img convert -O raw --image-opts \
        "driver=raw,offset=68157440,size=467664896,file.driver=qcow2,file.file.driver=file,file.file.filename=$1" \
        "$part" && debugfs -R "cat $2" "$part" 2>/dev/null
    rm -f "$part"
}

file_is_equal() { file_of_image "$qcow2" "$1" | cmp - "$guest/data/$1"; }
guest_sums_hold() {
    local out=$run/demo/files
    rm -rf "$out"
    mkdir -p "$out/etc"
    for name in hello.txt etc/hostname random.bin SHA256SUMS; do
        file_of_image "$qcow2" "/$name" >"$out/$name"
    done
    (cd "$out" && sha256sum -c SHA256SUMS)
}

say "== checked with sha256sum, openssl, qemu-img and debugfs"
check "OVF descriptor: $(basename "$ovf")" test -s "$ovf"
check "disk: $(basename "$dir"/*.vmdk)" qemu-img info -f vmdk "$dir"/*.vmdk
check "digests of the .mf" digests_hold
check "manifest.yaml, and its checksums" manifest_holds
check "qcow2: $qcow2" qemu-img check -f qcow2 "$qcow2"
check "VMDK holds the source's disk" qemu-img compare -f raw -F vmdk "$guest/disk.raw" "$dir"/*.vmdk
check "qcow2 holds the source's disk" qemu-img compare -f raw -F qcow2 "$guest/disk.raw" "$qcow2"
check "random.bin inside the qcow2 equals the one put in" file_is_equal /random.bin
check "SHA256SUMS of the guest hold inside the qcow2" guest_sums_hold
say
[ "$problems" = 0 ] || die "$problems checks failed"
say "The demo is complete. The suite goes on running: make status, make stop."
