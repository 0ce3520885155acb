/* From a parked request to a lease: the worker's row, the claim, the answer. The dispatcher's
 * thread only. */
#ifndef SCHEDULER_CLAIM_H
#define SCHEDULER_CLAIM_H

#include "common/id.h"
#include "scheduler.h"

#define CLAIM_BATCH_MAX   32 /* leases per commit: 15x of single ones, and short transactions */
#define CLAIM_RECORDS_MAX 256
#define CLAIM_RECORDS_BYTES \
    ((size_t)(256 * KIB)) /* with spec and settings a lease fits a message */

/* What a TaskLease is made of. */
struct claim;
void claim_free(struct claim *claim);
DEFINE_AUTO(claim, struct claim, claim_free)
#define auto_claim CLEANUP(claim_auto) struct claim

/* The row of the asking worker; *out_changed: it was not known as up before. */
MUST_CHECK int claim_worker(struct db *db, const Hypersdk__V1__LeaseRequest *request,
                            bool *out_changed, struct error *err);
/* Inside the caller's transaction: the best task that fits, leased; *out NULL when none fits. Rows
 * that others hold are passed over. Nothing counts before the caller's commit. An error that is
 * not retryable is the task's fault: *out_task names it (claim_give_up). */
MUST_CHECK int claim_task(struct scheduler *scheduler, struct db *db,
                          const Hypersdk__V1__LeaseRequest *request, struct claim **out,
                          char out_task[64], struct error *err);
/* A task that can never be handed out fails with why; a transaction of its own. */
MUST_CHECK int claim_give_up(struct scheduler *scheduler, struct db *db, const char *task_id,
                             const struct error *why, struct error *err);
/* After the commit. Answers and takes the request. */
void claim_reply(struct scheduler *scheduler, struct claim *claim, struct bus_request *request);
/* Would both requests be given the same task? */
bool claim_same_wish(const Hypersdk__V1__LeaseRequest *a, const Hypersdk__V1__LeaseRequest *b);

#endif
