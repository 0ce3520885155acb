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

#define HINT_ABSENT 999 /* as hyper2kvm reads a missing boot_order_hint */

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

/* The qcow2 file of a disk: the disk itself, or the one that the exporter wrote beside it. */
static int qcow2_of(const json_t *disk, const char *dir, char **out, struct error *err)
{
    autofree char *path = NULL;
    autofree char *beside = NULL;
    const char *dot;
    const char *slash;
    struct stat st;

    if (manifest_disk_path(disk, dir, &path, err) < 0)
        return -1;
    if (strcmp(json_str(disk, "source_format"), "qcow2") == 0) {
        *out = STEAL(path);
        return 0;
    }
    dot = strrchr(path, '.');
    slash = strrchr(path, '/');
    beside = dot == NULL || slash > dot ? xasprintf("%s.qcow2", path)
                                        : xasprintf("%.*s.qcow2", (int)(dot - path), path);
    if (stat(beside, &st) < 0 || !S_ISREG(st.st_mode)) {
        return error_set(err, ERR_NOT_FOUND,
                         "export has no '%s': export again with conversion or format qcow2",
                         beside);
    }
    *out = STEAL(beside);
    return 0;
}

/* An image that names other files (backing, data) could pull any file of this machine into the
 * guest. image_open refuses those. */
static int check_image(const char *path, struct error *err)
{
    auto_image *image = NULL;

    if (image_open(path, "qcow2", &image, err) < 0)
        return error_wrap(err, "'%.256s'", path);
    return 0;
}

/* hyper2kvm fixes images in place and cannot do that with a streamOptimized VMDK: everything
 * after this works with the qcow2 form. */
static int use_qcow2(json_t *disk, const char *dir, const struct config_list *bases,
                     struct error *err)
{
    autofree char *path = NULL;
    autofree char *confined = NULL;
    struct stat st;

    if (qcow2_of(disk, dir, &path, err) < 0)
        return -1;
    if (path_confine(bases, path, &confined, err) < 0)
        return error_wrap(err, "disk '%.64s'", json_str(disk, "id"));
    if (stat(confined, &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, ERR_NOT_FOUND, "'%.256s' is no regular file", confined);
    if (check_image(confined, err) < 0)
        return -1;
    json_set_text(disk, "local_path", confined);
    json_set_text(disk, "source_format", "qcow2");
    json_put(disk, "bytes", json_integer(st.st_size));
    (void)json_object_del(disk, "relative_path");
    (void)json_object_del(disk, "checksum"); /* it was the other file's */
    return 0;
}

int convert_read_manifest(const char *path, const struct config_list *bases, json_t **out,
                          struct error *err)
{
    static const struct manifest_check shape_only = {0};
    autofree char *confined = NULL;
    auto_json *manifest = NULL;
    size_t count;

    if (path_confine(bases, path, &confined, err) < 0 ||
        manifest_load(confined, &manifest, err) < 0)
        return -1;
    if (manifest_validate(manifest, &shape_only, err) < 0)
        return error_wrap(err, "'%.256s'", confined);
    count = json_array_size(json_object_get(manifest, "disks"));
    if (count > CONVERT_DISKS_MAX)
        return error_set(err, ERR_LIMIT, "%zu disks, at most %d", count, CONVERT_DISKS_MAX);
    sort_by_boot_order(manifest);
    *out = STEAL(manifest);
    return 0;
}

int convert_load_manifest(const char *path, const char *dir, const struct config_list *bases,
                          json_t **out, struct error *err)
{
    auto_json *manifest = NULL;
    json_t *disk;
    size_t i;

    if (convert_read_manifest(path, bases, &manifest, err) < 0)
        return -1;
    json_array_foreach(json_object_get(manifest, "disks"), i, disk)
    {
        if (use_qcow2(disk, dir, bases, err) < 0)
            return -1;
    }
    *out = STEAL(manifest);
    return 0;
}
