/* Cells of results, and bytea as text; see db.h. */
#include <string.h>

#include "common/db.h"

const char *db_text(const PGresult *rows, int row, int column)
{
    return PQgetvalue(rows, row, column);
}

bool db_is_null(const PGresult *rows, int row, int column)
{
    return PQgetisnull(rows, row, column) != 0;
}

int64_t db_i64(const PGresult *rows, int row, int column)
{
    return strtoll(PQgetvalue(rows, row, column), NULL, 10);
}

bool db_bool(const PGresult *rows, int row, int column)
{
    return PQgetvalue(rows, row, column)[0] == 't';
}

size_t db_affected(const PGresult *rows)
{
    return (size_t)strtoull(PQcmdTuples((PGresult *)(uintptr_t)rows), NULL, 10);
}

char *db_bytea_text(const void *data, size_t size)
{
    char *text = xmalloc(2 * size + 3);

    text[0] = '\\';
    text[1] = 'x';
    hex_encode(data, size, text + 2);
    return text;
}

int db_bytea(const PGresult *rows, int row, int column, void *out, size_t size_max,
             size_t *out_size, struct error *err)
{
    const char *text = db_text(rows, row, column);
    size_t size;

    if (strncmp(text, "\\x", 2) != 0)
        return error_set(err, ERR_INTERNAL, "database: cell is no bytea");
    size = strlen(text + 2) / 2;
    if (size > size_max) {
        return error_set(err, ERR_LIMIT, "database: bytea of %zu bytes is over %zu", size,
                         size_max);
    }
    if (!hex_decode(text + 2, out, size))
        return error_set(err, ERR_INTERNAL, "database: malformed bytea");
    *out_size = size;
    return 0;
}
