/* Load for the queue, for tests/bench: workers that lease and finish over the real bus, and jobs
 * that come in through job_store as the gateway's do. One JSON line on stdout.
 *
 *   queue_load <configuration> throughput <workers> <jobs> <jobs per commit>
 *   queue_load <configuration> latency <workers> <jobs> <jobs per second>
 *
 * throughput: all jobs from the first commit to the last acknowledged end. latency: from each job's
 * commit (one per job) to the moment when a waiting worker has its lease. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/bus.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/id.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/parse.h"

#define JOBS_MAX      200000
#define WORKERS_MAX   256
#define SUBMITTERS    8
#define CALL_MS       60000
#define STALL_S       60 /* nothing ends for so long: the run has failed */
#define WAIT_POLL_MS  20
#define RAMP_UP_MS    500     /* every worker is parked by then */
#define PREFIX        "load-" /* of job ids; the number follows */
#define NS_PER_SECOND 1000000000

static struct bus_client *client;
static struct bus_pusher *pusher;
static struct database_config database;
static uint64_t jobs, per_commit, per_second;
static _Atomic int64_t committed_ns[JOBS_MAX];
static int64_t waited_ns[JOBS_MAX];
static int64_t commit_ns[JOBS_MAX]; /* how long the commit itself took */
static atomic_uint_fast64_t next_job, leased, ended, ready;
static _Atomic int64_t start_ns; /* 0: not yet */
static char run_id[ID_SIZE];

static void stop(const char *what, const struct error *err)
{
    (void)fprintf(stderr, "queue_load: %s: %s\n", what, err->message);
    _exit(1);
}

/* ---- workers ---- */

static void note_lease(const char *job_id)
{
    int64_t now = clock_mono_ns();
    size_t prefix = strlen(run_id);
    uint64_t number = 0;
    struct error err = ERROR_NONE;
    int64_t since;

    if (strncmp(job_id, run_id, prefix) != 0 ||
        parse_u64("job", job_id + prefix + 1, 0, JOBS_MAX - 1, &number, &err) < 0)
        return; /* a job that lay there before */
    since = atomic_load(&committed_ns[number]);
    waited_ns[number] = since == 0 ? 0 : now - since; /* 0: leased before COMMIT had returned */
    (void)atomic_fetch_add(&leased, 1);
}

/* What an export of one disk reports (docs/tasks.md). Caller frees. */
static char *result_of(const char *task_id)
{
    return xasprintf(
        "{\"vm_name\":\"load\",\"format\":\"qcow2\",\"output_path\":\"/exports/load\","
        "\"files\":[{\"name\":\"disk-0.qcow2\",\"size\":5,\"sha256\":\"ab\",\"type\":\"disk\"}],"
        "\"total_size\":5,\"export\":{\"id\":\"exp-%s\",\"volume\":\"v\",\"vm_id\":\"vm-1\","
        "\"vm_name\":\"load\",\"format\":\"qcow2\",\"path\":\"/exports/load\",\"total_size\":5,"
        "\"created_at\":\"2026-03-01T00:00:00Z\",\"manifest\":{},\"disks\":[{\"disk_id\":\"disk-"
        "0\","
        "\"file\":\"disk-0.qcow2\",\"size_bytes\":5,\"capacity_bytes\":1024,\"sha256\":\"ab\","
        "\"root\":\"r\",\"change_id\":\"\"}]}}",
        task_id);
}

/* *out_again: for a passing reason nothing was done. */
static int finish_once(const char *instance, const Hypersdk__V1__TaskLease *lease, bool *out_again,
                       struct error *err)
{
    autofree char *result = result_of(lease->ref->task_id);
    Hypersdk__V1__TaskFinish body;
    struct bus_envelope_store store;
    bus_envelope envelope;
    auto_bus_envelope *reply = NULL;

    hypersdk__v1__task_finish__init(&body);
    body.ref = lease->ref;
    body.result_json = result;
    bus_envelope_init(&envelope, &store, instance, NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH;
    envelope.task_finish = &body;
    if (bus_client_call(client, &envelope, CALL_MS, &reply, err) < 0)
        return -1;
    if (reply->body_case != HYPERSDK__V1__ENVELOPE__BODY_ACK)
        return error_set(err, ERR_PROTOCOL, "finish was not answered");
    *out_again = reply->ack->again;
    if (reply->ack->lost || (reply->ack->error[0] != '\0' && !*out_again)) {
        return error_set(err, ERR_INTERNAL, "finish was refused: %s",
                         reply->ack->lost ? "lost" : reply->ack->error);
    }
    return 0;
}

static int finish(const char *instance, const Hypersdk__V1__TaskLease *lease, struct error *err)
{
    bool again = true;

    while (again) {
        if (finish_once(instance, lease, &again, err) < 0)
            return -1;
        if (again)
            clock_sleep_ms(WAIT_POLL_MS);
    }
    (void)atomic_fetch_add(&ended, 1);
    return 0;
}

static int lease_once(const char *instance, uint32_t slot, struct error *err)
{
    char *kinds[] = {(char *)(uintptr_t) "export"};
    Hypersdk__V1__LeaseRequest body;
    struct bus_envelope_store store;
    bus_envelope envelope;
    auto_bus_envelope *reply = NULL;

    hypersdk__v1__lease_request__init(&body);
    body.instance = (char *)(uintptr_t)instance;
    body.role = (char *)(uintptr_t) "exporter";
    body.provider = (char *)(uintptr_t) "vsphere";
    body.class_ = HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
    body.task_kinds = kinds;
    body.n_task_kinds = 1;
    body.slot = slot;
    body.slots_total = 1;
    bus_envelope_init(&envelope, &store, instance, NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    envelope.lease_request = &body;
    if (bus_client_call(client, &envelope, CALL_MS, &reply, err) < 0)
        return -1;
    if (reply->body_case != HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE)
        return 0; /* nothing to do for a while */
    note_lease(reply->task_lease->job_id);
    return finish(instance, reply->task_lease, err);
}

static void *worker_main(void *arg)
{
    autofree char *instance = xasprintf("load-worker-%zu", (size_t)(uintptr_t)arg);
    struct error err = ERROR_NONE;

    for (;;) {
        if (lease_once(instance, 0, &err) < 0)
            stop("worker", &err);
    }
    return NULL;
}

/* ---- submitters ---- */

/* What all of them ask for; the numbers are in their ids. */
static int submit(struct db *db, uint64_t first, size_t count, struct error *err)
{
    auto_json *definition = json_pack("{s:s, s:s}", "vm_path", "/DC0/vm/load", "format", "qcow2");
    auto_json *spec = json_pack("{s:s, s:s}", "vm_path", "/DC0/vm/load", "format", "qcow2");
    autofree struct job_submission *s = xcalloc(count, sizeof *s);
    autofree struct job_store_submitted *out = xcalloc(count, sizeof *out);
    autofree char(*ids)[64] = xcalloc(count, sizeof *ids);

    for (size_t i = 0; i < count; i++) {
        (void)snprintf(ids[i], sizeof ids[i], "%s-%" PRIu64, run_id, first + i);
        s[i] = (struct job_submission){
            .id = ids[i],
            .name = "",
            .kind = "export",
            .provider = "vsphere",
            .provider_kind = "vsphere",
            .vm_path = "/DC0/vm/load",
            .output_path = "/exports/load",
            .format = "qcow2",
            .definition = definition,
            .export_spec = spec,
            .priority = 90, /* before what lies there already */
            .max_attempts = 3,
            .retry_initial_ms = 1000,
            .retry_max_ms = 1000,
            .submitted_by = "load",
            .trace_id = "",
        };
    }
    if (job_store_submit_all(db, s, count, out, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (out[i].error.code != ERR_NONE) {
            *err = out[i].error;
            return -1;
        }
    }
    return 0;
}

static void poke(void)
{
    Hypersdk__V1__JobsChanged body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    hypersdk__v1__jobs_changed__init(&body);
    bus_envelope_init(&envelope, &store, "queue_load", NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED;
    envelope.jobs_changed = &body;
    bus_push(pusher, &envelope);
}

static int commit_group(struct db *db, uint64_t first, uint64_t end, struct error *err)
{
    int64_t before;
    int64_t now;

    if (db_begin_by_index(db, err) < 0) /* as job_store_submit_all does without one */
        return -1;
    if (submit(db, first, (size_t)(end - first), err) < 0)
        return -1;
    before = clock_mono_ns();
    if (db_commit(db, err) < 0)
        return -1;
    now = clock_mono_ns();
    for (uint64_t i = first; i < end; i++) {
        atomic_store(&committed_ns[i], now);
        commit_ns[i] = now - before;
    }
    poke();
    return 0;
}

/* Connected, and all its statements prepared: gateways have been up for a while. */
static void warm_up(struct db *db)
{
    struct error err = ERROR_NONE;

    if (db_begin_by_index(db, &err) < 0 || submit(db, 0, 1, &err) < 0 || db_flush(db, &err) < 0)
        stop("submitter", &err);
    db_rollback(db);
    (void)atomic_fetch_add(&ready, 1);
    while (atomic_load(&start_ns) == 0)
        clock_sleep_ms(1);
}

static void *submitter_main(void *arg)
{
    auto_db *db = db_new(&database, "hypersdk_gateway", "queue_load");
    struct error err = ERROR_NONE;

    (void)arg;
    warm_up(db);
    for (;;) {
        uint64_t first = atomic_fetch_add(&next_job, per_commit);
        if (first >= jobs)
            return NULL;
        if (per_second > 0) { /* each job has its moment */
            int64_t due = start_ns + (int64_t)(first * NS_PER_SECOND / per_second);
            int64_t left_ms = (due - clock_mono_ns()) / 1000000;
            if (left_ms > 0)
                clock_sleep_ms(left_ms);
        }
        if (commit_group(db, first, min_u64(first + per_commit, jobs), &err) < 0)
            stop("submit", &err);
    }
}

/* ---- figures ---- */

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static double ms_at(int64_t *sorted, double quantile)
{
    return (double)sorted[(size_t)((double)(jobs - 1) * quantile)] / 1e6;
}

static void print_figures(double seconds)
{
    qsort(waited_ns, jobs, sizeof *waited_ns, compare);
    qsort(commit_ns, jobs, sizeof *commit_ns, compare);
    (void)printf("{\"jobs\": %" PRIu64 ", \"seconds\": %.3f, \"jobs_per_second\": %.1f,"
                 " \"start_p50_ms\": %.3f, \"start_p99_ms\": %.3f, \"commit_p50_ms\": %.3f,"
                 " \"commit_p99_ms\": %.3f}\n",
                 jobs, seconds, (double)jobs / seconds, ms_at(waited_ns, 0.5),
                 ms_at(waited_ns, 0.99), ms_at(commit_ns, 0.5), ms_at(commit_ns, 0.99));
    (void)fflush(stdout);
}

static void wait_for_end(void)
{
    uint64_t seen = 0;
    int64_t since = clock_mono_ms();

    while (atomic_load(&leased) < jobs || atomic_load(&ended) < jobs) {
        uint64_t now = atomic_load(&ended);
        if (now != seen) {
            seen = now;
            since = clock_mono_ms();
        } else if (clock_mono_ms() - since > STALL_S * 1000) {
            struct error err = ERROR_NONE;
            (void)error_set(&err, ERR_UNAVAILABLE, "nothing ended for %d s after %" PRIu64 " jobs",
                            STALL_S, now);
            stop("stalled", &err);
        }
        clock_sleep_ms(WAIT_POLL_MS);
    }
}

static void start_thread(void *(*fn)(void *), void *arg)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, fn, arg) != 0)
        abort();
    (void)pthread_detach(thread);
}

static void run(uint64_t workers)
{
    for (uint64_t i = 0; i < workers; i++)
        start_thread(worker_main, (void *)(uintptr_t)i);
    for (size_t i = 0; i < SUBMITTERS; i++)
        start_thread(submitter_main, NULL);
    while (atomic_load(&ready) < SUBMITTERS)
        clock_sleep_ms(1);
    clock_sleep_ms(RAMP_UP_MS);
    atomic_store(&start_ns, clock_mono_ns());
    wait_for_end();
    print_figures((double)(clock_mono_ns() - start_ns) / 1e9);
}

static int open_all(const char *path, struct error *err)
{
    static struct bus_config bus;
    auto_config_file *file = NULL;
    auto_strbuf problems;

    strbuf_init(&problems, 4096);
    if (config_file_load(path, &file, &problems, err) < 0 ||
        config_section(file, "bus", &bus, &problems, err) < 0 ||
        config_section(file, "database", &database, &problems, err) < 0)
        return -1;
    if (bus_client_open(&bus, &client, err) < 0)
        return -1;
    return bus_pusher_open(&bus, &pusher, err);
}

int main(int argc, char **argv)
{
    struct error err = ERROR_NONE;
    uint64_t workers = 0;
    uint64_t last = 0;

    if (argc != 6 || parse_u64("workers", argv[3], 1, WORKERS_MAX, &workers, &err) < 0 ||
        parse_u64("jobs", argv[4], 1, JOBS_MAX, &jobs, &err) < 0 ||
        parse_u64("number", argv[5], 1, JOBS_MAX, &last, &err) < 0 || open_all(argv[1], &err) < 0) {
        (void)fprintf(stderr, "queue_load: %s\n", argc == 6 ? err.message : "see the source");
        return 2;
    }
    id_new(PREFIX, run_id);
    per_commit = strcmp(argv[2], "throughput") == 0 ? last : 1;
    per_second = strcmp(argv[2], "throughput") == 0 ? 0 : last;
    run(workers);
    _exit(0); /* sockets of the bus are never closed */
}
