/* See live_event.h. */
#include "live_event.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/strbuf.h"

#define FRAME_HEADER_MAX 10
#define TYPE_SIZE        64

struct live_event {
    atomic_uint refs;
    enum live_kind kind;
    int64_t seq;
    char job_id[LIVE_JOB_ID_SIZE];
    bool schedule;
    bool final;
    uint8_t *frame;
    size_t frame_size;
    char *sse;
    size_t sse_size;
};

static bool is_schedule(const char *type)
{
    return strncmp(type, "schedule.", 9) == 0;
}

static enum live_kind kind_of(const char *type, int64_t seq)
{
    if (strcmp(type, "job.progress") == 0)
        return LIVE_PROGRESS;
    if (strcmp(type, "status") == 0)
        return LIVE_STATUS;
    return (strncmp(type, "job.", 4) == 0 || is_schedule(type)) && seq > 0 &&
                   strcmp(type, "job.log") != 0
               ? LIVE_STATE
               : LIVE_OTHER;
}

/* RFC 6455 section 5.2: FIN, text, not masked. */
static size_t frame_header(uint8_t out[FRAME_HEADER_MAX], size_t payload)
{
    size_t length_bytes = payload < 126 ? 0 : payload <= UINT16_MAX ? 2 : 8;

    out[0] = 0x81;
    out[1] = (uint8_t)(length_bytes == 0 ? payload : length_bytes == 2 ? 126 : 127);
    for (size_t i = 0; i < length_bytes; i++)
        out[2 + i] = (uint8_t)((uint64_t)payload >> (8 * (length_bytes - 1 - i)));
    return 2 + length_bytes;
}

static void encode_frame(struct live_event *event, const char *text, size_t size)
{
    uint8_t header[FRAME_HEADER_MAX];
    size_t header_size = frame_header(header, size);

    event->frame = xmalloc(header_size + size);
    memcpy(event->frame, header, header_size);
    memcpy(event->frame + header_size, text, size);
    event->frame_size = header_size + size;
}

static int encode_sse(struct live_event *event, const char *type, const char *text,
                      struct error *err)
{
    auto_strbuf sb;

    strbuf_init(&sb, LIVE_EVENT_BYTES_MAX + 256);
    /* only rows have an id that a client can come back with */
    if (event->kind == LIVE_STATE)
        strbuf_addf(&sb, "id: %" PRId64 "\n", event->seq);
    strbuf_addf(&sb, "event: %s\ndata: %s\n\n", type, text);
    event->sse_size = sb.length;
    return strbuf_finish(&sb, &event->sse, err);
}

static bool is_plain(const char *text, size_t size_max)
{
    size_t length = strlen(text);

    return length > 0 && length < size_max &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-") ==
               length;
}

int live_event_new(const json_t *object, struct live_event **out, struct error *err)
{
    const char *type = json_str(object, "type");
    const char *job_id = json_str(object, "job_id");
    const char *status = json_str(object, "status");
    autofree char *text = NULL;
    auto_live_event *event = NULL;
    size_t size;

    if (!json_is_object(object) || !is_plain(type, TYPE_SIZE) ||
        (job_id[0] != '\0' && !is_plain(job_id, LIVE_JOB_ID_SIZE)))
        return error_set(err, ERR_INVALID, "event without a type, or with a malformed job id");
    text = json_text(object);
    size = strlen(text);
    if (size > LIVE_EVENT_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "event of %zu bytes is over %zu", size,
                         LIVE_EVENT_BYTES_MAX);
    }
    event = xcalloc(1, sizeof *event);
    atomic_init(&event->refs, 1);
    event->seq = json_integer_value(json_object_get(object, "seq"));
    event->kind = kind_of(type, event->seq);
    event->schedule = is_schedule(type);
    event->final =
        !event->schedule && (strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 ||
                             strcmp(status, "cancelled") == 0);
    (void)snprintf(event->job_id, sizeof event->job_id, "%s", job_id);
    encode_frame(event, text, size);
    if (encode_sse(event, type, text, err) < 0)
        return -1;
    *out = STEAL(event);
    return 0;
}

struct live_event *live_event_ref(struct live_event *event)
{
    (void)atomic_fetch_add(&event->refs, 1);
    return event;
}

void live_event_unref(struct live_event *event)
{
    if (event == NULL || atomic_fetch_sub(&event->refs, 1) != 1)
        return;
    free(event->frame);
    free(event->sse);
    free(event);
}

enum live_kind live_event_kind(const struct live_event *event)
{
    return event->kind;
}

int64_t live_event_seq(const struct live_event *event)
{
    return event->seq;
}

const char *live_event_job(const struct live_event *event)
{
    return event->job_id;
}

bool live_event_is_schedule(const struct live_event *event)
{
    return event->schedule;
}

bool live_event_is_final(const struct live_event *event)
{
    return event->final;
}

const void *live_event_frame(const struct live_event *event, size_t *size)
{
    *size = event->frame_size;
    return event->frame;
}

const void *live_event_sse(const struct live_event *event, size_t *size)
{
    *size = event->sse_size;
    return event->sse;
}
