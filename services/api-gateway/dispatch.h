/* The one place where a request is decided on: identity, permission, body, handler, error shape,
 * audit row. server.c brings requests here; nothing reaches a handler past it. */
#ifndef GATEWAY_DISPATCH_H
#define GATEWAY_DISPATCH_H

#include "transport.h"

enum dispatch_pool {
    DISPATCH_LIGHT, /* no database: must answer whatever happens */
    DISPATCH_FAST,
    DISPATCH_SLOW,     /* may wait for a worker process */
    DISPATCH_PASSWORD, /* memory-hard hashing */
};

/* Finds the route (call->method, call->path are set; headers and query too) and says where
 * dispatch_run is to be called. */
enum dispatch_pool dispatch_route(struct call *call);
/* Decides and answers: afterwards call->status and the transport's answer are set, and the audit
 * row is committed. db: NULL on the light pool. */
void dispatch_run(struct call *call, struct db *db);

#endif
