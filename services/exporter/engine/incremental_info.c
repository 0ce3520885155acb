/* The task kind "incremental_info": what an incremental export would do, without doing it. Disks
 * are not read; of the restore points, sizes and names are looked at, not digests. What changed is
 * asked of the source where it can tell; of a VM that runs only with "temporary_snapshot", which is
 * made for the question and removed. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/control.h"
#include "services/exporter/engine/export_changes.h"
#include "services/exporter/engine/export_run.h"

static json_t *null_or_u64(bool known, uint64_t value)
{
    return known ? json_integer((json_int_t)min_u64(value, INT64_MAX)) : json_null();
}

/* ---- what changed ---- */

struct disk_change { /* as vm.disks */
    bool known;
    bool streamed; /* all of it is read nevertheless */
    uint64_t bytes;
    char reason[EXPORT_REASON_MAX]; /* why it is not known */
};

struct changes {
    struct disk_change disks[VM_DISKS_MAX];
};

PRINTF_LIKE(3, 4)
static void none_known(const struct vm *vm, struct changes *changes, const char *format, ...)
{
    for (size_t i = 0; i < vm->disk_count; i++) {
        va_list args;
        va_start(args, format);
        (void)vsnprintf(changes->disks[i].reason, sizeof changes->disks[i].reason, format, args);
        va_end(args);
    }
}

/* The disk by its id: the frozen VM may list others. */
static struct disk_change *change_of(const struct vm *vm, const char *disk_id,
                                     struct changes *changes)
{
    for (size_t i = 0; i < vm->disk_count; i++) {
        if (strcmp(vm->disks[i].id, disk_id) == 0)
            return &changes->disks[i];
    }
    return NULL;
}

struct question {
    struct worker_task *task;
    struct exporter *exporter;
    struct exporter_session *session;
    const struct vm *vm;
    const struct export_base *base;
    bool snapshot;
};

static void ask_disk(const struct question *question, const struct frozen_vm *frozen, size_t index,
                     struct disk_change *change)
{
    const struct vm_disk *disk = &frozen->vm.disks[frozen->disks[index].vm_disk_index];
    struct changes_request request = {
        .provider = question->exporter->provider,
        .session = question->session->session,
        .frozen = frozen,
        .disk_index = index,
        .since = export_base_change_id(question->base, disk->id),
        .retries_max = question->exporter->export.max_retries,
        .stopped = worker_task_stopped(question->task),
    };
    autofree uint8_t *changed = NULL;
    struct error why = ERROR_NONE;

    change->known = changes_ask(&request, &changed, &change->bytes, &why) == 0;
    (void)snprintf(change->reason, sizeof change->reason, "%.*s", EXPORT_REASON_MAX - 1,
                   why.message);
}

/* Freezes the VM, asks, and gives it back, whatever the answers are. */
static int ask_frozen(const struct question *question, struct changes *changes, struct error *err)
{
    const struct provider *provider = question->exporter->provider;
    struct prepare_options options = {.job_id = worker_task_id(question->task),
                                      .snapshot = question->snapshot,
                                      .never_snapshot = !question->snapshot,
                                      .delete_snapshot = true,
                                      .consolidate = true};
    struct exporter_records records;
    struct frozen_vm *frozen = NULL;
    struct error why = ERROR_NONE;

    exporter_records_init(&records, question->task);
    if (provider->prepare(question->session->session, question->vm->id, &options, &records.base,
                          &frozen, &why) < 0) {
        none_known(question->vm, changes, "%.300s", why.message);
    } else {
        for (size_t i = 0; i < frozen->disk_count; i++) {
            const char *id = frozen->vm.disks[frozen->disks[i].vm_disk_index].id;
            struct disk_change *change = change_of(question->vm, id, changes);
            if (change == NULL)
                continue;
            change->streamed = frozen->forward_only;
            ask_disk(question, frozen, i, change);
        }
    }
    provider->frozen_free(frozen);
    if (provider->release(question->session->session, &records.base, false, err) < 0)
        return error_wrap(err, "the snapshot made for the question is removed later");
    return worker_task_check(question->task, err);
}

static int ask(const struct question *question, struct changes *changes, struct error *err)
{
    const struct vm *vm = question->vm;

    if (question->base->chain == NULL)
        return 0; /* a full one */
    if (question->exporter->provider->disk_changes == NULL) {
        none_known(vm, changes, "%s does not tell what changed on a disk",
                   question->exporter->provider->title);
        return 0;
    }
    if (vm->power != VM_POWER_OFF && !question->snapshot) {
        none_known(vm, changes,
                   "the VM is not powered off: what changed can only be asked of a snapshot, which "
                   "temporary_snapshot makes and removes");
        return 0;
    }
    return ask_frozen(question, changes, err);
}

/* ---- the answer ---- */

struct sums {
    uint64_t total;     /* of the disks that are exported */
    uint64_t read;      /* at most */
    uint64_t changed;   /* of those where it is known */
    const char *reason; /* why it is not known of all; borrowed from changes */
};

static json_t *disks_of(const struct vm *vm, const struct changes *changes, struct sums *out)
{
    json_t *disks = json_array();

    for (size_t i = 0; i < vm->disk_count; i++) {
        const struct vm_disk *disk = &vm->disks[i];
        const struct disk_change *change = &changes->disks[i];
        json_t *object = export_append(disks);
        json_set_text(object, "disk_id", disk->id);
        json_set_text(object, "label", disk->label);
        export_set_u64(object, "capacity_bytes", disk->capacity_bytes);
        json_put(object, "changed_bytes", null_or_u64(change->known, change->bytes));
        if (disk->skip_reason[0] != '\0') {
            json_set_text(object, "skip_reason", disk->skip_reason);
            continue;
        }
        if (change->reason[0] != '\0') {
            json_set_text(object, "changed_reason", change->reason);
            out->reason = change->reason;
        }
        out->total += disk->capacity_bytes;
        out->read += change->known && !change->streamed ? change->bytes : disk->capacity_bytes;
        out->changed += change->bytes;
    }
    return disks;
}

static uint64_t saving_percent(const struct sums *sums)
{
    return sums->total == 0 ? 0 : 100 - (sums->changed * 100 + sums->total - 1) / sums->total;
}

/* The restore points below the youngest, oldest first, and when that was made. */
static void describe_base(const struct export_base *base, json_t *json)
{
    const struct export_record *youngest = base->chain->points[0].record;
    const json_t *last = json_object_get(youngest->document, "incremental");
    json_t *ids = json_array();

    json_set_text(json, "base_id", youngest->export_id);
    json_set_text(json, "base_time", json_str(youngest->document, "completed_at"));
    for (size_t i = base->chain->count; i > 0; i--) {
        json_t *item = json_string(base->chain->points[i - 1].record->export_id);
        if (json_array_append_new(ids, item) < 0)
            abort(); /* out of memory */
    }
    json_put(json, "chain", ids);
    json_put(json, "last_changed_bytes",
             null_or_u64(json_str(last, "base_id")[0] != '\0', json_u64(last, "changed_bytes")));
}

static json_t *analysis(const struct vm *vm, const char *output, const struct export_base *base,
                        const struct changes *changes)
{
    bool possible = base->chain != NULL;
    json_t *json = json_object();
    struct sums sums = {.reason = ""};
    bool known;

    json_put(json, "possible", json_boolean(possible));
    json_set_text(json, "mode", possible ? export_base_mode(base) : "full");
    json_set_text(json, "reason", base->reason);
    json_set_text(json, "vm_id", vm->id);
    json_set_text(json, "vm_name", vm->name);
    json_set_text(json, "output_path", output);
    json_put(json, "disks", disks_of(vm, changes, &sums));
    known = possible && sums.reason[0] == '\0';
    if (vm->used_bytes > 0 && !possible)
        sums.read = min_u64(vm->used_bytes, sums.total);
    export_set_u64(json, "total_bytes", sums.total);
    export_set_u64(json, "read_bytes", sums.read);
    /* A comparison knows it when it is through; a full export writes what is there. */
    json_put(json, "changed_bytes",
             null_or_u64(known || !possible, known ? sums.changed : sums.total));
    if (possible && !known)
        json_set_text(json, "changed_reason", sums.reason);
    json_put(json, "saving_percent",
             known      ? json_integer((json_int_t)saving_percent(&sums))
             : possible ? json_null()
                        : json_integer(0));
    if (possible)
        describe_base(base, json);
    return json;
}

static int choose(struct worker_task *task, struct exporter *exporter, const struct vm *vm,
                  char **out_output, struct export_base *base, struct error *err)
{
    const json_t *spec = worker_task_spec(task);
    struct export_base_wish wish = {.spec = spec, .vm = vm, .stopped = worker_task_stopped(task)};
    autofree char *root = NULL;
    uint64_t age_ms = 0;

    if (json_get_string(spec, "format", "qcow2", &wish.format, err) < 0 ||
        json_get_bool(spec, "convert", false, &wish.convert, err) < 0 ||
        json_get_bool(spec, "force_full", false, &wish.force_full, err) < 0 ||
        json_get_u64(spec, "incremental_max_age_ms", 0, INT64_MAX, 0, &age_ms, err) < 0)
        return -1;
    wish.age_max_ms = (int64_t)age_ms;
    if (path_confine(&exporter->bases, json_str(spec, "output_path"), out_output, err) < 0)
        return error_wrap(err, "output_path");
    root = realpath(*out_output, NULL);
    if (root == NULL && errno != ENOENT)
        return error_set_errno(err, errno, "'%.200s' cannot be looked at", *out_output);
    wish.root = root == NULL ? *out_output : root;
    return export_base_choose(&wish, base, err);
}

int exporter_run_incremental_info(struct worker_task *task, void *arg, json_t **out_result,
                                  struct error *err)
{
    struct exporter *exporter = arg;
    auto_exporter_session session = {0};
    CLEANUP(export_base_release) struct export_base base = {.lock_fd = -1};
    autofree char *id = NULL;
    autofree char *output = NULL;
    autofree struct changes *changes = xcalloc(1, sizeof *changes);
    auto_vm vm;
    struct question question = {
        .task = task, .exporter = exporter, .session = &session, .vm = &vm, .base = &base};

    vm_init(&vm);
    if (json_get_bool(worker_task_spec(task), "temporary_snapshot", false, &question.snapshot,
                      err) < 0 ||
        exporter_task_session(task, exporter, &session, err) < 0 ||
        exporter_vm_find(&session, json_str(worker_task_spec(task), "vm"), &id, err) < 0 ||
        exporter->provider->vm_get(session.session, id, &vm, err) < 0 ||
        choose(task, exporter, &vm, &output, &base, err) < 0 || ask(&question, changes, err) < 0)
        return -1;
    *out_result = json_object();
    json_put(*out_result, "analysis", analysis(&vm, output, &base, changes));
    return 0;
}
