/* See live.h. */
#include "live.h"

#include <string.h>

#include "common/clock.h"
#include "common/id.h"
#include "common/json.h"

#define STORE_MS 5000 /* the job's row is written this often at most */

struct entry {
    char task_id[65];
    char job_id[65];
    char vm_name[256];
    uint64_t epoch;
    uint8_t token[TOKEN_BYTES];
    uint64_t bytes_done;
    json_t *json;
    bool dirty;
    bool ended;
    int64_t stored_ms;
};

struct live {
    pthread_mutex_t mutex; /* guards all below */
    struct entry *entries[LIVE_TASKS_MAX];
    size_t count;
};

struct live *live_new(void)
{
    struct live *live = xcalloc(1, sizeof *live);

    (void)pthread_mutex_init(&live->mutex, NULL);
    return live;
}

static struct entry *find(struct live *live, const char *task_id)
{
    for (size_t i = 0; i < live->count; i++) {
        if (strcmp(live->entries[i]->task_id, task_id) == 0)
            return live->entries[i];
    }
    return NULL;
}

static void drop(struct live *live, size_t i)
{
    json_decref(live->entries[i]->json);
    free(live->entries[i]);
    live->entries[i] = live->entries[--live->count];
}

void live_lease(struct live *live, const Hypersdk__V1__TaskRef *ref, const char *job_id,
                const char *vm_name)
{
    struct entry *entry;

    if (job_id[0] == '\0' || ref->token.len != TOKEN_BYTES)
        return; /* control tasks have no progress */
    LOCK_SCOPE(&live->mutex);
    entry = find(live, ref->task_id);
    if (entry == NULL) {
        if (live->count == LIVE_TASKS_MAX)
            return; /* no progress shown for this one; nothing else is lost */
        entry = xcalloc(1, sizeof *entry);
        (void)snprintf(entry->task_id, sizeof entry->task_id, "%s", ref->task_id);
        (void)snprintf(entry->job_id, sizeof entry->job_id, "%s", job_id);
        live->entries[live->count++] = entry;
    }
    (void)snprintf(entry->vm_name, sizeof entry->vm_name, "%s", vm_name);
    if (entry->epoch != ref->epoch)
        entry->bytes_done = 0;
    entry->epoch = ref->epoch;
    entry->ended = false;
    memcpy(entry->token, ref->token.data, TOKEN_BYTES);
}

void live_end(struct live *live, const char *task_id)
{
    struct entry *entry;

    LOCK_SCOPE(&live->mutex);
    entry = find(live, task_id);
    if (entry != NULL)
        entry->ended = true;
}

uint64_t live_bytes_done(struct live *live, const char *task_id)
{
    const struct entry *entry;

    LOCK_SCOPE(&live->mutex);
    entry = find(live, task_id);
    return entry == NULL ? 0 : entry->bytes_done;
}

/* ---- the progress document (docs/tasks.md) ---- */

static void set_u64(json_t *object, const char *key, uint64_t value)
{
    (void)json_object_set_new(object, key, json_integer((json_int_t)min_u64(value, INT64_MAX)));
}

static void set_percentage(json_t *object, uint64_t done, uint64_t total)
{
    double percent = (double)min_u64(done, total) * 1000.0 / (double)total;

    if (total > 0)
        (void)json_object_set_new(object, "percentage", json_real((double)(int64_t)percent / 10.0));
}

static json_t *disks_json(const Hypersdk__V1__TaskProgress *progress)
{
    json_t *disks = json_array();

    for (size_t i = 0; i < progress->n_disks; i++) {
        const Hypersdk__V1__DiskProgress *disk = progress->disks[i];
        json_t *one = json_object();
        json_set_text(one, "id", disk->id);
        json_set_text(one, "file", disk->file);
        set_u64(one, "bytes", disk->bytes_done);
        set_u64(one, "total", disk->bytes_total);
        set_percentage(one, disk->bytes_done, disk->bytes_total);
        json_set_text(one, "state", disk->state);
        (void)json_array_append_new(disks, one);
    }
    return disks;
}

static json_t *progress_json(const Hypersdk__V1__TaskProgress *progress)
{
    json_t *json = json_object();
    char now[CLOCK_RFC3339_SIZE];

    clock_rfc3339_now(now);
    json_set_text(json, "job_id", progress->job_id);
    json_set_text(json, "phase", progress->phase);
    set_percentage(json, progress->bytes_done, progress->bytes_total);
    set_u64(json, "bytes_transferred", progress->bytes_transferred);
    set_u64(json, "bytes_done", progress->bytes_done);
    if (progress->bytes_total > 0)
        set_u64(json, "total_bytes", progress->bytes_total);
    set_u64(json, "rate_bytes_per_second", progress->rate_bytes_per_second);
    if (progress->eta_seconds >= 0)
        set_u64(json, "eta_seconds", (uint64_t)progress->eta_seconds);
    json_set_text(json, "limited_by", progress->limited_by);
    json_set_text(json, "updated_at", now);
    (void)json_object_set_new(json, "disks", disks_json(progress));
    return json;
}

void live_progress(struct live *live, const Hypersdk__V1__TaskProgress *progress)
{
    json_t *json = progress_json(progress);
    struct entry *entry;

    LOCK_SCOPE(&live->mutex);
    entry = find(live, progress->ref->task_id);
    if (entry == NULL || entry->ended || entry->epoch != progress->ref->epoch ||
        progress->ref->token.len != TOKEN_BYTES ||
        memcmp(entry->token, progress->ref->token.data, TOKEN_BYTES) != 0 ||
        strcmp(entry->job_id, progress->job_id) != 0) {
        json_decref(json);
        return;
    }
    json_decref(entry->json);
    entry->json = json;
    entry->dirty = true;
    entry->bytes_done = max_u64(entry->bytes_done, progress->bytes_done);
}

size_t live_take(struct live *live, struct live_update *out, size_t max)
{
    int64_t now = clock_mono_ms();
    size_t taken = 0;

    LOCK_SCOPE(&live->mutex);
    for (size_t i = 0; i < live->count && taken < max;) {
        struct entry *entry = live->entries[i];
        if (entry->dirty) {
            struct live_update *update = &out[taken++];
            (void)snprintf(update->job_id, sizeof update->job_id, "%s", entry->job_id);
            (void)snprintf(update->vm_name, sizeof update->vm_name, "%s", entry->vm_name);
            update->json = json_deep_copy(entry->json);
            update->store = entry->ended || now - entry->stored_ms >= STORE_MS;
            if (update->store)
                entry->stored_ms = now;
            entry->dirty = false;
        }
        if (entry->ended) {
            drop(live, i);
        } else {
            i++;
        }
    }
    return taken;
}
