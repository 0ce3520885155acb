/* What a conversion is told to take, when that is not an export of ours with its manifest: an OVF
 * with its disks, an OVA, or one disk image. The manifest is made from what the file says. All of
 * it may come from strangers. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "convert.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/ova.h"
#include "services/exporter/formats/ovf.h"

#define MAGIC_BYTES 21 /* "# Disk DescriptorFile" is the longest */

static const char *suffix_of(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot == NULL || strchr(dot, '/') != NULL ? "" : dot + 1;
}

/* By content; raw has none to go by, so its name must say it: a VHDX taken for raw would become a
 * disk of garbage. NULL: none that we read. */
static const char *format_of(const char *magic, size_t size, const char *name)
{
    static const struct {
        const char *magic;
        const char *format;
    } known[] = {{"KDMV", "vmdk"}, {"# Disk DescriptorFile", "vmdk"}, {"QFI\xfb", "qcow2"}};
    const char *suffix = suffix_of(name);

    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        size_t n = strlen(known[i].magic);
        if (size >= n && memcmp(magic, known[i].magic, n) == 0)
            return known[i].format;
    }
    return strcasecmp(suffix, "raw") == 0 || strcasecmp(suffix, "img") == 0 ? "raw" : NULL;
}

int convert_detect(const char *path, uint64_t offset, const char *name, const char **out,
                   struct error *err)
{
    char magic[MAGIC_BYTES];
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t size = fd < 0 ? -1 : pread(fd, magic, sizeof magic, (off_t)offset);

    if (size < 0)
        return error_set_errno(err, errno, "'%.256s'", path);
    *out = format_of(magic, (size_t)size, name);
    if (*out == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "'%.255s' is no VMDK or qcow2, nor called .raw or .img: convert it to one "
                         "of these first",
                         name);
    }
    return 0;
}

/* dir/name with the directory of path. Caller frees. */
static char *beside(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');

    return xasprintf("%.*s%s", slash == NULL ? 0 : (int)(slash - path + 1), path, name);
}

/* ---- the machine that is described ---- */

struct description { /* of a foreign source, on the way to a manifest */
    struct vm vm;
    struct manifest_disk disks[CONVERT_DISKS_MAX];
    size_t count;
    char *paths[CONVERT_DISKS_MAX];   /* owned */
    char *members[CONVERT_DISKS_MAX]; /* owned; of an OVA */
};

static void description_release(struct description *d)
{
    vm_release(&d->vm);
    for (size_t i = 0; i < d->count; i++) {
        free(d->paths[i]);
        free(d->members[i]);
    }
}
#define auto_description CLEANUP(description_release) struct description

/* member: NULL, or the disk is that member of the OVA `path`. */
static struct vm_disk *add_disk(struct description *d, const char *path, const char *member,
                                const char *format, uint64_t file_bytes, uint64_t capacity)
{
    struct vm_disk *disk = vm_add_disk(&d->vm);
    size_t i = d->count++;

    disk->capacity_bytes = capacity;
    d->paths[i] = xstrdup(path);
    d->members[i] = member == NULL ? NULL : xstrdup(member);
    d->disks[i] = (struct manifest_disk){.vm_disk_index = i,
                                         .format = member == NULL ? format : "ova",
                                         .member = d->members[i],
                                         .path = d->paths[i],
                                         .file_bytes = file_bytes};
    return disk;
}

static int build(const struct description *d, const char *method, json_t **out, struct error *err)
{
    const struct manifest_facts facts = {
        .vm = &d->vm,
        .provider = "file",
        .method = method,
        .export_wall_ms = clock_wall_ms(),
        .disks = d->disks,
        .disk_count = d->count,
    };

    return manifest_build(&facts, out, err);
}

/* ---- OVF and OVA ---- */

static void place_disk(struct vm_disk *to, const struct ovf_disk_entry *disk)
{
    vm_set_text(&to->controller_type, disk->controller_type);
    vm_set_text(&to->controller_model, disk->controller_model);
    to->controller_bus = disk->controller_bus;
    to->unit = disk->unit;
}

static int add_ovf_disks(struct description *d, const char *path, const struct ovf *ovf,
                         const struct ova *package, struct error *err)
{
    if (ovf->disk_count == 0 || ovf->disk_count > CONVERT_DISKS_MAX) {
        return error_set(err, ERR_NOT_AVAILABLE, "it describes %zu disks; 1 to %d can be converted",
                         ovf->disk_count, CONVERT_DISKS_MAX);
    }
    for (size_t i = 0; i < ovf->disk_count; i++) {
        const struct ovf_disk_entry *disk = &ovf->disks[i];
        const char *href;
        const struct ova_member *member;
        const char *format = NULL;
        autofree char *file = NULL;
        struct stat st;
        if (disk->file == SIZE_MAX)
            return error_set(err, ERR_NOT_AVAILABLE, "disk '%.64s' has no file", disk->id);
        href = ovf->files[disk->file].href;
        member = package == NULL ? NULL : ova_find(package, href);
        if (package != NULL && member == NULL)
            return error_set(err, ERR_CORRUPT, "the package has no member '%.255s'", href);
        file = package != NULL ? xstrdup(path) : beside(path, href);
        if (stat(file, &st) < 0)
            return error_set(err, ERR_NOT_FOUND, "disk file '%.256s' is missing", file);
        if (convert_detect(file, member == NULL ? 0 : member->offset, href, &format, err) < 0)
            return -1;
        place_disk(add_disk(d, file, member == NULL ? NULL : href, format,
                            member == NULL ? (uint64_t)st.st_size : member->bytes,
                            disk->capacity_bytes),
                   disk);
    }
    return 0;
}

static void take_machine(struct vm *vm, const struct ovf *ovf)
{
    vm_set_text(&vm->name, ovf->name);
    vm->num_cpu = ovf->cpu_count;
    vm->memory_mb = ovf->memory_mb;
    vm->firmware = ovf->firmware == VM_FIRMWARE_UNKNOWN ? VM_FIRMWARE_BIOS : ovf->firmware;
    vm->secure_boot = ovf->secure_boot;
    vm_set_text(&vm->guest_id, ovf->os_type);
    vm_set_text(&vm->guest_os, ovf->os_name);
    for (size_t i = 0; i < ovf->nic_count; i++) {
        struct vm_nic *nic = vm_add_nic(vm);
        vm_set_text(&nic->mac, ovf->nics[i].mac);
        vm_set_text(&nic->network, ovf->nics[i].network);
        vm_set_text(&nic->model, ovf->nics[i].model);
    }
}

static int from_ovf(const char *path, const char *text, size_t size, const struct ova *package,
                    json_t **out, struct error *err)
{
    auto_description d = {0};
    auto_ovf *ovf = NULL;

    vm_init(&d.vm);
    if (ovf_read(text, size, &ovf, err) < 0 || add_ovf_disks(&d, path, ovf, package, err) < 0)
        return error_wrap(err, "'%.256s'", path);
    take_machine(&d.vm, ovf);
    return build(&d, package == NULL ? "ovf" : "ova", out, err);
}

static int read_ovf(const char *path, json_t **out, struct error *err)
{
    autofree char *text = NULL;
    size_t size = 0;

    if (file_read(path, OVF_BYTES_MAX, &text, &size, err) < 0)
        return -1;
    return from_ovf(path, text, size, NULL, out, err);
}

static int read_ova(const char *path, json_t **out, struct error *err)
{
    autofree char *text = NULL;
    auto_ova *package = NULL;

    if (ova_read(path, &package, err) < 0 ||
        ova_member_read(path, &package->members[0], OVF_BYTES_MAX, &text, err) < 0)
        return error_wrap(err, "'%.256s'", path);
    return from_ovf(path, text, package->members[0].bytes, package, out, err);
}

/* ---- one image ---- */

static int read_image(const char *path, json_t **out, struct error *err)
{
    auto_description d = {0};
    auto_image *image = NULL;
    const char *slash = strrchr(path, '/');
    const char *name = slash == NULL ? path : slash + 1;
    const char *dot = strrchr(name, '.');
    const char *format = NULL;
    struct stat st;

    vm_init(&d.vm);
    if (convert_detect(path, 0, name, &format, err) < 0)
        return -1;
    if (image_open(path, format, &image, err) < 0)
        return -1;
    if (image_file_stat(image, &st) < 0)
        return error_set_errno(err, errno, "'%.256s'", path);
    free(d.vm.name);
    d.vm.name =
        dot == NULL || dot == name ? xstrdup(name) : xasprintf("%.*s", (int)(dot - name), name);
    add_disk(&d, path, NULL, format, (uint64_t)st.st_size, image_size_bytes(image));
    return build(&d, "image", out, err);
}

/* ---- */

int convert_find_source(const char *source, const struct config_list *bases,
                        struct convert_source *out, struct error *err)
{
    autofree char *path = NULL;
    autofree char *manifest = NULL;
    const char *suffix;
    struct stat st;

    if (path_confine(bases, source, &path, err) < 0)
        return -1;
    if (stat(path, &st) < 0)
        return error_set(err, ERR_NOT_FOUND, "'%.256s' does not exist", path);
    suffix = suffix_of(path);
    if (S_ISDIR(st.st_mode)) {
        manifest = xasprintf("%s/%s", path, MANIFEST_JSON_NAME);
        if (access(manifest, F_OK) < 0) {
            return error_set(err, ERR_NOT_FOUND, "directory '%.256s' has no " MANIFEST_JSON_NAME,
                             path);
        }
    } else if (strcasecmp(suffix, "json") == 0 || strcasecmp(suffix, "yaml") == 0 ||
               strcasecmp(suffix, "yml") == 0) {
        manifest = xstrdup(path);
    } else if (strcasecmp(suffix, "ovf") == 0 || strcasecmp(suffix, "ova") == 0) {
        manifest = beside(path, MANIFEST_JSON_NAME); /* of our export: it knows more */
        if (access(manifest, F_OK) < 0) {
            free(STEAL(manifest));
        }
    }
    if (manifest != NULL) {
        out->manifest_path = STEAL(manifest);
        return 0;
    }
    if (strcasecmp(suffix, "ovf") == 0)
        return read_ovf(path, &out->manifest, err);
    if (strcasecmp(suffix, "ova") == 0)
        return read_ova(path, &out->manifest, err);
    return read_image(path, &out->manifest, err);
}
