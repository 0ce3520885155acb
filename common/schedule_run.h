/* Runs of a schedule: one row for each time it was due, written in one transaction with the jobs
 * that the run makes. All functions but schedule_runs_settle() work in the caller's transaction and
 * want the schedule's row locked (schedule_store.h). */
#ifndef COMMON_SCHEDULE_RUN_H
#define COMMON_SCHEDULE_RUN_H

#include "common/schedule_store.h"
#include "common/submit_job.h"

#define SCHEDULE_RUNS_KEPT     1000 /* per schedule: older ones are forgotten */
#define SCHEDULE_ERRORS_LISTED 200  /* of a run: VMs that no job could be made for */
#define SCHEDULE_RUNS_QUEUED   100  /* behind a run that does not end, with overlap "queue" */

struct schedule_wish {
    int64_t due_s; /* 0: now, because somebody asked for it */
    bool manual;
    const char *reason;  /* of the run, e.g. that it is late; "" */
    const char *refused; /* NULL, or why it cannot run: its row tells that, nothing else is done */
};

struct schedule_outcome {
    char run_id[ID_SIZE]; /* "": this due time has its run already */
    const char *status;   /* "running", "queued", "skipped", "failed" */
    char reason[ERROR_MESSAGE_MAX];
    json_t *job_ids;      /* array; NULL as long as nothing was begun */
    bool needs_inventory; /* of a policy: a worker reads it now, the run stays queued */
};
void schedule_outcome_release(struct schedule_outcome *outcome);
#define auto_schedule_outcome CLEANUP(schedule_outcome_release) struct schedule_outcome

/* Starts, queues or skips a run, as the schedule's overlap says. Fails only with what is not the
 * jobs' fault; then nothing may be committed: roll back, and come again or with `refused`. */
MUST_CHECK int schedule_run_begin(struct db *db, const struct submit_settings *settings,
                                  const struct schedule *schedule, const struct schedule_wish *wish,
                                  struct schedule_outcome *out, struct error *err);
/* Starts the oldest queued run if none is under way, or skips it when what it waits for will not
 * come; *out stays empty when there is none, or when it waits on. refused: as in a wish. */
MUST_CHECK int schedule_run_dequeue(struct db *db, const struct submit_settings *settings,
                                    const struct schedule *schedule, const char *refused,
                                    struct schedule_outcome *out, struct error *err);
/* Rows of what the plan leaves out. */
MUST_CHECK int schedule_runs_missed(struct db *db, const struct schedule *schedule,
                                    const struct schedule_plan *plan, struct error *err);
/* Ends runs whose jobs have all ended, each in a transaction of its own (or in the caller's), and
 * queues the clean-ups that retention asks for. These leave alone what belongs to VMs that the run
 * did not export. schedule_id: NULL for all. */
MUST_CHECK int schedule_runs_settle(struct db *db, const struct retry_config *retry,
                                    const char *schedule_id, struct error *err);
/* Ids of schedules that have a queued run and none under way that it has to wait for. New
 * reference. */
MUST_CHECK int schedule_runs_waiting(struct db *db, json_t **out, struct error *err);

#define SCHEDULE_SAMPLE_RUN_DIR \
    "20260301T020000Z-00000000" /* as long as that of any run, for checks */

struct schedule_source { /* what a run's jobs are made from; borrowed */
    struct db *db;
    const struct submit_settings *settings;
    const struct schedule *schedule;
    const char *run_dir; /* name of the run's own directory */
    const json_t *names; /* of a policy's VMs: how many have each; NULL: nobody shares one */
};
/* The job of a run as a submit takes it: the template with the run's own directory
 * <output_path>/<schedule id>[/<run_dir>]; restore points share one. ERR_INVALID and the like with
 * problem: the template's fault. */
MUST_CHECK int schedule_run_prepare(const struct schedule_source *source, const json_t *element,
                                    struct submit_request **out, struct field_problem *problem,
                                    struct error *err);
/* The same for many, each decided alone, as submit_prepare_all does. */
MUST_CHECK int schedule_run_prepare_all(const struct schedule_source *source,
                                        const json_t *const *elements, size_t count,
                                        struct submit_prepared *out, struct error *err);
/* Retention needs files on the server: 422 when the prepared job leaves none there. */
MUST_CHECK int schedule_check_retention(const struct schedule *schedule,
                                        const struct submit_request *request,
                                        struct field_problem *problem, struct error *err);

#endif
