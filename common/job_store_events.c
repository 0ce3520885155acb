/* See job_store.h: rows of job_events as live clients get them, and up to where they are published.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/job_store_internal.h"
#include "common/json.h"
#include "common/strbuf.h"

#define EVENT_COLUMNS                                                                     \
    "e.id, e.event, e.status, e.phase, j.id, j.vm_name, j.provider, j.error, j.progress," \
    " to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), e.actor, e.detail"
static const char EVENTS[] =
    "SELECT " EVENT_COLUMNS " FROM job_events e LEFT JOIN jobs j ON j.id = e.job_id"
    " WHERE e.id > $1::bigint ORDER BY e.id LIMIT $2::int";

/* Which of them are there, which costs a fraction. */
static const char EVENT_IDS[] =
    "SELECT id FROM job_events WHERE id > $1::bigint ORDER BY id LIMIT $2::int";

/* What this statement's snapshot shows and $1 did not. Whole transactions, so the rows may be a few
 * more than $2. A transaction of the future is one of the cluster that the rows were copied from.
 */
#define FIRST "ORDER BY xid FETCH FIRST ($2::int) ROWS WITH TIES"
static const char EVENTS_BEHIND[] =
    "SELECT " EVENT_COLUMNS ", e.xid, pg_current_snapshot() FROM (SELECT * FROM ("
    "(SELECT * FROM job_events WHERE xid >= pg_snapshot_xmax($1::pg_snapshot)"
    "  AND xid < pg_snapshot_xmax(pg_current_snapshot()) " FIRST ") UNION ALL"
    " (SELECT * FROM job_events"
    "  WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::pg_snapshot))) " FIRST ")) n " FIRST ") e"
    " LEFT JOIN jobs j ON j.id = e.job_id ORDER BY e.id";

/* Of a schedule's run, without a job: what stands in its detail. */
static json_t *run_event_json(const PGresult *rows, int row)
{
    json_t *event = json_loads(db_text(rows, row, 11), 0, NULL);

    json_set_text(event, "type", db_text(rows, row, 1));
    (void)json_object_set_new(event, "seq", json_integer(db_i64(rows, row, 0)));
    json_set_text(event, "timestamp", db_text(rows, row, 9));
    json_set_text(event, "status", db_text(rows, row, 2));
    return event;
}

static json_t *job_event_json(const PGresult *rows, int row)
{
    json_t *event = json_object();
    json_t *progress = json_loads(db_text(rows, row, 8), 0, NULL);
    json_t *percentage = json_object_get(progress, "percentage");
    double percent = json_number_value(percentage);

    if (strcmp(db_text(rows, row, 2), "completed") == 0)
        percent = 100.0;
    json_set_text(event, "type", db_text(rows, row, 1));
    (void)json_object_set_new(event, "seq", json_integer(db_i64(rows, row, 0)));
    json_set_text(event, "timestamp", db_text(rows, row, 9));
    json_set_text(event, "job_id", db_text(rows, row, 4));
    json_set_text(event, "status", db_text(rows, row, 2));
    json_set_text(event, "phase", db_text(rows, row, 3));
    json_set_text(event, "vm_name", db_text(rows, row, 5));
    json_set_text(event, "provider", db_text(rows, row, 6));
    json_set_text(event, "error", db_text(rows, row, 7));
    (void)json_object_set_new(event, "progress", json_integer((json_int_t)percent));
    (void)json_object_set_new(event, "percentage", json_real(percent));
    json_decref(progress);
    return event;
}

static json_t *events_json(const PGresult *rows)
{
    json_t *events = json_array();

    for (int i = 0; i < PQntuples(rows); i++)
        (void)json_array_append_new(events, db_is_null(rows, i, 4) ? run_event_json(rows, i)
                                                                   : job_event_json(rows, i));
    return events;
}

int job_store_events(struct db *db, int64_t after_id, uint32_t limit, json_t **out,
                     struct error *err)
{
    auto_pgresult *rows = NULL;
    char after[NUMBER_SIZE];
    char most[NUMBER_SIZE];

    (void)snprintf(after, sizeof after, "%" PRId64, after_id);
    (void)snprintf(most, sizeof most, "%" PRIu32, limit);
    if (db_exec(db, EVENTS, DB_PARAMS(after, most), &rows, err) < 0)
        return -1;
    *out = events_json(rows);
    return 0;
}

int job_store_event_ids(struct db *db, int64_t after_id, uint32_t limit, PGresult **out,
                        struct error *err)
{
    char after[NUMBER_SIZE];
    char most[NUMBER_SIZE];

    (void)snprintf(after, sizeof after, "%" PRId64, after_id);
    (void)snprintf(most, sizeof most, "%" PRIu32, limit);
    return db_exec(db, EVENT_IDS, DB_PARAMS(after, most), out, err);
}

char *snapshot_cut(const char *snapshot, uint64_t last)
{
    char *rest = NULL;
    uint64_t first = strtoull(snapshot, &rest, 10); /* xmin:xmax:xip,xip: rising */
    uint64_t end = strtoull(rest + 1, &rest, 10);
    auto_strbuf running = {0};

    if (last >= end - 1)
        return xstrdup(snapshot);
    strbuf_init(&running, strlen(snapshot) + 1);
    first = end = last + 1;
    while (rest[0] != '\0' && rest[1] != '\0') {
        uint64_t xid = strtoull(rest + 1, &rest, 10);
        if (xid > last)
            break;
        first = min_u64(first, xid);
        strbuf_addf(&running, "%s%" PRIu64, running.length == 0 ? "" : ",", xid);
    }
    return xasprintf("%" PRIu64 ":%" PRIu64 ":%s", first, end, running.data);
}

int job_store_events_behind(struct db *db, const char *position, uint32_t limit, json_t **out,
                            char **out_position, struct error *err)
{
    auto_pgresult *rows = NULL;
    char most[NUMBER_SIZE];
    uint64_t last = 0;

    (void)snprintf(most, sizeof most, "%" PRIu32, limit);
    if (db_exec(db, EVENTS_BEHIND, DB_PARAMS(position, most), &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++)
        last = max_u64(last, strtoull(db_text(rows, i, 12), NULL, 10));
    if (PQntuples(rows) == 0) { /* what was under way then is still found by position */
        *out_position = xstrdup(position);
    } else if (PQntuples(rows) < (int)limit) {
        *out_position = xstrdup(db_text(rows, 0, 13));
    } else {
        *out_position = snapshot_cut(db_text(rows, 0, 13), last);
    }
    *out = events_json(rows);
    return 0;
}
