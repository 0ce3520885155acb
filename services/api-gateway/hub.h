/* Live events: one hub per gateway, fed from Redis and healed from PostgreSQL, that gives every
 * event to WebSocket and SSE clients, and running logs to those who follow them.
 *
 * State events are rows of job_events: none is lost, whatever happens to Redis. Progress is the
 * newest value: it may be skipped. */
#ifndef GATEWAY_HUB_H
#define GATEWAY_HUB_H

#include "common/error.h"
#include "common/strbuf.h"

struct gateway;
struct hub;
struct call;

/* Starts the hub's threads. It lives until the process ends. */
MUST_CHECK int hub_start(struct gateway *gateway, struct hub **out, struct error *err);
/* Says good-bye to all clients (WebSocket 1001) and takes no new ones. */
void hub_drain(struct hub *hub);

enum log_stream_format {
    LOG_STREAM_SSE,    /* text/event-stream: event "job.log", at the end event "end" */
    LOG_STREAM_NDJSON, /* application/x-ndjson: one log object per line */
    LOG_STREAM_TEXT,   /* text/plain: lines of log_line_text() */
};

struct log_follow_options {
    const char *job_id; /* exists: the caller looked */
    enum log_stream_format format;
    uint32_t tail;     /* so many old lines first; UINT32_MAX: all */
    const char *since; /* RFC 3339 or NULL: only lines at or after it */
    const char *level; /* least level, or NULL: all */
};

/* Answers the call with a stream of the job's log that ends when the job is final and all its lines
 * are sent. Returns 0 after starting it; the handler then returns 0. ERR_UNAVAILABLE: too many
 * live clients. */
MUST_CHECK int hub_follow_logs(struct call *call, const struct log_follow_options *options,
                               struct error *err);

/* One line of a log as text/plain answers show it, with the newline:
 * "2026-03-01T02:03:05.123Z info  [exporting] message". */
void log_line_text(struct strbuf *out, const char *at, const char *level, const char *phase,
                   const char *message);
/* Do lines of `level` pass the least level? Unknown levels count as info; least NULL: all. */
bool log_level_passes(const char *level, const char *least);

#endif
