#!/usr/bin/env bash
# `make run`: starts the suite and the demo source, and tells what to try next.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

"$here/up.sh"
. "$here/suite.sh"
"$here/../demo/source.sh" start
. "$here/../demo/provider.sh"

cli="build/${VARIANT:-release}/bin/hyperexport"
[ "$url" = http://127.0.0.1:8080 ] || cli="$cli --daemon-url $url"
if grep -q '^  dev_mode: true$' "$config"; then
    say "HyperSDK runs at $url in dev mode: no login, this machine only."
else
    say "HyperSDK runs at $url with login."
    say "Account admin, password in ${run#"$PWD/"}/admin.password:"
    say "  $cli login --username admin --password-file ${run#"$PWD/"}/admin.password"
fi
cat <<T

Try next:
  $cli vms list --provider demo
  $cli --provider demo --vm demo-guest --vm-info
  $cli --provider demo --vm demo-guest --convert
  curl $url/status
Your own vCenter:
  $cli providers add --url https://vcenter.example.com --username backup@vsphere.local
Exports are written to ${run#"$PWD/"}/exports, logs to ${run#"$PWD/"}/log.
make status shows what runs, make stop ends it.
T
