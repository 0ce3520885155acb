/* A schedule: when something is done again, and what becomes of times that were missed or that
 * come while the run before is still under way. Pure; the database is schedule_store.h's, runs are
 * schedule_run.h's. */
#ifndef COMMON_SCHEDULE_H
#define COMMON_SCHEDULE_H

#include "common/cron.h"
#include "common/fields.h"
#include "common/id.h"

#define SCHEDULE_GRACE_S       60 /* later than that (a restart, a new leader), a run is late */
#define SCHEDULE_CATCH_UP      10 /* misfire run_all: how many, unless misfire_limit says so */
#define SCHEDULE_CATCH_UP_MAX  100
#define SCHEDULE_MISSED_ROWS   100 /* of one catching up: more have no row of their own */
#define SCHEDULE_NEXT_COUNT    5
#define SCHEDULE_JITTER_MAX_MS UINT64_C(86400000)
#define SCHEDULE_NAME_MAX      128
#define SCHEDULE_AGE_DAYS_MAX  36500
#define SCHEDULE_RETENTION_MAX 1000000

enum schedule_misfire { MISFIRE_RUN_ONCE, MISFIRE_SKIP, MISFIRE_RUN_ALL };
enum schedule_overlap { OVERLAP_SKIP, OVERLAP_QUEUE, OVERLAP_ALLOW };

/* Members of a request that say when and how, for tables of fields; what is done is added by who
 * uses them (job_template of a schedule, vm_filter of a policy). */
#define SCHEDULE_FIELDS                                                           \
    {"name", {NULL}, FIELD_TEXT, 1, SCHEDULE_NAME_MAX, NULL},                     \
        {"description", {NULL}, FIELD_TEXT, 0, 1000, NULL},                       \
        {"schedule", {"cron", "cron_expr"}, FIELD_TEXT, 1, CRON_BYTES_MAX, NULL}, \
        {"timezone", {NULL}, FIELD_TEXT, 1, TIME_ZONE_NAME_MAX, NULL},            \
        {"enabled", {NULL}, FIELD_BOOL, 0, 0, NULL},                              \
        {"retention", {NULL}, FIELD_OBJECT, 0, 0, NULL},                          \
        {"tags", {NULL}, FIELD_TEXT_LIST, 0, 100, NULL},                          \
        {"overlap", {NULL}, FIELD_TEXT, 1, 16, NULL},                             \
        {"misfire", {NULL}, FIELD_TEXT, 1, 16, NULL},                             \
        {"misfire_limit", {NULL}, FIELD_NUMBER, 1, SCHEDULE_CATCH_UP_MAX, NULL},  \
        {"jitter", {NULL}, FIELD_DURATION, 0, SCHEDULE_JITTER_MAX_MS, NULL},      \
        {"time_windows", {NULL}, FIELD_ANY, 0, 0, NULL},                          \
        {"on_window_end", {NULL}, FIELD_TEXT, 1, 16, NULL},                       \
        {"depends_on", {NULL}, FIELD_ANY, 0, 0, NULL},                            \
        {"notify_on_start", {NULL}, FIELD_BOOL, 0, 0, NULL},                      \
        {"notify_on_success", {NULL}, FIELD_BOOL, 0, 0, NULL},                    \
        {"notify_on_failure", {NULL}, FIELD_BOOL, 0, 0, NULL},                    \
        {"priority", {NULL}, FIELD_ANY, 0, 0, NULL},                              \
    {                                                                             \
        "retry", {NULL}, FIELD_ANY, 0, 0, NULL                                    \
    }

struct schedule {
    char id[ID_SIZE];
    char policy_id[ID_SIZE]; /* "": it has a job_template */
    char created_by[128];
    json_t *fields; /* canonical SCHEDULE_FIELDS and job_template */
    /* From schedule_check(): */
    struct cron cron;
    struct time_zone *zone;
    enum schedule_misfire misfire;
    enum schedule_overlap overlap;
    /* From the row: */
    int64_t next_s; /* due next, seconds since 1970; 0: never */
    int64_t now_s;  /* the database's clock */
};
void schedule_free(struct schedule *schedule);
DEFINE_AUTO(schedule, struct schedule, schedule_free)
#define auto_schedule CLEANUP(schedule_auto) struct schedule

/* Members of changes take the place of the schedule's; the limit of another misfire rule goes with
 * it. schedule_check() afterwards. */
void schedule_change(struct schedule *schedule, const json_t *changes);

/* Checks the members of schedule->fields but job_template, fills what follows from them; a time
 * zone that is not given becomes the system's. problem->status stays 0 when tzdata is missing. */
MUST_CHECK int schedule_check(struct schedule *schedule, struct field_problem *problem,
                              struct error *err);
/* A random delay within the jitter, milliseconds. */
int64_t schedule_draw_delay_ms(const struct schedule *schedule);

/* What is to be done about the times from next_s on that have come. */
struct schedule_plan {
    bool fires;
    int64_t due_s;                        /* of the run that starts now */
    int64_t late_s;                       /* by how much, when it was missed; else 0 */
    int64_t missed[SCHEDULE_MISSED_ROWS]; /* that get no run, oldest first */
    size_t missed_count;
    uint64_t missed_total; /* more than missed_count: the older ones are not listed */
    int64_t next_s;        /* next_s from now on; may have come as well */
};
/* next_s <= now_s. Only the newest misfire_limit missed times of run_all are run. */
MUST_CHECK int schedule_plan(const struct schedule *schedule, struct schedule_plan *out,
                             struct error *err);

#endif
