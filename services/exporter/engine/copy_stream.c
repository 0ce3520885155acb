/* The forward-only source of a copy; see copy_run.h. */
#include <string.h>

#include "common/clock.h"
#include "services/exporter/engine/copy_run.h"

#define NOT_LOOKED UINT64_MAX

static_assert(SINK_PIECE_BYTES == PROVIDER_PARCEL_BYTES, "a parcel is a piece");

int copy_stream_start(struct copy_run *run, struct error *err)
{
    const struct copy_options *options = run->options;

    if (!options->frozen->forward_only)
        return 0;
    run->stream_next = NOT_LOOKED;
    return options->provider->stream_open(options->session, options->frozen, options->disk_index,
                                          &run->stream, err);
}

void copy_stream_end(struct copy_run *run)
{
    if (run->stream != NULL)
        run->options->provider->stream_close(STEAL(run->stream));
}

/* Nobody asks a broken stream again: what it said then would hide why it broke. */
static int broken(struct copy_run *run, const struct error *err)
{
    rate_note(run->options->rate, !error_is_retryable(err), -1);
    run->claim_offset = run->size_bytes;
    return -1;
}

int copy_stream_look(struct copy_run *run, struct error *err)
{
    uint64_t next = 0;

    if (run->stream == NULL || run->stream_next != NOT_LOOKED)
        return 0;
    if (run->options->provider->stream_next(run->stream, &next, err) < 0)
        return broken(run, err);
    if (next < run->claim_offset || next > run->size_bytes) {
        (void)error_set(err, ERR_PROTOCOL, "the stream of the disk is out of order");
        return broken(run, err);
    }
    run->stream_next = next;
    return 0;
}

int copy_stream_take(struct copy_reader *reader, struct error *err)
{
    struct copy_run *run = reader->run;
    uint64_t end = reader->unit.offset + reader->unit.length;

    assert(reader->unit.length <= PROVIDER_PARCEL_BYTES);
    run->stream_next = NOT_LOOKED;
    if (run->options->provider->stream_fetch(run->stream, end, &reader->parcel, err) < 0)
        return broken(run, err);
    rate_note(run->options->rate, true, -1);
    return 0;
}

/* Bytes are paid for when they have come, by each reader for its own: then they wait together, and
 * the peer is held back by its full socket. */
static int pay(struct copy_reader *reader, struct error *err)
{
    struct copy_run *run = reader->run;
    int64_t start_ns = clock_mono_ns();
    int rc = rate_take(run->options->rate, reader->parcel.size, &run->ended, err);

    atomic_fetch_add(&run->times.rate_wait, (uint64_t)(clock_mono_ns() - start_ns));
    atomic_fetch_add(&run->transferred, reader->parcel.size);
    return rc;
}

int copy_stream_decode(struct copy_reader *reader, struct copy_piece *piece, struct error *err)
{
    struct copy_run *run = reader->run;
    int64_t start_ns;
    uint64_t took_ns;
    int rc;

    if (pay(reader, err) < 0)
        return -1;
    start_ns = clock_mono_ns();
    memset(piece->data, 0, (size_t)piece->length);
    rc = run->options->provider->stream_decode(run->stream, &reader->parcel, piece->offset,
                                               piece->data, (size_t)piece->length, err);
    took_ns = (uint64_t)(clock_mono_ns() - start_ns);
    atomic_fetch_add(&run->times.cpu, took_ns);
    atomic_fetch_add(&run->times.readers_wait, took_ns);
    return rc;
}
