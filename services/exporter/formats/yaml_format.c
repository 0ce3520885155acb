/* JSON tree to YAML text: two-space blocks, every string quoted, so that no value can turn into
 * another type ("no", "1e3", "0644"). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/strbuf.h"
#include "services/exporter/formats/manifest.h"

/* Next code point of valid UTF-8 (jansson holds no other). */
static uint32_t take_code_point(const unsigned char **text)
{
    const unsigned char *p = *text;
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    uint32_t code = n == 1 ? p[0] : n == 2 ? p[0] & 0x1fU : n == 3 ? p[0] & 0x0fU : p[0] & 0x07U;

    for (size_t i = 1; i < n; i++)
        code = code << 6 | (p[i] & 0x3fU);
    *text += n;
    return code;
}

static bool is_printable(uint32_t code)
{
    return (code >= 0x20 && code <= 0x7e) || (code >= 0xa0 && code <= 0xd7ff) ||
           (code >= 0xe000 && code <= 0xfffd && code != 0xfeff) || code >= 0x10000;
}

static void add_quoted(struct strbuf *sb, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;

    strbuf_addc(sb, '"');
    while (*p != '\0') {
        const unsigned char *start = p;
        uint32_t code = take_code_point(&p);
        if (code == '"' || code == '\\') {
            strbuf_addf(sb, "\\%c", (int)code);
        } else if (code == '\n') {
            strbuf_add(sb, "\\n");
        } else if (is_printable(code) && code != 0x2028 && code != 0x2029) {
            strbuf_add_bytes(sb, start, (size_t)(p - start));
        } else {
            strbuf_addf(sb, code > 0xffff ? "\\U%08" PRIx32 : "\\u%04" PRIx32, code);
        }
    }
    strbuf_addc(sb, '"');
}

/* Bare keys only where no YAML reader sees anything but a string. */
static void add_key(struct strbuf *sb, const char *key)
{
    static const char *const special[] = {"y",   "n",    "yes",   "no",  "on",
                                          "off", "true", "false", "null"};
    bool plain = key[0] >= 'a' && key[0] <= 'z';

    for (const char *p = key; *p != '\0'; p++)
        plain = plain && ((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') || *p == '_');
    for (size_t i = 0; i < ARRAY_LEN(special); i++)
        plain = plain && strcmp(key, special[i]) != 0;
    if (plain) {
        strbuf_add(sb, key);
    } else {
        add_quoted(sb, key);
    }
    strbuf_addc(sb, ':');
}

/* A whole number gets a point, or it would read back as an integer. */
static void add_real(struct strbuf *sb, double value)
{
    char text[32];

    (void)snprintf(text, sizeof text, "%.17g", value);
    strbuf_add(sb, text);
    if (text[strcspn(text, ".e")] == '\0')
        strbuf_add(sb, ".0");
}

static void add_scalar(struct strbuf *sb, const json_t *json)
{
    if (json_is_string(json)) {
        add_quoted(sb, json_string_value(json));
    } else if (json_is_integer(json)) {
        strbuf_addf(sb, "%" JSON_INTEGER_FORMAT, json_integer_value(json));
    } else if (json_is_real(json)) {
        add_real(sb, json_real_value(json));
    } else if (json_is_boolean(json)) {
        strbuf_add(sb, json_is_true(json) ? "true" : "false");
    } else if (json_is_array(json)) {
        strbuf_add(sb, "[]");
    } else if (json_is_object(json)) {
        strbuf_add(sb, "{}");
    } else {
        strbuf_add(sb, "null");
    }
}

static bool has_members(const json_t *json)
{
    return json_object_size(json) > 0 || json_array_size(json) > 0;
}

static void add_indent(struct strbuf *sb, size_t level)
{
    for (size_t i = 0; i < level; i++)
        strbuf_add(sb, "  ");
}

static void add_block(struct strbuf *sb, const json_t *json, size_t level);

/* What follows "key:" or "-": on the same line, or a deeper block. */
/* NOLINTNEXTLINE(misc-no-recursion): ends at JSON_DEPTH_MAX */
static void add_value(struct strbuf *sb, const json_t *json, size_t level)
{
    if (!has_members(json) || level >= JSON_DEPTH_MAX) {
        strbuf_addc(sb, ' ');
        add_scalar(sb, json);
        strbuf_addc(sb, '\n');
        return;
    }
    strbuf_addc(sb, '\n');
    add_block(sb, json, level + 1);
}

/* yaml_format refuses deeper trees before. */
/* NOLINTNEXTLINE(misc-no-recursion): ends at JSON_DEPTH_MAX */
static void add_block(struct strbuf *sb, const json_t *json, size_t level)
{
    const char *key;
    json_t *value;
    size_t i;

    if (json_is_object(json)) {
        json_object_foreach((json_t *)(uintptr_t)json, key, value)
        {
            add_indent(sb, level);
            add_key(sb, key);
            add_value(sb, value, level);
        }
        return;
    }
    json_array_foreach(json, i, value)
    {
        add_indent(sb, level);
        strbuf_addc(sb, '-');
        add_value(sb, value, level);
    }
}

/* NOLINTNEXTLINE(misc-no-recursion): ends at JSON_DEPTH_MAX */
static bool is_too_deep(const json_t *json, size_t depth)
{
    const char *key;
    json_t *value;
    size_t i;

    if (depth > JSON_DEPTH_MAX)
        return true;
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        if (is_too_deep(value, depth + 1))
            return true;
    }
    json_array_foreach(json, i, value)
    {
        if (is_too_deep(value, depth + 1))
            return true;
    }
    return false;
}

int yaml_format(const json_t *json, size_t size_max, char **out, struct error *err)
{
    auto_strbuf sb;

    strbuf_init(&sb, size_max);
    if (is_too_deep(json, 0)) {
        return error_set(err, ERR_LIMIT, "document is nested deeper than %d levels",
                         JSON_DEPTH_MAX);
    }
    if (has_members(json)) {
        add_block(&sb, json, 0);
    } else {
        add_scalar(&sb, json);
        strbuf_addc(&sb, '\n');
    }
    return strbuf_finish(&sb, out, err);
}
