/* See chain.h. */
#include "services/exporter/engine/chain.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/targets/local.h"

#define LOCK_NAME ".hypersdk-chain."

static void close_dir(DIR **dir)
{
    if (*dir != NULL)
        (void)closedir(*dir);
}

void chain_free(struct chain *chain)
{
    if (chain == NULL)
        return;
    for (size_t i = 0; i < chain->count; i++) {
        free(chain->points[i].dir);
        export_record_free(chain->points[i].record);
    }
    free(chain->root);
    free(chain);
}

/* ---- what a record says ---- */

static const json_t *incremental(const struct export_record *record)
{
    return json_object_get(record->document, "incremental");
}

const char *chain_base_id(const struct export_record *record)
{
    return export_record_base_id(record);
}

const char *chain_vm_id(const struct export_record *record)
{
    return json_str(json_object_get(record->document, "source"), "vm_id");
}

static const json_t *disk_of(const struct export_record *record, size_t disk)
{
    return json_array_get(json_object_get(record->document, "disks"), disk);
}

const char *chain_disk_text(const struct export_record *record, size_t disk, const char *key)
{
    return json_str(disk_of(record, disk), key);
}

size_t chain_disk_count(const struct export_record *record)
{
    return json_array_size(json_object_get(record->document, "disks"));
}

/* ---- walking ---- */

/* The directory that "../exp-1" or ".." means to a point below root; NULL: it leads elsewhere. */
static char *base_dir(const char *root, const struct export_record *record)
{
    const char *name = json_str(incremental(record), "base_dir");

    if (strcmp(name, "..") == 0)
        return xstrdup(root);
    if (strncmp(name, "../", 3) != 0 || !file_name_is_plain(name + 3))
        return NULL;
    return xasprintf("%s/%s", root, name + 3);
}

static int add_point(struct chain *chain, const char *dir, const char *expected_id,
                     struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, EXPORT_RECORD_NAME);
    struct chain_point *point = &chain->points[chain->count];

    if (chain->count == CHAIN_POINTS_MAX) {
        return error_set(err, ERR_LIMIT, "the chain has more than %d restore points",
                         CHAIN_POINTS_MAX);
    }
    if (export_record_load(path, &point->record, err) < 0)
        return error_wrap(err, "restore point '%.128s'", expected_id);
    point->dir = xstrdup(dir);
    chain->count++;
    if (expected_id[0] != '\0' && strcmp(point->record->export_id, expected_id) != 0) {
        return error_set(err, ERR_CORRUPT, "'%.200s' holds restore point '%.64s', not '%.64s'", dir,
                         point->record->export_id, expected_id);
    }
    for (size_t i = 0; i + 1 < chain->count; i++) {
        if (strcmp(chain->points[i].record->export_id, point->record->export_id) == 0) {
            return error_set(err, ERR_CORRUPT, "the chain of restore point '%.64s' is a circle",
                             point->record->export_id);
        }
    }
    return 0;
}

int chain_load(const char *root, const char *dir, struct chain **out, struct error *err)
{
    auto_chain *chain = xcalloc(1, sizeof *chain);
    autofree char *next = xstrdup(dir);
    autofree char *id = xstrdup("");

    chain->root = xstrdup(root);
    for (;;) {
        const struct export_record *record;
        if (add_point(chain, next, id, err) < 0)
            return -1;
        record = chain->points[chain->count - 1].record;
        if (chain_base_id(record)[0] == '\0')
            break;
        free(next);
        next = base_dir(root, record);
        if (next == NULL) {
            return error_set(err, ERR_CORRUPT, "'%.200s' names a base outside of '%.200s'",
                             chain->points[chain->count - 1].dir, root);
        }
        free(id);
        id = xstrdup(chain_base_id(record));
    }
    *out = STEAL(chain);
    return 0;
}

int chain_load_base(const char *root, const struct export_record *record, struct chain **out,
                    struct error *err)
{
    autofree char *dir = base_dir(root, record);

    if (dir == NULL) {
        return error_set(err, ERR_CORRUPT, "'%.64s' names a base outside of '%.200s'",
                         record->export_id, root);
    }
    if (chain_load(root, dir, out, err) < 0)
        return -1;
    if (strcmp((*out)->points[0].record->export_id, chain_base_id(record)) == 0)
        return 0;
    chain_free(STEAL(*out));
    return error_set(err, ERR_CORRUPT, "'%.200s' does not hold restore point '%.64s'", dir,
                     chain_base_id(record));
}

/* Is there an export in dir that stands on export_id? */
static bool stands_on(const char *dir, const char *export_id)
{
    autofree char *path = xasprintf("%s/%s", dir, EXPORT_RECORD_NAME);
    auto_export_record *record = NULL;
    struct error none = ERROR_NONE;

    return export_record_load(path, &record, &none) == 0 &&
           strcmp(chain_base_id(record), export_id) == 0;
}

int chain_child(const char *root, const char *export_id, char **out_dir, struct error *err)
{
    CLEANUP(close_dir) DIR *stream = opendir(root);
    const struct dirent *entry;
    size_t seen = 0;

    *out_dir = NULL;
    if (stream == NULL)
        return error_set_errno(err, errno, "directory '%.200s' cannot be read", root);
    while ((entry = readdir(stream)) != NULL) {
        autofree char *dir = NULL;
        if (entry->d_name[0] == '.' || !file_name_is_plain(entry->d_name))
            continue;
        if (++seen > CHAIN_DIRS_MAX) {
            return error_set(err, ERR_LIMIT, "'%.200s' has more than %d entries", root,
                             CHAIN_DIRS_MAX);
        }
        dir = xasprintf("%s/%s", root, entry->d_name);
        if (stands_on(dir, export_id)) {
            *out_dir = STEAL(dir);
            return 0;
        }
    }
    return 0;
}

int chain_youngest(const char *root, const char *dir, const char *export_id, char **out_dir,
                   struct error *err)
{
    autofree char *at = xstrdup(dir);
    autofree char *id = xstrdup(export_id);

    for (size_t i = 0; i < CHAIN_POINTS_MAX; i++) {
        autofree char *child = NULL;
        autofree char *path = NULL;
        auto_export_record *record = NULL;
        if (chain_child(root, id, &child, err) < 0)
            return -1;
        if (child == NULL) {
            *out_dir = STEAL(at);
            return 0;
        }
        path = xasprintf("%s/%s", child, EXPORT_RECORD_NAME);
        if (export_record_load(path, &record, err) < 0)
            return -1;
        free(at);
        at = STEAL(child);
        free(id);
        id = xstrdup(record->export_id);
    }
    return error_set(err, ERR_LIMIT, "more than %d restore points stand on '%.64s'",
                     CHAIN_POINTS_MAX, export_id);
}

/* ---- checking ---- */

static int check_file(const struct chain_point *point, const struct export_record_file *file,
                      bool digests, const atomic_bool *stopped, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", point->dir, file->name);
    char hex[DIGEST_HEX_SIZE];
    struct stat st;

    if (lstat(path, &st) < 0) {
        return error_set_errno(err, errno, "'%.200s' of restore point '%.64s'", path,
                               point->record->export_id);
    }
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != file->size) {
        return error_set(err, ERR_CORRUPT, "'%.200s' of restore point '%.64s' has another size",
                         path, point->record->export_id);
    }
    if (!digests)
        return 0;
    if (file_sha256_until(path, stopped, hex, err) < 0)
        return -1;
    if (strcmp(hex, file->sha256) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' of restore point '%.64s' does not have its SHA-256 any more",
                         path, point->record->export_id);
    }
    return 0;
}

static int check_point(const struct chain_point *point, bool digests, const atomic_bool *stopped,
                       struct error *err)
{
    for (size_t i = 0; i < point->record->file_count; i++) {
        const struct export_record_file *file = &point->record->files[i];
        if (strcmp(file->type, "disk") != 0 && strcmp(file->type, "leaves") != 0)
            continue;
        if (check_file(point, file, digests, stopped, err) < 0)
            return -1;
    }
    return 0;
}

/* Follows the images of one disk beside the points. */
static int check_images(const struct chain *chain, size_t disk, struct error *err)
{
    const struct chain_point *point = &chain->points[0];
    const char *file = chain_disk_text(point->record, disk, "file");
    autofree char *path = xasprintf("%s/%s", point->dir, file);
    auto_image *first = NULL;
    struct image *image;

    if (!file_name_is_plain(file))
        return error_set(err, ERR_CORRUPT, "'%.200s' names no image of disk %zu", point->dir, disk);
    if (image_open_chain(path, "qcow2", chain->root, &first, err) < 0)
        return -1;
    image = first;
    for (size_t i = 0; i < chain->count; i++) {
        const char *recorded = chain_disk_text(chain->points[i].record, disk, "backing");
        const char *found = image_backing_name(image);
        if (strcmp(recorded, found == NULL ? "" : found) != 0) {
            return error_set(err, ERR_CORRUPT,
                             "disk %zu of restore point '%.64s' stands on '%.128s', not on "
                             "'%.128s' as its record says",
                             disk, chain->points[i].record->export_id, found == NULL ? "" : found,
                             recorded);
        }
        image = image_backing(image);
        if (image == NULL)
            break;
    }
    return 0;
}

int chain_check_files(const struct chain *chain, bool digests, const atomic_bool *stopped,
                      struct error *err)
{
    for (size_t i = 0; i < chain->count; i++) {
        if (check_point(&chain->points[i], digests, stopped, err) < 0)
            return -1;
    }
    return 0;
}

int chain_check(const struct chain *chain, bool digests, const atomic_bool *stopped,
                struct error *err)
{
    if (chain_check_files(chain, digests, stopped, err) < 0)
        return -1;
    for (size_t disk = 0; disk < chain_disk_count(chain->points[0].record); disk++) {
        if (check_images(chain, disk, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- lock ---- */

char *chain_journal_path(const char *root, const char *vm_id)
{
    autofree char *vm = vm_file_name(vm_id);

    return xasprintf("%s/" LOCK_NAME "%s.journal", root, vm);
}

int chain_lock(const char *root, const char *vm_id, bool exclusive, int *out_fd, struct error *err)
{
    autofree char *vm = vm_file_name(vm_id);
    autofree char *path = xasprintf("%s/" LOCK_NAME "%s", root, vm);
    autoclose int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, LOCAL_FILE_MODE);
    struct flock lock = {.l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};

    if (fd < 0)
        return error_set_errno(err, errno, "lock '%.200s' cannot be opened", path);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) {
        *out_fd = fd_steal(&fd);
        return 0;
    }
    if (errno == EAGAIN || errno == EACCES) {
        return error_set(err, ERR_UNAVAILABLE,
                         "the restore points of VM '%.64s' in '%.200s' are in use by another job",
                         vm_id, root);
    }
    return error_set(err, ERR_NOT_AVAILABLE,
                     "'%.200s' cannot be locked; restore points need a file system with locks",
                     path);
}

int chain_reader_lock(const char *dir, const struct export_record *record, char **out_root,
                      int *out_fd, struct error *err)
{
    autofree char *parent = xasprintf("%s/..", dir);
    autofree char *root = NULL;
    autofree char *journal = NULL;

    if (incremental(record) == NULL)
        return 0;
    root = realpath(parent, NULL);
    if (root == NULL)
        return error_set_errno(err, errno, "'%.200s' cannot be found", parent);
    if (chain_lock(root, chain_vm_id(record), false, out_fd, err) < 0)
        return -1;
    journal = chain_journal_path(root, chain_vm_id(record));
    if (access(journal, F_OK) == 0) {
        return error_set(err, ERR_UNAVAILABLE,
                         "the restore points in '%.200s' were being changed when a worker died: "
                         "the next prune, flatten or incremental export goes on with that",
                         root);
    }
    *out_root = STEAL(root);
    return 0;
}
