/* stream_upload: images go to the target while they are written, no copy of them stays here.
 *
 * Design notes
 * - The image is written as ever, to its partial file: that is a spool. upload_stream.h sends what
 *   is final in it and punches it out; the copy engine's readers wait when it is too far ahead.
 *   Disks come one after the other, so there is one spool at a time.
 * - A disk counts as copied (its note) when its object is complete at the target. Everything that
 *   stands next to the images is small: it is written here, goes up after the plan is stored, and
 *   export.json last; nothing ever gets its final name here.
 * - Resuming: the journal speaks of what the spool had, the upload's state of what the target has.
 *   Both go on together or begin anew together.
 * - An OVA is one object: its upload lasts from the first disk to the last (run->package), while
 *   each disk is copied into it with a journal of its own. Its front is written last; the header of
 *   a disk when the disk is complete, before its note, so only the part that holds it is held back
 *   meanwhile. Its digest list names what the disks' writers wrote, which is compared with what is
 *   read back.
 * - The front of a qcow2 is written last, and goes out last (upload_stream.h). Pieces that come
 *   again after a restart are appended once more: the image may grow by that. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "services/exporter/engine/export_run.h"
#include "services/exporter/formats/ova.h"
#include "services/exporter/formats/running_sha256.h"
#include "services/exporter/targets/upload_stream.h"

/* More than an image may grow by, if nothing can be compressed: a grain's record takes 66,560 bytes
 * of 65,536, tables 3 KiB of 32 MiB; headers, directory, seek table. */
#define GROWTH_DIVISOR 32U
#define GROWTH_BYTES   (16 * MIB)
#define PIECES_BYTES   (SINK_PIECE_BYTES * COPY_PIECES_PER_READER) /* of a reader, under way */
/* By pieces that a restart repeats, where they are appended: at most a chunk per reader each time.
 * With four readers and chunks of 16 MiB so many as 16 restarts. */
#define REPEATED_BYTES GIB
#define INDEX_DIVISOR  8192U /* of a qcow2: 8 bytes for 64 KiB */

struct export_stream {
    struct export_run *run;
    struct export_disk *disk;
    struct export_image *image;
    size_t index; /* of the upload */
    char *object;
    char *state_path;
    char *old_id;
    char *identity;
    struct upload_stream_spec spec;
    struct upload_stream *upload;
    bool begun;
    struct copy_follower follower;
    /* Of a package: */
    uint64_t through; /* its disks before that offset are complete */
    size_t member;    /* being read back */
    struct running_sha256 *member_sha256;
};

int export_stream_check(const struct export_options *options, struct error *err)
{
    const char *what = NULL;

    if (!options->stream)
        return 0;
    if (options->upload[0] == '\0')
        return error_set(err, ERR_INVALID, "stream_upload names no upload");
    if (options->convert) {
        what = "a conversion reads";
    } else if (options->incremental) {
        what = "the next incremental export reads";
    } else if (options->encrypt_key != NULL || options->passphrase != NULL) {
        what = "encryption reads";
    }
    if (what == NULL)
        return 0;
    return error_set(err, ERR_NOT_AVAILABLE,
                     "stream_upload leaves no local files, which %s: leave one of them out", what);
}

static uint64_t grown(uint64_t bytes)
{
    return bytes + bytes / GROWTH_DIVISOR + GROWTH_BYTES;
}

/* Besides what the window allows, of a qcow2: the first part, what was claimed and is not in the
 * file yet, the index. */
static uint64_t appended_room(const struct export_run *run, uint64_t bytes, uint64_t part)
{
    if (export_is_ova(run))
        return 2 * part; /* the first, and the one with the present disk's header */
    if (strcmp(run->options.format, "qcow2") != 0)
        return 0;
    return part + run->options.parallel * (run->exporter->export.chunk_size + PIECES_BYTES) +
           bytes / INDEX_DIVISOR;
}

uint64_t export_stream_room(const struct export_run *run, uint64_t bytes)
{
    uint64_t part = export_upload_target(run)->base.class->part_size(grown(bytes));

    return min_u64(bytes, UPLOAD_STREAM_WINDOW_BYTES + 2 * part + appended_room(run, bytes, part));
}

/* ---- the upload's callbacks ---- */

static int may_write(void *arg, struct error *err)
{
    const struct export_stream *stream = arg;

    return export_may_write(stream->run, err);
}

static int note_id(void *arg, const char *id, struct error *err)
{
    const struct export_stream *stream = arg;

    return export_upload_note(stream->run, stream->index, id, stream->object, err);
}

/* The readers are through; what is missing is on its way. */
static void on_rest(void *arg, uint64_t bytes_stored)
{
    const struct export_stream *stream = arg;

    (void)bytes_stored;
    export_rate_tell(stream->run);
    export_progress(stream->run, "copying", stream->disk->size_bytes, "target");
}

/* ---- the copy engine's ---- */

/* A disk that begins anew in a package begins behind those before it. */
static int begin(void *arg, uint64_t final_bytes, struct error *err)
{
    struct export_stream *stream = arg;
    uint64_t final = max_u64(final_bytes, stream->through);

    if (stream->begun) {
        upload_stream_advance(stream->upload, final);
        return 0;
    }
    stream->begun = true;
    return upload_stream_begin(stream->upload, stream->image->path, final, err);
}

static void advance(void *arg, uint64_t final_bytes)
{
    const struct export_stream *stream = arg;

    upload_stream_advance(stream->upload, final_bytes);
}

/* Of all formats but raw, pieces go to the end of the file, wherever on the disk they are from. An
 * ordered one grows by what is claimed and no more; of the others each reader is let in alone. */
static int has_room(void *arg, uint64_t disk_end, uint64_t claimed, bool *out, struct error *err)
{
    const struct export_stream *stream = arg;
    uint64_t end = disk_end;
    struct stat st;

    if ((stream->image->format->flags & (SINK_ORDERED | SINK_APPENDS)) != 0) {
        if (stat(stream->image->path, &st) < 0)
            return error_set_errno(err, errno, "'%.200s'", stream->image->path);
        end = (uint64_t)st.st_size;
    }
    if ((stream->image->format->flags & SINK_ORDERED) != 0)
        end += claimed;
    return upload_stream_has_room(stream->upload, end, out, err);
}

const struct copy_follower *export_stream_follower(const struct export_stream *stream)
{
    return &stream->follower;
}

/* ---- open, finish, close ---- */

void export_stream_close(struct export_stream *stream)
{
    if (stream == NULL)
        return;
    upload_stream_close(stream->upload);
    running_sha256_free(stream->member_sha256);
    free(stream->object);
    free(stream->state_path);
    free(stream->old_id);
    free(stream->identity);
    free(stream);
}

static char *identity_of(const struct export_run *run, const struct export_image *image)
{
    char base[DIGEST_HEX_SIZE];

    export_base_digest(run, base);
    return xasprintf("%s %" PRIu64 " %s %s", run->export_id, run->generation, base, image->name);
}

static uint64_t size_max(const struct sink_format *format, uint64_t disk_bytes)
{
    if (format == &sink_raw)
        return disk_bytes;
    return grown(disk_bytes) + ((format->flags & SINK_APPENDS) != 0 ? REPEATED_BYTES : 0);
}

static struct export_stream *stream_new(struct export_run *run, struct export_disk *disk)
{
    struct export_stream *stream = xcalloc(1, sizeof *stream);
    struct export_image *image = &disk->images[0];
    const char *recorded = "";

    stream->run = run;
    stream->disk = disk;
    stream->image = image;
    stream->index = EXPORT_UPLOAD_STREAMS + disk->frozen_index;
    stream->object = export_upload_object(run, image->name);
    stream->state_path = export_upload_state(run->dir, stream->index);
    stream->identity = identity_of(run, image);
    stream->old_id = export_upload_id(run->task, stream->index, &recorded);
    stream->spec = (struct upload_stream_spec){
        .name = stream->object,
        .size_max = size_max(image->format, disk->size_bytes),
        .identity = stream->identity,
        .state_path = stream->state_path,
        .head_last = (image->format->flags & SINK_APPENDS) != 0,
        .old_id = strcmp(recorded, stream->object) == 0 ? stream->old_id : NULL,
        .may_write = may_write,
        .note_id = note_id,
        .arg = stream};
    stream->follower = (struct copy_follower){begin, advance, has_room, stream};
    return stream;
}

static int open_upload(const struct export_run *run, struct export_stream *stream, bool *out_anew,
                       struct error *err)
{
    if (run->lock_fd < 0) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "stream_upload needs file locks, which the file system of '%.200s' does "
                         "not have: leave it out, or choose an output_path on another one",
                         run->dir);
    }
    return upload_stream_open(export_upload_target(run), &stream->spec, &stream->upload, out_anew,
                              err);
}

static int forget_file(const char *path, struct error *err)
{
    return unlink(path) == 0 || errno == ENOENT
               ? 0
               : error_set_errno(err, errno, "'%.200s' cannot be removed", path);
}

int export_stream_open(struct export_run *run, struct export_disk *disk, const char *journal,
                       struct export_stream **out, struct error *err)
{
    auto_export_stream *stream = stream_new(run, disk);
    bool anew = false;

    assert(disk->image_count == 1);
    if (open_upload(run, stream, &anew, err) < 0 || (anew && forget_file(journal, err) < 0))
        return -1;
    *out = STEAL(stream);
    return 0;
}

int export_stream_finish(struct export_stream *stream, struct error *err)
{
    struct export_image *image = stream->image;
    char sha256[DIGEST_HEX_SIZE];

    if (upload_stream_finish(stream->upload, image->bytes, on_rest, sha256, err) < 0)
        return -1;
    if (image->sha256[0] != '\0' && strcmp(image->sha256, sha256) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' was uploaded as SHA-256 %.12s..., %.12s... was written: is the "
                         "storage sound?",
                         image->name, sha256, image->sha256);
    }
    memcpy(image->sha256, sha256, sizeof sha256);
    worker_task_log(stream->run->task, LOG_LEVEL_INFO, "%s is complete at the target", image->name);
    return 0;
}

/* ---- of a package ---- */

static uint64_t package_size_max(const struct export_run *run)
{
    uint64_t sum = run->disks[0].images[0].offset + 2 * (uint64_t)OVA_RECORD;

    for (size_t i = 0; i < run->disk_count; i++)
        sum += grown(run->disks[i].size_bytes) + OVA_RECORD;
    return sum;
}

static int end_member(struct export_stream *stream, struct error *err)
{
    const struct export_image *image = &stream->run->disks[stream->member].images[0];
    char sha256[DIGEST_HEX_SIZE];

    running_sha256_end(stream->member_sha256, sha256);
    running_sha256_free(STEAL(stream->member_sha256));
    stream->member++;
    if (strcmp(sha256, image->sha256) == 0)
        return 0;
    return error_set(
        err, ERR_CORRUPT,
        "'%.200s' at the target has the SHA-256 %.12s..., %.12s... was written: is the "
        "storage sound?",
        image->member, sha256, image->sha256);
}

/* What is read back of the package: are its disks what their writers wrote? */
static int take_back(void *arg, uint64_t offset, const void *data, size_t size, struct error *err)
{
    struct export_stream *stream = arg;
    const uint8_t *bytes = data;
    uint64_t end = offset + size;

    while (stream->member < stream->run->disk_count) {
        const struct export_image *image = &stream->run->disks[stream->member].images[0];
        uint64_t from = max_u64(offset, image->offset);
        uint64_t to = min_u64(end, image->offset + image->bytes);
        if (from >= to)
            return 0;
        if (stream->member_sha256 == NULL)
            stream->member_sha256 = running_sha256_new();
        running_sha256_add(stream->member_sha256, bytes + (from - offset), (size_t)(to - from));
        if (to < image->offset + image->bytes)
            return 0;
        if (end_member(stream, err) < 0)
            return -1;
    }
    return 0;
}

static int forget_disks(const struct export_run *run, struct error *err)
{
    for (size_t i = 0; i < run->disk_count; i++) {
        autofree char *journal = export_disk_note(run, &run->disks[i], EXPORT_NOTE_JOURNAL);
        autofree char *done = export_disk_note(run, &run->disks[i], EXPORT_NOTE_DONE);
        if (forget_file(done, err) < 0 || forget_file(journal, err) < 0)
            return -1;
    }
    return 0;
}

int export_stream_package(struct export_run *run, struct error *err)
{
    struct export_stream *stream;
    uint64_t front;
    uint64_t part;
    bool anew = false;

    export_ova_place(run, 0);
    front = run->disks[0].images[0].offset;
    stream = stream_new(run, &run->disks[0]);
    run->package = stream;
    stream->spec.size_max = package_size_max(run);
    stream->spec.head_last = true;
    stream->spec.take = take_back;
    part = export_upload_target(run)->base.class->part_size(stream->spec.size_max);
    if (front > part) { /* all of it changes until the end, and only the first part may */
        return error_set(err, ERR_NOT_AVAILABLE,
                         "stream_upload: the descriptor of '%.128s' takes more than a part of "
                         "%" PRIu64 " bytes: choose format ovf, or leave stream_upload out",
                         run->stem, part);
    }
    if (open_upload(run, stream, &anew, err) < 0)
        return -1;
    return anew ? forget_disks(run, err) : 0;
}

void export_stream_place(struct export_stream *stream, struct export_disk *disk)
{
    uint64_t header = disk->images[0].offset - OVA_BLOCK;

    stream->disk = disk;
    stream->image = &disk->images[0];
    upload_stream_hold(stream->upload, header);
    if (disk == stream->run->disks)
        return; /* what is before it is the front */
    stream->through = header;
    if (stream->begun)
        upload_stream_advance(stream->upload, header);
}

int export_stream_packed(struct export_run *run, struct error *err)
{
    struct export_stream *stream = run->package;
    const struct export_image *last = &run->disks[run->disk_count - 1].images[0];

    if (begin(stream, last->offset + last->bytes, err) < 0 ||
        upload_stream_finish(stream->upload, run->ova.bytes, on_rest, run->ova.sha256, err) < 0)
        return -1;
    worker_task_log(run->task, LOG_LEVEL_INFO, "%s is complete at the target", run->ova.name);
    export_stream_close(STEAL(run->package));
    return 0;
}

/* ---- reading it back ---- */

struct remote {
    struct target *target;
    const char *object;
};

static int read_remote(void *arg, void *buffer, size_t length, uint64_t offset, struct error *err)
{
    const struct remote *remote = arg;
    uint8_t *bytes = buffer;

    while (length > 0) {
        struct target_range range = {.offset = offset, .buffer = bytes, .size = length};
        if (remote->target->base.class->read(remote->target, remote->object, &range, err) < 0)
            return -1;
        if (range.got == 0)
            return error_set(err, ERR_CORRUPT, "the object ends at %" PRIu64, offset);
        bytes += range.got;
        offset += range.got;
        length -= range.got;
    }
    return 0;
}

int export_stream_read(const struct export_run *run, const char *name, void *buffer, size_t length,
                       uint64_t offset, struct error *err)
{
    autofree char *object = export_upload_object(run, name);
    struct remote remote = {export_upload_target(run), object};

    return read_remote(&remote, buffer, length, offset, err);
}

int export_stream_verify(struct export_run *run, const struct export_disk *disk,
                         void (*progress)(void *arg, uint64_t bytes_done), struct error *err)
{
    const struct export_image *image = &disk->images[0];
    autofree char *object = export_upload_object(run, image->name);
    struct remote remote = {export_upload_target(run), object};
    const struct image_source source = {read_remote, &remote,
                                        image->member != NULL ? run->ova.bytes : image->bytes};
    const struct copy_verify_options options = {
        .image = {.path = object,
                  .source = &source,
                  .format = image->format->name,
                  .offset = image->offset,
                  .length = image->member != NULL ? image->bytes : 0},
        .leaves = disk->leaves,
        .threads = 1, /* each has a cache of its own: two would read everything twice */
        .stopped = worker_task_stopped(run->task),
        .progress = progress,
        .arg = run,
    };

    if (copy_verify(&options, err) < 0)
        return error_wrap(err, "verifying at the target");
    worker_task_log(run->task, LOG_LEVEL_INFO,
                    "verified: %s at the target holds what was read (%s)", export_image_name(image),
                    disk->root);
    return 0;
}
