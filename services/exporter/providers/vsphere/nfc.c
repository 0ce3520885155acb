#include "services/exporter/providers/vsphere/nfc.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/vmdk_stream.h"
#include "services/exporter/providers/vsphere/nfc_get.h"

#define RECORD_LEASE    "nfc_lease" /* "": none */
#define RENEWALS        4           /* in the time that a lease lives for without any */
#define RENEW_MS_MAX    INT64_C(10000)
#define RETRY_MS        INT64_C(500) /* after a renewal that failed */
#define PARCEL_HEAD     16U /* of each grain in it: u64 offset, u32 length, u32 packed size */
#define PERCENT_RUNNING 99U /* 100 is for what is complete */

struct provider_stream {
    struct provider_session *session;
    struct task_records *records;
    struct nfc_lease lease;
    struct nfc_get *get;
    struct vmdk_stream *vmdk;
    struct grain_codec *codec;
    uint64_t size_bytes;
    struct vmdk_grain grain; /* the next one */
    bool has_grain;
    bool complete; /* came whole, and was compared */

    pthread_t thread; /* renews the lease */
    bool started;
    atomic_uint percent;
    int64_t renewed_ms;    /* the thread's own */
    atomic_bool over;      /* the lease is gone, or was not renewed for as long as it lives */
    pthread_mutex_t mutex; /* guards the rest */
    pthread_cond_t wake;
    bool stopping;
    struct error lost; /* why the lease could not be renewed; ERR_NONE: it can */
};

/* ---- keeping the lease ---- */

static void renew(struct provider_stream *stream)
{
    struct error err = ERROR_NONE;
    int rc =
        nfc_lease_renew(stream->session, stream->lease.id, atomic_load(&stream->percent), &err);

    if (rc < 0 && err.code == ERR_CANCELLED)
        return; /* the stream ends by that itself */
    if (rc == 0) {
        stream->renewed_ms = clock_mono_ms();
    } else {
        LOG(WARN, "vsphere_nfc_renewal_failed", F_STR("lease", stream->lease.id), F_ERR(&err));
        if (!error_is_retryable(&err) ||
            clock_mono_ms() - stream->renewed_ms > stream->lease.timeout_ms)
            atomic_store(&stream->over, true);
    }
    LOCK_SCOPE(&stream->mutex);
    stream->lost = err;
}

/* Mutex held. */
static void wait_for_stop(struct provider_stream *stream, int64_t ms)
{
    int64_t until_ns = clock_mono_ns() + ms * 1000000;
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};

    while (!stream->stopping && clock_mono_ns() < until_ns)
        (void)pthread_cond_timedwait(&stream->wake, &stream->mutex, &until);
}

static void *renewer(void *arg)
{
    struct provider_stream *stream = arg;
    int64_t every_ms = stream->lease.timeout_ms / RENEWALS;

    stream->renewed_ms = clock_mono_ms();
    if (every_ms > RENEW_MS_MAX)
        every_ms = RENEW_MS_MAX;
    for (;;) {
        bool lost;
        renew(stream);
        LOCK_SCOPE(&stream->mutex);
        lost = stream->lost.code != ERR_NONE;
        wait_for_stop(stream, lost && RETRY_MS < every_ms ? RETRY_MS : every_ms);
        if (stream->stopping)
            return NULL;
    }
}

static int renewer_start(struct provider_stream *stream, struct error *err)
{
    int rc = pthread_create(&stream->thread, NULL, renewer, stream);

    if (rc != 0)
        return error_set_errno(err, rc, "cannot start a thread");
    stream->started = true;
    return 0;
}

static void renewer_stop(struct provider_stream *stream)
{
    if (!stream->started)
        return;
    {
        LOCK_SCOPE(&stream->mutex);
        stream->stopping = true;
        (void)pthread_cond_signal(&stream->wake);
    }
    (void)pthread_join(stream->thread, NULL);
    stream->started = false;
}

/* A stream that broke because its lease is over says so. */
static int explain(struct provider_stream *stream, struct error *err)
{
    LOCK_SCOPE(&stream->mutex);
    if (stream->lost.code == ERR_NONE || !error_is_retryable(err))
        return -1;
    return error_wrap(err, "the export lease was lost (%.200s)", stream->lost.message);
}

/* ---- records ---- */

static int record_lease(struct task_records *records, const char *id, struct error *err)
{
    const char *have = records->get(records, RECORD_LEASE);

    if (strcmp(have == NULL ? "" : have, id) == 0)
        return 0;
    return records->put(records, RECORD_LEASE, id, err);
}

/* Complete or abort, also when the task was cancelled. */
static int end_lease(struct provider_session *session, struct task_records *records, const char *id,
                     bool complete, struct error *err)
{
    struct error shield_err = ERROR_NONE;
    int rc;

    if (session_shield(session, true, err) < 0)
        return -1;
    rc = nfc_lease_end(session, id, complete, err);
    if (session_shield(session, false, &shield_err) < 0 && rc == 0) {
        *err = shield_err;
        rc = -1;
    }
    return rc < 0 ? error_wrap(err, "ending export lease '%.80s'", id)
                  : record_lease(records, "", err);
}

int nfc_abort_recorded(struct provider_session *session, struct task_records *records,
                       struct error *err)
{
    const char *recorded = records->get(records, RECORD_LEASE);
    autofree char *id = xstrdup(recorded == NULL ? "" : recorded);

    if (id[0] == '\0')
        return 0;
    if (end_lease(session, records, id, false, err) == 0) {
        LOG(INFO, "vsphere_nfc_lease_aborted", F_STR("lease", id));
        return 0;
    }
    if (error_is_retryable(err) || err->code == ERR_CANCELLED)
        return -1;
    /* It ends by its timeout; the snapshot must not stay for its sake. */
    LOG(WARN, "vsphere_nfc_lease_remains", F_STR("lease", id), F_ERR(err));
    error_clear(err);
    return record_lease(records, "", err);
}

/* ---- opening and closing ---- */

static struct provider_stream *stream_new(struct provider_session *session,
                                          const struct nfc_place *place)
{
    struct provider_stream *stream = xcalloc(1, sizeof *stream);
    pthread_condattr_t cond;

    stream->session = session;
    stream->records = place->records;
    stream->size_bytes = place->size_bytes;
    stream->codec = grain_codec_new(0);
    (void)pthread_mutex_init(&stream->mutex, NULL);
    (void)pthread_condattr_init(&cond);
    (void)pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&stream->wake, &cond);
    (void)pthread_condattr_destroy(&cond);
    return stream;
}

void nfc_stream_close(struct provider_stream *stream)
{
    struct error err = ERROR_NONE;

    if (stream == NULL)
        return;
    renewer_stop(stream);
    vmdk_stream_close(stream->vmdk);
    nfc_get_free(stream->get);
    if (stream->lease.id != NULL &&
        end_lease(stream->session, stream->records, stream->lease.id, stream->complete, &err) < 0)
        LOG(WARN, "vsphere_nfc_lease_remains", F_STR("lease", stream->lease.id), F_ERR(&err));
    nfc_lease_release(&stream->lease);
    grain_codec_free(stream->codec);
    (void)pthread_cond_destroy(&stream->wake);
    (void)pthread_mutex_destroy(&stream->mutex);
    free(stream);
}

/* A lease that is recorded, ready and being renewed. */
static int open_lease(struct provider_stream *stream, const struct nfc_place *place,
                      struct error *err)
{
    struct provider_session *session = stream->session;
    autofree char *id = NULL;

    if (nfc_abort_recorded(session, place->records, err) < 0 ||
        nfc_lease_start(session, place->snapshot, &id, err) < 0)
        return -1;
    /* From here on closing the stream ends it. */
    stream->lease.id = xstrdup(id);
    if (record_lease(place->records, id, err) < 0)
        return -1;
    nfc_lease_release(&stream->lease);
    if (nfc_lease_wait(session, id, place->disk, &stream->lease, err) < 0)
        return -1;
    LOG(INFO, "vsphere_nfc_lease_ready", F_STR("lease", id), F_STR("key", stream->lease.key));
    return renewer_start(stream, err);
}

static int open_file(struct provider_stream *stream, struct error *err)
{
    struct vmdk_stream_input input = {.read = nfc_get_read};

    if (nfc_get_new(stream->session, &stream->lease, &stream->over, &stream->get, err) < 0)
        return -1;
    input.arg = stream->get;
    if (vmdk_stream_open(&input, &stream->vmdk, err) < 0)
        return explain(stream, err);
    if (vmdk_stream_disk_bytes(stream->vmdk) != stream->size_bytes) {
        return error_set(err, ERR_CORRUPT,
                         "the stream is that of a disk of %" PRIu64
                         " bytes, the VM's hardware says %" PRIu64,
                         vmdk_stream_disk_bytes(stream->vmdk), stream->size_bytes);
    }
    return 0;
}

DEFINE_AUTO(stream, struct provider_stream, nfc_stream_close)

int nfc_stream_open(struct provider_session *session, const struct nfc_place *place,
                    struct provider_stream **out, struct error *err)
{
    CLEANUP(stream_auto) struct provider_stream *stream = stream_new(session, place);

    if (open_lease(stream, place, err) < 0 || open_file(stream, err) < 0)
        return error_wrap(err, "'%.64s' by NFC", place->disk->label);
    *out = STEAL(stream);
    return 0;
}

/* ---- reading ---- */

/* Everything came; is it what the host sent? */
static int complete(struct provider_stream *stream, struct error *err)
{
    struct nfc_sent sent = {.capacity_bytes = stream->size_bytes};

    if (stream->complete)
        return 0;
    if (nfc_get_digest(stream->get, &sent, err) < 0 ||
        nfc_lease_compare(stream->session, &stream->lease, &sent, err) < 0)
        return -1;
    stream->complete = true;
    return 0;
}

static void note_percent(struct provider_stream *stream)
{
    uint64_t of = max_u64(stream->lease.capacity_bytes, stream->size_bytes);
    uint64_t percent = stream->grain.offset / (of / 100 + 1);

    atomic_store(&stream->percent, (unsigned int)min_u64(percent, PERCENT_RUNNING));
}

int nfc_stream_next(struct provider_stream *stream, uint64_t *out_offset, struct error *err)
{
    int rc = 1;

    if (!stream->has_grain && !stream->complete) {
        rc = vmdk_stream_next(stream->vmdk, &stream->grain, err);
        if (rc < 0)
            return explain(stream, err);
        stream->has_grain = rc == 1;
    }
    if (stream->has_grain) {
        note_percent(stream);
        *out_offset = stream->grain.offset;
        return 0;
    }
    if (complete(stream, err) < 0)
        return -1;
    *out_offset = stream->size_bytes;
    return 0;
}

static void add_grain(struct provider_parcel *parcel, const struct vmdk_grain *grain)
{
    size_t needed = parcel->size + PARCEL_HEAD + grain->packed.size;
    uint8_t *at;

    if (needed > parcel->room) {
        parcel->room = needed + needed / 2;
        parcel->data = xrealloc(parcel->data, parcel->room);
    }
    at = parcel->data + parcel->size;
    put_le64(at, grain->offset);
    put_le32(at + 8, (uint32_t)grain->length);
    put_le32(at + 12, (uint32_t)grain->packed.size);
    memcpy(at + PARCEL_HEAD, grain->packed.data, grain->packed.size);
    parcel->size = needed;
}

/* Grains are aligned and at most PROVIDER_PARCEL_BYTES long: none reaches over `end`. */
int nfc_stream_fetch(struct provider_stream *stream, uint64_t end, struct provider_parcel *out,
                     struct error *err)
{
    uint64_t next = 0;

    static_assert(VMDK_GRAIN_SECTORS_MAX * VMDK_SECTOR <= PROVIDER_PARCEL_BYTES,
                  "a grain fits a parcel");
    out->size = 0;
    while (nfc_stream_next(stream, &next, err) == 0) {
        if (next >= end)
            return 0;
        add_grain(out, &stream->grain);
        stream->has_grain = false;
        /* Whether more follows is asked for when it matters: it may take a while to come. */
        if (stream->grain.offset + stream->grain.length == end && end < stream->size_bytes)
            return 0;
    }
    return -1;
}

int nfc_stream_decode(struct provider_stream *stream, const struct provider_parcel *parcel,
                      uint64_t offset, uint8_t *buffer, size_t length, struct error *err)
{
    size_t at = 0;

    while (at < parcel->size) {
        const uint8_t *head = parcel->data + at;
        uint64_t inside = get_le64(head) - offset;
        size_t bytes = get_le32(head + 8);
        struct grain_packed packed = {.data = head + PARCEL_HEAD, .size = get_le32(head + 12)};
        assert(get_le64(head) >= offset && range_is_inside(inside, bytes, length));
        if (vmdk_grain_inflate(stream->codec, vmdk_stream_grain_bytes(stream->vmdk), &packed,
                               buffer + inside, bytes, err) < 0)
            return error_wrap(err, "the disk's stream at offset %" PRIu64, get_le64(head));
        at += PARCEL_HEAD + packed.size;
    }
    return 0;
}
