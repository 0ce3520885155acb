# Makes the demo source a provider of the running suite, once; source it after suite.sh.
# Leaves the command line client, ready to use, in the function hyperexport.

hyperexport() { "$bin/hyperexport" --daemon-url "$url" "$@"; }

if ! grep -q '^  dev_mode: true$' "$config"; then
    hyperexport --quiet login --username admin --password-file "$run/admin.password"
fi
if ! hyperexport --json providers list | jq -e 'any(.name == "demo")' >/dev/null; then
    echo pass | hyperexport --quiet providers add --name demo --kind vsphere --username user \
        --password-file - --url "https://$("$root/deploy/demo/source.sh" address)" \
        --ca-file "$run/demo/cert.pem" >/dev/null
fi
