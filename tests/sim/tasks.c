/* What the workers of the simulation do with a task: an export in chunks with a snapshot, records,
 * a finish permit and a mark at the end, as engine and providers do it, but on numbers. All that
 * concerns the lease is the real common/worker*.c. */
#include <string.h>

#include "common/json.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

#define LANDING_MS     3000 /* a write that has begun reaches the disk, whatever becomes of us */
#define CHUNK_BYTES    1000
#define PER_MILLION(x) ((uint32_t)(x)*10000U)

struct write {
    struct world_task *task;
    int64_t epoch;
};

static void land(void *arg)
{
    struct write *write = arg;

    if (write->epoch < write->task->newest_epoch) {
        sim_fail("INVARIANT two live epochs write: a write of epoch %lld of %s lands after epoch "
                 "%lld has begun to write",
                 (long long)write->epoch, write->task->id, (long long)write->task->newest_epoch);
    }
    free(write);
}

/* One write outside the process, begun under the lease. */
static int touch(struct worker_task *task, int64_t landing_ms, struct error *err)
{
    struct world_task *outside = world_task(worker_task_id(task));
    int64_t epoch = (int64_t)worker_task_epoch(task);
    struct write *write;

    if (worker_task_may_write(task, err) < 0) {
        if (sim_break != BREAK_WRITE_DEADLINE)
            return -1;
        *err = (struct error)ERROR_NONE;
    }
    write = xcalloc(1, sizeof *write);
    *write = (struct write){outside, epoch};
    if (epoch > outside->newest_epoch)
        outside->newest_epoch = epoch;
    sim_after(NULL, landing_ms * SIM_MS, land, write);
    if (landing_ms > 0)
        sim_sleep(landing_ms * SIM_MS + 1); /* run() ends after its writes, unless it is killed */
    return 0;
}

static void work(int64_t ms)
{
    sim_sleep(sim_between(0, ms) * SIM_MS);
}

/* ---- export ---- */

static int take_snapshot(struct worker_task *task, struct world_task *outside, struct error *err)
{
    if (worker_task_record_get(task, "snapshot.intent") == NULL &&
        worker_task_record_put(task, "snapshot.intent", worker_task_id(task), err) < 0)
        return -1;
    if (worker_task_record_get(task, "snapshot") != NULL && outside->snapshot)
        return 0;
    work(500);
    if (touch(task, 0, err) < 0)
        return -1;
    if (!outside->snapshot)
        sim_trace("snapshot of %s is made", outside->id);
    outside->snapshot = true;
    return worker_task_record_put(task, "snapshot", worker_task_id(task), err);
}

static int drop_snapshot(struct worker_task *task, struct world_task *outside, struct error *err)
{
    if (touch(task, 0, err) < 0)
        return -1;
    if (outside->snapshot)
        sim_trace("snapshot of %s is removed", outside->id);
    outside->snapshot = false;
    return 0;
}

static void show(struct worker_task *task, const struct world_task *outside, uint32_t chunks)
{
    worker_task_progress(task, &(struct worker_progress){
                                   .bytes_transferred = (uint64_t)outside->chunks * CHUNK_BYTES,
                                   .bytes_done = (uint64_t)outside->chunks * CHUNK_BYTES,
                                   .bytes_total = (uint64_t)chunks * CHUNK_BYTES,
                                   .limited_by = ""});
}

static int copy(struct worker_task *task, struct world_task *outside, struct error *err)
{
    const json_t *spec = worker_task_spec(task);
    bool plain = json_object_get(spec, "chunks") == NULL; /* a schedule's */
    uint32_t chunks = plain ? 2 : (uint32_t)json_u64(spec, "chunks");
    int64_t chunk_ms = plain ? 3000 : (int64_t)json_u64(spec, "chunk_ms");
    bool bad = strstr(json_str(spec, "vm"), "bad") != NULL; /* a workflow's, a policy's */
    uint32_t errors = bad ? 70 : (uint32_t)json_u64(spec, "errors");

    worker_task_phase(task, "exporting");
    while (outside->chunks < chunks) {
        if (worker_task_check(task, err) < 0)
            return -1;
        if (json_is_true(json_object_get(spec, "poison"))) {
            sim_trace("%s kills its worker", worker_task_id(task));
            sim_proc_kill(sim_current());
        }
        work(chunk_ms);
        if (sim_chance(PER_MILLION(errors))) {
            return error_set(err, sim_chance(PER_MILLION(70)) ? ERR_UNAVAILABLE : ERR_INVALID,
                             "the source says no");
        }
        if (touch(task, sim_between(0, LANDING_MS), err) < 0)
            return -1;
        outside->chunks++;
        show(task, outside, chunks);
        if (sim_chance(PER_MILLION(60)))
            worker_task_log(task, LOG_LEVEL_INFO, "chunk %u is copied", outside->chunks);
    }
    return 0;
}

static int finish_export(struct worker_task *task, struct world_task *outside, struct error *err)
{
    worker_task_phase(task, "finishing");
    if (worker_task_permit(task, err) < 0)
        return -1;
    work(8000);
    if (touch(task, 0, err) < 0)
        return -1;
    outside->marked = true;
    sim_trace("%s is marked as whole", outside->id);
    work(2000);
    return drop_snapshot(task, outside, err);
}

static json_t *result_of(const struct worker_task *task)
{
    return json_pack("{s:s, s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:{}, s:[]}}",
                     "vm_name", "vm", "output_path", "/exports/vm", "manifest_path", "/exports/m",
                     "export", "id", worker_task_id(task), "vm_id", "vm", "vm_name", "vm", "path",
                     "/exports/vm", "volume", "", "format", "qcow2", "total_size", 1000, "manifest",
                     "disks");
}

static int run_export(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    struct world_task *outside = world_task(worker_task_id(task));
    char volume[16];

    (void)arg;
    (void)snprintf(volume, sizeof volume, "vol-%d", sim_current()->number % 2);
    if (!outside->marked) {
        if (worker_task_record_put(task, "export.volume", volume, err) < 0 ||
            take_snapshot(task, outside, err) < 0 || copy(task, outside, err) < 0 ||
            finish_export(task, outside, err) < 0) {
            struct error why = ERROR_NONE;
            if (worker_task_stop_reason(task) == WORKER_CANCELLED)
                (void)drop_snapshot(task, outside, &why);
            return -1;
        }
    } else if (drop_snapshot(task, outside, err) < 0) {
        return -1; /* an earlier epoch has done all but the last step */
    }
    outside->done_epoch = (int64_t)worker_task_epoch(task);
    *out_result = result_of(task);
    return 0;
}

/* ---- release: what a dead task's records name goes away ---- */

static bool is_worked_on(const char *task_id)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(NULL, store_row(TABLE_TASKS, i));
        if (task != NULL && strcmp(task->id, task_id) == 0)
            return strcmp(task->state, "leased") == 0 || strcmp(task->state, "finishing") == 0;
    }
    return false;
}

static int run_release(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    const char *id = json_str(worker_task_spec(task), "task_id");
    struct world_task *outside = world_task(id);

    (void)arg;
    (void)out_result;
    work(3000);
    if (worker_task_check(task, err) < 0 || touch(task, 0, err) < 0)
        return -1;
    if (worker_task_record_get(task, "snapshot.intent") != NULL && outside->snapshot) {
        if (is_worked_on(id))
            sim_fail("INVARIANT a release takes the snapshot of %s, which is being worked on", id);
        sim_trace("release removes the snapshot of %s", id);
        outside->snapshot = false;
    }
    world_task(worker_task_id(task))->done_epoch = (int64_t)worker_task_epoch(task);
    return 0;
}

/* Its pages are left out: the VMs of policies are the model's. */
static int run_inventory(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err)
{
    (void)arg;
    (void)out_result;
    work(3000);
    if (worker_task_check(task, err) < 0)
        return -1;
    world_task(worker_task_id(task))->done_epoch = (int64_t)worker_task_epoch(task);
    return 0;
}

/* ---- what the bridge does ---- */

static int plain_work(struct worker_task *task, struct error *err)
{
    struct world_task *outside = world_task(worker_task_id(task));
    uint32_t chunks = (uint32_t)json_u64(worker_task_spec(task), "chunks");

    for (uint32_t i = 0; i < chunks; i++) {
        if (worker_task_check(task, err) < 0)
            return -1;
        work(3000);
        if (touch(task, sim_between(0, LANDING_MS), err) < 0)
            return -1;
    }
    if (worker_task_permit(task, err) < 0 || touch(task, 0, err) < 0)
        return -1;
    outside->done_epoch = (int64_t)worker_task_epoch(task);
    return 0;
}

static int run_convert(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    (void)arg;
    if (plain_work(task, err) < 0)
        return -1;
    *out_result = json_pack("{s:{s:s}}", "conversion", "format", "qcow2");
    return 0;
}

static int run_webhook(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    bool bad = strstr(json_str(worker_task_spec(task), "url"), "bad") != NULL;

    (void)arg;
    (void)out_result;
    work(3000);
    if (bad && sim_chance(PER_MILLION(60)))
        return error_set(err, ERR_UNAVAILABLE, "the receiver says no");
    return plain_work(task, err);
}

static int run_script(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    uint32_t errors = (uint32_t)json_u64(worker_task_spec(task), "errors");

    (void)arg;
    (void)out_result;
    if (sim_chance(PER_MILLION(errors)))
        return error_set(err, ERR_UNAVAILABLE, "the script says no");
    return plain_work(task, err);
}

static bool holds_lease(const struct world_task *outside)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(NULL, store_row(TABLE_TASKS, i));
        if (task != NULL && strcmp(task->id, outside->id) == 0)
            return task->epoch == outside->claim_epoch &&
                   (strcmp(task->state, "leased") == 0 || strcmp(task->state, "finishing") == 0);
    }
    return false;
}

/* A name that only one import at a time may have. */
static int claim_name(struct worker_task *task, const char *name, struct error *err)
{
    struct world_task *outside = world_task(worker_task_id(task));

    if (worker_task_record_claim(task, "import.name", name, err) < 0)
        return -1;
    for (size_t i = 0; i < world.task_count; i++) {
        const struct world_task *other = &world.tasks[i];
        if (other != outside && strcmp(other->claim, name) == 0 && holds_lease(other) &&
            worker_task_may_write(task, err) == 0) {
            sim_fail("INVARIANT %s and %s claim the name %s at the same time", other->id,
                     outside->id, name);
        }
    }
    (void)snprintf(outside->claim, sizeof outside->claim, "%s", name);
    outside->claim_epoch = (int64_t)worker_task_epoch(task);
    return 0;
}

static int run_import(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    (void)arg;
    (void)out_result;
    if (claim_name(task, json_str(worker_task_spec(task), "name"), err) < 0)
        return -1;
    return plain_work(task, err);
}

/* ---- processes ---- */

static const struct worker_kind exporter_kinds[] = {{"export", false, run_export},
                                                    {"release", true, run_release},
                                                    {"inventory", true, run_inventory}};
static const struct worker_kind bridge_kinds[] = {{"convert", false, run_convert},
                                                  {"import", false, run_import},
                                                  {"script", false, run_script},
                                                  {"webhook", false, run_webhook}};

static void worker_main(struct sim_proc *proc, const struct worker_description *description)
{
    static const struct bus_config bus;
    struct error err = ERROR_NONE;

    if (worker_run(sim_service_new(proc), &bus, description, &err) < 0)
        sim_fail("worker_run: %s", err.message);
}

void exporter_main(struct sim_proc *proc)
{
    struct worker_description *description = xcalloc(1, sizeof *description);

    *description = (struct worker_description){.role = "exporter",
                                               .provider = "sim",
                                               .kinds = exporter_kinds,
                                               .kind_count = ARRAY_LEN(exporter_kinds),
                                               .transfer_slots = 1 + (uint32_t)sim_below(2),
                                               .control_slots = 1};
    worker_main(proc, description);
}

void bridge_main(struct sim_proc *proc)
{
    struct worker_description *description = xcalloc(1, sizeof *description);

    *description = (struct worker_description){.role = "bridge",
                                               .provider = "",
                                               .kinds = bridge_kinds,
                                               .kind_count = ARRAY_LEN(bridge_kinds),
                                               .transfer_slots = 2};
    worker_main(proc, description);
}
