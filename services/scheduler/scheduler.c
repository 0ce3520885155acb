/* See scheduler.h. */
#include "scheduler.h"

#include <pthread.h>
#include <string.h>

#include "common/clock.h"
#include "common/service_heartbeat.h"
#include "common/time_window.h"
#include "live.h"
#include "park.h"
#include "requests.h"

#define MIGRATE_RETRY_MS 1000
#define LISTEN_RETRY_MS  250
#define LISTEN_TRIES_MAX 40 /* 10 s: a leader that just ended may still hold the address */
#define DRAIN_POLL_MS    10
#define LOCK_WAIT_MS     300 /* one locked task must not keep a thread from the others */

static struct scheduler state;

int scheduler_configure(const struct config_file *file, struct strbuf *problems, struct error *err)
{
    if (config_section(file, "database", &state.database, problems, err) < 0 ||
        config_section(file, "redis", &state.redis, problems, err) < 0 ||
        config_section(file, "bus", &state.bus, problems, err) < 0 ||
        config_section(file, "export", &state.export, problems, err) < 0)
        return -1;
    if (config_section(file, "cleanup", &state.cleanup, problems, err) < 0 ||
        config_section(file, "history", &state.history, problems, err) < 0 ||
        config_section(file, "retry", &state.retry, problems, err) < 0 ||
        config_section(file, "hyper2kvm", &state.hyper2kvm, problems, err) < 0 ||
        config_section(file, "libvirt", &state.libvirt, problems, err) < 0 ||
        config_section(file, "hooks", &state.hooks, problems, err) < 0 ||
        config_section(file, "templates", &state.templates, problems, err) < 0)
        return -1;
    state.bases = export_bases(&state.export);
    if (config_section(file, "scheduler", &state.config, problems, err) < 0)
        return -1;
    time_windows_check(&state.config.maintenance_windows, problems);
    return 0;
}

struct submit_settings scheduler_submit_settings(const struct scheduler *scheduler)
{
    return (struct submit_settings){.bases = &scheduler->bases,
                                    .hyper2kvm = &scheduler->hyper2kvm,
                                    .libvirt = &scheduler->libvirt,
                                    .retry = &scheduler->retry,
                                    .hooks = &scheduler->hooks,
                                    .templates = &scheduler->templates,
                                    .windows = &scheduler->config.maintenance_windows};
}

struct db *scheduler_db(const struct scheduler *scheduler, const char *thread)
{
    struct db *db = db_new(&scheduler->database, SCHEDULER_DB_ROLE, thread);

    db_set_lock_wait(db, LOCK_WAIT_MS);
    return db;
}

struct db *scheduler_queue_db(const struct scheduler *scheduler, const char *thread)
{
    struct db *db = scheduler_db(scheduler, thread);

    db_set_by_index(db);
    return db;
}

bool scheduler_wait_poll(const struct scheduler *scheduler)
{
    int64_t half_ms = scheduler->config.poll_interval_ms / 2;

    return service_wait(scheduler->service, half_ms + clock_backoff_ms(0, half_ms, half_ms));
}

void scheduler_announce_job(struct scheduler *scheduler, const char *job_id, const char *event)
{
    Hypersdk__V1__JobChanged body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    hypersdk__v1__job_changed__init(&body);
    body.job_id = (char *)(uintptr_t)job_id;
    body.event = (char *)(uintptr_t)event;
    bus_envelope_init(&envelope, &store, service_instance(scheduler->service), NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOB_CHANGED;
    envelope.job_changed = &body;
    bus_publish(scheduler->publisher, "job", &envelope);
    publish_wake();
}

/* ---- control of tasks ---- */

struct scheduler_bandwidth scheduler_bandwidth_of(const PGresult *rows, int row, int column)
{
    return (struct scheduler_bandwidth){
        .rate = (uint64_t)db_i64(rows, row, column),
        .burst = (uint64_t)db_i64(rows, row, column + 1),
        .floor = (uint64_t)db_i64(rows, row, column + 2),
        .stamp_ms = (uint64_t)db_i64(rows, row, column + 3),
    };
}

void scheduler_control(Hypersdk__V1__TaskControl *out, Hypersdk__V1__ControlKind kind,
                       const char *task_id)
{
    hypersdk__v1__task_control__init(out);
    out->task_id = (char *)(uintptr_t)task_id;
    out->kind = kind;
}

void scheduler_control_rate(Hypersdk__V1__TaskControl *out, const char *task_id,
                            const struct scheduler_bandwidth *bandwidth)
{
    scheduler_control(out, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_RATE_LIMIT, task_id);
    out->value = bandwidth->rate;
    out->burst_bytes = bandwidth->burst;
    out->floor_bytes = bandwidth->floor;
    out->stamp_ms = bandwidth->stamp_ms;
}

Hypersdk__V1__WorkerLimit *scheduler_worker_limit(Hypersdk__V1__WorkerLimit *out,
                                                  const struct worker_bandwidth *bandwidth)
{
    if (!bandwidth->set)
        return NULL;
    hypersdk__v1__worker_limit__init(out);
    out->bytes_per_second = bandwidth->rate;
    out->burst_bytes = bandwidth->burst;
    return out;
}

void scheduler_announce_control(struct scheduler *scheduler, Hypersdk__V1__TaskControl *control)
{
    struct bus_envelope_store store;
    bus_envelope envelope;

    bus_envelope_init(&envelope, &store, service_instance(scheduler->service), NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_CONTROL;
    envelope.task_control = control;
    bus_publish(scheduler->publisher, "control", &envelope);
}

void scheduler_announce_worker(struct scheduler *scheduler, const char *instance,
                               const char *worker_state)
{
    Hypersdk__V1__WorkerChanged body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    hypersdk__v1__worker_changed__init(&body);
    body.instance = (char *)(uintptr_t)instance;
    body.state = (char *)(uintptr_t)worker_state;
    bus_envelope_init(&envelope, &store, service_instance(scheduler->service), NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_WORKER_CHANGED;
    envelope.worker_changed = &body;
    bus_publish(scheduler->publisher, "worker", &envelope);
}

static void on_request(void *arg, struct bus_request *request)
{
    struct scheduler *scheduler = arg;

    const bus_envelope *envelope = bus_request_envelope(request);

    if (envelope->body_case != HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST) {
        requests_add(scheduler->requests, request);
    } else if (envelope->lease_request->leaving) {
        park_dismiss(scheduler->park, envelope->lease_request, true);
        requests_add(scheduler->requests, request);
    } else {
        park_add(scheduler->park, request);
    }
}

static void on_jobs_changed(struct scheduler *scheduler)
{
    park_wake(scheduler->park);
    publish_wake(); /* who submits or cancels writes history, too */
}

static void on_event(void *arg, const bus_envelope *envelope)
{
    struct scheduler *scheduler = arg;

    if (envelope->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_PROGRESS) {
        live_progress(scheduler->live, envelope->task_progress);
    } else if (envelope->body_case == HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED) {
        on_jobs_changed(scheduler);
    }
}

/* The schema first: nothing else of the suite works without it. */
static int migrate(struct scheduler *scheduler, struct error *err)
{
    struct database_config owner = scheduler->database;
    struct log_throttle throttle = {0};
    int rc = -1;

    if (owner.owner_url[0] != '\0')
        owner.url = owner.owner_url;
    auto_db *db = db_new(&owner, NULL, "scheduler migrate");
    while (!service_stopping(scheduler->service)) {
        struct error why = ERROR_NONE;
        uint64_t held = 0;
        rc = db_migrate(db, &why);
        if (rc == 0 || !error_is_retryable(&why)) {
            if (rc < 0)
                *err = why;
            return rc;
        }
        if (log_throttle_pass(&throttle, why.message, &held))
            LOG(WARN, "waiting_for_database", F_ERR(&why));
        (void)service_wait(scheduler->service, MIGRATE_RETRY_MS);
    }
    return error_set(err, ERR_CANCELLED, "stopped before the database was there");
}

static int start(void *(*fn)(void *), struct scheduler *scheduler, struct error *err)
{
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, fn, scheduler);

    if (rc != 0)
        return error_set_errno(err, rc, "thread");
    (void)pthread_detach(thread);
    return 0;
}

/* The first of the three sockets: who has it has them all. The row is kept meanwhile. */
static int open_publisher(struct scheduler *scheduler, struct db *db, struct error *err)
{
    for (int i = 0;; i++) {
        struct error why = ERROR_NONE;
        if (bus_publisher_open(&scheduler->bus, &scheduler->publisher, &why) == 0)
            return 0;
        if (why.code != ERR_CONFLICT || i == LISTEN_TRIES_MAX) {
            *err = why;
            return -1;
        }
        if (i == 0)
            LOG(WARN, "waiting_for_address", F_ERR(&why));
        if (service_wait(scheduler->service, LISTEN_RETRY_MS))
            return error_set(err, ERR_CANCELLED, "stopped before listening");
        if (leader_renew(scheduler, db, err) < 0)
            return -1;
    }
}

static void announce_leading(struct scheduler *scheduler)
{
    static char leading[] = "leading";
    Hypersdk__V1__SchedulerChanged body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    hypersdk__v1__scheduler_changed__init(&body);
    body.holder = (char *)(uintptr_t)service_instance(scheduler->service);
    body.state = leading;
    bus_envelope_init(&envelope, &store, service_instance(scheduler->service), NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_SCHEDULER_CHANGED;
    envelope.scheduler_changed = &body;
    bus_publish(scheduler->publisher, "scheduler", &envelope);
}

/* Threads first: the first request may come with the first socket. */
static int lead(struct scheduler *scheduler, struct db *db, struct error *err)
{
    if (open_publisher(scheduler, db, err) < 0 || start(park_main, scheduler, err) < 0 ||
        start(reaper_main, scheduler, err) < 0 || start(schedule_fire_main, scheduler, err) < 0 ||
        start(workflows_main, scheduler, err) < 0 || start(publish_main, scheduler, err) < 0 ||
        start(leader_watch_main, scheduler, err) < 0)
        return -1;
    for (size_t i = 0; i < REQUEST_THREADS; i++) {
        if (start(requests_main, scheduler, err) < 0)
            return -1;
    }
    if (bus_puller_start(&scheduler->bus, on_event, scheduler, err) < 0 ||
        bus_server_open(&scheduler->bus, SERVER_CONTEXTS, on_request, scheduler, &scheduler->server,
                        err) < 0)
        return -1;
    announce_leading(scheduler);
    return 0;
}

/* What workers have said is answered; their parked requests are sent away by the dispatcher. */
static void drain(struct scheduler *scheduler)
{
    int64_t until = clock_mono_ms() + service_drain_ms(scheduler->service);

    park_wake(scheduler->park);
    while ((requests_busy(scheduler->requests) || park_busy(scheduler->park)) &&
           clock_mono_ms() < until)
        clock_sleep_ms(DRAIN_POLL_MS);
    clock_sleep_ms(DRAIN_POLL_MS); /* the last answers leave the sockets' threads */
}

static int run(struct scheduler *scheduler, struct error *err)
{
    auto_db *db = scheduler_db(scheduler, "scheduler leader");

    if (migrate(scheduler, err) < 0 ||
        service_heartbeat_start(scheduler->service, &scheduler->database, SCHEDULER_DB_ROLE, err) <
            0 ||
        leader_acquire(scheduler, db, err) < 0 || scheduler_set_aging(scheduler, db, err) < 0 ||
        lead(scheduler, db, err) < 0)
        return -1;
    service_set_ready(scheduler->service, "leader", true, "");
    leader_keep(scheduler, db);
    drain(scheduler);
    leader_release(scheduler, db);
    return 0;
}

int scheduler_work(struct scheduler *scheduler, struct service *service, struct error *err)
{
    int rc;

    scheduler->service = service;
    scheduler->park = park_new();
    scheduler->requests = requests_new();
    scheduler->live = live_new();
    service_set_ready(service, "leader", false, "not the leader yet");
    rc = run(scheduler, err);
    if (rc < 0 && err->code == ERR_CANCELLED && service_stopping(service)) {
        error_clear(err); /* stopped while it waited: nothing to hand back */
        rc = 0;
    }
    return rc;
}

int scheduler_run(struct service *service, struct error *err)
{
    return scheduler_work(&state, service, err);
}
