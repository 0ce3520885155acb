/* Progress of running tasks: the newest values, with rate and ETA, at most one message per task
 * and tick; any of them may be lost. */
#include <string.h>

#include "common/clock.h"
#include "common/worker_internal.h"

#define DISK_STATES_MAX 64 /* VM_DISKS_MAX; bus_check refuses more */

void worker_task_progress(struct worker_task *task, const struct worker_progress *progress)
{
    size_t count = min_u64(progress->disk_count, DISK_STATES_MAX);

    LOCK_SCOPE(&task->mutex);
    free(task->progress_disks);
    task->progress_disks =
        count == 0 ? NULL : xmemdup(progress->disks, count * sizeof *progress->disks);
    task->progress = *progress;
    task->progress.disks = task->progress_disks;
    task->progress.disk_count = count;
    task->progress_dirty = true;
}

static void sample(struct worker_task *task)
{
    struct worker_sample now = {clock_mono_ms(), task->progress.bytes_transferred,
                                task->progress.bytes_done};

    if (task->sample_count == WORKER_RATE_SAMPLES) {
        memmove(task->samples, task->samples + 1,
                (WORKER_RATE_SAMPLES - 1) * sizeof task->samples[0]);
        task->sample_count--;
    }
    task->samples[task->sample_count++] = now;
}

/* Over the samples held: bytes read per second, and seconds until the rest is through. */
static void rates(const struct worker_task *task, uint64_t *out_rate, int64_t *out_eta)
{
    const struct worker_sample *first = &task->samples[0];
    const struct worker_sample *last = &task->samples[task->sample_count - 1];
    uint64_t ms = (uint64_t)(last->at_ms - first->at_ms);
    uint64_t left =
        task->progress.bytes_total > last->done ? task->progress.bytes_total - last->done : 0;

    *out_rate = 0;
    *out_eta = -1;
    if (ms == 0 || last->done < first->done || last->transferred < first->transferred)
        return;
    *out_rate = (last->transferred - first->transferred) * 1000 / ms;
    if (last->done > first->done && task->progress.bytes_total > 0) {
        double seconds = (double)left * (double)ms / 1000.0 / (double)(last->done - first->done);
        *out_eta = seconds < 3.0e8 ? (int64_t)(seconds + 0.5) : -1;
    }
}

struct message {
    Hypersdk__V1__TaskProgress body;
    Hypersdk__V1__DiskProgress disks[DISK_STATES_MAX];
    Hypersdk__V1__DiskProgress *pointers[DISK_STATES_MAX];
    struct worker_disk_progress copies[DISK_STATES_MAX];
    char phase[64];
};

static void fill_disks(struct message *m, const struct worker_task *task)
{
    for (size_t i = 0; i < task->progress.disk_count; i++) {
        Hypersdk__V1__DiskProgress *disk = &m->disks[i];
        m->copies[i] = task->progress.disks[i];
        hypersdk__v1__disk_progress__init(disk);
        disk->id = m->copies[i].id;
        disk->file = m->copies[i].file;
        disk->bytes_done = m->copies[i].bytes_done;
        disk->bytes_total = m->copies[i].bytes_total;
        disk->state = (char *)(uintptr_t)(m->copies[i].state == NULL ? "" : m->copies[i].state);
        m->pointers[i] = disk;
    }
    m->body.n_disks = task->progress.disk_count;
    m->body.disks = m->pointers;
}

/* false: nothing new. */
static bool fill(struct message *m, struct worker_task *task)
{
    const char *phase;

    LOCK_SCOPE(&task->mutex);
    if (!task->progress_dirty || task->ended)
        return false;
    task->progress_dirty = false;
    sample(task);
    hypersdk__v1__task_progress__init(&m->body);
    phase = task->phase == NULL ? "" : task->phase;
    (void)snprintf(m->phase, sizeof m->phase, "%s", phase);
    m->body.ref = &task->ref;
    m->body.job_id = task->facts->job_id;
    m->body.phase = m->phase;
    m->body.bytes_transferred = task->progress.bytes_transferred;
    m->body.bytes_done = task->progress.bytes_done;
    m->body.bytes_total = task->progress.bytes_total;
    m->body.limited_by =
        (char *)(uintptr_t)(task->progress.limited_by == NULL ? "" : task->progress.limited_by);
    rates(task, &m->body.rate_bytes_per_second, &m->body.eta_seconds);
    fill_disks(m, task);
    return true;
}

void worker_progress_tick(struct worker *worker)
{
    autofree struct message *m = xmalloc(sizeof *m);

    /* A task leaves the table only under this lock, so it lives while we look at it. */
    LOCK_SCOPE(&worker->tasks_mutex);
    for (size_t i = 0; i < ARRAY_LEN(worker->tasks); i++) {
        struct worker_task *task = worker->tasks[i];
        struct bus_envelope_store store;
        bus_envelope envelope;
        if (task == NULL || !fill(m, task))
            continue;
        worker_task_envelope(task, &envelope, &store);
        envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_PROGRESS;
        envelope.task_progress = &m->body;
        bus_push(worker->pusher, &envelope); /* never blocks */
    }
}
