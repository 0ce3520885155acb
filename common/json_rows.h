/* Rows for a statement, as the text of a JSON array of objects: written member by member, without a
 * tree that is made, hashed, written and freed. One owner, no locking. */
#ifndef COMMON_JSON_ROWS_H
#define COMMON_JSON_ROWS_H

#include <jansson.h>

#include "common/strbuf.h"

#define JSON_ROWS_BYTES_MAX ((size_t)1000000000) /* PostgreSQL takes no longer text */

struct json_rows {
    struct strbuf text;
    size_t count;
    bool empty; /* the row has no member yet */
};

void json_rows_init(struct json_rows *rows);
void json_rows_release(struct json_rows *rows);
/* Begins a row; what follows are its members. */
void json_rows_next(struct json_rows *rows);
/* NULL: without this member, which is NULL in SQL. Bytes that are no UTF-8 are replaced. */
void json_rows_text(struct json_rows *rows, const char *key, const char *text);
void json_rows_i64(struct json_rows *rows, const char *key, int64_t value);
void json_rows_bool(struct json_rows *rows, const char *key, bool value);
void json_rows_json(struct json_rows *rows, const char *key, const json_t *value); /* NULL: none */
/* The whole, nothing may be added after it; borrowed. NULL: it is too long. */
const char *json_rows_end(struct json_rows *rows);

#define auto_json_rows CLEANUP(json_rows_release) struct json_rows

#endif
