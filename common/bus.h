/* The bus: the only place that knows nng. Three sockets (architecture section 4):
 *   lease    workers and gateways REQ, the scheduler REP, one context per parked request
 *   events   everyone PUSH, the scheduler PULL; only what may be lost
 *   announce the scheduler PUB, everyone SUB; only what may be lost
 * Sockets are opened once and never closed: processes end by _exit.
 *
 * Envelopes: bus_envelope_init fills version, id, sender and time; bodies are protobuf-c structs.
 * Every received envelope was checked (bus_check.c): version, lengths, UTF-8, enum values, ranges.
 * Received envelopes are freed with bus_envelope_free. */
#ifndef COMMON_BUS_H
#define COMMON_BUS_H

#include "common/config_schema.h"
#include "common/error.h"
#include "proto/hypersdk.pb-c.h"

#define BUS_PROTOCOL_VERSION  1U
#define BUS_MESSAGE_BYTES_MAX ((size_t)MIB) /* an inventory page of 500 VMs is 768 KiB at most */
#define BUS_PAGE_BYTES_MAX    (768 * KIB)
#define BUS_PAGE_VMS_MAX      500
#define BUS_LOG_LINES_MAX     200
#define BUS_LOG_MESSAGE_MAX   2000
#define BUS_TEXT_MAX          1024 /* ids, names, paths that have no limit of their own */

typedef Hypersdk__V1__Envelope bus_envelope; /* generated code has no plain struct name of ours */

/* *out is ready for a body to be attached: out->body_case and the member. Buffers live in *store.
 */
struct bus_envelope_store {
    char message_id[40];
    char traceparent[64];
};
void bus_envelope_init(bus_envelope *out, struct bus_envelope_store *store, const char *sender,
                       const char *traceparent);
void bus_envelope_free(bus_envelope *envelope);
DEFINE_AUTO(bus_envelope, bus_envelope, bus_envelope_free)
#define auto_bus_envelope CLEANUP(bus_envelope_auto) bus_envelope
/* Decode and check bytes from the wire. ERR_PROTOCOL / ERR_LIMIT. The fuzz target's entry. */
MUST_CHECK int bus_envelope_decode(const void *data, size_t size, bus_envelope **out,
                                   struct error *err);
/* The checks alone (bus_check.c). */
MUST_CHECK int bus_envelope_check(const bus_envelope *envelope, struct error *err);

/* lease, asking side. Thread-safe: each call has its own context. Dials all configured addresses
 * in the background and asks on the newest connection, for only the leader listens; with none
 * connected a call waits until timeout. */
struct bus_client;
MUST_CHECK int bus_client_open(const struct bus_config *config, struct bus_client **out,
                               struct error *err);
/* ERR_TIMEOUT: no answer in time; the request may or may not have been handled (repeat it with the
 * same message_id). ERR_UNAVAILABLE: the connection ended, or another scheduler leads now; the
 * same holds. */
MUST_CHECK int bus_client_call(struct bus_client *client, const bus_envelope *request,
                               int64_t timeout_ms, bus_envelope **out, struct error *err);

/* lease, answering side. handler runs on an nng thread and must not block: it queues the request.
 * Each request is answered exactly once with bus_request_reply (any thread), which frees it. */
struct bus_server;
struct bus_request;
typedef void (*bus_handler)(void *arg, struct bus_request *request);
MUST_CHECK int bus_server_open(const struct bus_config *config, size_t contexts,
                               bus_handler handler, void *arg, struct bus_server **out,
                               struct error *err);
const bus_envelope *bus_request_envelope(const struct bus_request *request);
/* Its connection is gone: nobody would get the answer. Any thread; a hint, it may turn true a
 * moment after the connection broke. The request still has to be answered. */
bool bus_request_is_orphan(const struct bus_request *request);
void bus_request_reply(struct bus_request *request, const bus_envelope *reply);

/* events. push never blocks: full or unconnected = dropped and counted (bus_dropped metric). */
struct bus_pusher;
MUST_CHECK int bus_pusher_open(const struct bus_config *config, struct bus_pusher **out,
                               struct error *err);
void bus_push(struct bus_pusher *pusher, const bus_envelope *envelope); /* thread-safe */
/* Calls fn on one own thread for every valid message. */
MUST_CHECK int bus_puller_start(const struct bus_config *config,
                                void (*fn)(void *arg, const bus_envelope *envelope), void *arg,
                                struct error *err);

/* announce. Topics are prefixes of one word: "job", "worker", "control", "scheduler". */
struct bus_publisher;
MUST_CHECK int bus_publisher_open(const struct bus_config *config, struct bus_publisher **out,
                                  struct error *err);
/* Sets epoch and sequence. Thread-safe. */
void bus_publish(struct bus_publisher *publisher, const char *topic, bus_envelope *envelope);
/* fn on an own thread; gap() when sequence numbers show a loss or the publisher's epoch changed:
 * read the truth from the database or by the next lease call. topics: NULL-terminated. */
MUST_CHECK int bus_subscriber_start(const struct bus_config *config, const char *const *topics,
                                    void (*fn)(void *arg, const bus_envelope *envelope),
                                    void (*gap)(void *arg), void *arg, struct error *err);

#endif
