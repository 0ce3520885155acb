/* One live event, encoded once for all its readers. Immutable and counted; any thread. */
#ifndef GATEWAY_LIVE_EVENT_H
#define GATEWAY_LIVE_EVENT_H

#include <jansson.h>

#include "common/error.h"

#define LIVE_EVENT_BYTES_MAX ((size_t)256 * KIB) /* a job with 64 disks has 20 KiB of progress */
#define LIVE_JOB_ID_SIZE     65                  /* ids chosen by clients have at most 64 */

enum live_kind {
    LIVE_STATE,    /* a row of job_events, of a job or a schedule: never dropped */
    LIVE_PROGRESS, /* newest value of a job: replaces an older one */
    LIVE_STATUS,   /* newest value of the suite: replaces an older one */
    LIVE_OTHER,    /* answers to a client, log lines: never dropped */
};

struct live_event;

/* From an event object: its "type", "seq" and "job_id" decide the kind. ERR_INVALID, ERR_LIMIT. */
MUST_CHECK int live_event_new(const json_t *object, struct live_event **out, struct error *err);
struct live_event *live_event_ref(struct live_event *event);
void live_event_unref(struct live_event *event);
DEFINE_AUTO(live_event, struct live_event, live_event_unref)
#define auto_live_event CLEANUP(live_event_auto) struct live_event

enum live_kind live_event_kind(const struct live_event *event);
int64_t live_event_seq(const struct live_event *event);
const char *live_event_job(const struct live_event *event); /* "" when of no job */
/* It tells of a schedule, not of a job. */
bool live_event_is_schedule(const struct live_event *event);
/* "status" of the object, a job's, is completed, failed or cancelled. */
bool live_event_is_final(const struct live_event *event);
/* As a WebSocket text frame / as a text/event-stream block. */
const void *live_event_frame(const struct live_event *event, size_t *size);
const void *live_event_sse(const struct live_event *event, size_t *size);

#endif
