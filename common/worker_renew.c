/* Renewal of a lease with the log lines that travel on it, and the report at the end. */
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/worker_internal.h"

#define LATE                "the lease could not be renewed in time"
#define RETRY_MS            500                   /* after a renewal that failed */
#define RESULT_BYTES_MAX    ((size_t)(512 * KIB)) /* as bus_check.c allows */
#define LINES_BYTES_MAX     ((size_t)(200 * KIB)) /* of one message; the rest follows in the next */
#define LINE_OVERHEAD_BYTES 100                   /* numbers, level, phase, framing */

struct batch {
    Hypersdk__V1__LogLine lines[BUS_LOG_LINES_MAX];
    Hypersdk__V1__LogLine *pointers[BUS_LOG_LINES_MAX];
    size_t count;
    char phase[WORKER_PHASE_MAX + 1];
};

static const char *level_name(enum log_level level)
{
    switch (level) {
    case LOG_LEVEL_DEBUG:
        return "debug";
    case LOG_LEVEL_INFO:
        return "info";
    case LOG_LEVEL_WARN:
        return "warn";
    case LOG_LEVEL_ERROR:
        return "error";
    }
    return "info";
}

/* Copies: a line may be acknowledged and freed while the message is packed. Oldest first. */
static struct batch *batch_new(struct worker_task *task)
{
    struct batch *batch = xcalloc(1, sizeof *batch);
    size_t bytes = 0;

    LOCK_SCOPE(&task->mutex);
    (void)snprintf(batch->phase, sizeof batch->phase, "%s", task->phase == NULL ? "" : task->phase);
    for (size_t i = 0; i < task->line_count && batch->count < BUS_LOG_LINES_MAX; i++) {
        const struct worker_line *line = &task->lines[i];
        Hypersdk__V1__LogLine *out = &batch->lines[batch->count];
        bytes += strlen(line->message) + LINE_OVERHEAD_BYTES;
        if (bytes > LINES_BYTES_MAX)
            break;
        hypersdk__v1__log_line__init(out);
        out->number = line->number;
        out->at_ms = line->at_ms;
        out->level = (char *)(uintptr_t)level_name(line->level);
        out->phase = xstrdup(line->phase);
        out->message = xstrdup(line->message);
        batch->pointers[batch->count++] = out;
        task->sent_number = max_u64(task->sent_number, line->number);
    }
    return batch;
}

static void batch_free(struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        free(batch->lines[i].phase);
        free(batch->lines[i].message);
    }
    free(batch);
}
DEFINE_AUTO(batch, struct batch, batch_free)
#define auto_batch CLEANUP(batch_auto) struct batch

static void acknowledge(struct worker_task *task, uint64_t number)
{
    size_t n = 0;

    LOCK_SCOPE(&task->mutex);
    while (n < task->line_count && task->lines[n].number <= number) {
        free(task->lines[n].phase);
        free(task->lines[n].message);
        n++;
    }
    if (n > 0) {
        memmove(task->lines, task->lines + n, (task->line_count - n) * sizeof *task->lines);
        task->line_count -= n;
    }
    (void)pthread_cond_broadcast(&task->changed);
}

static void take_reply(struct worker_task *task, const Hypersdk__V1__RenewReply *reply,
                       int64_t sent_ms)
{
    if (reply->lost) {
        LOG(WARN, "lease_lost", F_STR("task_id", task->ref.task_id));
        atomic_store(&task->expired, false);
        worker_task_stop(task, WORKER_LOST);
        return;
    }
    atomic_store(&task->lease_deadline_ms, sent_ms + reply->lease_ms - WORKER_LEASE_MARGIN_MS);
    acknowledge(task, reply->lines_stored);
    for (size_t i = 0; i < reply->n_controls; i++)
        worker_task_control(task, reply->controls[i]);
    worker_take_limit(task, reply->worker_limit);
}

int worker_renew_once(struct worker_task *task, struct error *err)
{
    auto_bus_envelope *reply = NULL;
    struct bus_envelope_store store;
    Hypersdk__V1__TaskRenew body;
    bus_envelope envelope;
    int64_t sent_ms;

    LOCK_SCOPE(&task->renew_mutex);
    auto_batch *batch = batch_new(task);
    hypersdk__v1__task_renew__init(&body);
    body.ref = &task->ref;
    body.phase = batch->phase;
    body.n_lines = batch->count;
    body.lines = batch->pointers;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_RENEW;
    envelope.task_renew = &body;
    sent_ms = clock_mono_ms();
    if (bus_client_call(task->worker->client, &envelope, WORKER_RENEW_CALL_MS, &reply, err) < 0)
        return -1;
    atomic_store(&task->worker->contact_ms, clock_mono_ms());
    if (reply->body_case != HYPERSDK__V1__ENVELOPE__BODY_RENEW_REPLY) {
        return error_set(err, ERR_UNAVAILABLE, "scheduler does not renew: %.300s",
                         reply->body_case == HYPERSDK__V1__ENVELOPE__BODY_ACK
                             ? reply->ack->error
                             : "an answer to something else");
    }
    take_reply(task, reply->renew_reply, sent_ms);
    return 0;
}

/* Twice before the write deadline, however short the lease is configured. */
static int64_t renew_interval_ms(const struct worker_task *task)
{
    int64_t half = (task->facts->lease_ms - WORKER_LEASE_MARGIN_MS) / 2;

    if (half < RETRY_MS)
        return RETRY_MS; /* a lease this short cannot be kept; no flood of messages */
    return half < WORKER_RENEW_MS ? half : WORKER_RENEW_MS;
}

/* Sleeps until the next renewal is due; false: the task has ended. */
static bool wait_due(struct worker_task *task, int64_t last_ms, bool failed)
{
    LOCK_SCOPE(&task->mutex);
    for (;;) {
        int64_t wait_ms = failed ? RETRY_MS : renew_interval_ms(task);
        int64_t now = clock_mono_ms();
        struct timespec until;
        if (task->ended)
            return false;
        if (!failed &&
            (task->kicked || task->line_number >= task->sent_number + BUS_LOG_LINES_MAX)) {
            wait_ms = 0;
        } else if (!failed && task->line_number > task->sent_number) {
            wait_ms = WORKER_RENEW_LINES_MS;
        }
        if (now >= last_ms + wait_ms) {
            task->kicked = false;
            return true;
        }
        until.tv_sec = (last_ms + wait_ms) / 1000;
        until.tv_nsec = (last_ms + wait_ms) % 1000 * 1000000;
        (void)pthread_cond_timedwait(&task->changed, &task->mutex, &until);
    }
}

/* Lost by our own clock: the scheduler has not said so. */
static void lose(struct worker_task *task)
{
    atomic_store(&task->expired, true);
    worker_task_stop(task, WORKER_LOST);
}

static void check_deadline(struct worker_task *task)
{
    if (clock_mono_ms() < worker_task_deadline_ms(task) ||
        worker_task_stop_reason(task) == WORKER_LOST)
        return;
    LOG(WARN, "lease_expired", F_STR("task_id", task->ref.task_id));
    lose(task);
}

static void *renewer(void *arg)
{
    struct worker_task *task = arg;
    struct log_throttle throttle = {0};
    int64_t last_ms = clock_mono_ms();
    bool failed = false;

    LOG_SCOPE(task->facts->job_id[0] != '\0' ? task->facts->job_id : NULL,
              task->trace_id[0] != '\0' ? task->trace_id : NULL);
    while (wait_due(task, last_ms, failed)) {
        struct error err = ERROR_NONE;
        uint64_t held = 0;
        last_ms = clock_mono_ms();
        failed = worker_renew_once(task, &err) < 0;
        if (failed && log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "renewal_failed", F_STR("task_id", task->ref.task_id), F_ERR(&err));
        check_deadline(task);
        if (worker_task_stop_reason(task) == WORKER_LOST)
            break;
    }
    return NULL;
}

int worker_renew_start(struct worker_task *task, struct error *err)
{
    int rc = pthread_create(&task->renewer, NULL, renewer, task);

    return rc == 0 ? 0 : error_set_errno(err, rc, "renewal thread");
}

void worker_renew_stop(struct worker_task *task)
{
    (void)pthread_mutex_lock(&task->mutex);
    task->ended = true;
    (void)pthread_cond_broadcast(&task->changed);
    (void)pthread_mutex_unlock(&task->mutex);
    (void)pthread_join(task->renewer, NULL);
}

/* ---- the end ---- */

/* Do all pending lines go into one message? */
static bool lines_fit(struct worker_task *task)
{
    size_t bytes = 0;

    LOCK_SCOPE(&task->mutex);
    for (size_t i = 0; i < task->line_count; i++)
        bytes += strlen(task->lines[i].message) + LINE_OVERHEAD_BYTES;
    return task->line_count <= BUS_LOG_LINES_MAX && bytes <= LINES_BYTES_MAX;
}

/* The report carries one batch; what is before it goes by renewal. */
static void send_lines_ahead(struct worker_task *task)
{
    while (worker_task_stop_reason(task) != WORKER_LOST && !lines_fit(task)) {
        struct error err = ERROR_NONE;
        if (worker_renew_once(task, &err) < 0)
            clock_sleep_ms(RETRY_MS);
    }
}

/* false: the scheduler refuses the message as such; err says why. */
static bool send_report(struct worker_task *task, bus_envelope *envelope, struct error *err)
{
    auto_bus_envelope *reply = NULL;
    struct error why = ERROR_NONE;

    if (worker_task_ask(task, envelope, HYPERSDK__V1__ENVELOPE__BODY_ACK, &reply, &why) < 0) {
        LOG(WARN, "report_not_taken", F_STR("task_id", task->ref.task_id), F_ERR(&why));
        return true; /* the lease is lost */
    }
    if (reply->ack->lost) {
        LOG(WARN, "lease_lost", F_STR("task_id", task->ref.task_id));
    } else if (reply->ack->error[0] != '\0') {
        LOG(ERROR, "report_refused", F_STR("task_id", task->ref.task_id),
            F_STR("error", reply->ack->error));
        (void)error_set(err, ERR_INTERNAL, "the task's report was refused: %.300s",
                        reply->ack->error);
        return false;
    }
    return true;
}

static bool report_done(struct worker_task *task, const struct batch *batch, const char *result,
                        struct error *err)
{
    struct bus_envelope_store store;
    Hypersdk__V1__TaskFinish body;
    bus_envelope envelope;

    hypersdk__v1__task_finish__init(&body);
    body.ref = &task->ref;
    body.result_json = (char *)(uintptr_t)result;
    body.n_lines = batch->count;
    body.lines = (Hypersdk__V1__LogLine **)(uintptr_t)batch->pointers;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH;
    envelope.task_finish = &body;
    return send_report(task, &envelope, err);
}

static void report_failed(struct worker_task *task, const struct batch *batch, const char *result,
                          const struct error *failure)
{
    autofree char *message = utf8_clean(failure->message, BUS_LOG_MESSAGE_MAX);
    struct error refused = ERROR_NONE;
    struct bus_envelope_store store;
    Hypersdk__V1__TaskFail body;
    bus_envelope envelope;

    hypersdk__v1__task_fail__init(&body);
    body.ref = &task->ref;
    body.error_code = (char *)(uintptr_t)error_code_name(failure->code);
    body.message = message;
    body.retryable = error_is_retryable(failure);
    body.result_json = (char *)(uintptr_t)result;
    body.phase = (char *)(uintptr_t)batch->phase;
    body.n_lines = batch->count;
    body.lines = (Hypersdk__V1__LogLine **)(uintptr_t)batch->pointers;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FAIL;
    envelope.task_fail = &body;
    (void)send_report(task, &envelope, &refused);
}

/* hopeless: the lease ran out by our clock, the scheduler may have heard of it or not. Then one
 * call must do: epoch and token keep it from harming anyone, and it saves the others the wait. */
static void report_yield(struct worker_task *task, const struct batch *batch, const char *reason,
                         bool hopeless)
{
    struct error err = ERROR_NONE;
    auto_bus_envelope *reply = NULL;
    struct bus_envelope_store store;
    Hypersdk__V1__TaskYield body;
    bus_envelope envelope;

    hypersdk__v1__task_yield__init(&body);
    body.ref = &task->ref;
    body.reason = (char *)(uintptr_t)reason;
    body.n_lines = batch->count;
    body.lines = (Hypersdk__V1__LogLine **)(uintptr_t)batch->pointers;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_YIELD;
    envelope.task_yield = &body;
    if (!hopeless) {
        (void)send_report(task, &envelope, &err);
    } else if (bus_client_call(task->worker->client, &envelope, WORKER_CALL_MS, &reply, &err) < 0) {
        LOG(WARN, "report_not_taken", F_STR("task_id", task->ref.task_id), F_ERR(&err));
    }
}

void worker_report(struct worker_task *task, int rc, json_t *result, const struct error *failure)
{
    autofree char *text = result == NULL ? xstrdup("{}") : json_text(result);
    struct error refused = ERROR_NONE;

    if (rc < 0 && failure->code == ERR_CANCELLED &&
        clock_mono_ms() >= worker_task_deadline_ms(task))
        lose(task); /* it stopped for that, and nobody cancelled it */
    if (strlen(text) > RESULT_BYTES_MAX) {
        if (rc == 0) {
            (void)error_set(&refused, ERR_LIMIT, "the result of %zu bytes is too long for the bus",
                            strlen(text));
        }
        text[0] = '\0';
    }
    send_lines_ahead(task);
    if (worker_task_stop_reason(task) == WORKER_LOST && !atomic_load(&task->expired))
        return; /* someone else's task by now */
    auto_batch *batch = batch_new(task);
    if (worker_task_stop_reason(task) == WORKER_LOST) {
        report_yield(task, batch, LATE, true);
        return;
    }
    if (rc == 0 && refused.code == ERR_NONE && report_done(task, batch, text, &refused))
        return;
    if (rc == 0) {
        report_failed(task, batch, "", &refused);
    } else if (worker_task_hands_back(task) && failure->code == ERR_CANCELLED) {
        struct error why = ERROR_NONE;
        if (worker_task_check(task, &why) < 0)
            report_yield(task, batch, why.message, false);
    } else if (worker_task_stop_reason(task) == WORKER_RUNS && failure->code == ERR_CANCELLED) {
        /* nobody cancelled it: a write was refused for a late renewal, and that is no failure */
        report_yield(task, batch, LATE, false);
    } else {
        report_failed(task, batch, text, failure);
    }
}
