/* Models of the statements of common/schedule_*.c, of common/policy.c, and of those by which any
 * job request looks up provider and VM. Which VMs a policy takes is SQL, pinned by
 * tests/service/test_policies.py: here it takes them all. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

#define INVENTORY_ASKED_MS  300000 /* POLICY_INVENTORY_AGE_S */
#define INVENTORY_SILENT_MS 40000

/* extract(epoch FROM now())::bigint rounds. */
static int64_t now_s(const struct statement *s)
{
    return (s->now_ms + 500) / 1000;
}

static struct row *find_schedule(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_SCHEDULES); i++) {
        const struct schedule_row *schedule = see(s, store_row(TABLE_SCHEDULES, i));
        if (schedule != NULL && is(schedule->id, id))
            return store_row(TABLE_SCHEDULES, i);
    }
    return NULL;
}

static struct row *find_run(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(s, store_row(TABLE_RUNS, i));
        if (run != NULL && is(run->id, id))
            return store_row(TABLE_RUNS, i);
    }
    return NULL;
}

/* ---- schedule_store.c ---- */

static bool is_due(const struct statement *s, const struct schedule_row *schedule)
{
    return schedule->enabled && schedule->next_s > 0 &&
           schedule->next_s * 1000 + schedule->delay_ms <= s->now_ms;
}

static void show(struct statement *s, const struct schedule_row *schedule)
{
    result_columns(s, 6);
    if (schedule != NULL)
        RESULT_ROW(s, schedule->id, schedule->policy_id, "scheduler", schedule->fields,
                   number(schedule->next_s), number(now_s(s)));
}

static void lock_schedule(struct statement *s)
{
    struct row *row = find_schedule(s, s->params[0]);

    show(s, row == NULL ? NULL : hold(s, row));
}

/* FOR UPDATE SKIP LOCKED: what another has is not there. */
static void take_schedule(struct statement *s)
{
    struct row *row = find_schedule(s, s->params[0]);
    const struct schedule_row *schedule = row == NULL ? NULL : see(s, row);

    if (schedule == NULL || !is_due(s, schedule) || (sim_break != BREAK_CRON && !is_free(s, row))) {
        show(s, NULL);
        return;
    }
    show(s, sim_break == BREAK_CRON ? schedule : hold(s, row));
    if (sim_break == BREAK_CRON)
        sim_sleep(sim_between(0, 1000) * SIM_MS); /* time for others */
}

static void due_schedules(struct statement *s)
{
    auto_json *ids = json_array();
    autofree char *text = NULL;

    for (size_t i = 0; i < store_count(TABLE_SCHEDULES); i++) {
        const struct schedule_row *schedule = see(s, store_row(TABLE_SCHEDULES, i));
        if (schedule != NULL && is_due(s, schedule))
            (void)json_array_append_new(ids, json_string(schedule->id));
    }
    text = json_text(ids);
    result_columns(s, 1);
    RESULT_ROW(s, text);
}

static void current_time(struct statement *s)
{
    result_columns(s, 1);
    RESULT_ROW(s, number(now_s(s)));
}

static void insert_schedule(struct statement *s)
{
    struct schedule_row *schedule = insert(s, TABLE_SCHEDULES);

    PUT(schedule->id, s->params[0]);
    schedule->fields = keep(s->params[2]);
    PUT(schedule->policy_id, s->params[3]);
    schedule->enabled = param_bool(s, 6);
    schedule->next_s = schedule->first_s = param_i64(s, 7);
    schedule->delay_ms = param_i64(s, 8);
}

static void set_next(struct statement *s)
{
    struct row *row = find_schedule(s, s->params[0]);
    struct schedule_row *schedule = row == NULL ? NULL : hold(s, row);

    if (schedule == NULL)
        return;
    schedule->next_s = param_i64(s, 2);
    schedule->delay_ms = param_i64(s, 3);
}

static void count_run(struct statement *s)
{
    struct row *row = find_schedule(s, s->params[0]);
    struct schedule_row *schedule = row == NULL ? NULL : hold(s, row);

    if (schedule != NULL)
        schedule->run_count++;
}

/* ---- schedule_run.c ---- */

static void active_runs(struct statement *s)
{
    const char *id = NULL;
    int64_t running = 0;
    int64_t queued = 0;

    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(s, store_row(TABLE_RUNS, i));
        if (run == NULL || !is(run->schedule_id, s->params[0]))
            continue;
        running += is(run->status, "running");
        queued += is(run->status, "queued");
        if (is(run->status, "running") || (id == NULL && is(run->status, "queued")))
            id = run->id;
    }
    result_columns(s, 3);
    RESULT_ROW(s, number(running), number(queued), id);
}

/* The unique index waits for who has the same due time but has not committed. */
static bool is_taken(struct statement *s, const char *schedule_id, int64_t due_ms)
{
    for (size_t i = 0; i < store_count(TABLE_RUNS) && !s->failed; i++) {
        struct row *row = store_row(TABLE_RUNS, i);
        const struct run_row *run = row->uncommitted != NULL ? row->uncommitted : row->committed;
        if (run == NULL || !is(run->schedule_id, schedule_id) || run->due_ms != due_ms)
            continue;
        if (row->committed != NULL || hold(s, row) != NULL)
            return true;
    }
    return s->failed;
}

static struct run_row *new_run(struct statement *s, const char *schedule_id, int64_t due_ms)
{
    struct run_row *run;

    if (sim_break != BREAK_CRON && is_taken(s, schedule_id, due_ms))
        return NULL;
    run = insert(s, TABLE_RUNS);
    PUT(run->schedule_id, schedule_id);
    run->due_ms = due_ms;
    run->job_ids = run->errors = "[]";
    return run;
}

static void insert_run(struct statement *s)
{
    int64_t due_s = param_i64(s, 3);
    struct run_row *run = new_run(s, s->params[1], due_s == 0 ? s->now_ms : due_s * 1000);

    result_affected(s, run == NULL ? 0 : 1);
    if (run == NULL)
        return;
    PUT(run->id, s->params[0]);
    PUT(run->status, s->params[3]);
    run->reason = keep(s->params[4]);
}

static void insert_missed(struct statement *s)
{
    auto_json *list = json_loads(s->params[1], 0, NULL);
    json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        int64_t due_s = json_integer_value(json_object_get(item, "due"));
        struct run_row *run = new_run(s, s->params[0], due_s * 1000);
        if (s->failed)
            return;
        if (run == NULL)
            continue;
        PUT(run->id, json_str(item, "id"));
        PUT(run->status, "missed");
        run->reason = keep(json_str(item, "reason"));
    }
}

static void run_started(struct statement *s)
{
    struct row *row = find_run(s, s->params[0]);
    struct run_row *run = row == NULL ? NULL : hold(s, row);

    if (run == NULL)
        return;
    PUT(run->status, s->params[1]);
    run->reason = keep(s->params[2]);
    run->job_ids = keep(s->params[3]);
    run->errors = keep(s->params[4]);
}

static void oldest_queued(struct statement *s)
{
    result_columns(s, 5);
    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(s, store_row(TABLE_RUNS, i));
        if (run == NULL || !is(run->schedule_id, s->params[0]) || !is(run->status, "queued"))
            continue;
        RESULT_ROW(s, run->id, number(run->due_ms / 1000), run->reason, "f", "0");
        return;
    }
}

static bool has_running(const struct statement *s, const char *schedule_id)
{
    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(s, store_row(TABLE_RUNS, i));
        if (run != NULL && is(run->schedule_id, schedule_id) && is(run->status, "running"))
            return true;
    }
    return false;
}

static void waiting_schedules(struct statement *s)
{
    auto_json *ids = json_array();
    autofree char *text = NULL;

    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(s, store_row(TABLE_RUNS, i));
        if (run != NULL && is(run->status, "queued") && !has_running(s, run->schedule_id)) {
            text = json_text(ids);
            if (!json_has(text, run->schedule_id))
                (void)json_array_append_new(ids, json_string(run->schedule_id));
            free(STEAL(text));
        }
    }
    text = json_text(ids);
    result_columns(s, 1);
    RESULT_ROW(s, text);
}

/* ---- schedule_settle.c ---- */

struct jobs_of_run {
    int64_t all, live, completed;
};

static struct jobs_of_run jobs_of(const struct statement *s, const struct run_row *run)
{
    struct jobs_of_run jobs = {0};

    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (job == NULL || !json_has(run->job_ids, job->id))
            continue;
        jobs.all++;
        jobs.completed += is(job->status, "completed");
        jobs.live += !is(job->status, "completed") && !is(job->status, "failed") &&
                     !is(job->status, "cancelled");
    }
    return jobs;
}

static void ended_runs(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(s, store_row(TABLE_RUNS, i));
        if (run != NULL && is(run->status, "running") &&
            (s->params[0] == NULL || is(run->schedule_id, s->params[0])) &&
            jobs_of(s, run).live == 0)
            RESULT_ROW(s, run->id);
    }
}

static void run_facts(struct statement *s)
{
    struct row *row = find_run(s, s->params[0]);
    const struct run_row *run = row == NULL || !is_free(s, row) ? NULL : see(s, row);
    struct jobs_of_run jobs;

    result_columns(s, 8);
    if (run == NULL || !is(run->status, "running"))
        return;
    run = hold(s, row);
    jobs = jobs_of(s, run);
    RESULT_ROW(s, run->schedule_id, number(jobs.all), "0", number(jobs.completed),
               "a job of it did not complete", run->reason, NULL, "scheduler");
}

static void end_run(struct statement *s)
{
    struct row *row = find_run(s, s->params[0]);
    struct run_row *run = row == NULL ? NULL : hold(s, row);

    if (run == NULL)
        return;
    PUT(run->status, s->params[1]);
    run->reason = keep(s->params[2]);
}

/* ---- policy.c ---- */

/* Workers of the simulator send no pages, so an inventory is never young; only whether one was
 * asked for it counts. */
static void inventory_facts(struct statement *s)
{
    bool tried = false;
    bool asked = false;

    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        bool over;
        if (task == NULL || !is(task->kind, "inventory") || !is(task->provider, s->params[0]))
            continue;
        over = is(task->state, "done") || is(task->state, "failed") || is(task->state, "cancelled");
        asked = asked || !over;
        tried = tried || (task->created_ms > s->now_ms - INVENTORY_ASKED_MS &&
                          (over || task->created_ms < s->now_ms - INVENTORY_SILENT_MS));
    }
    result_columns(s, 3);
    RESULT_ROW(s, "f", tried ? "t" : "f", asked ? "t" : "f");
}

static void ask_for_inventory(struct statement *s)
{
    struct task_row *task = new_task(s);

    PUT(task->id, s->params[0]);
    PUT(task->kind, "inventory");
    PUT(task->task_class, "control");
    PUT(task->role, "exporter");
    PUT(task->provider_kind, "sim");
    PUT(task->provider, s->params[1]);
    task->spec = "{}";
    task->priority = 90;
}

static void policy_vms(struct statement *s)
{
    result_columns(s, 4);
    for (size_t i = 0; i < world.vm_count; i++)
        RESULT_ROW(s, number((int64_t)i), world.vms[i], world.vms[i], "poweredOn");
}

/* ---- job requests ---- */

static void provider_of(struct statement *s)
{
    result_columns(s, 2);
    if (strncmp(s->params[0], "sim-", 4) == 0)
        RESULT_ROW(s, "sim", "t");
}

static void none(struct statement *s)
{
    result_columns(s, 1);
}

/* ---- users ---- */

static void switch_off(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_SCHEDULES) && !s->failed; i++) {
        struct schedule_row *schedule = hold(s, store_row(TABLE_SCHEDULES, i));
        if (schedule != NULL)
            schedule->enabled = false;
    }
}

/* VMs are named by path. */
static void vm_names(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);

    result_columns(s, 2);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *n = json_object_get(json_array_get(rows, i), "n");
        RESULT_ROW(s, number(json_integer_value(n)), NULL);
    }
}

const struct statement_model statements_schedules[] = {
    {"FROM schedules s WHERE s.id = $1 AND enabled", take_schedule},
    {"FROM schedules s WHERE s.id = $1 FOR UPDATE", lock_schedule},
    {"id, next_run_at FROM schedules WHERE", due_schedules},
    {"SELECT extract(epoch FROM now())::bigint", current_time},
    {"INSERT INTO schedules (id, name, fields", insert_schedule},
    {"UPDATE schedules SET next_run_at", set_next},
    {"UPDATE schedules SET run_count", count_run},
    {"SELECT count(*) FILTER (WHERE status = 'running')", active_runs},
    {"INSERT INTO schedule_runs (id, schedule_id, due_at, status, reason, manual", insert_run},
    {"INSERT INTO schedule_runs (id, schedule_id, due_at, status, reason, completed_at)",
     insert_missed},
    {"UPDATE schedule_runs SET status = $2, reason = $3, errors", run_started},
    {"INSERT INTO job_events (run_id, event", none}, /* for live clients only */
    {"DELETE FROM schedule_runs", none},             /* a thousand runs are kept */
    {"AND status = 'queued' ORDER BY seq LIMIT 1", oldest_queued},
    {"SELECT coalesce(jsonb_agg(DISTINCT r.schedule_id)", waiting_schedules},
    {"SELECT r.id FROM schedule_runs r WHERE r.status = 'running'", ended_runs},
    {"SELECT r.schedule_id, cardinality(r.job_ids)", run_facts},
    {"UPDATE schedule_runs SET status = $2, reason = $3, completed_at", end_run},
    {"SELECT coalesce((SELECT completed_at > now() - make_interval", inventory_facts},
    {"expires_at) SELECT $1, 'inventory', 'control'", ask_for_inventory},
    {"SELECT v.id, v.name, v.path, v.power_state FROM inventory_vms", policy_vms},
    {"SELECT kind, enabled FROM providers", provider_of},
    {"SELECT x.n, (SELECT v.name FROM inventory_vms v", vm_names},
    {STORE_SCHEDULES_OFF, switch_off},
    {0},
};
