/* What an incremental export goes on from: the youngest one of its VM, or nothing, and why. With
 * qcow2 the new restore point stands on it (chain.h); of other formats the disks that did not
 * change stay what they are there (export_share.c).
 *
 * The catalogue's answer came with the lease (spec "bases"); what is on disk is looked at before it
 * is believed. The lock of the VM's restore points is held until the task ends. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/chain_edit.h"
#include "services/exporter/engine/export_changes.h"
#include "services/exporter/engine/export_run.h"
#include "services/exporter/formats/mf.h"

#define HOUR_MS INT64_C(3600000)

/* export_disk.incremental_mode */
#define MODE_FULL    "full"
#define MODE_CHANGED "changed_extents"
#define MODE_COMPARE "leaf_compare"

/* ---- choosing ---- */

/* Always 0: that there is no base is no failure. */
PRINTF_LIKE(2, 3)
static int full(struct export_base *base, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)vsnprintf(base->reason, sizeof base->reason, format, args);
    va_end(args);
    chain_free(STEAL(base->chain));
    return 0;
}

const json_t *export_base_row(const json_t *spec, const char *vm_id)
{
    const json_t *row;
    size_t i;

    json_array_foreach(json_object_get(spec, "bases"), i, row)
    {
        if (strcmp(json_str(row, "vm_id"), vm_id) == 0)
            return row;
    }
    return NULL;
}

/* Does the record on disk say what the catalogue says? */
static bool is_as_catalogued(const struct chain *chain, const json_t *row)
{
    for (size_t p = 0; p < chain->count; p++) {
        const struct export_record *record = chain->points[p].record;
        const json_t *disk;
        size_t i;
        if (strcmp(record->export_id, json_str(row, "id")) != 0)
            continue;
        json_array_foreach(json_object_get(row, "disks"), i, disk)
        {
            bool same = false;
            for (size_t k = 0; k < chain_disk_count(record) && !same; k++) {
                same =
                    strcmp(chain_disk_text(record, k, "disk_id"), json_str(disk, "disk_id")) == 0 &&
                    strcmp(chain_disk_text(record, k, "root"), json_str(disk, "root")) == 0;
            }
            if (!same)
                return false;
        }
        return i > 0;
    }
    return false;
}

/* When the chain's last full export was made. One that was not asked to be incremental does not
 * say it for this, the catalogue does. */
static int64_t full_at_ms(const struct chain *chain, const json_t *row)
{
    const struct export_record *record = chain->points[chain->count - 1].record;
    uint64_t ms = json_u64(json_object_get(record->document, "incremental"), "full_at_ms");

    if (ms == 0 && strcmp(record->export_id, json_str(row, "id")) == 0)
        ms = json_u64(row, "created_at_ms");
    return (int64_t)min_u64(ms, INT64_MAX);
}

static bool is_usable(const struct vm_disk *disk)
{
    return disk->skip_reason[0] == '\0';
}

static int find_disk(const struct export_record *record, const char *disk_id)
{
    for (size_t i = 0; i < chain_disk_count(record); i++) {
        if (strcmp(chain_disk_text(record, i, "disk_id"), disk_id) == 0)
            return (int)i;
    }
    return -1;
}

/* "" or what differs. */
static void compare_disks(const struct export_record *record, const struct vm *vm, char *out,
                          size_t size)
{
    const json_t *disks = json_object_get(record->document, "disks");
    size_t usable = 0;

    out[0] = '\0';
    for (size_t i = 0; i < vm->disk_count; i++) {
        const struct vm_disk *disk = &vm->disks[i];
        int known = find_disk(record, disk->id);
        if (!is_usable(disk))
            continue;
        usable++;
        if (known < 0) {
            (void)snprintf(out, size, "%s was added", disk->label);
        } else if (json_u64(json_array_get(disks, (size_t)known), "capacity_bytes") !=
                   disk->capacity_bytes) {
            (void)snprintf(out, size, "%s has another size than before", disk->label);
        }
    }
    if (out[0] == '\0' && usable != chain_disk_count(record))
        (void)snprintf(out, size, "a disk was removed");
}

/* Of another format than qcow2 the base is one export and no chain. */
static bool by_disk(const char *format)
{
    return strcmp(format, "qcow2") != 0;
}

/* "" or why files of the base are not what the new export would have. */
static void compare_format(const struct export_record *record, const struct export_base_wish *wish,
                           char *out, size_t size)
{
    const char *format = json_str(record->document, "format");

    out[0] = '\0';
    if (strcmp(format, wish->format) != 0) {
        (void)snprintf(out, size, "the export before has format %.16s, this one %.16s", format,
                       wish->format);
    } else if (json_object_get(record->document, "encryption") != NULL) {
        (void)snprintf(out, size, "the export before is encrypted");
    } else if (by_disk(format) && wish->convert &&
               !json_is_true(json_object_get(record->document, "convert"))) {
        (void)snprintf(out, size, "the export before was not converted to qcow2");
    }
}

static int load_chain(const struct export_base_wish *wish, const json_t *row,
                      struct export_base *base, struct error *err)
{
    autofree char *dir = NULL;

    if (chain_youngest(wish->root, json_str(row, "path"), json_str(row, "id"), &dir, err) < 0)
        return -1;
    return chain_load(wish->root, dir, &base->chain, err);
}

static bool is_too_old(const struct export_base_wish *wish, int64_t full_ms)
{
    return clock_wall_ms() - full_ms > wish->age_max_ms;
}

/* The base's directory as seen from a point beside it. */
static void name_dir(struct export_base *base, const char *root)
{
    const char *dir = base->chain->points[0].dir;

    (void)snprintf(base->dir, sizeof base->dir, "..%.255s",
                   strcmp(dir, root) == 0 ? "" : strrchr(dir, '/'));
}

static int choose(const struct export_base_wish *wish, const json_t *row, struct export_base *base,
                  struct error *err)
{
    struct error why = ERROR_NONE;
    const struct export_record *youngest;
    char format_differs[200];
    char disks_differ[200];
    int64_t full_ms;

    if (load_chain(wish, row, base, &why) < 0) {
        return full(base, "export %s cannot be used: %.200s", json_str(row, "id"), why.message);
    }
    youngest = base->chain->points[0].record;
    if (strcmp(chain_vm_id(youngest), wish->vm->id) != 0 || !is_as_catalogued(base->chain, row))
        return full(base, "export %s is not as the catalogue knows it", json_str(row, "id"));
    compare_format(youngest, wish, format_differs, sizeof format_differs);
    if (format_differs[0] != '\0')
        return full(base, "%s", format_differs);
    full_ms = full_at_ms(base->chain, row);
    if (is_too_old(wish, full_ms)) {
        return full(base, "the last full export is %" PRId64 " h old, over %" PRId64 " h",
                    (clock_wall_ms() - full_ms) / HOUR_MS, wish->age_max_ms / HOUR_MS);
    }
    compare_disks(youngest, wish->vm, disks_differ, sizeof disks_differ);
    if (disks_differ[0] != '\0')
        return full(base, "%s", disks_differ);
    if (base->chain->count == CHAIN_POINTS_MAX)
        return full(base, "the chain has %d restore points; prune it", CHAIN_POINTS_MAX);
    if ((by_disk(wish->format)
             ? chain_check_files(base->chain, wish->digests, wish->stopped, &why)
             : chain_check(base->chain, wish->digests, wish->stopped, &why)) == 0) {
        base->full_at_ms = full_ms;
        name_dir(base, wish->root);
        return 0;
    }
    if (why.code == ERR_CANCELLED) {
        *err = why;
        return -1;
    }
    return full(base, "%.300s", why.message);
}

int export_base_choose(const struct export_base_wish *wish, struct export_base *base,
                       struct error *err)
{
    const json_t *row = export_base_row(wish->spec, wish->vm->id);

    if (wish->force_full)
        return full(base, "force_full was asked for");
    if (row == NULL)
        return full(base, "there is no export of the VM in '%.200s' yet", wish->root);
    return choose(wish, row, base, err);
}

void export_base_release(struct export_base *base)
{
    chain_free(base->chain);
    for (size_t i = 0; i < VM_DISKS_MAX; i++)
        leaves_free(base->leaves[i]);
    if (base->lock_fd >= 0)
        (void)close(base->lock_fd);
    free(base->root);
}

/* ---- of a running export ---- */

static void tell(struct export_run *run)
{
    const struct export_base *base = &run->base;

    if (base->chain == NULL) {
        worker_task_log(run->task, LOG_LEVEL_INFO, "full export: %s", base->reason);
    } else if (run->options.by_disk) {
        worker_task_log(run->task, LOG_LEVEL_INFO,
                        "incremental export by disk: files of disks that did not change since "
                        "export %s stay",
                        base->chain->points[0].record->export_id);
    } else {
        worker_task_log(run->task, LOG_LEVEL_INFO,
                        "incremental export on restore point %s (%zu before it): what changed is "
                        "written",
                        base->chain->points[0].record->export_id, base->chain->count);
    }
}

/* A prune that was cut short is finished first. */
static int recover(struct export_run *run, const char *vm_id, struct error *err)
{
    struct chain_edit edit = {.root = run->base.root,
                              .vm_id = vm_id,
                              .evidence_key = run->exporter->evidence_key,
                              .go_on = export_may_write,
                              .arg = run};

    return chain_recover(&edit, err);
}

static int lock(struct export_run *run, const char *vm_id, struct error *err)
{
    if (run->base.root != NULL)
        return 0;
    if (path_make_dirs(run->output, err) < 0)
        return -1;
    run->base.root = realpath(run->output, NULL);
    if (run->base.root == NULL)
        return error_set(err, ERR_NOT_FOUND, "'%.200s' vanished", run->output);
    if (chain_lock(run->base.root, vm_id, true, &run->base.lock_fd, err) < 0)
        return -1;
    return recover(run, vm_id, err);
}

int export_base_find(struct export_run *run, const struct vm *vm, struct error *err)
{
    struct export_base_wish wish = {.spec = worker_task_spec(run->task),
                                    .vm = vm,
                                    .format = run->options.format,
                                    .convert = run->options.convert,
                                    .force_full = run->options.force_full,
                                    .age_max_ms = run->options.incremental_max_age_ms,
                                    .digests = run->options.verify,
                                    .stopped = worker_task_stopped(run->task)};

    if (!run->options.incremental)
        return 0;
    if (export_may_write(run, err) < 0 || lock(run, vm->id, err) < 0)
        return -1;
    wish.root = run->base.root;
    if (export_base_choose(&wish, &run->base, err) < 0)
        return -1;
    tell(run);
    return 0;
}

int export_base_fit(struct export_run *run, struct error *err)
{
    const struct export_record *record;
    char differs[200];

    if (run->base.chain == NULL)
        return 0;
    record = run->base.chain->points[0].record;
    compare_disks(record, &run->frozen->vm, differs, sizeof differs);
    if (differs[0] == '\0' && run->frozen->disk_count != chain_disk_count(record))
        (void)snprintf(differs, sizeof differs, "not all disks could be frozen");
    for (size_t i = 0; i < run->frozen->disk_count && differs[0] == '\0'; i++) {
        const struct frozen_disk *disk = &run->frozen->disks[i];
        int known = find_disk(record, run->frozen->vm.disks[disk->vm_disk_index].id);
        if (known < 0 ||
            json_u64(json_array_get(json_object_get(record->document, "disks"), (size_t)known),
                     "capacity_bytes") != disk->size_bytes)
            (void)snprintf(differs, sizeof differs, "a disk has another size than before");
    }
    if (differs[0] == '\0')
        return 0;
    (void)full(&run->base, "%s", differs);
    tell(run);
    return export_check_space(run, &run->frozen->vm, err);
}

/* The base's images of the same disk in the same formats. */
static void find_earlier(const struct export_run *run, struct export_disk *disk, size_t known)
{
    const struct export_record *record = run->base.chain->points[0].record;
    const json_t *images = json_object_get(
        json_array_get(json_object_get(record->document, "disks"), known), "images");
    const json_t *found;
    size_t i;

    for (size_t k = 0; k < disk->image_count; k++) {
        json_array_foreach(images, i, found)
        {
            const char *name = json_str(found, "name");
            const char *suffix = disk->images[k].format->suffix;
            size_t length = strlen(name);
            if (file_name_is_plain(name) && length > strlen(suffix) &&
                disk->images[k].earlier == NULL &&
                strcmp(name + length - strlen(suffix), suffix) == 0)
                disk->images[k].earlier = xasprintf("%s/%s", run->base.dir, name);
        }
    }
}

/* What the disk is in the base: its image as the new one says it, and its leaves. */
int export_base_disk(struct export_run *run, struct export_disk *disk, struct error *err)
{
    const struct chain_point *point;
    const char *file;
    const char *leaves;
    autofree char *path = NULL;
    int known;

    if (run->base.chain == NULL)
        return 0;
    point = &run->base.chain->points[0];
    known = find_disk(point->record, run->frozen->vm.disks[disk->vm_disk_index].id);
    assert(known >= 0); /* export_base_fit */
    file = chain_disk_text(point->record, (size_t)known, "file");
    leaves = chain_disk_text(point->record, (size_t)known, "leaves");
    if (run->options.by_disk) {
        find_earlier(run, disk, (size_t)known);
    } else {
        disk->backing = xasprintf("%s/%s", run->base.dir, file);
    }
    path = xasprintf("%s/%s", point->dir, leaves);
    if (leaves_load(path, &run->base.leaves[disk->frozen_index], err) < 0)
        return error_wrap(err, "export '%.64s'", point->record->export_id);
    disk->base_leaves = run->base.leaves[disk->frozen_index];
    disk->base_change_id = chain_disk_text(point->record, (size_t)known, "change_id");
    return 0;
}

const char *export_base_change_id(const struct export_base *base, const char *disk_id)
{
    const struct export_record *record = base->chain->points[0].record;
    int known = find_disk(record, disk_id);

    return known < 0 ? "" : chain_disk_text(record, (size_t)known, "change_id");
}

/* Unchanged parts of a disk that is written whole come from the base's image. */
static int check_base_image(const struct export_run *run, const struct export_disk *disk,
                            struct error *err)
{
    if (!run->options.by_disk)
        return 0;
    if (disk->images[0].earlier == NULL)
        return error_set(err, ERR_NOT_FOUND, "the export before has no such image of it");
    if (local_is_used_by_domain(run->base.chain->points[0].dir))
        return error_set(err, ERR_CONFLICT, "a domain uses the files of the export before");
    return 0;
}

static void set_mode(struct export_disk *disk, const char *mode, const char *reason)
{
    disk->incremental_mode = mode;
    (void)snprintf(disk->incremental_reason, sizeof disk->incremental_reason, "%.*s",
                   EXPORT_REASON_MAX - 1, reason);
}

void export_base_recall_mode(struct export_disk *disk, const char *mode, const char *reason)
{
    static const char *const modes[] = {MODE_FULL, MODE_CHANGED, MODE_COMPARE};

    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        if (strcmp(mode, modes[i]) == 0)
            set_mode(disk, modes[i], reason);
    }
}

static int check_ranges(const struct export_run *run, struct error *err)
{
    if (!run->frozen->forward_only)
        return 0;
    return error_set(err, ERR_NOT_AVAILABLE,
                     "the disks come as streams (%s), of which no part can be left out",
                     run->frozen->method);
}

int export_base_changes(struct export_run *run, struct export_disk *disk, struct error *err)
{
    struct changes_request request = {.provider = run->exporter->provider,
                                      .session = run->session.session,
                                      .frozen = run->frozen,
                                      .disk_index = disk->frozen_index,
                                      .since = disk->base_change_id,
                                      .retries_max = run->exporter->export.max_retries,
                                      .stopped = worker_task_stopped(run->task)};
    struct error why = ERROR_NONE;
    char size[EXPORT_SIZE_TEXT];

    free(STEAL(disk->changed));
    if (!run->options.incremental)
        return 0;
    if (disk->base_leaves == NULL) {
        set_mode(disk, MODE_FULL, run->base.reason);
        return 0;
    }
    if (check_ranges(run, &why) == 0 && check_base_image(run, disk, &why) == 0 &&
        changes_ask(&request, &disk->changed, &disk->changed_bytes, &why) == 0) {
        set_mode(disk, MODE_CHANGED, "");
        worker_task_log(run->task, LOG_LEVEL_INFO,
                        "%s: the source says what changed, %s are read (changed_extents)",
                        disk->name, export_size_text(disk->changed_bytes, size));
        return 0;
    }
    if (worker_task_check(run->task, err) < 0)
        return -1;
    set_mode(disk, MODE_COMPARE, why.message);
    worker_task_log(run->task, LOG_LEVEL_INFO,
                    "%s: all of it is read and compared (leaf_compare): %s", disk->name,
                    why.message);
    return 0;
}

/* An earlier attempt planned everything: is what it stands on still there? */
int export_base_recall(struct export_run *run, struct error *err)
{
    auto_chain *chain = NULL;
    const char *base_id = chain_base_id(run->plan);

    if (!run->options.incremental || run->committed)
        return 0;
    if (lock(run, chain_vm_id(run->plan), err) < 0)
        return -1;
    if (base_id[0] == '\0')
        return 0;
    if (chain_load_base(run->base.root, run->plan, &chain, err) < 0)
        return error_wrap(err, "what this export stands on");
    return chain_check(chain, false, worker_task_stopped(run->task), err);
}

/* ---- what is told of it ---- */

static uint64_t changed_bytes(const struct export_disk *disk)
{
    uint64_t changed = 0;

    if (disk->base_leaves == NULL)
        return disk->bytes_data;
    for (size_t i = 0; i < leaves_count(disk->leaves); i++) {
        if (memcmp(leaves_get(disk->leaves, i), leaves_get(disk->base_leaves, i), DIGEST_BYTES) !=
            0)
            changed += min_u64(LEAF_BYTES, disk->size_bytes - i * (uint64_t)LEAF_BYTES);
    }
    return changed;
}

const char *export_base_mode(const struct export_base *base)
{
    const struct export_record *record = base->chain->points[0].record;

    return by_disk(json_str(record->document, "format")) ? "disk" : "leaf";
}

/* Of every disk how it was read, of whole ones whether they changed and whose files the unchanged
 * ones have. */
static json_t *summary_disks(const struct export_run *run)
{
    json_t *disks = json_array();

    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_disk *disk = &run->disks[i];
        const struct export_image *image = &disk->images[disk->image_count - 1];
        json_t *item = export_append(disks);
        autofree char *id = xasprintf("disk-%zu", disk->vm_disk_index + 1);
        autofree char *checksum = xasprintf("sha256:%s", image->sha256);
        json_set_text(item, "id", id);
        json_set_text(item, "incremental_mode", disk->incremental_mode);
        if (disk->incremental_reason[0] != '\0')
            json_set_text(item, "incremental_reason", disk->incremental_reason);
        export_set_u64(item, "changed_bytes", changed_bytes(disk));
        if (run->base.chain == NULL || !run->options.by_disk)
            continue;
        json_put(item, "shared", json_boolean(disk->shared));
        if (!disk->shared)
            continue;
        json_set_text(item, "shared_with", image->earlier);
        json_set_text(item, "checksum", checksum);
    }
    return disks;
}

json_t *export_base_summary(const struct export_run *run)
{
    const struct export_base *base = &run->base;
    json_t *object = json_object();
    json_t *chain = json_array();

    json_set_text(object, "mode", base->chain == NULL ? "full" : export_base_mode(base));
    if (base->chain == NULL) {
        json_set_text(object, "reason", base->reason);
    } else {
        json_set_text(object, "base_id", base->chain->points[0].record->export_id);
        json_set_text(object, "base_dir", run->base.dir);
    }
    json_put(object, "disks", summary_disks(run));
    if (base->chain != NULL && run->options.by_disk) {
        json_decref(chain);
        return object;
    }
    for (size_t i = base->chain == NULL ? 0 : base->chain->count; i > 0; i--) {
        if (json_array_append_new(chain,
                                  json_string(base->chain->points[i - 1].record->export_id)) < 0)
            abort(); /* out of memory */
    }
    json_put(object, "chain", chain);
    return object;
}

void export_base_document(const struct export_run *run, json_t *document, int64_t completed_ms)
{
    json_t *object;
    uint64_t changed = 0;
    uint64_t total = 0;

    if (!run->options.incremental)
        return;
    for (size_t i = 0; i < run->disk_count; i++) {
        json_t *disk = json_array_get(json_object_get(document, "disks"), i);
        uint64_t bytes = changed_bytes(&run->disks[i]);
        export_set_u64(disk, "changed_bytes", bytes);
        if (run->disks[i].backing != NULL)
            json_set_text(disk, "backing", run->disks[i].backing);
        changed += bytes;
        total += run->disks[i].size_bytes;
    }
    object = export_base_summary(run);
    json_put(document, "incremental", object);
    export_set_u64(object, "full_at_ms",
                   (uint64_t)(run->base.chain == NULL ? completed_ms : run->base.full_at_ms));
    export_set_u64(object, "changed_bytes", changed);
    export_set_u64(object, "total_bytes", total);
}
