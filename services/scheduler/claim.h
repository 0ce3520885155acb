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

/* What TaskLeases are made of. */
struct claims;
size_t claims_count(const struct claims *claims);
/* Nobody with the same wish need ask again before something changes. */
bool claims_are_last(const struct claims *claims);
void claims_free(struct claims *claims);
DEFINE_AUTO(claims, struct claims, claims_free)
#define auto_claims CLEANUP(claims_auto) struct claims

/* The rows of the asking workers; *out comes with the transaction's next answer (db_later). */
MUST_CHECK int claim_workers(struct db *db, const Hypersdk__V1__LeaseRequest *const *requests,
                             size_t count, PGresult **out, struct error *err);
/* out_first[i]: it is the first of a worker that was not known as up before. */
void claim_first_ones(const PGresult *workers, const Hypersdk__V1__LeaseRequest *const *requests,
                      size_t count, bool *out_first);
struct claim_wish { /* requests that want the same */
    const Hypersdk__V1__LeaseRequest *requests[CLAIM_BATCH_MAX];
    size_t count;
};
/* Inside the caller's transaction: the best tasks that fit, one for each of the first claims_count
 * requests, leased. Some at least, if there are any; maybe not all, because what is leased counts
 * against limits: ask again, unless claims_are_last(). Rows that others hold are passed over.
 * Nothing counts before the caller's commit. An error that is not retryable is a task's fault:
 * out_task names it (claim_give_up); "": it is one of several, ask for one at a time. */
MUST_CHECK int claim_tasks(struct scheduler *scheduler, struct db *db,
                           const struct claim_wish *wish, struct claims **out, char out_task[64],
                           struct error *err);
/* A task that can never be handed out fails with why; a transaction of its own. */
MUST_CHECK int claim_give_up(struct scheduler *scheduler, struct db *db, const char *task_id,
                             const struct error *why, struct error *err);
/* After the commit. Answers and takes the request. */
void claim_reply(struct scheduler *scheduler, struct claims *claims, size_t i,
                 struct bus_request *request);
/* When all are answered: others, and the log, which may wait for a disk. */
void claims_tell(struct scheduler *scheduler, const struct claims *claims);
/* Would both requests be given the same task? */
bool claim_same_wish(const Hypersdk__V1__LeaseRequest *a, const Hypersdk__V1__LeaseRequest *b);

#endif
