/* See schedule_depends.h. */
#include "common/schedule_depends.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"

#define NUMBER_SIZE 24

/* A policy is named by its own id or by its schedule's. $1: the list. */
#define NAMES(s, x)                                                                    \
    s ".id = " x "->>'schedule_id' OR (" s ".policy_id <> '' AND " s ".policy_id = " x \
      "->>'schedule_id')"

static const char KNOWN[] =
    "SELECT x->>'schedule_id', x->>'job_id' FROM jsonb_array_elements($1::jsonb) x WHERE NOT"
    " CASE WHEN x ? 'schedule_id' THEN EXISTS (SELECT 1 FROM schedules s WHERE " NAMES(
        "s",
        "x") ")"
             " ELSE EXISTS (SELECT 1 FROM jobs j WHERE j.id = x->>'job_id')"
             "  OR EXISTS (SELECT 1 FROM archived_jobs j WHERE j.id = x->>'job_id') END LIMIT 1";

/* $2: whose list it is. UNION ends at what was seen. */
static const char CIRCLE[] =
    "WITH RECURSIVE r AS (SELECT s.id FROM jsonb_array_elements($1::jsonb) x JOIN schedules s"
    "  ON " NAMES("s", "x") " UNION SELECT s.id FROM r JOIN schedules f ON f.id = r.id CROSS JOIN"
                            "  LATERAL jsonb_array_elements(coalesce(f.fields->'depends_on', "
                            "'[]')) x JOIN schedules s"
                            "  ON " NAMES("s", "x") ") SELECT 1 FROM r WHERE id = $2";

/* A schedule is what its last run is: under way, about to be, or how it ended. NULL: deleted. */
static const char STATES[] =
    "SELECT CASE WHEN x ? 'job_id' THEN 'job ' || (x->>'job_id') ELSE 'schedule ' ||"
    "  (x->>'schedule_id') END, x->>'required_state', x->>'timeout',"
    " CASE WHEN x ? 'job_id' THEN coalesce((SELECT j.status FROM jobs j WHERE j.id = x->>'job_id'),"
    "  (SELECT j.status FROM archived_jobs j WHERE j.id = x->>'job_id'))"
    " ELSE (SELECT CASE WHEN EXISTS (SELECT 1 FROM schedule_runs r WHERE r.schedule_id = s.id"
    "   AND r.status = 'running') THEN 'running' WHEN EXISTS (SELECT 1 FROM schedule_runs r"
    "   WHERE r.schedule_id = s.id AND r.status = 'queued') THEN 'queued'"
    "  WHEN s.enabled AND s.next_run_at <= now() THEN 'due' ELSE coalesce((SELECT CASE r.status"
    "   WHEN 'ok' THEN 'completed' ELSE r.status END FROM schedule_runs r WHERE"
    "   r.schedule_id = s.id ORDER BY r.seq DESC LIMIT 1), 'without a run') END"
    "  FROM schedules s WHERE " NAMES(
        "s", "x") ") END"
                  " FROM jsonb_array_elements($1::jsonb) WITH ORDINALITY d(x, n) ORDER BY n";

static const char *const states[] = {"completed", "failed", "final", NULL};

static const struct field fields_of_one[] = {
    {"schedule_id", {NULL}, FIELD_TEXT, 1, 63, NULL},
    {"job_id", {NULL}, FIELD_TEXT, 1, 63, NULL},
    {"required_state", {"state"}, FIELD_TEXT, 1, 16, NULL},
    {"timeout", {NULL}, FIELD_DURATION, 1000, SCHEDULE_DEPENDS_WAIT_MAX_MS, NULL},
    {0},
};

/* ---- what is asked for ---- */

static int take_one(const json_t *item, json_t *list, struct field_problem *problem,
                    struct error *err)
{
    auto_json *one = NULL;
    autofree char *timeout = NULL;

    if (!json_is_object(item)) {
        return field_fail(problem, 400, "depends_on", err, ERR_INVALID,
                          "'depends_on' must be a list of objects with schedule_id or job_id");
    }
    if (fields_canonical(fields_of_one, "depends_on.", item, &one, problem, err) < 0)
        return -1;
    if ((json_object_get(one, "schedule_id") == NULL) == (json_object_get(one, "job_id") == NULL)) {
        return field_fail(problem, 400, "depends_on", err, ERR_INVALID,
                          "'depends_on' needs either 'schedule_id' or 'job_id' in each object");
    }
    if (!word_in(field_text(one, "required_state", states[0]), states)) {
        return field_fail(problem, 400, "depends_on.required_state", err, ERR_INVALID,
                          "'depends_on.required_state' must be completed, failed or final");
    }
    if (json_object_get(one, "required_state") == NULL)
        json_set_text(one, "required_state", states[0]);
    /* a form that is read again as the same */
    timeout = xasprintf("%" PRId64 "s",
                        field_duration_ms(one, "timeout", SCHEDULE_DEPENDS_WAIT_MS) / 1000);
    json_set_text(one, "timeout", timeout);
    (void)json_array_append(list, one);
    return 0;
}

int schedule_depends_check(json_t *fields, struct field_problem *problem, struct error *err)
{
    const json_t *given = json_object_get(fields, "depends_on");
    auto_json *list = json_array();
    const json_t *item;
    size_t i;

    if (given == NULL)
        return 0;
    if (!json_is_array(given) || json_array_size(given) > SCHEDULE_DEPENDS_MAX) {
        return field_fail(problem, 400, "depends_on", err, ERR_INVALID,
                          "'depends_on' must be a list of at most %d objects",
                          SCHEDULE_DEPENDS_MAX);
    }
    json_array_foreach(given, i, item)
    {
        if (take_one(item, list, problem, err) < 0)
            return -1;
    }
    if (json_array_size(list) == 0) {
        (void)json_object_del(fields, "depends_on");
    } else {
        (void)json_object_set(fields, "depends_on", list);
    }
    return 0;
}

int schedule_depends_known(struct db *db, const struct schedule *schedule,
                           struct field_problem *problem, struct error *err)
{
    const json_t *list = json_object_get(schedule->fields, "depends_on");
    autofree char *text = list == NULL ? NULL : json_text(list);
    auto_pgresult *unknown = NULL;
    auto_pgresult *circle = NULL;

    if (list == NULL)
        return 0;
    if (db_exec(db, KNOWN, DB_PARAMS(text), &unknown, err) < 0 ||
        db_exec(db, CIRCLE, DB_PARAMS(text, schedule->id), &circle, err) < 0)
        return -1;
    if (PQntuples(unknown) > 0) {
        bool job = db_is_null(unknown, 0, 0);
        return field_fail(problem, 422, job ? "depends_on.job_id" : "depends_on.schedule_id", err,
                          ERR_INVALID, "'depends_on': %s '%.64s' does not exist",
                          job ? "job" : "schedule or policy", db_text(unknown, 0, job ? 1 : 0));
    }
    if (PQntuples(circle) == 0)
        return 0;
    return field_fail(problem, 422, "depends_on.schedule_id", err, ERR_INVALID,
                      "'depends_on': the schedule would wait for itself");
}

/* ---- what a run does ---- */

static bool has_ended(const char *status)
{
    static const char *const ends[] = {"completed", "failed", "cancelled",
                                       "skipped",   "missed", NULL};

    return word_in(status, ends);
}

static int64_t timeout_of(const char *text)
{
    return strtoll(text, NULL, 10) * 1000; /* take_one() wrote it */
}

/* One row of STATES. */
static enum schedule_wait look_at(const PGresult *rows, int row, int64_t waited_ms,
                                  char why[ERROR_MESSAGE_MAX])
{
    const char *what = db_text(rows, row, 0);
    const char *required = db_text(rows, row, 1);
    const char *status = db_text(rows, row, 3);
    bool ended = has_ended(status);

    if (db_is_null(rows, row, 3)) {
        (void)snprintf(why, ERROR_MESSAGE_MAX, "%.80s, which it waits for, was deleted", what);
        return SCHEDULE_HOPELESS;
    }
    if (strcmp(required, status) == 0 || (ended && strcmp(required, "final") == 0))
        return SCHEDULE_READY;
    if (ended) {
        (void)snprintf(why, ERROR_MESSAGE_MAX, "it waits for %.80s to end as %s, but that is %s",
                       what, required, status);
        return SCHEDULE_HOPELESS;
    }
    if (waited_ms >= timeout_of(db_text(rows, row, 2))) {
        (void)snprintf(why, ERROR_MESSAGE_MAX, "%.80s was not %s within %s: it is %s", what,
                       required, db_text(rows, row, 2), status);
        return SCHEDULE_HOPELESS;
    }
    (void)snprintf(why, ERROR_MESSAGE_MAX, "waits for %.80s to be %s, it is %s", what, required,
                   status);
    return SCHEDULE_WAITS;
}

int schedule_depends_look(struct db *db, const struct schedule *schedule, int64_t waited_ms,
                          enum schedule_wait *out, char why[ERROR_MESSAGE_MAX], struct error *err)
{
    const json_t *list = json_object_get(schedule->fields, "depends_on");
    autofree char *text = list == NULL ? NULL : json_text(list);
    auto_pgresult *rows = NULL;

    *out = SCHEDULE_READY;
    why[0] = '\0';
    if (list == NULL)
        return 0;
    if (db_exec(db, STATES, DB_PARAMS(text), &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows) && *out != SCHEDULE_HOPELESS; i++) {
        char text_of_one[ERROR_MESSAGE_MAX] = "";
        enum schedule_wait one = look_at(rows, i, waited_ms, text_of_one);
        if (one > *out) {
            *out = one;
            memcpy(why, text_of_one, ERROR_MESSAGE_MAX);
        }
    }
    return 0;
}
