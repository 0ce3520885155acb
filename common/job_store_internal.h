/* Between job_store*.c only. */
#ifndef COMMON_JOB_STORE_INTERNAL_H
#define COMMON_JOB_STORE_INTERNAL_H

#include "common/job_store.h"
#include "common/json_rows.h"
#include "common/metric_totals.h"

#define NUMBER_SIZE 24 /* any 64-bit number as text */

/* Opens a transaction unless the caller has one; store_end commits (or, after a failure, rolls
 * back) only what store_begin opened. */
MUST_CHECK int store_begin(struct db *db, bool *out_own, struct error *err);
MUST_CHECK int store_end(struct db *db, bool own, int rc, struct error *err);

/* One statement for all rows, a JSON array and its $1; none for none. out may be NULL, and keeps
 * what it has when there is no statement. */
MUST_CHECK int store_rows(struct db *db, const char *sql, const json_t *rows, PGresult **out,
                          struct error *err);

/* The same of rows that were written. */
MUST_CHECK int store_written(struct db *db, const char *sql, struct json_rows *rows, PGresult **out,
                             struct error *err);

struct store_row { /* job and task as they were when locked */
    char job_id[64];
    char task_id[64];
    char task_kind[32];
    char hook[8]; /* pre, post; "": the task is none */
    char provider[64];
    struct job_machine machine;
    uint8_t token[16];
    bool has_token;
    int64_t now_ms; /* the database's clock */
    bool cleans_up; /* its export asks for a clean-up when the job is complete */
};

struct store_change { /* one event on its way through a batch */
    struct job_store_event event;
    struct store_row row;
    struct job_decision decision;
};
/* job_store_write.c: tasks, jobs and effects of all changes that are allowed. */
MUST_CHECK int store_changes(struct db *db, const struct store_change *changes, size_t count,
                             struct error *err);

/* What a user wants of a job: an event for the first of its tasks that is not done. event: all but
 * its task, which is put into out_task. ERR_CONFLICT with the reason when it does not apply. */
MUST_CHECK int store_wish(struct db *db, const char *job_id, struct job_store_event event,
                          struct job_decision *out, char out_task[64], struct error *err);

/* One job_events row. */
struct store_line {
    const char *job_id;
    const char *event;
    const char *status;
    const char *phase;
    const char *actor;    /* may be NULL */
    const json_t *detail; /* may be NULL */
};
MUST_CHECK int store_history(struct db *db, const struct store_line *line, struct error *err);
/* The same for several, each added to rows by store_add_history. */
void store_add_history(const struct store_line *line, struct json_rows *rows);
MUST_CHECK int store_history_rows(struct db *db, struct json_rows *rows, struct error *err);
/* job_store_final.c: what the end of a job or of its export leaves behind. */
/* The catalogue's rows of what an export task made: exports, disks and totals grow. */
MUST_CHECK int store_export_rows(const struct store_change *change, struct json_rows *exports,
                                 struct json_rows *disks, struct metric_batch *totals,
                                 struct error *err);
/* $1 of each is what store_export_rows collects. */
extern const char store_insert_exports[], store_insert_disks[];
/* The ends and failures that metrics count; end: the job's row of STORE_JOBS, NULL: none. */
void store_add_totals(const struct store_change *change, const PGresult *end, int end_row,
                      struct metric_batch *totals);
/* What the notifier tells others, a new reference. */
json_t *store_outbox_row(const struct store_change *change, const PGresult *end, int end_row);
MUST_CHECK int store_cancel_later(struct db *db, const struct store_row *row, struct error *err);
MUST_CHECK int store_submit_cleanup(struct db *db, const struct store_row *row, struct error *err);
/* Exports that a clean-up removed leave the catalogue, also when it failed in the middle. */
MUST_CHECK int store_cleanup(struct db *db, const json_t *result, struct error *err);
/* The catalogue learns what became of restore points that a task changed. */
MUST_CHECK int store_points(struct db *db, const json_t *result, struct error *err);
/* What waits behind the export learns where its files are. */
MUST_CHECK int store_next_spec(struct db *db, const struct store_row *row, const json_t *result,
                               struct error *err);
/* What waits behind the conversion learns what it made. */
MUST_CHECK int store_converted(struct db *db, const struct store_row *row, const json_t *result,
                               struct error *err);
/* When the waits of a task (job_task.wait) that begin now are over. */
int64_t store_wait_end(const json_t *wait, int64_t now_ms);
MUST_CHECK int store_release_next(struct db *db, const struct store_row *row, struct error *err);
/* A control task that takes away what the dead task's records name; nothing without records. */
MUST_CHECK int store_release_task(struct db *db, const struct store_row *row, struct error *err);

#endif
