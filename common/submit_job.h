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
/* Expands the template, if the request names one, parses and completes the request with what the
 * database knows of provider and VM. Permissions are the caller's to look at. problem->status stays
 * 0 when it is not the request's fault. */
MUST_CHECK int submit_prepare(const struct submit_settings *settings, struct db *db,
                              const json_t *element, struct submit_request **out,
                              struct field_problem *problem, struct error *err);
/* Stores a prepared request as job_store_submit does, also inside the caller's transaction. */
MUST_CHECK int submit_store(struct db *db, struct submit_request *request,
                            const struct submit_origin *origin, char out_id[64], bool *out_existing,
                            struct error *err);

#endif
