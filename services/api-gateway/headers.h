/* What the gateway reads out of request headers. Pure functions over foreign text. */
#ifndef GATEWAY_HEADERS_H
#define GATEWAY_HEADERS_H

#include "common/config.h"

#define SESSION_COOKIE  "hypersdk_session"
#define TOKEN_BYTES_MAX 256 /* ours have 66 */

/* The token of "Bearer <token>"; NULL when it is something else. Borrowed. */
const char *header_bearer(const char *authorization);
/* The value of one cookie copied to out; false when absent or longer. */
bool header_cookie(const char *cookies, const char *name, char out[TOKEN_BYTES_MAX]);
/* Does Accept name the media type (exactly, with any parameters)? "*" does not count. */
bool header_accepts(const char *accept, const char *type);
/* May a browser page from `origin` (as in the Origin header) talk to us? Yes when it is the host
 * that the request was sent to, or one of allowed. scheme://host[:port] is compared literally. */
bool header_origin_allowed(const char *origin, const char *host, const struct config_list *allowed);
/* Is the Host header a name or address of this machine only (127.0.0.0/8, [::1], localhost)? */
bool header_host_is_loopback(const char *host);
/* JSON, or a type that ends in +json; parameters do not matter. NULL is not. */
bool header_is_json(const char *content_type);
/* Content-Length without sign or rest; false otherwise. */
bool header_length(const char *text, uint64_t *out);

#endif
