#!/usr/bin/env bash
# Prints a C file holding the SQL files given as arguments (0001_core.sql ...), in that order.
set -eu
echo '/* Generated from common/schema/. */'
echo '#include "common/schema.h"'
echo 'const struct schema_file schema_files[] = {'
for f in "$@"; do
    name=$(basename "$f" .sql)
    printf '    {%d, "%s",\n' "$((10#${name%%_*}))" "$name"
    sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/     "/' -e 's/$/\\n"/' "$f"
    echo '    },'
done
echo '};'
printf 'const size_t schema_files_count = %d;\n' "$#"
