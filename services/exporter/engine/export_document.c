/* The text of export.json, from a run that is complete and verified. */
#include <string.h>

#include "common/clock.h"
#include "common/crypt_file.h"
#include "common/json.h"
#include "services/exporter/engine/export_run.h"

static void set_time(json_t *object, const char *key, int64_t wall_ms)
{
    char text[CLOCK_RFC3339_SIZE];

    clock_rfc3339(wall_ms, text);
    json_set_text(object, key, text);
}

static json_t *source_make(const struct export_run *run)
{
    const struct vm *vm = &run->frozen->vm;
    json_t *source = vm_to_json(vm, worker_task_provider(run->task));

    (void)json_object_del(source, "disks"); /* they have a list of their own */
    (void)json_object_del(source, "id");
    (void)json_object_del(source, "name");
    (void)json_object_del(source, "provider");
    json_set_text(source, "vm_id", vm->id);
    json_set_text(source, "vm_name", vm->name);
    json_set_text(source, "method", run->frozen->method);
    return source;
}

static json_t *disks_make(const struct export_run *run)
{
    json_t *disks = json_array();

    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_disk *disk = &run->disks[i];
        const struct vm_disk *source = &run->frozen->vm.disks[disk->vm_disk_index];
        const struct export_image *image = &disk->images[disk->image_count - 1];
        bool in_ova = image->member != NULL;
        json_t *object = export_append(disks);
        json_t *images = json_array();
        json_set_text(object, "disk_id", source->id[0] != '\0' ? source->id : disk->name);
        json_set_text(object, "label", source->label);
        json_set_text(object, "file", image->name);
        export_set_u64(object, "size_bytes", in_ova ? run->ova.bytes : image->bytes);
        json_set_text(object, "sha256", in_ova ? run->ova.sha256 : image->sha256);
        export_set_u64(object, "capacity_bytes", disk->size_bytes);
        export_set_u64(object, "data_bytes", disk->bytes_data);
        json_set_text(object, "root", disk->root);
        json_set_text(object, "leaves", disk->leaves_name);
        json_set_text(object, "mark", run->frozen->disks[disk->frozen_index].mark);
        json_set_text(object, "change_id", source->change_id);
        for (size_t k = 0; k < disk->image_count; k++) {
            json_t *item = export_append(images);
            json_set_text(item, "name", disk->images[k].name);
            if (disk->images[k].member != NULL)
                json_set_text(item, "member", disk->images[k].member);
        }
        json_put(object, "images", images);
    }
    return disks;
}

static json_t *files_make(const struct export_run *run)
{
    json_t *files = json_array();

    for (size_t i = 0; i < run->file_count; i++) {
        json_t *object = export_append(files);
        json_set_text(object, "name", run->files[i].name);
        json_set_text(object, "type", run->files[i].type);
        export_set_u64(object, "size", run->files[i].size);
        json_set_text(object, "sha256", run->files[i].sha256);
        if (export_shared_with(run, run->files[i].name) != NULL)
            json_set_text(object, "shared_with", export_shared_with(run, run->files[i].name));
        if (run->files[i].plain_name != NULL) {
            json_set_text(object, "plain_name", run->files[i].plain_name);
            export_set_u64(object, "plain_size", run->files[i].plain_size);
            json_set_text(object, "plain_sha256", run->files[i].plain_sha256);
        }
    }
    return files;
}

static json_t *warnings_make(const struct export_run *run)
{
    json_t *warnings = json_array();

    for (size_t i = 0; i < run->warning_count; i++) {
        json_t *holder = json_object(); /* json_set_text repairs what is not UTF-8 */
        json_set_text(holder, "w", run->warnings[i].message);
        if (json_array_append(warnings, json_object_get(holder, "w")) < 0)
            abort(); /* out of memory */
        json_decref(holder);
    }
    return warnings;
}

/* Seconds per phase, of the attempt that finished. */
static json_t *phases_make(const struct export_run *run)
{
    json_t *phases = json_object();

    for (size_t i = 0; i < run->phase_count; i++) {
        int64_t end_ms = i + 1 < run->phase_count ? run->phases[i + 1].start_ms : clock_mono_ms();
        json_put(phases, run->phases[i].name,
                 json_real((double)(end_ms - run->phases[i].start_ms) / 1000.0));
    }
    return phases;
}

static void set_identity(json_t *document, const struct export_run *run)
{
    json_t *tool = json_object();
    json_t *provider = json_object();

    json_put(document, "record_version", json_integer(EXPORT_RECORD_VERSION));
    json_set_text(document, "export_id", run->export_id);
    json_set_text(document, "job_id", run->options.job_id);
    json_set_text(document, "task_id", worker_task_id(run->task));
    json_set_text(tool, "name", "hypersdk");
    json_set_text(tool, "version", HYPERSDK_VERSION);
    json_put(document, "tool", tool);
    json_set_text(provider, "kind", run->exporter->provider->name);
    json_set_text(provider, "instance", worker_task_provider(run->task));
    json_put(document, "provider", provider);
}

json_t *export_document(const struct export_run *run)
{
    json_t *document = json_object();
    int64_t now_ms = clock_wall_ms();
    uint64_t transferred = 0;

    for (size_t i = 0; i < run->disk_count; i++)
        transferred += run->disks[i].bytes_transferred;
    set_identity(document, run);
    set_time(document, "started_at", run->started_wall_ms);
    set_time(document, "completed_at", now_ms);
    json_put(document, "duration_seconds",
             json_real((double)max_u64(1, (uint64_t)(now_ms - run->started_wall_ms)) / 1000.0));
    json_put(document, "source", source_make(run));
    json_set_text(document, "format", run->options.format);
    json_put(document, "convert", json_boolean(run->options.convert));
    json_put(document, "verified", json_boolean(run->options.verify));
    json_put(document, "options", json_mask_secrets(worker_task_spec(run->task)));
    (void)json_object_del(json_object_get(document, "options"), "bases"); /* the catalogue's */
    export_set_u64(document, "transferred_bytes", transferred);
    json_put(document, "phases", phases_make(run));
    json_put(document, "disks", disks_make(run));
    export_base_document(run, document, now_ms);
    json_put(document, "files", files_make(run));
    if (run->encrypt_key != NULL) { /* the catalogue's copy: the file is not readable any more */
        json_t *encryption = json_object();
        json_set_text(encryption, "method", CRYPT_METHOD);
        json_set_text(encryption, "key", run->options.encrypt_key == NULL ? "passphrase" : "file");
        if (run->options.encrypt_key != NULL)
            json_set_text(encryption, "key_ref", run->options.encrypt_key);
        json_put(document, "encryption", encryption);
        json_put(document, "manifest", json_incref(run->plain_manifest));
    }
    json_put(document, "warnings", warnings_make(run));
    return document;
}
