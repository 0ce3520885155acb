/* See schedule.h. */
#include "common/schedule.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/schedule_depends.h"

#define DUES_KEPT (2 * SCHEDULE_MISSED_ROWS + SCHEDULE_CATCH_UP_MAX)
#define DUES_MAX  600000                    /* more than a year of minutes */
#define LOOK_BACK (INT64_C(31) * 24 * 3600) /* where counting goes on when there are more */

static const char *const misfires[] = {"run_once", "skip", "run_all", NULL};
static const char *const overlaps[] = {"skip", "queue", "allow", NULL};

static const struct field retention_fields[] = {
    {"count", {NULL}, FIELD_NUMBER, 1, SCHEDULE_RETENTION_MAX, NULL},
    {"age_days", {NULL}, FIELD_NUMBER, 1, SCHEDULE_AGE_DAYS_MAX, NULL},
    {"size_bytes", {NULL}, FIELD_NUMBER, 1, INT64_MAX, NULL},
    {0},
};

void schedule_free(struct schedule *schedule)
{
    if (schedule == NULL)
        return;
    json_decref(schedule->fields);
    time_zone_free(schedule->zone);
    free(schedule);
}

/* Index of the member in words; 0 when it is not given. */
static int word_index(const json_t *fields, const char *name, const char *const *words,
                      unsigned int *out, struct field_problem *problem, struct error *err)
{
    const char *word = field_text(fields, name, words[0]);

    for (*out = 0; words[*out] != NULL; (*out)++) {
        if (strcmp(word, words[*out]) == 0)
            return 0;
    }
    return field_fail(problem, 400, name, err, ERR_INVALID,
                      "'%s': '%.32s' is not known, it is %s, %s or %s", name, word, words[0],
                      words[1], words[2]);
}

static int check_time(struct schedule *schedule, struct field_problem *problem, struct error *err)
{
    const char *text = field_text(schedule->fields, "schedule", NULL);
    const char *zone = field_text(schedule->fields, "timezone", NULL);
    char system[TIME_ZONE_NAME_MAX + 1];
    struct error why = ERROR_NONE;

    if (text == NULL)
        return field_fail(problem, 400, "schedule", err, ERR_INVALID, "'schedule' is missing");
    if (cron_parse(text, &schedule->cron, &why) < 0) {
        return field_fail(problem, 400, "schedule", err, why.code, "'schedule': %.400s",
                          why.message);
    }
    if (zone == NULL) {
        time_zone_system_name(system);
        json_set_text(schedule->fields, "timezone", system);
        zone = system;
    }
    time_zone_free(STEAL(schedule->zone));
    if (time_zone_load(zone, &schedule->zone, &why) == 0)
        return 0;
    if (why.code == ERR_INVALID || why.code == ERR_NOT_FOUND) {
        return field_fail(problem, 400, "timezone", err, ERR_INVALID, "'timezone': %.400s",
                          why.message);
    }
    *err = why;
    return -1;
}

/* Members that are not a schedule's. Nobody is told of one schedule: who listens is told of all. */
static int check_foreign(json_t *fields, struct field_problem *problem, struct error *err)
{
    static const char *const of_job[] = {"priority", "retry"};
    static const char *const of_webhooks[][2] = {
        {"notify_on_start", "schedule.triggered"},
        {"notify_on_success", "job.completed"},
        {"notify_on_failure", "job.failed and schedule.missed"},
    };

    for (size_t i = 0; i < ARRAY_LEN(of_job); i++) {
        if (json_object_get(fields, of_job[i]) != NULL) {
            return field_fail(problem, 400, of_job[i], err, ERR_INVALID,
                              "'%s' is a property of the job: put it into 'job_template'",
                              of_job[i]);
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(of_webhooks); i++) {
        const char *name = of_webhooks[i][0];
        if (field_bool(fields, name, false)) {
            return field_fail(problem, 422, name, err, ERR_NOT_AVAILABLE,
                              "'%s' is not available, a schedule knows no receivers: let a webhook "
                              "(webhooks.endpoints of the configuration) have the events %s, whose "
                              "'schedule_id' tells the schedule",
                              name, of_webhooks[i][1]);
        }
        (void)json_object_del(fields, name);
    }
    return 0;
}

int schedule_check(struct schedule *schedule, struct field_problem *problem, struct error *err)
{
    json_t *fields = schedule->fields;
    unsigned int misfire = 0;
    unsigned int overlap = 0;

    if (check_foreign(fields, problem, err) < 0)
        return -1;
    if (json_object_get(fields, "name") == NULL)
        return field_fail(problem, 400, "name", err, ERR_INVALID, "'name' is missing");
    if (check_time(schedule, problem, err) < 0 ||
        word_index(fields, "misfire", misfires, &misfire, problem, err) < 0 ||
        word_index(fields, "overlap", overlaps, &overlap, problem, err) < 0 ||
        schedule_depends_check(fields, problem, err) < 0 ||
        fields_member(fields, "retention", "retention.", retention_fields, problem, err) < 0)
        return -1;
    if (field_duration_ms(fields, "jitter", 0) % 1000 != 0) {
        return field_fail(problem, 400, "jitter", err, ERR_INVALID,
                          "'jitter' must be a whole number of seconds");
    }
    schedule->misfire = (enum schedule_misfire)misfire;
    schedule->overlap = (enum schedule_overlap)overlap;
    if (json_object_get(fields, "misfire_limit") != NULL && schedule->misfire != MISFIRE_RUN_ALL) {
        return field_fail(problem, 400, "misfire_limit", err, ERR_INVALID,
                          "'misfire_limit' means nothing without 'misfire': 'run_all'");
    }
    return 0;
}

void schedule_change(struct schedule *schedule, const json_t *changes)
{
    (void)json_object_update(schedule->fields, json_unconst(changes));
    if (json_object_get(changes, "misfire") != NULL &&
        json_object_get(changes, "misfire_limit") == NULL)
        (void)json_object_del(schedule->fields, "misfire_limit");
}

int64_t schedule_draw_delay_ms(const struct schedule *schedule)
{
    int64_t jitter_ms = field_duration_ms(schedule->fields, "jitter", 0);
    uint64_t random = 0;

    if (jitter_ms == 0)
        return 0;
    random_bytes(&random, sizeof random);
    return (int64_t)(random % (uint64_t)(jitter_ms + 1));
}

struct dues { /* the newest ones that have come */
    int64_t at[DUES_KEPT];
    size_t count;
    uint64_t total;
    int64_t next_s; /* the first that has not */
};

static void keep(struct dues *dues, int64_t at)
{
    if (dues->count == DUES_KEPT) {
        memmove(dues->at, dues->at + 1, (DUES_KEPT - 1) * sizeof dues->at[0]);
        dues->count--;
    }
    dues->at[dues->count++] = at;
    dues->total++;
}

static int collect(const struct schedule *schedule, struct dues *dues, struct error *err)
{
    int64_t at = schedule->next_s;

    while (at <= schedule->now_s) {
        keep(dues, at);
        if (dues->total == DUES_MAX && at < schedule->now_s - LOOK_BACK)
            at = schedule->now_s - LOOK_BACK;
        if (cron_next(&schedule->cron, schedule->zone, at, &at, err) < 0)
            return -1;
    }
    dues->next_s = at;
    return 0;
}

/* The first of those that get a run; dues->count: none. */
static size_t first_to_run(const struct schedule *schedule, const struct dues *dues,
                           int64_t late_before)
{
    size_t in_time = 0;
    size_t limit = (size_t)field_number(schedule->fields, "misfire_limit", SCHEDULE_CATCH_UP);

    while (in_time < dues->count && dues->at[in_time] < late_before)
        in_time++;
    switch (schedule->misfire) {
    case MISFIRE_SKIP:
        return in_time;
    case MISFIRE_RUN_ONCE: /* one that is in time stands for the missed ones */
        return in_time < dues->count ? in_time : dues->count - 1;
    case MISFIRE_RUN_ALL:
        return in_time > limit ? in_time - limit : 0;
    }
    return in_time;
}

int schedule_plan(const struct schedule *schedule, struct schedule_plan *out, struct error *err)
{
    int64_t jitter_s = field_duration_ms(schedule->fields, "jitter", 0) / 1000;
    int64_t late_before = schedule->now_s - SCHEDULE_GRACE_S - jitter_s;
    struct dues dues = {.count = 0};
    size_t first;
    size_t listed;

    assert(schedule->next_s > 0 && schedule->next_s <= schedule->now_s);
    *out = (struct schedule_plan){0};
    if (collect(schedule, &dues, err) < 0)
        return -1;
    first = first_to_run(schedule, &dues, late_before);
    listed = first < SCHEDULE_MISSED_ROWS ? first : SCHEDULE_MISSED_ROWS;
    memcpy(out->missed, dues.at + first - listed, listed * sizeof out->missed[0]);
    out->missed_count = listed;
    out->missed_total = dues.total - (dues.count - first);
    out->next_s = dues.next_s;
    if (first == dues.count)
        return 0;
    out->fires = true;
    out->due_s = dues.at[first];
    if (out->due_s < late_before)
        out->late_s = schedule->now_s - out->due_s;
    if (first + 1 < dues.count)
        out->next_s = dues.at[first + 1];
    return 0;
}
