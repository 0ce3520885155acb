/* Finding the route of a request, and the decoding of what its URL carries. Pure functions over
 * foreign bytes; the fuzz target tests/fuzz/fuzz_match.c runs them. */
#ifndef GATEWAY_MATCH_H
#define GATEWAY_MATCH_H

#include "route.h"

#define PATH_TEXT_MAX   4096 /* longest path of a request, encoded */
#define PARAM_BYTES_MAX 1024 /* longest path parameter or query value: an inventory path */
#define ALLOW_BYTES_MAX 64   /* "GET, HEAD, POST, PUT, DELETE, OPTIONS" */

enum match_result {
    MATCH_FOUND,
    MATCH_OTHER_METHOD, /* the path exists: 405 with `allow` */
    MATCH_NONE,
};

struct match {
    const struct route *route;
    struct {
        const char *name; /* inside the route's path, name_length bytes */
        size_t name_length;
        const char *value; /* inside the request's path, encoded */
        size_t value_length;
    } params[ROUTE_PARAMS_MAX];
    size_t param_count;
    char allow[ALLOW_BYTES_MAX]; /* of every route with this path, plus OPTIONS */
};

/* path: as received, without query. HEAD is GET. Literal segments win over parameters; one
 * trailing slash does not matter. With OPTIONS the result is never MATCH_FOUND. */
enum match_result match_route(const struct route *table, size_t count, const char *method,
                              const char *path, struct match *out);

/* Percent-decoding. ERR_INVALID naming `name`: malformed, NUL, not UTF-8; ERR_LIMIT: longer than
 * PARAM_BYTES_MAX. Caller frees. */
MUST_CHECK int match_decode(const char *name, const char *text, size_t length, char **out,
                            struct error *err);

#endif
