/* Between job_store*.c only. */
#ifndef COMMON_JOB_STORE_INTERNAL_H
#define COMMON_JOB_STORE_INTERNAL_H

#include "common/job_store.h"

#define NUMBER_SIZE 24 /* any 64-bit number as text */

/* Opens a transaction unless the caller has one; store_end commits (or, after a failure, rolls
 * back) only what store_begin opened. */
MUST_CHECK int store_begin(struct db *db, bool *out_own, struct error *err);
MUST_CHECK int store_end(struct db *db, bool own, int rc, struct error *err);

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
};

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
/* Stores decision and effects. */
MUST_CHECK int store_decision(struct db *db, const struct store_row *row,
                              const struct job_store_event *event,
                              const struct job_decision *decision, struct error *err);

/* job_store_final.c: what the end of a job or of its export leaves behind. */
/* Outbox and totals of the decision. */
MUST_CHECK int store_end_effects(struct db *db, const struct store_row *row,
                                 const struct job_store_event *event,
                                 const struct job_decision *decision, struct error *err);
MUST_CHECK int store_export(struct db *db, const struct store_row *row, const json_t *result,
                            struct error *err);
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
