/* HTTP on libmicrohttpd: receives requests under limits, brings them to dispatch.c on one of the
 * thread pools, sends the answers. The only module that includes microhttpd.h, besides the two that
 * take connections over (websocket.c, sse.c). */
#ifndef GATEWAY_SERVER_H
#define GATEWAY_SERVER_H

#include "gateway.h"

struct server;

/* Listens on daemon.address. Never stopped: the process ends by _exit. */
MUST_CHECK int server_start(struct gateway *gateway, struct server **out, struct error *err);
/* Ends late connections; to be called every second. */
void server_tick(struct server *server);
/* Takes no new connections. */
void server_quiesce(struct server *server);
/* Requests that have begun and are not answered to the last byte; live streams do not count. */
size_t server_busy(struct server *server);

#endif
