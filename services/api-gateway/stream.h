/* Live answers over plain HTTP: SSE, NDJSON and text. The library asks for bytes when the client
 * can take some; when there are none the connection is suspended until the subscriber is woken. */
#ifndef GATEWAY_STREAM_H
#define GATEWAY_STREAM_H

#include <microhttpd.h>

#include "subscriber.h"

/* A response that sends what the subscriber gets, on this connection only. It keeps a reference
 * until the library frees it; then the subscriber is taken out of the hub. NULL: no memory. */
struct MHD_Response *stream_response(struct gateway *gateway, struct subscriber *subscriber,
                                     struct MHD_Connection *connection);
/* A 101 response that hands the connection to the WebSocket thread. */
struct MHD_Response *websocket_response(struct gateway *gateway, struct subscriber *subscriber,
                                        struct MHD_Connection *connection);
/* A live answer that never reached its connection: out of the hub. NULL-safe. */
void live_answer_drop(struct gateway *gateway, struct subscriber *subscriber);
/* For GET /events and /websocket: a subscriber with the caller's identity and topics, in the hub,
 * put into the transport. */
MUST_CHECK int live_answer_start(struct call *call, enum subscriber_format format,
                                 struct subscriber **out, struct error *err);

#endif
