/* Outbox and deliveries in PostgreSQL. One struct db per thread. */
#ifndef NOTIFIER_STORE_H
#define NOTIFIER_STORE_H

#include <jansson.h>

#include "common/db.h"

#define STORE_EXPAND_MAX      200   /* outbox rows per transaction */
#define STORE_CLAIM_MARGIN_MS 10000 /* claim = time-out of the attempt + this */
#define STORE_WEBHOOK_BUSY_MAX                                                                \
    2                        /* attempts at a time per webhook: a dead receiver must not take \
                                all senders */
#define STORE_KEEP_DAYS "30" /* how long the delivery log stays */

struct delivery {
    char *id;
    char *claim; /* claimed_until as the database gave it: only this claim may store a result */
    char *webhook_id;
    char *url;
    uint8_t *sealed; /* NULL: no headers, no secret */
    size_t sealed_size;
    uint32_t attempt; /* attempts made before */
    uint32_t retry;   /* repeats after the first attempt */
    int64_t timeout_ms;
    char *event;
    char *job_id;
    char *created_at; /* of the event, RFC 3339 */
    json_t *payload;
};
void delivery_free(struct delivery *delivery);
DEFINE_AUTO(delivery, struct delivery, delivery_free)
#define auto_delivery CLEANUP(delivery_auto) struct delivery

/* Makes deliveries of outbox rows for the webhooks that want them; with send false only marks the
 * rows as seen. *out_rows: how many rows; more may be waiting when it is STORE_EXPAND_MAX. */
MUST_CHECK int store_expand(struct db *db, bool send, size_t *out_rows, struct error *err);
/* *out NULL: nothing is due. */
MUST_CHECK int store_claim(struct db *db, struct delivery **out, struct error *err);

enum outcome { OUTCOME_DELIVERED, OUTCOME_RETRY, OUTCOME_FAILED, OUTCOME_GONE };
struct result {
    enum outcome outcome;
    long http_status;   /* 0: none */
    int64_t delay_ms;   /* OUTCOME_RETRY */
    const char *reason; /* "" when delivered */
};
/* Stores the result, counts it, and for OUTCOME_GONE disables the webhook and gives up what is
 * waiting for it. *out_stored false: the claim was over, another notifier has the delivery. */
MUST_CHECK int store_result(struct db *db, const struct delivery *delivery,
                            const struct result *result, bool *out_stored, struct error *err);
/* Hands an attempt back that was not made; it does not count. */
MUST_CHECK int store_release(struct db *db, const struct delivery *delivery, struct error *err);
/* Removes what is older than STORE_KEEP_DAYS and has nothing pending, a bounded number of rows. */
MUST_CHECK int store_sweep(struct db *db, struct error *err);

#endif
