/* JSON from outside, under limits: size, depth, duplicate keys. Thin over jansson. */
#ifndef COMMON_JSON_H
#define COMMON_JSON_H

#include <jansson.h>

#include "common/error.h"

#define JSON_DEPTH_MAX 32 /* our deepest document has 6 levels */

/* ERR_INVALID with line and column; ERR_LIMIT when size > size_max or too deep. New reference. */
MUST_CHECK int json_parse(const char *text, size_t size, size_t size_max, json_t **out,
                          struct error *err);
/* JSON, else YAML flow/block style, as the REST contract wants for bodies without a JSON content
 * type (rest-api.md section 1). strict_json: no second try. */
MUST_CHECK int body_parse(const char *text, size_t size, size_t size_max, bool strict_json,
                          json_t **out, struct error *err);
/* For json_object_foreach, which wants an object that is not const and does not change it. */
static inline json_t *json_unconst(const json_t *json)
{
    const union {
        const json_t *in;
        json_t *out;
    } same = {json};
    return same.out;
}
/* Typed members. Absent or null: `fallback`, return 0. Wrong type or range: ERR_INVALID naming
 * key. Returned strings are borrowed from the object. */
MUST_CHECK int json_get_string(const json_t *object, const char *key, const char *fallback,
                               const char **out, struct error *err);
MUST_CHECK int json_get_bool(const json_t *object, const char *key, bool fallback, bool *out,
                             struct error *err);
MUST_CHECK int json_get_u64(const json_t *object, const char *key, uint64_t min, uint64_t max,
                            uint64_t fallback, uint64_t *out, struct error *err);
MUST_CHECK int json_get_object(const json_t *object, const char *key, json_t **out,
                               struct error *err); /* borrowed; NULL when absent */
/* ERR_INVALID naming the first key of object that is not in keys (NULL-terminated). */
MUST_CHECK int json_check_keys(const json_t *object, const char *const *keys, struct error *err);
/* Compact text, caller frees. Never NULL. */
char *json_text(const json_t *json);
/* Short reads of trusted documents (own database): "" / 0 when absent. */
const char *json_str(const json_t *object, const char *key);
uint64_t json_u64(const json_t *object, const char *key);
/* object[key] = value for text that may hold invalid UTF-8 (replaced). */
void json_set_text(json_t *object, const char *key, const char *text);
void json_set_i64(json_t *object, const char *key, int64_t value);
/* object[key] = value, taking the reference; like all allocation here it cannot fail. */
void json_put(json_t *object, const char *key, json_t *value_taken);
/* Appends the parts of text between separators as texts; empty ones are left out, and with trim
 * the spaces before each. False: it is not UTF-8. */
MUST_CHECK bool json_array_add_split(json_t *list, const char *text, char separator, bool trim);
/* Is a member of this name a secret (see json_mask_secrets)? */
bool json_is_secret_name(const char *key);
/* The first member's name, at any depth, that is a secret's; NULL: there is none. Borrowed. Of
 * documents that were parsed here: as deep as JSON_DEPTH_MAX. */
const char *json_find_secret(const json_t *json);
/* A copy with the value of every key that is a secret by name (password, token, secret,
 * passphrase, *_password, *_token, *_secret, authorization) replaced by "***". New reference. */
json_t *json_mask_secrets(const json_t *json);

#endif
