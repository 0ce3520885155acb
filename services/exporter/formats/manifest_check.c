/* The checks of manifest-and-ovf section 2.9. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/digest.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/mf.h"

#define WHERE_MAX      128
#define CHECKSUM_START "sha256:"
#define MAC_LENGTH     17

static const char *const disk_formats[] = {"vmdk", "qcow2", "raw", "raw.zst", "vhd",
                                           "vhdx", "vdi",   "ova", NULL};
static const char *const firmwares[] = {"bios", "uefi", "unknown", NULL};
static const char *const os_hints[] = {"linux", "windows", "unknown", NULL};
static const char *const disk_types[] = {"boot", "data", "unknown", NULL};
static const char *const fstab_modes[] = {"stabilize-all", "bypath-only", "noop", NULL};
static const char *const output_formats[] = {"qcow2", "raw", "vdi", NULL};

/* object[key] must be one of the words, or absent. */
static int check_word(const json_t *object, const char *where, const char *key,
                      const char *const *words, struct error *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL)
        return 0;
    for (size_t i = 0; words[i] != NULL; i++) {
        if (json_is_string(value) && strcmp(json_string_value(value), words[i]) == 0)
            return 0;
    }
    return error_set(err, ERR_INVALID, "%s.%s '%.64s' is not one of the known values (%s ...)",
                     where, key, json_is_string(value) ? json_string_value(value) : "(no text)",
                     words[0]);
}

static int check_integer(const json_t *object, const char *where, const char *key, json_int_t min,
                         struct error *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL)
        return 0;
    if (!json_is_integer(value) || json_integer_value(value) < min) {
        return error_set(err, ERR_INVALID, "%s.%s must be an integer of at least %d", where, key,
                         (int)min);
    }
    return 0;
}

static int check_bool(const json_t *object, const char *where, const char *key, struct error *err)
{
    const json_t *value = json_object_get(object, key);

    if (value != NULL && !json_is_boolean(value))
        return error_set(err, ERR_INVALID, "%s.%s must be true or false", where, key);
    return 0;
}

static int check_object(const json_t *parent, const char *key, const json_t **out,
                        struct error *err)
{
    *out = json_object_get(parent, key);
    if (*out != NULL && !json_is_object(*out))
        return error_set(err, ERR_INVALID, "%s must be an object", key);
    return 0;
}

static int check_vm(const json_t *manifest, struct error *err)
{
    const json_t *vm = NULL;

    if (check_object(manifest, "vm", &vm, err) < 0)
        return -1;
    if (vm == NULL)
        return 0;
    if (check_integer(vm, "vm", "cpu", 0, err) < 0 ||
        check_integer(vm, "vm", "mem_gb", 0, err) < 0 ||
        check_integer(vm, "vm", "memory_mb", 0, err) < 0 ||
        check_word(vm, "vm", "firmware", firmwares, err) < 0 ||
        check_word(vm, "vm", "os_hint", os_hints, err) < 0)
        return -1;
    return check_bool(vm, "vm", "secureboot", err);
}

static int check_pipeline(const json_t *manifest, struct error *err)
{
    static const char *const stages[] = {"inspect", "fix", "convert", "validate"};
    const json_t *pipeline = NULL;
    const json_t *output = NULL;

    if (check_object(manifest, "pipeline", &pipeline, err) < 0 ||
        check_object(manifest, "output", &output, err) < 0)
        return -1;
    for (size_t i = 0; pipeline != NULL && i < ARRAY_LEN(stages); i++) {
        const json_t *stage = NULL;
        char where[WHERE_MAX];
        (void)snprintf(where, sizeof where, "pipeline.%s", stages[i]);
        if (check_object(pipeline, stages[i], &stage, err) < 0 ||
            check_bool(stage, where, "enabled", err) < 0 ||
            check_word(stage, where, "fstab_mode", fstab_modes, err) < 0 ||
            check_integer(stage, where, "compress_level", 1, err) < 0)
            return -1;
    }
    return check_word(output, "output", "format", output_formats, err);
}

static bool mac_is_valid(const char *mac)
{
    char separator;

    if (strlen(mac) != MAC_LENGTH)
        return false;
    separator = mac[2];
    if (separator != ':' && separator != '-')
        return false;
    for (size_t i = 0; i < MAC_LENGTH; i++) {
        bool hex = (mac[i] >= '0' && mac[i] <= '9') || (mac[i] >= 'a' && mac[i] <= 'f') ||
                   (mac[i] >= 'A' && mac[i] <= 'F');
        if (i % 3 == 2 ? mac[i] != separator : !hex)
            return false;
    }
    return true;
}

static int check_nics(const json_t *manifest, struct error *err)
{
    const json_t *nics = json_object_get(manifest, "nics");
    const json_t *nic;
    size_t i;

    if (nics != NULL && !json_is_array(nics))
        return error_set(err, ERR_INVALID, "nics must be an array");
    json_array_foreach(nics, i, nic)
    {
        const json_t *mac = json_object_get(nic, "mac");
        if (!json_is_object(nic))
            return error_set(err, ERR_INVALID, "nics[%zu] must be an object", i);
        if (mac != NULL && (!json_is_string(mac) || !mac_is_valid(json_string_value(mac)))) {
            return error_set(err, ERR_INVALID, "nics[%zu].mac '%.32s' is no MAC address", i,
                             json_is_string(mac) ? json_string_value(mac) : "(no text)");
        }
    }
    return 0;
}

static bool id_is_valid(const char *id)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";

    return id[0] != '\0' && id[strspn(id, allowed)] == '\0';
}

static int check_disk_id(const json_t *disks, size_t index, struct error *err)
{
    const char *id = json_str(json_array_get(disks, index), "id");
    const json_t *other;
    size_t i;

    if (!id_is_valid(id)) {
        return error_set(err, ERR_INVALID,
                         "disks[%zu].id '%.64s' must be of letters, digits, '_' and '-'", index,
                         id);
    }
    json_array_foreach(disks, i, other)
    {
        if (i < index && strcmp(json_str(other, "id"), id) == 0) {
            return error_set(err, ERR_INVALID, "disks[%zu].id '%.64s' stands there twice", index,
                             id);
        }
    }
    return 0;
}

static int check_checksum(const json_t *disk, const char *where, struct error *err)
{
    const json_t *value = json_object_get(disk, "checksum");
    uint8_t raw[DIGEST_BYTES];
    size_t start = sizeof CHECKSUM_START - 1;

    if (value == NULL)
        return 0;
    if (json_is_string(value) && strncmp(json_string_value(value), CHECKSUM_START, start) == 0 &&
        hex_decode(json_string_value(value) + start, raw, sizeof raw) &&
        strpbrk(json_string_value(value) + start, "ABCDEF") == NULL)
        return 0;
    return error_set(err, ERR_INVALID, "%s.checksum must be 'sha256:' and 64 lower-case hex digits",
                     where);
}

static int check_disk(const json_t *disks, size_t index, struct error *err)
{
    const json_t *disk = json_array_get(disks, index);
    const char *relative;
    char where[WHERE_MAX];

    (void)snprintf(where, sizeof where, "disks[%zu]", index);
    if (!json_is_object(disk))
        return error_set(err, ERR_INVALID, "%s must be an object", where);
    if (check_disk_id(disks, index, err) < 0)
        return -1;
    if (json_object_get(disk, "source_format") == NULL || json_object_get(disk, "bytes") == NULL)
        return error_set(err, ERR_INVALID, "%s needs source_format and bytes", where);
    if (json_str(disk, "local_path")[0] != '/')
        return error_set(err, ERR_INVALID, "%s.local_path must be an absolute path", where);
    relative = json_str(disk, "relative_path");
    if (relative[0] != '\0' && !file_name_is_plain(relative)) {
        return error_set(err, ERR_INVALID, "%s.relative_path '%.255s' must be a plain file name",
                         where, relative);
    }
    if (check_word(disk, where, "source_format", disk_formats, err) < 0 ||
        check_word(disk, where, "disk_type", disk_types, err) < 0 ||
        check_integer(disk, where, "bytes", 0, err) < 0 ||
        check_integer(disk, where, "capacity_bytes", 0, err) < 0 ||
        check_integer(disk, where, "boot_order_hint", 0, err) < 0)
        return -1;
    return check_checksum(disk, where, err);
}

int manifest_disk_path(const json_t *disk, const char *dir, char **out, struct error *err)
{
    const char *local = json_str(disk, "local_path");
    const char *relative = json_str(disk, "relative_path");

    if (access(local, F_OK) == 0) {
        *out = xstrdup(local);
        return 0;
    }
    if (dir != NULL && relative[0] != '\0' && file_name_is_plain(relative)) {
        autofree char *moved = xasprintf("%s/%s", dir, relative);
        if (access(moved, F_OK) == 0) {
            *out = STEAL(moved);
            return 0;
        }
    }
    return error_set(err, ERR_NOT_FOUND, "disk '%.64s': '%.256s' is not there",
                     json_str(disk, "id"), local);
}

static int check_content(const json_t *disk, const char *path, struct error *err)
{
    const char *checksum = json_str(disk, "checksum");
    char hex[DIGEST_HEX_SIZE];

    if (checksum[0] == '\0')
        return 0;
    if (file_sha256(path, hex, err) < 0)
        return -1;
    if (strcmp(hex, checksum + sizeof CHECKSUM_START - 1) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "SHA-256 of '%.256s' is %.12s..., its manifest says "
                         "%.12s...",
                         path, hex, checksum + sizeof CHECKSUM_START - 1);
    }
    return 0;
}

static int check_file(const json_t *disk, const struct manifest_check *check, struct error *err)
{
    autofree char *path = NULL;
    autofree char *confined = NULL;
    struct stat st;

    if (check->files || check->checksums) {
        if (manifest_disk_path(disk, check->dir, &path, err) < 0)
            return -1;
    } else {
        path = xstrdup(json_str(disk, "local_path"));
    }
    if (check->bases != NULL && path_confine(check->bases, path, &confined, err) < 0)
        return error_wrap(err, "disk '%.64s'", json_str(disk, "id"));
    if (!check->files && !check->checksums)
        return 0;
    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "cannot examine '%.256s'", path);
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != json_u64(disk, "bytes")) {
        return error_set(err, ERR_CORRUPT, "'%.256s' has %jd bytes, its manifest says %" PRIu64,
                         path, (intmax_t)st.st_size, json_u64(disk, "bytes"));
    }
    return check->checksums ? check_content(disk, path, err) : 0;
}

int manifest_validate(const json_t *manifest, const struct manifest_check *check, struct error *err)
{
    const json_t *disks = json_object_get(manifest, "disks");
    size_t count = json_array_size(disks);

    if (!json_is_object(manifest))
        return error_set(err, ERR_INVALID, "the manifest must be an object");
    if (strcmp(json_str(manifest, "manifest_version"), MANIFEST_VERSION) != 0)
        return error_set(err, ERR_INVALID, "manifest_version must be \"" MANIFEST_VERSION "\"");
    if (count == 0)
        return error_set(err, ERR_INVALID, "disks must be an array of at least one disk");
    if (count > MANIFEST_DISKS_MAX) {
        return error_set(err, ERR_LIMIT, "%zu disks, at most %d are read", count,
                         MANIFEST_DISKS_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        if (check_disk(disks, i, err) < 0)
            return -1;
    }
    if (check_vm(manifest, err) < 0 || check_nics(manifest, err) < 0 ||
        check_pipeline(manifest, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (check_file(json_array_get(disks, i), check, err) < 0)
            return -1;
    }
    return 0;
}
