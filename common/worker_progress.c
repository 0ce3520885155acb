/* Progress of running tasks: the newest values, with rate and ETA, at most one message per task
 * and tick; any of them may be lost. */
#include <string.h>

#include "common/clock.h"
#include "common/worker_internal.h"

#define DISK_STATES_MAX 64 /* VM_DISKS_MAX; bus_check refuses more */
#define REPEAT_MS       1000

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
    size_t n = task->sample_count;
    size_t old = 0;

    if (n > 0 && (now.done < task->samples[n - 1].done ||
                  now.transferred < task->samples[n - 1].transferred))
        task->sample_count = 0; /* from the beginning again */
    while (old < task->sample_count && (now.at_ms - task->samples[old].at_ms > WORKER_RATE_MS ||
                                        task->sample_count - old == WORKER_RATE_SAMPLES))
        old++;
    task->sample_count -= old;
    memmove(task->samples, task->samples + old, task->sample_count * sizeof task->samples[0]);
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
    if (ms == 0)
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
    char *texts[2 * DISK_STATES_MAX];
    char phase[WORKER_PHASE_MAX + 1];
};

static void message_release(struct message *m)
{
    for (size_t i = 0; i < 2 * m->body.n_disks; i++)
        free(m->texts[i]);
}

static void fill_disks(struct message *m, const struct worker_task *task)
{
    for (size_t i = 0; i < task->progress.disk_count; i++) {
        Hypersdk__V1__DiskProgress *disk = &m->disks[i];
        const struct worker_disk_progress *from = &task->progress.disks[i];
        hypersdk__v1__disk_progress__init(disk);
        disk->id = m->texts[2 * i] = utf8_clean(from->id, sizeof from->id);
        disk->file = m->texts[2 * i + 1] = utf8_clean(from->file, sizeof from->file);
        disk->bytes_done = from->bytes_done;
        disk->bytes_total = from->bytes_total;
        disk->state = (char *)(uintptr_t)(from->state == NULL ? "" : from->state);
        m->pointers[i] = disk;
    }
    m->body.n_disks = task->progress.disk_count;
    m->body.disks = m->pointers;
}

/* Without news the last values are told again now and then, so that a rate falls when a transfer
 * stands still. */
static bool is_due(const struct worker_task *task, int64_t now_ms)
{
    if (task->ended)
        return false;
    return task->progress_dirty ||
           (task->progress_sent_ms != 0 && now_ms - task->progress_sent_ms >= REPEAT_MS);
}

/* false: nothing to tell. */
static bool fill(struct message *m, struct worker_task *task)
{
    const char *phase;

    LOCK_SCOPE(&task->mutex);
    if (!is_due(task, clock_mono_ms()))
        return false;
    task->progress_dirty = false;
    task->progress_sent_ms = clock_mono_ms();
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

static void push_progress(struct worker *worker, struct worker_task *task, struct message *m)
{
    struct bus_envelope_store store;
    bus_envelope envelope;

    if (!fill(m, task))
        return;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_PROGRESS;
    envelope.task_progress = &m->body;
    bus_push(worker->pusher, &envelope); /* never blocks */
    message_release(m);
}

void worker_progress_tick(struct worker *worker)
{
    autofree struct message *m = xmalloc(sizeof *m);

    /* A task leaves the table only under this lock, so it lives while we look at it. */
    LOCK_SCOPE(&worker->tasks_mutex);
    for (size_t i = 0; i < ARRAY_LEN(worker->tasks); i++) {
        if (worker->tasks[i] != NULL)
            push_progress(worker, worker->tasks[i], m);
    }
}
