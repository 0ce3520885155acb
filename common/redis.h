/* Redis: a cache of the newest progress and a fan-out. Losing it may slow us, never lie.
 * One struct redis per thread. Every call that fails drops the connection; the next one
 * reconnects, at most every second. */
#ifndef COMMON_REDIS_H
#define COMMON_REDIS_H

#include <stdatomic.h>

#include "common/autos.h"
#include "common/config_schema.h"
#include "common/error.h"

#define REDIS_CHANNEL_EVENTS  "hypersdk:events"    /* one JSON event per message, with "seq" */
#define REDIS_PROGRESS_PREFIX "hypersdk:progress:" /* + job id: hash, field "json" */
#define REDIS_PROGRESS_TTL_S  86400

struct redis;

struct redis *redis_new(const struct redis_config *config);
void redis_free(struct redis *redis);
/* PING; connects when needed. */
MUST_CHECK int redis_check(struct redis *redis, struct error *err);

/* Commands of one tick, sent and answered together. */
MUST_CHECK int redis_append(struct redis *redis, struct error *err, size_t argc,
                            const char *const *argv);
MUST_CHECK int redis_flush(struct redis *redis, struct error *err);
/* The newest progress of a job; *out NULL when none. Caller frees. */
MUST_CHECK int redis_progress(struct redis *redis, const char *job_id, char **out,
                              struct error *err);
/* Blocks in the calling thread: subscribes to REDIS_CHANNEL_EVENTS and calls fn for every message
 * until *stop. Reconnects by itself; gap() is called after each (re)subscription, because messages
 * may have been missed. Both callbacks run on this thread. */
void redis_subscribe(const struct redis_config *config, const atomic_bool *stop,
                     void (*fn)(void *arg, const char *message, size_t size),
                     void (*gap)(void *arg), void *arg);

#endif
