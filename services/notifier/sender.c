/* One sender: claims a delivery, sends it, stores the result. */
#include "services/notifier/notifier.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/webhook_post.h"
#include "services/notifier/message.h"
#include "services/notifier/store.h"

#define RETRY_FIRST_MS 1000
#define RETRY_MAX_MS   300000
#define IDLE_POLL_MS   1000 /* retries fall due without anybody announcing them */

/* Half of the doubled delay is certain, half is jitter: a repeat never comes at once. */
static int64_t retry_delay_ms(uint32_t attempts_made)
{
    int64_t delay_ms = RETRY_FIRST_MS;

    for (uint32_t i = 1; i < attempts_made && delay_ms < RETRY_MAX_MS; i++)
        delay_ms *= 2;
    if (delay_ms > RETRY_MAX_MS)
        delay_ms = RETRY_MAX_MS;
    return delay_ms / 2 + clock_backoff_ms(0, delay_ms / 2, delay_ms / 2);
}

static void fail_or_retry(const struct delivery *delivery, struct result *result)
{
    if (delivery->attempt >= delivery->retry) {
        result->outcome = OUTCOME_FAILED;
        return;
    }
    result->outcome = OUTCOME_RETRY;
    result->delay_ms = retry_delay_ms(delivery->attempt + 1);
}

static void judge_status(const struct delivery *delivery, long status, struct result *result,
                         struct error *why)
{
    result->http_status = status;
    if (status >= 200 && status < 300) {
        result->outcome = OUTCOME_DELIVERED;
        return;
    }
    (void)error_set(why, ERR_UNAVAILABLE, "the receiver answered %ld", status);
    if (status == 410) {
        result->outcome = OUTCOME_GONE;
    } else {
        fail_or_retry(delivery, result);
    }
}

/* One POST. A refused address or a wrong URL is final: repeating cannot help. */
static void attempt(const struct notifier *notifier, const struct delivery *delivery,
                    struct result *result, struct error *why)
{
    auto_message message = {0};
    struct webhook_post post = {
        .url = delivery->url,
        .timeout_ms = delivery->timeout_ms,
        .allow_private = notifier->config->webhooks.allow_private,
        .cancelled = &notifier->abandon,
    };
    long status = 0;

    if (message_make(delivery, notifier->config->secrets.key_dir, &message, why) == 0) {
        post.headers = message.headers;
        post.body = message.body;
        if (webhook_post(&post, &status, why) == 0) {
            judge_status(delivery, status, result, why);
            return;
        }
    }
    if (why->code == ERR_DENIED || why->code == ERR_INVALID) {
        result->outcome = OUTCOME_FAILED;
    } else {
        fail_or_retry(delivery, result);
    }
}

static void log_result(const struct delivery *delivery, const struct result *result,
                       int64_t took_ms)
{
    LOG_SCOPE(delivery->job_id, NULL);

    switch (result->outcome) {
    case OUTCOME_DELIVERED:
        LOG(INFO, "webhook_delivered", F_STR("webhook", delivery->webhook_id),
            F_STR("delivery", delivery->id), F_STR("job_event", delivery->event),
            F_U64("attempt", delivery->attempt + 1), F_I64("took_ms", took_ms));
        break;
    case OUTCOME_RETRY:
        LOG(WARN, "webhook_attempt_failed", F_STR("webhook", delivery->webhook_id),
            F_STR("delivery", delivery->id), F_U64("attempt", delivery->attempt + 1),
            F_I64("retry_in_ms", result->delay_ms), F_STR("error", result->reason));
        break;
    case OUTCOME_FAILED:
        LOG(ERROR, "webhook_failed", F_STR("webhook", delivery->webhook_id),
            F_STR("delivery", delivery->id), F_STR("job_event", delivery->event),
            F_U64("attempts", delivery->attempt + 1), F_STR("error", result->reason));
        break;
    case OUTCOME_GONE:
        LOG(WARN, "webhook_disabled", F_STR("webhook", delivery->webhook_id),
            F_STR("error", result->reason));
        break;
    }
}

static int send_one(const struct notifier *notifier, struct db *db, const struct delivery *delivery,
                    struct error *err)
{
    int64_t started_ms = clock_mono_ms();
    struct result result = {0};
    struct error why = ERROR_NONE;
    bool stored = false;

    attempt(notifier, delivery, &result, &why);
    if (why.code == ERR_CANCELLED)
        return store_release(db, delivery, err);
    result.reason = why.message;
    if (store_result(db, delivery, &result, &stored, err) < 0)
        return error_wrap(err, "result of delivery %s", delivery->id);
    if (stored)
        log_result(delivery, &result, clock_mono_ms() - started_ms);
    return 0;
}

/* *out_idle: nothing was due. */
static int send_next(const struct notifier *notifier, struct db *db, bool *out_idle,
                     struct error *err)
{
    auto_delivery *delivery = NULL;

    if (store_claim(db, &delivery, err) < 0)
        return -1;
    *out_idle = delivery == NULL;
    return delivery == NULL ? 0 : send_one(notifier, db, delivery, err);
}

static void log_unavailable(struct log_throttle *throttle, const struct error *err)
{
    uint64_t suppressed = 0;

    if (log_throttle_pass(throttle, err->message, &suppressed))
        LOG(WARN, "outbox_unavailable", F_ERR(err), F_U64("suppressed", suppressed));
}

void *notifier_sender(void *arg)
{
    struct notifier *notifier = arg;
    struct db *db = db_new(&notifier->config->database, "hypersdk_notifier",
                           service_instance(notifier->service));
    struct log_throttle throttle = {0};
    uint64_t seen = 0;

    while (!service_stopping(notifier->service)) {
        struct error err = ERROR_NONE;
        bool idle = false;

        if (send_next(notifier, db, &idle, &err) < 0) {
            log_unavailable(&throttle, &err);
            (void)service_wait(notifier->service, IDLE_POLL_MS);
        } else if (idle) {
            wake_wait(&notifier->deliveries, &seen, IDLE_POLL_MS);
        }
    }
    db_free(db);
    (void)atomic_fetch_sub(&notifier->senders, 1);
    return NULL;
}
