/* Users of workflows: what they define, start, pause, cancel and try again. */
#include "common/json.h"
#include "common/workflow_store.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

#define PER_CENT  10000U
#define RUNS_MAX  2
#define STEPS_MIN 2
#define STEPS_MAX 6

static struct workflow *wanted[RUNS_MAX]; /* NULL: it was started */
static size_t wanted_count;

/* ---- definitions ---- */

static json_t *draw_depends(int step)
{
    json_t *depends = json_array();

    for (int on = 0; on < step; on++) {
        if (sim_chance(45 * PER_CENT))
            (void)json_array_append_new(depends, json_sprintf("s%d", on));
    }
    return depends;
}

/* Whose export often fails, or never. */
static json_t *draw_vm(int step, int number)
{
    return json_sprintf("/dc/%s-%d-%d", sim_chance(40 * PER_CENT) ? "bad" : "vm", step, number);
}

static json_t *draw_job(void)
{
    json_t *job = json_pack("{s:s, s:s}", "provider", "sim-0", "output_path", "/exports/flow");
    char deadline[CLOCK_RFC3339_SIZE];

    if (sim_chance(15 * PER_CENT)) {
        clock_rfc3339(store_clock_ms() + sim_between(5000, 150000), deadline);
        json_set_text(job, "deadline", deadline);
    }
    return job;
}

static void draw_batch(int step, json_t *out)
{
    json_t *vms = json_array();

    for (int64_t i = sim_between(2, 4); i > 0; i--)
        (void)json_array_append_new(vms, draw_vm(step, (int)i));
    json_set_text(out, "type", "batch");
    json_put(out, "vms", vms);
    json_put(out, "job", draw_job());
    if (sim_chance(40 * PER_CENT)) {
        json_put(out, "max_parallel", json_integer(sim_between(1, 2)));
    } else if (sim_chance(30 * PER_CENT)) {
        json_put(out, "parallel", json_false());
    }
}

static void draw_work(int step, json_t *out)
{
    switch (sim_below(6)) {
    case 0:
        json_set_text(out, "type", "wait");
        json_put(out, "duration", json_sprintf("%ds", (int)sim_between(1, 20)));
        return;
    case 1:
        json_set_text(out, "type", "webhook");
        json_put(out, "url",
                 json_sprintf("http://hooks.test/%s", sim_chance(30 * PER_CENT) ? "bad" : "well"));
        return;
    case 2:
        draw_batch(step, out);
        return;
    default:
        json_set_text(out, "type", "job");
        json_put(out, "job", draw_job());
        json_put(json_object_get(out, "job"), "vm_path", draw_vm(step, 0));
        return;
    }
}

static json_t *draw_step(int step)
{
    static const char *const whens[] = {"success", "success", "always", "failure"};
    json_t *out =
        json_pack("{s:o, s:o}", "id", json_sprintf("s%d", step), "depends_on", draw_depends(step));
    bool free = json_array_size(json_object_get(out, "depends_on")) == 0;

    json_set_text(out, "when", whens[sim_below(ARRAY_LEN(whens) - (free ? 1 : 0))]);
    draw_work(step, out);
    return out;
}

static struct workflow *draw_workflow(void)
{
    json_t *steps = json_array();
    auto_json *body = json_pack("{s:s, s:o}", "name", "flow", "steps", steps);
    int count = (int)sim_between(STEPS_MIN, STEPS_MAX);
    struct field_problem problem = {0};
    struct workflow *workflow = NULL;
    struct error err = ERROR_NONE;

    for (int step = 0; step < count; step++)
        (void)json_array_append_new(steps, draw_step(step));
    if (workflow_parse(body, &workflow, &problem, &err) < 0)
        sim_fail("workflow: %s", err.message);
    return workflow;
}

void workflows_draw(void)
{
    wanted_count = (size_t)sim_between(1, RUNS_MAX);
    for (size_t i = 0; i < wanted_count; i++)
        wanted[i] = draw_workflow();
}

/* ---- wishes ---- */

/* After a commit whose outcome is unknown there may be two. */
static bool start_all(struct db *db)
{
    for (size_t i = 0; i < wanted_count; i++) {
        const struct workflow_request request = {"wf", wanted[i], "user", ""};
        struct error err = ERROR_NONE;
        char id[64];
        if (wanted[i] == NULL)
            continue;
        if (workflow_run_start(db, &request, id, &err) < 0) {
            sim_trace("a workflow is not started: %s", err.message);
            return false;
        }
        sim_trace("%s is started", id);
        wanted[i] = NULL;
    }
    return true;
}

static bool wish(struct db *db, const char *run_id, enum workflow_event event, const char *actor)
{
    static const char *const names[] = {[WORKFLOW_EVENT_LOOK] = "",
                                        [WORKFLOW_EVENT_CANCEL] = "cancelled",
                                        [WORKFLOW_EVENT_PAUSE] = "paused",
                                        [WORKFLOW_EVENT_RESUME] = "resumed",
                                        [WORKFLOW_EVENT_RETRY] = "tried again"};
    struct error err = ERROR_NONE;

    if (workflow_run_event(db, run_id, event, actor, &err) == 0) {
        sim_trace("%s is %s", run_id, names[event]);
        return true;
    }
    return err.code != ERR_UNAVAILABLE;
}

void workflows_act(struct db *db, const char *actor)
{
    static const enum workflow_event events[] = {
        WORKFLOW_EVENT_PAUSE,  WORKFLOW_EVENT_PAUSE,  WORKFLOW_EVENT_RESUME, WORKFLOW_EVENT_RESUME,
        WORKFLOW_EVENT_RESUME, WORKFLOW_EVENT_RESUME, WORKFLOW_EVENT_RETRY,  WORKFLOW_EVENT_CANCEL};
    const struct workflow_row *run = NULL;

    if (!start_all(db) || store_count(TABLE_WORKFLOWS) == 0)
        return;
    run = see(NULL, store_row(TABLE_WORKFLOWS, (size_t)sim_below(store_count(TABLE_WORKFLOWS))));
    if (run != NULL && sim_chance(40 * PER_CENT))
        (void)wish(db, run->id, events[sim_below(ARRAY_LEN(events))], actor);
}

bool workflows_settle(struct db *db, const char *actor)
{
    bool settled = start_all(db);

    for (size_t i = 0; i < store_count(TABLE_WORKFLOWS); i++) {
        const struct workflow_row *run = see(NULL, store_row(TABLE_WORKFLOWS, i));
        if (run != NULL && is(run->status, "paused"))
            settled = wish(db, run->id, WORKFLOW_EVENT_RESUME, actor) && settled;
    }
    return settled;
}
