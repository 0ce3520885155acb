/* The working side of a copy: zero test, leaf digests, encoding, writing. See copy_run.h. */
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "services/exporter/engine/copy_run.h"

/* ---- pieces and room ---- */

void copy_wait_ms(struct copy_run *run, pthread_cond_t *cond, int64_t ms)
{
    int64_t until_ns = clock_mono_ns() + ms * 1000000;
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};

    (void)pthread_cond_timedwait(cond, &run->mutex, &until);
}

static bool has_room(const struct copy_run *run, uint64_t ticket)
{
    if (run->ordered)
        return ticket < run->next_ticket + run->room;
    return run->alive < run->room;
}

struct copy_piece *copy_piece_new(struct copy_run *run, uint64_t ticket)
{
    struct copy_piece *piece;

    LOCK_SCOPE(&run->mutex);
    if (!run->ended && !has_room(run, ticket)) {
        int64_t start = clock_mono_ns();
        while (!run->ended && !has_room(run, ticket))
            (void)pthread_cond_wait(&run->free, &run->mutex);
        atomic_fetch_add(&run->times.readers_wait, (uint64_t)(clock_mono_ns() - start));
    }
    if (run->ended)
        return NULL;
    run->alive++;
    piece = xcalloc(1, sizeof *piece);
    piece->ticket = ticket;
    return piece;
}

void copy_piece_take_buffer(struct copy_run *run, struct copy_piece *piece)
{
    {
        LOCK_SCOPE(&run->mutex);
        if (run->buffer_count > 0) {
            piece->data = run->buffers[--run->buffer_count];
            return;
        }
        run->memory++;
    }
    piece->data = xalloc_aligned(SINK_PIECE_BYTES);
}

/* Mutex held. Buffers are kept for the next piece, but not beside encoded pieces that wait. */
static void drop_buffer(struct copy_run *run, struct copy_piece *piece)
{
    uint8_t *data = STEAL(piece->data);

    if (data == NULL)
        return;
    if (run->memory <= run->room && run->buffer_count < COPY_ROOM_MAX) {
        run->buffers[run->buffer_count++] = data;
        return;
    }
    run->memory--;
    free(data);
}

void copy_piece_queue(struct copy_run *run, struct copy_piece *piece)
{
    LOCK_SCOPE(&run->mutex);
    *run->queue_last = piece;
    run->queue_last = &piece->next;
    (void)pthread_cond_signal(&run->work);
}

void copy_piece_free(struct copy_piece *piece)
{
    if (piece == NULL)
        return;
    for (size_t i = 0; i < COPY_OUTPUTS_MAX; i++)
        free(piece->blobs[i].data);
    free(piece->data);
    free(piece);
}

/* Mutex held. */
static void end(struct copy_run *run)
{
    run->ended = true;
    (void)pthread_cond_broadcast(&run->work);
    (void)pthread_cond_broadcast(&run->free);
    (void)pthread_cond_broadcast(&run->wake);
}

void copy_fail(struct copy_run *run, const struct error *err)
{
    LOCK_SCOPE(&run->mutex);
    if (run->ended)
        return;
    run->error = *err;
    end(run);
}

bool copy_ended(struct copy_run *run)
{
    LOCK_SCOPE(&run->mutex);
    return run->ended;
}

/* Mutex held. The list is short: what readers hold and what waits for a worker. */
static void open_chunk_remove(struct copy_run *run, const struct copy_chunk *chunk)
{
    struct copy_chunk **link = &run->open;

    while (*link != chunk)
        link = &(*link)->next;
    *link = chunk->next;
}

/* Mutex held: the piece is through all outputs. */
static void piece_done(struct copy_run *run, struct copy_piece *piece)
{
    struct copy_chunk *chunk = piece->chunk;

    run->bytes_done += piece->length;
    if (!piece->zero) {
        chunk->chunks.data_bytes += piece->length;
        run->data_bytes += piece->length;
    }
    if (!piece->zero && !piece->kept && !chunk->compared)
        run->done_bytes += piece->length;
    drop_buffer(run, piece);
    for (size_t i = 0; i < run->options->output_count; i++)
        run->memory -= piece->blobs[i].data != NULL;
    copy_piece_free(piece);
    run->alive--;
    (void)pthread_cond_broadcast(&run->free);
    if (--chunk->pieces_left > 0)
        return;
    open_chunk_remove(run, chunk);
    if (chunk->compared) {
        free(chunk);
    } else {
        chunk->chunks.zero = chunk->chunks.data_bytes == 0;
        chunk->next = run->done;
        run->done = chunk;
    }
    if (run->bytes_done == run->size_bytes) {
        end(run);
    } else if (run->done_bytes >= run->checkpoint_bytes) {
        (void)pthread_cond_signal(&run->wake);
    }
}

/* ---- working on one piece ---- */

/* Of a piece whose bytes were not read: its leaf in the base. */
static void take_base_leaf(struct copy_run *run, struct copy_piece *piece)
{
    size_t index = (size_t)(piece->offset / LEAF_BYTES);
    const uint8_t *leaf = leaves_get(run->options->base_leaves, index);
    uint8_t zero[DIGEST_BYTES];

    leaf_digest_zero((size_t)piece->length, zero);
    piece->zero = memcmp(leaf, zero, DIGEST_BYTES) == 0;
    leaves_set(run->leaves, index, leaf);
}

static int digest(struct copy_run *run, const struct copy_piece *piece, struct error *err)
{
    uint8_t leaf[DIGEST_BYTES];

    for (uint64_t at = 0; at < piece->length; at += LEAF_BYTES) {
        size_t n = (size_t)min_u64(LEAF_BYTES, piece->length - at);
        size_t i;
        if (piece->zero) {
            leaf_digest_zero(n, leaf);
        } else {
            leaf_digest(piece->data + at, n, leaf);
        }
        i = (size_t)((piece->offset + at) / LEAF_BYTES);
        if (!piece->chunk->compared) {
            leaves_set(run->leaves, i, leaf);
        } else if (memcmp(leaves_get(run->leaves, i), leaf, DIGEST_BYTES) != 0) {
            return error_set(err, ERR_SOURCE_CHANGED,
                             "the disk's stream differs from an earlier one of the same snapshot "
                             "in the MiB at offset %" PRIu64,
                             piece->offset + at);
        }
    }
    return 0;
}

/* Are the leaves of the piece those of the base? */
static bool is_same(const struct copy_run *run, const struct copy_piece *piece)
{
    const struct leaves *base = run->options->base_leaves;

    if (base == NULL)
        return false;
    for (uint64_t at = 0; at < piece->length; at += LEAF_BYTES) {
        size_t i = (size_t)((piece->offset + at) / LEAF_BYTES);
        if (memcmp(leaves_get(run->leaves, i), leaves_get(base, i), DIGEST_BYTES) != 0)
            return false;
    }
    return true;
}

/* The output's backing says it already. */
static bool is_inherited(const struct copy_run *run, size_t index, const struct copy_piece *piece)
{
    return piece->same && run->options->outputs[index].backing != NULL;
}

static int write_output(struct copy_run *run, size_t index, const struct copy_piece *piece,
                        struct error *err)
{
    const struct copy_output *output = &run->options->outputs[index];
    const struct sink_format *format = output->format;
    struct sink *sink = run->sinks[index];
    int rc;

    if (is_inherited(run, index, piece))
        return 0;
    if (piece->zero) {
        rc = format->write_zero(sink, piece->offset, piece->length, err);
    } else if (format->encode != NULL) {
        rc = format->write_encoded(sink, piece->offset, &piece->blobs[index], err);
    } else {
        rc = format->write(sink, piece->offset, piece->data, (size_t)piece->length, err);
    }
    return rc < 0 ? error_wrap(err, "'%.200s'", output->path) : 0;
}

static bool is_ordered(const struct copy_run *run, size_t index)
{
    return (run->options->outputs[index].format->flags & SINK_ORDERED) != 0;
}

/* Writes the piece to the ordered outputs, or to the others. */
static int write_outputs(struct copy_run *run, bool ordered, const struct copy_piece *piece,
                         struct error *err)
{
    const struct copy_options *options = run->options;
    int64_t start = clock_mono_ns();
    int rc = 0;

    if (piece->chunk->compared)
        return 0;
    if (options->may_write != NULL && options->may_write(options->arg, err) < 0)
        return -1;
    (void)pthread_rwlock_rdlock(&run->gate);
    for (size_t i = 0; i < options->output_count && rc == 0; i++) {
        if (is_ordered(run, i) == ordered)
            rc = write_output(run, i, piece, err);
    }
    (void)pthread_rwlock_unlock(&run->gate);
    atomic_fetch_add(&run->times.write, (uint64_t)(clock_mono_ns() - start));
    return rc;
}

static int encode(struct copy_run *run, struct copy_piece *piece, struct error *err)
{
    const struct copy_options *options = run->options;
    int64_t start = clock_mono_ns();
    bool still_needed = false;
    size_t blobs = 0;

    for (size_t i = 0; i < options->output_count && !piece->zero; i++) {
        const struct sink_format *format = options->outputs[i].format;
        if (is_inherited(run, i, piece))
            continue;
        if (format->encode == NULL) {
            still_needed = still_needed || is_ordered(run, i);
            continue;
        }
        if (format->encode(run->sinks[i], piece->offset, piece->data, (size_t)piece->length,
                           &piece->blobs[i], err) < 0)
            return error_wrap(err, "'%.200s'", options->outputs[i].path);
        blobs += piece->blobs[i].data != NULL;
    }
    atomic_fetch_add(&run->times.cpu, (uint64_t)(clock_mono_ns() - start));
    LOCK_SCOPE(&run->mutex);
    run->memory += blobs;
    if (!still_needed)
        drop_buffer(run, piece);
    return 0;
}

/* Mutex held on entry and return. Writes what is next in order as long as there is any. */
static int drain(struct copy_run *run, struct error *err)
{
    if (run->draining)
        return 0;
    run->draining = true;
    for (;;) {
        struct copy_piece **slot = &run->waiting[run->next_ticket % run->room];
        struct copy_piece *piece = *slot;
        int rc;
        if (piece == NULL || run->ended)
            break;
        (void)pthread_mutex_unlock(&run->mutex);
        rc = write_outputs(run, true, piece, err);
        (void)pthread_mutex_lock(&run->mutex);
        if (rc < 0)
            return -1; /* draining stays: nobody writes after a failure */
        *slot = NULL;
        run->next_ticket++;
        piece_done(run, piece);
    }
    run->draining = false;
    return 0;
}

/* Everything but the ordered outputs' writes. */
static int process(struct copy_run *run, struct copy_piece *piece, struct error *err)
{
    int64_t start = clock_mono_ns();

    if (piece->kept && piece->data == NULL) {
        take_base_leaf(run, piece);
    } else {
        piece->zero = piece->data == NULL || mem_is_zero(piece->data, (size_t)piece->length);
        if (run->options->hash && digest(run, piece, err) < 0)
            return -1;
    }
    piece->same = is_same(run, piece);
    if (piece->kept && !piece->same) {
        return error_set(err, ERR_CORRUPT,
                         "the earlier export's image '%.200s' does not hold what it should in the "
                         "MiB at offset %" PRIu64 ": verify it, and export with force_full",
                         run->options->base_image->path, piece->offset);
    }
    atomic_fetch_add(&run->times.cpu, (uint64_t)(clock_mono_ns() - start));
    if (run->unordered && write_outputs(run, false, piece, err) < 0)
        return -1;
    return run->ordered && !piece->chunk->compared ? encode(run, piece, err) : 0;
}

int copy_piece_work(struct copy_run *run, struct copy_piece *piece, struct error *err)
{
    if (process(run, piece, err) < 0) {
        copy_piece_free(piece);
        return -1;
    }
    LOCK_SCOPE(&run->mutex);
    if (!run->ordered) {
        piece_done(run, piece);
        return 0;
    }
    run->waiting[piece->ticket % run->room] = piece;
    return drain(run, err);
}

/* NULL: the run has ended. */
static struct copy_piece *next_piece(struct copy_run *run)
{
    struct copy_piece *piece;

    LOCK_SCOPE(&run->mutex);
    while (!run->ended && run->queue_first == NULL)
        (void)pthread_cond_wait(&run->work, &run->mutex);
    if (run->ended)
        return NULL;
    piece = run->queue_first;
    run->queue_first = piece->next;
    if (run->queue_first == NULL)
        run->queue_last = &run->queue_first;
    piece->next = NULL;
    return piece;
}

void *copy_worker_main(void *arg)
{
    struct copy_run *run = arg;
    struct copy_piece *piece;

    while ((piece = next_piece(run)) != NULL) {
        struct error err = ERROR_NONE;
        if (copy_piece_work(run, piece, &err) < 0) {
            copy_fail(run, &err);
            break;
        }
    }
    return NULL;
}
