/* See workflow_start.h. */
#include "common/workflow_start.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/submit_bridge.h"

#define NUMBER_SIZE 24

static const char WAITING_ITEMS[] =
    "SELECT g, coalesce(i.job_id, ''), coalesce(j.status, ''), coalesce(j.deadline < now(), false)"
    " FROM generate_series(0, $3::int - 1) g LEFT JOIN workflow_items i ON i.run_id = $1"
    "  AND i.step = $2::int AND i.item = g LEFT JOIN jobs j ON j.id = i.job_id"
    " WHERE i.item IS NULL OR (i.state = 'failed' AND i.attempt < $4::int)"
    " ORDER BY g LIMIT $5::int";

static const char STORE_ITEM[] =
    "INSERT INTO workflow_items (run_id, step, item, attempt, job_id, state, error)"
    " VALUES ($1, $2::int, $3::int, $4::int, $5, $6, $7) ON CONFLICT (run_id, step, item)"
    " DO UPDATE SET attempt = excluded.attempt, job_id = excluded.job_id, state = excluded.state,"
    " error = excluded.error";

struct workflow_starter {
    struct db *db;
    const struct submit_settings *settings;
    const char *submitted_by;
    const char *trace_id;
    struct workflow *workflow;
};

int workflow_starter_new(struct db *db, const struct workflow_starter_options *options,
                         struct workflow_starter **out, struct error *err)
{
    auto_workflow_starter *starter = xcalloc(1, sizeof *starter);
    auto_json *json = json_loads(options->definition, 0, NULL);
    struct field_problem problem = {0};

    *starter = (struct workflow_starter){.db = db,
                                         .settings = options->settings,
                                         .submitted_by = options->submitted_by,
                                         .trace_id = options->trace_id};
    if (workflow_parse(json, &starter->workflow, &problem, err) < 0)
        return error_wrap(err, "stored definition");
    *out = STEAL(starter);
    return 0;
}

void workflow_starter_free(struct workflow_starter *starter)
{
    if (starter == NULL)
        return;
    workflow_free(starter->workflow);
    free(starter);
}

struct item { /* one that is started */
    struct workflow_starter *s;
    const struct workflow_start *start;
    const char *number;
    const char *old_job; /* of an earlier attempt; "": none */
    const char *old_status;
    bool old_late; /* its deadline has passed: it cannot be tried again, ever */
    /* of the new one */
    char job_id[64];
    struct field_problem problem;
};

/* ---- one request ---- */

static int submit_export(struct item *item, const json_t *element,
                         const struct submit_origin *origin, struct error *err)
{
    const struct workflow_starter *s = item->s;
    auto_submit_request *request = NULL;
    bool existing = false;

    if (submit_prepare(s->settings, s->db, element, &request, &item->problem, err) < 0)
        return -1;
    return submit_store(s->db, request, origin, item->job_id, &existing, err);
}

static int prepare_bridge(struct item *item, const json_t *element, struct bridge_request **out,
                          struct error *err)
{
    const struct workflow_starter *s = item->s;
    const struct workflow_step *step = &s->workflow->steps[item->start->step];
    const struct submit_step_facts facts = {s->workflow->name, item->start->run_id, step->id};

    if (step->type == WORKFLOW_CONVERT)
        return submit_convert_prepare(s->settings, element, out, &item->problem, err);
    if (step->type == WORKFLOW_IMPORT)
        return submit_import_prepare(s->settings, s->db, element, out, &item->problem, err);
    return submit_step_prepare(s->settings, &facts, element, out, &item->problem, err);
}

static int submit_bridge(struct item *item, const json_t *element,
                         const struct submit_origin *origin, struct error *err)
{
    const struct workflow_starter *s = item->s;
    auto_bridge_request *request = NULL;

    if (prepare_bridge(item, element, &request, err) < 0)
        return -1;
    return submit_bridge_store(s->db, request, origin, item->job_id, err);
}

static int submit_item(struct item *item, struct error *err)
{
    const struct workflow_starter *s = item->s;
    const struct submit_origin origin = {.submitted_by = s->submitted_by,
                                         .trace_id = s->trace_id,
                                         .workflow_run_id = item->start->run_id};
    auto_json *element =
        workflow_item(s->workflow, item->start->step, (uint32_t)strtoul(item->number, NULL, 10));

    switch (s->workflow->steps[item->start->step].type) {
    case WORKFLOW_BATCH:
    case WORKFLOW_JOB:
        return submit_export(item, element, &origin, err);
    case WORKFLOW_CONVERT:
    case WORKFLOW_IMPORT:
    case WORKFLOW_SCRIPT:
    case WORKFLOW_WEBHOOK:
        return submit_bridge(item, element, &origin, err);
    case WORKFLOW_WAIT:
        break;
    }
    return error_set(err, ERR_INTERNAL, "a wait has no items");
}

/* ---- items ---- */

static int store_item(const struct item *item, const char *job_id, const char *state,
                      const char *why, struct error *err)
{
    char step[NUMBER_SIZE];
    char attempt[NUMBER_SIZE];

    (void)snprintf(step, sizeof step, "%" PRIu32, item->start->step);
    (void)snprintf(attempt, sizeof attempt, "%" PRIu32, item->start->attempt);
    return db_exec(item->s->db, STORE_ITEM,
                   DB_PARAMS(item->start->run_id, step, item->number, attempt, job_id, state, why),
                   NULL, err);
}

/* Refused by what was asked for, not by the moment. */
static bool is_refusal(const struct field_problem *problem, const struct error *why)
{
    return problem->status != 0 || why->code == ERR_CONFLICT || why->code == ERR_NOT_FOUND ||
           why->code == ERR_INVALID;
}

static int start_new(struct item *item, bool *out_started, struct error *err)
{
    struct error why = ERROR_NONE;

    if (submit_item(item, &why) == 0) {
        *out_started = true;
        return store_item(item, item->job_id, "active", "", err);
    }
    if (!is_refusal(&item->problem, &why)) {
        *err = why;
        return -1;
    }
    return store_item(item, "", "failed", why.message, err);
}

/* The user may have tried the job again himself: then what became of that counts. */
static int start_again(struct item *item, bool *out_started, struct error *err)
{
    bool ended =
        strcmp(item->old_status, "failed") == 0 || strcmp(item->old_status, "cancelled") == 0;
    struct error why = ERROR_NONE;

    if (ended && item->old_late) {
        return store_item(
            item, item->old_job, "failed",
            "the deadline of its job has passed: start the workflow anew with another "
            "one",
            err);
    }
    if (ended) {
        if (job_store_retry(item->s->db, item->old_job, item->s->submitted_by, &why) < 0) {
            if (why.code == ERR_CONFLICT)
                return 0;
            *err = why;
            return -1;
        }
        *out_started = true;
    }
    return store_item(item, item->old_job, "active", "", err);
}

int workflow_starter_run(struct workflow_starter *s, const struct workflow_start *start,
                         bool *out_started, struct error *err)
{
    auto_pgresult *rows = NULL;
    char step[NUMBER_SIZE];
    char items[NUMBER_SIZE];
    char attempt[NUMBER_SIZE];
    char count[NUMBER_SIZE];

    if (start->step >= s->workflow->step_count)
        return error_set(err, ERR_INTERNAL, "the definition has no step %u", start->step);
    (void)snprintf(step, sizeof step, "%" PRIu32, start->step);
    (void)snprintf(items, sizeof items, "%" PRIu32, s->workflow->steps[start->step].item_count);
    (void)snprintf(attempt, sizeof attempt, "%" PRIu32, start->attempt);
    (void)snprintf(count, sizeof count, "%" PRIu32, start->count);
    if (db_exec(s->db, WAITING_ITEMS, DB_PARAMS(start->run_id, step, items, attempt, count), &rows,
                err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        struct item item = {.s = s,
                            .start = start,
                            .number = db_text(rows, i, 0),
                            .old_job = db_text(rows, i, 1),
                            .old_status = db_text(rows, i, 2),
                            .old_late = db_bool(rows, i, 3)};
        int rc = item.old_status[0] == '\0' ? start_new(&item, out_started, err)
                                            : start_again(&item, out_started, err);
        if (rc < 0)
            return -1;
    }
    return 0;
}
