/* Endpoints of the REST reference that this build does not have yet: they are answered 404 with
 * code "not_available" instead of "not_found", so that a client can tell a typing error from an
 * endpoint that comes later. The router asks when no route fits. */
#ifndef GATEWAY_LATER_ROUTES_H
#define GATEWAY_LATER_ROUTES_H

#include <stdbool.h>

/* Does `path` (without query, any method) belong to a later endpoint? */
bool later_route(const char *method, const char *path);

#endif
