/* The task kind "incremental_info": what an incremental export would do, without doing it. Disks
 * are not read; of the restore points, sizes and names are looked at, not digests. */
#include <errno.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/control.h"
#include "services/exporter/engine/export_run.h"

static json_t *null_or_u64(bool known, uint64_t value)
{
    return known ? json_integer((json_int_t)min_u64(value, INT64_MAX)) : json_null();
}

static json_t *disks_of(const struct vm *vm, uint64_t *out_total)
{
    json_t *disks = json_array();

    *out_total = 0;
    for (size_t i = 0; i < vm->disk_count; i++) {
        const struct vm_disk *disk = &vm->disks[i];
        json_t *object = export_append(disks);
        json_set_text(object, "disk_id", disk->id);
        json_set_text(object, "label", disk->label);
        export_set_u64(object, "capacity_bytes", disk->capacity_bytes);
        json_put(object, "changed_bytes", json_null()); /* as for the whole */
        if (disk->skip_reason[0] != '\0') {
            json_set_text(object, "skip_reason", disk->skip_reason);
        } else {
            *out_total += disk->capacity_bytes;
        }
    }
    return disks;
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

static json_t *analysis(const struct vm *vm, const char *output, const struct export_base *base)
{
    bool possible = base->chain != NULL;
    json_t *json = json_object();
    uint64_t total = 0;

    json_put(json, "possible", json_boolean(possible));
    json_set_text(json, "mode", possible ? export_base_mode(base) : "full");
    json_set_text(json, "reason", base->reason);
    json_set_text(json, "vm_id", vm->id);
    json_set_text(json, "vm_name", vm->name);
    json_set_text(json, "output_path", output);
    json_put(json, "disks", disks_of(vm, &total));
    export_set_u64(json, "total_bytes", total);
    export_set_u64(json, "read_bytes",
                   vm->used_bytes > 0 && !possible ? min_u64(vm->used_bytes, total) : total);
    /* A comparison knows it when it is through; a full export writes what is there. */
    json_put(json, "changed_bytes", null_or_u64(!possible, total));
    json_put(json, "saving_percent", possible ? json_null() : json_integer(0));
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
    auto_vm vm;

    vm_init(&vm);
    if (exporter_task_session(task, exporter, &session, err) < 0 ||
        exporter_vm_find(&session, json_str(worker_task_spec(task), "vm"), &id, err) < 0 ||
        exporter->provider->vm_get(session.session, id, &vm, err) < 0 ||
        choose(task, exporter, &vm, &output, &base, err) < 0)
        return -1;
    *out_result = json_object();
    json_put(*out_result, "analysis", analysis(&vm, output, &base));
    return 0;
}
