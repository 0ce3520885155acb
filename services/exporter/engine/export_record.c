/* See export_record.h. */
#include "services/exporter/engine/export_record.h"

#include <inttypes.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/crypt_file.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/vm.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/mf.h"

#define ID_BYTES_MAX 128

static const char *const file_types[] = {"ovf",    "ova",      "mf",        "disk",
                                         "leaves", "manifest", "checksums", "evidence"};

void export_set_u64(json_t *object, const char *key, uint64_t value)
{
    json_put(object, key, json_integer((json_int_t)value));
}

json_t *export_append(json_t *array)
{
    json_t *object = json_object();

    if (json_array_append_new(array, object) < 0)
        abort();
    return object;
}

/* ---- reading ---- */

static bool type_is_known(const char *type)
{
    for (size_t i = 0; i < ARRAY_LEN(file_types); i++) {
        if (strcmp(type, file_types[i]) == 0)
            return true;
    }
    return false;
}

static int check_file(const struct export_record *record, const struct export_record_file *file,
                      struct error *err)
{
    uint8_t raw[DIGEST_BYTES];

    if (!file_name_is_plain(file->name) || strcmp(file->name, EXPORT_RECORD_NAME) == 0) {
        return error_set(err, ERR_CORRUPT, "'%.255s' is no name of a file of an export",
                         file->name);
    }
    for (size_t i = 0; i < record->file_count; i++) {
        if (strcmp(record->files[i].name, file->name) == 0)
            return error_set(err, ERR_CORRUPT, "file '%.255s' stands there twice", file->name);
    }
    if (!type_is_known(file->type)) {
        return error_set(err, ERR_CORRUPT, "file '%.200s' has the unknown type '%.32s'", file->name,
                         file->type);
    }
    if (!hex_decode(file->sha256, raw, sizeof raw))
        return error_set(err, ERR_CORRUPT, "file '%.200s' has no SHA-256", file->name);
    return 0;
}

static int read_files(struct export_record *record, struct error *err)
{
    const json_t *files = json_object_get(record->document, "files");
    const json_t *item;
    size_t i;

    if (!json_is_array(files) || json_array_size(files) == 0 ||
        json_array_size(files) > EXPORT_FILES_MAX)
        return error_set(err, ERR_CORRUPT, "files is no list of 1 to %d files", EXPORT_FILES_MAX);
    json_array_foreach(files, i, item)
    {
        struct export_record_file file = {json_str(item, "name"), json_str(item, "type"),
                                          json_str(item, "sha256"), 0,
                                          json_object_get(item, "shared_with") != NULL};
        struct error size_error = ERROR_NONE;
        if (!json_is_object(item) ||
            json_get_u64(item, "size", 0, (uint64_t)INT64_MAX, UINT64_MAX, &file.size,
                         &size_error) < 0 ||
            file.size == UINT64_MAX)
            return error_set(err, ERR_CORRUPT, "files[%zu] has no size", i);
        if (check_file(record, &file, err) < 0)
            return -1;
        record->files[record->file_count++] = file;
    }
    return 0;
}

static int check_shape(struct export_record *record, struct error *err)
{
    const json_t *disks = json_object_get(record->document, "disks");
    const json_t *disk;
    size_t i;
    size_t length;

    if (!json_is_object(record->document) ||
        json_u64(record->document, "record_version") != EXPORT_RECORD_VERSION)
        return error_set(err, ERR_CORRUPT, "record_version is not %d", EXPORT_RECORD_VERSION);
    record->export_id = json_str(record->document, "export_id");
    length = strlen(record->export_id);
    if (length == 0 || length > ID_BYTES_MAX)
        return error_set(err, ERR_CORRUPT, "export_id is missing");
    if (!json_is_array(disks) || json_array_size(disks) == 0 ||
        json_array_size(disks) > VM_DISKS_MAX)
        return error_set(err, ERR_CORRUPT, "disks is no list of 1 to %d disks", VM_DISKS_MAX);
    json_array_foreach(disks, i, disk)
    {
        if (!json_is_object(disk) || json_str(disk, "disk_id")[0] == '\0')
            return error_set(err, ERR_CORRUPT, "disks[%zu] has no disk_id", i);
    }
    return read_files(record, err);
}

int export_record_parse(const char *text, size_t size, struct export_record **out,
                        struct error *err)
{
    auto_export_record *record = xcalloc(1, sizeof *record);
    struct error json_error = ERROR_NONE;

    if (json_parse(text, size, EXPORT_RECORD_BYTES_MAX, &record->document, &json_error) < 0)
        return error_set(err, ERR_CORRUPT, "%.300s", json_error.message);
    if (check_shape(record, err) < 0)
        return -1;
    *out = STEAL(record);
    return 0;
}

int export_record_load(const char *path, struct export_record **out, struct error *err)
{
    autofree char *text = NULL;
    size_t size = 0;

    if (file_read(path, EXPORT_RECORD_BYTES_MAX, &text, &size, err) < 0)
        return -1;
    if (export_record_parse(text, size, out, err) < 0)
        return error_wrap(err, "'%.200s'", path);
    return 0;
}

void export_record_free(struct export_record *record)
{
    if (record == NULL)
        return;
    json_decref(record->document);
    free(record);
}

const char *export_record_base_id(const struct export_record *record)
{
    const json_t *incremental = json_object_get(record->document, "incremental");

    return strcmp(json_str(incremental, "mode"), "disk") == 0 ? ""
                                                              : json_str(incremental, "base_id");
}

/* ---- the task's result ---- */

static void copy_key(json_t *to, const char *to_key, const json_t *from, const char *key)
{
    json_t *value = json_object_get(from, key);

    json_put(to, to_key, value == NULL ? json_null() : json_deep_copy(value));
}

static void append_path(json_t *array, const char *dir, const char *name)
{
    autofree char *path = xasprintf("%s/%s", dir, name);
    json_t *holder = json_object(); /* json_set_text repairs what is not UTF-8 */

    json_set_text(holder, "p", path);
    if (json_array_append(array, json_object_get(holder, "p")) < 0)
        abort();
    json_decref(holder);
}

static void set_path(json_t *object, const char *key, const char *dir, const char *name)
{
    autofree char *path = xasprintf("%s/%s", dir, name);

    json_set_text(object, key, path);
}

/* files, exported_files, checksums, total_size, and the paths among them. */
static void result_files(json_t *result, const struct export_record *record, const char *dir,
                         uint64_t record_bytes)
{
    json_t *files = json_array();
    json_t *exported = json_array();
    json_t *checksums = json_object();
    uint64_t total = record_bytes;
    json_t *item;

    for (size_t i = 0; i < record->file_count; i++) {
        const struct export_record_file *file = &record->files[i];
        autofree char *checksum = xasprintf("sha256:%s", file->sha256);
        item = export_append(files);
        json_set_text(item, "name", file->name);
        export_set_u64(item, "size", file->size);
        json_set_text(item, "sha256", file->sha256);
        json_set_text(item, "type", file->type);
        json_set_text(checksums, file->name, checksum);
        total += file->size;
        if (strcmp(file->type, "ovf") == 0)
            set_path(result, "ovf_path", dir, file->name);
        if (strcmp(file->type, "ovf") == 0 || strcmp(file->type, "ova") == 0 ||
            strcmp(file->type, "disk") == 0)
            append_path(exported, dir, file->name);
    }
    item = export_append(files);
    json_set_text(item, "name", EXPORT_RECORD_NAME);
    export_set_u64(item, "size", record_bytes);
    json_set_text(item, "type", "record");
    json_put(result, "files", files);
    json_put(result, "exported_files", exported);
    json_put(result, "checksums", checksums);
    export_set_u64(result, "total_size", total);
}

/* What the tables exports and export_disks hold. */
static void result_export(json_t *result, const struct export_record *record,
                          const struct export_place *place)
{
    static const char *const disk_keys[] = {"disk_id", "file", "size_bytes", "capacity_bytes",
                                            "sha256",  "root", "change_id"};
    const json_t *source = json_object_get(record->document, "source");
    json_t *export = json_object();
    json_t *disks = json_array();
    const json_t *disk;
    size_t i;

    json_put(result, "export", export);
    json_set_text(export, "id", record->export_id);
    json_set_text(export, "volume", place->volume);
    json_set_text(export, "vm_id", json_str(source, "vm_id"));
    json_set_text(export, "vm_name", json_str(source, "vm_name"));
    copy_key(export, "format", record->document, "format");
    json_set_text(export, "base_id", export_record_base_id(record));
    json_set_text(export, "path", place->dir);
    copy_key(export, "total_size", result, "total_size");
    copy_key(export, "created_at", record->document, "completed_at");
    json_put(export, "disks", disks);
    json_array_foreach(json_object_get(record->document, "disks"), i, disk)
    {
        json_t *item = export_append(disks);
        for (size_t k = 0; k < ARRAY_LEN(disk_keys); k++)
            copy_key(item, disk_keys[k], disk, disk_keys[k]);
    }
    json_put(export, "manifest", json_deep_copy(place->manifest));
}

void export_record_result(const struct export_record *record, const struct export_place *place,
                          json_t **out)
{
    json_t *result = json_object();
    const json_t *source = json_object_get(record->document, "source");

    json_set_text(result, "vm_name", json_str(source, "vm_name"));
    json_set_text(result, "method", json_str(source, "method"));
    copy_key(result, "format", record->document, "format");
    json_set_text(result, "output_path", place->dir);
    set_path(result, "manifest_path", place->dir,
             json_object_get(record->document, "encryption") == NULL
                 ? MANIFEST_JSON_NAME
                 : MANIFEST_JSON_NAME CRYPT_SUFFIX);
    result_files(result, record, place->dir, place->record_bytes);
    copy_key(result, "transferred_bytes", record->document, "transferred_bytes");
    copy_key(result, "duration_seconds", record->document, "duration_seconds");
    copy_key(result, "verified", record->document, "verified");
    copy_key(result, "warnings", record->document, "warnings");
    if (json_object_get(record->document, "incremental") != NULL)
        copy_key(result, "incremental", record->document, "incremental");
    result_export(result, record, place);
    *out = result;
}
