/* The scheduler's side of the bus as a script, and a worker process to play with: the test program
 * runs itself again (its main() looks at fixture_role()). The worker's output goes to <dir>/log.
 *
 * Requests are kept until the test answers them. TaskRenew is answered by the fixture while
 * `renews` is true: it stores the lines that follow each other, as the real one does. */
#ifndef TESTS_UNIT_COMMON_SCHEDULER_FIXTURE_H
#define TESTS_UNIT_COMMON_SCHEDULER_FIXTURE_H

#include "tests/unit/common/unit.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "common/bus.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/paths.h"

#define FIXTURE_WAIT_MS  20000 /* for what should come at once; slow with sanitizers */
#define FIXTURE_REQUESTS 128
#define FIXTURE_LINES    20000
#define FIXTURE_ROLE     "HYPERSDK_TEST_ROLE"

extern char **environ;

struct scheduler {
    char *dir;
    struct bus_config bus;
    char *addresses[3];
    struct bus_server *server;
    struct bus_publisher *publisher;
    pid_t worker;

    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    struct bus_request *waiting[FIXTURE_REQUESTS];
    size_t count;
    bool renews;
    int64_t lease_ms;
    uint64_t store_max;                /* lines are stored up to this number only */
    Hypersdk__V1__ControlKind pending; /* repeated in every renewal's answer */
    size_t renewals;                   /* answered */
    int64_t renewed_ms;                /* when the last one was, by the clock of all processes */
    char phase[64];                    /* of the last renewal */
    char *lines[FIXTURE_LINES];        /* stored, index = number - 1 */
    size_t line_count;
    size_t leavings;
    bus_envelope *progress; /* newest */
    size_t progress_count;
};

/* NULL in the test itself. A worker ends with its test, also when that fails. */
static inline const char *fixture_role(void)
{
    const char *role = getenv(FIXTURE_ROLE);

    if (role != NULL)
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    return role;
}

/* ---- receiving ---- */

__attribute__((unused)) static void store_lines(struct scheduler *s,
                                                Hypersdk__V1__LogLine *const *lines, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (lines[i]->number == s->line_count + 1 && lines[i]->number <= s->store_max &&
            s->line_count < FIXTURE_LINES)
            s->lines[s->line_count++] = xstrdup(lines[i]->message);
    }
}

static void reply_renewal(struct scheduler *s, struct bus_request *request)
{
    const Hypersdk__V1__TaskRenew *renew = bus_request_envelope(request)->task_renew;
    Hypersdk__V1__TaskControl control;
    Hypersdk__V1__TaskControl *controls[] = {&control};
    Hypersdk__V1__RenewReply body;
    struct bus_envelope_store store;
    bus_envelope reply;
    char task_id[64];

    store_lines(s, renew->lines, renew->n_lines);
    (void)snprintf(s->phase, sizeof s->phase, "%s", renew->phase);
    (void)snprintf(task_id, sizeof task_id, "%s", renew->ref->task_id);
    hypersdk__v1__renew_reply__init(&body);
    body.lease_ms = s->lease_ms;
    body.lines_stored = s->line_count;
    if (s->pending != HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_UNSPECIFIED) {
        hypersdk__v1__task_control__init(&control);
        control.task_id = task_id;
        control.kind = s->pending;
        body.controls = controls;
        body.n_controls = 1;
    }
    bus_envelope_init(&reply, &store, "scheduler-test", NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_RENEW_REPLY;
    reply.renew_reply = &body;
    s->renewals++;
    s->renewed_ms = clock_mono_ms();
    bus_request_reply(request, &reply);
}

static void reply_no_task(struct bus_request *request, uint32_t retry_ms)
{
    Hypersdk__V1__NoTask body;
    struct bus_envelope_store store;
    bus_envelope reply;

    hypersdk__v1__no_task__init(&body);
    body.retry_after_ms = retry_ms;
    bus_envelope_init(&reply, &store, "scheduler-test", NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_NO_TASK;
    reply.no_task = &body;
    bus_request_reply(request, &reply);
}

static void on_request(void *arg, struct bus_request *request)
{
    struct scheduler *s = arg;

    LOCK_SCOPE(&s->mutex);
    if (s->renews &&
        bus_request_envelope(request)->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_RENEW) {
        reply_renewal(s, request);
    } else if (bus_request_envelope(request)->body_case ==
                   HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST &&
               bus_request_envelope(request)->lease_request->leaving) {
        s->leavings++;
        reply_no_task(request, 0);
    } else {
        assert(s->count < FIXTURE_REQUESTS);
        s->waiting[s->count++] = request;
    }
    (void)pthread_cond_broadcast(&s->changed);
}

static void on_event(void *arg, const bus_envelope *envelope)
{
    struct scheduler *s = arg;
    struct error err = ERROR_NONE;
    size_t size = hypersdk__v1__envelope__get_packed_size(envelope);
    autofree uint8_t *bytes = xmalloc(size);
    bus_envelope *copy = NULL;

    if (envelope->body_case != HYPERSDK__V1__ENVELOPE__BODY_TASK_PROGRESS)
        return;
    (void)hypersdk__v1__envelope__pack(envelope, bytes);
    if (bus_envelope_decode(bytes, size, &copy, &err) < 0)
        return;
    LOCK_SCOPE(&s->mutex);
    bus_envelope_free(s->progress);
    s->progress = copy;
    s->progress_count++;
    (void)pthread_cond_broadcast(&s->changed);
}

/* ---- waiting ---- */

/* Holds the mutex; false: time is up. */
static bool wait_changed(struct scheduler *s, int64_t until_ms)
{
    struct timespec until = {until_ms / 1000, until_ms % 1000 * 1000000};

    return pthread_cond_timedwait(&s->changed, &s->mutex, &until) != ETIMEDOUT ||
           clock_mono_ms() < until_ms;
}

/* Waits until the condition, looked at under the mutex, is true. */
#define scheduler_until(s, condition)                          \
    do {                                                       \
        int64_t until_ = clock_mono_ms() + FIXTURE_WAIT_MS;    \
        LOCK_SCOPE(&(s)->mutex);                               \
        while (!(condition)) {                                 \
            if (!wait_changed((s), until_))                    \
                fail_msg("waited in vain for %s", #condition); \
        }                                                      \
    } while (0)

static bool offers(const bus_envelope *e, Hypersdk__V1__Envelope__BodyCase body, const char *kind)
{
    if (e->body_case != body)
        return false;
    if (kind == NULL)
        return true;
    for (size_t i = 0; i < e->lease_request->n_task_kinds; i++) {
        if (strcmp(e->lease_request->task_kinds[i], kind) == 0)
            return true;
    }
    return false;
}

/* The first waiting request with this body; NULL after ms. */
static struct bus_request *take(struct scheduler *s, Hypersdk__V1__Envelope__BodyCase body,
                                const char *kind, int64_t ms)
{
    int64_t until = clock_mono_ms() + ms;

    LOCK_SCOPE(&s->mutex);
    do {
        for (size_t i = 0; i < s->count; i++) {
            struct bus_request *request = s->waiting[i];
            if (!offers(bus_request_envelope(request), body, kind))
                continue;
            memmove(s->waiting + i, s->waiting + i + 1, (--s->count - i) * sizeof request);
            return request;
        }
    } while (wait_changed(s, until));
    return NULL;
}

#define scheduler_expect(s, BODY)                                                  \
    __extension__({                                                                \
        struct bus_request *expected_ =                                            \
            take((s), HYPERSDK__V1__ENVELOPE__BODY_##BODY, NULL, FIXTURE_WAIT_MS); \
        if (expected_ == NULL)                                                     \
            fail_msg("no %s came", #BODY);                                         \
        expected_;                                                                 \
    })

#define scheduler_quiet(s, BODY, ms) \
    assert_null(take((s), HYPERSDK__V1__ENVELOPE__BODY_##BODY, NULL, (ms)))

/* ---- answering ---- */

__attribute__((unused)) static void reply_ack(struct bus_request *request, bool lost,
                                              const char *error, bool again)
{
    Hypersdk__V1__Ack body;
    struct bus_envelope_store store;
    bus_envelope reply;

    hypersdk__v1__ack__init(&body);
    body.lost = lost;
    body.error = (char *)(uintptr_t)error;
    body.again = again;
    bus_envelope_init(&reply, &store, "scheduler-test", NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_ACK;
    reply.ack = &body;
    bus_request_reply(request, &reply);
}

__attribute__((unused)) static void reply_done(struct bus_request *request)
{
    reply_ack(request, false, "", false);
}

__attribute__((unused)) static void reply_lost(struct bus_request *request)
{
    Hypersdk__V1__RenewReply body;
    struct bus_envelope_store store;
    bus_envelope reply;

    hypersdk__v1__renew_reply__init(&body);
    body.lost = 1;
    bus_envelope_init(&reply, &store, "scheduler-test", NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_RENEW_REPLY;
    reply.renew_reply = &body;
    bus_request_reply(request, &reply);
}

__attribute__((unused)) static void reply_permit(struct bus_request *request, bool granted,
                                                 const char *reason)
{
    Hypersdk__V1__PermitReply body;
    struct bus_envelope_store store;
    bus_envelope reply;

    hypersdk__v1__permit_reply__init(&body);
    body.granted = granted;
    body.reason = (char *)(uintptr_t)reason;
    bus_envelope_init(&reply, &store, "scheduler-test", NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_PERMIT_REPLY;
    reply.permit_reply = &body;
    bus_request_reply(request, &reply);
}

/* What a lease carries besides kind and spec; zero: nothing. */
struct lease_extras {
    const char *record_key; /* handed over */
    const char *record_value;
    const char *provider_name;
    const char *settings_json;
    const void *sealed;
    size_t sealed_size;
    bool cancelled;
};

/* Gives a task to a slot that asked for this kind. */
__attribute__((unused)) static void scheduler_lease(struct scheduler *s, const char *kind,
                                                    const char *spec,
                                                    const struct lease_extras *extras)
{
    static const struct lease_extras none;
    const struct lease_extras *x = extras == NULL ? &none : extras;
    struct bus_request *request =
        take(s, HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST, kind, FIXTURE_WAIT_MS);
    uint8_t token[TOKEN_BYTES] = {1, 2, 3};
    Hypersdk__V1__TaskControl control;
    Hypersdk__V1__TaskControl *controls[] = {&control};
    Hypersdk__V1__TaskRef ref;
    Hypersdk__V1__Record record;
    Hypersdk__V1__Record *records[] = {&record};
    Hypersdk__V1__TaskLease body;
    struct bus_envelope_store store;
    bus_envelope reply;
    char traceparent[TRACEPARENT_SIZE];

    if (request == NULL)
        fail_msg("no slot asks for '%s'", kind);
    hypersdk__v1__task_ref__init(&ref);
    hypersdk__v1__task_lease__init(&body);
    hypersdk__v1__task_control__init(&control);
    hypersdk__v1__record__init(&record);
    ref.task_id = (char *)(uintptr_t) "task-1";
    ref.epoch = 7;
    ref.token = (ProtobufCBinaryData){sizeof token, token};
    body.ref = &ref;
    body.job_id = (char *)(uintptr_t) "job-1";
    body.kind = (char *)(uintptr_t)kind;
    body.attempt = 1;
    body.lease_ms = s->lease_ms;
    body.spec_json = (char *)(uintptr_t)spec;
    body.provider_name = (char *)(uintptr_t)(x->provider_name == NULL ? "" : x->provider_name);
    body.settings_json = (char *)(uintptr_t)(x->settings_json == NULL ? "{}" : x->settings_json);
    body.sealed_secrets = (ProtobufCBinaryData){x->sealed_size, (uint8_t *)(uintptr_t)x->sealed};
    if (x->record_key != NULL) {
        record.key = (char *)(uintptr_t)x->record_key;
        record.value = (char *)(uintptr_t)x->record_value;
        body.records = records;
        body.n_records = 1;
    }
    if (x->cancelled) {
        control.task_id = ref.task_id;
        control.kind = HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL;
        body.controls = controls;
        body.n_controls = 1;
    }
    traceparent_new(NULL, traceparent);
    bus_envelope_init(&reply, &store, "scheduler-test", traceparent);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE;
    reply.task_lease = &body;
    (void)pthread_mutex_lock(&s->mutex);
    for (size_t i = 0; i < s->line_count; i++) /* lines are numbered within a lease */
        free(s->lines[i]);
    s->line_count = 0;
    (void)pthread_mutex_unlock(&s->mutex);
    bus_request_reply(request, &reply);
}

__attribute__((unused)) static void
scheduler_publish(struct scheduler *s, Hypersdk__V1__ControlKind kind, const char *task_id)
{
    Hypersdk__V1__TaskControl body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    hypersdk__v1__task_control__init(&body);
    body.kind = kind;
    body.task_id = (char *)(uintptr_t)task_id;
    bus_envelope_init(&envelope, &store, "scheduler-test", NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_CONTROL;
    envelope.task_control = &body;
    bus_publish(s->publisher, "control", &envelope);
}

/* ---- life ---- */

static char *path_in(const struct scheduler *s, const char *name)
{
    return xasprintf("%s/%s", s->dir, name);
}

static void write_config(const struct scheduler *s, const char *more)
{
    struct error err = ERROR_NONE;
    autofree char *path = path_in(s, "config.yaml");
    autofree char *text =
        xasprintf("bus:\n  lease: [\"%s\"]\n  events: [\"%s\"]\n  announce: [\"%s\"]\n"
                  "admin:\n  exporter: 127.0.0.1:0\n%s",
                  s->addresses[0], s->addresses[1], s->addresses[2], more);

    assert_ok(file_write_atomic(path, text, strlen(text), 0600, &err), err);
}

static void open_sockets(struct scheduler *s)
{
    struct error err = ERROR_NONE;

    assert_ok(bus_publisher_open(&s->bus, &s->publisher, &err), err);
    assert_ok(bus_puller_start(&s->bus, on_event, s, &err), err);
    assert_ok(bus_server_open(&s->bus, FIXTURE_REQUESTS, on_request, s, &s->server, &err), err);
}

/* more: text for the end of the configuration. The sockets open now unless `absent`. */
static struct scheduler *scheduler_new(const char *more, bool absent)
{
    struct scheduler *s = xcalloc(1, sizeof *s); /* its sockets live as long as the process */
    static const char *const names[] = {"lease", "events", "announce"};
    struct config_list *lists[] = {&s->bus.lease, &s->bus.events, &s->bus.announce};
    pthread_condattr_t attributes;

    s->dir = scratch_make();
    for (size_t i = 0; i < 3; i++) {
        s->addresses[i] = xasprintf("ipc://%s/%s.sock", s->dir, names[i]);
        *lists[i] = (struct config_list){&s->addresses[i], 1};
    }
    s->bus.listen_lease = s->bus.listen_events = s->bus.listen_announce = xstrdup("");
    s->bus.tls_ca_file = s->bus.tls_cert_key_file = s->bus.tls_server_name = xstrdup("");
    s->renews = true;
    s->lease_ms = 30000;
    s->store_max = UINT64_MAX;
    (void)pthread_mutex_init(&s->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&s->changed, &attributes);
    write_config(s, more);
    if (!absent)
        open_sockets(s);
    return s;
}

/* This program again, as fixture_role() `role`. */
static void worker_spawn(struct scheduler *s, const char *role)
{
    autofree char *config = path_in(s, "config.yaml");
    autofree char *log = path_in(s, "log");
    char *argv[] = {(char *)(uintptr_t) "worker", (char *)(uintptr_t) "--config", config, NULL};
    posix_spawn_file_actions_t actions;

    assert_int_equal(setenv(FIXTURE_ROLE, role, 1), 0);
    (void)posix_spawn_file_actions_init(&actions);
    /* not the test's own output: a reader of it would wait for a worker that was left behind */
    (void)posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    (void)posix_spawn_file_actions_addopen(&actions, 2, log, O_CREAT | O_WRONLY | O_APPEND, 0600);
    assert_int_equal(posix_spawn(&s->worker, "/proc/self/exe", &actions, NULL, argv, environ), 0);
    (void)posix_spawn_file_actions_destroy(&actions);
    assert_int_equal(unsetenv(FIXTURE_ROLE), 0);
}

/* Exit status of the worker; -1 when it does not end in time (it is killed then). */
static int worker_wait(struct scheduler *s, int64_t ms)
{
    int64_t until = clock_mono_ms() + ms;
    int status = 0;

    while (waitpid(s->worker, &status, WNOHANG) == 0) {
        if (clock_mono_ms() >= until) {
            (void)kill(s->worker, SIGKILL);
            (void)waitpid(s->worker, &status, 0);
            s->worker = 0;
            return -1;
        }
        clock_sleep_ms(10);
    }
    s->worker = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static char *worker_log(const struct scheduler *s)
{
    struct error err = ERROR_NONE;
    autofree char *path = path_in(s, "log");
    char *text = NULL;
    size_t size = 0;

    return file_read(path, 16 * MIB, &text, &size, &err) == 0 ? text : xstrdup("");
}

__attribute__((unused)) static bool worker_logged(const struct scheduler *s, const char *text)
{
    autofree char *log = worker_log(s);

    return strstr(log, text) != NULL;
}

/* Asks the worker to end and checks that it does, cleanly. */
static void worker_end(struct scheduler *s)
{
    int status;

    (void)kill(s->worker, SIGTERM);
    status = worker_wait(s, FIXTURE_WAIT_MS);
    if (status != 0) {
        autofree char *log = worker_log(s);
        fail_msg("the worker ended with %d\n%s", status, log);
    }
}

static void scheduler_end(struct scheduler *s)
{
    if (s->worker > 0)
        worker_end(s);
    scratch_remove(s->dir);
}

#endif
