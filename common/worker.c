/* See worker.h.
 *
 * Design notes
 * - A slot thread parks one LeaseRequest; the scheduler answers with a task or, after a while, with
 *   "none". A request that times out may have been answered into the void: its lease runs out.
 * - A task starts after its first acknowledged renewal, because only the send time of a request of
 *   ours bounds how long the scheduler counts the lease. */
#include "common/worker.h"

#include <errno.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/worker_internal.h"

#define LEASE_CALL_MS   30000 /* the scheduler parks for 20 s */
#define CONTACT_GONE_MS 60000 /* longer than a parked request stays unanswered */
#define LEAVE_CALL_MS   1000  /* a scheduler that is away need not know that we leave */
#define NO_TASK_MS_MAX  60000 /* a scheduler cannot send us to sleep for longer */
#define AGAIN_MIN_MS    200
#define AGAIN_MAX_MS    2000
#define DRAIN_POLL_MS   50

struct slot {
    struct worker *worker;
    bool control;
    uint32_t number;
    uint32_t total;
};

/* ---- the table of running tasks ---- */

static void table_add(struct worker *worker, struct worker_task *task)
{
    LOCK_SCOPE(&worker->tasks_mutex);
    for (size_t i = 0; i < ARRAY_LEN(worker->tasks); i++) {
        if (worker->tasks[i] == NULL) {
            worker->tasks[i] = task;
            return;
        }
    }
    assert(false); /* as many places as slots */
}

static void table_remove(struct worker *worker, const struct worker_task *task)
{
    LOCK_SCOPE(&worker->tasks_mutex);
    for (size_t i = 0; i < ARRAY_LEN(worker->tasks); i++) {
        if (worker->tasks[i] == task)
            worker->tasks[i] = NULL;
    }
}

static size_t table_stop_all(struct worker *worker, enum worker_stop reason)
{
    size_t count = 0;

    LOCK_SCOPE(&worker->tasks_mutex);
    for (size_t i = 0; i < ARRAY_LEN(worker->tasks); i++) {
        if (worker->tasks[i] != NULL) {
            count++;
            if (reason != WORKER_RUNS)
                worker_task_stop(worker->tasks[i], reason);
        }
    }
    return count;
}

/* ---- control messages ---- */

static void start_drain(struct worker *worker)
{
    if (!atomic_exchange(&worker->draining, true))
        LOG(INFO, "worker_draining", F_STR("instance", worker->instance));
    (void)table_stop_all(worker, WORKER_DRAINS);
}

static void on_control(void *arg, const bus_envelope *envelope)
{
    struct worker *worker = arg;
    const Hypersdk__V1__TaskControl *control;

    if (envelope->body_case != HYPERSDK__V1__ENVELOPE__BODY_TASK_CONTROL)
        return;
    control = envelope->task_control;
    LOCK_SCOPE(&worker->tasks_mutex);
    for (size_t i = 0; i < ARRAY_LEN(worker->tasks); i++) {
        struct worker_task *task = worker->tasks[i];
        if (task != NULL && strcmp(task->ref.task_id, control->task_id) == 0)
            worker_task_control(task, control);
    }
}

/* Something was missed: the answer to a renewal repeats what is pending. */
static void on_gap(void *arg)
{
    struct worker *worker = arg;

    LOCK_SCOPE(&worker->tasks_mutex);
    for (size_t i = 0; i < ARRAY_LEN(worker->tasks); i++) {
        if (worker->tasks[i] != NULL)
            worker_task_kick(worker->tasks[i]);
    }
}

/* ---- slots ---- */

static void describe(const struct worker *worker, Hypersdk__V1__LeaseRequest *body)
{
    const struct worker_description *d = &worker->description;

    hypersdk__v1__lease_request__init(body);
    body->instance = (char *)(uintptr_t)worker->instance;
    body->role = (char *)(uintptr_t)d->role;
    body->provider = (char *)(uintptr_t)d->provider;
    body->class_ = HYPERSDK__V1__TASK_CLASS__TASK_CLASS_CONTROL;
    body->slots_total = 1;
    body->host = (char *)(uintptr_t)worker->host;
    body->pid = (uint32_t)getpid();
    body->version = (char *)(uintptr_t)HYPERSDK_VERSION;
}

static char *capabilities_of(const struct worker *worker)
{
    const struct worker_description *d = &worker->description;
    auto_json *now = d->capabilities_now == NULL ? NULL : d->capabilities_now(d->arg);

    return now == NULL ? xstrdup(worker->capabilities) : json_text(now);
}

static int lease(const struct slot *slot, bus_envelope **out, struct error *err)
{
    const struct worker_description *d = &slot->worker->description;
    char *kinds[WORKER_KINDS_MAX];
    CLEANUP(worker_volumes_release) struct worker_volumes volumes = {0};
    autofree char *capabilities = capabilities_of(slot->worker);
    struct bus_envelope_store store;
    Hypersdk__V1__LeaseRequest body;
    bus_envelope envelope;

    describe(slot->worker, &body);
    for (size_t i = 0; i < d->kind_count; i++) {
        if (d->kinds[i].control == slot->control)
            kinds[body.n_task_kinds++] = (char *)(uintptr_t)d->kinds[i].kind;
    }
    worker_volumes_probe(d->bases, &volumes);
    body.class_ = slot->control ? HYPERSDK__V1__TASK_CLASS__TASK_CLASS_CONTROL
                                : HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
    body.task_kinds = kinds;
    body.volumes = volumes.items;
    body.n_volumes = volumes.count;
    body.slot = slot->number;
    body.slots_total = slot->total;
    body.capabilities_json = capabilities;
    bus_envelope_init(&envelope, &store, slot->worker->instance, NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    envelope.lease_request = &body;
    return bus_client_call(slot->worker->client, &envelope, LEASE_CALL_MS, out, err);
}

/* Tries as long as the lease may live: the scheduler may have been restarted just now. */
static int first_renewal(struct worker_task *task, struct error *err)
{
    int64_t until = clock_mono_ms() + task->facts->lease_ms;

    while (worker_renew_once(task, err) < 0) {
        if (clock_mono_ms() >= until || atomic_load(&task->worker->draining))
            return -1;
        error_clear(err);
        clock_sleep_ms(WORKER_AGAIN_MS);
    }
    return worker_task_stop_reason(task) == WORKER_LOST
               ? error_set(err, ERR_CANCELLED, "the lease was lost before the start")
               : 0;
}

static void run_task(struct worker *worker, struct worker_task *task)
{
    struct error err = ERROR_NONE;
    json_t *result = NULL;
    int rc;

    LOG_SCOPE(task->facts->job_id[0] != '\0' ? task->facts->job_id : NULL,
              task->trace_id[0] != '\0' ? task->trace_id : NULL);
    LOG(INFO, "task_started", F_STR("task_id", task->ref.task_id), F_STR("kind", task->kind->kind),
        F_U64("epoch", task->ref.epoch));
    if (first_renewal(task, &err) < 0 || worker_renew_start(task, &err) < 0) {
        LOG(WARN, "task_not_started", F_STR("task_id", task->ref.task_id), F_ERR(&err));
        return; /* the lease runs out */
    }
    table_add(worker, task);
    if (atomic_load(&worker->draining))
        worker_task_stop(task, WORKER_DRAINS);
    if (worker_task_check(task, &err) < 0 && worker_task_stop_reason(task) != WORKER_CANCELLED) {
        rc = -1;
    } else {
        error_clear(&err); /* a cancelled task still runs: it may have to clean up */
        rc = task->kind->run(task, worker->description.arg, &result, &err);
    }
    if (rc < 0) {
        LOG(WARN, "task_failed", F_STR("task_id", task->ref.task_id), F_ERR(&err));
    } else {
        LOG(INFO, "task_done", F_STR("task_id", task->ref.task_id));
    }
    worker_report(task, rc, result, &err);
    json_decref(result);
    table_remove(worker, task);
    worker_renew_stop(task);
}

/* One request and what follows from it. */
static int take_one(const struct slot *slot, uint32_t *again_ms, struct error *err)
{
    auto_bus_envelope *reply = NULL;
    auto_worker_task *task = NULL;
    int64_t start = clock_mono_ms();

    *again_ms = 0;
    if (lease(slot, &reply, err) < 0)
        return -1;
    atomic_store(&slot->worker->contact_ms, clock_mono_ms());
    service_set_ready(slot->worker->service, "scheduler", true, "");
    if (reply->body_case == HYPERSDK__V1__ENVELOPE__BODY_NO_TASK) {
        *again_ms = (uint32_t)min_u64(reply->no_task->retry_after_ms, NO_TASK_MS_MAX);
        if (*again_ms == 0 && clock_mono_ms() - start < AGAIN_MIN_MS)
            *again_ms = AGAIN_MIN_MS; /* it did not park the request */
        return 0;
    }
    if (reply->body_case != HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE) {
        return error_set(err, ERR_UNAVAILABLE, "scheduler gives no lease: %.300s",
                         reply->body_case == HYPERSDK__V1__ENVELOPE__BODY_ACK
                             ? reply->ack->error
                             : "an answer to something else");
    }
    if (worker_task_new(slot->worker, STEAL(reply), &task, err) < 0)
        return -1;
    run_task(slot->worker, task);
    return 0;
}

static void *slot_main(void *arg)
{
    struct slot *slot = arg;
    struct worker *worker = slot->worker;
    struct log_throttle throttle = {0};
    uint32_t failures = 0;

    while (!atomic_load(&worker->draining)) {
        struct error err = ERROR_NONE;
        uint32_t again_ms = 0;
        uint64_t held = 0;
        if (take_one(slot, &again_ms, &err) == 0) {
            failures = 0;
            if (again_ms > 0)
                (void)service_wait(worker->service, again_ms);
            continue;
        }
        if (clock_mono_ms() - atomic_load(&worker->contact_ms) > CONTACT_GONE_MS)
            service_set_ready(worker->service, "scheduler", false, err.message);
        if (log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "no_lease", F_ERR(&err));
        failures = failures < 8 ? failures + 1 : failures;
        (void)service_wait(worker->service,
                           AGAIN_MIN_MS + clock_backoff_ms(failures, AGAIN_MIN_MS, AGAIN_MAX_MS));
    }
    (void)atomic_fetch_sub(&worker->slots_alive, 1);
    free(slot);
    return NULL;
}

static bool has_class(const struct worker_description *description, bool control)
{
    for (size_t i = 0; i < description->kind_count; i++) {
        if (description->kinds[i].control == control)
            return true;
    }
    return false;
}

static int start_slots(struct worker *worker, bool control, uint32_t total, struct error *err)
{
    if (!has_class(&worker->description, control))
        return 0; /* nothing to ask for */
    for (uint32_t i = 0; i < total; i++) {
        struct slot *slot = xcalloc(1, sizeof *slot);
        pthread_t thread;
        int rc;
        *slot = (struct slot){worker, control, i, total};
        (void)atomic_fetch_add(&worker->slots_alive, 1);
        rc = pthread_create(&thread, NULL, slot_main, slot);
        if (rc != 0) {
            free(slot);
            return error_set_errno(err, rc, "slot thread");
        }
        (void)pthread_detach(thread);
    }
    return 0;
}

/* ---- the process ---- */

/* The parked requests of this process go unheard from now on; a task given to one of them would
 * wait until its lease is over. */
static void leave(struct worker *worker)
{
    auto_bus_envelope *reply = NULL;
    struct error err = ERROR_NONE;
    struct bus_envelope_store store;
    Hypersdk__V1__LeaseRequest body;
    bus_envelope envelope;

    describe(worker, &body);
    body.leaving = 1;
    bus_envelope_init(&envelope, &store, worker->instance, NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    envelope.lease_request = &body;
    if (bus_client_call(worker->client, &envelope, LEAVE_CALL_MS, &reply, &err) < 0)
        LOG(DEBUG, "leave_not_heard", F_ERR(&err));
}

static void drain(struct worker *worker)
{
    int64_t until = clock_mono_ms() + service_drain_ms(worker->service);

    start_drain(worker);
    leave(worker);
    while (table_stop_all(worker, WORKER_RUNS) > 0 && clock_mono_ms() < until)
        clock_sleep_ms(DRAIN_POLL_MS);
    if (table_stop_all(worker, WORKER_RUNS) > 0)
        LOG(WARN, "drain_incomplete", F_U64("tasks", table_stop_all(worker, WORKER_RUNS)));
}

static int open_bus(struct worker *worker, const struct bus_config *bus, struct error *err)
{
    static const char *const topics[] = {"control", NULL};

    if (bus_client_open(bus, &worker->client, err) < 0 ||
        bus_pusher_open(bus, &worker->pusher, err) < 0)
        return -1;
    return bus_subscriber_start(bus, topics, on_control, on_gap, worker, err);
}

int worker_run(struct service *service, const struct bus_config *bus,
               const struct worker_description *description, struct error *err)
{
    /* Never freed: slots with a parked request still look at it when the process ends. */
    struct worker *worker = xcalloc(1, sizeof *worker);

    assert(description->kind_count <= WORKER_KINDS_MAX);
    assert(description->transfer_slots <= WORKER_SLOTS_MAX);
    assert(description->control_slots <= WORKER_SLOTS_MAX);
    worker->service = service;
    worker->description = *description;
    worker->description.capabilities = NULL;
    worker->capabilities =
        description->capabilities == NULL ? xstrdup("{}") : json_text(description->capabilities);
    worker->instance = service_instance(service);
    if (gethostname(worker->host, sizeof worker->host - 1) < 0)
        worker->host[0] = '\0';
    (void)pthread_mutex_init(&worker->tasks_mutex, NULL);
    service_set_ready(service, "scheduler", false, "no answer from the scheduler yet");
    if (open_bus(worker, bus, err) < 0 ||
        start_slots(worker, false, description->transfer_slots, err) < 0 ||
        start_slots(worker, true, description->control_slots, err) < 0)
        return -1;
    while (!service_wait(service, WORKER_PROGRESS_MS)) {
        worker_progress_tick(worker);
        if (description->tick != NULL)
            description->tick(description->arg);
    }
    drain(worker);
    return 0;
}
