/* See copy.h; the threads and locks are described in copy_run.h. This is the coordinator: set up,
 * the loop of the caller's thread, the end. */
#include "services/exporter/engine/copy.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/exporter/engine/copy_run.h"

#define CHUNK_BYTES_MAX   (64 * MIB) /* unit.holes has a bit per piece */
#define READERS_START     4U         /* over a fast network more do not help */
#define TICK_MS           100
#define TUNE_MS           500   /* throughput is looked at that often */
#define TUNE_HOLD_MS      10000 /* after errors, or when one more reader brought nothing */
#define TUNE_GAIN_PERCENT 8U
#define CHECKPOINT_MS     2000
#define RESTART_MS        500 /* before a stream that broke is asked for again; then longer */
#define WAITING_PERCENT   30U /* of the readers' time: then it is not the source that limits */

static_assert(CHUNK_BYTES_MAX / SINK_PIECE_BYTES <= 64, "a unit's holes fit 64 bits");
/* NOLINTNEXTLINE(misc-redundant-expression): that they are the same is what it asserts */
static_assert(SINK_PIECE_BYTES == LEAF_BYTES, "a piece is a leaf");

/* What the coordinator remembers between ticks. */
struct tuning {
    int64_t last_ms;
    int64_t hold_until_ms;
    bool probing; /* the last change was one more reader */
    uint64_t transferred;
    uint64_t best_rate; /* before that */
    uint64_t readers_wait, rate_wait, target_wait, write, cpu;
    const char *limited_by;
};

struct threads {
    struct copy_reader readers[COPY_READERS_MAX];
    pthread_t workers[COPY_WORKERS_MAX];
    unsigned int worker_count;
};

/* ---- set up ---- */

static int options_check(const struct copy_options *options, uint64_t size_bytes, struct error *err)
{
    assert(options->output_count > 0 && options->output_count <= COPY_OUTPUTS_MAX);
    assert(options->readers > 0 && options->readers <= COPY_READERS_MAX);
    assert(options->journal_path == NULL || options->identity != NULL);
    assert(options->follower == NULL ||
           (options->output_count == 1 && options->journal_path != NULL));
    if (options->chunk_bytes == 0 || options->chunk_bytes % SINK_PIECE_BYTES != 0 ||
        options->chunk_bytes > CHUNK_BYTES_MAX) {
        return error_set(err, ERR_INVALID, "chunk size %" PRIu64 " is not 1 to 64 MiB in whole MiB",
                         options->chunk_bytes);
    }
    if (size_bytes == 0 || size_bytes % 512 != 0) {
        return error_set(err, ERR_INVALID,
                         "disk size %" PRIu64 " is not a positive multiple of 512 bytes",
                         size_bytes);
    }
    assert(options->base_leaves == NULL ||
           (options->hash && leaves_disk_bytes(options->base_leaves) == size_bytes));
    assert(options->changed == NULL || options->base_leaves != NULL);
    return 0;
}

static void locks_init(struct copy_run *run)
{
    pthread_rwlockattr_t gate;
    pthread_condattr_t cond;

    (void)pthread_mutex_init(&run->mutex, NULL);
    (void)pthread_mutex_init(&run->claim_mutex, NULL);
    /* Or the workers, one of which always writes, would never let a checkpoint in. */
    (void)pthread_rwlockattr_init(&gate);
    (void)pthread_rwlockattr_setkind_np(&gate, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    (void)pthread_rwlock_init(&run->gate, &gate);
    (void)pthread_rwlockattr_destroy(&gate);
    (void)pthread_condattr_init(&cond);
    (void)pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&run->work, &cond);
    (void)pthread_cond_init(&run->free, &cond);
    (void)pthread_cond_init(&run->wake, &cond);
    (void)pthread_condattr_destroy(&cond);
}

static struct copy_run *run_new(const struct copy_options *options)
{
    struct copy_run *run = xcalloc(1, sizeof *run);

    run->options = options;
    run->checkpoint_bytes = options->checkpoint_bytes;
    if (run->checkpoint_bytes == 0) {
        run->checkpoint_bytes =
            options->journal_path == NULL ? COPY_FLUSH_BYTES : COPY_CHECKPOINT_BYTES;
    }
    run->size_bytes = options->frozen->disks[options->disk_index].size_bytes;
    run->chunk_count = round_up_u64(run->size_bytes, options->chunk_bytes) / options->chunk_bytes;
    for (size_t i = 0; i < options->output_count; i++) {
        bool ordered = (options->outputs[i].format->flags & SINK_ORDERED) != 0;
        run->ordered = run->ordered || ordered;
        run->unordered = run->unordered || !ordered;
        run->needs_base = run->needs_base || options->outputs[i].backing == NULL;
    }
    assert(options->changed == NULL || !run->needs_base || options->base_image != NULL);
    run->queue_last = &run->queue_first;
    if (options->provider->disk_extents != NULL && !options->frozen->forward_only) {
        run->extents.items = xcalloc(COPY_EXTENTS_MAX, sizeof *run->extents.items);
        run->extents.count_max = COPY_EXTENTS_MAX;
    }
    locks_init(run);
    return run;
}

static void chunks_free(struct copy_chunk *list)
{
    while (list != NULL) {
        struct copy_chunk *next = list->next;
        free(list);
        list = next;
    }
}

/* No thread of the run is left. */
static void run_free(struct copy_run *run)
{
    while (run->queue_first != NULL) {
        struct copy_piece *piece = run->queue_first;
        run->queue_first = piece->next;
        copy_piece_free(piece);
    }
    for (size_t i = 0; i < COPY_ROOM_MAX; i++)
        copy_piece_free(run->waiting[i]);
    for (size_t i = 0; i < run->buffer_count; i++)
        free(run->buffers[i]);
    chunks_free(run->open);
    chunks_free(run->done);
    for (size_t i = 0; i < run->options->output_count; i++)
        run->options->outputs[i].format->close(run->sinks[i]);
    leaves_free(run->leaves);
    journal_close(run->journal);
    free(run->resumed);
    free(run->extents.items);
    (void)pthread_cond_destroy(&run->work);
    (void)pthread_cond_destroy(&run->free);
    (void)pthread_cond_destroy(&run->wake);
    (void)pthread_rwlock_destroy(&run->gate);
    (void)pthread_mutex_destroy(&run->mutex);
    (void)pthread_mutex_destroy(&run->claim_mutex);
    free(run);
}
DEFINE_AUTO(run, struct copy_run, run_free)

/* ---- threads ---- */

static unsigned int worker_count(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    /* Two at least: one may wait for the disk. */
    return cpus < 2 ? 2 : cpus > COPY_WORKERS_MAX ? COPY_WORKERS_MAX : (unsigned int)cpus;
}

static int thread_start(pthread_t *thread, void *(*entry)(void *), void *arg, struct error *err)
{
    int rc = pthread_create(thread, NULL, entry, arg);

    return rc == 0 ? 0 : error_set_errno(err, rc, "cannot start a thread");
}

static int readers_start(struct copy_run *run, struct threads *threads, unsigned int wanted,
                         struct error *err)
{
    for (unsigned int i = 0; i < wanted; i++) {
        struct copy_reader *reader = &threads->readers[i];
        if (reader->started)
            continue;
        reader->run = run;
        reader->index = i;
        if (thread_start(&reader->thread, copy_reader_main, reader, err) < 0)
            return -1;
        reader->started = true;
    }
    return 0;
}

static int threads_start(struct copy_run *run, struct threads *threads, struct error *err)
{
    bool local = run->options->provider->local;
    unsigned int wanted =
        local || run->options->readers < READERS_START ? run->options->readers : READERS_START;
    unsigned int count = local ? 0 : worker_count();

    run->readers_wanted = wanted;
    run->room = COPY_PIECES_PER_READER * (run->ordered ? run->options->readers : wanted);
    for (unsigned int i = 0; i < count; i++) {
        if (thread_start(&threads->workers[i], copy_worker_main, run, err) < 0)
            return -1;
        threads->worker_count++;
    }
    return readers_start(run, threads, wanted, err);
}

static void threads_join(struct threads *threads)
{
    for (unsigned int i = 0; i < COPY_READERS_MAX; i++) {
        if (threads->readers[i].started)
            (void)pthread_join(threads->readers[i].thread, NULL);
        copy_piece_free(threads->readers[i].piece);
    }
    for (unsigned int i = 0; i < threads->worker_count; i++)
        (void)pthread_join(threads->workers[i], NULL);
}

/* ---- the coordinator's loop ---- */

static uint64_t grown(atomic_uint_fast64_t *counter, uint64_t *last)
{
    uint64_t now = atomic_load(counter);
    uint64_t growth = now - *last;

    *last = now;
    return growth;
}

static const char *limit_name(struct copy_run *run, struct tuning *tuning, int64_t took_ms)
{
    uint64_t wait = grown(&run->times.readers_wait, &tuning->readers_wait);
    uint64_t write = grown(&run->times.write, &tuning->write);
    uint64_t cpu = grown(&run->times.cpu, &tuning->cpu);
    uint64_t rate_wait = grown(&run->times.rate_wait, &tuning->rate_wait);
    uint64_t target_wait = grown(&run->times.target_wait, &tuning->target_wait);
    uint64_t readers_ns = (uint64_t)took_ms * 1000000 * run->readers_wanted;

    if (run->options->provider->local) /* its readers do not wait for workers, they are those */
        wait += write + cpu;
    if (target_wait * 100 >= (uint64_t)took_ms * 1000000 * WAITING_PERCENT)
        return "target"; /* the one that waits holds all others back */
    if (rate_wait > wait && rate_wait * 100 >= readers_ns * WAITING_PERCENT)
        return "rate_limit";
    if (wait * 100 < readers_ns * WAITING_PERCENT)
        return "source";
    return write > cpu ? "disk" : "cpu";
}

static void probe_over(struct tuning *tuning, int64_t hold_until_ms)
{
    tuning->probing = false;
    tuning->hold_until_ms = hold_until_ms;
}

/* Mutex held. The knee: one more reader as long as that brings more, and without the last one that
 * did not. Half of them after errors, as a source that throttles wants it. Fewer when the rate
 * limit is what they wait for. */
static void tune_readers(struct copy_run *run, struct tuning *tuning, uint64_t rate, int64_t now)
{
    bool more = rate * 100 > tuning->best_rate * (100 + TUNE_GAIN_PERCENT);

    if (run->failures > 0) {
        run->failures = 0;
        run->readers_wanted = run->readers_wanted > 2 ? run->readers_wanted / 2 : 1;
        probe_over(tuning, now + TUNE_HOLD_MS);
    } else if (strcmp(tuning->limited_by, "rate_limit") == 0) {
        run->readers_wanted -= run->readers_wanted > 1;
        probe_over(tuning, now + TUNE_MS);
    } else if (tuning->probing && !more) {
        run->readers_wanted--;
        probe_over(tuning, now + TUNE_HOLD_MS);
    } else if ((tuning->probing || now >= tuning->hold_until_ms) &&
               run->readers_wanted < run->options->readers &&
               strcmp(tuning->limited_by, "source") == 0) {
        tuning->probing = true;
        tuning->best_rate = rate;
        run->readers_wanted++;
        (void)pthread_cond_broadcast(&run->free);
    }
}

static void tune(struct copy_run *run, struct tuning *tuning)
{
    int64_t now = clock_mono_ms();
    int64_t took = now - tuning->last_ms;
    uint64_t rate;

    if (took < TUNE_MS)
        return;
    rate = grown(&run->transferred, &tuning->transferred) * 1000 / (uint64_t)took;
    LOCK_SCOPE(&run->mutex);
    tuning->limited_by = limit_name(run, tuning, took);
    tuning->last_ms = now;
    tune_readers(run, tuning, rate, now);
    if (!run->ordered)
        run->room = COPY_PIECES_PER_READER * run->readers_wanted;
}

static void report(struct copy_run *run, const struct tuning *tuning)
{
    struct copy_progress progress = {
        .bytes_transferred = atomic_load(&run->transferred),
        .limited_by = tuning->limited_by,
    };

    if (run->options->progress == NULL)
        return;
    {
        LOCK_SCOPE(&run->mutex);
        progress.bytes_done = run->bytes_done;
        progress.readers = run->readers_wanted;
    }
    run->options->progress(run->options->arg, &progress);
}

/* Waits for the next tick; true when there is enough for a checkpoint. */
static bool wait_tick(struct copy_run *run, int64_t tick_ms, int64_t checkpoint_ms, bool *out_ended)
{
    LOCK_SCOPE(&run->mutex);
    for (;;) {
        int64_t now = clock_mono_ms();
        bool due =
            run->done != NULL && (run->done_bytes >= run->checkpoint_bytes || now >= checkpoint_ms);
        *out_ended = run->ended;
        if (run->ended || due || now >= tick_ms)
            return due && !run->ended;
        copy_wait_ms(run, &run->wake, tick_ms - now);
    }
}

static void coordinate(struct copy_run *run, struct threads *threads)
{
    int64_t tick_ms = clock_mono_ms() + TICK_MS;
    int64_t checkpoint_ms = clock_mono_ms() + CHECKPOINT_MS;
    struct tuning tuning = {.last_ms = clock_mono_ms(), .limited_by = ""};
    bool ended = false;

    while (!ended) {
        struct error err = ERROR_NONE;
        bool due = wait_tick(run, tick_ms, checkpoint_ms, &ended);
        if (run->options->stopped != NULL && atomic_load(run->options->stopped)) {
            (void)error_set(&err, ERR_CANCELLED, "the copy was stopped");
        } else if (due && copy_checkpoint(run, &err) < 0) {
            copy_fail(run, &err);
        }
        if (due)
            checkpoint_ms = clock_mono_ms() + CHECKPOINT_MS;
        if (clock_mono_ms() >= tick_ms) {
            report(run, &tuning);
            tick_ms = clock_mono_ms() + TICK_MS;
            tune(run, &tuning);
        }
        if (err.code == ERR_NONE)
            (void)readers_start(run, threads, run->readers_wanted, &err);
        if (err.code != ERR_NONE)
            copy_fail(run, &err);
    }
    report(run, &tuning);
}

/* ---- the end ---- */

static bool stop_asked(const struct copy_options *options)
{
    return options->stopped != NULL && atomic_load(options->stopped);
}

/* The source must still be what it was when it was frozen. */
static int compare_mark(const struct copy_options *options, struct error *err)
{
    const struct frozen_disk *disk = &options->frozen->disks[options->disk_index];
    autofree char *mark = NULL;

    for (uint32_t attempt = 0;; attempt++) {
        if (options->provider->disk_mark(options->session, options->frozen, options->disk_index,
                                         &mark, err) == 0)
            break;
        if (!error_is_retryable(err) || attempt >= options->retries_max || stop_asked(options))
            return error_wrap(err, "cannot tell whether the disk changed meanwhile");
        error_clear(err);
        clock_sleep_ms(clock_backoff_ms(attempt, TICK_MS, TUNE_HOLD_MS));
    }
    if (strcmp(mark, disk->mark) != 0) {
        return error_set(
            err, ERR_SOURCE_CHANGED,
            "the disk changed while it was copied: it was '%.100s' and is '%.100s' now", disk->mark,
            mark);
    }
    return 0;
}

static int finish(struct copy_run *run, struct copy_result *out, struct error *err)
{
    const struct copy_options *options = run->options;

    if (compare_mark(options, err) < 0 || copy_checkpoint(run, err) < 0)
        return -1;
    for (size_t i = 0; i < options->output_count; i++) {
        const struct sink_format *format = options->outputs[i].format;
        if (options->may_write != NULL && options->may_write(options->arg, err) < 0)
            return -1;
        if (format->finish(run->sinks[i], err) < 0)
            return error_wrap(err, "'%.200s'", options->outputs[i].path);
        out->file_sha256[i].known = format->file_sha256(run->sinks[i], out->file_sha256[i].hex);
    }
    return 0;
}

static int run_threads(struct copy_run *run, struct error *err)
{
    autofree struct threads *threads = xcalloc(1, sizeof *threads);
    struct error ignored = ERROR_NONE;

    if (run->resumed_bytes == run->size_bytes)
        return 0;
    if (copy_stream_start(run, err) < 0)
        return -1;
    if (threads_start(run, threads, err) < 0) {
        copy_fail(run, err);
    } else {
        coordinate(run, threads);
    }
    threads_join(threads);
    copy_stream_end(run);
    if (run->error.code == ERR_NONE)
        return 0;
    /* What is through need not come again. Whether this works changes nothing about the failure. */
    if (copy_checkpoint(run, &ignored) < 0)
        error_clear(&ignored);
    *err = run->error;
    return -1;
}

/* Where the threads begin. A stream brings everything again, to be compared. */
static void start_from(struct copy_run *run)
{
    bool again = run->options->frozen->forward_only && run->resumed_bytes < run->size_bytes;

    if (again)
        return;
    run->bytes_done = run->resumed_bytes;
    run->data_bytes = run->resumed_data_bytes;
    run->claim_offset = min_u64(run->resumed_prefix * run->options->chunk_bytes, run->size_bytes);
}

static int copy_once(const struct copy_options *options, struct copy_result *out, struct error *err)
{
    CLEANUP(run_auto) struct copy_run *run = NULL;
    struct copy_result result = {0};

    *out = result;
    run = run_new(options);
    if (copy_start(run, err) < 0)
        return -1;
    start_from(run);
    if (run_threads(run, err) < 0 || finish(run, &result, err) < 0)
        return -1;
    result.resumed = run->resumed_bytes > 0;
    result.bytes_resumed = run->resumed_bytes;
    result.bytes_data = run->data_bytes;
    result.bytes_transferred = atomic_load(&run->transferred);
    result.leaves = STEAL(run->leaves);
    result.journal = STEAL(run->journal);
    *out = result;
    return 0;
}

/* False: the copy was stopped meanwhile. */
static bool wait_before_retry(const struct copy_options *options, uint32_t attempt)
{
    int64_t until_ms = clock_mono_ms() + clock_backoff_ms(attempt, RESTART_MS, TUNE_HOLD_MS);

    while (clock_mono_ms() < until_ms) {
        if (stop_asked(options))
            return false;
        clock_sleep_ms(TICK_MS);
    }
    return true;
}

int copy_disk(const struct copy_options *options, struct copy_result *out, struct error *err)
{
    if (options_check(options, options->frozen->disks[options->disk_index].size_bytes, err) < 0)
        return -1;
    for (uint32_t attempt = 0;; attempt++) {
        if (copy_once(options, out, err) == 0)
            return 0;
        /* Readers repeat what they can read again; a stream that broke begins anew. What follows
         * the file has thrown away what it sent: it begins anew with the task's next attempt. */
        if (!options->frozen->forward_only || !error_is_retryable(err) || stop_asked(options) ||
            options->follower != NULL)
            return -1;
        if (attempt >= options->retries_max)
            return error_wrap(err, "given up after %" PRIu32 " streams", attempt + 1);
        LOG(WARN, "copy_stream_restarts", F_STR("output", options->outputs[0].path), F_ERR(err));
        error_clear(err);
        if (!wait_before_retry(options, attempt))
            return error_set(err, ERR_CANCELLED, "the copy was stopped");
    }
}

void copy_result_release(struct copy_result *result)
{
    leaves_free(result->leaves);
    journal_close(result->journal);
    *result = (struct copy_result){0};
}
