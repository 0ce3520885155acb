/* See worker_bandwidth.h. */
#include "common/worker_bandwidth.h"

#include <inttypes.h>
#include <stdio.h>

#define NUMBER_SIZE 24

static const char GET[] = "SELECT (value->>'rate')::bigint, (value->>'burst')::bigint FROM settings"
                          " WHERE key = '" WORKER_BANDWIDTH_KEY "' || $1";

static const char OF_INSTANCE[] =
    "SELECT (s.value->>'rate')::bigint, (s.value->>'burst')::bigint FROM workers w JOIN settings s"
    " ON s.key = '" WORKER_BANDWIDTH_KEY
    "' || w.provider WHERE w.instance = $1 AND w.role = 'exporter'";

static const char PUT[] =
    "INSERT INTO settings (key, value) VALUES ('" WORKER_BANDWIDTH_KEY "' || $1,"
    " jsonb_build_object('rate', $2::bigint, 'burst', $3::bigint))"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = now()";

static const char REMOVE[] = "DELETE FROM settings WHERE key = '" WORKER_BANDWIDTH_KEY "' || $1";

static int load(struct db *db, const char *sql, const char *param, struct worker_bandwidth *out,
                struct error *err)
{
    auto_pgresult *rows = NULL;

    *out = (struct worker_bandwidth){0};
    if (db_exec(db, sql, DB_PARAMS(param), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 1) {
        *out = (struct worker_bandwidth){.set = true,
                                         .rate = (uint64_t)db_i64(rows, 0, 0),
                                         .burst = (uint64_t)db_i64(rows, 0, 1)};
    }
    return 0;
}

int worker_bandwidth_get(struct db *db, const char *kind, struct worker_bandwidth *out,
                         struct error *err)
{
    return load(db, GET, kind, out, err);
}

int worker_bandwidth_of(struct db *db, const char *instance, struct worker_bandwidth *out,
                        struct error *err)
{
    return load(db, OF_INSTANCE, instance, out, err);
}

int worker_bandwidth_put(struct db *db, const char *kind, const struct worker_bandwidth *value,
                         struct error *err)
{
    char rate[NUMBER_SIZE];
    char burst[NUMBER_SIZE];

    if (!value->set)
        return db_exec(db, REMOVE, DB_PARAMS(kind), NULL, err);
    (void)snprintf(rate, sizeof rate, "%" PRIu64, value->rate);
    (void)snprintf(burst, sizeof burst, "%" PRIu64, value->burst);
    return db_exec(db, PUT, DB_PARAMS(kind, rate, burst), NULL, err);
}
