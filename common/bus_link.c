/* See bus_link.h.
 *
 * Design notes. nng's callbacks about connections only set what `mutex` guards; calls are called
 * off by a thread of their own, and not before CALL_OFF_MS: a receive must not be cancelled while
 * its send is in progress (library notes, section 1). nng may take its own locks under `mutex`,
 * never the other way round: its callbacks about connections run with none of them held. */
#include "common/bus_link.h"

#include <pthread.h>
#include <time.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/log.h"

#define CALL_OFF_MS 100
/* So many calls without an answer, and none between: the connection is given up and dialled anew.
 * TCP itself sends again ever more rarely, after a minute's cut only every minute or two. */
#define SILENT_CALLS_MAX 2
#define SILENT_MS        2500 /* calls with less time than a renewal (3 s) say nothing */

struct link {
    struct bus_links *links;
    nng_socket socket;
    int pipe; /* the connection; 0: none */
    uint32_t silent_calls;
    int64_t answered_ms;
};

struct bus_links {
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    struct link *items;
    size_t count;
    size_t current;
    struct bus_link_call *calls;
};

static void on_connected(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct link *link = arg;
    struct bus_links *links = link->links;
    LOCK_SCOPE(&links->mutex);

    (void)event;
    link->pipe = nng_pipe_id(pipe);
    link->silent_calls = 0;
    links->current = (size_t)(link - links->items);
    (void)pthread_cond_broadcast(&links->changed);
}

static void on_gone(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct link *link = arg;
    struct bus_links *links = link->links;
    LOCK_SCOPE(&links->mutex);

    (void)event;
    if (link->pipe == nng_pipe_id(pipe))
        link->pipe = 0;
}

static struct timespec at_ms(int64_t ms)
{
    return (struct timespec){ms / 1000, ms % 1000 * 1000000};
}

/* Calls off what waits on a connection that is not the leader's any more; true: some is too young.
 * Under the lock. */
static bool call_off(struct bus_links *links)
{
    int64_t now = clock_mono_ms();
    bool left = false;

    if (links->items[links->current].pipe == 0)
        return false;
    for (struct bus_link_call *call = links->calls; call != NULL; call = call->next) {
        if (call->link == links->current)
            continue;
        left = true; /* also one that is called off: between its two halves it does not notice */
        if (now < call->sent_ms + CALL_OFF_MS)
            continue;
        call->called_off = true;
        nng_aio_cancel(call->aio);
    }
    return left;
}

static void *watch_main(void *arg)
{
    struct bus_links *links = arg;

    (void)pthread_mutex_lock(&links->mutex);
    for (;;) {
        if (call_off(links)) {
            struct timespec until = at_ms(clock_mono_ms() + CALL_OFF_MS);
            (void)pthread_cond_timedwait(&links->changed, &links->mutex, &until);
        } else {
            (void)pthread_cond_wait(&links->changed, &links->mutex);
        }
    }
    return NULL;
}

static int open_link(struct link *link, const struct bus_links_description *description,
                     const struct bus_config *config, const char *address, struct error *err)
{
    int rv = description->open(&link->socket);

    if (rv == 0)
        rv = nng_pipe_notify(link->socket, NNG_PIPE_EV_ADD_POST, on_connected, link);
    if (rv == 0)
        rv = nng_pipe_notify(link->socket, NNG_PIPE_EV_REM_POST, on_gone, link);
    if (rv != 0) {
        return error_set(err, ERR_UNAVAILABLE, "bus: open '%s': %s", description->what,
                         nng_strerror(rv));
    }
    return description->dial(link->socket, config, address, err);
}

int bus_links_open(const struct bus_links_description *description, const struct bus_config *config,
                   const struct config_list *addresses, struct bus_links **out, struct error *err)
{
    struct bus_links *links;
    pthread_condattr_t attributes;
    pthread_t thread;

    if (addresses->count == 0)
        return error_set(err, ERR_INVALID, "bus: no address is configured");
    links = xcalloc(1, sizeof *links); /* never freed: nng's threads look at it */
    (void)pthread_mutex_init(&links->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&links->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    links->items = xcalloc(addresses->count, sizeof *links->items);
    links->count = addresses->count;
    for (size_t i = 0; i < links->count; i++) {
        links->items[i].links = links;
        if (open_link(&links->items[i], description, config, addresses->items[i], err) < 0)
            return -1;
    }
    if (links->count > 1) {
        int rc = pthread_create(&thread, NULL, watch_main, links);
        if (rc != 0)
            return error_set_errno(err, rc, "bus: thread");
        (void)pthread_detach(thread);
    }
    *out = links;
    return 0;
}

nng_socket bus_links_current(struct bus_links *links)
{
    LOCK_SCOPE(&links->mutex);
    return links->items[links->current].socket;
}

/* The newest connection, else any; with none connected, current stays. Under the lock. */
static bool choose(struct bus_links *links)
{
    for (size_t i = 0; i < links->count && links->items[links->current].pipe == 0; i++) {
        if (links->items[i].pipe != 0)
            links->current = i;
    }
    return links->items[links->current].pipe != 0;
}

bool bus_links_begin(struct bus_links *links, struct bus_link_call *call, nng_aio *aio,
                     int64_t deadline_ms, nng_socket *out)
{
    struct timespec until = at_ms(deadline_ms);
    LOCK_SCOPE(&links->mutex);

    while (!choose(links) && links->count > 1) {
        if (pthread_cond_timedwait(&links->changed, &links->mutex, &until) != 0)
            return false;
    }
    *call = (struct bus_link_call){.aio = aio,
                                   .link = links->current,
                                   .pipe = links->items[links->current].pipe,
                                   .sent_ms = clock_mono_ms(),
                                   .next = links->calls};
    links->calls = call;
    *out = links->items[call->link].socket;
    return true;
}

static void remove_call(struct bus_links *links, const struct bus_link_call *call)
{
    struct bus_link_call **place = &links->calls;

    while (*place != call)
        place = &(*place)->next;
    *place = call->next;
}

/* The pipe to give up; 0: none. Under the lock. */
static int note_result(struct bus_links *links, const struct bus_link_call *call, int rv)
{
    struct link *link = &links->items[call->link];
    int64_t now = clock_mono_ms();

    if (rv == 0) {
        link->answered_ms = now;
        link->silent_calls = 0;
    } else if (rv == NNG_ETIMEDOUT && call->pipe != 0 && call->pipe == link->pipe &&
               link->answered_ms < call->sent_ms && now - call->sent_ms >= SILENT_MS &&
               ++link->silent_calls >= SILENT_CALLS_MAX) {
        link->silent_calls = 0;
        link->pipe = 0; /* another one that is connected is tried next */
        return call->pipe;
    }
    return 0;
}

void bus_links_end(struct bus_links *links, struct bus_link_call *call, int rv)
{
    nng_pipe pipe = NNG_PIPE_INITIALIZER;

    (void)pthread_mutex_lock(&links->mutex);
    remove_call(links, call);
    pipe.id = (uint32_t)note_result(links, call, rv);
    (void)pthread_mutex_unlock(&links->mutex);
    if (pipe.id == 0)
        return;
    LOG(WARN, "bus_connection_silent", F_U64("calls", SILENT_CALLS_MAX));
    (void)nng_pipe_close(pipe);
}
