/* The bus over ipc and tcp in one process: round trips, refusals, loss. Sockets are never closed,
 * as in the services, so each test has addresses of its own. */
#include "tests/unit/common/unit.h"

#include <arpa/inet.h>
#include <nng/nng.h>
#include <nng/protocol/pipeline0/push.h>
#include <nng/protocol/pubsub0/pub.h>
#include <nng/protocol/reqrep0/req.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "common/bus.h"
#include "common/clock.h"

#pragma GCC diagnostic ignored "-Wcast-qual" /* the INIT macros of protobuf-c cast const away */

#define DEADLINE_MS 30000

static char *dir;

static int make_dir(void **state)
{
    (void)state;
    dir = scratch_make();
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

struct addresses {
    char *lease;
    char *events;
    char *announce;
    struct bus_config config;
};

static unsigned int free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    autoclose int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    return ntohs(address.sin_port);
}

/* Lives as long as the process: the sockets' threads read it. */
static struct addresses *addresses_make(bool tcp)
{
    static unsigned int number;
    struct addresses *a = xcalloc(1, sizeof *a);
    static char empty[] = "";

    number++;
    if (tcp) {
        a->lease = xasprintf("tcp://127.0.0.1:%u", free_port());
        a->events = xasprintf("tcp://127.0.0.1:%u", free_port());
        a->announce = xasprintf("tcp://127.0.0.1:%u", free_port());
    } else {
        a->lease = xasprintf("ipc://%s/%u-lease", dir, number);
        a->events = xasprintf("ipc://%s/%u-events", dir, number);
        a->announce = xasprintf("ipc://%s/%u-bus", dir, number);
    }
    a->config = (struct bus_config){
        .lease = {&a->lease, 1},
        .events = {&a->events, 1},
        .announce = {&a->announce, 1},
        .listen_lease = empty,
        .listen_events = empty,
        .listen_announce = empty,
        .tls_ca_file = empty,
        .tls_cert_key_file = empty,
        .tls_server_name = empty,
    };
    return a;
}

static bool wait_until(bool (*condition)(const void *arg), const void *arg)
{
    int64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;

    while (clock_mono_ms() < deadline_ms) {
        if (condition(arg))
            return true;
        clock_sleep_ms(2);
    }
    return false;
}

static bool positive(const void *arg)
{
    return atomic_load((const atomic_int *)arg) > 0;
}

/* ---- lease ---- */

static atomic_int handled;

/* Answers a lease request with "none, come back in <slot> ms". */
static void on_lease(void *arg, struct bus_request *request)
{
    const bus_envelope *envelope = bus_request_envelope(request);
    bus_envelope reply;
    struct bus_envelope_store store;
    Hypersdk__V1__NoTask none = HYPERSDK__V1__NO_TASK__INIT;

    (void)arg;
    (void)atomic_fetch_add(&handled, 1);
    assert_int_equal(envelope->body_case, HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST);
    none.retry_after_ms = envelope->lease_request->slot;
    bus_envelope_init(&reply, &store, "scheduler", envelope->traceparent);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_NO_TASK;
    reply.no_task = &none;
    bus_request_reply(request, &reply);
}

static int ask(struct bus_client *client, uint32_t slot, int64_t timeout_ms, bus_envelope **out,
               struct error *err)
{
    static char instance[] = "unit-1";
    static char role[] = "exporter";
    bus_envelope request;
    struct bus_envelope_store store;
    Hypersdk__V1__LeaseRequest m = HYPERSDK__V1__LEASE_REQUEST__INIT;

    m.instance = instance;
    m.role = role;
    m.class_ = HYPERSDK__V1__TASK_CLASS__TASK_CLASS_CONTROL;
    m.slot = slot;
    m.slots_total = 64;
    bus_envelope_init(&request, &store, "unit-1", NULL);
    request.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    request.lease_request = &m;
    return bus_client_call(client, &request, timeout_ms, out, err);
}

static void lease_round_trip(bool tcp)
{
    struct addresses *a = addresses_make(tcp);
    struct bus_server *server = NULL;
    struct bus_client *client = NULL;
    struct error err = ERROR_NONE;

    /* the asker may be there first: start order does not matter */
    assert_ok(bus_client_open(&a->config, &client, &err), err);
    assert_ok(bus_server_open(&a->config, 4, on_lease, NULL, &server, &err), err);
    for (uint32_t i = 0; i < 50; i++) {
        auto_bus_envelope *reply = NULL;
        assert_ok(ask(client, i, DEADLINE_MS, &reply, &err), err);
        assert_int_equal(reply->body_case, HYPERSDK__V1__ENVELOPE__BODY_NO_TASK);
        assert_int_equal(reply->no_task->retry_after_ms, i);
        assert_string_equal(reply->sender, "scheduler");
    }
}

static void a_request_gets_its_own_reply_over_ipc(void **state)
{
    (void)state;
    lease_round_trip(false);
}

static void a_request_gets_its_own_reply_over_tcp(void **state)
{
    (void)state;
    lease_round_trip(true);
}

struct asker {
    struct bus_client *client;
    uint32_t slot;
    bool ok;
};

static void *on_asker(void *arg)
{
    struct asker *asker = arg;

    asker->ok = true;
    for (int i = 0; i < 50; i++) {
        auto_bus_envelope *reply = NULL;
        struct error err = ERROR_NONE;
        if (ask(asker->client, asker->slot, DEADLINE_MS, &reply, &err) < 0 ||
            reply->no_task->retry_after_ms != asker->slot)
            asker->ok = false;
    }
    return NULL;
}

static struct bus_request *left_waiting;
static atomic_int waiting;

static void on_wait(void *arg, struct bus_request *request)
{
    (void)arg;
    left_waiting = request;
    (void)atomic_fetch_add(&waiting, 1);
}

static void *on_asker_of_two(void *arg)
{
    struct asker *asker = arg;
    auto_bus_envelope *reply = NULL;
    struct error err = ERROR_NONE;

    asker->ok = ask(asker->client, 7, 60000, &reply, &err) < 0 && err.code == ERR_UNAVAILABLE &&
                strstr(err.message, "another scheduler leads") != NULL;
    return NULL;
}

/* The first one keeps its connection and answers nothing, as one that is stopped. */
static void a_call_is_called_off_when_another_scheduler_leads(void **state)
{
    struct addresses *first = addresses_make(true);
    struct addresses *second = addresses_make(true);
    char *both[] = {first->lease, second->lease};
    struct bus_config config = first->config;
    struct bus_server *server = NULL;
    struct asker asker = {0};
    struct error err = ERROR_NONE;
    auto_bus_envelope *reply = NULL;
    pthread_t thread;

    (void)state;
    config.lease = (struct config_list){both, 2};
    assert_ok(bus_client_open(&config, &asker.client, &err), err);
    assert_fails(ask(asker.client, 0, 50, &reply, &err), err, ERR_TIMEOUT, "no scheduler");
    error_clear(&err);
    assert_ok(bus_server_open(&first->config, 4, on_wait, NULL, &server, &err), err);
    assert_int_equal(pthread_create(&thread, NULL, on_asker_of_two, &asker), 0);
    assert_true(wait_until(positive, &waiting));
    assert_ok(bus_server_open(&second->config, 4, on_lease, NULL, &server, &err), err);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(asker.ok);
    for (uint32_t i = 0; i < 10; i++) { /* all of them, not every second one */
        auto_bus_envelope *answer = NULL;
        assert_ok(ask(asker.client, i, DEADLINE_MS, &answer, &err), err);
        assert_int_equal(answer->no_task->retry_after_ms, i);
    }
    assert_int_equal(atomic_load(&waiting), 1);
    assert_non_null(left_waiting);
}

static void many_threads_share_one_client(void **state)
{
    struct addresses *a = addresses_make(false);
    struct bus_server *server = NULL;
    struct bus_client *client = NULL;
    struct error err = ERROR_NONE;
    pthread_t threads[8];
    struct asker askers[8];

    (void)state;
    assert_ok(bus_server_open(&a->config, 16, on_lease, NULL, &server, &err), err);
    assert_ok(bus_client_open(&a->config, &client, &err), err);
    for (uint32_t i = 0; i < ARRAY_LEN(threads); i++) {
        askers[i] = (struct asker){client, i, false};
        assert_int_equal(pthread_create(&threads[i], NULL, on_asker, &askers[i]), 0);
    }
    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(askers[i].ok);
    }
}

static void without_a_scheduler_a_call_times_out(void **state)
{
    struct addresses *a = addresses_make(false);
    struct bus_client *client = NULL;
    bus_envelope *reply = NULL;
    struct error err = ERROR_NONE;
    int64_t started_ms = clock_mono_ms();

    (void)state;
    assert_ok(bus_client_open(&a->config, &client, &err), err);
    assert_fails(ask(client, 0, 200, &reply, &err), err, ERR_TIMEOUT, "does not answer");
    assert_true(clock_mono_ms() - started_ms >= 190);
    assert_null(reply);
}

static struct bus_request *kept;

static void on_keep(void *arg, struct bus_request *request)
{
    kept = request;
    (void)atomic_fetch_add((atomic_int *)arg, 1);
}

/* Whoever asks goes away unanswered; on a busy machine also before it was heard. */
static void ask_until_parked(struct bus_client *client, atomic_int *parked)
{
    int64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;

    while (atomic_load(parked) == 0) {
        auto_bus_envelope *reply = NULL;
        struct error err = ERROR_NONE;
        assert_true(clock_mono_ms() < deadline_ms);
        assert_fails(ask(client, 0, 300, &reply, &err), err, ERR_TIMEOUT, "does not answer");
    }
}

/* A parked request whose asker went away is answered into nothing, and its context lives on. */
static void a_reply_nobody_waits_for_does_no_harm(void **state)
{
    static atomic_int parked;
    struct addresses *a = addresses_make(false);
    struct bus_server *server = NULL;
    struct bus_client *client = NULL;
    struct error err = ERROR_NONE;
    bus_envelope answer;
    struct bus_envelope_store store;
    Hypersdk__V1__NoTask none = HYPERSDK__V1__NO_TASK__INIT;

    (void)state;
    assert_ok(bus_server_open(&a->config, 1, on_keep, &parked, &server, &err), err);
    assert_ok(bus_client_open(&a->config, &client, &err), err);
    ask_until_parked(client, &parked);
    bus_envelope_init(&answer, &store, "scheduler", NULL);
    answer.body_case = HYPERSDK__V1__ENVELOPE__BODY_NO_TASK;
    answer.no_task = &none;
    bus_request_reply(kept, &answer);
    atomic_store(&parked, 0);
    ask_until_parked(client, &parked); /* the one context receives again */
}

static bool is_orphan(const void *arg)
{
    return bus_request_is_orphan(arg);
}

/* Who parks a request may see that its asker is gone, and give the task to another. */
static void a_request_whose_connection_ended_is_an_orphan(void **state)
{
    static atomic_int parked;
    struct addresses *a = addresses_make(false);
    struct bus_server *server = NULL;
    struct error err = ERROR_NONE;
    Hypersdk__V1__LeaseRequest m = HYPERSDK__V1__LEASE_REQUEST__INIT;
    static char instance[] = "unit-1";
    static char role[] = "bridge";
    bus_envelope request;
    struct bus_envelope_store store;
    nng_socket raw;
    nng_dialer dialer;
    nng_msg *msg = NULL;
    size_t size;

    (void)state;
    assert_ok(bus_server_open(&a->config, 2, on_keep, &parked, &server, &err), err);
    assert_int_equal(nng_req0_open(&raw), 0);
    assert_int_equal(nng_dial(raw, a->lease, &dialer, 0), 0);
    m.instance = instance;
    m.role = role;
    m.class_ = HYPERSDK__V1__TASK_CLASS__TASK_CLASS_CONTROL;
    m.slots_total = 1;
    bus_envelope_init(&request, &store, "unit-1", NULL);
    request.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    request.lease_request = &m;
    size = hypersdk__v1__envelope__get_packed_size(&request);
    assert_int_equal(nng_msg_alloc(&msg, size), 0);
    (void)hypersdk__v1__envelope__pack(&request, nng_msg_body(msg));
    assert_int_equal(nng_sendmsg(raw, msg, 0), 0);
    assert_true(wait_until(positive, &parked));
    assert_false(bus_request_is_orphan(kept));
    assert_int_equal(nng_dialer_close(dialer), 0);
    assert_true(wait_until(is_orphan, kept));
}

/* A question that does not keep the protocol is answered with the reason, not with silence. */
static void a_malformed_question_is_answered(void **state)
{
    struct addresses *a = addresses_make(false);
    struct bus_server *server = NULL;
    struct error err = ERROR_NONE;
    auto_bus_envelope *reply = NULL;
    nng_socket raw;
    nng_msg *msg = NULL;
    int before = atomic_load(&handled);

    (void)state;
    assert_ok(bus_server_open(&a->config, 1, on_lease, NULL, &server, &err), err);
    assert_int_equal(nng_req0_open(&raw), 0);
    assert_int_equal(nng_socket_set_ms(raw, NNG_OPT_RECVTIMEO, DEADLINE_MS), 0);
    assert_int_equal(nng_dial(raw, a->lease, NULL, 0), 0);
    assert_int_equal(nng_msg_alloc(&msg, 0), 0);
    assert_int_equal(nng_msg_append(msg, "\xff\xff\xff", 3), 0);
    assert_int_equal(nng_sendmsg(raw, msg, 0), 0);
    assert_int_equal(nng_recvmsg(raw, &msg, 0), 0);
    assert_ok(bus_envelope_decode(nng_msg_body(msg), nng_msg_len(msg), &reply, &err), err);
    assert_int_equal(reply->body_case, HYPERSDK__V1__ENVELOPE__BODY_ACK);
    assert_non_null(strstr(reply->ack->error, "cannot be decoded"));
    assert_int_equal(atomic_load(&handled), before);
    nng_msg_free(msg);
}

static void an_over_long_request_is_refused_before_it_is_sent(void **state)
{
    struct addresses *a = addresses_make(false);
    struct bus_client *client = NULL;
    struct error err = ERROR_NONE;
    bus_envelope request;
    struct bus_envelope_store store;
    Hypersdk__V1__TaskFinish m = HYPERSDK__V1__TASK_FINISH__INIT;
    bus_envelope *reply = NULL;
    autofree char *big = xcalloc(1, BUS_MESSAGE_BYTES_MAX + 1);

    (void)state;
    memset(big, 'x', BUS_MESSAGE_BYTES_MAX);
    m.result_json = big;
    bus_envelope_init(&request, &store, "unit", NULL);
    request.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH;
    request.task_finish = &m;
    assert_ok(bus_client_open(&a->config, &client, &err), err);
    assert_fails(bus_client_call(client, &request, 1000, &reply, &err), err, ERR_LIMIT, "is over");
}

/* ---- events ---- */

static atomic_int pulled;
static atomic_int pulled_later; /* of LATER */

#define LATER "job-2"

static bool is_later(const bus_envelope *envelope)
{
    return strcmp(envelope->jobs_changed->job_ids[0], LATER) == 0;
}

static void on_event(void *arg, const bus_envelope *envelope)
{
    (void)arg;
    assert_int_equal(envelope->body_case, HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED);
    (void)atomic_fetch_add(&pulled, 1);
    if (is_later(envelope))
        (void)atomic_fetch_add(&pulled_later, 1);
}

static void push_id(struct bus_pusher *pusher, const char *id)
{
    char *ids[] = {(char *)(uintptr_t)id};
    bus_envelope envelope;
    struct bus_envelope_store store;
    Hypersdk__V1__JobsChanged m = HYPERSDK__V1__JOBS_CHANGED__INIT;

    m.job_ids = ids;
    m.n_job_ids = 1;
    bus_envelope_init(&envelope, &store, "unit", NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED;
    envelope.jobs_changed = &m;
    bus_push(pusher, &envelope);
}

static void push_one(struct bus_pusher *pusher)
{
    push_id(pusher, "job-1");
}

static void events_round_trip(bool tcp)
{
    struct addresses *a = addresses_make(tcp);
    struct bus_pusher *pusher = NULL;
    struct error err = ERROR_NONE;

    atomic_store(&pulled, 0);
    assert_ok(bus_pusher_open(&a->config, &pusher, &err), err);
    push_one(pusher); /* nobody listens yet: kept in the buffer or dropped, never waits */
    assert_ok(bus_puller_start(&a->config, on_event, NULL, &err), err);
    push_one(pusher);
    assert_true(wait_until(positive, &pulled));
}

static void events_arrive_over_ipc(void **state)
{
    (void)state;
    events_round_trip(false);
}

static void events_arrive_over_tcp(void **state)
{
    (void)state;
    events_round_trip(true);
}

static atomic_int pulled_first;
static atomic_int later_of_first;

static void on_event_of_first(void *arg, const bus_envelope *envelope)
{
    (void)arg;
    (void)atomic_fetch_add(&pulled_first, 1);
    if (is_later(envelope))
        (void)atomic_fetch_add(&later_of_first, 1);
}

static bool all_pulled(const void *arg)
{
    return atomic_load((const atomic_int *)arg) >= 20;
}

static bool pushed_and_pulled(const void *arg)
{
    push_one((struct bus_pusher *)(uintptr_t)arg);
    return atomic_load(&pulled) > 0;
}

static void events_go_to_the_newest_connection_only(void **state)
{
    struct addresses *first = addresses_make(true);
    struct addresses *second = addresses_make(true);
    char *both[] = {first->events, second->events};
    struct bus_config config = first->config;
    struct bus_pusher *pusher = NULL;
    struct error err = ERROR_NONE;

    (void)state;
    config.events = (struct config_list){both, 2};
    atomic_store(&pulled, 0);
    assert_ok(bus_pusher_open(&config, &pusher, &err), err);
    assert_ok(bus_puller_start(&first->config, on_event_of_first, NULL, &err), err);
    push_one(pusher);
    assert_true(wait_until(positive, &pulled_first));
    assert_ok(bus_puller_start(&second->config, on_event, NULL, &err), err);
    assert_true(wait_until(pushed_and_pulled, pusher));
    for (int i = 0; i < 20; i++) /* those before may still be on their way to the first one */
        push_id(pusher, LATER);
    assert_true(wait_until(all_pulled, &pulled_later));
    assert_int_equal(atomic_load(&later_of_first), 0);
}

static void pushing_never_blocks_without_a_listener(void **state)
{
    struct addresses *a = addresses_make(false);
    struct bus_pusher *pusher = NULL;
    struct error err = ERROR_NONE;
    int64_t started_ms = clock_mono_ms();

    (void)state;
    assert_ok(bus_pusher_open(&a->config, &pusher, &err), err);
    for (int i = 0; i < 5000; i++)
        push_one(pusher);
    assert_true(clock_mono_ms() - started_ms < DEADLINE_MS); /* 6 ms each */
}

/* Junk, an over-long message and a wrong version do not stop the puller. */
static void junk_does_not_stop_the_puller(void **state)
{
    struct addresses *a = addresses_make(false);
    struct bus_pusher *pusher = NULL;
    struct error err = ERROR_NONE;
    autofree char *big = xcalloc(1, 2 * BUS_MESSAGE_BYTES_MAX);
    nng_socket raw;

    (void)state;
    atomic_store(&pulled, 0);
    assert_ok(bus_puller_start(&a->config, on_event, NULL, &err), err);
    assert_int_equal(nng_push0_open(&raw), 0);
    assert_int_equal(nng_dial(raw, a->events, NULL, 0), 0);
    assert_int_equal(nng_send(raw, big, 3, 0), 0);                         /* version 0 */
    assert_int_equal(nng_send(raw, big, 2 * BUS_MESSAGE_BYTES_MAX, 0), 0); /* over the limit */
    assert_ok(bus_pusher_open(&a->config, &pusher, &err), err);
    for (int i = 0; i < 100 && atomic_load(&pulled) == 0; i++) {
        push_one(pusher);
        clock_sleep_ms(20);
    }
    assert_true(wait_until(positive, &pulled));
}

/* ---- announcements ---- */

struct listener {
    atomic_int messages;
    atomic_int gaps;
    atomic_ullong last_sequence;
};

static void on_announcement(void *arg, const bus_envelope *envelope)
{
    struct listener *listener = arg;

    atomic_store(&listener->last_sequence, envelope->sequence);
    (void)atomic_fetch_add(&listener->messages, 1);
}

static void on_gap(void *arg)
{
    struct listener *listener = arg;

    (void)atomic_fetch_add(&listener->gaps, 1);
}

static void announce(struct bus_publisher *publisher, const char *topic)
{
    static char id[] = "job-1";
    static char event[] = "job.created";
    bus_envelope envelope;
    struct bus_envelope_store store;
    Hypersdk__V1__JobChanged m = HYPERSDK__V1__JOB_CHANGED__INIT;

    m.job_id = id;
    m.event = event;
    bus_envelope_init(&envelope, &store, "scheduler", NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOB_CHANGED;
    envelope.job_changed = &m;
    bus_publish(publisher, topic, &envelope);
}

/* Until the one with this number was heard: what was sent before it is not under way any more. */
static void wait_heard(struct listener *listener, uint64_t sequence)
{
    int64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;

    while (atomic_load(&listener->last_sequence) < sequence && clock_mono_ms() < deadline_ms)
        clock_sleep_ms(1);
    assert_true(atomic_load(&listener->last_sequence) >= sequence);
}

/* Publishes until the subscriber's connection carries something; nobody published before. */
static void announce_until_heard(struct bus_publisher *publisher, struct listener *listener)
{
    uint64_t sent = 0;

    while (sent < 1500 && atomic_load(&listener->messages) == 0) {
        announce(publisher, "job");
        sent++;
        clock_sleep_ms(20);
    }
    wait_heard(listener, sent);
}

static void announcements_round_trip(bool tcp)
{
    static const char *const topics[] = {"job", "control", NULL};
    struct addresses *a = addresses_make(tcp);
    struct listener *listener = xcalloc(1, sizeof *listener);
    struct bus_publisher *publisher = NULL;
    struct error err = ERROR_NONE;
    int before;

    assert_ok(bus_subscriber_start(&a->config, topics, on_announcement, on_gap, listener, &err),
              err);
    assert_ok(bus_publisher_open(&a->config, &publisher, &err), err);
    announce_until_heard(publisher, listener);
    assert_int_equal(atomic_load(&listener->gaps),
                     1); /* the first one: what was before is unknown */
    before = atomic_load(&listener->messages);
    announce(publisher, "worker"); /* not wanted */
    announce(publisher, "jobs");   /* a topic is a whole word */
    announce(publisher, "control");
    while (atomic_load(&listener->messages) == before)
        clock_sleep_ms(1);
    clock_sleep_ms(20);
    assert_int_equal(atomic_load(&listener->messages), before + 1);
    assert_int_equal(atomic_load(&listener->gaps), 1); /* unwanted topics are no gaps */
}

static void wanted_topics_arrive_over_ipc(void **state)
{
    (void)state;
    announcements_round_trip(false);
}

static void wanted_topics_arrive_over_tcp(void **state)
{
    (void)state;
    announcements_round_trip(true);
}

/* Sends what bus_publish would, with a sequence number and epoch of choice. */
static void announce_raw(nng_socket raw, const char *epoch, uint64_t sequence)
{
    static char id[] = "job-1";
    static char event[] = "job.created";
    bus_envelope envelope;
    struct bus_envelope_store store;
    Hypersdk__V1__JobChanged m = HYPERSDK__V1__JOB_CHANGED__INIT;
    uint8_t data[512] = "job";
    size_t size;

    m.job_id = id;
    m.event = event;
    bus_envelope_init(&envelope, &store, "scheduler", NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOB_CHANGED;
    envelope.job_changed = &m;
    envelope.sequence = sequence;
    envelope.epoch = (char *)(uintptr_t)epoch;
    size = 4 + hypersdk__v1__envelope__pack(&envelope, data + 4);
    assert_int_equal(nng_send(raw, data, size, 0), 0);
}

static void expect_after(nng_socket raw, const char *epoch, uint64_t sequence,
                         struct listener *listener, int gaps)
{
    int before = atomic_load(&listener->messages);
    int64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;

    announce_raw(raw, epoch, sequence);
    while (atomic_load(&listener->messages) == before && clock_mono_ms() < deadline_ms)
        clock_sleep_ms(1);
    assert_int_equal(atomic_load(&listener->messages), before + 1);
    assert_int_equal(atomic_load(&listener->gaps), gaps);
}

static void a_hole_in_the_sequence_and_a_new_publisher_are_gaps(void **state)
{
    static const char *const topics[] = {"job", NULL};
    struct addresses *a = addresses_make(false);
    struct listener *listener = xcalloc(1, sizeof *listener);
    struct error err = ERROR_NONE;
    nng_socket raw;
    uint64_t n = 0;

    (void)state;
    assert_int_equal(nng_pub0_open(&raw), 0);
    assert_int_equal(nng_listen(raw, a->announce, NULL, 0), 0);
    assert_ok(bus_subscriber_start(&a->config, topics, on_announcement, on_gap, listener, &err),
              err);
    while (n < 1500 && atomic_load(&listener->messages) == 0) {
        announce_raw(raw, "pub-a", ++n);
        clock_sleep_ms(20);
    }
    wait_heard(listener, n);
    atomic_store(&listener->gaps, 0);
    expect_after(raw, "pub-a", n + 1, listener, 0);
    expect_after(raw, "pub-a", n + 2, listener, 0);
    expect_after(raw, "pub-a", n + 4, listener, 1); /* one was lost */
    expect_after(raw, "pub-a", n + 5, listener, 1);
    expect_after(raw, "pub-b", n + 6, listener, 2); /* another scheduler leads */
    expect_after(raw, "pub-b", n + 7, listener, 2);
    assert_int_equal(nng_send(raw, (char[]){"no topic end"}, 12, 0), 0); /* junk is only dropped */
    assert_int_equal(nng_send(raw, (char[]){"job\0junk"}, 8, 0), 0);
    expect_after(raw, "pub-b", n + 8, listener, 2);
}

static void a_burst_arrives_whole(void **state)
{
    static const char *const topics[] = {"job", NULL};
    struct addresses *a = addresses_make(false);
    struct listener *listener = xcalloc(1, sizeof *listener);
    struct bus_publisher *publisher = NULL;
    struct error err = ERROR_NONE;
    int64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;
    int before;

    (void)state;
    assert_ok(bus_publisher_open(&a->config, &publisher, &err), err);
    assert_ok(bus_subscriber_start(&a->config, topics, on_announcement, on_gap, listener, &err),
              err);
    announce_until_heard(publisher, listener);
    before = atomic_load(&listener->messages);
    for (int i = 0; i < 500; i++)
        announce(publisher, "job");
    while (atomic_load(&listener->messages) < before + 500 && clock_mono_ms() < deadline_ms)
        clock_sleep_ms(2);
    assert_int_equal(atomic_load(&listener->messages), before + 500);
    assert_int_equal(atomic_load(&listener->gaps), 1);
}

/* ---- configuration ---- */

static void wrong_addresses_and_taken_ports_are_told(void **state)
{
    struct addresses *a = addresses_make(true);
    struct bus_server *server = NULL;
    struct bus_client *client = NULL;
    struct bus_pusher *pusher = NULL;
    struct error err = ERROR_NONE;
    char nonsense[] = "nonsense";
    char tls[] = "tls+tcp://127.0.0.1:1";

    (void)state;
    assert_ok(bus_server_open(&a->config, 1, on_lease, NULL, &server, &err), err);
    assert_fails(bus_server_open(&a->config, 1, on_lease, NULL, &server, &err), err, ERR_CONFLICT,
                 a->lease);
    a->lease = nonsense;
    assert_fails(bus_client_open(&a->config, &client, &err), err, ERR_INVALID, "nonsense");
    a->lease = tls;
    assert_fails(bus_client_open(&a->config, &client, &err), err, ERR_INVALID, "bus.tls_ca_file");
    a->config.events.count = 0;
    assert_fails(bus_pusher_open(&a->config, &pusher, &err), err, ERR_INVALID, "no address");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_gets_its_own_reply_over_ipc),
        cmocka_unit_test(a_request_gets_its_own_reply_over_tcp),
        cmocka_unit_test(a_call_is_called_off_when_another_scheduler_leads),
        cmocka_unit_test(many_threads_share_one_client),
        cmocka_unit_test(without_a_scheduler_a_call_times_out),
        cmocka_unit_test(a_reply_nobody_waits_for_does_no_harm),
        cmocka_unit_test(a_request_whose_connection_ended_is_an_orphan),
        cmocka_unit_test(a_malformed_question_is_answered),
        cmocka_unit_test(an_over_long_request_is_refused_before_it_is_sent),
        cmocka_unit_test(events_arrive_over_ipc),
        cmocka_unit_test(events_arrive_over_tcp),
        cmocka_unit_test(events_go_to_the_newest_connection_only),
        cmocka_unit_test(pushing_never_blocks_without_a_listener),
        cmocka_unit_test(junk_does_not_stop_the_puller),
        cmocka_unit_test(wanted_topics_arrive_over_ipc),
        cmocka_unit_test(wanted_topics_arrive_over_tcp),
        cmocka_unit_test(a_hole_in_the_sequence_and_a_new_publisher_are_gaps),
        cmocka_unit_test(a_burst_arrives_whole),
        cmocka_unit_test(wrong_addresses_and_taken_ports_are_told),
    };
    int failed = cmocka_run_group_tests(tests, make_dir, remove_dir);

    (void)fflush(stdout);
    _exit(failed); /* as the services do: nng's threads still run */
}
