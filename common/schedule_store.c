/* See schedule_store.h. */
#include "common/schedule_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"

#define NUMBER_SIZE 24
#define COLUMNS                                                                                  \
    "SELECT s.id, s.policy_id, s.created_by, s.fields,"                                          \
    " coalesce(extract(epoch FROM s.next_run_at)::bigint, 0), extract(epoch FROM now())::bigint" \
    " FROM schedules s WHERE s.id = $1"
#define IS_DUE " enabled AND next_run_at + delay_ms * interval '1 millisecond' <= now()"

static const char LOAD[] = COLUMNS;
static const char LOAD_LOCKED[] = COLUMNS " FOR UPDATE";
static const char TAKE[] = COLUMNS " AND" IS_DUE " FOR UPDATE SKIP LOCKED";
static const char DUE[] =
    "SELECT coalesce(jsonb_agg(id ORDER BY next_run_at), '[]') FROM (SELECT"
    " id, next_run_at FROM schedules WHERE" IS_DUE " ORDER BY next_run_at LIMIT $1::int) due";
static const char NOW[] = "SELECT extract(epoch FROM now())::bigint";
static const char INSERT[] =
    "INSERT INTO schedules (id, name, fields, policy_id, created_by, enabled, next_run_at,"
    " delay_ms) VALUES ($1, $2, $3::jsonb, $4, $5, $6::boolean,"
    " to_timestamp(nullif($7::bigint, 0)), $8::bigint)";
static const char UPDATE[] =
    "UPDATE schedules SET name = $2, fields = $3::jsonb, enabled = $4::boolean,"
    " next_run_at = to_timestamp(nullif($5::bigint, 0)), delay_ms = $6::bigint, updated_at = now()"
    " WHERE id = $1";
static const char SET_NEXT[] = "UPDATE schedules SET next_run_at = to_timestamp($2::bigint),"
                               " delay_ms = $3::bigint WHERE id = $1";
static const char DELETE[] = "DELETE FROM schedules WHERE id = $1 RETURNING 1";

static int not_found(const char *id, struct error *err)
{
    return error_set(err, ERR_NOT_FOUND, "schedule '%.64s' does not exist", id);
}

int schedule_store_load(struct db *db, const char *id, enum schedule_lock lock,
                        struct schedule **out, struct error *err)
{
    const char *sql = lock == SCHEDULE_READ ? LOAD : lock == SCHEDULE_LOCK ? LOAD_LOCKED : TAKE;
    auto_schedule *schedule = xcalloc(1, sizeof *schedule);
    auto_pgresult *rows = NULL;
    const char *text;

    if (db_exec(db, sql, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return not_found(id, err);
    (void)snprintf(schedule->id, sizeof schedule->id, "%s", db_text(rows, 0, 0));
    (void)snprintf(schedule->policy_id, sizeof schedule->policy_id, "%s", db_text(rows, 0, 1));
    (void)snprintf(schedule->created_by, sizeof schedule->created_by, "%s", db_text(rows, 0, 2));
    text = db_text(rows, 0, 3);
    if (json_parse(text, strlen(text), MIB, &schedule->fields, err) < 0)
        return error_wrap(err, "schedule '%.64s'", id);
    schedule->next_s = db_i64(rows, 0, 4);
    schedule->now_s = db_i64(rows, 0, 5);
    *out = STEAL(schedule);
    return 0;
}

struct texts { /* parameters made of numbers */
    char next[NUMBER_SIZE];
    char delay[NUMBER_SIZE];
};

static struct texts texts_of(const struct schedule *schedule)
{
    struct texts texts;

    (void)snprintf(texts.next, sizeof texts.next, "%" PRId64, schedule->next_s);
    (void)snprintf(texts.delay, sizeof texts.delay, "%" PRId64, schedule_draw_delay_ms(schedule));
    return texts;
}

static const char *enabled_of(const struct schedule *schedule)
{
    return field_bool(schedule->fields, "enabled", true) ? "true" : "false";
}

/* From now on, whatever was missed. */
static int count_anew(struct db *db, struct schedule *schedule, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, NOW, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    schedule->now_s = db_i64(rows, 0, 0);
    schedule->next_s = 0;
    if (!field_bool(schedule->fields, "enabled", true))
        return 0;
    return cron_next(&schedule->cron, schedule->zone, schedule->now_s, &schedule->next_s, err);
}

static int name_taken(const struct schedule *schedule, struct error *err)
{
    if (err->code != ERR_CONFLICT)
        return -1;
    error_clear(err);
    return error_set(err, ERR_CONFLICT,
                     "a schedule or policy named '%.128s' exists already: change that one, or "
                     "choose another name",
                     field_text(schedule->fields, "name", ""));
}

int schedule_store_insert(struct db *db, struct schedule *schedule, struct error *err)
{
    autofree char *fields = NULL;
    struct texts texts;

    if (count_anew(db, schedule, err) < 0)
        return -1;
    if (schedule->id[0] == '\0')
        id_new("sch", schedule->id);
    fields = json_text(schedule->fields);
    texts = texts_of(schedule);
    if (db_exec(db, INSERT,
                DB_PARAMS(schedule->id, field_text(schedule->fields, "name", ""), fields,
                          schedule->policy_id, schedule->created_by, enabled_of(schedule),
                          texts.next, texts.delay),
                NULL, err) < 0)
        return name_taken(schedule, err);
    return 0;
}

int schedule_store_update(struct db *db, struct schedule *schedule, struct error *err)
{
    autofree char *fields = NULL;
    struct texts texts;

    if (count_anew(db, schedule, err) < 0)
        return -1;
    fields = json_text(schedule->fields);
    texts = texts_of(schedule);
    if (db_exec(db, UPDATE,
                DB_PARAMS(schedule->id, field_text(schedule->fields, "name", ""), fields,
                          enabled_of(schedule), texts.next, texts.delay),
                NULL, err) < 0)
        return name_taken(schedule, err);
    return 0;
}

int schedule_store_set_next(struct db *db, struct schedule *schedule, int64_t next_s,
                            struct error *err)
{
    struct texts texts;

    schedule->next_s = next_s;
    texts = texts_of(schedule);
    return db_exec(db, SET_NEXT, DB_PARAMS(schedule->id, texts.next, texts.delay), NULL, err);
}

int schedule_store_delete(struct db *db, const char *id, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, DELETE, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    return PQntuples(rows) == 0 ? not_found(id, err) : 0;
}

int schedule_store_due(struct db *db, uint32_t limit, json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;
    char text[NUMBER_SIZE];

    (void)snprintf(text, sizeof text, "%u", limit);
    if (db_exec(db, DUE, DB_PARAMS(text), &rows, err) < 0)
        return -1;
    return json_parse(db_text(rows, 0, 0), strlen(db_text(rows, 0, 0)), MIB, out, err);
}
