/* The leader's row: renewed each second by the database's clock, free after LEADER_MS.
 *
 * A process that lost it starts itself anew as a standby: sockets of the bus are never closed in a
 * living process, and workers must not talk to a scheduler that cannot answer. */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/paths.h"
#include "scheduler.h"

#define LEADER_MS         3000
#define LEADER_RENEW_MS   1000
#define WATCH_MS          500
#define HUNG_MS           2000 /* over LEADER_MS: then the connection hangs, not only fails */
#define STOP_MS           3000 /* after drain_ms: to give the row back */
#define ARGUMENTS_MAX     64
#define CMDLINE_BYTES_MAX 65536

static_assert(STOP_MS + 2 * WATCH_MS < SERVICE_DRAIN_GRACE_MS, "else a stop counts as forced");

static const char ACQUIRE[] =
    "INSERT INTO leader AS l (id, epoch, holder, until)"
    " VALUES (1, 1, $1, clock_timestamp() + interval '3 seconds')"
    " ON CONFLICT (id) DO UPDATE SET epoch = l.epoch + 1, holder = $1,"
    " until = clock_timestamp() + interval '3 seconds' WHERE l.until < clock_timestamp()"
    " RETURNING epoch";

static const char RENEW[] = "UPDATE leader SET until = clock_timestamp() + interval '3 seconds'"
                            " WHERE id = 1 AND holder = $1 AND until > clock_timestamp()";

static const char RELEASE[] = "UPDATE leader SET until = clock_timestamp() WHERE holder = $1";

/* 1: the row is ours; 0: another's. */
static int try_acquire(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;
    int64_t sent_ms = clock_mono_ms();

    if (db_exec(db, ACQUIRE, DB_PARAMS(service_instance(scheduler->service)), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return 0;
    atomic_store(&scheduler->leads_until_ms, sent_ms + LEADER_MS);
    LOG(INFO, "leader_acquired", F_I64("epoch", db_i64(rows, 0, 0)));
    return 1;
}

int leader_acquire(struct scheduler *scheduler, struct db *db, struct error *err)
{
    struct log_throttle throttle = {0};

    do {
        struct error why = ERROR_NONE;
        uint64_t held = 0;
        int rc = try_acquire(scheduler, db, &why);
        if (rc == 1)
            return 0;
        if (!log_throttle_pass(&throttle, rc == 0 ? "another leads" : why.message, &held))
            continue;
        if (rc == 0) {
            LOG(INFO, "standing_by");
        } else {
            LOG(WARN, "waiting_for_database", F_ERR(&why));
        }
    } while (!service_wait(scheduler->service, LEADER_RENEW_MS / 2));
    return error_set(err, ERR_CANCELLED, "stopped before leading");
}

/* The arguments as they were given; every socket and file is close-on-exec. */
static void restart(const struct scheduler *scheduler, const char *why)
{
    struct error err = ERROR_NONE;
    char *argv[ARGUMENTS_MAX + 1] = {0};
    autofree char *text = NULL;
    size_t count = 0;
    size_t size = 0;

    LOG(WARN, "leader_lost", F_STR("reason", why));
    if (service_stopping(scheduler->service))
        _exit(0); /* the row runs out by itself */
    text = xcalloc(1, CMDLINE_BYTES_MAX);
    autoclose int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, CMDLINE_BYTES_MAX - 1);
    size = n < 0 ? 0 : (size_t)n;
    for (char *p = text; p < text + size && count < ARGUMENTS_MAX; p += strlen(p) + 1)
        argv[count++] = p;
    if (count > 0)
        (void)execv("/proc/self/exe", argv);
    (void)error_set(&err, ERR_INTERNAL, "cannot start again as a standby");
    LOG(ERROR, "service_failed", F_ERR(&err));
    _exit(1); /* the supervisor starts it */
}

/* -1: unknown, the database did not answer. Does not return when the row is another's. */
int leader_renew(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;
    int64_t sent_ms = clock_mono_ms();

    if (db_exec(db, RENEW, DB_PARAMS(service_instance(scheduler->service)), &rows, err) < 0)
        return -1;
    if (db_affected(rows) != 1)
        restart(scheduler, "the row ran out or is another's");
    atomic_store(&scheduler->leads_until_ms, sent_ms + LEADER_MS);
    return 0;
}

void leader_keep(struct scheduler *scheduler, struct db *db)
{
    while (!service_wait(scheduler->service, LEADER_RENEW_MS)) {
        struct error err = ERROR_NONE;
        if (leader_renew(scheduler, db, &err) < 0 &&
            clock_mono_ms() > atomic_load(&scheduler->leads_until_ms))
            restart(scheduler, err.message);
    }
}

void leader_release(struct scheduler *scheduler, struct db *db)
{
    struct error err = ERROR_NONE;

    if (db_exec(db, RELEASE, DB_PARAMS(service_instance(scheduler->service)), NULL, &err) < 0)
        LOG(INFO, "leader_not_released", F_ERR(&err)); /* the standby waits LEADER_MS longer */
}

/* A renewal that hangs (the server's machine is gone, or stopped) must not keep us leading, nor
 * from ending: nothing but the server would end the statement. Who stops renews no more; its time
 * counts from then on, and is over before the process is ended as one that does not drain. */
void *leader_watch_main(void *arg)
{
    struct scheduler *scheduler = arg;
    int64_t stop_until_ms = 0;

    for (;;) {
        int64_t until_ms = atomic_load(&scheduler->leads_until_ms) + HUNG_MS;
        clock_sleep_ms(WATCH_MS);
        if (service_stopping(scheduler->service)) {
            if (stop_until_ms == 0)
                stop_until_ms = clock_mono_ms() + service_drain_ms(scheduler->service) + STOP_MS;
            until_ms = stop_until_ms;
        }
        if (clock_mono_ms() > until_ms)
            restart(scheduler, "the database does not answer");
    }
    return NULL;
}
