/* Sends a file to a target while it grows, and makes room behind what was sent: the file is a spool
 * of bounded size. Its length is not known before, only that it is at most size_max, by which its
 * parts are cut.
 *
 *   open -> begin -> (advance, has_room)* -> finish -> close
 *
 * What is final in the file (advance) goes out in whole parts. A part that the target has, and that
 * the state file says so of (upload.h), is punched out of the file. What is still missing when the
 * file is complete goes out in finish, and stays in the file: a checkpoint of its writer may have
 * to begin before it.
 *
 * Going on after a crash needs all three: the state file, the target's parts, and a writer that
 * goes on behind everything that was punched. When one of them lost
 * something, what is there is thrown away and all bytes are wanted again.
 *
 * The SHA-256 of the whole survives as well: each part's line says how it stands behind it.
 *
 * Of a file whose front is written last (head_last) the first part goes out last, and stays in the
 * file. Its SHA-256 cannot be made while it is sent: the object is read back for it, and every part
 * of it compared. */
#ifndef EXPORTER_UPLOAD_STREAM_H
#define EXPORTER_UPLOAD_STREAM_H

#include "services/exporter/targets/upload.h"

/* How far the writer may be ahead of the target, besides two parts. Large enough for what a writer
 * keeps to itself (the 32 MiB under one grain table of a VMDK, a chunk of up to 64 MiB under way)
 * and for the bytes between two of its checkpoints (COPY_CHECKPOINT_BYTES), small against a disk.
 */
#define UPLOAD_STREAM_WINDOW_BYTES (192 * MIB)

struct upload_stream;

struct upload_stream_spec { /* all of it outlives the stream */
    const char *name;       /* of the object */
    uint64_t size_max;
    const char *identity; /* of the bytes: with another one nothing is gone on with */
    const char *state_path;
    bool head_last; /* the first part changes until the file is complete */
    /* NULL, or with head_last: gets the object as it is read back, in order. -1: it is not right.
     */
    int (*take)(void *arg, uint64_t offset, const void *data, size_t size, struct error *err);
    const char *old_id; /* NULL, or what note_id was told by an earlier attempt: the object is ours
                         */
    int (*may_write)(void *arg, struct error *err);               /* from any thread */
    int (*note_id)(void *arg, const char *id, struct error *err); /* from the caller's thread */
    void *arg;
};

/* Looks what there is at the target, or begins there. *out_anew: nothing of an earlier attempt was
 * taken over, nor may the writer go on with its file. ERR_CONFLICT: another object has the name.
 * ERR_NOT_AVAILABLE: head_last, and the target wants its parts in order. */
MUST_CHECK int upload_stream_open(struct target *target, const struct upload_stream_spec *spec,
                                  struct upload_stream **out, bool *out_anew, struct error *err);
void upload_stream_close(struct upload_stream *stream); /* NULL-safe; what is stored stays */
DEFINE_AUTO(upload_stream, struct upload_stream, upload_stream_close)
#define auto_upload_stream CLEANUP(upload_stream_auto) struct upload_stream

/* Once. The file is at path, and final up to final_bytes; 0: it begins anew. ERR_NOT_AVAILABLE: its
 * file system cannot punch holes. ERR_UNAVAILABLE: the writer lost what the target has; the next
 * attempt begins anew. */
MUST_CHECK int upload_stream_begin(struct upload_stream *stream, const char *path,
                                   uint64_t final_bytes, struct error *err);
/* More is final: it will not change, and nobody needs it any more to go on writing. */
void upload_stream_advance(struct upload_stream *stream, uint64_t final_bytes);
/* What stands at `offset` still changes: its part is held back, as the first one is with head_last,
 * however final what follows is. One at a time: what was held back before goes out. */
void upload_stream_hold(struct upload_stream *stream, uint64_t offset);
/* *out: may the file be written up to `end`? -1: sending has failed; ERR_UNAVAILABLE also: a file
 * with head_last is over its size_max, the next attempt begins anew. From any thread. */
MUST_CHECK int upload_stream_has_room(struct upload_stream *stream, uint64_t end, bool *out,
                                      struct error *err);
/* The file is complete: the rest goes out, the object is published and verified. progress: how many
 * of its bytes are there. *out_sha256: of the file. */
MUST_CHECK int upload_stream_finish(struct upload_stream *stream, uint64_t size,
                                    void (*progress)(void *arg, uint64_t bytes_stored),
                                    char out_sha256[DIGEST_HEX_SIZE], struct error *err);

#endif
