/* See fields.h. */
#include "common/fields.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/parse.h"
#include "common/words.h"

#define NEAR_WORDS 256

int field_fail(struct field_problem *problem, unsigned int status, const char *field,
               struct error *err, enum error_code code, const char *format, ...)
{
    char message[ERROR_MESSAGE_MAX];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    (void)snprintf(problem->field, sizeof problem->field, "%s", field);
    problem->status = status;
    return error_set(err, code, "%s", message);
}

const char *nearest_word(const char *word, const char *const *words)
{
    const char *best = NULL;
    size_t length = strlen(word);
    size_t best_distance = length / 3 + 1; /* a third of the word may be wrong */

    if (length == 0 || length > WORD_BYTES_MAX)
        return NULL;
    for (; *words != NULL; words++) {
        size_t d;
        if (strlen(*words) > WORD_BYTES_MAX)
            continue;
        d = word_distance(word, *words);
        if (d < best_distance || (d == best_distance && best == NULL)) {
            best = *words;
            best_distance = d;
        }
    }
    return best;
}

bool word_in(const char *word, const char *const *words)
{
    while (*words != NULL && strcmp(*words, word) != 0)
        words++;
    return *words != NULL;
}

static const struct field *find(const struct field *table, const char *name)
{
    for (const struct field *f = table; f->name != NULL; f++) {
        if (strcmp(f->name, name) == 0)
            return f;
        for (size_t i = 0; i < FIELD_ALIASES_MAX && f->aliases[i] != NULL; i++) {
            if (strcmp(f->aliases[i], name) == 0)
                return f;
        }
    }
    return NULL;
}

static int unknown(const struct field *table, const char *prefix, const char *key,
                   struct field_problem *problem, struct error *err)
{
    const char *words[NEAR_WORDS + 1];
    size_t count = 0;
    const char *near;
    char name[FIELD_NAME_MAX];

    for (const struct field *f = table; f->name != NULL; f++) {
        if (f->later == NULL && count < NEAR_WORDS)
            words[count++] = f->name;
        for (size_t i = 0; f->later == NULL && i < FIELD_ALIASES_MAX && f->aliases[i] != NULL;
             i++) {
            if (count < NEAR_WORDS)
                words[count++] = f->aliases[i];
        }
    }
    words[count] = NULL;
    near = nearest_word(key, words);
    (void)snprintf(name, sizeof name, "%s%s", prefix, key);
    if (near == NULL)
        return field_fail(problem, 400, name, err, ERR_INVALID, "unknown field '%s'", name);
    (void)snprintf(problem->candidate, sizeof problem->candidate, "%s%s", prefix, near);
    return field_fail(problem, 400, name, err, ERR_INVALID, "unknown field '%s', did you mean '%s'",
                      name, problem->candidate);
}

static bool text_is_clean(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return false;
    }
    return true;
}

static int check_text(const struct field *f, const char *name, const json_t *value,
                      struct field_problem *problem, struct error *err)
{
    size_t length = json_string_length(value);
    size_t max = f->max == 0 ? FIELD_TEXT_MAX : f->max;

    if (!json_is_string(value))
        return field_fail(problem, 400, name, err, ERR_INVALID, "'%s' must be a text", name);
    if (length < f->min || length > max) {
        return field_fail(problem, 400, name, err, ERR_INVALID,
                          "'%s' must have %" PRIu64 " to %zu bytes", name, f->min, max);
    }
    if (!text_is_clean(json_string_value(value), length)) {
        return field_fail(problem, 400, name, err, ERR_INVALID, "'%s' holds a control character",
                          name);
    }
    return 0;
}

static int check_list(const struct field *f, const char *name, const json_t *value,
                      struct field_problem *problem, struct error *err)
{
    static const struct field item = {"", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL};
    size_t max = f->max == 0 ? FIELD_LIST_MAX : f->max;

    if (!json_is_array(value))
        return field_fail(problem, 400, name, err, ERR_INVALID, "'%s' must be a list", name);
    if (json_array_size(value) > max) {
        return field_fail(problem, 400, name, err, ERR_INVALID, "'%s' may have at most %zu entries",
                          name, max);
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        if (check_text(&item, name, json_array_get(value, i), problem, err) < 0)
            return -1;
    }
    return 0;
}

/* Milliseconds of an integer of seconds or a text with units. */
static int duration_of(const struct field *f, const char *name, const json_t *value, int64_t *out,
                       struct error *err)
{
    char seconds[32];
    const char *text = json_string_value(value);

    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        (void)snprintf(seconds, sizeof seconds, "%lld", (long long)json_integer_value(value));
        text = seconds;
    }
    if (text == NULL || (json_is_string(value) && strlen(text) != json_string_length(value)))
        return error_set(err, ERR_INVALID, "'%s' must be seconds or a duration like '10s'", name);
    return parse_duration_ms(name, text, (int64_t)f->min, (int64_t)f->max, out, err);
}

static int check_value(const struct field *f, const char *name, const json_t *value,
                       struct field_problem *problem, struct error *err)
{
    json_int_t number = json_integer_value(value);
    int64_t ignored;

    switch (f->type) {
    case FIELD_TEXT:
        return check_text(f, name, value, problem, err);
    case FIELD_TEXT_LIST:
        return check_list(f, name, value, problem, err);
    case FIELD_BOOL:
        if (json_is_boolean(value))
            return 0;
        return field_fail(problem, 400, name, err, ERR_INVALID, "'%s' must be true or false", name);
    case FIELD_NUMBER:
        if (json_is_integer(value) && number >= 0 && (uint64_t)number >= f->min &&
            (uint64_t)number <= f->max)
            return 0;
        return field_fail(problem, 400, name, err, ERR_INVALID,
                          "'%s' must be a whole number from %" PRIu64 " to %" PRIu64, name, f->min,
                          f->max);
    case FIELD_DURATION:
        if (duration_of(f, name, value, &ignored, err) == 0)
            return 0;
        (void)snprintf(problem->field, sizeof problem->field, "%s", name);
        problem->status = 400;
        return -1;
    case FIELD_OBJECT:
        if (json_is_object(value))
            return 0;
        return field_fail(problem, 400, name, err, ERR_INVALID, "'%s' must be an object", name);
    case FIELD_ANY:
        return 0;
    }
    return 0;
}

/* A field that comes later passes only with the value that asks for nothing. */
static int check_later(const struct field *f, const char *name, const json_t *value,
                       struct field_problem *problem, struct error *err)
{
    auto_json *neutral = f->later[0] == '\0' ? NULL : json_loads(f->later, JSON_DECODE_ANY, NULL);

    if (neutral != NULL && json_equal(neutral, value))
        return 0;
    return field_fail(problem, 422, name, err, ERR_NOT_AVAILABLE,
                      "'%s' is not available in this version", name);
}

struct taking {
    const char *prefix;
    const json_t *object;
    json_t *canonical; /* what is taken */
    struct field_problem *problem;
};

/* The name the field was given under before `key`: an alias when `key` is the canonical one. */
static const char *name_before(const struct taking *t, const struct field *f, const char *key)
{
    for (size_t i = 0; strcmp(key, f->name) == 0 && i < FIELD_ALIASES_MAX && f->aliases[i] != NULL;
         i++) {
        if (json_object_get(t->object, f->aliases[i]) != NULL)
            return f->aliases[i];
    }
    return f->name;
}

static int take(const struct taking *t, const struct field *f, const char *key, json_t *value,
                struct error *err)
{
    const json_t *before = json_object_get(t->canonical, f->name);
    auto_json *taken = json_incref(value);
    char name[FIELD_NAME_MAX];

    (void)snprintf(name, sizeof name, "%s%s", t->prefix, key);
    if (f->later != NULL)
        return check_later(f, name, value, t->problem, err);
    if (check_value(f, name, value, t->problem, err) < 0)
        return -1;
    if (f->type == FIELD_DURATION) { /* one form for everyone behind us */
        int64_t ms = 0;
        if (duration_of(f, name, value, &ms, err) < 0)
            return -1;
        json_decref(taken);
        taken = json_integer((json_int_t)ms);
    }
    if (before != NULL && !json_equal(before, taken)) {
        return field_fail(t->problem, 400, name, err, ERR_INVALID,
                          "'%s' is another name of '%s%s', which has a different value", name,
                          t->prefix, name_before(t, f, key));
    }
    (void)json_object_set(t->canonical, f->name, taken);
    return 0;
}

int fields_canonical(const struct field *table, const char *prefix, const json_t *object,
                     json_t **out, struct field_problem *problem, struct error *err)
{
    auto_json *canonical = json_object();
    const struct taking t = {prefix, object, canonical, problem};
    const char *key;
    json_t *value;

    if (!json_is_object(object)) {
        (void)snprintf(problem->field, sizeof problem->field, "%.*s", (int)strcspn(prefix, "."),
                       prefix);
        problem->status = 400;
        return error_set(err, ERR_INVALID, "%s must be an object",
                         prefix[0] == '\0' ? "the request" : problem->field);
    }
    json_object_foreach(json_unconst(object), key, value)
    {
        const struct field *f = find(table, key);
        if (f == NULL)
            return unknown(table, prefix, key, problem, err);
        if (!json_is_null(value) && take(&t, f, key, value, err) < 0)
            return -1;
    }
    *out = STEAL(canonical);
    return 0;
}

int fields_member(json_t *object, const char *name, const char *prefix, const struct field *table,
                  struct field_problem *problem, struct error *err)
{
    json_t *canonical = NULL;

    if (json_object_get(object, name) == NULL)
        return 0;
    if (fields_canonical(table, prefix, json_object_get(object, name), &canonical, problem, err) <
        0)
        return -1;
    (void)json_object_set_new(object, name, canonical);
    return 0;
}

const char *field_text(const json_t *object, const char *name, const char *fallback)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text == NULL ? fallback : text;
}

bool field_bool(const json_t *object, const char *name, bool fallback)
{
    const json_t *value = json_object_get(object, name);

    return value == NULL ? fallback : json_is_true(value);
}

uint64_t field_number(const json_t *object, const char *name, uint64_t fallback)
{
    return json_object_get(object, name) == NULL ? fallback : json_u64(object, name);
}

int64_t field_duration_ms(const json_t *object, const char *name, int64_t fallback)
{
    const json_t *value = json_object_get(object, name);

    return value == NULL ? fallback : (int64_t)json_integer_value(value);
}
