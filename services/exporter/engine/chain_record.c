/* See chain_record.h. */
#include "services/exporter/engine/chain_record.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/export_evidence.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/targets/local.h"

#define CHECKSUMS_NAME "checksums.txt"

static json_t *find_named(const json_t *list, const char *key, const char *name)
{
    json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        if (strcmp(json_str(item, key), name) == 0)
            return item;
    }
    return NULL;
}

/* Size and digest of a file of the export, as it is now, into its entry. */
static int refresh_file(const char *dir, const json_t *files, const char *name, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, name);
    json_t *entry = find_named(files, "name", name);
    char hex[DIGEST_HEX_SIZE];
    struct stat st;

    if (entry == NULL)
        return error_set(err, ERR_CORRUPT, "export.json does not list '%.200s'", name);
    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "'%.200s'", path);
    if (file_sha256(path, hex, err) < 0)
        return -1;
    export_set_u64(entry, "size", (uint64_t)st.st_size);
    json_set_text(entry, "sha256", hex);
    return 0;
}

static int write_text(const char *dir, const json_t *files, const char *name, const char *text,
                      struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, name);

    if (file_write_atomic(path, text, strlen(text), LOCAL_FILE_MODE, err) < 0)
        return -1;
    return files == NULL ? 0 : refresh_file(dir, files, name, err);
}

static char *pretty(const json_t *json)
{
    autofree char *plain = json_dumps(json, JSON_INDENT(2));

    if (plain == NULL)
        abort(); /* out of memory */
    return xasprintf("%s\n", plain);
}

static int refresh_disks(const char *dir, json_t *document, struct error *err)
{
    const json_t *files = json_object_get(document, "files");
    json_t *incremental = json_object_get(document, "incremental");
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(document, "disks"), i, disk)
    {
        const char *name = json_str(disk, "file");
        const json_t *entry;
        if (refresh_file(dir, files, name, err) < 0)
            return -1;
        entry = find_named(files, "name", name);
        json_put(disk, "size_bytes", json_incref(json_object_get(entry, "size")));
        json_put(disk, "sha256", json_incref(json_object_get(entry, "sha256")));
        (void)json_object_del(disk, "backing");
    }
    if (incremental != NULL) {
        (void)json_object_del(incremental, "base_id");
        (void)json_object_del(incremental, "base_dir");
        json_put(incremental, "chain", json_array());
    }
    return 0;
}

static int refresh_manifests(const char *dir, const json_t *document, struct error *err)
{
    autofree char *path = xasprintf("%s/" MANIFEST_JSON_NAME, dir);
    const json_t *files = json_object_get(document, "files");
    json_t *incremental;
    auto_json *manifest = NULL;
    autofree char *json = NULL;
    autofree char *yaml = NULL;
    json_t *disk;
    size_t i;

    if (manifest_load(path, &manifest, err) < 0)
        return -1;
    json_array_foreach(json_object_get(manifest, "disks"), i, disk)
    {
        const json_t *entry = find_named(files, "name", json_str(disk, "relative_path"));
        autofree char *checksum = xasprintf("sha256:%s", json_str(entry, "sha256"));
        export_set_u64(disk, "bytes", json_u64(entry, "size"));
        json_set_text(disk, "checksum", checksum);
    }
    incremental = json_object_get(manifest, "incremental");
    if (incremental != NULL) {
        (void)json_object_del(incremental, "base_id");
        (void)json_object_del(incremental, "base_dir");
        json_put(incremental, "chain", json_array());
    }
    json = pretty(manifest);
    if (yaml_format(manifest, MANIFEST_BYTES_MAX, &yaml, err) < 0 ||
        write_text(dir, files, MANIFEST_JSON_NAME, json, err) < 0)
        return -1;
    return write_text(dir, files, MANIFEST_YAML_NAME, yaml, err);
}

/* As an export writes it: all files but itself and the evidence. */
static int refresh_checksums(const char *dir, const json_t *document, struct error *err)
{
    const json_t *files = json_object_get(document, "files");
    autofree struct mf_file *list = xcalloc(json_array_size(files) + 1, sizeof *list);
    autofree char *text = NULL;
    const json_t *file;
    size_t count = 0;
    size_t i;

    json_array_foreach(files, i, file)
    {
        const char *type = json_str(file, "type");
        if (strcmp(type, "checksums") != 0 && strcmp(type, "evidence") != 0)
            list[count++] = (struct mf_file){json_str(file, "name"), json_str(file, "sha256")};
    }
    if (checksums_format(list, count, &text, err) < 0)
        return -1;
    return write_text(dir, files, CHECKSUMS_NAME, text, err);
}

int chain_record_refresh(const char *dir, const struct seal_key *key, struct error *err)
{
    autofree char *path = xasprintf("%s/" EXPORT_RECORD_NAME, dir);
    auto_export_record *record = NULL;
    auto_json *document = NULL;
    autofree char *text = NULL;

    if (export_record_load(path, &record, err) < 0)
        return -1;
    document = json_deep_copy(record->document);
    if (refresh_disks(dir, document, err) < 0 || refresh_manifests(dir, document, err) < 0 ||
        refresh_checksums(dir, document, err) < 0 ||
        export_evidence_renew(dir, document, key, err) < 0)
        return -1;
    text = pretty(document);
    if (write_text(dir, NULL, EXPORT_RECORD_NAME, text, err) < 0)
        return -1;
    return local_sync_dir(dir, err);
}
