/* Models of the statements of workflows: common/workflow_store.c, common/workflow_start.c and
 * services/scheduler/workflows.c. What follows from the state of a run is the product's
 * (common/workflow_state.c), as is what its steps submit. What SQL decides (when an item has ended,
 * which items are to be started) has the same conditions here; with a real PostgreSQL it is pinned
 * by tests/service/test_workflows.py. */
#include "common/autos.h"
#include "common/json.h"
#include "tests/sim/store.h"

static struct row *find_run(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_WORKFLOWS); i++) {
        const struct workflow_row *run = see(s, store_row(TABLE_WORKFLOWS, i));
        if (run != NULL && is(run->id, id))
            return store_row(TABLE_WORKFLOWS, i);
    }
    return NULL;
}

static const struct job_row *job_of(const struct statement *s, const struct item_row *item)
{
    const struct row *row = item->job_id[0] == '\0' ? NULL : find_job(s, item->job_id);

    return row == NULL ? NULL : see(s, row);
}

static bool is_under_way(const struct workflow_row *run)
{
    return is(run->status, "running") || is(run->status, "paused") || is(run->status, "cancelling");
}

/* ---- start of a run ---- */

static void count_runs(struct statement *s)
{
    int64_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_WORKFLOWS); i++) {
        const struct workflow_row *run = see(s, store_row(TABLE_WORKFLOWS, i));
        count += run != NULL && is_under_way(run);
    }
    result_columns(s, 1);
    RESULT_ROW(s, number(count));
}

static void insert_run(struct statement *s)
{
    struct workflow_row *run = insert(s, TABLE_WORKFLOWS);

    PUT(run->id, s->params[0]);
    PUT(run->status, "running");
    run->definition = keep(s->params[3]);
    run->submitted_by = keep(s->params[4]);
    run->trace_id = keep(s->params[5]);
}

static void insert_step(struct statement *s)
{
    struct step_row *step = insert(s, TABLE_STEPS);

    PUT(step->run_id, s->params[0]);
    step->ordinal = param_i64(s, 2);
    PUT(step->kind, s->params[3]);
    step->depends = param_i64(s, 5);
    PUT(step->when, s->params[5]);
    step->wait_ms = param_i64(s, 7);
    step->parallel_max = param_i64(s, 8);
    step->item_count = param_i64(s, 9);
    PUT(step->status, "waiting");
    step->attempt = 1;
}

/* ---- a look ---- */

static void active_runs(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_WORKFLOWS); i++) {
        const struct workflow_row *run = see(s, store_row(TABLE_WORKFLOWS, i));
        if (run != NULL && is_under_way(run))
            RESULT_ROW(s, run->id);
    }
}

static void show_run(struct statement *s, const struct workflow_row *run)
{
    result_columns(s, 5);
    if (run != NULL)
        RESULT_ROW(s, run->status, run->submitted_by, run->trace_id, run->definition,
                   number(store_clock_ms()));
}

static void lock(struct statement *s, struct row *row)
{
    if (sim_break == BREAK_RUN_LOCK) {
        show_run(s, row == NULL ? NULL : see(s, row));
        sim_sleep(sim_between(0, 1000) * SIM_MS); /* time for others */
    } else {
        show_run(s, row == NULL ? NULL : hold(s, row));
    }
}

static void lock_run(struct statement *s)
{
    lock(s, find_run(s, s->params[0]));
}

/* FOR UPDATE SKIP LOCKED. */
static void lock_run_free(struct statement *s)
{
    struct row *row = find_run(s, s->params[0]);
    bool passed = row != NULL && sim_break != BREAK_RUN_LOCK && !is_free(s, row);

    lock(s, passed ? NULL : row);
}

static void settle(struct item_row *item, const struct job_row *job)
{
    bool well = job != NULL && is(job->status, "completed");

    PUT(item->state, well ? "done" : "failed");
    if (job == NULL) {
        item->error = "its job was deleted";
    } else if (is(job->status, "cancelled")) {
        item->error = "the job was cancelled";
    } else {
        item->error = well ? "" : job->error;
    }
}

static void settle_items(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_ITEMS) && !s->failed; i++) {
        const struct item_row *seen = see(s, store_row(TABLE_ITEMS, i));
        const struct job_row *job;
        struct item_row *item;
        if (seen == NULL || !is(seen->run_id, s->params[0]) || !is(seen->state, "active"))
            continue;
        job = job_of(s, seen);
        if (job != NULL && !status_is_final(job->status))
            continue;
        item = hold(s, store_row(TABLE_ITEMS, i));
        if (item != NULL)
            settle(item, job);
    }
}

struct counts {
    int64_t active, failed, done;
};

static struct counts count_items(const struct statement *s, const struct step_row *step)
{
    struct counts counts = {0};

    for (size_t i = 0; i < store_count(TABLE_ITEMS); i++) {
        const struct item_row *item = see(s, store_row(TABLE_ITEMS, i));
        if (item == NULL || !is(item->run_id, step->run_id) || item->step != step->ordinal)
            continue;
        counts.active += is(item->state, "active");
        counts.failed += is(item->state, "failed") && item->attempt == step->attempt;
        counts.done += is(item->state, "done");
    }
    return counts;
}

/* They were inserted in their order. */
static void load_steps(struct statement *s)
{
    result_columns(s, 13);
    for (size_t i = 0; i < store_count(TABLE_STEPS); i++) {
        const struct step_row *step = see(s, store_row(TABLE_STEPS, i));
        struct counts counts;
        if (step == NULL || !is(step->run_id, s->params[0]))
            continue;
        counts = count_items(s, step);
        RESULT_ROW(s, number(step->depends), step->when, step->status, number(step->attempt),
                   number(step->started_ms), number(step->ended_ms),
                   is(step->kind, "wait") ? "t" : "f", number(step->wait_ms),
                   number(step->parallel_max), number(step->item_count), number(counts.active),
                   number(counts.failed), number(counts.done));
    }
}

static void store_run(struct statement *s)
{
    struct row *row = find_run(s, s->params[0]);
    struct workflow_row *run = row == NULL ? NULL : hold(s, row);

    if (run != NULL)
        PUT(run->status, s->params[1]);
}

static void store_step(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_STEPS) && !s->failed; i++) {
        const struct step_row *seen = see(s, store_row(TABLE_STEPS, i));
        struct step_row *step;
        if (seen == NULL || !is(seen->run_id, s->params[0]) || seen->ordinal != param_i64(s, 2))
            continue;
        step = hold(s, store_row(TABLE_STEPS, i));
        if (step == NULL)
            return;
        PUT(step->status, s->params[2]);
        step->attempt = param_i64(s, 4);
        step->started_ms = param_i64(s, 5);
        step->ended_ms = param_i64(s, 6);
    }
}

static void active_jobs(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_ITEMS); i++) {
        const struct item_row *item = see(s, store_row(TABLE_ITEMS, i));
        if (item != NULL && is(item->run_id, s->params[0]) && item->step == param_i64(s, 2) &&
            is(item->state, "active"))
            RESULT_ROW(s, item->job_id);
    }
}

/* ---- items ---- */

static struct row *find_item(const struct statement *s, const char *run_id, int64_t step,
                             int64_t number)
{
    for (size_t i = 0; i < store_count(TABLE_ITEMS); i++) {
        const struct item_row *item = see(s, store_row(TABLE_ITEMS, i));
        if (item != NULL && item->step == step && item->item == number && is(item->run_id, run_id))
            return store_row(TABLE_ITEMS, i);
    }
    return NULL;
}

static void waiting_items(struct statement *s)
{
    int64_t room = param_i64(s, 5);

    result_columns(s, 4);
    for (int64_t g = 0; g < param_i64(s, 3) && room > 0; g++) {
        const struct row *row = find_item(s, s->params[0], param_i64(s, 2), g);
        const struct item_row *item = row == NULL ? NULL : see(s, row);
        const struct job_row *job = item == NULL ? NULL : job_of(s, item);
        if (item != NULL && !(is(item->state, "failed") && item->attempt < param_i64(s, 4)))
            continue;
        RESULT_ROW(s, number(g), item == NULL ? "" : item->job_id, job == NULL ? "" : job->status,
                   job != NULL && job->deadline_ms != 0 && job->deadline_ms < s->now_ms ? "t"
                                                                                        : "f");
        room--;
    }
}

static void store_item(struct statement *s)
{
    struct row *row = find_item(s, s->params[0], param_i64(s, 2), param_i64(s, 3));
    struct item_row *item = row == NULL ? insert(s, TABLE_ITEMS) : hold(s, row);

    if (item == NULL)
        return;
    PUT(item->run_id, s->params[0]);
    item->step = param_i64(s, 2);
    item->item = param_i64(s, 3);
    item->attempt = param_i64(s, 4);
    PUT(item->job_id, s->params[4]);
    PUT(item->state, s->params[5]);
    item->error = keep(s->params[6]);
}

const struct statement_model statements_workflows[] = {
    {"SELECT count(*) FROM workflow_runs", count_runs},
    {"INSERT INTO workflow_runs", insert_run},
    {"INSERT INTO workflow_steps", insert_step},
    {"SELECT id FROM workflow_runs WHERE status IN", active_runs},
    {"FROM workflow_runs WHERE id = $1 FOR UPDATE SKIP LOCKED", lock_run_free},
    {"FROM workflow_runs WHERE id = $1 FOR UPDATE", lock_run},
    {"UPDATE workflow_items i SET state", settle_items},
    {"SELECT s.depends, s.run_when", load_steps},
    {"UPDATE workflow_runs SET status", store_run},
    {"UPDATE workflow_steps SET status", store_step},
    {"SELECT job_id FROM workflow_items", active_jobs},
    {"FROM generate_series(0, $3::int - 1) g LEFT JOIN workflow_items", waiting_items},
    {"INSERT INTO workflow_items", store_item},
    {0},
};
