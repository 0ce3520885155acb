/* See export_evidence.h. */
#include "services/exporter/engine/export_evidence.h"

#include <errno.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/export_run.h"

/* What the evidence repeats of the record. */
static const char *const shared_keys[] = {"export_id", "job_id", "tool",   "started_at",
                                          "provider",  "source", "format", "disks"};

/* Of a document whose "files" are those that it speaks of. */
static json_t *evidence_make(const json_t *document, const struct seal_key *key)
{
    json_t *evidence = json_object();
    uint8_t public_key[SEAL_PUBLIC_BYTES];
    char hex[2 * SEAL_PUBLIC_BYTES + 1];

    seal_public(key, public_key);
    hex_encode(public_key, sizeof public_key, hex);
    json_put(evidence, "evidence_version", json_integer(EVIDENCE_VERSION));
    for (size_t i = 0; i < ARRAY_LEN(shared_keys); i++)
        json_put(evidence, shared_keys[i], json_incref(json_object_get(document, shared_keys[i])));
    json_put(evidence, "signed_at", json_incref(json_object_get(document, "completed_at")));
    json_put(evidence, "files", json_incref(json_object_get(document, "files")));
    json_set_text(evidence, "public_key", hex);
    return evidence;
}

/* Caller frees. */
static char *signed_text(const json_t *document, const struct seal_key *key,
                         uint8_t signature[SEAL_SIGNATURE_BYTES])
{
    auto_json *evidence = evidence_make(document, key);
    autofree char *plain = json_dumps(evidence, JSON_INDENT(2));
    char *text;

    if (plain == NULL)
        abort(); /* out of memory */
    text = xasprintf("%s\n", plain);
    seal_sign(key, text, strlen(text), signature);
    return text;
}

int export_evidence_write(struct export_run *run, struct error *err)
{
    uint8_t signature[SEAL_SIGNATURE_BYTES];
    auto_json *document = NULL;
    autofree char *text = NULL;

    if (run->exporter->evidence_key == NULL)
        return 0;
    document = export_document(run);
    text = signed_text(document, run->exporter->evidence_key, signature);
    if (export_write_file(run, EVIDENCE_NAME, "evidence", text, strlen(text), err) < 0)
        return -1;
    return export_write_file(run, EVIDENCE_SIGNATURE, "evidence", (const char *)signature,
                             sizeof signature, err);
}

/* ---- renewing ---- */

static int renew_file(const char *dir, json_t *files, const char *name, const void *data,
                      size_t size, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, name);
    char hex[DIGEST_HEX_SIZE];
    json_t *entry;

    if (file_write_atomic(path, data, size, LOCAL_FILE_MODE, err) < 0 ||
        file_sha256(path, hex, err) < 0)
        return -1;
    entry = export_append(files);
    json_set_text(entry, "name", name);
    json_set_text(entry, "type", "evidence");
    export_set_u64(entry, "size", size);
    json_set_text(entry, "sha256", hex);
    return 0;
}

int export_evidence_renew(const char *dir, json_t *document, const struct seal_key *key,
                          struct error *err)
{
    json_t *files = json_object_get(document, "files");
    uint8_t signature[SEAL_SIGNATURE_BYTES];
    autofree char *text = NULL;
    size_t before = json_array_size(files);

    for (size_t i = before; i > 0; i--) {
        if (strcmp(json_str(json_array_get(files, i - 1), "type"), "evidence") == 0)
            (void)json_array_remove(files, i - 1);
    }
    if (json_array_size(files) == before)
        return 0;
    if (key == NULL) {
        autofree char *path = xasprintf("%s/" EVIDENCE_NAME, dir);
        autofree char *signature_path = xasprintf("%s/" EVIDENCE_SIGNATURE, dir);
        if ((unlink(path) < 0 && errno != ENOENT) ||
            (unlink(signature_path) < 0 && errno != ENOENT))
            return error_set_errno(err, errno, "evidence in '%.200s' cannot be removed", dir);
        return 0;
    }
    text = signed_text(document, key, signature);
    if (renew_file(dir, files, EVIDENCE_NAME, text, strlen(text), err) < 0)
        return -1;
    return renew_file(dir, files, EVIDENCE_SIGNATURE, signature, sizeof signature, err);
}

/* ---- checking ---- */

static bool is_evidence(const struct export_record_file *file)
{
    return strcmp(file->type, "evidence") == 0;
}

static bool has_evidence(const struct export_record *record)
{
    for (size_t i = 0; i < record->file_count; i++) {
        if (is_evidence(&record->files[i]))
            return true;
    }
    return false;
}

static int load_signed(const char *dir, const struct seal_key *key, json_t **out, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, EVIDENCE_NAME);
    autofree char *signature_path = xasprintf("%s/%s", dir, EVIDENCE_SIGNATURE);
    autofree char *text = NULL;
    autofree char *signature = NULL;
    uint8_t public_key[SEAL_PUBLIC_BYTES];
    size_t size = 0;
    size_t signature_size = 0;

    if (file_read(path, EXPORT_RECORD_BYTES_MAX, &text, &size, err) < 0 ||
        file_read(signature_path, SEAL_SIGNATURE_BYTES, &signature, &signature_size, err) < 0)
        return -1;
    seal_public(key, public_key);
    if (signature_size != SEAL_SIGNATURE_BYTES ||
        !seal_signature_fits(public_key, text, size, (const uint8_t *)signature)) {
        return error_set(err, ERR_CORRUPT,
                         "the signature of " EVIDENCE_NAME " is not that of this suite's key");
    }
    return json_parse(text, size, EXPORT_RECORD_BYTES_MAX, out, err);
}

static bool lists_file(const json_t *evidence, const struct export_record_file *file)
{
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(evidence, "files"), i, item)
    {
        if (strcmp(json_str(item, "name"), file->name) == 0) {
            return strcmp(json_str(item, "sha256"), file->sha256) == 0 &&
                   json_u64(item, "size") == file->size;
        }
    }
    return false;
}

int export_evidence_check(const struct export_record *record, const char *dir,
                          const struct seal_key *key, struct error *err)
{
    auto_json *evidence = NULL;
    size_t listed = 0;

    if (!has_evidence(record))
        return error_set(err, ERR_NOT_FOUND, "this export has no evidence");
    if (load_signed(dir, key, &evidence, err) < 0)
        return -1;
    for (size_t i = 0; i < record->file_count; i++) {
        if (is_evidence(&record->files[i]))
            continue;
        listed++;
        if (!lists_file(evidence, &record->files[i])) {
            return error_set(err, ERR_CORRUPT,
                             EVIDENCE_NAME " and export.json differ about '%.200s'",
                             record->files[i].name);
        }
    }
    if (listed != json_array_size(json_object_get(evidence, "files"))) {
        return error_set(err, ERR_CORRUPT,
                         EVIDENCE_NAME " names files that export.json does not name");
    }
    for (size_t i = 0; i < ARRAY_LEN(shared_keys); i++) {
        if (!json_equal(json_object_get(evidence, shared_keys[i]),
                        json_object_get(record->document, shared_keys[i]))) {
            return error_set(err, ERR_CORRUPT, EVIDENCE_NAME " and export.json differ about '%s'",
                             shared_keys[i]);
        }
    }
    return 0;
}
