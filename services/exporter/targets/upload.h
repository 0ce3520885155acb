/* Brings one local file to a target: parts in parallel, resumed after a crash, verified.
 *
 * The state file stands next to the export's journal and is appended to as parts are stored:
 *   {"url":..,"name":..,"size":n,"part_size":n,"sha256":..,"id":..}
 *   {"part":1,"sha256":..,"tag":..}
 *   {"done":true}
 * That of a file which is sent while it grows (upload_stream.h) has more to say:
 *   {"url":..,"name":..,"size":at most,"part_size":n,"identity":..,"id":..}
 *   {"part":1,"sha256":..,"md5":..,"tag":..,"size":of the last,"after":SHA-256 behind it,
 *    "local":true}
 *   {"done":true,"size":n,"sha256":..}
 * A resume believes neither it nor the server alone: a part counts when the server holds it with
 * the size and tag that stand here, and the local bytes still have the digest that stands here. */
#ifndef EXPORTER_UPLOAD_H
#define EXPORTER_UPLOAD_H

#include "services/exporter/formats/digest.h"
#include "services/exporter/targets/target.h"

#define UPLOAD_STATE_BYTES_MAX ((size_t)(8 * MIB)) /* 10,000 parts take 2 MiB */

struct upload_file {
    const char *path; /* local */
    struct target_object object;
    const char *sha256;     /* hex, what the file must have */
    const char *state_path; /* NULL: nothing to resume (small files) */
    const char *old_id;     /* NULL, or an upload to abort when the state does not know it */
    /* All may be called from the calling thread only. */
    int (*may_write)(void *arg, struct error *err);
    int (*note_id)(void *arg, const char *id, struct error *err); /* before its first part */
    void (*progress)(void *arg, uint64_t bytes_stored);
    void *arg;
};

/* Repeatable: what is there already, complete and equal, is left alone. ERR_CORRUPT: the local file
 * is not what it should be. ERR_CONFLICT: another object has the name. */
MUST_CHECK int upload_file(struct target *target, const struct upload_file *file,
                           struct error *err);
/* A small object. *out: NUL-terminated, caller frees. ERR_LIMIT: over size_max. */
MUST_CHECK int upload_fetch(struct target *target, const char *name, size_t size_max, char **out,
                            size_t *out_size, struct error *err);

/* ---- the state file; for upload.c and tests ---- */

/* What stands there of a part of a growing file. */
struct upload_mark {
    bool known; /* `after` is: how the SHA-256 of the whole file stands behind this part */
    bool local; /* its bytes stayed in the file: a checkpoint of the file may not have them yet */
    uint8_t after[DIGEST_BYTES];
};

struct upload_state {
    char *url;
    char *name;
    char *id;
    char *identity; /* NULL: of a finished file */
    uint64_t size;  /* with an identity: at most, until it is done */
    uint64_t part_size;
    char sha256[DIGEST_HEX_SIZE]; /* with an identity: when it is done */
    bool done;
    uint64_t done_size;        /* likewise */
    struct upload_mark *marks; /* part_count; NULL without an identity */
    struct target_part *parts; /* part_count; tag "" where none is noted */
    size_t part_count;
    size_t whole_bytes; /* without a last line that was being written */
};
/* ERR_CORRUPT: no state, or a line but the last is damaged. */
MUST_CHECK int upload_state_parse(const char *text, size_t size, struct upload_state **out,
                                  struct error *err);
void upload_state_free(struct upload_state *state); /* NULL-safe */
DEFINE_AUTO(upload_state, struct upload_state, upload_state_free)
#define auto_upload_state CLEANUP(upload_state_auto) struct upload_state

#endif
