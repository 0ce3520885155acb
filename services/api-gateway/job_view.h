/* Jobs as the API shows them: rows of `jobs` and the newest progress become the objects of
 * rest-api.md 3.4 and 3.5. */
#ifndef GATEWAY_JOB_VIEW_H
#define GATEWAY_JOB_VIEW_H

#include "handler_util.h"

/* The columns that job_view and progress_view read, in their order; the table's name is j. */
#define JOB_COLUMNS                                                                                \
    "j.id, j.name, j.kind, j.provider, j.vm_path, j.vm_name, j.output_path, j.format, "            \
    "j.definition, j.status, j.phase, j.priority, j.pending_reason, j.cancel_reason, j.attempt, "  \
    "j.max_attempts, j.error, j.error_code, j.result, j.progress, j.submitted_by, j.trace_id, "    \
    "j.worker_id, " SQL_TIME("j.created_at") ", " SQL_TIME("j.started_at") ", " SQL_TIME(          \
        "j.completed_at") ", " SQL_TIME("j.updated_at") ", extract(epoch FROM "                    \
                                                        "coalesce(j.completed_at, now()) - "       \
                                                        "j.started_at)::bigint, j.seq, "           \
                                                        "j.tableoid = 'archived_jobs'::regclass, " \
                                                        "j.schedule_id, j.policy_id, "             \
                                                        "j.workflow_run_id, " SQL_TIME(            \
                                                            "CASE WHEN "                           \
                                                            "j.status = 'pending' AND NOT "        \
                                                            "j.window_open AND j.window_at > "     \
                                                            "now() THEN j.window_at END")
#define JOB_COLUMN_SEQ 28

/* The API knows five states; paused and cancelling are running with a substatus (3.3). */
const char *job_status_shown(const char *status);

/* Newest progress: Redis for a job that runs, else the row's; NULL-safe in every member. New
 * reference. */
json_t *progress_view(const struct gateway *gateway, const PGresult *rows, int row);
/* The job object with its progress. New reference. */
json_t *job_view(const struct gateway *gateway, const PGresult *rows, int row);
/* One row of JOB_COLUMNS by id; ERR_NOT_FOUND. */
MUST_CHECK int job_load(struct call *call, const char *job_id, PGresult **out, struct error *err);

/* "cnv-90aa" of "job-90aa": a job has at most one conversion. Caller frees. */
char *conversion_id(const char *job_id);

/* total_jobs, pending_jobs ... as members of answer. */
MUST_CHECK int job_counts(struct db *db, json_t *answer, struct error *err);

/* Made of parts for the unit test: live is the progress document of Redis or of the row. */
struct progress_facts {
    const char *job_id;
    const char *status;
    const char *phase;
    const json_t *live;   /* may be NULL or JSON null */
    const json_t *result; /* may be NULL or JSON null */
    const char *started_at;
    const char *updated_at;
    int64_t elapsed_seconds;
    bool stale; /* live comes from PostgreSQL although the job runs */
};
json_t *progress_of(const struct progress_facts *facts);
/* "1h 2m 3s". Caller frees. */
char *duration_text(int64_t seconds);

#endif
