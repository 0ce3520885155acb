/* Building of manifests; checks are in manifest_check.c, files in manifest_file.c. */
#include "services/exporter/formats/manifest.h"

#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "services/exporter/formats/guest_os.h"

#define MB_PER_GB     1024U
#define COMPRESS_MAX  9U
#define CONTROLLER_ID "%.15s%u:%u"

static void set_u64(json_t *object, const char *key, uint64_t value)
{
    json_put(object, key, json_integer((json_int_t)value));
}

static void set_bool(json_t *object, const char *key, bool value)
{
    json_put(object, key, json_boolean(value));
}

/* Unknown ("" or NULL) is left out rather than written as empty text. */
static void set_known(json_t *object, const char *key, const char *text)
{
    if (text != NULL && text[0] != '\0')
        json_set_text(object, key, text);
}

static void set_time(json_t *object, const char *key, int64_t wall_ms)
{
    char text[CLOCK_RFC3339_SIZE];

    clock_rfc3339(wall_ms, text);
    json_set_text(object, key, text);
}

static json_t *append_object(json_t *array)
{
    json_t *object = json_object();

    if (json_array_append_new(array, object) < 0)
        abort();
    return object;
}

static json_t *source_make(const struct manifest_facts *facts)
{
    json_t *source = json_object();

    set_known(source, "provider", facts->provider);
    set_known(source, "vm_id", facts->vm->id);
    set_known(source, "vm_name", facts->vm->name);
    set_known(source, "datacenter", facts->vm->datacenter);
    set_time(source, "export_timestamp", facts->export_wall_ms);
    set_known(source, "export_method", facts->method);
    return source;
}

/* As vm_firmware_name, which lives in engine/: the bridge links this folder without it. */
static const char *firmware_word(enum vm_firmware firmware)
{
    switch (firmware) {
    case VM_FIRMWARE_BIOS:
        return "bios";
    case VM_FIRMWARE_UEFI:
        return "uefi"; /* never "efi": readers refuse it */
    case VM_FIRMWARE_UNKNOWN:
        break;
    }
    return "unknown";
}

static json_t *vm_make(const struct vm *vm)
{
    json_t *object = json_object();
    const char *hint = guest_os_hint(vm->guest_id);

    if (vm->num_cpu > 0) /* 0 is refused by readers: unknown is left out */
        set_u64(object, "cpu", vm->num_cpu);
    if (vm->cores_per_socket > 0)
        set_u64(object, "cores_per_socket", vm->cores_per_socket);
    if (vm->memory_mb > 0) {
        set_u64(object, "mem_gb", round_up_u64(vm->memory_mb, MB_PER_GB) / MB_PER_GB);
        set_u64(object, "memory_mb", vm->memory_mb);
    }
    json_set_text(object, "firmware", firmware_word(vm->firmware));
    set_bool(object, "secureboot", vm->secure_boot);
    set_bool(object, "tpm", vm->tpm);
    json_set_text(object, "os_hint", hint);
    set_known(object, "os_version", vm->guest_os);
    set_known(object, "guest_id", vm->guest_id);
    set_known(object, "uuid", vm->bios_uuid);
    return object;
}

static void add_disk(json_t *disks, const struct manifest_facts *facts, size_t i)
{
    const struct manifest_disk *disk = &facts->disks[i];
    const struct vm_disk *source = &facts->vm->disks[disk->vm_disk_index];
    const char *slash = strrchr(disk->path, '/');
    json_t *object = append_object(disks);
    autofree char *id = xasprintf("disk-%zu", disk->vm_disk_index + 1);
    autofree char *controller =
        xasprintf(CONTROLLER_ID, source->controller_type, source->controller_bus, source->unit);

    json_set_text(object, "id", id);
    set_known(object, "label", source->label);
    json_set_text(object, "source_format", disk->format);
    if (disk->member != NULL)
        json_set_text(object, "member", disk->member);
    set_u64(object, "bytes", disk->file_bytes);
    set_u64(object, "capacity_bytes", source->capacity_bytes);
    json_set_text(object, "local_path", disk->path);
    json_set_text(object, "relative_path", slash == NULL ? disk->path : slash + 1);
    if (disk->file_sha256 != NULL) {
        autofree char *checksum = xasprintf("sha256:%s", disk->file_sha256);
        json_set_text(object, "checksum", checksum);
    }
    set_known(object, "content_digest", disk->content_digest);
    /* Always there, also the 0: readers take 999 for an absent one and boot another disk. */
    set_u64(object, "boot_order_hint", disk->vm_disk_index);
    json_set_text(object, "disk_type", disk->vm_disk_index == 0 ? "boot" : "data");
    if (source->controller_type[0] != '\0')
        json_set_text(object, "controller", controller);
    set_known(object, "controller_model", source->controller_model);
    set_known(object, "change_id", source->change_id);
    set_known(object, "disk_key", source->id);
}

static json_t *nics_make(const struct vm *vm)
{
    json_t *nics = json_array();

    for (size_t i = 0; i < vm->nic_count; i++) {
        json_t *object = append_object(nics);
        autofree char *id = xasprintf("nic-%zu", i + 1);
        json_set_text(object, "id", id);
        set_known(object, "mac", vm->nics[i].mac);
        set_known(object, "network", vm->nics[i].network);
        set_known(object, "model", vm->nics[i].model);
    }
    return nics;
}

static json_t *pipeline_make(const struct manifest_pipeline *p)
{
    json_t *pipeline = json_object();
    json_t *stage = json_object();

    set_bool(stage, "enabled", p->inspect);
    set_bool(stage, "collect_guest_info", p->collect_guest_info);
    json_put(pipeline, "inspect", stage);
    stage = json_object();
    set_bool(stage, "enabled", p->fix);
    set_bool(stage, "backup", true);
    set_known(stage, "fstab_mode", p->fstab_mode);
    set_bool(stage, "update_grub", p->update_grub);
    set_bool(stage, "regen_initramfs", p->regen_initramfs);
    set_bool(stage, "remove_vmware_tools", p->remove_vmware_tools);
    json_put(pipeline, "fix", stage);
    stage = json_object();
    set_bool(stage, "enabled", p->convert);
    set_bool(stage, "compress", p->compress);
    if (p->compress_level > 0)
        set_u64(stage, "compress_level", p->compress_level);
    json_put(pipeline, "convert", stage);
    stage = json_object();
    set_bool(stage, "enabled", p->validate);
    set_bool(stage, "check_image_integrity", true);
    json_put(pipeline, "validate", stage);
    return pipeline;
}

static void add_remarks(json_t *manifest, const struct manifest_facts *facts)
{
    json_t *notes = json_array();
    json_t *warnings = json_array();

    for (size_t i = 0; i < facts->note_count; i++) {
        autofree char *copy = xstrdup(facts->notes[i]);
        json_t *holder = json_object(); /* json_set_text repairs what is not UTF-8 */
        json_set_text(holder, "t", copy);
        if (json_array_append(notes, json_object_get(holder, "t")) < 0)
            abort();
        json_decref(holder);
    }
    for (size_t i = 0; i < facts->warning_count; i++) {
        json_t *object = append_object(warnings);
        json_set_text(object, "stage", facts->warnings[i].stage);
        json_set_text(object, "message", facts->warnings[i].message);
        set_time(object, "timestamp", facts->warnings[i].wall_ms);
    }
    json_put(manifest, "notes", notes);
    json_put(manifest, "warnings", warnings);
}

static json_t *metadata_make(const struct manifest_facts *facts)
{
    json_t *metadata = json_object();

    set_known(metadata, "hypersdk_version", facts->version);
    set_known(metadata, "job_id", facts->job_id);
    set_time(metadata, "created_at", facts->export_wall_ms);
    json_put(metadata, "tags", facts->tags == NULL ? json_object() : json_deep_copy(facts->tags));
    return metadata;
}

static int check_facts(const struct manifest_facts *facts, struct error *err)
{
    for (size_t i = 0; i < facts->disk_count; i++) {
        if (facts->disks[i].vm_disk_index >= facts->vm->disk_count) {
            return error_set(err, ERR_INVALID, "'%.255s' is disk %zu of a VM with %zu disks",
                             facts->disks[i].path, facts->disks[i].vm_disk_index,
                             facts->vm->disk_count);
        }
    }
    if (facts->pipeline != NULL && facts->pipeline->compress_level > COMPRESS_MAX) {
        return error_set(err, ERR_INVALID, "compression level %u is not in 1 to 9",
                         facts->pipeline->compress_level);
    }
    return 0;
}

int manifest_build(const struct manifest_facts *facts, json_t **out, struct error *err)
{
    static const struct manifest_check shape_only = {0};
    auto_json *manifest = json_object();
    json_t *disks = json_array();

    json_put(manifest, "manifest_version", json_string(MANIFEST_VERSION));
    json_put(manifest, "source", source_make(facts));
    json_put(manifest, "vm", vm_make(facts->vm));
    json_put(manifest, "disks", disks);
    if (check_facts(facts, err) < 0)
        return -1;
    for (size_t i = 0; i < facts->disk_count; i++)
        add_disk(disks, facts, i);
    json_put(manifest, "nics", nics_make(facts->vm));
    add_remarks(manifest, facts);
    json_put(manifest, "metadata", metadata_make(facts));
    if (facts->pipeline != NULL)
        json_put(manifest, "pipeline", pipeline_make(facts->pipeline));
    if (facts->output_directory != NULL) {
        json_t *output = json_object();
        json_set_text(output, "directory", facts->output_directory);
        set_known(output, "format", facts->output_format);
        json_put(manifest, "output", output);
    }
    if (manifest_validate(manifest, &shape_only, err) < 0)
        return error_wrap(err, "manifest of '%.128s'", facts->vm->name);
    *out = STEAL(manifest);
    return 0;
}
