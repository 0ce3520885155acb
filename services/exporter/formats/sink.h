/* One output image being written, one disk each: the interface between the copy pipeline and the
 * formats. The pipeline delivers pieces of SINK_PIECE_BYTES (the last may be shorter), each
 * aligned to that size, every piece of the disk exactly once, either as data or as zeros.
 *
 * SINK_ORDERED formats get them in rising order from one thread at a time; encode() runs before on
 * any thread. Others get them in any order, from several threads at once, on different pieces.
 *
 * Life: open -> (encode, write | write_zero)* with state + sync in between -> finish -> close.
 * close without finish leaves the file as it is (for a resume); the caller deletes or renames.
 * The path given is the partial name; sinks know nothing about final names. */
#ifndef EXPORTER_SINK_H
#define EXPORTER_SINK_H

#include "common/error.h"
#include "common/strbuf.h"

#define SINK_PIECE_BYTES     ((size_t)MIB)
#define SINK_STATE_BYTES_MAX 1024 /* text of a checkpoint */
#define SINK_ORDERED         1U
/* Pieces go to the end of the file, wherever on the disk they are from; its front is written last.
 */
#define SINK_APPENDS 2U

struct sink; /* each format defines its own */

struct sink_options {
    const char *path; /* file to create, or to go on with */
    /* The image is the last part of the file, from here on; what stands before stays. Multiple of
     * 512; only streamOptimized VMDK can do that (a member of an OVA). 0: the file is the image. */
    uint64_t file_offset;
    uint64_t size_bytes;   /* virtual size of the disk, multiple of 512 */
    const char *file_name; /* final base name; VMDK writes it into its descriptor */
    const char *uuid;      /* for the image's identity; may be NULL */
    int compression_level; /* 0 = format's default */
    /* qcow2 only. */
    const char *compression;  /* "zlib", "zstd"; NULL: clusters as they are */
    const char *backing;      /* relative name of the image below, a qcow2; NULL: none. Pieces that
                                 are the same there need not be delivered. */
    const char *backing_root; /* where its chain may lie (image_open_chain) */
    const char *resume;       /* state text of the last checkpoint; NULL = start from nothing */
    /* SINK_ORDERED with resume: pieces come again from this disk offset on; what the file holds of
     * them is dropped. Not behind the state's own position. */
    uint64_t resume_offset;
    /* What is final (below) goes elsewhere while the image is written, and may be gone from the
     * file when it is gone on with: what a resume needs of it is kept in an index (sink_file.h). */
    bool sent_on;
};

/* Result of encode(); release with free(data). */
struct sink_blob {
    void *data;
    size_t size;
    size_t raw_size; /* length of the piece it came from */
};

struct sink_format {
    const char *name;   /* "raw", "qcow2", "vmdk", "raw.zst" */
    const char *suffix; /* ".raw", ".qcow2", ".vmdk", ".raw.zst" */
    unsigned int flags;
    int (*open)(const struct sink_options *options, struct sink **out, struct error *err);
    /* Optional, thread-safe, CPU only: what write_encoded() will take. */
    int (*encode)(struct sink *sink, uint64_t offset, const void *data, size_t length,
                  struct sink_blob *out, struct error *err);
    int (*write_encoded)(struct sink *sink, uint64_t offset, const struct sink_blob *blob,
                         struct error *err);
    /* Required unless encode is there. */
    int (*write)(struct sink *sink, uint64_t offset, const void *data, size_t length,
                 struct error *err);
    int (*write_zero)(struct sink *sink, uint64_t offset, uint64_t length, struct error *err);
    /* A checkpoint is state, then sync: once both are through, a later open with that text finds
     * every piece that was written before state was called.
     * state: appends one line of text without newline. Quick; no write runs meanwhile. */
    int (*state)(struct sink *sink, struct strbuf *state, struct error *err);
    /* What was written before becomes durable; writes may run meanwhile. */
    int (*sync)(struct sink *sink, struct error *err);
    /* Of an image that is sent on, when all pieces before disk_offset were written: up to where the
     * file neither changes any more nor is needed to go on from there; of SINK_APPENDS, but for
     * the front, whatever disk_offset is. Called like state. */
    uint64_t (*final)(struct sink *sink, uint64_t disk_offset);
    /* Metadata, fsync. The image is complete afterwards. */
    int (*finish)(struct sink *sink, struct error *err);
    void (*close)(struct sink *sink); /* NULL-safe */
    /* SHA-256 (64 hex + NUL) of the whole file if it was made in stream (after finish); false when
     * it has to be read back (random-access formats, and after any resume). */
    bool (*file_sha256)(const struct sink *sink, char out[65]);
};

extern const struct sink_format sink_raw;
extern const struct sink_format sink_qcow2;
extern const struct sink_format sink_vmdk; /* streamOptimized */
extern const struct sink_format sink_zst;  /* raw, compressed (zst.h) */

/* By name; NULL if unknown. */
const struct sink_format *sink_format_find(const char *name);

#endif
