/* A job request on its way into the database, the same for whoever asks: the gateway for users, the
 * scheduler for what it starts by itself. */
#ifndef COMMON_SUBMIT_JOB_H
#define COMMON_SUBMIT_JOB_H

#include "common/submit.h"

struct submit_origin { /* who asks; borrowed */
    const char *submitted_by;
    const char *trace_id;
    const char *schedule_id; /* NULL: none, as the following */
    const char *policy_id;
    const char *workflow_run_id;
    const char *idempotency_key;
    const uint8_t *idempotency_hash; /* 32 bytes */
};

/* The inventory's name of a VM that is given by id; NULL when it is not there. Caller frees. */
MUST_CHECK int submit_vm_name(struct db *db, const char *provider, const char *vm, char **out,
                              struct error *err);

struct submit_prepared {            /* of one element */
    struct submit_request *request; /* owned; NULL: refused */
    struct field_problem problem;   /* where, when it is refused */
    struct error error;             /* why */
};
/* Expands the templates of requests that name one, parses and completes them with what the database
 * knows of provider and VM, which is asked once for all of them. Each is decided alone; permissions
 * are the caller's to look at. An element that is NULL is passed over, its *out stays as it is. -1
 * when the database failed: what out holds then is the caller's to free as well. */
MUST_CHECK int submit_prepare_all(const struct submit_settings *settings, struct db *db,
                                  const json_t *const *elements, size_t count,
                                  struct submit_prepared *out, struct error *err);
/* What became of one: its request, or its refusal as the error; rc: of the call that prepared it.
 */
MUST_CHECK int submit_prepared_take(struct submit_prepared *one, int rc,
                                    struct submit_request **out, struct field_problem *problem,
                                    struct error *err);
/* One. problem->status stays 0 when it is not the request's fault. */
MUST_CHECK int submit_prepare(const struct submit_settings *settings, struct db *db,
                              const json_t *element, struct submit_request **out,
                              struct field_problem *problem, struct error *err);
struct submit_item { /* borrowed */
    struct submit_request *request;
    struct submit_origin origin;
};
/* Stores prepared requests as job_store_submit_all does, also inside the caller's transaction. */
MUST_CHECK int submit_store_all(struct db *db, const struct submit_item *items, size_t count,
                                struct job_store_submitted *out, struct error *err);
/* One, as job_store_submit. */
MUST_CHECK int submit_store(struct db *db, struct submit_request *request,
                            const struct submit_origin *origin, char out_id[64], bool *out_existing,
                            struct error *err);

#endif
