/* What stands next to the images: descriptor, digest lists, leaves, manifests; and the proof that
 * the images are what was read. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/export_evidence.h"
#include "services/exporter/engine/export_run.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ovf.h"

#define VERIFY_THREADS_MAX 2 /* decompressing and hashing; the next task wants CPU as well */

int export_add_file(struct export_run *run, const char *name, const char *type, uint64_t size,
                    const char *sha256, struct error *err)
{
    struct export_file *file;

    if (run->file_count == EXPORT_FILES_MAX)
        return error_set(err, ERR_LIMIT, "an export of more than %d files", EXPORT_FILES_MAX);
    file = &run->files[run->file_count++];
    *file = (struct export_file){.name = xstrdup(name), .type = type, .size = size};
    (void)snprintf(file->sha256, sizeof file->sha256, "%s", sha256);
    return 0;
}

int export_write_file(struct export_run *run, const char *name, const char *type, const char *text,
                      size_t size, struct error *err)
{
    autofree char *path = local_partial_path(run->dir, name, run->generation);
    char sha256[DIGEST_HEX_SIZE];

    if (export_may_write(run, err) < 0 ||
        file_write_atomic(path, text, size, LOCAL_FILE_MODE, err) < 0 ||
        file_sha256(path, sha256, err) < 0)
        return -1;
    return export_add_file(run, name, type, size, sha256, err);
}

/* ---- images ---- */

static int digest_image(struct export_run *run, struct export_image *image, struct error *err)
{
    char hex[DIGEST_HEX_SIZE];

    if (file_sha256_until(image->path, worker_task_stopped(run->task), hex, err) < 0)
        return -1;
    if (image->sha256[0] != '\0' && strcmp(image->sha256, hex) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' reads back as SHA-256 %.12s..., %.12s... was written: is the "
                         "storage sound?",
                         image->name, hex, image->sha256);
    }
    memcpy(image->sha256, hex, sizeof hex);
    image->read_back = true;
    return 0;
}

static int add_disk_files(struct export_run *run, struct export_disk *disk, struct error *err)
{
    char hex[DIGEST_HEX_SIZE];
    struct stat st;

    for (size_t i = 0; i < disk->image_count; i++) {
        struct export_image *image = &disk->images[i];
        if (image->member != NULL)
            continue; /* the package is the file */
        if (image->sha256[0] == '\0' && digest_image(run, image, err) < 0)
            return -1;
        if (export_add_file(run, image->name, "disk", image->bytes, image->sha256, err) < 0)
            return -1;
    }
    if (file_sha256_until(disk->leaves_path, worker_task_stopped(run->task), hex, err) < 0)
        return -1;
    if (stat(disk->leaves_path, &st) < 0)
        return error_set(err, ERR_CORRUPT, "'%.200s' is gone", disk->leaves_path);
    return export_add_file(run, disk->leaves_name, "leaves", (uint64_t)st.st_size, hex, err);
}

int export_descriptor(const struct export_run *run, bool reserve, char **out, struct error *err)
{
    autofree struct ovf_disk *disks = xcalloc(run->disk_count, sizeof *disks);

    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_disk *disk = &run->disks[i];
        const struct export_image *image = &disk->images[0];
        disks[i] = (struct ovf_disk){.file_name = export_image_name(image),
                                     .file_bytes = reserve ? UINT64_MAX
                                                           : image->bytes, /* the longest number */
                                     .capacity_bytes = disk->size_bytes,
                                     .populated_bytes = reserve ? UINT64_MAX : disk->bytes_data,
                                     .vm_disk_index = disk->vm_disk_index};
    }
    return ovf_write(&run->frozen->vm, disks, run->disk_count, out, err);
}

static int write_descriptor(struct export_run *run, struct error *err)
{
    autofree char *name = xasprintf("%s.ovf", run->stem);
    autofree char *text = NULL;

    if (export_descriptor(run, false, &text, err) < 0)
        return -1;
    return export_write_file(run, name, "ovf", text, strlen(text), err);
}

int export_package(struct export_run *run, struct error *err)
{
    export_phase(run, "packaging");
    if (strcmp(run->options.format, "ovf") == 0 && write_descriptor(run, err) < 0)
        return error_wrap(err, "descriptor");
    if (export_is_ova(run) && export_ova_pack(run, err) < 0)
        return error_wrap(err, "packing '%.200s'", run->ova.name);
    for (size_t i = 0; i < run->disk_count; i++) {
        if (worker_task_check(run->task, err) < 0 || add_disk_files(run, &run->disks[i], err) < 0)
            return -1;
    }
    return 0;
}

/* ---- verification ---- */

static void on_verified(void *arg, uint64_t bytes_done)
{
    export_progress(arg, "verifying", bytes_done, "");
}

static int verify_disk(struct export_run *run, struct export_disk *disk, struct error *err)
{
    if (run->options.stream)
        return export_stream_verify(run, disk, on_verified, err);
    for (size_t i = 0; i < disk->image_count; i++) {
        struct export_image *image = &disk->images[i];
        const struct copy_verify_options options = {
            .image = {.path = image->path,
                      .format = image->format->name,
                      .root = run->base.root,
                      .offset = image->offset,
                      .length = image->member != NULL ? image->bytes : 0},
            .leaves = disk->leaves,
            .threads = VERIFY_THREADS_MAX,
            .stopped = worker_task_stopped(run->task),
            .progress = on_verified,
            .arg = run,
        };
        const char *name = export_image_name(image);
        if (copy_verify(&options, err) < 0)
            return error_wrap(err, "verifying '%.200s'", name);
        if (!image->read_back && digest_image(run, image, err) < 0)
            return error_wrap(err, "verifying '%.200s'", name);
        worker_task_log(run->task, LOG_LEVEL_INFO, "verified: %s holds what was read (%s)", name,
                        disk->root);
    }
    return 0;
}

static const struct export_file *find_file(const struct export_run *run, const char *name)
{
    for (size_t i = 0; i < run->file_count; i++) {
        if (strcmp(run->files[i].name, name) == 0)
            return &run->files[i];
    }
    return NULL;
}

static const struct export_image *find_image(const struct export_run *run, const char *name)
{
    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_image *image = &run->disks[i].images[0];
        if (strcmp(export_image_name(image), name) == 0)
            return image;
    }
    return NULL;
}

int export_check_descriptor(const struct export_run *run, const char *text, size_t size,
                            struct error *err)
{
    auto_ovf *ovf = NULL;

    if (ovf_read(text, size, &ovf, err) < 0)
        return error_wrap(err, "verifying the descriptor");
    if (ovf->disk_count != run->disk_count) {
        return error_set(err, ERR_CORRUPT, "the descriptor names %zu disks of %zu", ovf->disk_count,
                         run->disk_count);
    }
    for (size_t i = 0; i < ovf->file_count; i++) {
        const struct export_image *image = find_image(run, ovf->files[i].href);
        if (image == NULL || image->bytes != ovf->files[i].bytes) {
            return error_set(err, ERR_CORRUPT,
                             "the descriptor names '%.200s', which is not what it says",
                             ovf->files[i].href);
        }
    }
    return 0;
}

/* The descriptor as it stands on disk. */
static int verify_descriptor(struct export_run *run, struct error *err)
{
    autofree char *name = xasprintf("%s.ovf", run->stem);
    autofree char *path = local_partial_path(run->dir, name, run->generation);
    autofree char *text = NULL;
    size_t size = 0;

    if (file_read(path, OVF_BYTES_MAX, &text, &size, err) < 0)
        return error_wrap(err, "verifying '%.200s'", name);
    return export_check_descriptor(run, text, size, err);
}

int export_verify(struct export_run *run, struct error *err)
{
    if (!run->options.verify)
        return 0;
    export_phase(run, "verifying");
    for (size_t i = 0; i < run->disk_count; i++) {
        run->progress_disk = i;
        if (verify_disk(run, &run->disks[i], err) < 0)
            return -1;
        export_progress(run, "done", run->disks[i].size_bytes, "");
    }
    if (export_is_ova(run))
        return export_ova_verify(run, err);
    return strcmp(run->options.format, "ovf") == 0 ? verify_descriptor(run, err) : 0;
}

/* ---- digest lists ---- */

/* "SHA256(file)= hex" of the descriptor and the files it references, descriptor first. */
static int write_mf(struct export_run *run, struct error *err)
{
    autofree struct mf_file *list = xcalloc(run->disk_count + 1, sizeof *list);
    autofree char *ovf_name = xasprintf("%s.ovf", run->stem);
    autofree char *name = xasprintf("%s.mf", run->stem);
    autofree char *text = NULL;
    const struct export_file *ovf = find_file(run, ovf_name);

    assert(ovf != NULL);
    list[0] = (struct mf_file){ovf->name, ovf->sha256};
    for (size_t i = 0; i < run->disk_count; i++) {
        list[i + 1] =
            (struct mf_file){run->disks[i].images[0].name, run->disks[i].images[0].sha256};
    }
    if (mf_format(list, run->disk_count + 1, &text, err) < 0)
        return -1;
    return export_write_file(run, name, "mf", text, strlen(text), err);
}

static int write_checksums(struct export_run *run, struct error *err)
{
    autofree struct mf_file *list = xcalloc(run->file_count, sizeof *list);
    autofree char *text = NULL;

    for (size_t i = 0; i < run->file_count; i++)
        list[i] = (struct mf_file){run->files[i].name, run->files[i].sha256};
    if (checksums_format(list, run->file_count, &text, err) < 0)
        return -1;
    return export_write_file(run, "checksums.txt", "checksums", text, strlen(text), err);
}

/* ---- manifests ---- */

static void fill_manifest_disks(const struct export_run *run, struct manifest_disk *out,
                                char **paths)
{
    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_disk *disk = &run->disks[i];
        /* The last image: with a conversion the qcow2, which is what comes next. */
        const struct export_image *image = &disk->images[disk->image_count - 1];
        paths[i] = export_path(run, image->name);
        out[i] = (struct manifest_disk){.vm_disk_index = disk->vm_disk_index,
                                        .format = image->format->name,
                                        .path = paths[i],
                                        .file_bytes = image->bytes,
                                        .file_sha256 = image->sha256,
                                        .content_digest = disk->root};
        if (image->member != NULL) {
            out[i].format = "ova";
            out[i].member = image->member;
            out[i].file_bytes = run->ova.bytes;
            out[i].file_sha256 = run->ova.sha256;
        }
    }
}

static int build_manifest(struct export_run *run, json_t **out, struct error *err)
{
    autofree struct manifest_disk *disks = xcalloc(run->disk_count, sizeof *disks);
    autofree char **paths = xcalloc(run->disk_count, sizeof *paths);
    struct manifest_warning warnings[EXPORT_WARNINGS_MAX];
    struct manifest_facts facts = {
        .vm = &run->frozen->vm,
        .provider = run->exporter->provider->name,
        .method = run->frozen->method,
        .job_id = run->options.job_id,
        .version = HYPERSDK_VERSION,
        .export_wall_ms = clock_wall_ms(),
        .tags = run->options.tags,
        .disks = disks,
        .disk_count = run->disk_count,
        .warnings = warnings,
        .warning_count = run->warning_count,
    };
    int result;

    for (size_t i = 0; i < run->warning_count; i++) {
        warnings[i] = (struct manifest_warning){run->warnings[i].stage, run->warnings[i].message,
                                                run->warnings[i].wall_ms};
    }
    fill_manifest_disks(run, disks, paths);
    result = manifest_build(&facts, out, err);
    if (result == 0 && run->options.incremental)
        json_put(*out, "incremental", export_base_summary(run));
    for (size_t i = 0; i < run->disk_count; i++)
        free(paths[i]);
    return result;
}

static int write_manifests(struct export_run *run, struct error *err)
{
    auto_json *manifest = NULL;
    autofree char *plain = NULL;
    autofree char *json = NULL;
    autofree char *yaml = NULL;

    if (build_manifest(run, &manifest, err) < 0 ||
        yaml_format(manifest, MANIFEST_BYTES_MAX, &yaml, err) < 0)
        return -1;
    plain = json_dumps(manifest, JSON_INDENT(2));
    if (plain == NULL)
        abort(); /* out of memory */
    json = xasprintf("%s\n", plain);
    json_decref(run->plain_manifest);
    run->plain_manifest = json_incref(manifest);
    if (export_write_file(run, MANIFEST_JSON_NAME, "manifest", json, strlen(json), err) < 0)
        return -1;
    return export_write_file(run, MANIFEST_YAML_NAME, "manifest", yaml, strlen(yaml), err);
}

int export_plan_store(struct export_run *run, struct error *err)
{
    autofree char *path = export_plan_path(run);
    auto_json *document = NULL;
    autofree char *plain = NULL;
    autofree char *text = NULL;

    if ((strcmp(run->options.format, "ovf") == 0 && write_mf(run, err) < 0) ||
        write_manifests(run, err) < 0 || write_checksums(run, err) < 0 ||
        export_encrypt(run, err) < 0 || export_evidence_write(run, err) < 0)
        return -1;
    document = export_document(run);
    plain = json_dumps(document, JSON_INDENT(2));
    if (plain == NULL)
        abort();
    text = xasprintf("%s\n", plain);
    if (export_may_write(run, err) < 0 ||
        file_write_atomic(path, text, strlen(text), LOCAL_FILE_MODE, err) < 0)
        return -1;
    /* Read as a later lease would read it: what it would not believe must not be stored. */
    return export_record_load(path, &run->plan, err);
}
