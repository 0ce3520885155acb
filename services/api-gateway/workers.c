/* See workers.h. */
#include "workers.h"

#include <errno.h>
#include <poll.h>

#include "common/clock.h"
#include "gateway.h"

#define IDLE_MS 60000

struct workers {
    pthread_mutex_t mutex; /* guards first, last, queued */
    pthread_cond_t wanted;
    struct work *first;
    struct work *last;
    size_t queued;
    size_t queue_max;
    const struct gateway *gateway;
    const char *name;
    bool with_db;
};

/* NULL: there was nothing to do for IDLE_MS. */
static struct work *next_work(struct workers *workers)
{
    int64_t until_ns = clock_mono_ns() + IDLE_MS * INT64_C(1000000);
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    struct work *work;
    LOCK_SCOPE(&workers->mutex);

    while (workers->first == NULL) {
        if (pthread_cond_timedwait(&workers->wanted, &workers->mutex, &until) != 0)
            return NULL;
    }
    work = workers->first;
    workers->first = work->next;
    if (workers->first == NULL)
        workers->last = NULL;
    workers->queued--;
    return work;
}

/* A connection that the server closed while it was idle (restart, timeout) is found now, not by the
 * call's first statement: the next statement connects again. */
static void notice_closed(struct db *db)
{
    PGconn *connection = db_connection(db);

    for (int i = 0; i < 4 && connection != NULL && PQstatus(connection) == CONNECTION_OK; i++) {
        struct pollfd fd = {.fd = PQsocket(connection), .events = POLLIN};
        if (poll(&fd, 1, 0) != 1 || PQconsumeInput(connection) == 0)
            return;
    }
}

static void *on_worker_thread(void *arg)
{
    struct workers *workers = arg;
    struct db *db = workers->with_db ? gateway_db_new(workers->gateway, workers->name) : NULL;

    for (;;) {
        struct work *work = next_work(workers);
        if (work == NULL) { /* listings are rare: their connections are not kept for ever */
            db_free(db);
            db = workers->with_db ? gateway_db_new(workers->gateway, workers->name) : NULL;
            continue;
        }
        if (db != NULL)
            notice_closed(db);
        work->run(work, db);
        if (db != NULL)
            db_rollback(db);
    }
    return NULL;
}

int workers_start(const struct gateway *gateway, const struct workers_options *options,
                  struct workers **out, struct error *err)
{
    struct workers *workers = xcalloc(1, sizeof *workers);
    pthread_condattr_t attributes;

    (void)pthread_mutex_init(&workers->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&workers->wanted, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    workers->queue_max = options->queue_max;
    workers->gateway = gateway;
    workers->name = options->name;
    workers->with_db = options->with_db;
    *out = workers; /* lives until the process ends: its threads never stop */
    for (size_t i = 0; i < options->threads; i++) {
        pthread_t thread;
        int rv = pthread_create(&thread, NULL, on_worker_thread, workers);
        if (rv != 0)
            return error_set_errno(err, rv, "thread of pool '%s' cannot be started", options->name);
        (void)pthread_detach(thread);
    }
    return 0;
}

bool workers_submit(struct workers *workers, struct work *work)
{
    LOCK_SCOPE(&workers->mutex);

    if (workers->queued >= workers->queue_max)
        return false;
    work->next = NULL;
    if (workers->last != NULL) {
        workers->last->next = work;
    } else {
        workers->first = work;
    }
    workers->last = work;
    workers->queued++;
    (void)pthread_cond_signal(&workers->wanted);
    return true;
}
