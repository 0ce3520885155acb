/* The copy engine: one frozen disk through zero test, leaf digests and one or more sinks, read
 * once, by several readers in parallel, in bounded memory, with a journal to go on from.
 *
 *   planner -> N readers (own connection each) -> zero test + leaf digest (+ encode) -> sinks
 *
 * Unit of the journal, and of one request to a provider that streams, is a chunk
 * (options.chunk_bytes; with an ordered output at most COPY_PIECES_PER_READER pieces, so that all
 * readers find room). Others are asked piece by piece. Buffers are pieces of SINK_PIECE_BYTES, at
 * most COPY_PIECES_PER_READER per reader whatever the disk's size; a piece that is encoded and
 * waits for its turn counts as one. The slowest sink holds the readers back.
 *
 * Journal (journal.h): append-only, checksummed, synced after the data it speaks of. A journal of
 * another identity, size, chunk size or set of outputs is not believed: ERR_SOURCE_CHANGED. */
#ifndef EXPORTER_COPY_H
#define EXPORTER_COPY_H

#include <stdatomic.h>

#include "services/exporter/engine/provider.h"
#include "services/exporter/formats/digest.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/sink.h"

#define COPY_OUTPUTS_MAX       3 /* raw | vmdk, and qcow2 */
#define COPY_PIECES_PER_READER 8
#define COPY_READERS_MAX       PROVIDER_PARALLEL_READS_MAX
#define COPY_CHECKPOINT_BYTES  (64 * MIB)
/* Without journal so much is made durable at a time while the copy goes on: a disk that first takes
 * bytes into its own cache is otherwise waited for at the end, for all of them. */
#define COPY_FLUSH_BYTES (32 * MIB)

struct journal;
struct rate_transfer;
struct source;

struct copy_output {
    const struct sink_format *format;
    const char *path;      /* partial file */
    uint64_t file_offset;  /* the image begins there in it (sink.h); 0: it is the file */
    const char *file_name; /* final base name */
    int compression_level;
    const char *compression; /* sink.h; NULL: none */
    const char *backing;     /* sink.h: pieces whose leaf is that of the base are not written */
    const char *backing_root;
};

struct copy_progress {
    uint64_t bytes_transferred; /* read from the source by this run */
    uint64_t bytes_done;        /* logical bytes that are through, resumed ones included */
    const char *limited_by;     /* "source" | "disk" | "cpu" | "rate_limit" | "target" | "" */
    unsigned int readers;       /* that may read now */
};

/* Who takes the only output away while it is written (targets/upload_stream.h): it hears how much
 * of the file is final, that is, will not change and is not needed to go on from the last
 * checkpoint, and holds the readers back. Needs a journal. */
struct copy_follower {
    /* The file is open, and nothing written by this run; final_bytes 0: it begins anew. */
    int (*begin)(void *arg, uint64_t final_bytes, struct error *err);
    void (*advance)(void *arg, uint64_t final_bytes); /* after each checkpoint */
    /* *out: may the disk be read up to disk_end? claimed: the bytes of the disk that an ordered
     * output will get then and has not got yet. Called by any thread, never two at a time. */
    int (*has_room)(void *arg, uint64_t disk_end, uint64_t claimed, bool *out, struct error *err);
    void *arg;
};

struct copy_options {
    const struct provider *provider;
    struct provider_session *session;
    const struct frozen_vm *frozen;
    size_t disk_index;        /* into frozen->disks */
    uint64_t chunk_bytes;     /* multiple of SINK_PIECE_BYTES */
    unsigned int readers;     /* upper bound, 1 to COPY_READERS_MAX; the engine starts with fewer */
    uint32_t retries_max;     /* of one read, before the copy fails */
    const char *journal_path; /* NULL: no journal, no resume */
    uint64_t checkpoint_bytes; /* a crash loses so much, or 2 s; 0: COPY_CHECKPOINT_BYTES, or
                                  COPY_FLUSH_BYTES */
    const char *identity;      /* the journal belongs to this: freeze mark and more */
    const char *uuid;          /* for the images; may be NULL */
    const struct copy_output *outputs;
    size_t output_count;
    bool hash;                        /* false only in the bench */
    const struct leaves *base_leaves; /* of the same disk in an earlier export; NULL: none */
    /* A bit per leaf: may differ from base_leaves. The others are not read from the source, they
     * are what they are in the base: for outputs without backing they are read from base_image, and
     * compared. NULL: all may differ. */
    const uint8_t *changed;
    const struct image_part *base_image;  /* the earlier export's image; NULL: none is needed */
    const struct copy_follower *follower; /* NULL: none */
    struct rate_transfer *rate;           /* what readers take their bytes from; NULL: no limit */
    /* Tests put a source of theirs (faults) around the provider's; else NULL. */
    struct source *(*wrap)(struct source *below, void *arg);
    void *wrap_arg;
    const atomic_bool *stopped;
    /* Asked before every write and sync, from any thread; -1 ends the copy with that error. */
    int (*may_write)(void *arg, struct error *err);
    void (*progress)(void *arg, const struct copy_progress *progress); /* at most every 100 ms */
    void *arg;
};

struct copy_result {
    struct leaves *leaves; /* owned; NULL without hash */
    /* Owned; still locked, so that no other worker goes on with these files before their rename.
     * NULL without journal_path. */
    struct journal *journal;
    uint64_t bytes_transferred;
    uint64_t bytes_data; /* logical bytes that are not zero */
    uint64_t bytes_resumed;
    bool resumed;
    struct {
        bool known;
        char hex[DIGEST_HEX_SIZE];
    } file_sha256[COPY_OUTPUTS_MAX]; /* made in stream; else read back */
};

/* On success all outputs are complete and synced under their partial names, the journal still
 * stands (the caller removes it after the rename), and the disk's mark was compared after the last
 * byte. On failure partial files and journal stay, fit to go on from; partial files that do not fit
 * their journal are written anew (event copy_starts_over).
 * ERR_CONFLICT: another process holds the journal, even after 10 s. ERR_SOURCE_CHANGED: the journal
 * belongs to something else, the disk ends early, or its mark changed. ERR_CORRUPT: base_image is
 * not what base_leaves say. ERR_LIMIT: no space, names the path. ERR_CANCELLED: *stopped. Calls
 * progress on the caller's thread, may_write on any. */
MUST_CHECK int copy_disk(const struct copy_options *options, struct copy_result *out,
                         struct error *err);
void copy_result_release(struct copy_result *result);
#define auto_copy_result CLEANUP(copy_result_release) struct copy_result

struct copy_verify_options {
    struct image_part image;
    const struct leaves *leaves;
    unsigned int threads;
    const atomic_bool *stopped;                       /* may be NULL */
    void (*progress)(void *arg, uint64_t bytes_done); /* caller's thread; may be NULL */
    void *arg;
};
/* Reads an image back in full and compares it with the leaves: ERR_CORRUPT names the first MiB
 * that differs. */
MUST_CHECK int copy_verify(const struct copy_verify_options *options, struct error *err);

#define COPY_DIFFERENCES_MAX 100 /* who has more flipped MiB than that needs no longer list */
struct copy_differences {
    size_t count;
    size_t leaf[COPY_DIFFERENCES_MAX]; /* in rising order */
};
/* The same, but goes on behind a MiB that differs or cannot be decoded, and names them all up to
 * the bound, where it ends. ERR_CORRUPT only when it is no image of that size at all. */
MUST_CHECK int copy_verify_all(const struct copy_verify_options *options,
                               struct copy_differences *out, struct error *err);

#endif
