/* The gateway as this program sees it: JSON requests, errors mapped to exit statuses, tokens kept
 * off plain connections. One thread. */
#ifndef HYPEREXPORT_API_H
#define HYPEREXPORT_API_H

#include <jansson.h>
#include <stdatomic.h>

#include "common/autos.h"
#include "flags.h"

#define API_BODY_BYTES_MAX ((size_t)(64 * MIB)) /* a page of 1,000 VMs with many disks is 4 MiB */
#define API_TIMEOUT_MS     60000                /* the gateway itself answers within 30 s */
#define API_URL_BYTES_MAX  4096
#define API_LIST_DEFAULT   100 /* elements, without --limit */

/* Exit statuses (CLI reference 1.1). */
enum exit_status {
    EXIT_DONE = 0,
    EXIT_CONNECTION = 1,
    EXIT_EXPORT = 2,
    EXIT_VERIFICATION = 4,
    EXIT_UPLOAD = 5,
    EXIT_CONVERSION = 6,
    EXIT_BATCH = 7,      /* some VMs of a policy's run failed */
    EXIT_AFTERWARDS = 8, /* exported, but mail or clean-up failed */
    EXIT_USAGE = 64,
    EXIT_UNSUPPORTED = 65,
};
int exit_status_of(const struct error *err);

struct api;

/* Does not connect yet. Finds the token: --daemon-token-file, HYPERSDK_TOKEN, else what `login`
 * stored for this URL. ERR_INVALID: malformed URL or file. */
MUST_CHECK int api_open(const struct command_line *line, struct api **out, struct error *err);
void api_free(struct api *api);
DEFINE_AUTO(api, struct api, api_free)
#define auto_api CLEANUP(api_auto) struct api
const char *api_url(const struct api *api);
/* A request under way ends with ERR_CANCELLED when the flag turns true; NULL: it never does. */
void api_set_cancelled(struct api *api, const atomic_bool *cancelled);
/* Refuses (ERR_DENIED) to send a secret over plain http to another machine. */
MUST_CHECK int api_check_secret_allowed(const struct api *api, struct error *err);

/* GET /health: ERR_UNAVAILABLE says how to start a gateway. */
MUST_CHECK int api_check(struct api *api, struct error *err);

struct api_request {
    const char *method;
    const char *path;            /* "/api/v1/jobs?limit=5"; parts escaped by the caller */
    const json_t *body;          /* NULL: none */
    const char *accept;          /* NULL: application/json */
    const char *idempotency_key; /* NULL: none */
};
/* 2xx: *out (may be NULL) is the parsed answer, a new reference; JSON null when it was empty.
 * Else the error carries the gateway's words. ERR_DENIED: 401, 403; ERR_NOT_FOUND: 404;
 * ERR_NOT_AVAILABLE: this gateway cannot do that yet; ERR_UNAVAILABLE, ERR_TIMEOUT: come again. */
MUST_CHECK int api_call(struct api *api, const struct api_request *request, json_t **out,
                        struct error *err);
MUST_CHECK int api_get(struct api *api, const char *path, json_t **out, struct error *err);
/* Adds "?key=value", or "&key=value" when the path has parameters, escaped; NULL adds nothing. */
void api_path_add(struct strbuf *path, const char *key, const char *value);
/* Appends the elements of a list to out, page by page, until there are limit of them: path as in
 * a request, key the member that holds a page's elements. */
MUST_CHECK int api_list(struct api *api, const struct strbuf *path, const char *key, size_t limit,
                        json_t *out, struct error *err);
/* A text answer piece by piece as it comes, for as long as the gateway sends. fn returns false to
 * end it (that is success). Errors as above. */
MUST_CHECK int api_stream(struct api *api, const char *path, const char *accept,
                          bool (*fn)(void *arg, const char *data, size_t size), void *arg,
                          struct error *err);

#endif
