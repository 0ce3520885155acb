/* See inspect.h. */
#include "inspect.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "convert.h"
#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/vmdk.h"

#define HEADER_BYTES 512

static void put_u64(json_t *object, const char *key, uint64_t value)
{
    json_put(object, key, json_integer((json_int_t)value));
}

/* ---- an image ---- */

static void add_vmdk(json_t *facts, const uint8_t *header)
{
    uint32_t flags = get_le32(header + VMDK_AT_FLAGS);
    bool compressed = (flags & VMDK_FLAG_COMPRESSED) != 0;

    json_set_text(facts, "subformat", compressed ? "streamOptimized" : "monolithicSparse");
    put_u64(facts, "version", get_le32(header + VMDK_AT_VERSION));
    put_u64(facts, "grain_bytes", get_le64(header + VMDK_AT_GRAIN_SIZE) * VMDK_SECTOR);
    json_put(facts, "compressed", json_boolean(compressed));
}

static int add_header(json_t *facts, const char *path, const char *format, struct error *err)
{
    uint8_t header[HEADER_BYTES] = {0};
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t size = fd < 0 ? -1 : pread(fd, header, sizeof header, 0);

    if (size < 0)
        return error_set_errno(err, errno, "'%.256s'", path);
    if (strcmp(format, "vmdk") != 0)
        return 0;
    if (get_le32(header) == VMDK_MAGIC) {
        add_vmdk(facts, header);
    } else {
        json_set_text(facts, "subformat", "descriptor");
    }
    return 0;
}

int inspect_image_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    const struct bridge *bridge = arg;
    const char *named = json_str(worker_task_spec(task), "path");
    autofree char *path = NULL;
    auto_json *facts = json_object();
    auto_image *image = NULL;
    const char *format = NULL;
    struct stat st;

    if (path_confine(&bridge->reach, named, &path, err) < 0)
        return -1;
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, ERR_NOT_FOUND, "'%.256s' is no file", path);
    if (convert_detect(path, 0, path, &format, err) < 0)
        return -1;
    if (image_open(path, format, &image, err) < 0)
        return -1;
    json_set_text(facts, "path", path);
    json_set_text(facts, "format", format);
    put_u64(facts, "capacity_bytes", image_size_bytes(image));
    put_u64(facts, "file_bytes", (uint64_t)st.st_size);
    put_u64(facts, "allocated_bytes", (uint64_t)st.st_blocks * 512);
    if (image_backing_name(image) != NULL)
        json_set_text(facts, "backing_file", image_backing_name(image));
    if (add_header(facts, path, format, err) < 0)
        return -1;
    *out_result = json_object();
    json_put(*out_result, "image", STEAL(facts));
    return 0;
}

/* ---- a manifest ---- */

/* Shape, then what a conversion needs, then (checksums) every byte. */
static int validate(const struct bridge *bridge, const json_t *manifest, bool checksums,
                    struct error *err)
{
    const struct manifest_check files = {
        .files = true, .checksums = checksums, .bases = &bridge->bases};
    auto_json *copy = json_deep_copy(manifest);

    if (convert_check_manifest(copy, err) < 0 || manifest_validate(manifest, &files, err) < 0)
        return -1;
    return convert_take_disks(copy, NULL, &bridge->bases, err);
}

int validate_manifest_run(struct worker_task *task, void *arg, json_t **out_result,
                          struct error *err)
{
    const json_t *spec = worker_task_spec(task);
    const json_t *manifest = json_object_get(spec, "manifest");
    struct error why = ERROR_NONE;
    json_t *errors = json_array();
    json_t *answer = json_object();
    bool checksums = json_is_true(json_object_get(spec, "checksums"));
    bool valid = validate(arg, manifest, checksums, &why) == 0;

    (void)err;
    if (!valid) {
        json_t *problem = json_object();
        json_set_text(problem, "code", error_code_name(why.code));
        json_set_text(problem, "message", why.message);
        (void)json_array_append_new(errors, problem);
    }
    json_put(answer, "valid", json_boolean(valid));
    json_put(answer, "errors", errors);
    put_u64(answer, "disks", json_array_size(json_object_get(manifest, "disks")));
    json_set_text(answer, "vm_name", json_str(json_object_get(manifest, "source"), "vm_name"));
    json_put(answer, "checksums_checked", json_boolean(checksums && valid));
    *out_result = json_object();
    json_put(*out_result, "validation", answer);
    return 0;
}
