#!/usr/bin/env bash
# embed-text.sh NAME FILE: prints a C file with the text of FILE as the constant NAME.
set -eu
echo "/* Generated from $2. */"
echo "extern const char $1[];"
echo "const char $1[] ="
sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/    "/' -e 's/$/\\n"/' "$2"
echo '    "";'
