/* See claim.h. Two leaders at once do no harm: the claim locks the task and its job, passes over
 * what is locked, and looks at the states under the locks. */
#include "claim.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/restore_points.h"
#include "live.h"

#define NUMBER_SIZE         24
#define WORKER_NAME_SIZE    160 /* instances are "<name>-<host>-<pid>-<4 hex>" */
#define SEALED_BYTES_MAX    ((size_t)(128 * KIB))
#define EXPORT_PARAMS       8
#define LANE_PARAMS         6    /* the first of them */
#define LANES_KNOWN_MS      1000 /* so late a task below the floor is found */
#define LANES_EMPTY_PART    4    /* of the time, for the search when nothing was found */
#define LANES_SHORT_ENTRIES 2000 /* of the index: 2 ms */
#define FLOOR_KNOWN_MS      5000 /* so late a bridge's or a control task below the floor is found */
#define FLOOR_SHORT_MS      50   /* more than a busy machine takes for a short look */
#define FLOOR_PARAM         4    /* of RANKED_PARAMS */
#define RANKED_PARAMS       6
#define OVERHEAD_BYTES      ((size_t)(16 * KIB)) /* of a lease: tags, lengths, short fields */

/* Of workers that ask all the time one row is not written all the time. $1: what they say. Losing
 * it on a crash costs nothing: they say it again. */
static const char UPSERT_WORKERS[] =
    "WITH off AS (SELECT set_config('synchronous_commit', 'off', true)),"
    " told AS (SELECT instance, max(role) AS role, max(provider) AS provider, max(host) AS "
    "host,"
    "  max(pid) AS pid, max(version) AS version, max(slots_transfer) AS slots_transfer,"
    "  max(slots_control) AS slots_control, (array_agg(volumes))[1] AS volumes,"
    "  (array_agg(capabilities))[1] AS capabilities FROM jsonb_to_recordset($1::jsonb)"
    "  AS x(instance text, role text, provider text, host text, pid int, version text,"
    "  slots_transfer int, slots_control int, volumes jsonb, capabilities jsonb) GROUP BY "
    "instance),"
    " old AS (SELECT instance, state FROM workers WHERE instance IN (SELECT instance FROM told))"
    " INSERT INTO workers AS w (instance, role, provider, host, pid, version, slots_transfer,"
    " slots_control, volumes, capabilities) SELECT t.* FROM told t, off WHERE NOT EXISTS (SELECT 1 "
    "FROM"
    "  workers k WHERE k.instance = t.instance AND k.state = 'up'"
    "  AND k.seen_at > now() - interval '3 seconds' AND k.slots_transfer >= t.slots_transfer"
    "  AND k.slots_control >= t.slots_control AND k.volumes = t.volumes"
    "  AND k.capabilities = t.capabilities) ORDER BY instance"
    " ON CONFLICT (instance) DO UPDATE SET seen_at = now(), state = 'up',"
    " slots_transfer = greatest(w.slots_transfer, excluded.slots_transfer),"
    " slots_control = greatest(w.slots_control, excluded.slots_control),"
    " volumes = excluded.volumes, capabilities = excluded.capabilities"
    " RETURNING instance,"
    " coalesce((SELECT o.state FROM old o WHERE o.instance = w.instance), '') <> 'up'";

/* What is asked of a task besides its place: $1 kind of provider, $2 kinds of task, $3 volumes. */
#define FITS                                                                                      \
    " AND t.kind = ANY (ARRAY(SELECT jsonb_array_elements_text($2::jsonb)))"                      \
    " AND (t.volume = '' OR t.volume = ANY (ARRAY(SELECT jsonb_array_elements_text($3::jsonb))))" \
    " AND t.not_before <= now()"
/* By the clock: a window may end after the transaction has begun. The status is no way to the row
 * (|| ''): with few pending jobs when the table was analyzed, all that are pending, or were and are
 * still seen by an old snapshot, would be read for each task. */
#define LIVE_JOB                                    \
    " AND j.status || '' IN ('pending', 'running')" \
    " AND (j.window_at IS NULL OR (j.window_open AND j.window_at > clock_timestamp()))"
#define WAITS "state = 'queued' AND hold = ''"

/* Lane by lane (what has the same limits), each by its own part of the index: what waits at a limit
 * costs nothing. Of the lanes with room the one whose first task has the lowest rank is served,
 * with what stands before the first of the next lane; tasks that are locked are passed over. Tasks
 * on files that exist need no source: their provider and kind are ''. $4: exports per provider,
 * unless its settings say it; $5: per host, 0 = any; $6: how many. Rows of another lane than the
 * first row's are not for the caller: one lane fills up the other's limits.
 *
 * Rows that an old snapshot still sees stay in the indexes, before those that wait: they are passed
 * over once, for the floor of the lane, below which nothing waits. */
#define EXPORT_QUEUE WAITS " AND class = 'transfer' AND role = 'exporter'"
#define LANE                                                                               \
    " t.state = 'queued' AND t.hold = '' AND t.class = 'transfer' AND t.role = 'exporter'" \
    " AND t.provider = o.provider AND t.source_host = o.source_host"                       \
    " AND t.queue_group = o.queue_group AND t.rank >= o.floor AND t.provider_kind IN ($1, '')"
#define LANES                                                                                 \
    "WITH RECURSIVE lanes AS ((SELECT provider, source_host, queue_group, queue_limit,"       \
    "  rank AS floor FROM tasks WHERE " EXPORT_QUEUE                                          \
    "  ORDER BY provider, source_host, queue_group, rank LIMIT 1)"                            \
    " UNION ALL SELECT n.* FROM lanes w CROSS JOIN LATERAL (SELECT provider, source_host,"    \
    "  queue_group, queue_limit, rank FROM tasks WHERE " EXPORT_QUEUE                         \
    "  AND (provider, source_host, queue_group) > (w.provider, w.source_host, w.queue_group)" \
    "  ORDER BY provider, source_host, queue_group, rank LIMIT 1) n)"
/* A lease that ran out a minute ago has no worker any more, whether it was taken back or not. */
#define BUSY                                                                               \
    ", busy AS MATERIALIZED (SELECT provider, source_host, queue_group, count(*) AS n"     \
    "  FROM tasks WHERE class = 'transfer' AND role = 'exporter'"                          \
    "  AND state IN ('leased', 'finishing') AND lease_until > now() - interval '1 minute'" \
    "  GROUP BY provider, source_host, queue_group)"
#define USED "(SELECT coalesce(sum(b.n), 0)::int FROM busy b WHERE"
#define FROM_LANES                                                                                 \
    ","                                                                                            \
    " o AS MATERIALIZED (SELECT l.*, least(" /* NULL: no limit */                                  \
    "   CASE WHEN l.provider <> '' THEN coalesce((p.settings->>'export_limit')::int, $4::int)"     \
    "    - " USED " b.provider = l.provider) END,"                                                 \
    "   CASE WHEN l.source_host <> '' AND $5::int > 0 THEN $5::int - " USED                        \
    "    b.provider = l.provider AND b.source_host = l.source_host) END,"                          \
    "   CASE WHEN l.queue_group <> '' AND l.queue_limit > 0 THEN l.queue_limit - " USED            \
    "    b.queue_group = l.queue_group) END) AS room"                                              \
    "  FROM lanes l LEFT JOIN providers p ON p.name = l.provider WHERE coalesce(p.enabled, "       \
    "true)),"                                                                                      \
    " heads AS MATERIALIZED (SELECT o.*, h.rank, h.seq, lead(h.rank) OVER w AS next_rank,"         \
    "  lead(h.seq) OVER w AS next_seq FROM o CROSS JOIN LATERAL (SELECT t.rank,"                   \
    "  t.seq FROM tasks t WHERE" LANE FITS " ORDER BY t.rank, t.seq LIMIT 1) h"                    \
    "  WHERE coalesce(o.room, 1) > 0 WINDOW w AS (ORDER BY h.rank, h.seq) ORDER BY h.rank, h.seq)" \
    " SELECT c.id, o.provider, o.source_host, o.queue_group, o.next_rank IS NULL FROM heads o"     \
    " CROSS JOIN LATERAL (SELECT t.id FROM tasks t JOIN jobs j"                                    \
    "  ON j.id = t.job_id WHERE" LANE FITS LIVE_JOB                                                \
    "  AND (o.next_rank IS NULL OR (t.rank, t.seq) < (o.next_rank, o.next_seq))"                   \
    "  ORDER BY t.rank, t.seq LIMIT least(o.room, $6::int) FOR UPDATE OF j, t SKIP LOCKED) c"      \
    " LIMIT $6::int"
static const char EXPORT_CANDIDATES[] = LANES BUSY FROM_LANES;

static const char FIND_LANES[] =
    LANES BUSY " SELECT (SELECT coalesce(jsonb_agg(lanes), '[]') FROM lanes),"
               " (SELECT coalesce(jsonb_agg(busy), '[]') FROM busy)";

/* Entries of the index that this transaction came by. Time would not tell: a busy machine's looks
 * take long, too. */
static const char PASSED_OVER[] =
    "SELECT pg_stat_get_xact_tuples_returned('tasks_export_queue'::regclass)";

/* $7, $8: what FIND_LANES found a moment ago, and what was leased since. */
static const char EXPORT_CANDIDATES_OF[] =
    "WITH lanes AS (SELECT * FROM jsonb_to_recordset($7::jsonb) AS x(provider text,"
    "  source_host text, queue_group text, queue_limit int, floor bigint)),"
    " busy AS MATERIALIZED (SELECT * FROM jsonb_to_recordset($8::jsonb) AS x(provider text,"
    "  source_host text, queue_group text, n int))" FROM_LANES;

/* Those have one order. $4: how many; $5: floor; $6: role. */
static const char BRIDGE_CANDIDATES[] =
    "SELECT t.id, '', '', '', true, t.rank FROM tasks t JOIN jobs j ON j.id = t.job_id WHERE "
    "t.state = "
    "'queued'"
    " AND t.hold = '' AND t.class = 'transfer' AND t.role = $6 AND t.provider_kind = $1"
    " AND t.rank >= $5::bigint" FITS LIVE_JOB
    " ORDER BY t.rank, t.seq LIMIT $4::int FOR UPDATE OF j, t SKIP LOCKED";

/* Control tasks have no job. */
static const char CONTROL_CANDIDATES[] =
    "SELECT t.id, '', '', '', true, t.rank FROM tasks t WHERE t.state = 'queued'"
    " AND t.class = 'control' AND t.hold = '' AND t.provider_kind = $1 AND t.role = $6"
    " AND t.rank >= $5::bigint" FITS
    " ORDER BY t.rank, t.seq LIMIT $4::int FOR UPDATE OF t SKIP LOCKED";

static const char FIND_FLOOR[] =
    "SELECT t.rank FROM tasks t WHERE t.state = 'queued' AND t.hold = '' AND t.role = $1"
    " AND t.provider_kind = $2 AND t.class = $3 ORDER BY t.rank, t.seq LIMIT 1";

#define IDS "ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))"

/* Asked before they are leased. $2: whose bandwidth limit counts. A clean-up keeps off where jobs
 * work now. */
static const char LOAD_LEASES[] =
    "SELECT coalesce(t.job_id, ''), t.kind, CASE WHEN t.kind = 'cleanup'"
    "  THEN t.spec || jsonb_build_object('busy', (SELECT coalesce(jsonb_agg(b.output_path), '[]')"
    "   FROM jobs b WHERE b.status IN ('running', 'paused', 'cancelling') AND b.kind <> 'cleanup'"
    "   AND b.output_path <> '')) ELSE t.spec END, t.provider,"
    " coalesce(p.settings - 'export_limit', '{}'::jsonb), c.sealed, coalesce(c.audience, ''),"
    " coalesce(j.trace_id, ''), coalesce(j.vm_name, ''),"
    " t.job_id IS NOT NULL AND t.role = 'exporter' AND t.provider <> '' AND p.name IS NULL, t.id,"
    " s.key IS NOT NULL, (s.value->>'rate')::bigint, (s.value->>'burst')::bigint"
    " FROM tasks t"
    " LEFT JOIN jobs j ON j.id = t.job_id"
    " LEFT JOIN providers p ON p.name = t.provider AND t.role = 'exporter'"
    " LEFT JOIN credentials c ON c.provider = p.name"
    " LEFT JOIN settings s ON s.key = '" WORKER_BANDWIDTH_KEY "' || $2 WHERE t.id = " IDS;

static const char LOAD_RECORDS[] =
    "SELECT key, value, task_id FROM task_records WHERE task_id = " IDS " ORDER BY task_id, key";

struct claim {
    const char *event; /* what history calls it */
    char task_id[64];
    uint8_t token[TOKEN_BYTES];
    int row;    /* of rows */
    int record; /* the first of records */
    int record_count;
    char *spec; /* the task's, with what the catalogue knows */
    uint8_t *sealed;
    size_t sealed_size;
    uint64_t epoch;
    uint32_t attempt;
    char worker[WORKER_NAME_SIZE];
    struct worker_bandwidth worker_limit;
};

struct claims { /* rows own the texts */
    PGresult *rows;
    PGresult *records;
    bool last;
    size_t count;
    struct claim items[CLAIM_BATCH_MAX];
};

void claims_free(struct claims *claims)
{
    if (claims == NULL)
        return;
    PQclear(claims->rows);
    PQclear(claims->records);
    for (size_t i = 0; i < claims->count; i++) {
        free(claims->items[i].spec);
        free(claims->items[i].sealed);
    }
    free(claims);
}

size_t claims_count(const struct claims *claims)
{
    return claims->count;
}

bool claims_are_last(const struct claims *claims)
{
    return claims->last;
}

static bool is_transfer(const Hypersdk__V1__LeaseRequest *request)
{
    return request->class_ == HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
}

/* ---- what a worker says of itself ---- */

static char *kinds_json(const Hypersdk__V1__LeaseRequest *request)
{
    auto_json *array = json_array();

    for (size_t i = 0; i < request->n_task_kinds; i++)
        (void)json_array_append_new(array, json_string(request->task_kinds[i]));
    return json_text(array);
}

static char *volume_ids_json(const Hypersdk__V1__LeaseRequest *request)
{
    auto_json *array = json_array();

    for (size_t i = 0; i < request->n_volumes; i++)
        (void)json_array_append_new(array, json_string(request->volumes[i]->id));
    return json_text(array);
}

static json_t *volumes_of(const Hypersdk__V1__LeaseRequest *request)
{
    json_t *array = json_array();

    for (size_t i = 0; i < request->n_volumes; i++) {
        const Hypersdk__V1__Volume *v = request->volumes[i];
        json_t *object = json_object();
        json_set_text(object, "id", v->id);
        json_set_text(object, "path", v->path);
        (void)json_object_set_new(object, "free_bytes",
                                  json_integer((json_int_t)min_u64(v->free_bytes, INT64_MAX)));
        (void)json_array_append_new(array, object);
    }
    return array;
}

/* Capabilities that are no JSON object would make all rows fail. */
static json_t *capabilities_of(const Hypersdk__V1__LeaseRequest *request)
{
    json_t *json = json_loads(request->capabilities_json, JSON_REJECT_DUPLICATES, NULL);

    if (json_is_object(json))
        return json;
    json_decref(json);
    return json_object();
}

static json_t *worker_row(const Hypersdk__V1__LeaseRequest *request)
{
    int64_t slots = (int64_t)min_u64(request->slots_total, INT32_MAX);
    json_t *row = json_object();

    json_set_text(row, "instance", request->instance);
    json_set_text(row, "role", request->role);
    json_set_text(row, "provider", request->provider);
    json_set_text(row, "host", request->host);
    json_set_i64(row, "pid", request->pid & INT32_MAX);
    json_set_text(row, "version", request->version);
    json_set_i64(row, "slots_transfer", is_transfer(request) ? slots : 0);
    json_set_i64(row, "slots_control", is_transfer(request) ? 0 : slots);
    json_put(row, "volumes", volumes_of(request));
    json_put(row, "capabilities", capabilities_of(request));
    return row;
}

int claim_workers(struct db *db, const Hypersdk__V1__LeaseRequest *const *requests, size_t count,
                  PGresult **out, struct error *err)
{
    auto_json *workers = json_array();
    autofree char *text = NULL;

    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(workers, worker_row(requests[i]));
    text = json_text(workers);
    return db_later(db, UPSERT_WORKERS, DB_PARAMS(text), out, err);
}

void claim_first_ones(const PGresult *workers, const Hypersdk__V1__LeaseRequest *const *requests,
                      size_t count, bool *out_first)
{
    memset(out_first, 0, count * sizeof *out_first);
    for (int k = 0; k < PQntuples(workers); k++) {
        size_t i = 0;
        while (i < count && strcmp(db_text(workers, k, 0), requests[i]->instance) != 0)
            i++;
        if (i < count)
            out_first[i] = db_bool(workers, k, 1);
    }
}

static bool same_texts(char *const *a, size_t a_count, char *const *b, size_t b_count)
{
    if (a_count != b_count)
        return false;
    for (size_t i = 0; i < a_count; i++) {
        if (strcmp(a[i], b[i]) != 0)
            return false;
    }
    return true;
}

bool claim_same_wish(const Hypersdk__V1__LeaseRequest *a, const Hypersdk__V1__LeaseRequest *b)
{
    if (a->class_ != b->class_ || strcmp(a->role, b->role) != 0 ||
        strcmp(a->provider, b->provider) != 0 || a->n_volumes != b->n_volumes)
        return false;
    for (size_t i = 0; i < a->n_volumes; i++) {
        if (strcmp(a->volumes[i]->id, b->volumes[i]->id) != 0)
            return false;
    }
    return same_texts(a->task_kinds, a->n_task_kinds, b->task_kinds, b->n_task_kinds);
}

/* ---- the claim ---- */

static int check_size(const struct claims *claims, const struct claim *claim, struct error *err)
{
    size_t size = claim->sealed_size + OVERHEAD_BYTES + strlen(claim->spec);

    for (int i = 3; i <= 4; i++)
        size += strlen(db_text(claims->rows, claim->row, i));
    for (int i = claim->record; i < claim->record + claim->record_count; i++)
        size += strlen(db_text(claims->records, i, 0)) + strlen(db_text(claims->records, i, 1));
    if (size > BUS_MESSAGE_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "task and settings of %zu bytes are too long for the bus",
                         size);
    }
    return 0;
}

/* What an increment may stand on is looked up at every lease: another job may have added a restore
 * point meanwhile. */
static int load_spec(struct db *db, const struct claims *claims, struct claim *claim,
                     struct error *err)
{
    auto_json *spec = NULL;

    claim->spec = xstrdup(db_text(claims->rows, claim->row, 2));
    if (strcmp(db_text(claims->rows, claim->row, 1), "export") != 0)
        return 0;
    spec = json_loads(claim->spec, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(spec))
        return error_set(err, ERR_INTERNAL, "the task's spec is no object");
    if (restore_points_add(db, db_text(claims->rows, claim->row, 3), spec, NULL, err) < 0)
        return -1;
    free(claim->spec);
    claim->spec = json_text(spec);
    return 0;
}

/* The rows of a claim among those of all. */
static void find_rows(const struct claims *claims, struct claim *claim)
{
    int all = PQntuples(claims->records);

    while (claim->row < PQntuples(claims->rows) &&
           strcmp(db_text(claims->rows, claim->row, 10), claim->task_id) != 0)
        claim->row++;
    assert(claim->row < PQntuples(claims->rows)); /* the claim holds its lock */
    while (claim->record < all &&
           strcmp(db_text(claims->records, claim->record, 2), claim->task_id) != 0)
        claim->record++;
    while (claim->record + claim->record_count < all && claim->record_count < CLAIM_RECORDS_MAX &&
           strcmp(db_text(claims->records, claim->record + claim->record_count, 2),
                  claim->task_id) == 0)
        claim->record_count++;
}

static int load_one(struct db *db, const struct claims *claims, struct claim *claim,
                    struct error *err)
{
    const char *provider;

    find_rows(claims, claim);
    provider = db_text(claims->rows, claim->row, 3);
    if (db_bool(claims->rows, claim->row, 9)) {
        return error_set(err, ERR_NOT_FOUND, "provider '%.63s' does not exist any more", provider);
    }
    if (!db_is_null(claims->rows, claim->row, 5)) {
        claim->sealed = xmalloc(SEALED_BYTES_MAX);
        if (db_bytea(claims->rows, claim->row, 5, claim->sealed, SEALED_BYTES_MAX,
                     &claim->sealed_size, err) < 0)
            return error_wrap(err, "credentials of provider '%.63s'", provider);
    }
    claim->worker_limit = (struct worker_bandwidth){
        .set = db_bool(claims->rows, claim->row, 11),
        .rate = (uint64_t)db_i64(claims->rows, claim->row, 12),
        .burst = (uint64_t)db_i64(claims->rows, claim->row, 13),
    };
    if (load_spec(db, claims, claim, err) < 0)
        return -1;
    return check_size(claims, claim, err);
}

/* What they consist of: it comes with the transaction's next answer. */
static int ask_leases(struct db *db, const Hypersdk__V1__LeaseRequest *wish, struct claims *claims,
                      struct error *err)
{
    auto_json *ids = json_array();
    autofree char *text = NULL;
    const char *limited = strcmp(wish->role, "exporter") == 0 ? wish->provider : NULL;

    for (size_t i = 0; i < claims->count; i++)
        (void)json_array_append_new(ids, json_string(claims->items[i].task_id));
    text = json_text(ids);
    if (db_later(db, LOAD_LEASES, DB_PARAMS(text, limited), &claims->rows, err) < 0)
        return -1;
    return db_later(db, LOAD_RECORDS, DB_PARAMS(text), &claims->records, err);
}

static int load_leases(struct db *db, struct claims *claims, char out_task[64], struct error *err)
{
    for (size_t i = 0; i < claims->count; i++) {
        struct claim *claim = &claims->items[i];
        if (load_one(db, claims, claim, err) < 0) {
            (void)snprintf(out_task, 64, "%s", claim->task_id);
            return -1;
        }
    }
    return 0;
}

/* ---- the lanes of exports ---- */

static void forget_lanes(struct claim_lanes *lanes)
{
    free(lanes->known);
    lanes->known = NULL;
    json_decref(lanes->busy);
    lanes->busy = NULL;
}

static int passed_over(struct db *db, int64_t *out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, PASSED_OVER, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    *out = db_i64(rows, 0, 0);
    return 0;
}

static int find_lanes(struct claim_lanes *lanes, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;
    int64_t began_ms = clock_mono_ms();
    int64_t passed = 0;

    forget_lanes(lanes);
    if (db_later(db, FIND_LANES, DB_NO_PARAMS, &rows, err) < 0 || passed_over(db, &passed, err) < 0)
        return -1;
    lanes->busy = json_loads(db_text(rows, 0, 1), 0, NULL);
    lanes->known = xstrdup(db_text(rows, 0, 0));
    whole_look_ended(&lanes->look, passed > LANES_SHORT_ENTRIES, began_ms, clock_mono_ms());
    return 0;
}

static int find_everywhere(struct claim_lanes *lanes, struct db *db, const char *const *params,
                           PGresult **out, struct error *err)
{
    int64_t passed = 0;

    if (db_later(db, EXPORT_CANDIDATES, params, LANE_PARAMS, out, err) < 0 ||
        passed_over(db, &passed, err) < 0)
        return -1;
    return passed <= LANES_SHORT_ENTRIES ? 0 : find_lanes(lanes, db, err);
}

static int find_in_lanes(struct claim_lanes *lanes, int64_t most_ms, struct db *db,
                         const char **params, PGresult **out, struct error *err)
{
    autofree char *busy = NULL;

    if (whole_look_is_due(&lanes->look, clock_mono_ms(), most_ms) && find_lanes(lanes, db, err) < 0)
        return -1;
    busy = json_text(lanes->busy);
    params[LANE_PARAMS] = lanes->known;
    params[LANE_PARAMS + 1] = busy;
    return db_exec(db, EXPORT_CANDIDATES_OF, params, EXPORT_PARAMS, out, err);
}

/* While that passes over little, each look finds the lanes itself. Else it starts from those that
 * were found a moment ago: a task that came in below the floor or in a new lane, and the room that
 * an end makes, wait for the next search, a second at most. Who would get nothing waits less. */
static int find_exports(struct claim_lanes *lanes, struct db *db, const char **params,
                        PGresult **out, struct error *err)
{
    if (lanes->known == NULL) {
        if (find_everywhere(lanes, db, params, out, err) < 0)
            return -1;
    } else if (find_in_lanes(lanes, LANES_KNOWN_MS, db, params, out, err) < 0) {
        return -1;
    } else if (PQntuples(*out) == 0) {
        PQclear(STEAL(*out));
        if (find_in_lanes(lanes, lanes->look.took_ms * LANES_EMPTY_PART, db, params, out, err) < 0)
            return -1;
    }
    if (!lanes->look.is_long)
        forget_lanes(lanes);
    return 0;
}

/* What is leased counts against the limits, also if the commit fails: then for a moment. */
static void note_leased(struct claim_lanes *lanes, const PGresult *found, size_t count)
{
    json_t *row;

    if (lanes->known == NULL || count == 0)
        return;
    row = json_object();
    json_set_text(row, "provider", db_text(found, 0, 1));
    json_set_text(row, "source_host", db_text(found, 0, 2));
    json_set_text(row, "queue_group", db_text(found, 0, 3));
    json_set_i64(row, "n", (int64_t)count);
    (void)json_array_append_new(lanes->busy, row);
}

/* ---- the queues of bridges and of control tasks ---- */

/* NULL: there are too many. */
static struct claim_floor *floor_of(struct scheduler *scheduler,
                                    const Hypersdk__V1__LeaseRequest *wish)
{
    autofree char *queue = xasprintf("%s %s %s", is_transfer(wish) ? "transfer" : "control",
                                     wish->role, wish->provider);

    for (size_t i = 0; i < CLAIM_FLOORS_MAX && strlen(queue) < sizeof scheduler->floors->queue;
         i++) {
        struct claim_floor *floor = &scheduler->floors[i];
        if (floor->queue[0] == '\0') {
            *floor = (struct claim_floor){.rank = INT64_MIN, .leased = INT64_MIN};
            (void)snprintf(floor->queue, sizeof floor->queue, "%s", queue);
        }
        if (strcmp(floor->queue, queue) == 0)
            return floor;
    }
    return NULL;
}

/* Where nothing waits, what comes will stand behind what was leased, or is found by a later look.
 */
static int find_floor(struct claim_floor *floor, struct db *db,
                      const Hypersdk__V1__LeaseRequest *wish, struct error *err)
{
    auto_pgresult *rows = NULL;
    int64_t began_ms = clock_mono_ms();
    const char *task_class = is_transfer(wish) ? "transfer" : "control";

    if (db_exec(db, FIND_FLOOR, DB_PARAMS(wish->role, wish->provider, task_class), &rows, err) < 0)
        return -1;
    floor->rank = PQntuples(rows) > 0 ? db_i64(rows, 0, 0) : floor->leased;
    whole_look_done(&floor->look, FLOOR_SHORT_MS, began_ms, clock_mono_ms());
    floor->known = floor->look.is_long;
    return 0;
}

static int find_above(const struct claim_floor *floor, struct db *db,
                      const Hypersdk__V1__LeaseRequest *wish, const char **params, PGresult **out,
                      struct error *err)
{
    char rank[NUMBER_SIZE];

    (void)snprintf(rank, sizeof rank, "%" PRId64,
                   floor != NULL && floor->known ? floor->rank : INT64_MIN);
    params[FLOOR_PARAM] = rank;
    return db_exec(db, is_transfer(wish) ? BRIDGE_CANDIDATES : CONTROL_CANDIDATES, params,
                   RANKED_PARAMS, out, err);
}

/* As find_exports: while passing over what an old snapshot still sees is quick, each look does it.
 * Else it starts from where a look of a moment ago found the first that waits. */
static int find_ranked(struct scheduler *scheduler, struct db *db,
                       const Hypersdk__V1__LeaseRequest *wish, const char **params, PGresult **out,
                       struct error *err)
{
    struct claim_floor *floor = floor_of(scheduler, wish);
    int64_t began_ms = clock_mono_ms();
    bool quick;

    if (floor != NULL && floor->known &&
        whole_look_is_due(&floor->look, began_ms, FLOOR_KNOWN_MS) &&
        find_floor(floor, db, wish, err) < 0)
        return -1;
    if (find_above(floor, db, wish, params, out, err) < 0)
        return -1;
    quick = clock_mono_ms() - began_ms <= FLOOR_SHORT_MS;
    for (int i = 0; floor != NULL && i < PQntuples(*out); i++)
        floor->leased = db_i64(*out, i, 5) > floor->leased ? db_i64(*out, i, 5) : floor->leased;
    return floor == NULL || floor->known || quick ? 0 : find_floor(floor, db, wish, err);
}

/* At most `most` tasks that a worker with this wish may have, locked. */
static int find(struct scheduler *scheduler, struct db *db, const Hypersdk__V1__LeaseRequest *wish,
                size_t most, PGresult **out, struct error *err)
{
    autofree char *kinds = kinds_json(wish);
    autofree char *volumes = volume_ids_json(wish);
    char limit[NUMBER_SIZE];
    char host_limit[NUMBER_SIZE];
    char count[NUMBER_SIZE];

    (void)snprintf(limit, sizeof limit, "%" PRIu32, scheduler->export.provider_limit);
    (void)snprintf(host_limit, sizeof host_limit, "%" PRIu32, scheduler->export.host_limit);
    (void)snprintf(count, sizeof count, "%zu", most);
    if (!is_transfer(wish) || strcmp(wish->role, "bridge") == 0) {
        return find_ranked(
            scheduler, db, wish,
            (const char *[RANKED_PARAMS]){wish->provider, kinds, volumes, count, NULL, wish->role},
            out, err);
    }
    return find_exports(
        &scheduler->lanes, db,
        (const char *[EXPORT_PARAMS]){wish->provider, kinds, volumes, limit, host_limit, count},
        out, err);
}

static bool same_lane(const PGresult *rows, int a, int b)
{
    for (int i = 1; i <= 3; i++) {
        if (strcmp(db_text(rows, a, i), db_text(rows, b, i)) != 0)
            return false;
    }
    return true;
}

/* The tasks become leased, for one worker each. */
static int lease(struct scheduler *scheduler, struct db *db, const struct claim_wish *wish,
                 struct claims *claims, struct error *err)
{
    struct job_store_event events[CLAIM_BATCH_MAX];
    struct job_store_outcome outcomes[CLAIM_BATCH_MAX] = {0};

    for (size_t i = 0; i < claims->count; i++) {
        struct claim *claim = &claims->items[i];
        random_bytes(claim->token, sizeof claim->token);
        (void)snprintf(claim->worker, sizeof claim->worker, "%s", wish->requests[i]->instance);
        events[i] = (struct job_store_event){
            .task_id = claim->task_id,
            .worker = wish->requests[i]->instance,
            .actor = wish->requests[i]->instance,
            .new_token = claim->token,
            .input = {.event = JOB_EVENT_LEASED, .lease_ms = scheduler->config.lease_ms},
        };
    }
    if (job_store_apply_all(db, events, claims->count, outcomes, err) < 0)
        return -1;
    for (size_t i = 0; i < claims->count; i++) {
        if (!outcomes[i].decision.allowed) {
            return error_set(err, ERR_INTERNAL, "task '%.63s' was chosen but %s",
                             claims->items[i].task_id, outcomes[i].decision.reason);
        }
        claims->items[i].event = outcomes[i].decision.event;
        claims->items[i].epoch = outcomes[i].decision.row.epoch;
        claims->items[i].attempt = outcomes[i].decision.row.attempt;
    }
    return 0;
}

static void take_lane(const PGresult *found, struct claims *claims)
{
    for (int i = 0; i < PQntuples(found) && same_lane(found, 0, i); i++) {
        struct claim *claim = &claims->items[claims->count++];
        (void)snprintf(claim->task_id, sizeof claim->task_id, "%s", db_text(found, i, 0));
    }
}

/* Were these all that there are? Not if another lane has some, nor for certain if the lanes are
 * from a look of a moment ago. */
static bool found_all(const struct scheduler *scheduler, const struct claim_wish *wish,
                      const PGresult *found)
{
    int count = PQntuples(found);

    return count == 0 || ((size_t)count < wish->count && same_lane(found, 0, count - 1) &&
                          db_bool(found, count - 1, 4) && scheduler->lanes.known == NULL);
}

int claim_tasks(struct scheduler *scheduler, struct db *db, const struct claim_wish *wish,
                struct claims **out, char out_task[64], struct error *err)
{
    auto_claims *claims = xcalloc(1, sizeof *claims);
    auto_pgresult *found = NULL;

    out_task[0] = '\0';
    if (find(scheduler, db, wish->requests[0], wish->count, &found, err) < 0)
        return -1;
    take_lane(found, claims);
    if (is_transfer(wish->requests[0]) && strcmp(wish->requests[0]->role, "exporter") == 0)
        note_leased(&scheduler->lanes, found, claims->count);
    claims->last = found_all(scheduler, wish, found);
    if (claims->count == 1)
        (void)snprintf(out_task, 64, "%s", claims->items[0].task_id);
    if (claims->count > 0 &&
        (ask_leases(db, wish->requests[0], claims, err) < 0 ||
         lease(scheduler, db, wish, claims, err) < 0 || load_leases(db, claims, out_task, err) < 0))
        return -1;
    *out = STEAL(claims);
    return 0;
}

int claim_give_up(struct scheduler *scheduler, struct db *db, const char *task_id,
                  const struct error *why, struct error *err)
{
    struct job_store_event lease = {
        .task_id = task_id,
        .actor = service_instance(scheduler->service),
        .input = {.event = JOB_EVENT_LEASED, .lease_ms = scheduler->config.lease_ms},
    };
    struct job_store_event fail = {
        .task_id = task_id,
        .actor = service_instance(scheduler->service),
        .error_code = error_code_name(why->code),
        .error_message = why->message,
        .input = {.event = JOB_EVENT_TASK_FAILED},
    };
    struct job_decision decision;

    LOG(ERROR, "task_not_leasable", F_STR("task_id", task_id), F_ERR(why));
    if (db_begin(db, err) < 0)
        return -1;
    if (job_store_apply(db, &lease, &decision, err) < 0 ||
        job_store_apply(db, &fail, &decision, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}

/* ---- the answer ---- */

static void fill_records(const struct claims *claims, const struct claim *claim,
                         Hypersdk__V1__Record *records, Hypersdk__V1__Record **pointers,
                         size_t *out_count)
{
    for (int i = 0; i < claim->record_count; i++) {
        hypersdk__v1__record__init(&records[i]);
        records[i].key = (char *)(uintptr_t)db_text(claims->records, claim->record + i, 0);
        records[i].value = (char *)(uintptr_t)db_text(claims->records, claim->record + i, 1);
        pointers[i] = &records[i];
        (*out_count)++;
    }
}

void claims_tell(struct scheduler *scheduler, const struct claims *claims)
{
    for (size_t i = 0; i < claims->count; i++) {
        const struct claim *claim = &claims->items[i];
        const char *job_id = db_text(claims->rows, claim->row, 0);
        if (job_id[0] != '\0' && claim->event != NULL)
            scheduler_announce_job(scheduler, job_id, claim->event);
        LOG(INFO, "task_leased", F_STR("task_id", claim->task_id),
            F_STR("kind", db_text(claims->rows, claim->row, 1)), F_STR("job_id", job_id),
            F_U64("epoch", claim->epoch), F_STR("worker", claim->worker));
    }
}

void claim_reply(struct scheduler *scheduler, struct claims *claims, size_t i,
                 struct bus_request *request)
{
    struct claim *claim = &claims->items[i];
    Hypersdk__V1__Record records[CLAIM_RECORDS_MAX];
    Hypersdk__V1__Record *pointers[CLAIM_RECORDS_MAX];
    Hypersdk__V1__TaskRef ref;
    Hypersdk__V1__TaskLease body;
    Hypersdk__V1__WorkerLimit limit;
    struct bus_envelope_store store;
    char traceparent[TRACEPARENT_SIZE];
    const char *trace_id = db_text(claims->rows, claim->row, 7);
    bus_envelope reply;

    hypersdk__v1__task_ref__init(&ref);
    hypersdk__v1__task_lease__init(&body);
    ref.task_id = claim->task_id;
    ref.epoch = claim->epoch;
    ref.token = (ProtobufCBinaryData){sizeof claim->token, claim->token};
    fill_records(claims, claim, records, pointers, &body.n_records);
    body.ref = &ref;
    body.records = pointers;
    body.job_id = (char *)(uintptr_t)db_text(claims->rows, claim->row, 0);
    body.kind = (char *)(uintptr_t)db_text(claims->rows, claim->row, 1);
    body.attempt = claim->attempt;
    body.lease_ms = scheduler->config.lease_ms;
    body.spec_json = claim->spec;
    body.provider_name = (char *)(uintptr_t)db_text(claims->rows, claim->row, 3);
    body.settings_json = (char *)(uintptr_t)db_text(claims->rows, claim->row, 4);
    body.sealed_secrets = (ProtobufCBinaryData){claim->sealed_size, claim->sealed};
    body.audience = (char *)(uintptr_t)db_text(claims->rows, claim->row, 6);
    body.worker_limit = scheduler_worker_limit(&limit, &claim->worker_limit);
    traceparent_new(trace_id[0] == '\0' ? NULL : trace_id, traceparent);
    bus_envelope_init(&reply, &store, service_instance(scheduler->service), traceparent);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE;
    reply.task_lease = &body;
    live_lease(scheduler->live, &ref, body.job_id, db_text(claims->rows, claim->row, 8));
    bus_request_reply(request, &reply);
}
