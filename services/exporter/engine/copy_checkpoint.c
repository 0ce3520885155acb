/* Where a copy goes on from: opening journal and outputs, and making checkpoints. See copy_run.h.
 */
#include <inttypes.h>
#include <string.h>

#include "common/log.h"
#include "services/exporter/engine/copy_run.h"

#define OUTPUTS_TEXT_BYTES_MAX JOURNAL_IDENTITY_BYTES_MAX

bool copy_chunk_is_resumed(const struct copy_run *run, uint64_t chunk)
{
    return run->resumed != NULL && (run->resumed[chunk / 8] >> (chunk % 8) & 1) != 0;
}

uint64_t copy_chunks_bytes(const struct copy_run *run, const struct journal_chunks *chunks)
{
    uint64_t chunk_bytes = run->options->chunk_bytes;
    uint64_t end = min_u64((chunks->first + chunks->count) * chunk_bytes, run->size_bytes);

    return end - chunks->first * chunk_bytes;
}

static uint64_t leaf_index(const struct copy_run *run, uint64_t chunk)
{
    return chunk * (run->options->chunk_bytes / LEAF_BYTES);
}

/* ---- resuming ---- */

static void replay_leaves(struct copy_run *run, const struct journal_chunks *chunks,
                          const uint8_t *leaves)
{
    uint64_t bytes = copy_chunks_bytes(run, chunks);
    size_t first = (size_t)leaf_index(run, chunks->first);
    uint8_t zero[DIGEST_BYTES];

    for (uint64_t at = 0; at < bytes; at += LEAF_BYTES) {
        size_t i = (size_t)(at / LEAF_BYTES);
        if (leaves == NULL)
            leaf_digest_zero((size_t)min_u64(LEAF_BYTES, bytes - at), zero);
        leaves_set(run->leaves, first + i, leaves == NULL ? zero : leaves + i * DIGEST_BYTES);
    }
}

/* Chunks that were noted twice are taken once; ordered outputs can only go on behind a gap-free
 * start. */
static int replay_take(void *arg, const struct journal_chunks *chunks, const uint8_t *leaves,
                       struct error *err)
{
    struct copy_run *run = arg;

    (void)err;
    if (run->ordered && chunks->first != run->resumed_prefix)
        return 0;
    for (uint64_t i = 0; i < chunks->count; i++) {
        if (copy_chunk_is_resumed(run, chunks->first + i))
            return 0;
    }
    for (uint64_t i = chunks->first; i < chunks->first + chunks->count; i++)
        run->resumed[i / 8] = (uint8_t)(run->resumed[i / 8] | 1U << (i % 8));
    if (chunks->first == run->resumed_prefix)
        run->resumed_prefix += chunks->count;
    run->resumed_bytes += copy_chunks_bytes(run, chunks);
    run->resumed_data_bytes += chunks->data_bytes;
    if (run->options->hash)
        replay_leaves(run, chunks, leaves);
    return 0;
}

static void forget_resumed(struct copy_run *run)
{
    free(STEAL(run->resumed));
    run->resumed_prefix = 0;
    run->resumed_bytes = 0;
    run->resumed_data_bytes = 0;
    leaves_free(STEAL(run->leaves));
    if (run->options->hash)
        run->leaves = leaves_new(run->size_bytes);
}

static int replay(struct copy_run *run, struct error *err)
{
    run->resumed = xcalloc(run->chunk_count / 8 + 1, 1);
    return journal_replay(run->journal, replay_take, run, err);
}

static int open_sinks(struct copy_run *run, bool resume, struct error *err)
{
    const struct copy_options *options = run->options;

    for (size_t i = 0; i < options->output_count; i++) {
        const struct copy_output *output = &options->outputs[i];
        struct sink_options sink = {
            .path = output->path,
            .file_offset = output->file_offset,
            .size_bytes = run->size_bytes,
            .file_name = output->file_name,
            .uuid = options->uuid,
            .compression_level = output->compression_level,
            .compression = output->compression,
            .backing = output->backing,
            .backing_root = output->backing_root,
            .resume = resume ? journal_state(run->journal, i) : NULL,
            .resume_offset = min_u64(run->resumed_prefix * options->chunk_bytes, run->size_bytes),
            .sent_on = options->follower != NULL,
        };
        if (output->format->open(&sink, &run->sinks[i], err) < 0)
            return -1;
    }
    return 0;
}

static void close_sinks(struct copy_run *run)
{
    for (size_t i = 0; i < run->options->output_count; i++) {
        run->options->outputs[i].format->close(run->sinks[i]);
        run->sinks[i] = NULL;
    }
}

/* Outputs that do not fit the journal are no reason to fail: the bytes are read again. */
static bool is_lost(const struct error *err)
{
    return err->code == ERR_CORRUPT || err->code == ERR_NOT_FOUND || err->code == ERR_INVALID;
}

/* Up to where in the file all is final when the disk is through up to that chunk. */
static uint64_t final_bytes(struct copy_run *run, uint64_t chunk)
{
    uint64_t offset = min_u64(chunk * run->options->chunk_bytes, run->size_bytes);

    return run->options->outputs[0].format->final(run->sinks[0], offset);
}

static int follow(struct copy_run *run, struct error *err)
{
    const struct copy_follower *follower = run->options->follower;
    bool appends = (run->options->outputs[0].format->flags & SINK_APPENDS) != 0;
    uint64_t chunk = 0;
    bool anew;

    if (follower == NULL)
        return 0;
    /* The records of chunks stand there in any order: the prefix may reach farther than noticed. */
    while (chunk < run->chunk_count && copy_chunk_is_resumed(run, chunk))
        chunk++;
    run->claimed = chunk;
    /* Where pieces are appended the first one may come late. */
    anew = run->resumed == NULL || (chunk == 0 && !appends);
    return follower->begin(follower->arg, anew ? 0 : final_bytes(run, chunk), err);
}

static int start_from_journal(struct copy_run *run, struct error *err)
{
    if (journal_state_count(run->journal) == run->options->output_count) {
        if (replay(run, err) == 0 && open_sinks(run, true, err) == 0)
            return 0;
        if (!is_lost(err))
            return -1;
        LOG(WARN, "copy_starts_over", F_STR("output", run->options->outputs[0].path), F_ERR(err));
        error_clear(err);
        close_sinks(run);
        forget_resumed(run);
    }
    if (journal_restart(run->journal, err) < 0)
        return -1;
    return open_sinks(run, false, err);
}

/* "raw disk-0.raw 0 - -\n..." */
static int outputs_text(const struct copy_options *options, char **out, struct error *err)
{
    auto_strbuf sb;

    strbuf_init(&sb, OUTPUTS_TEXT_BYTES_MAX);
    for (size_t i = 0; i < options->output_count; i++) {
        const struct copy_output *output = &options->outputs[i];
        strbuf_addf(&sb, "%s %s %d %s %s\n", output->format->name, output->file_name,
                    output->compression_level,
                    output->compression == NULL ? "-" : output->compression,
                    output->backing == NULL ? "-" : output->backing);
    }
    return strbuf_finish(&sb, out, err);
}

int copy_start(struct copy_run *run, struct error *err)
{
    const struct copy_options *options = run->options;
    autofree char *outputs = NULL;
    struct journal_spec spec = {
        .identity = options->identity,
        .size_bytes = run->size_bytes,
        .chunk_bytes = options->chunk_bytes,
        .hash = options->hash,
    };

    if (options->hash)
        run->leaves = leaves_new(run->size_bytes);
    if (options->journal_path == NULL)
        return open_sinks(run, false, err);
    if (outputs_text(options, &outputs, err) < 0)
        return -1;
    spec.outputs = outputs;
    if (journal_open(options->journal_path, &spec, JOURNAL_LOCK_WAIT_MS, options->stopped,
                     &run->journal, err) < 0)
        return -1;
    return start_from_journal(run, err) < 0 ? -1 : follow(run, err);
}

/* ---- checkpoints ---- */

static int compare_chunks(const void *a, const void *b)
{
    const struct copy_chunk *const *left = a;
    const struct copy_chunk *const *right = b;

    return (*left)->chunks.first < (*right)->chunks.first ? -1 : 1;
}

static bool can_merge(const struct copy_run *run, const struct journal_chunks *a,
                      const struct journal_chunks *b)
{
    uint64_t leaves = leaf_index(run, a->count + b->count);

    return a->first + a->count == b->first && a->zero == b->zero &&
           (a->zero || leaves <= JOURNAL_LEAVES_PER_RECORD);
}

static void note(struct copy_run *run, const struct journal_chunks *chunks)
{
    const uint8_t *leaves = NULL;

    if (run->options->hash && !chunks->zero)
        leaves = leaves_get(run->leaves, (size_t)leaf_index(run, chunks->first));
    journal_add(run->journal, chunks, leaves);
}

/* Notes the chunks of the list in rising order, neighbours together, and frees it. */
static void note_take(struct copy_run *run, struct copy_chunk *list)
{
    autofree struct copy_chunk **sorted = NULL;
    struct journal_chunks open = {0};
    size_t count = 0;

    for (struct copy_chunk *chunk = list; chunk != NULL; chunk = chunk->next)
        count++;
    if (count == 0)
        return;
    sorted = xcalloc(count, sizeof(struct copy_chunk *));
    count = 0;
    for (struct copy_chunk *chunk = list; chunk != NULL; chunk = chunk->next)
        sorted[count++] = chunk;
    qsort(sorted, count, sizeof(struct copy_chunk *), compare_chunks);
    open = sorted[0]->chunks;
    for (size_t i = 1; i < count; i++) {
        if (can_merge(run, &open, &sorted[i]->chunks)) {
            open.count += sorted[i]->chunks.count;
            open.data_bytes += sorted[i]->chunks.data_bytes;
            continue;
        }
        note(run, &open);
        open = sorted[i]->chunks;
    }
    note(run, &open);
    for (size_t i = 0; i < count; i++)
        free(sorted[i]);
}

/* Mutex held: all chunks before this one are through. */
static uint64_t chunks_through(const struct copy_run *run)
{
    uint64_t first = run->claimed;

    for (const struct copy_chunk *chunk = run->open; chunk != NULL; chunk = chunk->next)
        first = min_u64(first, chunk->chunks.first);
    return first;
}

/* The chunks that are done, the outputs' states, and how much of the followed one is final, at one
 * moment. */
static int snapshot(struct copy_run *run, struct copy_chunk **out_done, struct strbuf *states,
                    uint64_t *out_final, struct error *err)
{
    uint64_t through;
    int rc = 0;

    (void)pthread_rwlock_wrlock(&run->gate);
    {
        LOCK_SCOPE(&run->mutex);
        *out_done = STEAL(run->done);
        run->done_bytes = 0;
        through = chunks_through(run);
    }
    if (run->options->follower != NULL)
        *out_final = final_bytes(run, through);
    for (size_t i = 0; i < run->options->output_count && rc == 0; i++) {
        const struct copy_output *output = &run->options->outputs[i];
        rc = output->format->state(run->sinks[i], &states[i], err);
        if (rc < 0)
            (void)error_wrap(err, "'%.200s'", output->path);
    }
    (void)pthread_rwlock_unlock(&run->gate);
    return rc;
}

static int sync_sinks(struct copy_run *run, struct error *err)
{
    const struct copy_options *options = run->options;

    if (options->may_write != NULL && options->may_write(options->arg, err) < 0)
        return -1;
    for (size_t i = 0; i < options->output_count; i++) {
        if (options->outputs[i].format->sync(run->sinks[i], err) < 0)
            return error_wrap(err, "'%.200s'", options->outputs[i].path);
    }
    return 0;
}

/* Without journal nobody will ask for them; or a checkpoint would be due for ever. */
static void forget_done(struct copy_run *run)
{
    struct copy_chunk *done;

    {
        LOCK_SCOPE(&run->mutex);
        done = STEAL(run->done);
        run->done_bytes = 0;
    }
    while (done != NULL) {
        struct copy_chunk *next = done->next;
        free(done);
        done = next;
    }
}

int copy_checkpoint(struct copy_run *run, struct error *err)
{
    size_t count = run->options->output_count;
    struct strbuf states[COPY_OUTPUTS_MAX];
    const char *texts[COPY_OUTPUTS_MAX];
    struct copy_chunk *done = NULL;
    uint64_t final = 0;
    int rc;

    if (run->journal == NULL) {
        forget_done(run);
        return copy_ended(run) ? 0 : sync_sinks(run, err); /* finish syncs the rest */
    }
    for (size_t i = 0; i < count; i++)
        strbuf_init(&states[i], SINK_STATE_BYTES_MAX);
    rc = snapshot(run, &done, states, &final, err);
    if (rc == 0)
        rc = sync_sinks(run, err);
    note_take(run, done);
    for (size_t i = 0; i < count; i++) {
        assert(!states[i].overflowed);
        texts[i] = states[i].data;
    }
    if (rc == 0)
        rc = journal_checkpoint(run->journal, texts, count, err);
    if (rc == 0 && run->options->follower != NULL)
        run->options->follower->advance(run->options->follower->arg, final);
    for (size_t i = 0; i < count; i++)
        strbuf_release(&states[i]);
    return rc;
}
