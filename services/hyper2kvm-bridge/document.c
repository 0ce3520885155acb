/* What hyper2kvm is given: one JSON document that its manifest reader and both job readers of its
 * daemon take (hyper2kvm-contract.md section 2). Made of known keys only: a manifest may come from
 * strangers, and some of hyper2kvm's keys run programs. */
#include <string.h>
#include <sys/stat.h>

#include "common/json.h"
#include "stage.h"

static void copy_member(json_t *to, const json_t *from, const char *key)
{
    const json_t *value = json_object_get(from, key);

    if (value != NULL)
        json_put(to, key, json_deep_copy(value));
}

/* hyper2kvm refuses a VM with 0 CPUs or GiB, which the manifest may say for "unknown". */
static json_t *vm_object(const json_t *manifest)
{
    static const char *const counts[] = {"cpu", "mem_gb"};
    json_t *vm = json_deep_copy(json_object_get(manifest, "vm"));

    for (size_t i = 0; vm != NULL && i < ARRAY_LEN(counts); i++) {
        if (json_u64(vm, counts[i]) == 0)
            (void)json_object_del(vm, counts[i]);
    }
    return vm == NULL ? json_object() : vm;
}

/* Without compress_level: hyper2kvm hands it to qemu-img, which has no such option. */
static json_t *stage_object(const struct conversion *c, const char *name)
{
    static const char *const keys[] = {
        "collect_guest_info",  "backup",     "print_fstab",
        "update_grub",         "fstab_mode", "regen_initramfs",
        "remove_vmware_tools", "compress",   "check_image_integrity"};
    const json_t *wanted = json_object_get(json_object_get(c->manifest, "pipeline"), name);
    json_t *stage = json_object();

    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        copy_member(stage, wanted, keys[i]);
    json_put(stage, "enabled", json_boolean(convert_stage(c, name)));
    if (c->compression != NULL && strcmp(name, "convert") == 0)
        json_put(stage, "compress", json_true());
    return stage;
}

static json_t *pipeline_object(const struct conversion *c, const struct stage *stage)
{
    static const char *const names[] = {"inspect", "fix", "convert", "validate"};
    json_t *pipeline = json_object();

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        json_put(pipeline, names[i], stage_object(c, names[i]));
    /* D2: "vmdk" stands for any local image, only its content is looked at */
    json_put(pipeline, "load",
             json_pack("{s:s, s:s}", "source_type", "vmdk", "source_path", stage->links[0]));
    return pipeline;
}

static json_t *disk_object(const struct conversion *c, const struct stage *stage, size_t i)
{
    static const char *const keys[] = {"id", "boot_order_hint", "disk_type", "label"};
    json_t *disk = json_object();
    struct stat st;

    for (size_t k = 0; k < ARRAY_LEN(keys); k++)
        copy_member(disk, convert_disk(c, i), keys[k]);
    json_set_text(disk, "source_format", "qcow2");
    json_set_text(disk, "local_path", stage->overlays[i]);
    json_put(disk, "bytes", json_integer(stat(stage->overlays[i], &st) == 0 ? st.st_size : 0));
    return disk;
}

json_t *stage_document(const struct conversion *c, const struct stage *stage)
{
    json_t *document = json_object();
    json_t *disks = json_array();
    autofree char *report = stage_report(stage);

    json_set_text(document, "manifest_version", "1.0");
    copy_member(document, c->manifest, "source");
    json_put(document, "vm", vm_object(c->manifest));
    for (size_t i = 0; i < stage->count; i++)
        (void)json_array_append_new(disks, disk_object(c, stage, i));
    json_put(document, "disks", disks);
    copy_member(document, c->manifest, "nics");
    json_put(document, "pipeline", pipeline_object(c, stage));
    json_put(document, "output",
             json_pack("{s:s, s:s}", "directory", stage->out, "format", c->format));
    json_put(document, "options",
             json_pack("{s:{s:b, s:s}}", "report", "enabled", 1, "path", report));
    /* D3, read by the daemon's job mode */
    json_set_text(document, "input", stage->links[0]);
    json_set_text(document, "output_format", c->format);
    json_put(document, "compress", json_false());
    json_put(document, "flatten", json_true());
    return document;
}
