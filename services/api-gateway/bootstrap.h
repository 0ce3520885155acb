/* What the gateway does with the database outside of calls: the first administrator, and tidying
 * up. One background thread. */
#ifndef GATEWAY_BOOTSTRAP_H
#define GATEWAY_BOOTSTRAP_H

#include "gateway.h"

MUST_CHECK int bootstrap_start(struct gateway *gateway, struct error *err);
/* Writes the subkeys of all audiences into dir, for the other services. */
MUST_CHECK int export_keys(const struct gateway *gateway, const char *dir, struct error *err);
/* Prints the route table as JSON on stdout, for tests and documentation. */
void print_routes(void);

#endif
