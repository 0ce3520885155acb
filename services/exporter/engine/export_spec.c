/* What is to be exported: options, the VM, its frozen disks. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/control.h"
#include "services/exporter/engine/export_key.h"
#include "services/exporter/engine/export_run.h"
#include "services/exporter/engine/export_keys.h"

#define SNAPSHOT_TIMEOUT_MS INT64_C(600000) /* --snapshot-timeout's default */
#define METADATA_BYTES      (16 * MIB)      /* descriptor, manifests, leaves, qcow2 tables, slack */
#define COMPRESS_LEVEL_MAX  9
#define BASE_AGE_MAX_MS     UINT64_C(2592000000) /* --incremental-max-age's default, 720 h */

static const char *const spec_keys[] = {"job_id",
                                        "vm",
                                        "output_path",
                                        "format",
                                        "method",
                                        "convert",
                                        "verify",
                                        "snapshot",
                                        "snapshot_name",
                                        "snapshot_memory",
                                        "snapshot_quiesce",
                                        "delete_snapshot",
                                        "consolidate_snapshots",
                                        "parallel",
                                        "compress_level",
                                        "compress",
                                        "upload",
                                        "keep_local",
                                        "stream_upload",
                                        "snapshot_on_error",
                                        "upload_on_error",
                                        "tries_max",
                                        "encrypt_key",
                                        EXPORT_SPEC_PASSPHRASE,
                                        "incremental",
                                        "force_full",
                                        "incremental_max_age_ms",
                                        "enable_cbt",
                                        "remove_cdrom",
                                        "shutdown",
                                        "bases",
                                        "bandwidth",
                                        "cleanup", /* the scheduler's, when the job is complete */
                                        "tags",
                                        "metadata",
                                        NULL};
static const char *const formats[] = {"ovf", "ova", "vmdk", "raw", "qcow2"};

static int check_format(const char *format, struct error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (strcmp(format, formats[i]) == 0)
            return 0;
    }
    return error_set(err, ERR_NOT_AVAILABLE,
                     "format '%.32s' is not available: choose ovf, ova, vmdk, raw or qcow2",
                     format);
}

/* Only what the provider can be asked for. */
static int read_method(const struct export_run *run, const json_t *spec, const char **out,
                       struct error *err)
{
    const struct provider *provider = run->exporter->provider;
    const char *method = "";

    if (json_get_string(spec, "method", "", &method, err) < 0)
        return -1;
    *out = NULL;
    if (method[0] == '\0')
        return 0;
    for (const struct provider_method *m = provider->methods; m != NULL && m->name != NULL; m++) {
        if (m->asked != NULL && strcmp(m->asked, method) == 0) {
            *out = method;
            return 0;
        }
    }
    return error_set(err, ERR_NOT_AVAILABLE,
                     "method '%.32s' is not available for %s: leave it out, then it is chosen",
                     method, provider->title);
}

static int check_compression(const struct export_options *options, struct error *err)
{
    if (options->compression == NULL)
        return 0;
    if (strcmp(options->compression, "zlib") != 0 && strcmp(options->compression, "zstd") != 0) {
        return error_set(err, ERR_INVALID, "compress: '%.32s' is not zlib or zstd",
                         options->compression);
    }
    if (strcmp(options->format, "raw") == 0 && strcmp(options->compression, "zstd") != 0) {
        return error_set(
            err, ERR_NOT_AVAILABLE,
            "format raw is compressed with zstd: leave the codec out, or choose qcow2");
    }
    return 0;
}

static int read_snapshot(const json_t *spec, struct prepare_options *out, struct error *err)
{
    out->timeout_ms = SNAPSHOT_TIMEOUT_MS;
    if (json_get_bool(spec, "snapshot", false, &out->snapshot, err) < 0 ||
        json_get_string(spec, "snapshot_name", NULL, &out->snapshot_name, err) < 0 ||
        json_get_bool(spec, "snapshot_memory", false, &out->snapshot_memory, err) < 0 ||
        json_get_bool(spec, "snapshot_quiesce", true, &out->snapshot_quiesce, err) < 0 ||
        json_get_bool(spec, "delete_snapshot", true, &out->delete_snapshot, err) < 0 ||
        json_get_bool(spec, "consolidate_snapshots", false, &out->consolidate, err) < 0)
        return -1;
    if (out->snapshot_name != NULL && out->snapshot_name[0] == '\0')
        out->snapshot_name = NULL;
    return 0;
}

static int read_incremental(const json_t *spec, struct export_options *options, struct error *err)
{
    uint64_t age_ms = 0;

    if (json_get_bool(spec, "incremental", false, &options->incremental, err) < 0 ||
        json_get_bool(spec, "force_full", false, &options->force_full, err) < 0 ||
        json_get_bool(spec, "enable_cbt", false, &options->enable_cbt, err) < 0 ||
        json_get_u64(spec, "incremental_max_age_ms", 0, INT64_MAX, BASE_AGE_MAX_MS, &age_ms, err) <
            0)
        return -1;
    options->incremental_max_age_ms = (int64_t)age_ms;
    options->by_disk = options->incremental && strcmp(options->format, "qcow2") != 0;
    if (options->incremental && strcmp(options->format, "ova") == 0) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "an OVA is one file, of which nothing can stay as it was");
    }
    return 0;
}

static int read_on_error(const json_t *spec, struct export_options *options, struct error *err)
{
    const char *snapshot = "";
    const char *upload = "";

    if (json_get_string(spec, "snapshot_on_error", "fail", &snapshot, err) < 0 ||
        json_get_string(spec, "upload_on_error", "fail", &upload, err) < 0 ||
        json_get_u64(spec, "tries_max", 0, UINT32_MAX, 0, &options->tries_max, err) < 0)
        return -1;
    options->snapshot_may_fail = strcmp(snapshot, "continue") == 0;
    options->upload_may_fail = strcmp(upload, "continue") == 0;
    return 0;
}

int export_spec_read(struct export_run *run, struct error *err)
{
    const json_t *spec = worker_task_spec(run->task);
    struct export_options *options = &run->options;
    uint64_t parallel = 0;
    uint64_t level = 0;
    const char *compress = "";
    const char *encrypt_key = "";
    const char *passphrase = "";

    if (json_check_keys(spec, spec_keys, err) < 0 ||
        json_get_string(spec, "job_id", worker_task_job_id(run->task), &options->job_id, err) < 0 ||
        json_get_string(spec, "vm", "", &options->vm, err) < 0 ||
        json_get_string(spec, "output_path", "", &options->output_path, err) < 0 ||
        json_get_string(spec, "format", "ovf", &options->format, err) < 0 ||
        json_get_bool(spec, "convert", false, &options->convert, err) < 0 ||
        json_get_bool(spec, "verify", true, &options->verify, err) < 0 ||
        read_snapshot(spec, &options->prepare, err) < 0 || export_cdroms_read(run, spec, err) < 0 ||
        read_method(run, spec, &options->prepare.method, err) < 0 ||
        json_get_u64(spec, "parallel", 0, EXPORT_PARALLEL_MAX, EXPORT_PARALLEL_DEFAULT, &parallel,
                     err) < 0 ||
        json_get_u64(spec, "compress_level", 0, COMPRESS_LEVEL_MAX, 0, &level, err) < 0 ||
        json_get_string(spec, "compress", "", &compress, err) < 0 ||
        json_get_string(spec, "upload", "", &options->upload, err) < 0 ||
        json_get_bool(spec, "keep_local", true, &options->keep_local, err) < 0 ||
        json_get_bool(spec, "stream_upload", false, &options->stream, err) < 0 ||
        json_get_string(spec, "encrypt_key", "", &encrypt_key, err) < 0 ||
        json_get_string(spec, EXPORT_SPEC_PASSPHRASE, "", &passphrase, err) < 0 ||
        read_incremental(spec, options, err) < 0 || read_on_error(spec, options, err) < 0 ||
        json_get_object(spec, "tags", &options->tags, err) < 0)
        return error_wrap(err, "export task");
    if (options->vm[0] == '\0' || options->output_path[0] == '\0')
        return error_set(err, ERR_INVALID, "export task names no vm or no output_path");
    options->prepare.job_id = options->job_id;
    options->parallel = parallel == 0 ? EXPORT_PARALLEL_DEFAULT : (unsigned int)parallel;
    options->compress_level = (int)level;
    options->compression = compress[0] == '\0' ? NULL : compress;
    options->encrypt_key = encrypt_key[0] == '\0' ? NULL : encrypt_key;
    options->passphrase = passphrase[0] == '\0' ? NULL : passphrase;
    if (check_format(options->format, err) < 0 || export_stream_check(options, err) < 0 ||
        export_encryption_open(run, err) < 0)
        return -1;
    return check_compression(options, err);
}

/* ---- the VM ---- */

static int check_exportable(const struct vm *vm, struct error *err)
{
    size_t usable = 0;

    for (size_t i = 0; i < vm->disk_count; i++) {
        if (vm->disks[i].skip_reason[0] == '\0')
            usable++;
    }
    if (usable > 0)
        return 0;
    if (vm->disk_count == 0)
        return error_set(err, ERR_NOT_AVAILABLE, "VM '%.128s' has no disk", vm->name);
    return error_set(err, ERR_NOT_AVAILABLE,
                     "VM '%.128s' has no disk that can be exported: '%.64s' %.200s", vm->name,
                     vm->disks[0].label, vm->disks[0].skip_reason);
}

/* Images per disk: the format's own, and the qcow2 of a conversion in the same pass. */
static size_t images_per_disk(const struct export_options *options)
{
    return options->convert && strcmp(options->format, "qcow2") != 0 ? 2 : 1;
}

/* Compression is not counted on: data that does not shrink is usual. What changed since the last
 * restore point is not known before. */
int export_check_space(struct export_run *run, const struct vm *vm, struct error *err)
{
    const char *dir = run->dir != NULL ? run->dir : run->output;
    const char *stem = worker_task_record_get(run->task, EXPORT_KEY_STEM);
    uint64_t capacity = 0;
    uint64_t bytes;
    uint64_t needed = 0;
    uint64_t present;

    for (size_t i = 0; i < vm->disk_count; i++) {
        if (vm->disks[i].skip_reason[0] == '\0' &&
            !checked_add_u64(capacity, vm->disks[i].capacity_bytes, &capacity))
            return error_set(err, ERR_LIMIT, "VM '%.128s' has disks of impossible size", vm->name);
    }
    bytes = vm->used_bytes > 0 ? min_u64(vm->used_bytes, capacity) : capacity;
    if (run->base.chain != NULL && !run->options.by_disk)
        bytes = 0;
    if (run->options.stream)
        bytes = export_stream_room(run, bytes);
    if (!checked_mul_u64(bytes, images_per_disk(&run->options), &needed) ||
        !checked_add_u64(needed, METADATA_BYTES, &needed))
        return error_set(err, ERR_LIMIT, "VM '%.128s' has disks of impossible size", vm->name);
    present = run->dir == NULL || stem == NULL ? 0 : local_partial_bytes(run->dir, stem);
    return local_check_space(dir, needed - min_u64(needed, present), err);
}

static int resolve_vm(struct export_run *run, struct error *err)
{
    const char *known = worker_task_record_get(run->task, EXPORT_KEY_VM);

    if (known != NULL) { /* it may have been renamed since */
        run->vm_id = xstrdup(known);
        return 0;
    }
    if (exporter_vm_find(&run->session, run->options.vm, &run->vm_id, err) < 0)
        return -1;
    return worker_task_record_put(run->task, EXPORT_KEY_VM, run->vm_id, err);
}

int export_find_vm(struct export_run *run, struct error *err)
{
    char size[EXPORT_SIZE_TEXT];
    auto_vm vm;

    vm_init(&vm);
    export_phase(run, "connecting");
    if (exporter_task_session(run->task, run->exporter, &run->session, err) < 0)
        return -1;
    export_phase(run, "discovering");
    if (resolve_vm(run, err) < 0 ||
        run->exporter->provider->vm_get(run->session.session, run->vm_id, &vm, err) < 0 ||
        check_exportable(&vm, err) < 0)
        return -1;
    worker_task_log(run->task, LOG_LEVEL_INFO, "VM found: %s (%s), %s, %s, %zu disk%s, %s", vm.name,
                    vm.id, vm.path, vm_power_name(vm.power), vm.disk_count,
                    vm.disk_count == 1 ? "" : "s", export_size_text(vm.storage_bytes, size));
    if (export_base_find(run, &vm, err) < 0)
        return -1;
    return export_check_space(run, &vm, err);
}

/* A provider may leave disks out that it cannot freeze, or refuse the VM because of them. */
static void warn_of_missing_disks(struct export_run *run)
{
    const struct frozen_vm *frozen = run->frozen;

    for (size_t i = 0; i < frozen->vm.disk_count; i++) {
        const struct vm_disk *disk = &frozen->vm.disks[i];
        bool there = false;
        for (size_t k = 0; k < frozen->disk_count && !there; k++)
            there = frozen->disks[k].vm_disk_index == i;
        if (!there) {
            export_warn(run, "snapshotting", "%s is left out: %s", disk->label,
                        disk->skip_reason[0] != '\0' ? disk->skip_reason : "it cannot be frozen");
        }
    }
}

bool export_uses_snapshot(const struct export_run *run)
{
    const char *method = run->frozen != NULL
                             ? run->frozen->method
                             : json_str(json_object_get(run->plan->document, "source"), "method");

    return strncmp(method, "snapshot", strlen("snapshot")) == 0;
}

static void log_frozen(struct export_run *run)
{
    size_t count = run->frozen->disk_count;

    worker_task_log(run->task, LOG_LEVEL_INFO, "%s: %zu disk%s to read (%s)",
                    export_uses_snapshot(run) ? "snapshot created" : "no snapshot needed", count,
                    count == 1 ? "" : "s", run->frozen->method);
}

int export_track(struct export_run *run, struct error *err)
{
    const struct provider *provider = run->exporter->provider;
    struct tracking_options options = {.on = true, .job_id = run->options.job_id};
    bool changed = false;

    if (!run->options.enable_cbt)
        return 0;
    if (provider->set_tracking == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "%s has no change tracking to switch on: leave enable_cbt out",
                         provider->title);
    }
    export_phase(run, "snapshotting");
    if (provider->set_tracking(run->session.session, run->vm_id, &options, &run->records.base,
                               &changed, err) < 0)
        return error_wrap(err, "switching change tracking on");
    worker_task_log(run->task, LOG_LEVEL_INFO,
                    changed ? "change tracking was switched on for the VM, as asked"
                            : "change tracking is on already");
    return 0;
}

/* The snapshot that was asked for failed. A VM that cannot be read without one fails with why. */
static int freeze_without_snapshot(struct export_run *run, struct error *err)
{
    const struct provider *provider = run->exporter->provider;
    struct prepare_options options = run->options.prepare;
    struct error cause = *err;
    struct error second = ERROR_NONE;

    if (!export_goes_on(run, run->options.snapshot_may_fail, err))
        return -1;
    options.snapshot = false;
    options.never_snapshot = true;
    if (provider->prepare(run->session.session, run->vm_id, &options, &run->records.base,
                          &run->frozen, &second) < 0) {
        if (second.code != ERR_NOT_AVAILABLE) {
            *err = second;
            return -1;
        }
        return error_wrap(err, "this VM cannot be exported without a snapshot, which failed");
    }
    error_clear(err);
    export_warn(run, "snapshotting",
                "the snapshot failed, its disks are read without one, as asked; if anything writes "
                "to them meanwhile the export fails: %s",
                cause.message);
    return export_step_failed(run, EXPORT_STEP_SNAPSHOT, &cause, err);
}

int export_freeze(struct export_run *run, struct error *err)
{
    const struct provider *provider = run->exporter->provider;

    export_phase(run, "snapshotting");
    if (provider->prepare(run->session.session, run->vm_id, &run->options.prepare,
                          &run->records.base, &run->frozen, err) == 0) {
        if (export_step_done(run, EXPORT_STEP_SNAPSHOT, err) < 0)
            return -1;
    } else if (freeze_without_snapshot(run, err) < 0) {
        return -1;
    }
    if (run->frozen->disk_count == 0 || run->frozen->disk_count > VM_DISKS_MAX) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "VM '%.128s' has no disk that can be exported (or more than %d)",
                         run->frozen->vm.name, VM_DISKS_MAX);
    }
    log_frozen(run);
    warn_of_missing_disks(run);
    return 0;
}

/* ---- disks, names, outputs ---- */

static void add_image(struct export_run *run, struct export_disk *disk, const char *format)
{
    struct export_image *image = &disk->images[disk->image_count++];

    assert(disk->image_count <= COPY_OUTPUTS_MAX);
    image->format = sink_format_find(format);
    assert(image->format != NULL);
    image->name = xasprintf("%s%s", disk->name, image->format->suffix);
    image->path = local_partial_path(run->dir, image->name, run->generation);
}

static void plan_disk(struct export_run *run, size_t index)
{
    const struct frozen_disk *frozen = &run->frozen->disks[index];
    struct export_disk *disk = &run->disks[index];
    const char *format = run->options.format;

    assert(frozen->vm_disk_index < run->frozen->vm.disk_count);
    disk->frozen_index = index;
    disk->vm_disk_index = frozen->vm_disk_index;
    disk->size_bytes = frozen->size_bytes;
    disk->incremental_mode = "";
    disk->name = xasprintf("%s-disk%zu", run->stem, frozen->vm_disk_index + 1);
    if (strcmp(format, "ovf") == 0 || strcmp(format, "ova") == 0) {
        format = "vmdk";
    } else if (strcmp(format, "raw") == 0 && run->options.compression != NULL) {
        format = "raw.zst";
    }
    add_image(run, disk, format);
    if (images_per_disk(&run->options) > 1)
        add_image(run, disk, "qcow2");
    disk->leaves_name = xasprintf("%s.leaves", disk->name);
    disk->leaves_path = local_partial_path(run->dir, disk->leaves_name, run->generation);
}

int export_disks_plan(struct export_run *run, struct error *err)
{
    run->disk_count = run->frozen->disk_count;
    run->disks = xcalloc(run->disk_count, sizeof *run->disks);
    run->progress_disks = xcalloc(run->disk_count, sizeof *run->progress_disks);
    for (size_t i = 0; i < run->disk_count; i++) {
        struct worker_disk_progress *progress = &run->progress_disks[i];
        plan_disk(run, i);
        if (export_base_disk(run, &run->disks[i], err) < 0)
            return -1;
        (void)snprintf(progress->id, sizeof progress->id, "%s",
                       run->frozen->vm.disks[run->disks[i].vm_disk_index].id);
        (void)snprintf(progress->file, sizeof progress->file, "%s", run->disks[i].images[0].name);
        progress->bytes_total = run->disks[i].size_bytes;
        progress->state = "waiting";
    }
    return export_is_ova(run) ? export_ova_plan(run, err) : 0;
}

void export_base_digest(const struct export_run *run, char out[DIGEST_HEX_SIZE])
{
    uint8_t raw[DIGEST_BYTES];
    auto_strbuf sb;

    strbuf_init(&sb, LEAF_BYTES);
    strbuf_addf(&sb, "%s %d %d %s %" PRIu64 " %s\n", run->options.format, run->options.convert,
                run->options.compress_level,
                run->options.compression == NULL ? "-" : run->options.compression,
                run->exporter->export.chunk_size, run->stem);
    if (run->base.chain != NULL)
        strbuf_addf(&sb, "on %s\n", run->base.chain->points[0].record->export_id);
    for (size_t i = 0; i < run->frozen->disk_count; i++) {
        strbuf_addf(&sb, "%" PRIu64 " %s\n", run->frozen->disks[i].size_bytes,
                    run->frozen->disks[i].mark);
    }
    leaf_digest(sb.data, sb.length, raw);
    hex_encode(raw, sizeof raw, out);
}

void export_disks_free(struct export_run *run)
{
    for (size_t i = 0; i < run->disk_count; i++) {
        struct export_disk *disk = &run->disks[i];
        for (size_t k = 0; k < disk->image_count; k++) {
            free(disk->images[k].name);
            free(disk->images[k].path);
            free(disk->images[k].member);
            free(disk->images[k].earlier);
        }
        free(disk->name);
        free(disk->leaves_name);
        free(disk->leaves_path);
        free(disk->backing);
        free(disk->changed);
        leaves_free(disk->leaves);
    }
    export_ova_free(run);
    free(run->disks);
    free(run->progress_disks);
    run->disks = NULL;
    run->progress_disks = NULL;
    run->disk_count = 0;
}
