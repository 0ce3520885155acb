/* Copying of the frozen disks, one after the other, each in parallel inside.
 *
 * A disk that is through leaves a note ".<stem>-disk1.done" with what is known of it. A later lease
 * believes it when identity, files and leaves fit, and does not open the source for it again. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/export_run.h"

#define NOTE_BYTES_MAX 65536

/* ---- progress ---- */

static void send_progress(struct export_run *run, const char *limited_by)
{
    struct worker_progress progress = {
        .limited_by = limited_by, .disks = run->progress_disks, .disk_count = run->disk_count};

    for (size_t i = 0; i < run->disk_count; i++) {
        const struct worker_disk_progress *disk = &run->progress_disks[i];
        bool copied = strcmp(disk->state, "copying") != 0 && strcmp(disk->state, "waiting") != 0;
        progress.bytes_transferred += run->disks[i].bytes_transferred;
        progress.bytes_total += disk->bytes_total;
        progress.bytes_done += copied ? disk->bytes_total : disk->bytes_done;
    }
    worker_task_progress(run->task, &progress);
}

void export_progress(struct export_run *run, const char *state, uint64_t bytes_done,
                     const char *limited_by)
{
    run->progress_disks[run->progress_disk].state = state;
    run->progress_disks[run->progress_disk].bytes_done = bytes_done;
    send_progress(run, limited_by);
}

static void on_progress(void *arg, const struct copy_progress *progress)
{
    struct export_run *run = arg;

    export_rate_tell(run);
    run->disks[run->progress_disk].bytes_transferred = progress->bytes_transferred;
    export_progress(run, "copying", progress->bytes_done, progress->limited_by);
}

/* ---- the note of a finished disk ---- */

char *export_disk_note(const struct export_run *run, const struct export_disk *disk,
                       const char *what)
{
    return local_note_path(run->dir, disk->name, what, run->generation);
}

static char *identity_of(const struct export_run *run, const struct export_disk *disk)
{
    return xasprintf("%s %s", run->export_id, run->frozen->disks[disk->frozen_index].mark);
}

/* How far the files reach behind where the images begin. */
static int stat_images(struct export_disk *disk, struct error *err)
{
    for (size_t i = 0; i < disk->image_count; i++) {
        struct export_image *image = &disk->images[i];
        struct stat st;
        if (stat(image->path, &st) < 0)
            return error_set_errno(err, errno, "'%.200s'", image->path);
        image->bytes = (uint64_t)st.st_size - min_u64(image->offset, (uint64_t)st.st_size);
    }
    return 0;
}

static int note_store(const struct export_run *run, const struct export_disk *disk,
                      struct error *err)
{
    autofree char *path = export_disk_note(run, disk, EXPORT_NOTE_DONE);
    autofree char *identity = identity_of(run, disk);
    auto_json *note = json_object();
    json_t *images = json_array();
    autofree char *text = NULL;

    json_set_text(note, "identity", identity);
    json_set_text(note, "root", disk->root);
    json_put(note, "shared", json_boolean(disk->shared));
    json_set_text(note, "incremental_mode", disk->incremental_mode);
    json_set_text(note, "incremental_reason", disk->incremental_reason);
    export_set_u64(note, "bytes_data", disk->bytes_data);
    json_put(note, "images", images);
    for (size_t i = 0; i < disk->image_count; i++) {
        json_t *image = export_append(images);
        json_set_text(image, "name", disk->images[i].name);
        export_set_u64(image, "offset", disk->images[i].offset);
        export_set_u64(image, "size", disk->images[i].bytes);
        json_set_text(image, "sha256", disk->images[i].sha256);
    }
    text = json_text(note);
    return file_write_atomic(path, text, strlen(text), LOCAL_FILE_MODE, err);
}

/* Do the images stand there as the note says? */
static bool note_fits(struct export_run *run, struct export_disk *disk, const json_t *note)
{
    autofree char *identity = identity_of(run, disk);
    const json_t *images = json_object_get(note, "images");
    struct error none = ERROR_NONE;

    if (strcmp(json_str(note, "identity"), identity) != 0 ||
        json_array_size(images) != disk->image_count || stat_images(disk, &none) < 0)
        return false;
    for (size_t i = 0; i < disk->image_count; i++) {
        const json_t *image = json_array_get(images, i);
        struct export_image *ours = &disk->images[i];
        uint64_t bytes = json_u64(image, "size");
        uint8_t raw[DIGEST_BYTES];
        if (strcmp(json_str(image, "name"), ours->name) != 0 ||
            json_u64(image, "offset") != ours->offset || bytes == 0 || bytes > ours->bytes ||
            (ours->member == NULL && bytes != ours->bytes))
            return false;
        ours->bytes = bytes; /* in an OVA other disks follow */
        if (hex_decode(json_str(image, "sha256"), raw, sizeof raw))
            hex_encode(raw, sizeof raw, ours->sha256);
    }
    return true;
}

/* true: the disk is complete already, by an earlier lease. */
static bool note_believe(struct export_run *run, struct export_disk *disk)
{
    autofree char *path = export_disk_note(run, disk, EXPORT_NOTE_DONE);
    autofree char *text = NULL;
    auto_json *note = NULL;
    struct error none = ERROR_NONE;
    size_t size = 0;

    if (file_read(path, NOTE_BYTES_MAX, &text, &size, &none) < 0 ||
        json_parse(text, size, NOTE_BYTES_MAX, &note, &none) < 0)
        return false;
    export_share_use(run, disk, json_is_true(json_object_get(note, "shared")));
    if (!note_fits(run, disk, note) || leaves_load(disk->leaves_path, &disk->leaves, &none) < 0)
        return false;
    leaves_root_text(disk->leaves, disk->root);
    disk->bytes_data = json_u64(note, "bytes_data");
    export_base_recall_mode(disk, json_str(note, "incremental_mode"),
                            json_str(note, "incremental_reason"));
    return strcmp(disk->root, json_str(note, "root")) == 0 &&
           leaves_disk_bytes(disk->leaves) == disk->size_bytes;
}

/* ---- copying ---- */

/* The same in every attempt: it is written into the image's header. */
static void image_uuid(const struct export_run *run, const struct export_disk *disk,
                       char out[UUID_SIZE])
{
    autofree char *text = xasprintf("%s/%s", run->export_id, disk->name);
    uint8_t raw[DIGEST_BYTES];
    char hex[DIGEST_HEX_SIZE];

    leaf_digest(text, strlen(text), raw);
    raw[6] = (uint8_t)((raw[6] & 0x0fU) | 0x40U); /* version 4, variant 1 */
    raw[8] = (uint8_t)((raw[8] & 0x3fU) | 0x80U);
    hex_encode(raw, sizeof raw, hex);
    (void)snprintf(out, UUID_SIZE, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16,
                   hex + 20);
}

static void fill_outputs(const struct export_run *run, const struct export_disk *disk,
                         struct copy_output *outputs)
{
    for (size_t i = 0; i < disk->image_count; i++) {
        const struct export_image *image = &disk->images[i];
        outputs[i] = (struct copy_output){.format = image->format,
                                          .path = image->path,
                                          .file_offset = image->offset,
                                          .file_name = export_image_name(image)};
        if (image->format == &sink_qcow2)
            outputs[i].compression = run->options.compression;
        if (disk->backing != NULL) {
            outputs[i].backing = disk->backing;
            outputs[i].backing_root = run->base.root;
        }
        if (image->format == &sink_vmdk || image->format == &sink_zst ||
            outputs[i].compression != NULL)
            outputs[i].compression_level = run->options.compress_level;
    }
}

static unsigned int readers(const struct export_run *run)
{
    unsigned int useful = run->exporter->provider->parallel_reads_max;
    unsigned int wanted = run->options.parallel;

    if (useful > 0 && wanted > useful)
        wanted = useful;
    return wanted > COPY_READERS_MAX ? COPY_READERS_MAX : wanted;
}

static int take_result(struct export_disk *disk, struct copy_result *result, struct error *err)
{
    disk->leaves = STEAL(result->leaves);
    leaves_root_text(disk->leaves, disk->root);
    disk->bytes_data = result->bytes_data;
    disk->bytes_transferred = result->bytes_transferred;
    for (size_t i = 0; i < disk->image_count; i++) {
        if (result->file_sha256[i].known)
            memcpy(disk->images[i].sha256, result->file_sha256[i].hex, DIGEST_HEX_SIZE);
    }
    if (stat_images(disk, err) < 0)
        return -1;
    return leaves_store(disk->leaves, disk->leaves_path, err);
}

static void log_copied(struct export_run *run, const struct export_disk *disk, int64_t took_ms,
                       uint64_t bytes_resumed)
{
    char size[EXPORT_SIZE_TEXT];
    char read[EXPORT_SIZE_TEXT];
    char resumed[EXPORT_SIZE_TEXT];
    double seconds = (double)max_u64((uint64_t)took_ms, 1) / 1000.0;

    worker_task_log(run->task, LOG_LEVEL_INFO, "%s: %s, %s read in %.1f s (%.1f MB/s)%s%s",
                    export_image_name(&disk->images[0]), export_size_text(disk->size_bytes, size),
                    export_size_text(disk->bytes_transferred, read), seconds,
                    (double)disk->bytes_transferred / (double)MIB / seconds,
                    bytes_resumed > 0 ? ", gone on at " : "",
                    bytes_resumed > 0 ? export_size_text(bytes_resumed, resumed) : "");
}

static int copy_all(struct export_run *run, struct export_disk *disk, struct error *err)
{
    autofree char *journal = export_disk_note(run, disk, EXPORT_NOTE_JOURNAL);
    autofree char *identity = identity_of(run, disk);
    autofree char *earlier = export_earlier_path(run, &disk->images[0]);
    struct image_part base_image = {.path = earlier, .format = disk->images[0].format->name};
    struct copy_output outputs[COPY_OUTPUTS_MAX] = {0};
    auto_copy_result result = {0};
    auto_export_stream *stream = NULL;
    char uuid[UUID_SIZE];
    int64_t start_ms = clock_mono_ms();
    struct copy_options options = {
        .provider = run->exporter->provider,
        .session = run->session.session,
        .frozen = run->frozen,
        .disk_index = disk->frozen_index,
        .chunk_bytes = run->exporter->export.chunk_size,
        .readers = readers(run),
        .retries_max = run->exporter->export.max_retries,
        .journal_path = run->lock_fd >= 0 ? journal : NULL, /* no locks, no resume */
        .identity = identity,
        .uuid = uuid,
        .outputs = outputs,
        .output_count = disk->image_count,
        .hash = true,
        .base_leaves = disk->base_leaves,
        .changed = disk->changed,
        .base_image = earlier == NULL ? NULL : &base_image,
        .rate = run->rate,
        .stopped = worker_task_stopped(run->task),
        .may_write = export_may_write,
        .progress = on_progress,
        .arg = run,
    };

    image_uuid(run, disk, uuid);
    fill_outputs(run, disk, outputs);
    if (run->package != NULL) {
        options.follower = export_stream_follower(run->package);
    } else if (run->options.stream) {
        if (export_stream_open(run, disk, journal, &stream, err) < 0)
            return -1;
        options.follower = export_stream_follower(stream);
    }
    if (copy_disk(&options, &result, err) < 0)
        return error_wrap(err, "disk '%.64s'", disk->name);
    if (take_result(disk, &result, err) < 0 || export_may_write(run, err) < 0)
        return -1;
    log_copied(run, disk, clock_mono_ms() - start_ms, result.bytes_resumed);
    if (run->package != NULL)
        return export_ova_disk_done(run, disk, err);
    return stream == NULL ? 0 : export_stream_finish(stream, err);
}

/* A whole disk of which the source says that nothing changed has the base's leaves. */
static void take_base_leaves(struct export_disk *disk)
{
    const struct leaves *base = disk->base_leaves;
    uint8_t zero[DIGEST_BYTES];

    disk->leaves = leaves_new(disk->size_bytes);
    disk->bytes_data = 0;
    disk->bytes_transferred = 0;
    for (size_t i = 0; i < leaves_count(base); i++) {
        uint64_t length = min_u64(LEAF_BYTES, disk->size_bytes - i * (uint64_t)LEAF_BYTES);
        leaf_digest_zero((size_t)length, zero);
        leaves_set(disk->leaves, i, leaves_get(base, i));
        if (memcmp(leaves_get(base, i), zero, DIGEST_BYTES) != 0)
            disk->bytes_data += length;
    }
    leaves_root_text(disk->leaves, disk->root);
}

/* Then its files stay, and nothing is copied: disk->shared. */
static int share_untouched(struct export_run *run, struct export_disk *disk, struct error *err)
{
    if (!run->options.by_disk || disk->changed == NULL || disk->changed_bytes > 0)
        return 0;
    take_base_leaves(disk);
    if (leaves_store(disk->leaves, disk->leaves_path, err) < 0 || export_share(run, disk, err) < 0)
        return -1;
    if (!disk->shared)
        leaves_free(STEAL(disk->leaves));
    return 0;
}

static int copy_one(struct export_run *run, struct export_disk *disk, struct error *err)
{
    export_share_use(run, disk, false);
    if (export_base_changes(run, disk, err) < 0 || share_untouched(run, disk, err) < 0)
        return -1;
    if (!disk->shared && (copy_all(run, disk, err) < 0 || export_share(run, disk, err) < 0))
        return -1;
    return note_store(run, disk, err);
}

int export_copy_disks(struct export_run *run, struct error *err)
{
    export_phase(run, "exporting");
    if (export_is_ova(run) && run->options.stream && export_stream_package(run, err) < 0)
        return -1;
    for (size_t i = 0; i < run->disk_count; i++) {
        struct export_disk *disk = &run->disks[i];
        run->progress_disk = i;
        if (worker_task_check(run->task, err) < 0)
            return -1;
        if (export_is_ova(run))
            export_ova_place(run, i);
        if (run->package != NULL)
            export_stream_place(run->package, disk);
        if (note_believe(run, disk)) {
            worker_task_log(run->task, LOG_LEVEL_INFO, "%s: complete since an earlier attempt",
                            disk->name);
        } else {
            leaves_free(STEAL(disk->leaves));
            if (copy_one(run, disk, err) < 0)
                return -1;
        }
        export_share_drop(run, disk);
        export_progress(run, "done", disk->size_bytes, "");
    }
    return 0;
}

int export_check_marks(struct export_run *run, struct error *err)
{
    const struct provider *provider = run->exporter->provider;

    for (size_t i = 0; i < run->frozen->disk_count; i++) {
        const struct frozen_disk *disk = &run->frozen->disks[i];
        autofree char *mark = NULL;
        if (provider->disk_mark(run->session.session, run->frozen, i, &mark, err) < 0)
            return error_wrap(err, "looking at the disks after the last byte");
        if (strcmp(mark, disk->mark) != 0) {
            return error_set(err, ERR_SOURCE_CHANGED,
                             "disk '%.64s' of '%.128s' changed while it was copied (the VM was "
                             "started, or the snapshot removed): export it again%s",
                             run->frozen->vm.disks[disk->vm_disk_index].label, run->frozen->vm.name,
                             run->options.prepare.snapshot ? "" : ", with a snapshot if it runs");
        }
    }
    return 0;
}
