/* The bus as a model: instead of common/bus.c. Messages are packed and unpacked as on the wire
 * (common/bus_envelope.c), and are lost, doubled, late, and out of order. An announcement keeps its
 * order, as on one connection. */
#include <string.h>

#include "common/bus.h"
#include "common/id.h"
#include "tests/sim/sim.h"

#define ENDS_MAX    64 /* of each kind, all incarnations that live */
#define CONNECT_US  (50 * SIM_MS)
#define QUICK_US    (3 * SIM_MS)
#define LATE_MS_MAX 9000

struct end { /* of a socket: what one process has opened */
    struct sim_proc *proc;
    uint32_t incarnation;
    void (*fn)(void *arg, const bus_envelope *envelope);
    void (*gap)(void *arg);
    void *arg;
    bus_handler handler;
    const char *const *topics;
    uint64_t sequence;
    char epoch[ID_SIZE];
    int64_t last_us; /* the newest message arrives then */
};

struct ends {
    struct end *items[ENDS_MAX];
    size_t count;
};

static struct ends servers, pullers, subscribers;

struct bus_client {
    struct sim_proc *proc;
};
struct bus_pusher {
    struct sim_proc *proc;
};
struct bus_server {
    struct end *end;
};
struct bus_publisher {
    struct sim_proc *proc;
    uint64_t sequence;
    char epoch[ID_SIZE];
};

struct bytes {
    uint8_t *data;
    size_t size;
};

/* ---- who is there ---- */

static struct end *end_add(struct ends *ends)
{
    struct end *end = xcalloc(1, sizeof *end);
    size_t kept = 0;

    for (size_t i = 0; i < ends->count; i++) {
        if (sim_is_alive(ends->items[i]->proc, ends->items[i]->incarnation))
            ends->items[kept++] = ends->items[i];
    }
    ends->count = kept;
    assert(ends->count < ENDS_MAX);
    ends->items[ends->count++] = end;
    end->proc = sim_current();
    end->incarnation = end->proc->incarnation;
    return end;
}

static bool end_lives(const struct end *end)
{
    return sim_is_alive(end->proc, end->incarnation);
}

/* Any of those that listen: a client dials all addresses. */
static struct end *end_any(struct ends *ends)
{
    size_t start = sim_below(ends->count);

    for (size_t i = 0; i < ends->count; i++) {
        struct end *end = ends->items[(start + i) % ends->count];
        if (end_lives(end))
            return end;
    }
    return NULL;
}

static bool is_cut(const struct sim_proc *proc)
{
    return proc->cut_until_us > sim_now_us;
}

static bool is_lost(const struct sim_proc *proc)
{
    return is_cut(proc) || sim_chance(sim_faults.message_lost);
}

static int64_t delay(void)
{
    return sim_chance(sim_faults.message_late) ? sim_between(0, LATE_MS_MAX) * SIM_MS
                                               : sim_between(100, QUICK_US);
}

static struct bytes pack(const bus_envelope *envelope)
{
    struct bytes bytes = {.size = hypersdk__v1__envelope__get_packed_size(envelope)};

    assert(bytes.size <= BUS_MESSAGE_BYTES_MAX);
    bytes.data = xmalloc(bytes.size + 1);
    (void)hypersdk__v1__envelope__pack(envelope, bytes.data);
    return bytes;
}

static bus_envelope *unpack(const struct bytes *bytes)
{
    struct error err = ERROR_NONE;
    bus_envelope *envelope = NULL;

    if (bus_envelope_decode(bytes->data, bytes->size, &envelope, &err) < 0)
        sim_fail("the product sends what the bus refuses: %s", err.message);
    return envelope;
}

/* ---- lease ---- */

struct call {
    struct sim_proc *proc;
    uint32_t incarnation;
    struct bytes question;
    struct bytes answer;
    struct end *asked; /* the last that got it */
    bool answered;
    bool broken; /* who had it is gone */
    bool over;   /* nobody waits any more */
    int64_t until_us;
};

struct bus_request {
    struct call *call;
    struct end *server;
    bus_envelope *envelope;
};

#define CALLS_MAX 4096
static struct call *calls[CALLS_MAX]; /* those that are waited for */
static size_t call_count;

static void *serve(void *arg)
{
    struct bus_request *request = arg;

    request->server->handler(request->server->arg, request);
    return NULL;
}

static void deliver_question(void *arg)
{
    struct call *call = arg;
    struct end *server;
    struct bus_request *request;

    if (call->over || !sim_is_alive(call->proc, call->incarnation))
        return;
    server = end_any(&servers);
    if (server == NULL) { /* not connected: it is sent when it is */
        sim_after(NULL, CONNECT_US, deliver_question, call);
        return;
    }
    if (is_lost(call->proc) || is_cut(server->proc))
        return;
    request = xcalloc(1, sizeof *request);
    request->call = call;
    request->server = server;
    request->envelope = unpack(&call->question);
    call->asked = server;
    (void)sim_spawn(server->proc, serve, request);
}

int bus_client_open(const struct bus_config *config, struct bus_client **out, struct error *err)
{
    (void)config;
    (void)err;
    *out = xcalloc(1, sizeof **out);
    (*out)->proc = sim_current();
    return 0;
}

static void forget(const struct call *call)
{
    for (size_t i = 0; i < call_count; i++) {
        if (calls[i] == call)
            calls[i] = calls[--call_count];
    }
}

/* The call itself stays: copies of it may still be on their way. */
int bus_client_call(struct bus_client *client, const bus_envelope *request, int64_t timeout_ms,
                    bus_envelope **out, struct error *err)
{
    struct call *call = xcalloc(1, sizeof *call);

    call->proc = client->proc;
    call->incarnation = client->proc->incarnation;
    call->question = pack(request);
    call->until_us = sim_now_us + timeout_ms * SIM_MS;
    assert(call_count < CALLS_MAX);
    calls[call_count++] = call;
    sim_after(NULL, delay(), deliver_question, call);
    if (sim_chance(sim_faults.message_doubled))
        sim_after(NULL, delay(), deliver_question, call);
    while (!call->answered && !call->broken && sim_block(call, call->until_us))
        continue;
    call->over = true;
    forget(call);
    if (call->broken && !call->answered)
        return error_set(err, ERR_UNAVAILABLE, "the scheduler's connection is gone");
    if (!call->answered)
        return error_set(err, ERR_TIMEOUT, "the scheduler does not answer on lease");
    *out = unpack(&call->answer);
    return 0;
}

int bus_server_open(const struct bus_config *config, size_t contexts, bus_handler handler,
                    void *arg, struct bus_server **out, struct error *err)
{
    struct end *end = end_add(&servers);

    (void)config;
    (void)contexts;
    (void)err;
    end->handler = handler;
    end->arg = arg;
    *out = xcalloc(1, sizeof **out);
    (*out)->end = end;
    sim_trace("listens");
    return 0;
}

const bus_envelope *bus_request_envelope(const struct bus_request *request)
{
    return request->envelope;
}

bool bus_request_is_orphan(const struct bus_request *request)
{
    return !sim_is_alive(request->call->proc, request->call->incarnation);
}

struct answer {
    struct call *call;
    struct bytes bytes;
};

static void deliver_answer(void *arg)
{
    struct answer *answer = arg;
    struct call *call = answer->call;

    if (!call->over && !call->answered && sim_is_alive(call->proc, call->incarnation) &&
        !is_cut(call->proc)) {
        call->answered = true;
        call->answer = answer->bytes;
        sim_wake(call, true);
    } else {
        free(answer->bytes.data);
    }
    free(answer);
}

void bus_request_reply(struct bus_request *request, const bus_envelope *reply)
{
    if (!is_lost(request->call->proc) && !is_cut(request->server->proc)) {
        struct answer *answer = xcalloc(1, sizeof *answer);
        *answer = (struct answer){request->call, pack(reply)};
        sim_after(NULL, delay(), deliver_answer, answer);
    }
    bus_envelope_free(request->envelope);
    free(request);
}

/* Who waited for an answer of it hears at once, mostly. */
void net_proc_died(const struct sim_proc *proc)
{
    for (size_t i = 0; i < call_count; i++) {
        struct call *call = calls[i];
        if (!sim_is_alive(call->proc, call->incarnation)) {
            calls[i--] = calls[--call_count];
        } else if (call->asked != NULL && call->asked->proc == proc && sim_chance(800000)) {
            call->broken = true;
            sim_wake(call, true);
        }
    }
}

/* ---- events ---- */

struct message {
    struct end *to;
    struct bytes bytes;
    char topic[16];
};

static void *hand_over(void *arg)
{
    struct message *message = arg;
    auto_bus_envelope *envelope = unpack(&message->bytes);

    message->to->fn(message->to->arg, envelope);
    free(message->bytes.data);
    free(message);
    return NULL;
}

static void deliver_event(void *arg)
{
    struct message *message = arg;

    if (is_cut(message->to->proc)) {
        free(message->bytes.data);
        free(message);
        return;
    }
    (void)sim_spawn(message->to->proc, hand_over, message);
}

int bus_pusher_open(const struct bus_config *config, struct bus_pusher **out, struct error *err)
{
    (void)config;
    (void)err;
    *out = xcalloc(1, sizeof **out);
    (*out)->proc = sim_current();
    return 0;
}

void bus_push(struct bus_pusher *pusher, const bus_envelope *envelope)
{
    struct end *to = end_any(&pullers);
    size_t copies = sim_chance(sim_faults.message_doubled) ? 2 : 1;

    if (to == NULL || is_lost(pusher->proc))
        return;
    for (size_t i = 0; i < copies; i++) {
        struct message *message = xcalloc(1, sizeof *message);
        *message = (struct message){.to = to, .bytes = pack(envelope)};
        sim_after(to->proc, delay(), deliver_event, message);
    }
}

int bus_puller_start(const struct bus_config *config,
                     void (*fn)(void *arg, const bus_envelope *envelope), void *arg,
                     struct error *err)
{
    struct end *end = end_add(&pullers);

    (void)config;
    (void)err;
    end->fn = fn;
    end->arg = arg;
    return 0;
}

/* ---- announcements ---- */

int bus_publisher_open(const struct bus_config *config, struct bus_publisher **out,
                       struct error *err)
{
    (void)config;
    (void)err;
    *out = xcalloc(1, sizeof **out);
    (*out)->proc = sim_current();
    id_new("bus", (*out)->epoch);
    return 0;
}

static bool is_wanted(const struct end *end, const char *topic)
{
    for (const char *const *t = end->topics; *t != NULL; t++) {
        if (strcmp(*t, topic) == 0)
            return true;
    }
    return false;
}

/* As take_announcement of common/bus.c: a hole in the numbers is a loss. */
static void *announce(void *arg)
{
    struct message *message = arg;
    struct end *end = message->to;
    auto_bus_envelope *envelope = unpack(&message->bytes);

    if (strcmp(end->epoch, envelope->epoch) != 0 || envelope->sequence != end->sequence + 1)
        end->gap(end->arg);
    (void)snprintf(end->epoch, sizeof end->epoch, "%s", envelope->epoch);
    end->sequence = envelope->sequence;
    if (is_wanted(end, message->topic))
        end->fn(end->arg, envelope);
    free(message->bytes.data);
    free(message);
    return NULL;
}

static void deliver_announcement(void *arg)
{
    struct message *message = arg;

    if (is_cut(message->to->proc)) {
        free(message->bytes.data);
        free(message);
        return;
    }
    (void)sim_spawn(message->to->proc, announce, message);
}

void bus_publish(struct bus_publisher *publisher, const char *topic, bus_envelope *envelope)
{
    envelope->epoch = publisher->epoch;
    envelope->sequence = ++publisher->sequence;
    for (size_t i = 0; i < subscribers.count; i++) {
        struct end *to = subscribers.items[i];
        struct message *message;
        if (!end_lives(to) || is_lost(to->proc) || is_cut(publisher->proc))
            continue;
        message = xcalloc(1, sizeof *message);
        *message = (struct message){.to = to, .bytes = pack(envelope)};
        (void)snprintf(message->topic, sizeof message->topic, "%s", topic);
        int64_t at_us = sim_now_us + delay();
        to->last_us = at_us > to->last_us ? at_us : to->last_us + 1;
        sim_after(to->proc, to->last_us - sim_now_us, deliver_announcement, message);
    }
}

int bus_subscriber_start(const struct bus_config *config, const char *const *topics,
                         void (*fn)(void *arg, const bus_envelope *envelope),
                         void (*gap)(void *arg), void *arg, struct error *err)
{
    struct end *end = end_add(&subscribers);

    (void)config;
    (void)err;
    end->topics = topics;
    end->fn = fn;
    end->gap = gap;
    end->arg = arg;
    return 0;
}
