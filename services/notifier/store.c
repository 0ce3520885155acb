/* See store.h. */
#include "services/notifier/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/metric_totals.h"
#include "common/seal.h"
#include "common/webhook_event.h"

#define PAYLOAD_BYTES_MAX ((size_t)MIB) /* exported_files of 64 disks is 20 KiB */

static const char expand_sql[] =
    "WITH o AS (SELECT id, event FROM outbox WHERE expanded_at IS NULL"
    "           ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED),"
    " d AS (INSERT INTO deliveries (outbox_id, webhook_id)"
    "       SELECT o.id, w.id FROM o JOIN webhooks w"
    "       ON $2::boolean AND " WEBHOOK_WANTS(
        "o.event") "       ON CONFLICT (outbox_id, webhook_id) DO NOTHING)"
                   " UPDATE outbox SET expanded_at = now() FROM o WHERE outbox.id = o.id";

/* Claims of all notifiers, one after the other: two at the same moment would not see each other in
 * `busy`, and a dead receiver could take all senders. The claim is a statement of its own, because
 * its snapshot has to be younger than the lock. */
static const char claim_lock_sql[] =
    "SELECT pg_advisory_xact_lock(hashtextextended('hypersdk.deliveries', 0))";

static const char claim_sql[] =
    "WITH busy AS (SELECT webhook_id FROM deliveries"
    "              WHERE state = 'pending' AND claimed_until > now()"
    "              GROUP BY webhook_id HAVING count(*) >= $1::bigint),"
    " c AS (SELECT d.id FROM deliveries d JOIN webhooks w ON w.id = d.webhook_id"
    "       WHERE d.state = 'pending' AND d.not_before <= now() AND w.enabled"
    "       AND (d.claimed_until IS NULL OR d.claimed_until <= now())"
    "       AND d.webhook_id NOT IN (SELECT webhook_id FROM busy)"
    "       ORDER BY d.not_before, d.id LIMIT 1 FOR UPDATE OF d SKIP LOCKED)"
    " UPDATE deliveries d"
    " SET claimed_until = clock_timestamp()"
    "                     + (w.timeout_ms + $2::bigint) * interval '1 millisecond'"
    " FROM c, webhooks w, outbox o"
    " WHERE d.id = c.id AND w.id = d.webhook_id AND o.id = d.outbox_id"
    " RETURNING d.id, d.claimed_until, w.id, w.url, w.sealed, d.attempt, w.retry, w.timeout_ms,"
    " o.event, o.job_id,"
    " to_char(o.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), o.payload";

static const char result_sql[] =
    "UPDATE deliveries SET state = $3, attempt = attempt + 1, claimed_until = NULL,"
    " not_before = now() + $4::bigint * interval '1 millisecond',"
    " http_status = nullif($5::integer, 0), error = $6, updated_at = now()"
    " WHERE id = $1 AND claimed_until = $2::timestamptz AND state = 'pending'";

static const char release_sql[] = "UPDATE deliveries SET claimed_until = NULL WHERE id = $1"
                                  " AND claimed_until = $2::timestamptz AND state = 'pending'";

static const char disable_sql[] = "UPDATE webhooks SET enabled = false WHERE id = $1";

static const char give_up_sql[] =
    "UPDATE deliveries SET state = 'failed', error = 'the webhook was disabled: it answered 410',"
    " updated_at = now() WHERE webhook_id = $1 AND state = 'pending' AND claimed_until IS NULL";

static const char sweep_sql[] =
    "DELETE FROM outbox WHERE id IN (SELECT o.id FROM outbox o"
    " WHERE o.expanded_at < now() - interval '" STORE_KEEP_DAYS " days' AND NOT EXISTS"
    " (SELECT 1 FROM deliveries d WHERE d.outbox_id = o.id AND d.state = 'pending')"
    " ORDER BY o.id LIMIT 1000)";

void delivery_free(struct delivery *delivery)
{
    if (delivery == NULL)
        return;
    free(delivery->id);
    free(delivery->claim);
    free(delivery->webhook_id);
    free(delivery->url);
    free(delivery->sealed);
    free(delivery->event);
    free(delivery->job_id);
    free(delivery->created_at);
    json_decref(delivery->payload);
    free(delivery);
}

int store_expand(struct db *db, bool send, size_t *out_rows, struct error *err)
{
    auto_pgresult *rows = NULL;
    char limit[16];

    (void)snprintf(limit, sizeof limit, "%d", STORE_EXPAND_MAX);
    if (db_exec(db, expand_sql, DB_PARAMS(limit, send ? "true" : "false"), &rows, err) < 0)
        return -1;
    *out_rows = db_affected(rows);
    return 0;
}

static int take_sealed(const PGresult *rows, struct delivery *delivery, struct error *err)
{
    size_t size_max = SEAL_OVERHEAD_BYTES + SEAL_SECRET_BYTES_MAX;

    if (db_is_null(rows, 0, 4))
        return 0;
    delivery->sealed = xmalloc(size_max);
    return db_bytea(rows, 0, 4, delivery->sealed, size_max, &delivery->sealed_size, err);
}

static int take_delivery(const PGresult *rows, struct delivery **out, struct error *err)
{
    auto_delivery *delivery = xcalloc(1, sizeof *delivery);
    const char *payload = db_text(rows, 0, 11);

    delivery->id = xstrdup(db_text(rows, 0, 0));
    delivery->claim = xstrdup(db_text(rows, 0, 1));
    delivery->webhook_id = xstrdup(db_text(rows, 0, 2));
    delivery->url = xstrdup(db_text(rows, 0, 3));
    delivery->attempt = (uint32_t)db_i64(rows, 0, 5);
    delivery->retry = (uint32_t)db_i64(rows, 0, 6);
    delivery->timeout_ms = db_i64(rows, 0, 7);
    delivery->event = xstrdup(db_text(rows, 0, 8));
    delivery->job_id = xstrdup(db_text(rows, 0, 9));
    delivery->created_at = xstrdup(db_text(rows, 0, 10));
    if (take_sealed(rows, delivery, err) < 0 ||
        json_parse(payload, strlen(payload), PAYLOAD_BYTES_MAX, &delivery->payload, err) < 0)
        return error_wrap(err, "delivery %s", delivery->id);
    *out = STEAL(delivery);
    return 0;
}

static int claim_in_transaction(struct db *db, PGresult **out_rows, struct error *err)
{
    char busy[16];
    char margin[16];

    (void)snprintf(busy, sizeof busy, "%d", STORE_WEBHOOK_BUSY_MAX);
    (void)snprintf(margin, sizeof margin, "%d", STORE_CLAIM_MARGIN_MS);
    if (db_exec(db, claim_lock_sql, DB_NO_PARAMS, NULL, err) < 0)
        return -1;
    return db_exec(db, claim_sql, DB_PARAMS(busy, margin), out_rows, err);
}

int store_claim(struct db *db, struct delivery **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    *out = NULL;
    if (db_begin(db, err) < 0)
        return -1;
    if (claim_in_transaction(db, &rows, err) < 0) {
        db_rollback(db);
        return -1;
    }
    if (db_commit(db, err) < 0)
        return -1;
    return PQntuples(rows) == 0 ? 0 : take_delivery(rows, out, err);
}

static const char *outcome_label(enum outcome outcome)
{
    switch (outcome) {
    case OUTCOME_DELIVERED:
        return "delivered";
    case OUTCOME_RETRY:
        return "retried";
    case OUTCOME_FAILED:
        return "failed";
    case OUTCOME_GONE:
        return "gone";
    }
    return "failed";
}

static int count_result(struct db *db, enum outcome outcome, struct error *err)
{
    auto_metric_batch batch;
    auto_json *labels = json_pack("{s:s}", "result", outcome_label(outcome));

    metric_batch_init(&batch);
    metric_batch_add(&batch, "hypersdk_webhook_deliveries_total", labels, 1);
    return metric_batch_store(db, &batch, err);
}

static int result_in_transaction(struct db *db, const struct delivery *delivery,
                                 const struct result *result, bool *out_stored, struct error *err)
{
    auto_pgresult *rows = NULL;
    const char *state = result->outcome == OUTCOME_DELIVERED ? "delivered"
                        : result->outcome == OUTCOME_RETRY   ? "pending"
                                                             : "failed";
    char delay[24];
    char status[16];

    (void)snprintf(delay, sizeof delay, "%" PRId64, result->delay_ms);
    (void)snprintf(status, sizeof status, "%ld", result->http_status);
    if (db_exec(db, result_sql,
                DB_PARAMS(delivery->id, delivery->claim, state, delay, status, result->reason),
                &rows, err) < 0)
        return -1;
    *out_stored = db_affected(rows) == 1;
    if (!*out_stored)
        return 0;
    if (result->outcome == OUTCOME_GONE &&
        (db_exec(db, disable_sql, DB_PARAMS(delivery->webhook_id), NULL, err) < 0 ||
         db_exec(db, give_up_sql, DB_PARAMS(delivery->webhook_id), NULL, err) < 0))
        return -1;
    return count_result(db, result->outcome, err);
}

int store_result(struct db *db, const struct delivery *delivery, const struct result *result,
                 bool *out_stored, struct error *err)
{
    if (db_begin(db, err) < 0)
        return -1;
    if (result_in_transaction(db, delivery, result, out_stored, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}

int store_release(struct db *db, const struct delivery *delivery, struct error *err)
{
    return db_exec(db, release_sql, DB_PARAMS(delivery->id, delivery->claim), NULL, err);
}

int store_sweep(struct db *db, struct error *err)
{
    return db_exec(db, sweep_sql, DB_NO_PARAMS, NULL, err);
}
