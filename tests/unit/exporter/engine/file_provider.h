/* A provider whose disk is a local file or a pattern, with scripted faults: for the tests of the
 * copy engine. Header only: a unit test is one object. */
#ifndef TEST_FILE_PROVIDER_H
#define TEST_FILE_PROVIDER_H

#include "common/clock.h"
#include "services/exporter/engine/provider.h"
#include "tests/unit/exporter/formats/disk_fixture.h"

#define STREAM_BYTES 50000U /* an odd size: pieces begin and end inside of what a stream brings */

/* provider_session: what the disk is and how it misbehaves. */
struct provider_session {
    const uint8_t *data; /* NULL: `at` makes the bytes */
    void (*at)(uint64_t offset, uint8_t *out, size_t length);
    uint64_t size_bytes;
    const struct extent *extents; /* with the extents' vtable */
    size_t extent_count;
    const char *mark;

    /* Faults. */
    const atomic_bool *cancelled;
    int64_t delay_ms;      /* every read */
    atomic_int fail_reads; /* so many reads fail */
    enum error_code fail_code;
    uint64_t fail_from; /* only reads at or behind this offset */
    atomic_int fail_opens;
    uint64_t ends_at;    /* 0: no; reads behind it say that the source changed */
    uint64_t hang_at;    /* 0: no; reads at or behind it hang until cancelled */
    uint64_t hold_below; /* reads below it wait while *held */
    const atomic_bool *held;
    bool stream_short; /* streams end early and call that success */

    atomic_int reads, opens, open_now;
    atomic_uint_fast64_t bytes;
};

struct provider_disk {
    struct provider_session *session;
};

static int file_disk_open(struct provider_session *session, const struct frozen_vm *frozen,
                          size_t index, struct provider_disk **out, struct error *err)
{
    (void)frozen;
    (void)index;
    atomic_fetch_add(&session->opens, 1);
    if (atomic_fetch_sub(&session->fail_opens, 1) > 0)
        return error_set(err, ERR_UNAVAILABLE, "scripted: no connection");
    *out = xcalloc(1, sizeof **out);
    (*out)->session = session;
    atomic_fetch_add(&session->open_now, 1);
    return 0;
}

static void file_disk_close(struct provider_disk *disk)
{
    if (disk == NULL)
        return;
    atomic_fetch_sub(&disk->session->open_now, 1);
    free(disk);
}

static int file_fault(struct provider_session *session, size_t length, uint64_t offset,
                      struct error *err)
{
    atomic_fetch_add(&session->reads, 1);
    if (!range_is_inside(offset, length, session->size_bytes))
        return error_set(err, ERR_INTERNAL, "read outside of the disk");
    if (session->delay_ms > 0)
        clock_sleep_ms(session->delay_ms);
    if (session->hang_at != 0 && offset >= session->hang_at) {
        while (!atomic_load(session->cancelled))
            clock_sleep_ms(5);
        return error_set(err, ERR_CANCELLED, "scripted: cancelled in a read");
    }
    while (offset < session->hold_below && atomic_load(session->held))
        clock_sleep_ms(2);
    if (session->ends_at != 0 && offset + length > session->ends_at)
        return error_set(err, ERR_SOURCE_CHANGED, "scripted: the disk has %ju bytes now",
                         (uintmax_t)session->ends_at);
    if (offset >= session->fail_from && atomic_fetch_sub(&session->fail_reads, 1) > 0)
        return error_set(err, session->fail_code, "scripted: read failed");
    return 0;
}

static void file_bytes(const struct provider_session *session, uint8_t *out, size_t length,
                       uint64_t offset)
{
    if (session->data != NULL)
        memcpy(out, session->data + offset, length);
    else
        session->at(offset, out, length);
}

static int file_disk_read(struct provider_disk *disk, void *buffer, size_t length, uint64_t offset,
                          struct error *err)
{
    struct provider_session *session = disk->session;

    if (file_fault(session, length, offset, err) < 0)
        return -1;
    file_bytes(session, buffer, length, offset);
    atomic_fetch_add(&session->bytes, length);
    return 0;
}

static int file_disk_stream(struct provider_disk *disk, uint64_t length, uint64_t offset,
                            int (*take)(void *arg, const void *data, size_t length,
                                        struct error *err),
                            void *arg, struct error *err)
{
    struct provider_session *session = disk->session;
    uint8_t part[STREAM_BYTES];

    if (session->stream_short)
        length /= 2;
    while (length > 0) {
        size_t n = (size_t)min_u64(length, sizeof part);
        if (file_fault(session, n, offset, err) < 0)
            return -1;
        file_bytes(session, part, n, offset);
        if (take(arg, part, n, err) < 0)
            return -1;
        atomic_fetch_add(&session->bytes, n);
        offset += n;
        length -= n;
    }
    return 0;
}

static int file_disk_mark(struct provider_session *session, const struct frozen_vm *frozen,
                          size_t index, char **out, struct error *err)
{
    (void)frozen;
    (void)index;
    (void)err;
    *out = xstrdup(session->mark == NULL ? "mark" : session->mark);
    return 0;
}

static int file_disk_extents(struct provider_disk *disk, uint64_t offset, uint64_t length,
                             struct extent_list *out, struct error *err)
{
    const struct provider_session *session = disk->session;
    size_t few = out->count_max < 3 ? out->count_max : 3; /* so that the engine comes again */
    uint64_t end = offset + length;

    (void)err;
    out->count = 0;
    for (size_t i = 0; i < session->extent_count; i++) {
        uint64_t from = max_u64(session->extents[i].offset, offset);
        uint64_t to = min_u64(session->extents[i].offset + session->extents[i].length, end);
        if (from >= to)
            continue;
        if (out->count == few) {
            out->end = from;
            return 0;
        }
        out->items[out->count++] = (struct extent){from, to - from};
    }
    out->end = end;
    return 0;
}

/* A disk that comes as a stream of its blocks that are not zeros, which can be read once. */
#define FORWARD_BLOCK 65536U

struct provider_stream {
    struct provider_session *session;
    uint64_t position; /* everything in front of it was fetched, or is zeros */
};

__attribute__((unused)) static int forward_open(struct provider_session *session,
                                                const struct frozen_vm *frozen, size_t index,
                                                struct provider_stream **out, struct error *err)
{
    (void)frozen;
    (void)index;
    atomic_fetch_add(&session->opens, 1);
    if (atomic_fetch_sub(&session->fail_opens, 1) > 0)
        return error_set(err, ERR_UNAVAILABLE, "scripted: no lease");
    *out = xcalloc(1, sizeof **out);
    (*out)->session = session;
    atomic_fetch_add(&session->open_now, 1);
    return 0;
}

__attribute__((unused)) static void forward_close(struct provider_stream *stream)
{
    if (stream == NULL)
        return;
    atomic_fetch_sub(&stream->session->open_now, 1);
    free(stream);
}

__attribute__((unused)) static int forward_next(struct provider_stream *stream,
                                                uint64_t *out_offset, struct error *err)
{
    struct provider_session *session = stream->session;
    uint8_t block[FORWARD_BLOCK];

    while (stream->position < session->size_bytes) {
        size_t n = (size_t)min_u64(FORWARD_BLOCK, session->size_bytes - stream->position);
        file_bytes(session, block, n, stream->position);
        if (!mem_is_zero(block, n))
            break;
        stream->position += n;
    }
    *out_offset = stream->position;
    return stream->position < session->size_bytes
               ? file_fault(session, 1, stream->position, err)
               : file_fault(session, 1, session->size_bytes - 1, err);
}

/* Records of offset, length and bytes. */
__attribute__((unused)) static int forward_fetch(struct provider_stream *stream, uint64_t end,
                                                 struct provider_parcel *out, struct error *err)
{
    struct provider_session *session = stream->session;
    uint64_t next = 0;

    if (out->data == NULL)
        out->data = xmalloc(PROVIDER_PARCEL_BYTES + 256);
    out->size = 0;
    while (forward_next(stream, &next, err) == 0) {
        uint64_t head[2] = {next, min_u64(FORWARD_BLOCK, session->size_bytes - next)};
        if (next >= end)
            return 0;
        memcpy(out->data + out->size, head, sizeof head);
        file_bytes(session, out->data + out->size + sizeof head, (size_t)head[1], next);
        out->size += sizeof head + (size_t)head[1];
        stream->position = next + head[1];
        atomic_fetch_add(&session->bytes, head[1]);
    }
    return -1;
}

__attribute__((unused)) static int forward_decode(struct provider_stream *stream,
                                                  const struct provider_parcel *parcel,
                                                  uint64_t offset, uint8_t *buffer, size_t length,
                                                  struct error *err)
{
    uint64_t head[2];

    (void)stream;
    for (size_t at = 0; at < parcel->size; at += sizeof head + (size_t)head[1]) {
        memcpy(head, parcel->data + at, sizeof head);
        if (head[0] < offset || !range_is_inside(head[0] - offset, head[1], length))
            return error_set(err, ERR_INTERNAL, "a parcel of another range");
        memcpy(buffer + (head[0] - offset), parcel->data + at + sizeof head, (size_t)head[1]);
    }
    return 0;
}

static const struct provider file_provider = {
    .name = "file",
    .parallel_reads_max = PROVIDER_PARALLEL_READS_MAX,
    .disk_open = file_disk_open,
    .disk_read = file_disk_read,
    .disk_close = file_disk_close,
    .disk_mark = file_disk_mark,
};

__attribute__((unused)) static const struct provider stream_provider = {
    .name = "stream",
    .parallel_reads_max = PROVIDER_PARALLEL_READS_MAX,
    .disk_open = file_disk_open,
    .disk_read = file_disk_read,
    .disk_close = file_disk_close,
    .disk_mark = file_disk_mark,
    .disk_stream = file_disk_stream,
};

__attribute__((unused)) static const struct provider local_provider = {
    .name = "local",
    .parallel_reads_max = PROVIDER_PARALLEL_READS_MAX,
    .local = true,
    .disk_open = file_disk_open,
    .disk_read = file_disk_read,
    .disk_close = file_disk_close,
    .disk_mark = file_disk_mark,
};

__attribute__((unused)) static const struct provider forward_provider = {
    .name = "forward",
    .parallel_reads_max = PROVIDER_PARALLEL_READS_MAX,
    .disk_mark = file_disk_mark,
    .stream_open = forward_open,
    .stream_next = forward_next,
    .stream_fetch = forward_fetch,
    .stream_decode = forward_decode,
    .stream_close = forward_close,
};

__attribute__((unused)) static const struct provider extents_provider = {
    .name = "extents",
    .parallel_reads_max = PROVIDER_PARALLEL_READS_MAX,
    .disk_open = file_disk_open,
    .disk_read = file_disk_read,
    .disk_close = file_disk_close,
    .disk_mark = file_disk_mark,
    .disk_extents = file_disk_extents,
};

#endif
