/* See export_check.h. */
#include "services/exporter/engine/export_check.h"

#include <dirent.h>
#include <fcntl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/chain.h"
#include "services/exporter/engine/copy.h"
#include "services/exporter/engine/export_evidence.h"
#include "services/exporter/engine/export_key.h"
#include "services/exporter/engine/export_plain.h"
#include "services/exporter/engine/export_record.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ova.h"
#include "services/exporter/formats/ovf.h"
#include "services/exporter/targets/local.h"

#define EXTRA_FILES_MAX   100
#define MESSAGE_BYTES_MAX 600

struct check {
    const struct export_check_options *options;
    const struct export_record *record; /* NULL: a package without one */
    json_t *result;
    json_t *problems; /* borrowed from result */
    json_t *extra;
    char *root;                  /* of a restore point's chain, else NULL */
    const struct crypt_key *key; /* of an encrypted export; NULL: not encrypted, or not there */
    struct crypt_key *loaded;    /* key, when it is a file's; owned */
    size_t problem_count;
    uint64_t done;
    uint64_t total;
};

/* ---- findings ---- */

/* what: missing, size, digest, content, structure, evidence. Returns the entry, or NULL above the
 * bound. */
static json_t *add_problem(struct check *check, const char *file, const char *what,
                           const char *format, ...) PRINTF_LIKE(4, 5);
static json_t *add_problem(struct check *check, const char *file, const char *what,
                           const char *format, ...)
{
    char message[MESSAGE_BYTES_MAX];
    json_t *problem;
    va_list args;

    check->problem_count++;
    if (json_array_size(check->problems) >= EXPORT_PROBLEMS_MAX)
        return NULL;
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    problem = export_append(check->problems);
    json_set_text(problem, "file", file);
    json_set_text(problem, "problem", what);
    json_set_text(problem, "message", message);
    return problem;
}

/* A failure to read is a finding about that file; being stopped is not. */
static int note_failure(struct check *check, const char *file, const char *what, struct error *err)
{
    if (err->code == ERR_CANCELLED)
        return -1;
    (void)add_problem(check, file, what, "%s", err->message);
    error_clear(err);
    return 0;
}

static void advance(struct check *check, uint64_t bytes, const char *next)
{
    check->done += bytes;
    if (check->options->progress != NULL)
        check->options->progress(check->options->arg, check->done, check->total, next);
}

static char *path_of(const struct check *check, const char *name)
{
    return xasprintf("%s/%s", check->options->dir, name);
}

/* ---- files: there, their size, their digest ---- */

static bool stands(struct check *check, const char *name, uint64_t size)
{
    autofree char *path = path_of(check, name);
    struct stat st;

    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode)) {
        (void)add_problem(check, name, "missing", "'%.255s' is missing", name);
        return false;
    }
    if ((uint64_t)st.st_size != size) {
        (void)add_problem(check, name, "size",
                          "'%.255s' has %" PRIu64 " bytes, it was written with %" PRIu64, name,
                          (uint64_t)st.st_size, size);
        return false;
    }
    return true;
}

static int check_file(struct check *check, const struct export_record_file *file, struct error *err)
{
    autofree char *path = path_of(check, file->name);
    char hex[DIGEST_HEX_SIZE];

    advance(check, 0, file->name);
    if (!stands(check, file->name, file->size))
        return 0;
    if (file_sha256_until(path, check->options->stopped, hex, err) < 0)
        return note_failure(check, file->name, "digest", err);
    if (strcmp(hex, file->sha256) != 0) {
        (void)add_problem(check, file->name, "digest",
                          "SHA-256 of '%.255s' is %.12s..., it was written with %.12s...",
                          file->name, hex, file->sha256);
    }
    advance(check, file->size, file->name);
    return 0;
}

/* ---- images against their leaves ---- */

static int load_leaves(struct check *check, const json_t *disk, struct leaves **out,
                       struct error *err)
{
    const char *name = json_str(disk, "leaves");
    autofree char *path = NULL;
    auto_leaves *leaves = NULL;
    char root[DIGEST_TEXT_SIZE];

    if (!file_name_is_plain(name))
        return error_set(err, ERR_CORRUPT, "export.json names no leaves of this disk");
    path = path_of(check, name);
    if (leaves_load(path, &leaves, err) < 0)
        return -1;
    leaves_root_text(leaves, root);
    if (strcmp(root, json_str(disk, "root")) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.255s' has the root %.40s..., export.json says "
                         "%.40s...",
                         name, root, json_str(disk, "root"));
    }
    *out = STEAL(leaves);
    return 0;
}

static void add_differences(struct check *check, const char *name,
                            const struct copy_differences *found)
{
    json_t *offsets = json_array();
    json_t *problem;

    for (size_t i = 0; i < found->count; i++) {
        if (json_array_append_new(
                offsets, json_integer((json_int_t)found->leaf[i] * (json_int_t)LEAF_BYTES)) < 0)
            abort(); /* out of memory */
    }
    problem =
        add_problem(check, name, "content",
                    "'%.255s': %s%zu MiB differ%s from the source, the first at offset "
                    "%" PRIu64 " of the disk",
                    name, found->count == COPY_DIFFERENCES_MAX ? "at least " : "", found->count,
                    found->count == 1 ? "s" : "", found->leaf[0] * (uint64_t)LEAF_BYTES);
    if (problem == NULL) {
        json_decref(offsets);
    } else {
        json_put(problem, "offsets", offsets);
    }
}

/* member: of the OVA `name`; "": the file is the image. */
static int check_image(struct check *check, const char *name, const char *member,
                       const struct leaves *leaves, struct error *err)
{
    static const char *const formats[] = {"vmdk", "qcow2", "raw", "raw.zst"};
    autofree char *path = path_of(check, name);
    struct image_part part = {.path = path, .root = check->root};
    struct copy_differences found;

    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (path_has_suffix(member[0] != '\0' ? member : name,
                            sink_format_find(formats[i])->suffix))
            part.format = formats[i];
    }
    advance(check, 0, name);
    if (part.format == NULL) {
        (void)add_problem(check, name, "structure", "'%.255s' is of no known disk format", name);
        return 0;
    }
    if (access(path, F_OK) == 0) { /* a missing one was told already */
        if (member[0] != '\0' && ova_find_part(member, &part, err) < 0)
            return note_failure(check, name, "structure", err);
        if (copy_verify_all(&(struct copy_verify_options){.image = part,
                                                          .leaves = leaves,
                                                          .threads = check->options->threads,
                                                          .stopped = check->options->stopped},
                            &found, err) < 0)
            return note_failure(check, name, "content", err);
        if (found.count > 0)
            add_differences(check, member[0] != '\0' ? member : name, &found);
    }
    advance(check, leaves_disk_bytes(leaves), name);
    return 0;
}

static int check_disk(struct check *check, const json_t *disk, struct error *err)
{
    auto_leaves *leaves = NULL;
    const json_t *image;
    size_t i;

    if (load_leaves(check, disk, &leaves, err) < 0)
        return note_failure(check, json_str(disk, "leaves"), "structure", err);
    json_array_foreach(json_object_get(disk, "images"), i, image)
    {
        const char *name = json_str(image, "name");
        if (!file_name_is_plain(name))
            return error_set(err, ERR_CORRUPT, "export.json names an image '%.80s'", name);
        if (check_image(check, name, json_str(image, "member"), leaves, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- descriptor and digest list ---- */

static int read_text(struct check *check, const char *name, size_t size_max, char **out,
                     size_t *out_size, struct error *err)
{
    autofree char *path = path_of(check, name);

    return file_read(path, size_max, out, out_size, err);
}

static int check_descriptor(struct check *check, const char *name, struct error *err)
{
    autofree char *text = NULL;
    auto_ovf *ovf = NULL;
    size_t size = 0;

    if (read_text(check, name, OVF_BYTES_MAX, &text, &size, err) < 0 ||
        ovf_read(text, size, &ovf, err) < 0 || ovf_check_files(ovf, check->options->dir, err) < 0)
        return note_failure(check, name, "structure", err);
    return 0;
}

static const char *recorded_digest(const struct check *check, const char *name)
{
    for (size_t i = 0; check->record != NULL && i < check->record->file_count; i++) {
        if (strcmp(check->record->files[i].name, name) == 0)
            return check->record->files[i].sha256;
    }
    return NULL;
}

/* With export.json the files' digests are known by now: the list must say the same. Without it
 * the list is all there is, and the files are read. */
static int check_listed(struct check *check, const char *list, const struct mf_entry *entry,
                        struct error *err)
{
    autofree char *path = path_of(check, entry->name);
    const char *recorded = recorded_digest(check, entry->name);
    char hex[MF_HEX_SIZE];

    if (recorded != NULL && strcmp(entry->algorithm, "SHA256") == 0) {
        if (strcmp(recorded, entry->hex) != 0) {
            (void)add_problem(check, list, "structure",
                              "'%.120s' and export.json differ about '%.255s'", list, entry->name);
        }
        return 0;
    }
    advance(check, 0, entry->name);
    if (atomic_load(check->options->stopped))
        return error_set(err, ERR_CANCELLED, "the verification was stopped");
    if (file_digest(path, entry->algorithm, hex, sizeof hex, err) < 0) {
        return note_failure(check, entry->name, err->code == ERR_NOT_FOUND ? "missing" : "digest",
                            err);
    }
    if (strcmp(hex, entry->hex) != 0) {
        (void)add_problem(check, entry->name, "digest",
                          "%s of '%.255s' is %.12s..., '%.120s' says %.12s...", entry->algorithm,
                          entry->name, hex, list, entry->hex);
    }
    return 0;
}

static int check_list(struct check *check, const char *name, struct error *err)
{
    autofree char *text = NULL;
    auto_mf *mf = NULL;
    size_t size = 0;

    if (read_text(check, name, MF_BYTES_MAX, &text, &size, err) < 0 ||
        mf_parse(text, size, &mf, err) < 0)
        return note_failure(check, name, "structure", err);
    for (size_t i = 0; i < mf->count; i++) {
        if (check_listed(check, name, &mf->entries[i], err) < 0)
            return -1;
    }
    for (size_t i = 0; i < mf->warning_count; i++)
        (void)add_problem(check, name, "structure", "%s", mf->warnings[i]);
    return 0;
}

/* ---- what else stands there ---- */

static bool is_listed(const struct check *check, const char *name)
{
    return strcmp(name, EXPORT_RECORD_NAME) == 0 || recorded_digest(check, name) != NULL ||
           strncmp(name, ".hypersdk-", strlen(".hypersdk-")) == 0;
}

/* Directories are other exports of the same VM. */
static int find_extra(struct check *check, struct error *err)
{
    auto_dir *stream = opendir(check->options->dir);
    const struct dirent *entry;

    if (stream == NULL)
        return error_set_errno(err, errno, "'%.200s'", check->options->dir);
    while ((entry = readdir(stream)) != NULL) {
        struct stat st;
        json_t *holder;
        if (is_listed(check, entry->d_name) ||
            fstatat(dirfd(stream), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            S_ISDIR(st.st_mode) || json_array_size(check->extra) >= EXTRA_FILES_MAX)
            continue;
        holder = json_object(); /* json_set_text repairs what is not UTF-8 */
        json_set_text(holder, "name", entry->d_name);
        (void)json_array_append(check->extra, json_object_get(holder, "name"));
        json_decref(holder);
    }
    return 0;
}

/* ---- evidence ---- */

static int check_evidence(struct check *check, struct error *err)
{
    const struct seal_key *key = check->options->exporter->evidence_key;
    const char *found = "valid";

    if (key == NULL) {
        found = "unchecked";
    } else if (export_evidence_check(check->record, check->options->dir, key, err) < 0) {
        found = err->code == ERR_NOT_FOUND ? "none" : "wrong";
        if (err->code == ERR_NOT_FOUND) {
            error_clear(err);
        } else if (note_failure(check, EVIDENCE_NAME, "evidence", err) < 0) {
            return -1;
        }
    }
    json_set_text(check->result, "evidence", found);
    return 0;
}

/* ---- the two kinds of directories ---- */

static void plan_bytes(struct check *check)
{
    const json_t *disk;
    size_t i;

    for (size_t k = 0; k < check->record->file_count; k++)
        check->total += check->record->files[k].size;
    if (json_object_get(check->record->document, "encryption") != NULL) {
        check->total *= check->key != NULL ? 2 : 1; /* read once more to decrypt it */
        return;
    }
    json_array_foreach(json_object_get(check->record->document, "disks"), i, disk)
    {
        check->total +=
            json_u64(disk, "capacity_bytes") * json_array_size(json_object_get(disk, "images"));
    }
}

/* What can be read without a key: descriptor, digest list, images. */
static int check_plain(struct check *check, struct error *err)
{
    const struct export_record *record = check->record;
    const json_t *disk;
    size_t i;

    for (size_t k = 0; k < record->file_count; k++) {
        const struct export_record_file *file = &record->files[k];
        if (strcmp(file->type, "ovf") == 0 && check_descriptor(check, file->name, err) < 0)
            return -1;
        if (strcmp(file->type, "mf") == 0 && check_list(check, file->name, err) < 0)
            return -1;
    }
    json_array_foreach(json_object_get(record->document, "disks"), i, disk)
    {
        if (check_disk(check, disk, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- encrypted exports ---- */

/* The first encrypted file that stands there; NULL: none does. Caller frees. */
static char *some_encrypted(const struct check *check)
{
    for (size_t i = 0; i < check->record->file_count; i++) {
        autofree char *path = path_of(check, check->record->files[i].name);
        if (path_has_suffix(path, CRYPT_SUFFIX) && access(path, R_OK) == 0)
            return STEAL(path);
    }
    return NULL;
}

/* check->key, or why there is none. A passphrase that was given must be the right one. */
static int find_key(struct check *check, struct error *err)
{
    const json_t *encryption = json_object_get(check->record->document, "encryption");
    const char *ref = json_str(encryption, "key_ref");
    autofree char *file = encryption == NULL ? NULL : some_encrypted(check);
    const char *reason = "no passphrase was given";
    struct error why = ERROR_NONE;

    if (encryption == NULL)
        return 0;
    check->key = check->options->passphrase;
    if (check->key == NULL && ref[0] != '\0') {
        if (export_key_load(check->options->exporter, ref, &check->loaded, &why) < 0)
            reason = why.message;
        check->key = check->loaded;
    }
    if (check->key != NULL && file != NULL && crypt_key_check(file, check->key, &why) < 0 &&
        why.code == ERR_DENIED) {
        check->key = NULL;
        reason = why.message;
        if (check->options->passphrase != NULL) {
            *err = why;
            return -1;
        }
    }
    json_put(check->result, "encrypted", json_true());
    json_put(check->result, "content_checked", json_boolean(check->key != NULL));
    if (check->key == NULL)
        json_set_text(check->result, "content_note", reason);
    return 0;
}

/* The entry of the file that was called so before it was encrypted; NULL: none. */
static const json_t *encrypted_entry(const struct check *check, const char *plain_name)
{
    const json_t *entry;
    size_t i;

    json_array_foreach(json_object_get(check->record->document, "files"), i, entry)
    {
        if (strcmp(json_str(entry, "plain_name"), plain_name) == 0)
            return entry;
    }
    return NULL;
}

/* The leaves of the disk whose raw image is called so; NULL: it is no raw image, or they cannot be
 * read, which is told with their own file. */
static struct leaves *leaves_of(struct check *check, const char *plain_name)
{
    const json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(check->record->document, "disks"), i, disk)
    {
        const json_t *image = json_array_get(json_object_get(disk, "images"), 0);
        const json_t *entry = encrypted_entry(check, json_str(disk, "leaves"));
        uint64_t size = json_u64(entry, "plain_size");
        autofree char *path = NULL;
        struct leaves *leaves = NULL;
        struct export_plain plain;
        struct error none = ERROR_NONE;
        struct stat st;
        if (!path_has_suffix(plain_name, ".raw") ||
            strcmp(json_str(image, "name"), plain_name) != 0)
            continue;
        path = path_of(check, json_str(entry, "name"));
        if (size == 0 || stat(path, &st) < 0 || size >= (uint64_t)st.st_size)
            return NULL; /* a file is longer than what it holds */
        if (export_plain_read(&(struct export_plain_options){.path = path,
                                                             .key = check->key,
                                                             .stopped = check->options->stopped,
                                                             .keep_max = size},
                              &plain, &none) < 0 ||
            leaves_parse(plain.kept, plain.bytes, &leaves, &none) < 0)
            leaves = NULL;
        free(plain.kept);
        return leaves;
    }
    return NULL;
}

/* Of a raw image the MiB of the disk, of others that of the file. */
static void add_damage(struct check *check, const char *name, bool raw, uint64_t plain_offset,
                       const char *why)
{
    uint64_t mib = plain_offset - plain_offset % LEAF_BYTES;
    json_t *problem = add_problem(check, name, "content",
                                  "'%.255s': the MiB at offset %" PRIu64 " of the %s cannot be "
                                  "decrypted, nor what lies behind it: %.200s",
                                  name, mib, raw ? "disk" : "plain file", why);

    if (problem != NULL && raw)
        json_put(problem, "offsets", json_pack("[I]", (json_int_t)mib));
}

static int check_content(struct check *check, const json_t *entry, struct error *err)
{
    const char *name = json_str(entry, "name");
    auto_leaves *leaves = leaves_of(check, json_str(entry, "plain_name"));
    autofree char *path = path_of(check, name);
    struct export_plain plain;

    advance(check, 0, name);
    if (access(path, F_OK) < 0)
        return 0; /* was told already */
    if (export_plain_read(&(struct export_plain_options){.path = path,
                                                         .key = check->key,
                                                         .leaves = leaves,
                                                         .stopped = check->options->stopped},
                          &plain, err) < 0) {
        if (err->code != ERR_CORRUPT)
            return note_failure(check, name, "content", err);
        add_damage(check, name, leaves != NULL, plain.bytes, err->message);
        error_clear(err);
    } else if (strcmp(plain.sha256, json_str(entry, "plain_sha256")) != 0) {
        (void)add_problem(check, name, "content",
                          "'%.255s' decrypts to something else than was encrypted", name);
    }
    if (plain.differences.count > 0)
        add_differences(check, name, &plain.differences);
    advance(check, json_u64(entry, "size"), name);
    return 0;
}

static int check_encrypted(struct check *check, struct error *err)
{
    const json_t *entry;
    size_t i;

    if (check->key == NULL)
        return 0;
    json_array_foreach(json_object_get(check->record->document, "files"), i, entry)
    {
        if (json_object_get(entry, "plain_name") != NULL && check_content(check, entry, err) < 0)
            return -1;
    }
    return 0;
}

static int check_export(struct check *check, struct error *err)
{
    const struct export_record *record = check->record;
    const json_t *source = json_object_get(record->document, "source");

    json_set_text(check->result, "export_id", record->export_id);
    json_set_text(check->result, "vm_name", json_str(source, "vm_name"));
    json_set_text(check->result, "format", json_str(record->document, "format"));
    if (find_key(check, err) < 0)
        return -1;
    plan_bytes(check);
    for (size_t k = 0; k < record->file_count; k++) {
        if (check_file(check, &record->files[k], err) < 0)
            return -1;
    }
    if ((json_object_get(record->document, "encryption") == NULL ? check_plain(check, err)
                                                                 : check_encrypted(check, err)) < 0)
        return -1;
    if (check_evidence(check, err) < 0)
        return -1;
    json_put(check->result, "files_checked", json_integer((json_int_t)record->file_count));
    return find_extra(check, err);
}

/* The one file with that suffix; NULL: none, or several. Caller frees. */
static char *only_file(const char *dir, const char *suffix)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;
    char *found = NULL;

    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        if (!path_has_suffix(entry->d_name, suffix) || !file_name_is_plain(entry->d_name))
            continue;
        if (found != NULL) {
            free(found);
            return NULL;
        }
        found = xstrdup(entry->d_name);
    }
    return found;
}

static int check_package(struct check *check, struct error *err)
{
    autofree char *descriptor = only_file(check->options->dir, ".ovf");
    autofree char *list = only_file(check->options->dir, ".mf");

    if (descriptor == NULL || list == NULL) {
        return error_set(err, ERR_NOT_FOUND,
                         "no export stands in '%.200s': there is no export.json, and no OVF "
                         "package with one .ovf and one .mf",
                         check->options->dir);
    }
    json_set_text(check->result, "format", "ovf");
    if (check_descriptor(check, descriptor, err) < 0)
        return -1;
    return check_list(check, list, err);
}

static int run_check(struct check *check, struct error *err)
{
    autofree char *path = path_of(check, EXPORT_RECORD_NAME);
    auto_export_record *record = NULL;

    if (export_record_load(path, &record, err) == 0) {
        autofree char *root = NULL;
        autoclose int lock = -1;
        check->record = record;
        if (chain_reader_lock(check->options->dir, record, &root, &lock, err) < 0)
            return -1;
        check->root = root;
        return check_export(check, err);
    }
    if (err->code != ERR_NOT_FOUND)
        return -1;
    error_clear(err);
    return check_package(check, err);
}

int export_check(const struct export_check_options *options, json_t **out, struct error *err)
{
    auto_json *result = json_object();
    struct check check = {.options = options, .result = result};
    int rc;

    check.problems = json_array();
    check.extra = json_array();
    json_set_text(result, "path", options->dir);
    json_put(result, "problems", check.problems);
    json_put(result, "extra_files", check.extra);
    rc = run_check(&check, err);
    crypt_key_free(check.loaded);
    if (rc < 0)
        return -1;
    json_put(result, "bytes_checked", json_integer((json_int_t)check.done));
    json_put(result, "problem_count", json_integer((json_int_t)check.problem_count));
    json_put(result, "intact", json_boolean(check.problem_count == 0));
    *out = STEAL(result);
    return 0;
}

const char *export_check_summary(const json_t *result)
{
    return json_str(json_array_get(json_object_get(result, "problems"), 0), "message");
}
