/* A worker process against a scripted scheduler: leases, renewal, log lines, stopping, records,
 * permits, pages, drain, and a scheduler that is away. */
#include "tests/unit/common/scheduler_fixture.h"

#include "common/autos.h"
#include "common/json.h"
#include "common/worker.h"

/* ---- the worker: a task is a list of steps in its spec ---- */

static void wait_file(const char *path)
{
    while (access(path, F_OK) < 0)
        clock_sleep_ms(5);
}

static void touch(const char *path)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

    (void)close(fd);
}

static int step_inventory(struct worker_task *task, const json_t *step, struct error *err)
{
    size_t count = json_u64(step, "count");
    size_t bytes = json_u64(step, "bytes");
    autofree struct worker_inventory_vm *vms = xcalloc(count + 1, sizeof *vms);
    autofree char *json = xmalloc(bytes + 3);

    memset(json, ' ', bytes + 2);
    json[0] = '{';
    json[bytes + 1] = '}';
    json[bytes + 2] = '\0';
    for (size_t i = 0; i < count; i++)
        vms[i] = (struct worker_inventory_vm){"vm-1", "name", "/path", "poweredOn", json};
    return worker_task_inventory(task, vms, count, true, err);
}

static int step_progress(struct worker_task *task, const json_t *step)
{
    struct worker_disk_progress disk = {.state = "copying"};
    struct worker_progress progress = {.limited_by = "source", .disks = &disk, .disk_count = 1};
    uint64_t total = json_u64(step, "total");

    (void)snprintf(disk.file, sizeof disk.file, "%s", json_str(step, "file"));
    progress.bytes_total = total;
    while (progress.bytes_done < total && !atomic_load(worker_task_stopped(task))) {
        progress.bytes_done += total / 100;
        progress.bytes_transferred += total / 200;
        worker_task_progress(task, &progress);
        clock_sleep_ms(20);
    }
    return 0;
}

/* Writes into the file when it last began a write that it was allowed. */
static int step_write(const struct worker_task *task, const char *path, struct error *err)
{
    int64_t now = clock_mono_ms();
    int64_t last = 0;
    struct error ignored = ERROR_NONE;

    while (worker_task_may_write(task, err) == 0) {
        last = now;
        clock_sleep_ms(5);
        now = clock_mono_ms();
    }
    autofree char *text = xasprintf("%lld", (long long)last);
    return file_write_atomic(path, text, strlen(text), 0600, &ignored) == 0 ? -1 : 0;
}

static int step_fail(const json_t *step, struct error *err)
{
    return error_set(err, error_code_from_name(json_str(step, "fail")), "%s",
                     json_str(step, "message"));
}

static int step_log(struct worker_task *task, const json_t *step)
{
    for (uint64_t i = 0; i < json_u64(step, "count"); i++)
        worker_task_log(task, LOG_LEVEL_INFO, "%s", json_str(step, "log"));
    return 0;
}

struct rates { /* all that were told */
    pthread_mutex_t mutex;
    json_t *seen;
};

static void on_rate(void *arg, const struct worker_rate *rate)
{
    struct rates *rates = arg;

    LOCK_SCOPE(&rates->mutex);
    (void)json_array_append_new(rates->seen,
                                json_pack("[I,I,I]", (json_int_t)rate->rate,
                                          (json_int_t)rate->burst, (json_int_t)rate->floor));
}

/* The result is what was told until there were so many. */
static int step_rates(struct worker_task *task, uint64_t count, json_t **out_result)
{
    struct rates rates = {.mutex = PTHREAD_MUTEX_INITIALIZER, .seen = json_array()};
    bool enough = false;

    worker_task_on_rate(task, on_rate, &rates);
    worker_task_phase(task, "exporting");
    while (!enough) {
        clock_sleep_ms(5);
        LOCK_SCOPE(&rates.mutex);
        enough = json_array_size(rates.seen) >= count;
    }
    worker_task_on_rate(task, NULL, NULL);
    *out_result = json_pack("{s:o}", "rates", rates.seen);
    return 0;
}

static int run_step(struct worker_task *task, const json_t *step, json_t **out_result,
                    struct error *err)
{
    const char *key = json_str(step, "record");

    if (json_object_get(step, "log") != NULL)
        return step_log(task, step);
    if (json_object_get(step, "rates") != NULL)
        return step_rates(task, json_u64(step, "rates"), out_result);
    if (json_object_get(step, "phase") != NULL)
        worker_task_phase(task, json_str(step, "phase"));
    if (json_str(step, "claim")[0] != '\0')
        return worker_task_record_claim(task, json_str(step, "claim"), "one", err);
    if (key[0] != '\0')
        return worker_task_record_put(task, key, json_str(step, "value"), err);
    if (json_object_get(step, "permit") != NULL)
        return worker_task_permit(task, err);
    if (json_object_get(step, "inventory") != NULL)
        return step_inventory(task, json_object_get(step, "inventory"), err);
    if (json_object_get(step, "progress") != NULL)
        return step_progress(task, json_object_get(step, "progress"));
    if (json_object_get(step, "write") != NULL)
        return step_write(task, json_str(step, "write"), err);
    if (json_object_get(step, "fail") != NULL)
        return step_fail(step, err);
    if (json_object_get(step, "touch") != NULL)
        touch(json_str(step, "touch"));
    if (json_object_get(step, "wait_file") != NULL)
        wait_file(json_str(step, "wait_file"));
    if (json_object_get(step, "wait_stop") != NULL) {
        while (!atomic_load(worker_task_stopped(task)))
            clock_sleep_ms(5);
        return worker_task_check(task, err);
    }
    if (json_object_get(step, "recall") != NULL) {
        const char *value = worker_task_record_get(task, json_str(step, "recall"));
        *out_result = json_object();
        json_set_text(*out_result, "recalled", value == NULL ? "nothing" : value);
    }
    return 0;
}

static int run_script(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    const json_t *step;
    size_t i;

    (void)arg;
    json_array_foreach(json_object_get(worker_task_spec(task), "steps"), i, step)
    {
        if (run_step(task, step, out_result, err) < 0)
            return -1;
    }
    return 0;
}

static struct bus_config worker_bus;
static struct export_config worker_export;

static int worker_configure(const struct config_file *file, struct strbuf *problems,
                            struct error *err)
{
    return config_section(file, "bus", &worker_bus, problems, err) < 0 ||
                   config_section(file, "export", &worker_export, problems, err) < 0
               ? -1
               : 0;
}

static int worker_body(struct service *service, struct error *err)
{
    static const struct worker_kind kinds[] = {{"script", false, run_script},
                                               {"short", true, run_script}};
    static const struct config_list bases = {&worker_export.base_path, 1};
    struct worker_description description = {
        .role = "exporter",
        .provider = "fake",
        .kinds = kinds,
        .kind_count = 2,
        .transfer_slots = 2,
        .control_slots = 1,
        .bases = &bases,
    };

    return worker_run(service, &worker_bus, &description, err);
}

static int worker_main(int argc, char **argv)
{
    static const struct service_description description = {
        .name = "exporter-fake",
        .purpose = "a worker for tests",
        .admin_key = "exporter",
        .configure = worker_configure,
        .run = worker_body,
    };

    return service_main(argc, argv, &description);
}

/* ---- helpers ---- */

static struct scheduler *start(void)
{
    autofree char *base = NULL;
    autofree char *more = NULL;
    struct scheduler *s = scheduler_new("", true);

    base = path_in(s, "base");
    more = xasprintf("export:\n  base_path: %s\n", base);
    write_config(s, more);
    open_sockets(s);
    worker_spawn(s, "worker");
    return s;
}

static void run_steps(struct scheduler *s, const char *format, ...) PRINTF_LIKE(2, 3);
static void run_steps(struct scheduler *s, const char *format, ...)
{
    char steps[4096];
    autofree char *spec = NULL;
    va_list args;

    va_start(args, format);
    (void)vsnprintf(steps, sizeof steps, format, args);
    va_end(args);
    spec = xasprintf("{\"steps\": [%s]}", steps);
    scheduler_lease(s, "script", spec, NULL);
}

static void expect_finish(struct scheduler *s, const char *result)
{
    struct bus_request *request = scheduler_expect(s, TASK_FINISH);
    const Hypersdk__V1__TaskFinish *finish = bus_request_envelope(request)->task_finish;

    assert_string_equal(finish->result_json, result);
    assert_string_equal(finish->ref->task_id, "task-1");
    assert_int_equal(finish->ref->epoch, 7);
    assert_int_equal(finish->ref->token.len, TOKEN_BYTES);
    (void)pthread_mutex_lock(&s->mutex);
    store_lines(s, finish->lines, finish->n_lines);
    (void)pthread_mutex_unlock(&s->mutex);
    reply_done(request);
}

static void expect_fail(struct scheduler *s, const char *code, const char *message, bool retryable)
{
    struct bus_request *request = scheduler_expect(s, TASK_FAIL);
    const Hypersdk__V1__TaskFail *fail = bus_request_envelope(request)->task_fail;

    assert_string_equal(fail->error_code, code);
    if (strstr(fail->message, message) == NULL)
        fail_msg("'%s' instead of '%s'", fail->message, message);
    assert_int_equal(fail->retryable, retryable);
    reply_done(request);
}

/* ---- tests ---- */

static void slots_ask_for_the_kinds_of_their_class(void **state)
{
    struct scheduler *s = start();
    size_t transfer = 0;

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct bus_request *request = scheduler_expect(s, LEASE_REQUEST);
        const Hypersdk__V1__LeaseRequest *m = bus_request_envelope(request)->lease_request;
        bool is_transfer = m->class_ == HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
        autofree char *base = path_in(s, "base");
        transfer += is_transfer ? 1 : 0;
        assert_string_equal(m->task_kinds[0], is_transfer ? "script" : "short");
        assert_int_equal(m->n_task_kinds, 1);
        assert_int_equal(m->slots_total, is_transfer ? 2 : 1);
        assert_string_equal(m->role, "exporter");
        assert_string_equal(m->provider, "fake");
        assert_int_equal(m->pid, s->worker);
        assert_int_equal(m->n_volumes, 1);
        assert_string_equal(m->volumes[0]->path, base);
        assert_int_equal(strlen(m->volumes[0]->id), UUID_SIZE - 1);
        assert_true(m->volumes[0]->free_bytes > 0);
        reply_no_task(request, 60000);
    }
    assert_int_equal(transfer, 2);
    scheduler_end(s);
}

static void a_slot_asks_again_after_no_task(void **state)
{
    struct scheduler *s = start();

    (void)state;
    for (int i = 0; i < 5; i++)
        reply_no_task(scheduler_expect(s, LEASE_REQUEST), 0);
    run_steps(s, "{}");
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void the_volume_id_stays_the_same(void **state)
{
    struct scheduler *s = start();
    autofree char *file = path_in(s, "base/.hypersdk-volume");
    autofree char *first = NULL, *second = NULL;
    struct error err = ERROR_NONE;
    size_t size = 0;

    (void)state;
    scheduler_expect(s, LEASE_REQUEST);
    assert_ok(file_read(file, 100, &first, &size, &err), err);
    worker_end(s);
    worker_spawn(s, "worker");
    while (bus_request_envelope(scheduler_expect(s, LEASE_REQUEST))->lease_request->pid !=
           (uint32_t)s->worker)
        continue;
    assert_ok(file_read(file, 100, &second, &size, &err), err);
    assert_string_equal(first, second);
    scheduler_end(s);
}

static void a_task_is_renewed_before_it_starts_and_then_reported(void **state)
{
    struct scheduler *s = start();

    (void)state;
    s->renews = false;
    run_steps(s, "{\"recall\": \"x\"}");
    struct bus_request *renewal = scheduler_expect(s, TASK_RENEW);
    scheduler_quiet(s, TASK_FINISH, 200);
    (void)pthread_mutex_lock(&s->mutex);
    reply_renewal(s, renewal);
    (void)pthread_mutex_unlock(&s->mutex);
    expect_finish(s, "{\"recalled\":\"nothing\"}");
    scheduler_end(s);
}

static void a_lease_lost_before_the_start_runs_nothing(void **state)
{
    struct scheduler *s = start();

    (void)state;
    s->renews = false;
    run_steps(s, "{}");
    reply_lost(scheduler_expect(s, TASK_RENEW));
    scheduler_quiet(s, TASK_FINISH, 300);
    assert_true(worker_logged(s, "\"task_not_started\""));
    scheduler_end(s);
}

static void records_of_earlier_leases_are_handed_over(void **state)
{
    struct scheduler *s = start();

    (void)state;
    scheduler_lease(s, "script", "{\"steps\": [{\"recall\": \"snapshot\"}]}",
                    &(struct lease_extras){.record_key = "snapshot", .record_value = "snap-9"});
    expect_finish(s, "{\"recalled\":\"snap-9\"}");
    scheduler_end(s);
}

static void all_log_lines_arrive_in_order(void **state)
{
    struct scheduler *s = start();
    char longest[BUS_LOG_MESSAGE_MAX + 1];

    (void)state;
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    run_steps(s, "{\"log\": \"first\", \"count\": 1}, {\"log\": \"%s\", \"count\": 300}", longest);
    expect_finish(s, "{}");
    assert_int_equal(s->line_count, 301);
    assert_string_equal(s->lines[0], "first");
    for (size_t i = 1; i < 301; i++)
        assert_string_equal(s->lines[i], longest);
    scheduler_end(s);
}

static void lines_that_were_not_stored_are_sent_again(void **state)
{
    struct scheduler *s = start();
    autofree char *gate = path_in(s, "gate");

    (void)state;
    s->store_max = 10;
    run_steps(s, "{\"log\": \"line\", \"count\": 25}, {\"wait_file\": \"%s\"}", gate);
    scheduler_until(s, s->line_count == 10);
    (void)pthread_mutex_lock(&s->mutex);
    s->store_max = UINT64_MAX;
    (void)pthread_mutex_unlock(&s->mutex);
    touch(gate);
    expect_finish(s, "{}");
    assert_int_equal(s->line_count, 25);
    scheduler_end(s);
}

static void log_lines_hasten_the_renewal(void **state)
{
    struct scheduler *s = start();
    autofree char *gate = path_in(s, "gate");
    int64_t began;

    (void)state;
    run_steps(s, "{\"log\": \"line\", \"count\": 1}, {\"wait_file\": \"%s\"}", gate);
    began = clock_mono_ms();
    scheduler_until(s, s->line_count == 1);
    assert_true(clock_mono_ms() - began < WORKER_RENEW_MS - 1000);
    touch(gate);
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void many_lines_wait_for_a_scheduler_that_is_away(void **state)
{
    struct scheduler *s = start();
    autofree char *gate = path_in(s, "gate");
    struct bus_request *held;

    (void)state;
    run_steps(s,
              "{\"phase\": \"exporting\"}, {\"wait_file\": \"%s\"}, "
              "{\"log\": \"line\", \"count\": 5000}",
              gate);
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    (void)pthread_mutex_lock(&s->mutex);
    s->renews = false;
    (void)pthread_mutex_unlock(&s->mutex);
    touch(gate);
    held = scheduler_expect(s, TASK_RENEW); /* not answered in time */
    scheduler_quiet(s, TASK_FINISH, 500);
    (void)pthread_mutex_lock(&s->mutex);
    s->renews = true;
    reply_renewal(s, held);
    (void)pthread_mutex_unlock(&s->mutex);
    expect_finish(s, "{}");
    assert_int_equal(s->line_count, 5000);
    scheduler_end(s);
}

static void a_text_that_is_not_utf8_or_too_long_does_not_stop_the_renewal(void **state)
{
    struct scheduler *s = start();
    autofree char *gate = path_in(s, "gate");

    (void)state;
    /* 1999 letters and one of three bytes: cut inside of it would be no text any more */
    char text[2003];
    memset(text, 'a', 1999);
    memcpy(text + 1999, "\xe2\x82\xac", 4);
    run_steps(s,
              "{\"phase\": \"\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac"
              "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\"}, "
              "{\"log\": \"%s\", \"count\": 1}, {\"wait_file\": \"%s\"}",
              text, gate);
    scheduler_until(s, s->line_count == 1);
    text[1999] = '\0';
    assert_string_equal(s->lines[0], text);
    assert_int_equal(strlen(s->phase), 30);
    touch(gate);
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void a_failure_says_whether_it_may_be_tried_again(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"fail\": \"unavailable\", \"message\": \"the host is away\"}");
    expect_fail(s, "unavailable", "the host is away", true);
    run_steps(s, "{\"fail\": \"denied\", \"message\": \"wrong password\"}");
    expect_fail(s, "denied", "wrong password", false);
    scheduler_end(s);
}

static void a_report_is_repeated_with_the_same_id_until_it_is_acknowledged(void **state)
{
    struct scheduler *s = start();
    struct bus_request *request;
    char id[64];

    (void)state;
    run_steps(s, "{\"log\": \"last words\", \"count\": 1}");
    request = scheduler_expect(s, TASK_FINISH);
    (void)snprintf(id, sizeof id, "%s", bus_request_envelope(request)->message_id);
    reply_ack(request, false, "the database is away", true);
    request = scheduler_expect(s, TASK_FINISH);
    assert_string_equal(bus_request_envelope(request)->message_id, id);
    assert_int_equal(bus_request_envelope(request)->task_finish->n_lines, 1);
    /* not answered at all now: asked again after some seconds, the late answer is not heard */
    struct bus_request *late = request;
    request = scheduler_expect(s, TASK_FINISH);
    assert_string_equal(bus_request_envelope(request)->message_id, id);
    reply_done(late);
    reply_done(request);
    scheduler_quiet(s, TASK_FINISH, 300);
    scheduler_end(s);
}

static void a_report_that_is_refused_becomes_a_failure(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{}");
    reply_ack(scheduler_expect(s, TASK_FINISH), false, "it has no such column", false);
    expect_fail(s, "internal", "it has no such column", false);
    scheduler_end(s);
}

static void a_lost_lease_stops_the_task_without_a_report(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"phase\": \"exporting\"}, {\"wait_stop\": true}");
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    (void)pthread_mutex_lock(&s->mutex);
    s->renews = false;
    (void)pthread_mutex_unlock(&s->mutex);
    reply_lost(scheduler_expect(s, TASK_RENEW));
    scheduler_quiet(s, TASK_FAIL, 500);
    /* the slot is free again */
    s->renews = true;
    run_steps(s, "{}");
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void an_announced_cancel_stops_the_task(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"phase\": \"exporting\"}, {\"wait_stop\": true}");
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL, "task-2");
    scheduler_quiet(s, TASK_FAIL, 200);
    /* no renewal tells of it */
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL, "task-1");
    expect_fail(s, "cancelled", "cancelled", false);
    scheduler_end(s);
}

static void a_pause_hands_the_task_back_and_the_slot_takes_the_next(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"phase\": \"exporting\"}, {\"wait_stop\": true}");
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_PAUSE, "task-1");
    struct bus_request *request = scheduler_expect(s, TASK_YIELD);
    assert_string_equal(bus_request_envelope(request)->task_yield->reason, "the job is paused");
    reply_done(request);
    run_steps(s, "{}");
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void publish_rate(struct scheduler *s, uint64_t rate, uint64_t stamp_ms)
{
    struct bus_envelope_store store;
    Hypersdk__V1__TaskControl body;
    bus_envelope envelope;

    hypersdk__v1__task_control__init(&body);
    body.task_id = (char *)(uintptr_t) "task-1";
    body.kind = HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_RATE_LIMIT;
    body.value = rate;
    body.burst_bytes = rate + 1;
    body.floor_bytes = 2;
    body.stamp_ms = stamp_ms;
    bus_envelope_init(&envelope, &store, "scheduler-test", NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_CONTROL;
    envelope.task_control = &body;
    bus_publish(s->publisher, "control", &envelope);
}

static void an_announced_bandwidth_reaches_the_task_unless_it_is_an_older_one(void **state)
{
    struct scheduler *s = start();

    (void)state;
    scheduler_lease(s, "script",
                    "{\"bandwidth\": {\"rate\": 1000, \"burst\": 5, \"stamp_ms\": 7},"
                    " \"steps\": [{\"rates\": 3}]}",
                    NULL);
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    publish_rate(s, 60, 7); /* the same again */
    publish_rate(s, 50, 9);
    publish_rate(s, 70, 8);
    publish_rate(s, 40, 10);
    expect_finish(s, "{\"rates\":[[1000,5,0],[50,51,2],[40,41,2]]}");
    scheduler_end(s);
}

static void a_missed_announcement_is_made_good_by_a_renewal(void **state)
{
    struct scheduler *s = start();
    struct bus_envelope_store store;
    bus_envelope hole;
    size_t before;
    int64_t began;

    (void)state;
    run_steps(s, "{\"phase\": \"exporting\"}, {\"wait_stop\": true}");
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL, "task-2");
    before = s->renewals;
    (void)pthread_mutex_lock(&s->mutex);
    s->pending = HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL;
    (void)pthread_mutex_unlock(&s->mutex);
    began = clock_mono_ms();
    /* an announcement without body is refused by the subscriber: a hole in the numbers */
    bus_envelope_init(&hole, &store, "scheduler-test", NULL);
    bus_publish(s->publisher, "control", &hole);
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL, "task-2");
    expect_fail(s, "cancelled", "cancelled", false);
    assert_true(s->renewals > before);
    assert_true(clock_mono_ms() - began < WORKER_RENEW_MS - 500);
    scheduler_end(s);
}

static void a_task_cancelled_before_its_lease_still_cleans_up(void **state)
{
    struct scheduler *s = start();

    (void)state;
    scheduler_lease(s, "script",
                    "{\"steps\": [{\"record\": \"cleaned\", \"value\": \"yes\"}, "
                    "{\"wait_stop\": true}]}",
                    &(struct lease_extras){.cancelled = true});
    reply_done(scheduler_expect(s, TASK_RECORD));
    expect_fail(s, "cancelled", "cancelled", false);
    scheduler_end(s);
}

static void a_record_is_there_when_it_was_acknowledged(void **state)
{
    struct scheduler *s = start();
    struct bus_request *request;
    char id[64];

    (void)state;
    run_steps(s, "{\"record\": \"snapshot\", \"value\": \"snap-1\"}, {\"recall\": \"snapshot\"}");
    request = scheduler_expect(s, TASK_RECORD);
    assert_string_equal(bus_request_envelope(request)->task_record->record->key, "snapshot");
    assert_string_equal(bus_request_envelope(request)->task_record->record->value, "snap-1");
    (void)snprintf(id, sizeof id, "%s", bus_request_envelope(request)->message_id);
    scheduler_quiet(s, TASK_FINISH, 200);
    reply_ack(request, false, "not now", true);
    request = scheduler_expect(s, TASK_RECORD);
    assert_string_equal(bus_request_envelope(request)->message_id, id);
    reply_done(request);
    expect_finish(s, "{\"recalled\":\"snap-1\"}");
    scheduler_end(s);
}

static void a_claim_that_waits_hears_of_a_cancel(void **state)
{
    struct scheduler *s = start();
    struct bus_request *request;

    (void)state;
    run_steps(s, "{\"phase\": \"importing\"}, {\"claim\": \"names\"}");
    for (int i = 0; i < 2; i++) {
        request = scheduler_expect(s, TASK_RECORD);
        assert_true(bus_request_envelope(request)->task_record->exclusive);
        reply_ack(request, false, "another task holds it", true);
    }
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL, "task-1");
    /* it may have been about to ask once more */
    request = take(s, HYPERSDK__V1__ENVELOPE__BODY_TASK_RECORD, NULL, 1000);
    if (request != NULL)
        reply_ack(request, false, "another task holds it", true);
    expect_fail(s, "cancelled", "cancelled", false);
    scheduler_end(s);
}

static void a_record_of_a_lost_lease_stops_the_task(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"record\": \"snapshot\", \"value\": \"snap-1\"}");
    reply_ack(scheduler_expect(s, TASK_RECORD), true, "", false);
    scheduler_quiet(s, TASK_FAIL, 300);
    scheduler_end(s);
}

static void a_record_that_the_bus_would_refuse_fails_at_once(void **state)
{
    struct scheduler *s = start();
    char value[4098];

    (void)state;
    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    autofree char *spec = xasprintf("{\"steps\": [{\"record\": \"k\", \"value\": \"%s\"}]}", value);
    scheduler_lease(s, "script", spec, NULL);
    expect_fail(s, "limit", "record 'k'", false);
    scheduler_end(s);
}

static void a_permit_is_asked_for_once(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"permit\": true}, {\"permit\": true}");
    reply_permit(scheduler_expect(s, FINISH_PERMIT), true, "");
    expect_finish(s, "{}");
    scheduler_quiet(s, FINISH_PERMIT, 50);
    scheduler_end(s);
}

static void a_refused_permit_ends_the_task(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"permit\": true}");
    reply_permit(scheduler_expect(s, FINISH_PERMIT), false, "cancelled by admin");
    expect_fail(s, "cancelled", "cancelled by admin", false);
    scheduler_end(s);
}

/* The lease is 8 s, so the last write is 3 s after the last answered renewal was sent. */
static void write_until_the_scheduler_is_silent(bool permit)
{
    struct scheduler *s = start();
    struct error err = ERROR_NONE;
    autofree char *file = path_in(s, "refused");
    autofree char *text = NULL;
    int64_t until = clock_mono_ms() + FIXTURE_WAIT_MS;
    int64_t renewed_ms;
    size_t size = 0;

    s->lease_ms = 8000;
    run_steps(s, "%s{\"write\": \"%s\"}", permit ? "{\"permit\": true}, " : "", file);
    if (permit)
        reply_permit(scheduler_expect(s, FINISH_PERMIT), true, "");
    scheduler_until(s, s->renewals >= 2); /* one before the start */
    (void)pthread_mutex_lock(&s->mutex);
    s->renews = false;
    renewed_ms = s->renewed_ms;
    (void)pthread_mutex_unlock(&s->mutex);
    while (access(file, F_OK) < 0 && clock_mono_ms() < until)
        clock_sleep_ms(20);
    assert_ok(file_read(file, 100, &text, &size, &err), err);
    assert_in_range(strtoll(text, NULL, 10), renewed_ms + 1000, renewed_ms + 3000);
    /* it stopped for want of a lease, which is not a failure of the job */
    scheduler_quiet(s, TASK_FAIL, 1000);
    scheduler_end(s);
}

static void nothing_is_written_after_the_deadline_when_the_scheduler_is_silent(void **state)
{
    (void)state;
    write_until_the_scheduler_is_silent(false);
}

/* The scheduler gives it to the next one as soon as any other: see job_state.c. */
static void a_permit_does_not_extend_the_write_deadline(void **state)
{
    (void)state;
    write_until_the_scheduler_is_silent(true);
}

static void pages_keep_to_the_limits_of_the_bus(void **state)
{
    struct scheduler *s = start();
    size_t total = 0;
    bool last = false;

    (void)state;
    run_steps(s, "{\"inventory\": {\"count\": 1203, \"bytes\": 3000}}");
    for (uint32_t page = 1; !last; page++) {
        struct bus_request *request = scheduler_expect(s, INVENTORY_PAGE);
        const Hypersdk__V1__InventoryPage *m = bus_request_envelope(request)->inventory_page;
        assert_int_equal(m->page, page);
        assert_true(m->n_vms <= BUS_PAGE_VMS_MAX);
        assert_true(m->n_vms * 3000 <= BUS_PAGE_BYTES_MAX);
        total += m->n_vms;
        last = m->last;
        reply_done(request);
    }
    assert_int_equal(total, 1203);
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void an_empty_inventory_is_one_page(void **state)
{
    struct scheduler *s = start();
    struct bus_request *request;

    (void)state;
    run_steps(s, "{\"inventory\": {\"count\": 0, \"bytes\": 10}}");
    request = scheduler_expect(s, INVENTORY_PAGE);
    assert_true(bus_request_envelope(request)->inventory_page->last);
    assert_int_equal(bus_request_envelope(request)->inventory_page->n_vms, 0);
    reply_done(request);
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void progress_has_a_rate_and_an_end(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"progress\": {\"total\": 1000000, \"file\": \"disk\xe2\x82\xac\"}}");
    scheduler_until(s, s->progress != NULL &&
                           s->progress->task_progress->rate_bytes_per_second > 0 &&
                           s->progress->task_progress->eta_seconds >= 0);
    (void)pthread_mutex_lock(&s->mutex);
    const Hypersdk__V1__TaskProgress *m = s->progress->task_progress;
    assert_int_equal(m->bytes_total, 1000000);
    assert_in_range(m->rate_bytes_per_second, 1, 350000); /* at most half of 100 steps of 20 ms */
    /* twice as fast as that, for what is left of it */
    assert_true((uint64_t)m->eta_seconds <= 1000000 / (2 * m->rate_bytes_per_second) + 2);
    assert_string_equal(m->job_id, "job-1");
    assert_string_equal(m->limited_by, "source");
    assert_string_equal(m->disks[0]->state, "copying");
    assert_string_equal(m->disks[0]->file, "disk\xe2\x82\xac");
    (void)pthread_mutex_unlock(&s->mutex);
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void the_rate_falls_when_a_transfer_stands_still(void **state)
{
    struct scheduler *s = start();
    uint64_t rate;

    (void)state;
    run_steps(s, "{\"progress\": {\"total\": 1000000}}, {\"wait_stop\": true}");
    scheduler_until(s, s->progress != NULL && s->progress->task_progress->bytes_done == 1000000);
    (void)pthread_mutex_lock(&s->mutex);
    rate = s->progress->task_progress->rate_bytes_per_second;
    (void)pthread_mutex_unlock(&s->mutex);
    scheduler_until(s, s->progress->task_progress->rate_bytes_per_second < rate / 2);
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL, "task-1");
    expect_fail(s, "cancelled", "", false);
    scheduler_end(s);
}

static void sigterm_yields_what_runs_and_takes_nothing_new(void **state)
{
    struct scheduler *s = start();
    struct bus_request *yield;

    (void)state;
    run_steps(s, "{\"phase\": \"exporting\"}, {\"wait_stop\": true}");
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    (void)kill(s->worker, SIGTERM);
    scheduler_until(s, s->leavings >= 1);
    yield = scheduler_expect(s, TASK_YIELD);
    assert_string_equal(bus_request_envelope(yield)->task_yield->ref->task_id, "task-1");
    reply_done(yield);
    assert_int_equal(worker_wait(s, FIXTURE_WAIT_MS), 0);
    scheduler_end(s);
}

static void a_task_that_is_done_while_draining_is_finished(void **state)
{
    struct scheduler *s = start();
    autofree char *gate = path_in(s, "gate");

    (void)state;
    run_steps(s, "{\"phase\": \"exporting\"}, {\"wait_file\": \"%s\"}", gate);
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    (void)kill(s->worker, SIGTERM);
    touch(gate);
    expect_finish(s, "{}");
    assert_int_equal(worker_wait(s, FIXTURE_WAIT_MS), 0);
    scheduler_end(s);
}

static void an_announced_drain_hands_the_task_back_and_the_slot_stays(void **state)
{
    struct scheduler *s = start();

    (void)state;
    run_steps(s, "{\"phase\": \"exporting\"}, {\"wait_stop\": true}");
    scheduler_until(s, strcmp(s->phase, "exporting") == 0);
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_DRAIN, "task-2");
    scheduler_quiet(s, TASK_YIELD, 200);
    scheduler_publish(s, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_DRAIN, "task-1");
    struct bus_request *request = scheduler_expect(s, TASK_YIELD);
    assert_string_equal(bus_request_envelope(request)->task_yield->reason,
                        "the worker is being drained");
    reply_done(request);
    run_steps(s, "{}");
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void a_scheduler_that_comes_later_is_found(void **state)
{
    struct scheduler *s = scheduler_new("", true);

    (void)state;
    worker_spawn(s, "worker");
    clock_sleep_ms(300);
    open_sockets(s);
    run_steps(s, "{}");
    expect_finish(s, "{}");
    scheduler_end(s);
}

static void short_tasks_do_not_wait_behind_long_ones(void **state)
{
    struct scheduler *s = start();
    autofree char *gate = path_in(s, "gate");

    (void)state;
    run_steps(s, "{\"wait_file\": \"%s\"}", gate);
    run_steps(s, "{\"wait_file\": \"%s\"}", gate);
    scheduler_lease(s, "short", "{\"steps\": []}", NULL);
    expect_finish(s, "{}");
    touch(gate);
    expect_finish(s, "{}");
    expect_finish(s, "{}");
    scheduler_end(s);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_ask_for_the_kinds_of_their_class),
        cmocka_unit_test(a_slot_asks_again_after_no_task),
        cmocka_unit_test(the_volume_id_stays_the_same),
        cmocka_unit_test(a_task_is_renewed_before_it_starts_and_then_reported),
        cmocka_unit_test(a_lease_lost_before_the_start_runs_nothing),
        cmocka_unit_test(records_of_earlier_leases_are_handed_over),
        cmocka_unit_test(all_log_lines_arrive_in_order),
        cmocka_unit_test(lines_that_were_not_stored_are_sent_again),
        cmocka_unit_test(log_lines_hasten_the_renewal),
        cmocka_unit_test(many_lines_wait_for_a_scheduler_that_is_away),
        cmocka_unit_test(a_text_that_is_not_utf8_or_too_long_does_not_stop_the_renewal),
        cmocka_unit_test(a_failure_says_whether_it_may_be_tried_again),
        cmocka_unit_test(a_report_is_repeated_with_the_same_id_until_it_is_acknowledged),
        cmocka_unit_test(a_report_that_is_refused_becomes_a_failure),
        cmocka_unit_test(a_lost_lease_stops_the_task_without_a_report),
        cmocka_unit_test(an_announced_cancel_stops_the_task),
        cmocka_unit_test(a_pause_hands_the_task_back_and_the_slot_takes_the_next),
        cmocka_unit_test(an_announced_bandwidth_reaches_the_task_unless_it_is_an_older_one),
        cmocka_unit_test(a_missed_announcement_is_made_good_by_a_renewal),
        cmocka_unit_test(a_task_cancelled_before_its_lease_still_cleans_up),
        cmocka_unit_test(a_record_is_there_when_it_was_acknowledged),
        cmocka_unit_test(a_claim_that_waits_hears_of_a_cancel),
        cmocka_unit_test(a_record_of_a_lost_lease_stops_the_task),
        cmocka_unit_test(a_record_that_the_bus_would_refuse_fails_at_once),
        cmocka_unit_test(a_permit_is_asked_for_once),
        cmocka_unit_test(a_refused_permit_ends_the_task),
        cmocka_unit_test(nothing_is_written_after_the_deadline_when_the_scheduler_is_silent),
        cmocka_unit_test(a_permit_does_not_extend_the_write_deadline),
        cmocka_unit_test(pages_keep_to_the_limits_of_the_bus),
        cmocka_unit_test(an_empty_inventory_is_one_page),
        cmocka_unit_test(progress_has_a_rate_and_an_end),
        cmocka_unit_test(the_rate_falls_when_a_transfer_stands_still),
        cmocka_unit_test(sigterm_yields_what_runs_and_takes_nothing_new),
        cmocka_unit_test(a_task_that_is_done_while_draining_is_finished),
        cmocka_unit_test(an_announced_drain_hands_the_task_back_and_the_slot_stays),
        cmocka_unit_test(a_scheduler_that_comes_later_is_found),
        cmocka_unit_test(short_tasks_do_not_wait_behind_long_ones),
    };

    if (fixture_role() != NULL)
        return worker_main(argc, argv);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]); /* one test by name */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
