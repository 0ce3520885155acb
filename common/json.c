/* See json.h. */
#include "common/json.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "common/autos.h"
#include "common/strbuf.h"
#include "common/yaml.h"

/* Deepest nesting of brackets outside strings: checked before jansson builds anything. */
static bool too_deep(const char *text, size_t size)
{
    size_t depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_DEPTH_MAX)
                return true;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return false;
}

int json_parse(const char *text, size_t size, size_t size_max, json_t **out, struct error *err)
{
    json_error_t why;
    json_t *json;

    if (size > size_max)
        return error_set(err, ERR_LIMIT, "JSON of %zu bytes is over %zu", size, size_max);
    if (too_deep(text, size))
        return error_set(err, ERR_LIMIT, "JSON is nested deeper than %d levels", JSON_DEPTH_MAX);
    json = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (json == NULL) {
        return error_set(err, ERR_INVALID, "malformed JSON, line %d column %d: %.200s", why.line,
                         why.column, why.text);
    }
    *out = json;
    return 0;
}

int body_parse(const char *text, size_t size, size_t size_max, bool strict_json, json_t **out,
               struct error *err)
{
    struct error as_json = ERROR_NONE;
    struct error as_yaml = ERROR_NONE;
    auto_yaml_node *node = NULL;

    if (json_parse(text, size, size_max, out, &as_json) == 0)
        return 0;
    if (strict_json || as_json.code == ERR_LIMIT) {
        *err = as_json;
        return -1;
    }
    if (yaml_parse(text, size, size_max, &node, &as_yaml) < 0 || node->kind == YAML_SCALAR) {
        *err = as_json;
        return as_yaml.code == ERR_NONE
                   ? -1
                   : error_wrap(err, "neither JSON nor YAML (%.160s)", as_yaml.message);
    }
    *out = yaml_to_json(node);
    return 0;
}

int json_get_string(const json_t *object, const char *key, const char *fallback, const char **out,
                    struct error *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        *out = fallback;
        return 0;
    }
    if (!json_is_string(value))
        return error_set(err, ERR_INVALID, "'%s' must be a text", key);
    if (strlen(json_string_value(value)) != json_string_length(value))
        return error_set(err, ERR_INVALID, "'%s' holds a NUL byte", key);
    *out = json_string_value(value);
    return 0;
}

int json_get_bool(const json_t *object, const char *key, bool fallback, bool *out,
                  struct error *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        *out = fallback;
        return 0;
    }
    if (!json_is_boolean(value))
        return error_set(err, ERR_INVALID, "'%s' must be true or false", key);
    *out = json_is_true(value);
    return 0;
}

/* NOLINTNEXTLINE(readability-function-size): its siblings and the two bounds */
int json_get_u64(const json_t *object, const char *key, uint64_t min, uint64_t max,
                 uint64_t fallback, uint64_t *out, struct error *err)
{
    const json_t *value = json_object_get(object, key);
    json_int_t number;

    if (value == NULL || json_is_null(value)) {
        *out = fallback;
        return 0;
    }
    number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || (uint64_t)number < min || (uint64_t)number > max) {
        return error_set(err, ERR_INVALID,
                         "'%s' must be a whole number from %" PRIu64 " to %" PRIu64, key, min, max);
    }
    *out = (uint64_t)number;
    return 0;
}

int json_get_object(const json_t *object, const char *key, json_t **out, struct error *err)
{
    json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        *out = NULL;
        return 0;
    }
    if (!json_is_object(value))
        return error_set(err, ERR_INVALID, "'%s' must be an object", key);
    *out = value;
    return 0;
}

int json_check_keys(const json_t *object, const char *const *keys, struct error *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(object))
        return error_set(err, ERR_INVALID, "expected an object");
    json_object_foreach(json_unconst(object), key, value)
    {
        const char *const *known = keys;
        while (*known != NULL && strcmp(*known, key) != 0)
            known++;
        if (*known == NULL)
            return error_set(err, ERR_INVALID, "unknown field '%.64s'", key);
    }
    return 0;
}

char *json_text(const json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY);

    if (text == NULL)
        abort(); /* out of memory: everything we build is valid */
    return text;
}

const char *json_str(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text == NULL ? "" : text;
}

uint64_t json_u64(const json_t *object, const char *key)
{
    json_int_t number = json_integer_value(json_object_get(object, key));

    return number < 0 ? 0 : (uint64_t)number;
}

void json_put(json_t *object, const char *key, json_t *value_taken)
{
    if (json_object_set_new(object, key, value_taken) < 0) /* a NULL value fails as well */
        abort();                                           /* out of memory */
}

void json_set_text(json_t *object, const char *key, const char *text)
{
    json_t *value = json_string(text);

    if (value == NULL) { /* not UTF-8: replace the bad bytes by way of the JSON escaper */
        auto_strbuf sb;
        strbuf_init(&sb, 6 * strlen(text) + 2);
        strbuf_addc(&sb, '"');
        strbuf_add_json(&sb, text);
        strbuf_addc(&sb, '"');
        value = json_loadb(sb.data, sb.length, JSON_DECODE_ANY, NULL);
    }
    json_put(object, key, value);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text);
    size_t m = strlen(end);

    return n >= m && strcasecmp(text + n - m, end) == 0;
}

bool json_is_secret_name(const char *key)
{
    static const char *const names[] = {"password",      "token",       "secret",    "passphrase",
                                        "authorization", "private_key", "access_key"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (ends_with(key, names[i]))
            return true;
    }
    return false;
}

/* NOLINTNEXTLINE(misc-no-recursion): parsed to JSON_DEPTH_MAX */
const char *json_find_secret(const json_t *json)
{
    const char *found = NULL;
    const char *key;
    json_t *value;
    size_t i;

    json_object_foreach(json_unconst(json), key, value)
    {
        found = json_is_secret_name(key) ? key : json_find_secret(value);
        if (found != NULL)
            return found;
    }
    json_array_foreach(json, i, value)
    {
        found = json_find_secret(value);
        if (found != NULL)
            return found;
    }
    return NULL;
}

/* NOLINTNEXTLINE(misc-no-recursion): our own documents, parsed to JSON_DEPTH_MAX */
json_t *json_mask_secrets(const json_t *json)
{
    json_t *copy;
    const char *key;
    json_t *value;
    size_t index;

    if (json_is_object(json)) {
        copy = json_object();
        json_object_foreach(json_unconst(json), key, value)
        {
            (void)json_object_set_new(copy, key,
                                      json_is_secret_name(key) ? json_string("***")
                                                               : json_mask_secrets(value));
        }
        return copy;
    }
    if (json_is_array(json)) {
        copy = json_array();
        json_array_foreach(json_unconst(json), index, value)(void)
            json_array_append_new(copy, json_mask_secrets(value));
        return copy;
    }
    return json_deep_copy(json);
}

void json_set_i64(json_t *object, const char *key, int64_t value)
{
    (void)json_object_set_new(object, key, json_integer(value));
}

bool json_array_add_split(json_t *list, const char *text, char separator, bool trim)
{
    const char *end;

    for (;; text = end + 1) {
        if (trim)
            text += strspn(text, " ");
        end = strchrnul(text, separator);
        if (end > text && json_array_append_new(list, json_stringn(text, (size_t)(end - text))) < 0)
            return false;
        if (*end == '\0')
            return true;
    }
}
