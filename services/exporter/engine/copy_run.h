/* One running copy_disk(): what its files share. Nobody else includes this.
 *
 * Threads
 * - The caller's thread (copy.c) coordinates: starts readers, reports progress, writes checkpoints.
 * - Readers (copy_reader.c) claim units of the disk in rising order, fill pieces, queue them.
 * - Workers (copy_worker.c) take pieces: zero test, leaf digest, write to the outputs that take any
 *   order, encode for the ordered ones. Whoever has the next piece in order writes it there.
 * - A local source has no workers: the reader works on its piece while the processor has it warm.
 *
 * Bounds. Every queued thing, also a run of zeros, is a piece with a ticket; tickets rise with the
 * offset. Without ordered outputs at most `room` pieces are alive. With them a piece is let in only
 * when its ticket is less than `room` behind the next one to be written: so the piece that all wait
 * for always gets in, and nothing can lock up. room = COPY_PIECES_PER_READER * readers.
 *
 * Locks, in the order they are taken: claim_mutex, gate, mutex. None is held over a provider call
 * but claim_mutex over disk_extents, stream_next and stream_fetch, and the gate (shared) over the
 * writes of one piece. */
#ifndef EXPORTER_COPY_RUN_H
#define EXPORTER_COPY_RUN_H

#include "services/exporter/engine/copy.h"
#include "services/exporter/engine/journal.h"
#include "services/exporter/engine/source.h"

#define COPY_WORKERS_MAX      8
#define COPY_EXTENTS_MAX      1024U /* asked for at a time: 16 KiB */
#define COPY_ZERO_CHUNKS_MAX  1024U /* one run of zeros */
#define COPY_ORDERED_UNIT_MAX (COPY_PIECES_PER_READER * SINK_PIECE_BYTES)
#define COPY_ROOM_MAX         ((size_t)(COPY_PIECES_PER_READER * COPY_READERS_MAX))

/* Chunks under way: complete when all their pieces are through. */
struct copy_chunk {
    struct copy_chunk *next; /* in run->open, then run->done */
    struct journal_chunks chunks;
    bool compared;      /* written and noted by an earlier run, but a stream brings it again */
    size_t pieces_left; /* guarded by run->mutex */
};

struct copy_piece {
    struct copy_piece *next;
    struct copy_chunk *chunk;
    uint64_t offset;
    uint64_t length; /* over SINK_PIECE_BYTES only for zeros */
    uint64_t ticket;
    uint8_t *data; /* NULL: zeros, or not needed any more */
    bool zero;     /* known after the zero test */
    bool kept;     /* known to be as in the base, and not read from the source */
    bool same;     /* as in the base */
    struct sink_blob blobs[COPY_OUTPUTS_MAX];
};

/* What a reader does next: at most one chunk, or a run of chunks that are holes. */
struct copy_unit {
    struct copy_chunk *chunk;
    uint64_t offset;
    uint64_t length;
    uint64_t ticket; /* of its first piece */
    uint64_t holes;  /* bit i: piece i is not allocated */
    uint64_t kept;   /* bit i: piece i is as in the base */
    bool all_zero;   /* one piece of zeros for all of it */
};

struct copy_run;

struct copy_reader {
    struct copy_run *run;
    unsigned int index;
    pthread_t thread;
    bool started;
    struct source *source;    /* NULL: the run has a stream */
    struct image *base;       /* of options->base_image; opened when it is needed first */
    struct copy_piece *piece; /* being filled */
    size_t filled;
    struct copy_unit unit;
    uint64_t position;             /* next byte that is wanted */
    struct provider_parcel parcel; /* of the unit, when it comes from a stream */
};

/* Nanoseconds spent; what limits the copy is read off their growth. */
struct copy_times {
    atomic_uint_fast64_t readers_wait; /* for room, and decoding: the source could do more */
    atomic_uint_fast64_t rate_wait;    /* of readers, for bandwidth */
    atomic_uint_fast64_t target_wait;  /* of the one that claims, for the follower */
    atomic_uint_fast64_t write;
    atomic_uint_fast64_t cpu;
};

struct copy_run {
    const struct copy_options *options;
    uint64_t size_bytes;
    uint64_t chunk_count;
    bool ordered, unordered; /* some output is */
    bool needs_base;         /* some output wants the bytes of what is as in the base */
    uint64_t checkpoint_bytes;
    struct sink *sinks[COPY_OUTPUTS_MAX];
    struct leaves *leaves;
    struct journal *journal;
    uint8_t *resumed;        /* bitmap of chunks done by earlier runs; read-only with threads */
    uint64_t resumed_prefix; /* chunks done from the first on */
    uint64_t resumed_bytes;
    uint64_t resumed_data_bytes;

    pthread_mutex_t claim_mutex; /* guards the next seven */
    uint64_t claim_offset;
    uint64_t claim_ticket;
    struct copy_chunk *claim_chunk; /* claimed in part */
    struct extent_list extents;     /* without items: the provider knows none */
    size_t extent_next;
    struct provider_stream *stream; /* NULL: the disk can be read anywhere; set without threads */
    uint64_t stream_next;           /* everything in front that was not claimed is zeros */

    pthread_rwlock_t gate; /* shared: writing to sinks; exclusive: taking their state */

    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t work;   /* workers: queue, ended */
    pthread_cond_t free;   /* readers: room, readers_wanted, ended */
    pthread_cond_t wake;   /* coordinator: something happened */
    struct copy_piece *queue_first;
    struct copy_piece **queue_last;
    struct copy_piece *waiting[COPY_ROOM_MAX]; /* ordered: by ticket */
    uint64_t next_ticket;                      /* ordered: to be written next */
    bool draining;                             /* a worker writes in order */
    size_t room;                               /* most pieces alive */
    size_t alive;                              /* pieces */
    size_t memory;                             /* buffers and blobs that exist, as pieces */
    uint8_t *buffers[COPY_ROOM_MAX];           /* not in use */
    size_t buffer_count;
    struct copy_chunk *open; /* claimed, not complete */
    uint64_t claimed;        /* chunks up to here are claimed, or were done before */
    struct copy_chunk *done; /* not in the journal yet */
    uint64_t done_bytes;     /* of those */
    uint64_t bytes_done;     /* all, resumed ones included */
    uint64_t data_bytes;
    unsigned int readers_wanted;
    unsigned int failures; /* retryable ones since the coordinator looked */
    atomic_bool ended;     /* finished, failed or stopped: everybody goes home */
    struct error error;

    atomic_uint_fast64_t transferred;
    struct copy_times times;
};

/* copy_reader.c */
void *copy_reader_main(void *reader);
/* copy_stream.c: disks that come as one stream, which all readers share. They claim pieces of it in
 * turn, with the bytes as they came, and decode them in parallel. What an earlier stream brought
 * and the journal has noted is compared, not written again. */
/* Nothing when the disk is not such a one. */
MUST_CHECK int copy_stream_start(struct copy_run *run, struct error *err);
void copy_stream_end(struct copy_run *run); /* no threads are left */
/* run->stream_next becomes known. claim_mutex is held, as for the next one. */
MUST_CHECK int copy_stream_look(struct copy_run *run, struct error *err);
/* The bytes of reader->unit, one piece. */
MUST_CHECK int copy_stream_take(struct copy_reader *reader, struct error *err);
/* What was taken into the piece's buffer. */
MUST_CHECK int copy_stream_decode(struct copy_reader *reader, struct copy_piece *piece,
                                  struct error *err);
/* copy_worker.c */
void *copy_worker_main(void *run);
/* A piece without buffer once there is room for its ticket; NULL when the run ended. */
struct copy_piece *copy_piece_new(struct copy_run *run, uint64_t ticket);
void copy_piece_take_buffer(struct copy_run *run, struct copy_piece *piece);
void copy_piece_queue(struct copy_run *run, struct copy_piece *piece);
/* What a worker does with a piece; takes it. */
MUST_CHECK int copy_piece_work(struct copy_run *run, struct copy_piece *piece, struct error *err);
void copy_piece_free(struct copy_piece *piece); /* after the threads are gone; NULL-safe */
/* Waits at most that long; the mutex of the run is held. */
void copy_wait_ms(struct copy_run *run, pthread_cond_t *cond, int64_t ms);
/* Ends the run with this error unless it ended before. Takes the mutex. */
void copy_fail(struct copy_run *run, const struct error *err);
bool copy_ended(struct copy_run *run);
/* copy_checkpoint.c */
/* Opens journal and sinks; after a resume run->resumed tells what is there. */
MUST_CHECK int copy_start(struct copy_run *run, struct error *err);
/* What is done becomes durable, then the journal, if there is one, says so. Coordinator only. */
MUST_CHECK int copy_checkpoint(struct copy_run *run, struct error *err);
bool copy_chunk_is_resumed(const struct copy_run *run, uint64_t chunk);
uint64_t copy_chunks_bytes(const struct copy_run *run, const struct journal_chunks *chunks);

#endif
