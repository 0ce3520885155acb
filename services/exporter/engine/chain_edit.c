/* See chain_edit.h. The journal: {"op": "prune" | "flatten", "point": directory of the point that
 * changes, "point_id"; with prune "old": directory of the one that goes, "old_id"}, directories
 * relative to root ("" is root itself). */
#include "services/exporter/engine/chain_edit.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/chain_record.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/qcow2_merge.h"
#include "services/exporter/formats/sink.h"
#include "services/exporter/targets/local.h"

#define JOURNAL_BYTES_MAX 65536

struct step { /* what the journal says, with its paths */
    bool prune;
    char *point;
    char *old;
    const char *old_id;
    json_t *journal;
};

static void step_release(struct step *step)
{
    free(step->point);
    free(step->old);
    json_decref(step->journal);
}

/* ---- the journal ---- */

static const char *below_root(const struct chain_edit *edit, const char *dir)
{
    size_t length = strlen(edit->root);

    assert(strncmp(dir, edit->root, length) == 0);
    return dir[length] == '/' ? dir + length + 1 : "";
}

static char *dir_of(const struct chain_edit *edit, const char *name)
{
    return name[0] == '\0' ? xstrdup(edit->root) : xasprintf("%s/%s", edit->root, name);
}

static int journal_write(const struct chain_edit *edit, const char *op,
                         const struct chain_point *point, const struct chain_point *old,
                         struct error *err)
{
    autofree char *path = chain_journal_path(edit->root, edit->vm_id);
    auto_json *journal = json_object();
    autofree char *text = NULL;

    json_set_text(journal, "op", op);
    json_set_text(journal, "point", below_root(edit, point->dir));
    json_set_text(journal, "point_id", point->record->export_id);
    if (old != NULL) {
        json_set_text(journal, "old", below_root(edit, old->dir));
        json_set_text(journal, "old_id", old->record->export_id);
    }
    text = json_text(journal);
    if (edit->go_on(edit->arg, err) < 0 ||
        file_write_atomic(path, text, strlen(text), LOCAL_FILE_MODE, err) < 0)
        return -1;
    return local_sync_dir(edit->root, err);
}

static bool is_place(const char *name)
{
    return name[0] == '\0' || file_name_is_plain(name);
}

/* false in *out_found: nothing was begun. */
static int journal_read(const struct chain_edit *edit, struct step *out, bool *out_found,
                        struct error *err)
{
    autofree char *path = chain_journal_path(edit->root, edit->vm_id);
    autofree char *text = NULL;
    size_t size = 0;

    *out_found = false;
    if (access(path, F_OK) != 0)
        return 0;
    if (file_read(path, JOURNAL_BYTES_MAX, &text, &size, err) < 0 ||
        json_parse(text, size, JOURNAL_BYTES_MAX, &out->journal, err) < 0)
        return error_wrap(err, "'%.200s'", path);
    out->prune = strcmp(json_str(out->journal, "op"), "prune") == 0;
    if ((!out->prune && strcmp(json_str(out->journal, "op"), "flatten") != 0) ||
        !is_place(json_str(out->journal, "point")) || !is_place(json_str(out->journal, "old")))
        return error_set(err, ERR_CORRUPT, "'%.200s' is no journal", path);
    out->point = dir_of(edit, json_str(out->journal, "point"));
    out->old = dir_of(edit, json_str(out->journal, "old"));
    out->old_id = json_str(out->journal, "old_id");
    *out_found = true;
    return 0;
}

static int journal_remove(const struct chain_edit *edit, struct error *err)
{
    autofree char *path = chain_journal_path(edit->root, edit->vm_id);

    if (unlink(path) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "'%.200s' cannot be removed", path);
    return local_sync_dir(edit->root, err);
}

/* ---- what a killed process left behind ---- */

static bool is_ours(const char *name, size_t length, const struct export_record *record)
{
    if (length == strlen(EXPORT_RECORD_NAME) && memcmp(name, EXPORT_RECORD_NAME, length) == 0)
        return true;
    for (size_t i = 0; i < record->file_count; i++) {
        const char *file = record->files[i].name;
        if (strlen(file) == length && memcmp(file, name, length) == 0)
            return true;
    }
    return false;
}

/* Half-written files of the point in dir: whoever wrote them is dead, the chain's lock is ours. */
static int remove_temps(const char *dir, const struct export_record *record, struct error *err)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;
    size_t length = 0;

    if (stream == NULL)
        return error_set_errno(err, errno, "directory '%.200s' cannot be read", dir);
    while ((entry = readdir(stream)) != NULL) {
        if (!file_name_is_temp(entry->d_name, &length) || !is_ours(entry->d_name, length, record))
            continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) < 0 && errno != ENOENT) {
            return error_set_errno(err, errno, "'%.200s/%.255s' cannot be removed", dir,
                                   entry->d_name);
        }
    }
    return 0;
}

/* The same of the journal: it stands in the root, which belongs to no point. */
static int remove_journal_temps(const struct chain_edit *edit, struct error *err)
{
    autofree char *path = chain_journal_path(edit->root, edit->vm_id);
    const char *name = strrchr(path, '/') + 1;
    auto_dir *stream = opendir(edit->root);
    const struct dirent *entry;
    size_t length = 0;

    if (stream == NULL)
        return error_set_errno(err, errno, "directory '%.200s' cannot be read", edit->root);
    while ((entry = readdir(stream)) != NULL) {
        if (!file_name_is_temp(entry->d_name, &length) || length != strlen(name) ||
            memcmp(entry->d_name, name, length) != 0)
            continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) < 0 && errno != ENOENT) {
            return error_set_errno(err, errno, "'%.200s/%.255s' cannot be removed", edit->root,
                                   entry->d_name);
        }
    }
    return 0;
}

/* ---- images ---- */

/* Does the image stand on another one? */
static int has_backing(const struct chain_edit *edit, const char *path, bool *out,
                       struct error *err)
{
    auto_image *image = NULL;

    if (image_open_chain(path, "qcow2", edit->root, &image, err) < 0)
        return -1;
    *out = image_backing(image) != NULL;
    return 0;
}

/* The file of the old point that this disk stands on. */
static char *old_image(const struct step *step, const struct export_record *record, size_t disk)
{
    const char *backing = chain_disk_text(record, disk, "backing");
    const char *slash = strrchr(backing, '/');

    return xasprintf("%s/%s", step->old, slash == NULL ? backing : slash + 1);
}

static int merge_disk(const struct chain_edit *edit, const struct step *step,
                      const struct export_record *record, size_t disk, struct error *err)
{
    autofree char *image = xasprintf("%s/%s", step->point, chain_disk_text(record, disk, "file"));
    autofree char *old = old_image(step, record, disk);
    bool stands = false;

    if (has_backing(edit, image, &stands, err) < 0)
        return -1;
    if (!stands)
        return 0; /* it took the old one's place before the crash */
    if (qcow2_merge(old, image, edit->root, edit->go_on, edit->arg, err) < 0 ||
        edit->go_on(edit->arg, err) < 0)
        return -1;
    if (rename(old, image) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot become '%.200s'", old, image);
    if (local_sync_dir(step->point, err) < 0)
        return -1;
    return local_sync_dir(step->old, err);
}

static int copy_pieces(const struct chain_edit *edit, struct image *from, struct sink *to,
                       struct error *err)
{
    autofree uint8_t *buffer = xalloc_aligned(SINK_PIECE_BYTES);
    uint64_t size = image_size_bytes(from);

    for (uint64_t at = 0; at < size; at += SINK_PIECE_BYTES) {
        size_t n = (size_t)min_u64(SINK_PIECE_BYTES, size - at);
        if (edit->go_on(edit->arg, err) < 0)
            return -1;
        if (image_is_hole(from, at, n))
            continue; /* the new image has nothing below: it reads as zeros */
        if (image_read(from, buffer, n, at, err) < 0 ||
            sink_qcow2.write(to, at, buffer, n, err) < 0)
            return -1;
    }
    return sink_qcow2.finish(to, err);
}

static int flatten_disk(const struct chain_edit *edit, const struct step *step,
                        const struct export_record *record, size_t disk, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", step->point, chain_disk_text(record, disk, "file"));
    autofree char *partial = xasprintf("%s" LOCAL_PARTIAL, path);
    struct sink_options options = {.path = partial};
    auto_image *image = NULL;
    struct sink *sink = NULL;
    int rc;

    if (image_open_chain(path, "qcow2", edit->root, &image, err) < 0)
        return -1;
    if (image_backing(image) == NULL)
        return 0;
    options.size_bytes = image_size_bytes(image);
    if (sink_qcow2.open(&options, &sink, err) < 0)
        return -1;
    rc = copy_pieces(edit, image, sink, err);
    sink_qcow2.close(sink);
    if (rc < 0 || edit->go_on(edit->arg, err) < 0)
        return -1;
    if (rename(partial, path) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot become '%.200s'", partial, path);
    return local_sync_dir(step->point, err);
}

/* ---- removing ---- */

static int remove_file(const char *dir, const char *name, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, name);

    if (unlink(path) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "'%.200s' cannot be removed", path);
    return 0;
}

/* What the record lists, export.json last: until then it says what is still to go. */
static int remove_files(const struct chain_edit *edit, const struct step *step, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", step->old, EXPORT_RECORD_NAME);
    auto_export_record *record = NULL;

    if (export_record_load(path, &record, err) < 0)
        return -1;
    if (strcmp(record->export_id, step->old_id) != 0) {
        return error_set(err, ERR_CONFLICT, "'%.200s' holds '%.64s', not the point to be removed",
                         step->old, record->export_id);
    }
    for (size_t i = 0; i < record->file_count; i++) {
        if (edit->go_on(edit->arg, err) < 0 ||
            remove_file(step->old, record->files[i].name, err) < 0)
            return -1;
    }
    for (size_t i = 0; i < chain_disk_count(record); i++) { /* of a merge that was cut short */
        autofree char *index = xasprintf("%s.index", chain_disk_text(record, i, "file"));
        if (file_name_is_plain(index) && remove_file(step->old, index, err) < 0)
            return -1;
    }
    if (remove_temps(step->old, record, err) < 0 ||
        remove_file(step->old, EXPORT_RECORD_NAME, err) < 0)
        return -1;
    return local_sync_dir(step->old, err);
}

static int remove_old(const struct chain_edit *edit, const struct step *step, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", step->old, EXPORT_RECORD_NAME);

    if (access(path, F_OK) == 0 && remove_files(edit, step, err) < 0)
        return -1;
    if (strcmp(step->old, edit->root) != 0)
        (void)rmdir(step->old); /* not empty: it holds what is not ours */
    return local_sync_dir(edit->root, err);
}

/* ---- a step ---- */

/* All of it may be done again from the start. */
static int run_step(const struct chain_edit *edit, const struct step *step, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", step->point, EXPORT_RECORD_NAME);
    auto_export_record *record = NULL;

    if (access(path, F_OK) != 0) {
        return journal_remove(edit,
                              err); /* it was removed as a whole since: nothing to go on with */
    }
    if (export_record_load(path, &record, err) < 0 || remove_temps(step->point, record, err) < 0)
        return -1;
    for (size_t i = 0; i < chain_disk_count(record); i++) {
        const char *file = chain_disk_text(record, i, "file");
        if (!file_name_is_plain(file))
            return error_set(err, ERR_CORRUPT, "'%.200s' names no image of disk %zu", path, i);
        if (chain_disk_text(record, i, "backing")[0] == '\0')
            continue; /* the records were brought up to date before the crash */
        if ((step->prune ? merge_disk(edit, step, record, i, err)
                         : flatten_disk(edit, step, record, i, err)) < 0)
            return -1;
    }
    if (edit->go_on(edit->arg, err) < 0 ||
        chain_record_refresh(step->point, edit->evidence_key, err) < 0)
        return -1;
    if (step->prune && remove_old(edit, step, err) < 0)
        return -1;
    return journal_remove(edit, err);
}

int chain_recover(const struct chain_edit *edit, struct error *err)
{
    CLEANUP(step_release) struct step step = {0};
    bool found = false;

    if (remove_journal_temps(edit, err) < 0 || journal_read(edit, &step, &found, err) < 0)
        return -1;
    if (!found)
        return 0;
    if (run_step(edit, &step, err) < 0)
        return error_wrap(err, "finishing what was begun with the restore points");
    return 0;
}

int chain_prune_oldest(const struct chain_edit *edit, const struct chain *chain, struct error *err)
{
    const struct chain_point *old;
    const struct chain_point *next;

    assert(chain->count >= 2);
    old = &chain->points[chain->count - 1];
    next = &chain->points[chain->count - 2];
    if (edit->removing != NULL && edit->removing(edit->arg, old->record->export_id, err) < 0)
        return -1;
    if (journal_write(edit, "prune", next, old, err) < 0)
        return -1;
    return chain_recover(edit, err);
}

int chain_flatten(const struct chain_edit *edit, const struct chain *chain, struct error *err)
{
    if (chain->count == 1)
        return 0;
    if (journal_write(edit, "flatten", &chain->points[0], NULL, err) < 0)
        return -1;
    return chain_recover(edit, err);
}
