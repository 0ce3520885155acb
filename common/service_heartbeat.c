/* See service_heartbeat.h. */
#include "common/service_heartbeat.h"

#include "common/db.h"
#include "common/log.h"

#define RETRY_MS 500 /* while the database is away: readiness should come back quickly */

struct heartbeat {
    struct service *service;
    struct db *db;
};

static const char upsert_sql[] =
    "INSERT INTO services (name, instance, seen_at) VALUES ($1, $2, now())"
    " ON CONFLICT (instance) DO UPDATE SET seen_at = now()";

static int beat(struct heartbeat *heartbeat, struct error *err)
{
    const char *name = service_name(heartbeat->service);
    const char *instance = service_instance(heartbeat->service);

    if (db_check(heartbeat->db, err) < 0)
        return -1;
    return db_exec(heartbeat->db, upsert_sql, DB_PARAMS(name, instance), NULL, err);
}

static void *on_heartbeat_thread(void *arg)
{
    struct heartbeat *heartbeat = arg;
    int64_t wait_ms;

    do {
        struct error err = ERROR_NONE;
        bool ok = beat(heartbeat, &err) == 0;
        service_set_ready(heartbeat->service, "database", ok, err.message);
        wait_ms = ok ? SERVICE_HEARTBEAT_MS : RETRY_MS;
    } while (!service_wait(heartbeat->service, wait_ms));
    db_free(heartbeat->db);
    free(heartbeat);
    return NULL;
}

bool service_wait_schema(const struct service *service, struct db *db)
{
    for (;;) {
        struct error err = ERROR_NONE;
        if (service_stopping(service))
            return false;
        if (db_check(db, &err) == 0)
            return true;
        (void)service_wait(service, RETRY_MS);
    }
}

int service_heartbeat_start(struct service *service, const struct database_config *config,
                            const char *role, struct error *err)
{
    struct heartbeat *heartbeat = xcalloc(1, sizeof *heartbeat);
    pthread_t thread;
    int rv;

    heartbeat->service = service;
    heartbeat->db = db_new(config, role, service_instance(service));
    rv = pthread_create(&thread, NULL, on_heartbeat_thread, heartbeat);
    if (rv != 0) {
        db_free(heartbeat->db);
        free(heartbeat);
        return error_set_errno(err, rv, "heartbeat thread cannot be started");
    }
    (void)pthread_detach(thread);
    return 0;
}
