/* See json_rows.h. */
#include "common/json_rows.h"

void json_rows_init(struct json_rows *rows)
{
    *rows = (struct json_rows){.count = 0};
    strbuf_init(&rows->text, JSON_ROWS_BYTES_MAX);
    strbuf_addc(&rows->text, '[');
}

void json_rows_release(struct json_rows *rows)
{
    strbuf_release(&rows->text);
}

void json_rows_next(struct json_rows *rows)
{
    strbuf_add(&rows->text, rows->count == 0 ? "{" : "},{");
    rows->count++;
    rows->empty = true;
}

/* Keys are ours: nothing in them has to be escaped. */
static void add_key(struct json_rows *rows, const char *key)
{
    assert(rows->count > 0);
    strbuf_add(&rows->text, rows->empty ? "\"" : ",\"");
    strbuf_add(&rows->text, key);
    strbuf_add(&rows->text, "\":");
    rows->empty = false;
}

void json_rows_text(struct json_rows *rows, const char *key, const char *text)
{
    if (text == NULL)
        return;
    add_key(rows, key);
    strbuf_addc(&rows->text, '"');
    strbuf_add_json(&rows->text, text);
    strbuf_addc(&rows->text, '"');
}

void json_rows_i64(struct json_rows *rows, const char *key, int64_t value)
{
    char digits[24];
    size_t at = sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;

    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (value < 0)
        digits[--at] = '-';
    add_key(rows, key);
    strbuf_add_bytes(&rows->text, digits + at, sizeof digits - at);
}

void json_rows_bool(struct json_rows *rows, const char *key, bool value)
{
    add_key(rows, key);
    strbuf_add(&rows->text, value ? "true" : "false");
}

static int add_part(const char *part, size_t size, void *data)
{
    struct strbuf *text = data;

    strbuf_add_bytes(text, part, size);
    return 0;
}

void json_rows_json(struct json_rows *rows, const char *key, const json_t *value)
{
    if (value == NULL)
        return;
    add_key(rows, key);
    if (json_dump_callback(value, add_part, &rows->text, JSON_COMPACT | JSON_ENCODE_ANY) < 0)
        abort(); /* out of memory: everything we build is valid */
}

const char *json_rows_end(struct json_rows *rows)
{
    strbuf_add(&rows->text, rows->count == 0 ? "]" : "}]");
    return rows->text.overflowed ? NULL : rows->text.data;
}
