/* Finding exports on a volume, and taking their files away. See cleanup.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/log.h"
#include "services/exporter/engine/chain.h"
#include "services/exporter/engine/cleanup.h"
#include "services/exporter/engine/export_record.h"
#include "services/exporter/targets/local.h"

#define SCAN_DEPTH_MAX 12 /* <base>/<team>/<vm>/<export id> is three */

struct shared_file { /* a file of an export that has other names too */
    dev_t device;
    ino_t inode;
    uint64_t bytes;
    size_t item; /* into the list */
    int64_t completed_ms;
    const char *export_id; /* the item's */
};

struct scan {
    const char *dir; /* to be cleaned */
    const json_t *busy;
    const atomic_bool *stopped;
    struct cleanup_list *list;
    struct shared_file *shared;
    size_t shared_count;
};

static bool is_below(const char *path, const char *dir)
{
    size_t length = strlen(dir);

    return strncmp(path, dir, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

static int64_t time_ms(const char *text)
{
    struct tm tm = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    int64_t ms = 0;

    if (rest == NULL)
        return 0;
    if (rest[0] == '.' && strspn(rest + 1, "0123456789") >= 3)
        ms = (rest[1] - '0') * 100 + (rest[2] - '0') * 10 + (rest[3] - '0');
    return (int64_t)timegm(&tm) * 1000 + ms;
}

static bool is_busy(const struct scan *scan, const char *path)
{
    const json_t *item;
    size_t i;

    json_array_foreach(scan->busy, i, item)
    {
        if (json_is_string(item) && json_string_length(item) > 0 &&
            is_below(path, json_string_value(item)))
            return true;
    }
    return false;
}

/* The mark stands while an export is written, and until it has tidied up behind itself. */
static bool is_marked(const char *dir)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;

    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        if (strncmp(entry->d_name, LOCAL_MARK_NAME, strlen(LOCAL_MARK_NAME)) == 0)
            return true;
    }
    return false;
}

static uint64_t bytes_of(const struct export_record *record, const char *record_path)
{
    struct stat st;
    uint64_t sum = stat(record_path, &st) == 0 ? (uint64_t)st.st_size : 0;

    for (size_t i = 0; i < record->file_count; i++)
        sum += record->files[i].size;
    return sum;
}

/* item: the export's place in the list. */
static void note_shared(struct scan *scan, const struct export_record *record, const char *dir,
                        size_t item)
{
    for (size_t i = 0; i < record->file_count; i++) {
        autofree char *path = xasprintf("%s/%s", dir, record->files[i].name);
        struct stat st;
        if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_nlink < 2)
            continue;
        scan->shared = xreallocarray(scan->shared, scan->shared_count + 1, sizeof *scan->shared);
        scan->shared[scan->shared_count++] =
            (struct shared_file){st.st_dev,
                                 st.st_ino,
                                 record->files[i].size,
                                 item,
                                 scan->list->items[item].completed_ms,
                                 scan->list->items[item].export_id};
    }
}

static int by_file_newest_first(const void *a, const void *b)
{
    const struct shared_file *left = a;
    const struct shared_file *right = b;

    if (left->device != right->device)
        return left->device < right->device ? -1 : 1;
    if (left->inode != right->inode)
        return left->inode < right->inode ? -1 : 1;
    if (left->completed_ms != right->completed_ms)
        return left->completed_ms > right->completed_ms ? -1 : 1;
    return strcmp(left->export_id, right->export_id); /* as cleanup_decide sorts */
}

/* Removing all but the newest of them frees nothing. */
static void count_once(struct scan *scan)
{
    if (scan->shared_count > 1)
        qsort(scan->shared, scan->shared_count, sizeof *scan->shared, by_file_newest_first);
    for (size_t i = 1; i < scan->shared_count; i++) {
        const struct shared_file *file = &scan->shared[i];
        struct cleanup_item *item = &scan->list->items[file->item];
        if (file->device == file[-1].device && file->inode == file[-1].inode)
            item->bytes -= min_u64(item->bytes, file->bytes);
    }
}

static int add_item(struct scan *scan, const struct cleanup_item *item, struct error *err)
{
    struct cleanup_list *list = scan->list;

    if (list->count == CLEANUP_ITEMS_MAX) {
        return error_set(err, ERR_LIMIT, "more than %d exports: clean a directory below",
                         CLEANUP_ITEMS_MAX);
    }
    list->items = xreallocarray(list->items, list->count + 1, sizeof *list->items);
    list->items[list->count++] = *item;
    return 0;
}

/* What is not readable as a record is no mark of ours, and stays. */
static int add_export(struct scan *scan, const char *dir, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, EXPORT_RECORD_NAME);
    auto_export_record *record = NULL;
    struct error none = ERROR_NONE;
    const json_t *document;
    const json_t *provider;
    const json_t *source;
    struct cleanup_item item = {0};

    if (export_record_load(path, &record, &none) < 0) {
        if (none.code != ERR_NOT_FOUND)
            LOG(WARN, "cleanup_record_refused", F_STR("path", path), F_ERR(&none));
        return 0;
    }
    document = record->document;
    provider = json_object_get(document, "provider");
    source = json_object_get(document, "source");
    item.dir = xstrdup(dir);
    item.export_id = xstrdup(record->export_id);
    item.vm_name = xstrdup(json_str(source, "vm_name"));
    item.vm = xasprintf("%s/%s/%s", json_str(provider, "kind"), json_str(provider, "instance"),
                        json_str(source, "vm_id"));
    item.vm_id = xstrdup(chain_vm_id(record));
    item.base_id = xstrdup(chain_base_id(record));
    item.restore_point = json_is_object(json_object_get(document, "incremental"));
    item.completed_ms = time_ms(json_str(document, "completed_at"));
    item.bytes = bytes_of(record, path);
    item.outside = !is_below(dir, scan->dir);
    if (is_marked(dir)) {
        item.guarded = "being written";
    } else if (local_is_used_by_domain(dir)) {
        item.guarded = "in use by a domain";
    } else if (is_busy(scan, dir)) {
        item.guarded = "in use by a job";
    }
    if (add_item(scan, &item, err) < 0)
        return -1;
    note_shared(scan, record, dir, scan->list->count - 1);
    return 0;
}

static int add_trash(struct scan *scan, const char *dir, const char *name, struct error *err)
{
    struct cleanup_item item = {.unfinished = true};

    if (!is_below(dir, scan->dir))
        return 0;
    item.dir = xstrdup(dir);
    item.export_id = xstrdup(name + strlen(CLEANUP_TRASH_START));
    item.vm_name = xstrdup("");
    item.vm = xstrdup("");
    item.base_id = xstrdup("");
    return add_item(scan, &item, err);
}

/* NOLINTNEXTLINE(misc-no-recursion): bounded by depth */
static int scan_dir(struct scan *scan, const char *dir, unsigned int depth, struct error *err)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;

    if (stream == NULL) {
        return errno == ENOENT && depth > 0
                   ? 0 /* it went away meanwhile */
                   : error_set_errno(err, errno, "directory '%.200s' cannot be read", dir);
    }
    if (atomic_load(scan->stopped))
        return error_set(err, ERR_CANCELLED, "the clean-up was stopped");
    if (add_export(scan, dir, err) < 0)
        return -1;
    while (depth < SCAN_DEPTH_MAX && (entry = readdir(stream)) != NULL) {
        autofree char *path = NULL;
        struct stat st;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(dirfd(stream), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISDIR(st.st_mode))
            continue;
        if (strncmp(entry->d_name, CLEANUP_TRASH_START, strlen(CLEANUP_TRASH_START)) == 0) {
            if (add_trash(scan, dir, entry->d_name, err) < 0)
                return -1;
            continue;
        }
        path = xasprintf("%s/%s", dir, entry->d_name);
        if (scan_dir(scan, path, depth + 1, err) < 0)
            return -1;
    }
    return 0;
}

int cleanup_scan(const char *base, const char *dir, const json_t *busy, const atomic_bool *stopped,
                 struct cleanup_list *out, struct error *err)
{
    struct scan scan = {.dir = dir, .busy = busy, .stopped = stopped, .list = out};
    int result = scan_dir(&scan, base, 0, err);

    if (result == 0)
        count_once(&scan);
    free(scan.shared);
    return result;
}

/* ---- removing ---- */

static bool exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

static int move_in(const char *dir, const char *trash, const char *name, struct error *err)
{
    autofree char *from = xasprintf("%s/%s", dir, name);
    autofree char *to = xasprintf("%s/%s", trash, name);

    if (rename(from, to) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "'%.200s' cannot be moved away", from);
    return 0;
}

/* The mark goes first: from then on there is no export. */
static int move_all(const struct cleanup_item *item, const char *trash, struct error *err)
{
    autofree char *record_path = xasprintf("%s/%s", item->dir, EXPORT_RECORD_NAME);
    autofree char *moved_path = xasprintf("%s/%s", trash, EXPORT_RECORD_NAME);
    auto_export_record *record = NULL;
    struct error none = ERROR_NONE;

    if (mkdir(trash, 0750) < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "'%.200s'", trash);
    if (!item->unfinished && move_in(item->dir, trash, EXPORT_RECORD_NAME, err) < 0)
        return -1;
    if (local_sync_dir(item->dir, err) < 0)
        return -1;
    if (exists(record_path) || export_record_load(moved_path, &record, &none) < 0)
        return 0; /* someone exports here again, or all was moved already: only the trash goes */
    for (size_t i = 0; i < record->file_count; i++) {
        if (move_in(item->dir, trash, record->files[i].name, err) < 0)
            return -1;
    }
    return local_sync_dir(item->dir, err);
}

/* The record goes last: it tells a later run what to move. */
static int empty_trash(const char *trash, struct error *err)
{
    auto_dir *stream = opendir(trash);
    const struct dirent *entry;

    if (stream == NULL)
        return error_set_errno(err, errno, "'%.200s'", trash);
    while ((entry = readdir(stream)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            strcmp(entry->d_name, EXPORT_RECORD_NAME) == 0)
            continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) < 0 && errno != ENOENT) {
            return error_set_errno(err, errno, "'%.200s/%.100s' cannot be removed", trash,
                                   entry->d_name);
        }
    }
    if (unlinkat(dirfd(stream), EXPORT_RECORD_NAME, 0) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "'%.200s' cannot be emptied", trash);
    if (rmdir(trash) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot be removed", trash);
    return 0;
}

/* Restore points lie in one directory, their root, or a full one is the root itself. */
int cleanup_lock(const struct cleanup_item *item, int *out_fd, const char **out_why,
                 struct error *err)
{
    autofree char *root = xstrdup(item->dir);
    autofree char *child = NULL;

    *out_why = NULL;
    if (item->unfinished)
        return 0;
    if (item->restore_point)
        *strrchr(root, '/') = '\0';
    if (item->restore_point && chain_lock(root, item->vm_id, true, out_fd, err) < 0) {
        if (err->code != ERR_UNAVAILABLE)
            return -1;
        error_clear(err);
        *out_why = "in use by a job";
        return 0;
    }
    if (chain_child(root, item->export_id, &child, err) < 0)
        return -1;
    if (child != NULL)
        *out_why = "base of a later export";
    return 0;
}

int cleanup_remove(const struct cleanup_item *item, const char *base, struct error *err)
{
    autofree char *trash = xasprintf("%s/" CLEANUP_TRASH_START "%s", item->dir, item->export_id);

    if (item->unfinished && !exists(trash))
        return 0; /* cut short before its first move: it went with the export, which stood there */
    if (is_marked(item->dir) && !item->unfinished)
        return error_set(err, ERR_CONFLICT, "an export begins in '%.200s'", item->dir);
    if (local_is_used_by_domain(item->dir) && !item->unfinished)
        return error_set(err, ERR_CONFLICT, "a domain uses the images in '%.200s'", item->dir);
    if (move_all(item, trash, err) < 0 || empty_trash(trash, err) < 0)
        return -1;
    if (strcmp(item->dir, base) != 0)
        (void)rmdir(item->dir); /* not empty: it holds what is not ours */
    return 0;
}
