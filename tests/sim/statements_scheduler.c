/* Models of the statements of services/scheduler, of its heartbeat, and of what a worker's lease
 * is made of. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "tests/sim/store.h"

#define DOWN_MS       45000
#define SEEN_MS       3000
#define DAY_MS        INT64_C(86400000)
#define LEADER_ROW_MS 3000
#define LEASES_MAX    32

static bool is_held_state(const struct task_row *task)
{
    return is(task->state, "leased") || is(task->state, "finishing");
}

static bool is_over(const struct task_row *task)
{
    return is(task->state, "done") || is(task->state, "failed") || is(task->state, "cancelled");
}

/* ---- claim.c ---- */

static struct row *find_worker(const struct statement *s, const char *instance)
{
    for (size_t i = 0; i < store_count(TABLE_WORKERS); i++) {
        const struct worker_row *worker = see(s, store_row(TABLE_WORKERS, i));
        if (worker != NULL && is(worker->instance, instance))
            return store_row(TABLE_WORKERS, i);
    }
    return NULL;
}

static void upsert_workers(struct statement *s)
{
    auto_json *told = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t i;

    result_columns(s, 2);
    json_array_foreach(told, i, x)
    {
        const char *instance = json_str(x, "instance");
        struct row *row = find_worker(s, instance);
        const struct worker_row *old = row == NULL ? NULL : see(s, row);
        if (old != NULL && is(old->state, "up") && old->seen_ms > s->now_ms - SEEN_MS)
            continue;
        struct worker_row *worker = row == NULL ? insert(s, TABLE_WORKERS) : hold(s, row);
        if (worker == NULL)
            return;
        RESULT_ROW(s, instance, row != NULL && is(worker->state, "up") ? "f" : "t");
        PUT(worker->instance, instance);
        if (row == NULL)
            PUT(worker->role, json_str(x, "role"));
        PUT(worker->state, "up");
        worker->seen_ms = s->now_ms;
    }
}

struct wish {
    const char *role, *task_class;
    const char *kind;            /* of the worker's provider */
    bool any_kind;               /* tasks without one fit, too */
    const char *kinds, *volumes; /* JSON arrays */
    int64_t limit;               /* per provider; 0: none */
    int64_t most;                /* tasks */
};

static int64_t busy_with(const struct statement *s, const char *provider)
{
    int64_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->task_class, "transfer") && is(task->role, "exporter") &&
            is_held_state(task) && is(task->provider, provider))
            count++;
    }
    return count;
}

/* How many more the group of this task may have; any number: INT64_MAX. */
static int64_t group_room(const struct statement *s, const struct task_row *like)
{
    int64_t room = like->queue_limit;

    if (like->queue_group[0] == '\0' || like->queue_limit == 0 || sim_break == BREAK_GROUP)
        return INT64_MAX;
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is_held_state(task) && is(task->queue_group, like->queue_group))
            room--;
    }
    return room;
}

static bool fits(const struct statement *s, const struct task_row *t, const struct wish *wish)
{
    if (t == NULL || !is(t->state, "queued") || !is(t->task_class, wish->task_class) ||
        !is(t->role, wish->role) || t->not_before_ms > s->now_ms)
        return false;
    if (t->hold[0] != '\0' && sim_break != BREAK_HOLD)
        return false;
    if (!is(t->provider_kind, wish->kind) && !(wish->any_kind && t->provider_kind[0] == '\0'))
        return false;
    if (wish->limit > 0 && t->provider[0] != '\0' && busy_with(s, t->provider) >= wish->limit)
        return false;
    if (wish->limit > 0 && group_room(s, t) <= 0)
        return false;
    return json_has(wish->kinds, t->kind) &&
           (t->volume[0] == '\0' || json_has(wish->volumes, t->volume));
}

static bool job_runs(const struct statement *s, const struct row *job_row)
{
    const struct job_row *job = job_row == NULL ? NULL : see(s, job_row);

    if (job == NULL || !(is(job->status, "pending") || is(job->status, "running")))
        return false;
    return job->window_at_ms == 0 || (job->window_open && job->window_at_ms > s->now_ms) ||
           sim_break == BREAK_HOLD;
}

static bool is_better(const struct task_row *a, const struct task_row *b)
{
    return b == NULL || a->priority > b->priority ||
           (a->priority == b->priority && a->seq < b->seq);
}

/* The best that is free and not among those that were chosen. */
static struct row *best_of(struct statement *s, const struct wish *wish, struct row *const *chosen,
                           int64_t count, struct row **out_job)
{
    struct row *best = NULL;

    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        struct row *row = store_row(TABLE_TASKS, i);
        const struct task_row *task = see(s, row);
        struct row *job = NULL;
        bool taken = false;
        for (int64_t k = 0; k < count; k++)
            taken = taken || chosen[k] == row;
        if (taken || !fits(s, task, wish) || !is_free(s, row))
            continue;
        if (task->job_id[0] != '\0') {
            job = find_job(s, task->job_id);
            if (!job_runs(s, job) || !is_free(s, job))
                continue;
        }
        if (!is_better(task, best == NULL ? NULL : see(s, best)))
            continue;
        best = row;
        *out_job = job;
    }
    return best;
}

/* FOR UPDATE OF j, t SKIP LOCKED; a control task has no job. One lane, with room up to the limit
 * of its provider. */
static void candidates(struct statement *s, const struct wish *wish)
{
    struct row *chosen[LEASES_MAX];
    int64_t most = wish->most;

    result_columns(s, 6);
    assert(most <= LEASES_MAX);
    for (int64_t n = 0; n < most; n++) {
        struct row *job = NULL;
        const struct task_row *task;
        chosen[n] = best_of(s, wish, chosen, n, &job);
        if (chosen[n] == NULL)
            return;
        if (job != NULL && sim_break != BREAK_CLAIM)
            (void)hold(s, job);
        task = sim_break == BREAK_CLAIM ? see(s, chosen[n]) : hold(s, chosen[n]);
        if (n == 0 && wish->limit > 0 && task->provider[0] != '\0')
            most = (int64_t)min_u64((uint64_t)most,
                                    (uint64_t)(wish->limit - busy_with(s, task->provider)));
        if (n == 0 && wish->limit > 0)
            most = (int64_t)min_u64((uint64_t)most, (uint64_t)group_room(s, task));
        RESULT_ROW(s, task->id, task->provider, "", wish->limit > 0 ? task->queue_group : "",
                   wish->limit > 0 ? "f" : "t", number(task->seq));
    }
}

static void export_candidates(struct statement *s)
{
    candidates(s, &(struct wish){.role = "exporter",
                                 .task_class = "transfer",
                                 .kind = s->params[0],
                                 .any_kind = true,
                                 .kinds = s->params[1],
                                 .volumes = s->params[2],
                                 .limit = param_i64(s, 4),
                                 .most = param_i64(s, 6)});
}

/* The model of the claim looks at all of them, whatever was found before. */
static void known_lanes(struct statement *s)
{
    result_columns(s, 2);
    RESULT_ROW(s, "[]", "[]");
}

/* Now and then much, as behind someone's old snapshot. */
static void passed_over(struct statement *s)
{
    result_columns(s, 1);
    RESULT_ROW(s, store_clock_ms() % 3 == 0 ? "100000" : "0");
}

static void bridge_candidates(struct statement *s)
{
    candidates(s, &(struct wish){.role = "bridge",
                                 .task_class = "transfer",
                                 .kind = s->params[0],
                                 .kinds = s->params[1],
                                 .volumes = s->params[2],
                                 .most = param_i64(s, 4)});
}

static void control_candidates(struct statement *s)
{
    candidates(s, &(struct wish){.role = s->params[5],
                                 .task_class = "control",
                                 .kind = s->params[0],
                                 .kinds = s->params[1],
                                 .volumes = s->params[2],
                                 .most = param_i64(s, 4)});
}

static void load_leases(struct statement *s)
{
    auto_json *ids = json_loads(s->params[0], 0, NULL);
    json_t *id;
    size_t i;

    result_columns(s, 14);
    json_array_foreach(ids, i, id)
    {
        const struct row *row = find_task(s, json_string_value(id));
        const struct task_row *t = row == NULL ? NULL : see(s, row);
        const struct row *job_row = t == NULL ? NULL : find_job(s, t->job_id);
        const struct job_row *job = job_row == NULL ? NULL : see(s, job_row);
        if (t != NULL)
            RESULT_ROW(s, t->job_id, t->kind, t->spec, t->provider, "{}", NULL, "",
                       job == NULL ? "" : job->trace_id, job == NULL ? "" : job->vm_name, "f",
                       t->id, "f", NULL, NULL);
    }
}

static void load_records(struct statement *s)
{
    auto_json *ids = json_loads(s->params[0], 0, NULL);
    json_t *id;
    size_t n;

    result_columns(s, 3);
    json_array_foreach(ids, n, id)
    {
        for (size_t i = 0; i < store_count(TABLE_RECORDS); i++) {
            const struct record_row *record = see(s, store_row(TABLE_RECORDS, i));
            if (record != NULL && is(record->task_id, json_string_value(id)))
                RESULT_ROW(s, record->key, record->value, record->task_id);
        }
    }
}

static void none(struct statement *s)
{
    result_columns(s, 8);
}

/* ---- requests.c ---- */

static bool has_line(const struct statement *s, const char *task_id, int64_t epoch, int64_t line)
{
    for (size_t i = store_count(TABLE_LINES); i-- > 0;) {
        const struct line_row *old = see(s, store_row(TABLE_LINES, i));
        if (old != NULL && old->number == line && old->epoch == epoch && is(old->task_id, task_id))
            return true;
    }
    return false;
}

static void insert_lines(struct statement *s)
{
    auto_json *lines = json_loads(s->params[0], 0, NULL);
    json_t *line;
    size_t i;

    json_array_foreach(lines, i, line)
    {
        const char *task_id = json_string_value(json_array_get(line, 1));
        int64_t epoch = json_integer_value(json_array_get(line, 2));
        int64_t n = json_integer_value(json_array_get(line, 3));
        struct line_row *row;
        if (has_line(s, task_id, epoch, n))
            continue;
        row = insert(s, TABLE_LINES);
        PUT(row->task_id, task_id);
        row->epoch = epoch;
        row->number = n;
    }
}

static void set_lines(struct statement *s)
{
    struct row *row = find_task(s, s->params[0]);
    struct task_row *task = row == NULL ? NULL : hold(s, row);

    result_columns(s, 3);
    if (task == NULL)
        return;
    if (task->lines_stored < param_i64(s, 2))
        task->lines_stored = param_i64(s, 2);
    RESULT_ROW(s, number(task->lines_stored), task->cancel ? "t" : "f", task->job_id);
}

static bool is_paused(const struct statement *s, const struct task_row *task)
{
    const struct row *row = find_job(s, task->job_id);
    const struct job_row *job = row == NULL ? NULL : see(s, row);

    return job != NULL && (is(job->status, "paused") || waits_for_window(job));
}

static bool is_drained(const struct statement *s, const struct task_row *task)
{
    const struct row *row = find_worker(s, task->worker);
    const struct worker_row *worker = row == NULL ? NULL : see(s, row);

    return worker != NULL && worker->drained && is(task->task_class, "transfer");
}

static void task_facts(struct statement *s)
{
    const struct row *row = find_task(s, s->params[0]);
    const struct task_row *task = row == NULL ? NULL : see(s, row);

    result_columns(s, 10);
    if (task != NULL)
        RESULT_ROW(s, number(task->lines_stored), task->cancel ? "t" : "f", task->job_id, "",
                   is_paused(s, task) ? "t" : "f", is_drained(s, task) ? "t" : "f", "0", "0", "0",
                   "0");
}

static void holds(struct statement *s)
{
    struct row *row = find_task(s, s->params[0]);
    const struct task_row *seen = row == NULL ? NULL : see(s, row);
    const struct task_row *task = seen == NULL || !is_held_state(seen) ? NULL : hold(s, row);
    bool fenced = task != NULL && (task->epoch != param_i64(s, 2) || task->token == NULL ||
                                   !is(task->token, s->params[2]));

    result_columns(s, 1);
    if (task != NULL && is_held_state(task) && (!fenced || sim_break == BREAK_FENCING))
        RESULT_ROW(s, task->provider);
}

static void put_record(struct statement *s)
{
    static uint64_t stamp;
    struct record_row *record = NULL;

    for (size_t i = 0; i < store_count(TABLE_RECORDS) && record == NULL; i++) {
        const struct record_row *old = see(s, store_row(TABLE_RECORDS, i));
        if (old != NULL && is(old->task_id, s->params[0]) && is(old->key, s->params[1]))
            record = hold(s, store_row(TABLE_RECORDS, i));
    }
    if (s->failed || sim_break == BREAK_RECORDS)
        return;
    if (record == NULL) {
        record = insert(s, TABLE_RECORDS);
        PUT(record->task_id, s->params[0]);
        record->key = keep(s->params[1]);
    }
    record->value = keep(s->params[2]);
    record->stamp = ++stamp;
}

/* When the asking task got the name; 0: never. */
static uint64_t own_stamp(const struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_RECORDS); i++) {
        const struct record_row *own = see(s, store_row(TABLE_RECORDS, i));
        if (own != NULL && is(own->task_id, s->params[2]) && is(own->key, s->params[0]) &&
            is(own->value, s->params[1]))
            return own->stamp;
    }
    return 0;
}

static void lock_claim(struct statement *s)
{
    autofree char *name = xasprintf("%s=%s", s->params[0], s->params[1]);

    result_columns(s, 1);
    hold_name(s, name);
    if (!s->failed)
        RESULT_ROW(s, "");
}

static void claimed(struct statement *s)
{
    uint64_t own = own_stamp(s);

    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_RECORDS) && sim_break != BREAK_NAMES; i++) {
        const struct record_row *record = see(s, store_row(TABLE_RECORDS, i));
        if (record == NULL || !is(record->key, s->params[0]) || !is(record->value, s->params[1]) ||
            is(record->task_id, s->params[2]) || own > record->stamp)
            continue;
        const struct row *row = find_task(s, record->task_id);
        const struct task_row *task = row == NULL ? NULL : see(s, row);
        if (task != NULL && is_held_state(task)) {
            RESULT_ROW(s, "1");
            return;
        }
    }
}

static void set_volume(struct statement *s)
{
    struct row *row = find_task(s, s->params[0]);
    struct task_row *task = row == NULL ? NULL : hold(s, row);

    if (task != NULL)
        PUT(task->volume, s->params[1]);
}

static void seen(struct statement *s)
{
    struct row *row = find_worker(s, s->params[0]);
    const struct worker_row *old = row == NULL ? NULL : see(s, row);
    struct worker_row *worker =
        old == NULL || old->seen_ms >= s->now_ms - 3000 ? NULL : hold(s, row);

    if (worker == NULL)
        return;
    worker->seen_ms = s->now_ms;
    if (!is(worker->state, "draining"))
        PUT(worker->state, "up");
}

static void leaves(struct statement *s)
{
    struct row *row = find_worker(s, s->params[0]);
    struct worker_row *worker = row == NULL ? NULL : hold(s, row);

    if (worker != NULL) {
        PUT(worker->state, "draining");
        worker->seen_ms = s->now_ms;
    }
}

static void records_of(struct statement *s)
{
    int64_t count = 0;
    size_t bytes = 0;

    for (size_t i = 0; i < store_count(TABLE_RECORDS); i++) {
        const struct record_row *record = see(s, store_row(TABLE_RECORDS, i));
        if (record != NULL && is(record->task_id, s->params[0]) && !is(record->key, s->params[1])) {
            count++;
            bytes += strlen(record->key) + strlen(record->value);
        }
    }
    result_columns(s, 2);
    RESULT_ROW(s, number(count), number((int64_t)bytes));
}

/* ---- reaper.c ---- */

static void expired(struct statement *s)
{
    int64_t grace_ms = sim_break == BREAK_EARLY_LEASE ? -20000 : param_i64(s, 1);

    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_TASKS) && sim_break != BREAK_REAPER; i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is_held_state(task) && task->lease_until_ms < s->now_ms - grace_ms)
            RESULT_ROW(s, task->id);
    }
}

static void stopped(struct statement *s)
{
    result_columns(s, 3);
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is_held_state(task) &&
            (task->cancel || is_paused(s, task) || is_drained(s, task)))
            RESULT_ROW(s, task->id, task->cancel ? "t" : "f", is_paused(s, task) ? "t" : "f");
    }
}

static void workers_down(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_WORKERS) && !s->failed; i++) {
        const struct worker_row *old = see(s, store_row(TABLE_WORKERS, i));
        if (old == NULL || is(old->state, "down") || old->seen_ms >= s->now_ms - DOWN_MS)
            continue;
        struct worker_row *worker = hold(s, store_row(TABLE_WORKERS, i));
        if (worker == NULL || worker->seen_ms >= s->now_ms - DOWN_MS)
            continue;
        PUT(worker->state, "down");
        RESULT_ROW(s, worker->instance);
    }
}

static void sweep_released(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS) && !s->failed; i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->kind, "release") && is_over(task) &&
            task->updated_ms < s->now_ms - DAY_MS)
            drop(s, store_row(TABLE_TASKS, i));
    }
}

/* ---- gate.c, and the users behind it ---- */

static bool queue_is_paused(const struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_SETTINGS); i++) {
        const struct setting_row *setting = see(s, store_row(TABLE_SETTINGS, i));
        if (setting != NULL && is(setting->key, QUEUE_PAUSED_KEY))
            return true;
    }
    return false;
}

static void load_gate(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_WORKERS); i++) {
        const struct worker_row *worker = see(s, store_row(TABLE_WORKERS, i));
        if (worker != NULL && worker->drained)
            RESULT_ROW(s, worker->instance);
    }
    if (queue_is_paused(s))
        RESULT_ROW(s, "");
}

static void pause_queue(struct statement *s)
{
    struct setting_row *setting = queue_is_paused(s) ? NULL : insert(s, TABLE_SETTINGS);

    if (setting != NULL)
        setting->key = QUEUE_PAUSED_KEY;
}

static void resume_queue(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_SETTINGS) && !s->failed; i++) {
        if (see(s, store_row(TABLE_SETTINGS, i)) != NULL)
            drop(s, store_row(TABLE_SETTINGS, i));
    }
}

static void drain_worker(struct statement *s)
{
    struct row *row = find_worker(s, s->params[0]);
    struct worker_row *worker = row == NULL ? NULL : hold(s, row);

    if (worker != NULL)
        worker->drained = true;
}

static void undrain(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_WORKERS) && !s->failed; i++) {
        const struct worker_row *old = see(s, store_row(TABLE_WORKERS, i));
        struct worker_row *worker =
            old == NULL || !old->drained ? NULL : hold(s, store_row(TABLE_WORKERS, i));
        if (worker != NULL)
            worker->drained = false;
    }
}

/* ---- leader.c ---- */

static void acquire(struct statement *s)
{
    struct leader_row *leader = hold(s, store_row(TABLE_LEADER, 0));

    result_columns(s, 1);
    if (leader == NULL || (leader->until_ms >= store_clock_ms() && !store_two_leaders))
        return;
    PUT(leader->holder, s->params[0]);
    leader->epoch++;
    leader->until_ms = store_clock_ms() + LEADER_ROW_MS;
    RESULT_ROW(s, number(leader->epoch));
}

static void renew_leader(struct statement *s)
{
    struct leader_row *leader = hold(s, store_row(TABLE_LEADER, 0));

    if (leader == NULL || (!store_two_leaders && (!is(leader->holder, s->params[0]) ||
                                                  leader->until_ms <= store_clock_ms()))) {
        result_affected(s, 0);
        return;
    }
    leader->until_ms = store_clock_ms() + LEADER_ROW_MS;
    result_affected(s, 1);
}

static void release_leader(struct statement *s)
{
    struct leader_row *leader = hold(s, store_row(TABLE_LEADER, 0));

    if (leader != NULL && is(leader->holder, s->params[0]))
        leader->until_ms = store_clock_ms();
}

const struct statement_model statements_scheduler[] = {
    {"INSERT INTO workers AS w", upsert_workers},
    {"SELECT (SELECT coalesce(jsonb_agg(lanes), '[]')", known_lanes},
    {"SELECT pg_stat_get_xact_tuples_returned", passed_over},
    {"WITH RECURSIVE lanes AS", export_candidates},
    {"WITH lanes AS", export_candidates},
    {"t.class = 'transfer' AND t.role = $6", bridge_candidates},
    {"SELECT t.rank FROM tasks t", none}, /* the models look at all of them */
    {"t.class = 'control' AND t.hold = ''", control_candidates},
    {"SELECT coalesce(t.job_id, ''), t.kind, CASE WHEN", load_leases},
    {"SELECT key, value, task_id FROM task_records", load_records},
    {"FROM workers w JOIN settings s", none}, /* no limit of a worker is set */
    {"INSERT INTO job_logs", insert_lines},
    {"UPDATE tasks SET lines_stored", set_lines},
    {"SELECT t.lines_stored, t.cancel", task_facts},
    {"SELECT provider FROM tasks WHERE id = $1 AND epoch", holds},
    {"INSERT INTO task_records (task_id, key, value, updated_at) VALUES", put_record},
    {"pg_advisory_xact_lock(hashtextextended", lock_claim},
    {"SELECT 1 FROM tasks t JOIN task_records r", claimed},
    {"UPDATE tasks SET volume = $2 WHERE id", set_volume},
    {"UPDATE workers SET seen_at = now(), state = CASE", seen},
    {"UPDATE workers SET state = 'draining'", leaves},
    {"SELECT count(*), coalesce(sum(octet_length(key)", records_of},
    {"lease_until < now() - $1::bigint", expired},
    {"SELECT t.id, t.cancel, coalesce(j.status = 'paused' OR", stopped},
    {"SELECT instance FROM workers WHERE drained_at IS NOT NULL", load_gate},
    {STORE_PAUSE_QUEUE, pause_queue},
    {STORE_RESUME_QUEUE, resume_queue},
    {STORE_DRAIN, drain_worker},
    {STORE_UNDRAIN, undrain},
    {"FROM tasks t WHERE state IN ('leased', 'finishing') AND (t.spec->'bandwidth'",
     none}, /* nobody changes it */
    {"UPDATE workers SET state = 'down'", workers_down},
    {"DELETE FROM workers WHERE state = 'down'", none}, /* a day is not simulated */
    {"DELETE FROM tasks WHERE id IN (SELECT t.id FROM tasks t WHERE t.expires_at", none},
    {"DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE kind = 'release'", sweep_released},
    {"WITH waiting AS (SELECT j.id, t.role", none}, /* only shows why jobs wait */
    {"INSERT INTO audit.audit_seal", none},
    {"SELECT s.value->>'interval_ms', s.value->'spec'", none}, /* no clean-up is repeated */
    {"INSERT INTO settings (key, value) VALUES ('queue.aging_ms'",
     none}, /* priority alone counts */
    {"INSERT INTO leader AS l", acquire},
    {"UPDATE leader SET until = clock_timestamp() + interval", renew_leader},
    {"UPDATE leader SET until = clock_timestamp() WHERE holder", release_leader},
    {"INSERT INTO services (name, instance, seen_at)", none},
    {0},
};
