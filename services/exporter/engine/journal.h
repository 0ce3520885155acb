/* The journal of one disk's copy: what is through, written only after it is durable.
 *
 * An append-only file of records, each with its sequence number and a CRC-32C over all of it. The
 * first names what the journal belongs to. Then chunk records (ranges of chunks, their leaves), in
 * force only when a checkpoint record follows, which carries the state text of every output. On
 * opening, everything behind the last whole checkpoint is cut off.
 *
 * Who opens a journal holds an OFD lock on it until journal_close: it is the right to write the
 * partial files that belong to it. One owner thread. */
#ifndef EXPORTER_JOURNAL_H
#define EXPORTER_JOURNAL_H

#include <stdatomic.h>

#include "services/exporter/formats/digest.h"
#include "services/exporter/formats/sink.h"

#define JOURNAL_LOCK_WAIT_MS       10000 /* a worker that lost its lease lets go well before that */
#define JOURNAL_IDENTITY_BYTES_MAX 4096
#define JOURNAL_OUTPUTS_MAX        8
#define JOURNAL_RECORD_BYTES_MAX   ((size_t)(128 * KIB)) /* payload */
#define JOURNAL_LEAVES_PER_RECORD  2048U                 /* 64 KiB of leaves */

/* What it belongs to; another one is not gone on with. */
struct journal_spec {
    const char *identity; /* of the source: freeze mark and more */
    const char *outputs;  /* formats and names, as one text */
    uint64_t size_bytes;
    uint64_t chunk_bytes; /* multiple of LEAF_BYTES */
    bool hash;            /* chunk records carry leaves */
};

/* Chunks [first, first + count), all zeros or all with data. */
struct journal_chunks {
    uint64_t first;
    uint64_t count;
    bool zero;           /* no leaves are kept: they are those of zeros */
    uint64_t data_bytes; /* logical bytes that are not zero */
};

struct journal;

/* Opens or creates, locks, checks, and cuts a damaged tail. Waits up to lock_wait_ms for another
 * holder of the lock. stopped may be NULL.
 * ERR_CONFLICT: another process holds it. ERR_SOURCE_CHANGED: it belongs to something else (it is
 * left as it is). ERR_NOT_AVAILABLE: the file system has no locks. */
MUST_CHECK int journal_open(const char *path, const struct journal_spec *spec, int64_t lock_wait_ms,
                            const atomic_bool *stopped, struct journal **out, struct error *err);
void journal_close(struct journal *journal); /* NULL-safe; the file stays */
DEFINE_AUTO(journal, struct journal, journal_close)
#define auto_journal CLEANUP(journal_auto) struct journal

/* How many outputs the last checkpoint speaks of; 0: there is none. */
size_t journal_state_count(const struct journal *journal);
/* State text of an output at the last checkpoint. */
const char *journal_state(const struct journal *journal, size_t output);
/* Gives every chunk record that is in force to take(); leaves has LEAF digests of the range's
 * leaves, NULL when zero or without hash. */
MUST_CHECK int journal_replay(struct journal *journal,
                              int (*take)(void *arg, const struct journal_chunks *chunks,
                                          const uint8_t *leaves, struct error *err),
                              void *arg, struct error *err);

/* Notes chunks for the next checkpoint; nothing is written yet. leaves: NULL when zero or without
 * hash; at most JOURNAL_LEAVES_PER_RECORD of them. */
void journal_add(struct journal *journal, const struct journal_chunks *chunks,
                 const uint8_t *leaves);
/* Writes what was added and the checkpoint, and syncs. After a failure the journal takes nothing
 * more (ERR_CONFLICT). */
MUST_CHECK int journal_checkpoint(struct journal *journal, const char *const *states, size_t count,
                                  struct error *err);
/* Forgets all but what it belongs to. */
MUST_CHECK int journal_restart(struct journal *journal, struct error *err);

#endif
