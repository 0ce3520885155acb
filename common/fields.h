/* Request bodies under a table of fields: aliases become canonical names, unknown fields are
 * refused with the likely meant one, fields of the reference that this build does not have yet are
 * refused as "not_available" - never accepted and ignored (rest-api.md sections 1 and 1.1). */
#ifndef COMMON_FIELDS_H
#define COMMON_FIELDS_H

#include <jansson.h>

#include "common/error.h"

#define FIELD_ALIASES_MAX 4
#define FIELD_NAME_MAX    96   /* "hyper2kvm_integration.stages.validate" and what users invent */
#define FIELD_TEXT_MAX    1024 /* as on the bus */
#define FIELD_LIST_MAX    1000

enum field_type {
    FIELD_TEXT, /* min..max bytes, no control characters */
    FIELD_BOOL,
    FIELD_NUMBER,   /* whole, min..max */
    FIELD_DURATION, /* seconds or "10s", min..max milliseconds */
    FIELD_OBJECT,
    FIELD_TEXT_LIST, /* at most max texts */
    FIELD_ANY,
};

struct field {
    const char *name;
    const char *aliases[FIELD_ALIASES_MAX];
    enum field_type type;
    uint64_t min;
    uint64_t max;
    /* Not NULL: comes later. The text is the one JSON value that asks for nothing ("false", "0",
     * "[]") and is therefore accepted; "" = none. JSON null always asks for nothing. */
    const char *later;
};

struct field_problem { /* where and how, for the error object and the list of a batch */
    char field[FIELD_NAME_MAX];
    unsigned int status; /* 400 or 422 */
    char candidate[64];  /* the field that was probably meant; "" = none */
};

/* *out: new object with canonical names and checked types; nulls are left out. `table` ends with
 * {0}. prefix ("options." or "") is put before names in errors. ERR_INVALID, ERR_NOT_AVAILABLE. */
MUST_CHECK int fields_canonical(const struct field *table, const char *prefix, const json_t *object,
                                json_t **out, struct field_problem *problem, struct error *err);
/* The same for object[name], in place; without that member nothing is done. prefix: "<name>.". */
MUST_CHECK int fields_member(json_t *object, const char *name, const char *prefix,
                             const struct field *table, struct field_problem *problem,
                             struct error *err);
/* Fills problem and err; always -1. */
int field_fail(struct field_problem *problem, unsigned int status, const char *field,
               struct error *err, enum error_code code, const char *format, ...) PRINTF_LIKE(6, 7);
/* Members of a canonical object (types are known to be right). */
const char *field_text(const json_t *object, const char *name, const char *fallback);
bool field_bool(const json_t *object, const char *name, bool fallback);
uint64_t field_number(const json_t *object, const char *name, uint64_t fallback);
int64_t field_duration_ms(const json_t *object, const char *name, int64_t fallback);
/* The entry of words (NULL-terminated) nearest to word by edit distance; NULL: none is near. */
const char *nearest_word(const char *word, const char *const *words);
bool word_in(const char *word, const char *const *words);

#endif
