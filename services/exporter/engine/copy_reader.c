/* The reading side of a copy: claiming units of the disk, reading them with retries, filling
 * pieces. See copy_run.h. */
#include <inttypes.h>
#include <string.h>

#include "common/clock.h"
#include "services/exporter/engine/copy_run.h"

#define BACKOFF_BASE_MS 200
#define ROOM_POLL_MS    20
#define BACKOFF_MAX_MS  10000 /* a source that restarts needs some 10 s */

/* ---- the reader's source ---- */

/* Before a retry: the coordinator hears of the failure. false: the run has ended. */
static bool wait_backoff(void *arg, uint32_t attempt)
{
    struct copy_run *run = arg;
    int64_t until = clock_mono_ms() + clock_backoff_ms(attempt, BACKOFF_BASE_MS, BACKOFF_MAX_MS);

    LOCK_SCOPE(&run->mutex);
    run->failures++;
    (void)pthread_cond_signal(&run->wake);
    while (!run->ended) {
        int64_t left = until - clock_mono_ms();
        if (left <= 0)
            return true;
        copy_wait_ms(run, &run->free, left);
    }
    return false;
}

static struct source *source_open(struct copy_run *run)
{
    const struct copy_options *options = run->options;
    struct source_retry retry = {
        .retries_max = options->retries_max, .wait = wait_backoff, .arg = run};
    struct source *source = source_of_provider(options->provider, options->session, options->frozen,
                                               options->disk_index);

    if (options->wrap != NULL)
        source = options->wrap(source, options->wrap_arg);
    source = source_with_rate_take(source, options->rate, &run->ended, &run->times.rate_wait);
    return source_with_retry_take(source, &retry);
}

/* ---- claiming ---- */

/* Makes the extents cover the claim's offset. */
static int extents_fetch(struct copy_reader *reader, struct error *err)
{
    struct copy_run *run = reader->run;
    struct source *source = reader->source;
    uint64_t from = run->claim_offset;

    if (run->extents.items == NULL || run->extents.end > from)
        return 0;
    run->extent_next = 0;
    if (source->ops->extents(source, from, run->size_bytes - from, &run->extents, err) == 0) {
        return extent_list_check(&run->extents, from, run->size_bytes,
                                 "the source's map of used extents", err);
    }
    run->extents.count = 0;
    run->extents.end = 0;
    if (err->code != ERR_NOT_AVAILABLE)
        return -1;
    error_clear(err); /* everything is read */
    free(STEAL(run->extents.items));
    return 0;
}

/* Is the range known to be unallocated? Ranges are asked for in rising order. */
static bool is_hole(struct copy_run *run, uint64_t offset, uint64_t length)
{
    if (run->stream != NULL)
        return offset + length <= run->stream_next;
    if (run->extents.items == NULL || offset + length > run->extents.end)
        return false;
    while (run->extent_next < run->extents.count) {
        const struct extent *extent = &run->extents.items[run->extent_next];
        if (extent->offset + extent->length > offset)
            return extent->offset >= offset + length;
        run->extent_next++;
    }
    return true;
}

/* Is the piece at offset known to be what it is in the base? */
static bool is_kept(const struct copy_run *run, uint64_t offset)
{
    const uint8_t *changed = run->options->changed;
    uint64_t leaf = offset / LEAF_BYTES;

    return changed != NULL && (changed[leaf / 8] >> (leaf % 8) & 1) == 0;
}

static struct copy_chunk *chunk_new(struct copy_run *run, uint64_t first, uint64_t count,
                                    bool one_piece)
{
    struct copy_chunk *chunk = xcalloc(1, sizeof *chunk);

    chunk->chunks = (struct journal_chunks){.first = first, .count = count};
    chunk->compared = copy_chunk_is_resumed(run, first);
    chunk->pieces_left =
        one_piece
            ? 1
            : (size_t)(round_up_u64(copy_chunks_bytes(run, &chunk->chunks), SINK_PIECE_BYTES) /
                       SINK_PIECE_BYTES);
    LOCK_SCOPE(&run->mutex);
    chunk->next = run->open;
    run->open = chunk;
    run->claimed = first + count;
    return chunk;
}

/* How many whole chunks from this one on are holes, all of them resumed ones or none. */
static uint64_t count_hole_chunks(struct copy_run *run, uint64_t first)
{
    bool resumed = copy_chunk_is_resumed(run, first);
    uint64_t count = 0;

    while (count < COPY_ZERO_CHUNKS_MAX && first + count < run->chunk_count &&
           copy_chunk_is_resumed(run, first + count) == resumed) {
        struct journal_chunks one = {.first = first + count, .count = 1};
        if (!is_hole(run, one.first * run->options->chunk_bytes, copy_chunks_bytes(run, &one)))
            break;
        count++;
    }
    return count;
}

static void unit_of_chunk(struct copy_run *run, struct copy_unit *unit)
{
    uint64_t chunk_bytes = run->options->chunk_bytes;
    uint64_t chunk = run->claim_offset / chunk_bytes;
    uint64_t chunk_end = min_u64((chunk + 1) * chunk_bytes, run->size_bytes);
    uint64_t pieces;

    if (run->claim_chunk == NULL)
        run->claim_chunk = chunk_new(run, chunk, 1, false);
    unit->chunk = run->claim_chunk;
    unit->length = chunk_end - run->claim_offset;
    if (run->ordered)
        unit->length = min_u64(unit->length, COPY_ORDERED_UNIT_MAX);
    if (run->stream != NULL)
        unit->length = min_u64(unit->length, SINK_PIECE_BYTES);
    pieces = round_up_u64(unit->length, SINK_PIECE_BYTES) / SINK_PIECE_BYTES;
    for (uint64_t i = 0; i < pieces; i++) {
        uint64_t at = i * SINK_PIECE_BYTES;
        if (is_hole(run, unit->offset + at, min_u64(SINK_PIECE_BYTES, unit->length - at))) {
            unit->holes |= UINT64_C(1) << i;
        } else if (is_kept(run, unit->offset + at)) {
            unit->kept |= UINT64_C(1) << i;
        }
    }
    run->claim_ticket += pieces;
    if (unit->offset + unit->length == chunk_end)
        run->claim_chunk = NULL;
}

/* Bytes that readers have claimed and that are not in the ordered output yet. */
static uint64_t claimed_bytes(struct copy_run *run)
{
    LOCK_SCOPE(&run->mutex);
    return run->ordered ? (run->claim_ticket - run->next_ticket) * SINK_PIECE_BYTES : 0;
}

/* Until the follower has room for the next chunk, before it is claimed: so whatever is claimed gets
 * through, and what is through gives the follower more to take. false: the run has ended, or err.
 */
static bool wait_for_room(struct copy_run *run, struct error *err)
{
    const struct copy_follower *follower = run->options->follower;
    uint64_t end = min_u64(run->claim_offset + run->options->chunk_bytes, run->size_bytes);
    bool room = follower == NULL || run->claim_chunk != NULL; /* the rest of a claimed one */

    while (!room) {
        int64_t start = clock_mono_ns();
        if (follower->has_room(follower->arg, end, claimed_bytes(run) + end - run->claim_offset,
                               &room, err) < 0)
            return false;
        if (room)
            break;
        LOCK_SCOPE(&run->mutex);
        if (run->ended)
            return false;
        copy_wait_ms(run, &run->free, ROOM_POLL_MS);
        atomic_fetch_add(&run->times.target_wait, (uint64_t)(clock_mono_ns() - start));
    }
    return true;
}

/* The next unit into reader->unit; false: there is none, or the run has ended, or err. */
static bool claim(struct copy_reader *reader, struct error *err)
{
    struct copy_run *run = reader->run;
    uint64_t chunk_bytes = run->options->chunk_bytes;
    struct copy_unit unit = {0};

    LOCK_SCOPE(&run->claim_mutex);
    while (run->stream == NULL && run->claim_chunk == NULL && run->claim_offset < run->size_bytes &&
           copy_chunk_is_resumed(run, run->claim_offset / chunk_bytes))
        run->claim_offset = min_u64(run->claim_offset + chunk_bytes, run->size_bytes);
    if (run->claim_offset >= run->size_bytes || copy_ended(run) || !wait_for_room(run, err) ||
        extents_fetch(reader, err) < 0 || copy_stream_look(run, err) < 0)
        return false;
    unit.offset = run->claim_offset;
    unit.ticket = run->claim_ticket;
    if (run->claim_chunk == NULL) {
        uint64_t first = unit.offset / chunk_bytes;
        uint64_t holes = count_hole_chunks(run, first);
        if (holes > 0) {
            unit.all_zero = true;
            unit.chunk = chunk_new(run, first, holes, true);
            unit.length = copy_chunks_bytes(run, &unit.chunk->chunks);
            run->claim_ticket++;
        }
    }
    if (!unit.all_zero)
        unit_of_chunk(run, &unit);
    run->claim_offset += unit.length;
    reader->unit = unit;
    if (run->stream != NULL && !unit.all_zero && unit.holes == 0)
        return copy_stream_take(reader, err) == 0;
    return true;
}

/* ---- reading ---- */

static struct copy_piece *piece_at(struct copy_reader *reader, uint64_t offset, uint64_t length)
{
    const struct copy_unit *unit = &reader->unit;
    uint64_t index = unit->all_zero ? 0 : (offset - unit->offset) / SINK_PIECE_BYTES;
    struct copy_piece *piece = copy_piece_new(reader->run, unit->ticket + index);

    if (piece == NULL)
        return NULL;
    piece->chunk = unit->chunk;
    piece->offset = offset;
    piece->length = length;
    return piece;
}

static int deliver(struct copy_run *run, struct copy_piece *piece, struct error *err)
{
    if (run->options->provider->local)
        return copy_piece_work(run, piece, err);
    copy_piece_queue(run, piece);
    return 0;
}

static int emit_zeros(struct copy_reader *reader, uint64_t offset, uint64_t length,
                      struct error *err)
{
    struct copy_piece *piece = piece_at(reader, offset, length);

    if (piece == NULL)
        return error_set(err, ERR_CANCELLED, "the copy has ended");
    return deliver(reader->run, piece, err);
}

/* The piece at reader->position, with a buffer. */
static int need_piece(struct copy_reader *reader, struct error *err)
{
    const struct copy_unit *unit = &reader->unit;
    uint64_t left = unit->offset + unit->length - reader->position;

    if (reader->piece != NULL)
        return 0;
    assert((reader->position - unit->offset) % SINK_PIECE_BYTES == 0);
    reader->piece = piece_at(reader, reader->position, min_u64(left, SINK_PIECE_BYTES));
    if (reader->piece == NULL)
        return error_set(err, ERR_CANCELLED, "the copy has ended");
    copy_piece_take_buffer(reader->run, reader->piece);
    reader->filled = 0;
    return 0;
}

static int got(struct copy_reader *reader, size_t length, struct error *err)
{
    reader->filled += length;
    reader->position += length;
    atomic_fetch_add(&reader->run->transferred, length);
    if (reader->filled < reader->piece->length)
        return 0;
    return deliver(reader->run, STEAL(reader->piece), err);
}

struct stream {
    struct copy_reader *reader;
    uint64_t end;
};

static int stream_take(void *arg, const void *data, size_t length, struct error *err)
{
    struct stream *stream = arg;
    struct copy_reader *reader = stream->reader;
    const uint8_t *bytes = data;

    if (length > stream->end - reader->position)
        return error_set(err, ERR_PROTOCOL, "the source sends more than it was asked for");
    while (length > 0) {
        size_t n;
        if (need_piece(reader, err) < 0)
            return -1;
        n = (size_t)min_u64(length, reader->piece->length - reader->filled);
        memcpy(reader->piece->data + reader->filled, bytes, n);
        if (got(reader, n, err) < 0)
            return -1;
        bytes += n;
        length -= n;
    }
    return copy_ended(reader->run) ? error_set(err, ERR_CANCELLED, "the copy has ended") : 0;
}

static int read_pieces(struct copy_reader *reader, uint64_t end, struct error *err)
{
    struct source *source = reader->source;

    while (reader->position < end) {
        if (need_piece(reader, err) < 0)
            return -1;
        if (source->ops->read(source, reader->piece->data, (size_t)reader->piece->length,
                              reader->position, err) < 0 ||
            got(reader, (size_t)reader->piece->length, err) < 0)
            return -1;
    }
    return 0;
}

static int read_range(struct copy_reader *reader, uint64_t offset, uint64_t length,
                      struct error *err)
{
    struct stream stream = {.reader = reader, .end = offset + length};
    struct source *source = reader->source;

    assert(range_is_inside(offset, length, reader->run->size_bytes));
    reader->position = offset;
    if (!source->streams)
        return read_pieces(reader, stream.end, err);
    if (source->ops->stream(source, length, offset, stream_take, &stream, err) < 0)
        return -1;
    if (reader->position < stream.end) {
        return error_set(err, ERR_SOURCE_CHANGED,
                         "the disk ends at %" PRIu64 " of %" PRIu64 " bytes", reader->position,
                         reader->run->size_bytes);
    }
    return 0;
}

/* A piece that is as in the base; its bytes come from there, and only when an output wants them. */
static int emit_kept(struct copy_reader *reader, uint64_t offset, uint64_t length,
                     struct error *err)
{
    struct copy_run *run = reader->run;
    const struct image_part *image = run->options->base_image;

    assert(reader->piece == NULL && length <= SINK_PIECE_BYTES);
    reader->piece = piece_at(reader, offset, length);
    if (reader->piece == NULL)
        return error_set(err, ERR_CANCELLED, "the copy has ended");
    reader->piece->kept = true;
    if (run->needs_base) {
        copy_piece_take_buffer(run, reader->piece);
        if (reader->base == NULL && image_open_part(image, &reader->base, err) < 0)
            return -1;
        if (image_read(reader->base, reader->piece->data, (size_t)length, offset, err) < 0)
            return error_wrap(err, "the earlier export's image");
    }
    copy_piece_queue(run, STEAL(reader->piece));
    return 0;
}

/* One piece, of what was taken from the stream. */
static int decode_unit(struct copy_reader *reader, struct error *err)
{
    reader->position = reader->unit.offset;
    if (need_piece(reader, err) < 0 || copy_stream_decode(reader, reader->piece, err) < 0)
        return -1;
    return deliver(reader->run, STEAL(reader->piece), err);
}

/* Pieces in one go: from the source as many as lie together, else one. */
static int read_unit(struct copy_reader *reader, struct error *err)
{
    const struct copy_unit *unit = &reader->unit;
    uint64_t at = 0;

    if (unit->all_zero)
        return emit_zeros(reader, unit->offset, unit->length, err);
    if (reader->run->stream != NULL && unit->holes == 0)
        return decode_unit(reader, err);
    while (at < unit->length) {
        uint64_t from = at / SINK_PIECE_BYTES;
        uint64_t to = from + 1;
        uint64_t end;
        int rc;
        bool hole = (unit->holes >> from & 1) != 0;
        bool kept = (unit->kept >> from & 1) != 0;
        while (!hole && !kept && to * SINK_PIECE_BYTES < unit->length &&
               ((unit->holes | unit->kept) >> to & 1) == 0)
            to++;
        end = min_u64(to * SINK_PIECE_BYTES, unit->length);
        if (hole) {
            rc = emit_zeros(reader, unit->offset + at, end - at, err);
        } else if (kept) {
            rc = emit_kept(reader, unit->offset + at, end - at, err);
        } else {
            rc = read_range(reader, unit->offset + at, end - at, err);
        }
        if (rc < 0)
            return -1;
        at = end;
    }
    return 0;
}

/* False: the run has ended. */
static bool wait_until_wanted(struct copy_reader *reader)
{
    struct copy_run *run = reader->run;

    LOCK_SCOPE(&run->mutex);
    while (!run->ended && reader->index >= run->readers_wanted)
        (void)pthread_cond_wait(&run->free, &run->mutex);
    return !run->ended;
}

void *copy_reader_main(void *arg)
{
    struct copy_reader *reader = arg;
    struct error err = ERROR_NONE;

    if (reader->run->stream == NULL)
        reader->source = source_open(reader->run);
    while (wait_until_wanted(reader) && claim(reader, &err) && read_unit(reader, &err) == 0)
        continue;
    if (err.code != ERR_NONE)
        copy_fail(reader->run, &err); /* no matter if the run ended before */
    source_close(reader->source);
    image_close(reader->base);
    free(STEAL(reader->parcel.data));
    return NULL;
}
