/* The export's manifest, as a conversion needs it. It may come from strangers: shape first, then
 * the files. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "convert.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/ova.h"

#define VCPUS_MAX         1024
#define MEMORY_MB_MAX     (64 * 1024 * 1024)
#define MEMORY_MB_PER_GIB 1024
#define HINT_ABSENT       999 /* as hyper2kvm reads a missing boot_order_hint */

static uint64_t hint_of(const json_t *disk)
{
    const json_t *hint = json_object_get(disk, "boot_order_hint");

    return hint == NULL ? HINT_ABSENT : (uint64_t)json_integer_value(hint);
}

/* Equal hints stay in the manifest's order. */
static void sort_by_boot_order(json_t *manifest)
{
    json_t *disks = json_object_get(manifest, "disks");
    json_t *sorted = json_array();
    json_t *disk;
    size_t i;

    json_array_foreach(disks, i, disk)
    {
        size_t at = json_array_size(sorted);
        while (at > 0 && hint_of(json_array_get(sorted, at - 1)) > hint_of(disk))
            at--;
        (void)json_array_insert(sorted, at, disk);
    }
    json_put(manifest, "disks", sorted);
}

/* Beside a VMDK or raw image the exporter writes the qcow2 as well, if conversion was asked for. */
static char *qcow2_beside(const char *path)
{
    const char *dot = strrchr(path, '.');
    const char *slash = strrchr(path, '/');
    struct stat st;
    char *beside = dot == NULL || slash > dot ? xasprintf("%s.qcow2", path)
                                              : xasprintf("%.*s.qcow2", (int)(dot - path), path);

    if (stat(beside, &st) == 0 && S_ISREG(st.st_mode))
        return beside;
    free(beside);
    return NULL;
}

static const char *format_of_member(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot == NULL ? "" : dot + 1;
}

/* The disk is a member of the OVA at path. */
static int find_member(json_t *disk, const char *path, struct error *err)
{
    const char *name = json_str(disk, "member");
    struct image_part part = {.path = path};

    if (ova_find_part(name, &part, err) < 0)
        return -1;
    json_put(disk, "part_offset", json_integer((json_int_t)part.offset));
    json_put(disk, "part_bytes", json_integer((json_int_t)part.length));
    json_set_text(disk, "source_format", format_of_member(name));
    return 0;
}

static struct image_part part_of(const json_t *disk)
{
    return (struct image_part){.path = json_str(disk, "local_path"),
                               .format = json_str(disk, "source_format"),
                               .offset = json_u64(disk, "part_offset"),
                               .length = json_u64(disk, "part_bytes")};
}

struct image_part convert_part(const struct conversion *c, size_t index)
{
    return part_of(convert_disk(c, index));
}

/* An image that names other files (backing, data) could pull any file of this machine into the
 * guest. image_open_part refuses those. */
static int check_image(json_t *disk, struct error *err)
{
    const struct image_part part = part_of(disk);
    auto_image *image = NULL;

    if (strcmp(part.format, "qcow2") != 0 && strcmp(part.format, "vmdk") != 0 &&
        strcmp(part.format, "raw") != 0) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "disk '%.64s' is of format '%.16s'; qcow2, vmdk and raw can be converted",
                         json_str(disk, "id"), part.format);
    }
    if (image_open_part(&part, &image, err) < 0)
        return -1;
    json_put(disk, "capacity_bytes", json_integer((json_int_t)image_size_bytes(image)));
    return 0;
}

static int take_disk(json_t *disk, const char *dir, const struct config_list *bases,
                     struct error *err)
{
    autofree char *path = NULL;
    autofree char *beside = NULL;
    autofree char *confined = NULL;
    bool member = json_str(disk, "member")[0] != '\0';
    struct stat st;

    if (manifest_disk_path(disk, dir, &path, err) < 0)
        return -1;
    if (!member && strcmp(json_str(disk, "source_format"), "qcow2") != 0)
        beside = qcow2_beside(path);
    if (path_confine(bases, beside != NULL ? beside : path, &confined, err) < 0)
        return error_wrap(err, "disk '%.64s'", json_str(disk, "id"));
    if (stat(confined, &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, ERR_NOT_FOUND, "'%.256s' is no regular file", confined);
    json_set_text(disk, "local_path", confined);
    (void)json_object_del(disk, "part_offset");
    (void)json_object_del(disk, "part_bytes");
    if (member && find_member(disk, confined, err) < 0)
        return error_wrap(err, "'%.256s'", confined);
    if (beside != NULL) {
        json_set_text(disk, "source_format", "qcow2");
        (void)json_object_del(disk, "checksum"); /* it was the other file's */
    }
    json_put(disk, "bytes", json_integer(st.st_size));
    (void)json_object_del(disk, "relative_path");
    return check_image(disk, err);
}

int convert_check_manifest(json_t *manifest, struct error *err)
{
    static const struct manifest_check shape_only = {0};
    size_t count;

    if (manifest_validate(manifest, &shape_only, err) < 0)
        return error_wrap(err, "manifest");
    count = json_array_size(json_object_get(manifest, "disks"));
    if (count > CONVERT_DISKS_MAX)
        return error_set(err, ERR_LIMIT, "%zu disks, at most %d", count, CONVERT_DISKS_MAX);
    sort_by_boot_order(manifest);
    return 0;
}

int convert_read_manifest(const char *path, const struct config_list *bases, json_t **out,
                          struct error *err)
{
    autofree char *confined = NULL;
    auto_json *manifest = NULL;

    if (path_confine(bases, path, &confined, err) < 0 ||
        manifest_load(confined, &manifest, err) < 0)
        return -1;
    if (convert_check_manifest(manifest, err) < 0)
        return error_wrap(err, "'%.256s'", confined);
    *out = STEAL(manifest);
    return 0;
}

int convert_take_disks(json_t *manifest, const char *dir, const struct config_list *bases,
                       struct error *err)
{
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(manifest, "disks"), i, disk)
    {
        if (take_disk(disk, dir, bases, err) < 0)
            return -1;
    }
    return 0;
}

int convert_override_machine(const json_t *spec, json_t *manifest, struct error *err)
{
    json_t *vm = json_object_get(manifest, "vm");
    const char *firmware = "";
    uint64_t memory = 0;
    uint64_t vcpus = 0;

    if (json_get_u64(spec, "memory_mb", 1, MEMORY_MB_MAX, 0, &memory, err) < 0 ||
        json_get_u64(spec, "vcpus", 1, VCPUS_MAX, 0, &vcpus, err) < 0 ||
        json_get_string(spec, "firmware", "", &firmware, err) < 0)
        return -1;
    if (!json_is_object(vm)) {
        vm = json_object();
        json_put(manifest, "vm", vm);
    }
    if (memory > 0) {
        json_put(vm, "memory_mb", json_integer((json_int_t)memory));
        json_put(vm, "mem_gb",
                 json_integer((json_int_t)((memory + MEMORY_MB_PER_GIB - 1) / MEMORY_MB_PER_GIB)));
    }
    if (vcpus > 0) {
        json_put(vm, "cpu", json_integer((json_int_t)vcpus));
        (void)json_object_del(vm, "cores_per_socket");
    }
    if (firmware[0] != '\0') {
        json_set_text(vm, "firmware", firmware);
        if (strcmp(firmware, "uefi") != 0)
            (void)json_object_del(vm, "secureboot");
    }
    return 0;
}
