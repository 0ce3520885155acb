/* See export_changes.h. Answers come in windows; they are rounded to the MiB of the leaves, because
 * a leaf is the least that is read and compared. */
#include "services/exporter/engine/export_changes.h"

#include "common/autos.h"
#include "common/clock.h"
#include "services/exporter/engine/source.h"
#include "services/exporter/formats/digest.h"

#define CHANGES_EXTENTS_MAX 16384U  /* of one answer: 256 KiB */
#define CHANGES_WINDOWS_MAX 100000U /* answers about one disk, or it hardly gets on */
#define BACKOFF_BASE_MS     200
#define BACKOFF_MAX_MS      10000
#define NAP_MS              50

static uint64_t disk_size(const struct changes_request *request)
{
    return request->frozen->disks[request->disk_index].size_bytes;
}

static void mark(uint8_t *changed, const struct extent *extent)
{
    uint64_t end = round_up_u64(extent->offset + extent->length, LEAF_BYTES) / LEAF_BYTES;

    if (extent->length == 0)
        return;
    for (uint64_t i = extent->offset / LEAF_BYTES; i < end; i++)
        changed[i / 8] = (uint8_t)(changed[i / 8] | 1U << (i % 8));
}

static bool stopped(const struct changes_request *request)
{
    return request->stopped != NULL && atomic_load(request->stopped);
}

static void back_off(const struct changes_request *request, uint32_t attempt)
{
    int64_t until = clock_mono_ms() + clock_backoff_ms(attempt, BACKOFF_BASE_MS, BACKOFF_MAX_MS);

    while (clock_mono_ms() < until && !stopped(request))
        clock_sleep_ms(NAP_MS);
}

static int ask_window(const struct changes_request *request, uint64_t offset,
                      struct extent_list *answer, struct error *err)
{
    const struct changes_query query = {
        .disk_index = request->disk_index, .since = request->since, .offset = offset};

    for (uint32_t attempt = 0;; attempt++) {
        answer->count = 0;
        answer->end = 0;
        if (stopped(request))
            return error_set(err, ERR_CANCELLED, "asking for changed extents was stopped");
        if (request->provider->disk_changes(request->session, request->frozen, &query, answer,
                                            err) == 0)
            break;
        if (!error_is_retryable(err) || attempt >= request->retries_max)
            return -1;
        error_clear(err);
        back_off(request, attempt);
    }
    return extent_list_check(answer, offset, disk_size(request), "the source's list of changes",
                             err);
}

static int ask_all(const struct changes_request *request, uint8_t *changed, struct error *err)
{
    autofree struct extent *items = xcalloc(CHANGES_EXTENTS_MAX, sizeof *items);
    struct extent_list answer = {.items = items, .count_max = CHANGES_EXTENTS_MAX};
    uint64_t at = 0;

    for (uint32_t window = 0; at < disk_size(request); window++) {
        if (window == CHANGES_WINDOWS_MAX)
            return error_set(err, ERR_LIMIT, "the source's list of changes has no end");
        if (ask_window(request, at, &answer, err) < 0)
            return -1;
        for (size_t i = 0; i < answer.count; i++)
            mark(changed, &answer.items[i]);
        at = answer.end;
    }
    return 0;
}

static uint64_t count_bytes(const uint8_t *changed, uint64_t size)
{
    uint64_t bytes = 0;

    for (uint64_t at = 0; at < size; at += LEAF_BYTES) {
        uint64_t i = at / LEAF_BYTES;
        if ((changed[i / 8] >> (i % 8) & 1) != 0)
            bytes += min_u64(LEAF_BYTES, size - at);
    }
    return bytes;
}

int changes_ask(const struct changes_request *request, uint8_t **out, uint64_t *out_bytes,
                struct error *err)
{
    uint64_t size = disk_size(request);
    autofree uint8_t *changed = NULL;

    if (request->provider->disk_changes == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE, "%s does not tell what changed on a disk",
                         request->provider->title);
    }
    if (request->since[0] == '\0') {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "the export before has no change id: change tracking was off, it was made "
                         "without a snapshot, or the VM had older ones");
    }
    changed = xcalloc(round_up_u64(size, LEAF_BYTES) / LEAF_BYTES / 8 + 1, 1);
    if (ask_all(request, changed, err) < 0)
        return -1;
    *out_bytes = count_bytes(changed, size);
    *out = STEAL(changed);
    return 0;
}
