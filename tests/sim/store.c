/* See store.h. Instead of common/db.c; its cells (common/db_cells.c) are the product's. */
#include "tests/sim/store.h"

#include <inttypes.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"

#define WALL_BASE_MS INT64_C(1772000000000)
#define ROWS_MAX     1u << 16
#define IDLE_MS      10000 /* idle_in_transaction_session_timeout of common/db.c */
#define STATEMENT_MS 30000 /* statement_timeout */
#define DEADLOCK_MS  1000
#define HELD_MAX     512 /* rows that one transaction locks */
#define NUMBERS      64

struct tx {
    struct row *held[HELD_MAX];
    size_t held_count;
    const char *names[8]; /* advisory locks */
    size_t name_count;
    int64_t now_ms;
    int64_t active_us; /* end of its last statement */
    bool in_statement;
    const struct row *waits_for;
    bool aborted;
};

struct db {
    struct sim_proc *proc;
    uint32_t incarnation;
    bool connected;
    bool transaction; /* of the caller */
    struct tx *tx;
    struct db *next;
};

static struct {
    struct row **rows;
    size_t count, room;
} tables[TABLE_COUNT];

static const size_t row_sizes[TABLE_COUNT] = {
    [TABLE_JOBS] = sizeof(struct job_row),
    [TABLE_TASKS] = sizeof(struct task_row),
    [TABLE_RECORDS] = sizeof(struct record_row),
    [TABLE_EVENTS] = sizeof(struct event_row),
    [TABLE_LINES] = sizeof(struct line_row),
    [TABLE_OUTBOX] = sizeof(struct outbox_row),
    [TABLE_EXPORTS] = sizeof(struct export_row),
    [TABLE_TOTALS] = sizeof(struct total_row),
    [TABLE_WORKERS] = sizeof(struct worker_row),
    [TABLE_LEADER] = sizeof(struct leader_row),
    [TABLE_SETTINGS] = sizeof(struct setting_row),
    [TABLE_SCHEDULES] = sizeof(struct schedule_row),
    [TABLE_RUNS] = sizeof(struct run_row),
    [TABLE_DEPENDENCIES] = sizeof(struct dependency_row),
    [TABLE_WORKFLOWS] = sizeof(struct workflow_row),
    [TABLE_STEPS] = sizeof(struct step_row),
    [TABLE_ITEMS] = sizeof(struct item_row),
};

int64_t store_offset_us;
int64_t store_newest_ms;
bool store_two_leaders;
static struct db *databases; /* all connections, dead ones too */
static int64_t outage_until_us;
static char lock_key; /* who waits for any lock waits on it */

int64_t store_clock_ms(void)
{
    int64_t now_ms = WALL_BASE_MS + (sim_now_us + store_offset_us) / 1000;

    if (now_ms > store_newest_ms)
        store_newest_ms = now_ms;
    return now_ms;
}

/* ---- rows ---- */

size_t store_count(enum store_table table)
{
    return tables[table].count;
}

struct row *store_row(enum store_table table, size_t i)
{
    return tables[table].rows[i];
}

const void *see(const struct statement *s, const struct row *row)
{
    if (s != NULL && row->owner == s->tx)
        return row->deleted ? NULL : row->uncommitted;
    return row->committed;
}

/* A statement's own changes are made on the uncommitted version. */
static void take(struct tx *tx, struct row *row)
{
    assert(tx->held_count < HELD_MAX);
    row->owner = tx;
    row->deleted = false;
    if (row->uncommitted == NULL && row->committed != NULL)
        row->uncommitted = xmemdup(row->committed, row_sizes[row->table]);
    tx->held[tx->held_count++] = row;
}

/* Old versions are never freed: checks and other transactions may look at them. */
static void release(struct tx *tx, bool commit)
{
    const void *old[HELD_MAX];

    for (size_t i = 0; i < tx->held_count; i++) {
        struct row *row = tx->held[i];
        old[i] = row->committed;
        if (commit)
            row->committed = row->deleted ? NULL : row->uncommitted;
        row->uncommitted = NULL;
        row->deleted = false;
        row->owner = NULL;
    }
    for (size_t i = 0; commit && i < tx->held_count; i++)
        check_commit(tx->held[i]->table, old[i], tx->held[i]->committed);
    tx->held_count = 0;
    tx->name_count = 0;
    sim_wake(&lock_key, true);
}

static void tx_free(struct db *db)
{
    free(db->tx);
    db->tx = NULL;
}

static void abort_tx(struct db *db)
{
    if (db->tx == NULL)
        return;
    release(db->tx, false);
    if (db->tx->in_statement) {
        db->tx->aborted = true; /* its coroutine frees it, if it lives */
        db->tx = NULL;
    } else {
        tx_free(db);
    }
}

/* The server ends sessions that are idle in a transaction; those of dead processes end at once. */
static void sweep_sessions(void)
{
    struct db **at = &databases;

    while (*at != NULL) {
        struct db *db = *at;
        const struct tx *tx = db->tx;
        bool dead = !sim_is_alive(db->proc, db->incarnation);
        if (tx != NULL &&
            (dead || (!tx->in_statement && sim_now_us - tx->active_us > IDLE_MS * SIM_MS))) {
            sim_trace("the database ends the session of %s", db->proc->name);
            db->connected = false;
            abort_tx(db);
        }
        if (dead) {
            *at = db->next;
        } else {
            at = &db->next;
        }
    }
}

static bool waits_in_circle(const struct tx *tx)
{
    const struct tx *at = tx;

    for (int i = 0; i < 64; i++) {
        at = at->waits_for == NULL ? NULL : at->waits_for->owner;
        if (at == NULL || at == tx)
            break;
    }
    return at == tx;
}

/* Until nobody else has it. false: the statement failed. */
static bool wait_for(struct statement *s, struct row *row)
{
    int64_t start_us = sim_now_us;

    while (row->owner != NULL && row->owner != s->tx) {
        s->tx->waits_for = row;
        (void)sim_block(&lock_key, sim_now_us + 200 * SIM_MS);
        sweep_sessions();
        if (!s->tx->aborted && sim_now_us - start_us > DEADLOCK_MS * SIM_MS &&
            waits_in_circle(s->tx)) {
            sim_trace("deadlock");
            s->failed = true;
        }
        if (s->tx->aborted || sim_now_us - start_us > STATEMENT_MS * SIM_MS)
            s->failed = true;
        s->tx->waits_for = NULL;
        if (s->failed)
            return false;
    }
    return true;
}

void *hold(struct statement *s, struct row *row)
{
    if (s->failed || !wait_for(s, row))
        return NULL;
    if (row->owner != s->tx) {
        if (row->committed == NULL)
            return NULL;
        take(s->tx, row);
    }
    return row->deleted ? NULL : row->uncommitted;
}

bool is_free(const struct statement *s, struct row *row)
{
    if (sim_break == BREAK_CLAIM)
        return true;
    return row->owner == NULL || row->owner == s->tx;
}

void *insert(struct statement *s, enum store_table table)
{
    struct row *row = xcalloc(1, sizeof *row);

    assert(tables[table].count < (ROWS_MAX));
    if (tables[table].count == tables[table].room) {
        tables[table].room = tables[table].room == 0 ? 64 : tables[table].room * 2;
        tables[table].rows = xreallocarray(tables[table].rows, tables[table].room, sizeof(void *));
    }
    tables[table].rows[tables[table].count++] = row;
    row->table = table;
    row->uncommitted = xcalloc(1, row_sizes[table]);
    take(s->tx, row);
    return row->uncommitted;
}

void drop(struct statement *s, struct row *row)
{
    if (hold(s, row) != NULL)
        row->deleted = true;
}

static const struct db *name_holder(const struct tx *tx, const char *name)
{
    for (const struct db *db = databases; db != NULL; db = db->next) {
        for (size_t i = 0; db->tx != NULL && db->tx != tx && i < db->tx->name_count; i++) {
            if (strcmp(db->tx->names[i], name) == 0)
                return db;
        }
    }
    return NULL;
}

void hold_name(struct statement *s, const char *name)
{
    while (name_holder(s->tx, name) != NULL && !s->failed) {
        (void)sim_block(&lock_key, sim_now_us + 200 * SIM_MS);
        sweep_sessions();
        s->failed = s->tx->aborted;
    }
    assert(s->tx->name_count < ARRAY_LEN(s->tx->names));
    if (!s->failed)
        s->tx->names[s->tx->name_count++] = keep(name);
}

void store_init(void)
{
    struct row *row = xcalloc(1, sizeof *row);

    tables[TABLE_LEADER].rows = xcalloc(1, sizeof(void *));
    tables[TABLE_LEADER].rows[0] = row;
    tables[TABLE_LEADER].count = tables[TABLE_LEADER].room = 1;
    row->table = TABLE_LEADER;
    row->committed = xcalloc(1, sizeof(struct leader_row));
}

/* ---- results ---- */

void result_columns(struct statement *s, int columns)
{
    PGresAttDesc attributes[32] = {{0}};
    static char name[] = "c";

    assert(columns <= (int)ARRAY_LEN(attributes));
    for (int i = 0; i < columns; i++)
        attributes[i].name = name;
    (void)PQsetResultAttrs(s->rows, columns, attributes);
}

void result_row(struct statement *s, const char *const *cells)
{
    int row = PQntuples(s->rows);

    for (int i = 0; i < PQnfields(s->rows); i++) {
        (void)PQsetvalue(s->rows, row, i, (char *)(uintptr_t)cells[i],
                         cells[i] == NULL ? -1 : (int)strlen(cells[i]));
    }
}

void result_affected(struct statement *s, int count)
{
    result_columns(s, 1);
    for (int i = 0; i < count; i++)
        RESULT_ROW(s, NULL);
}

const char *number(int64_t value)
{
    static char texts[NUMBERS][24];
    static size_t next;
    char *text = texts[next++ % NUMBERS];

    (void)snprintf(text, sizeof texts[0], "%" PRId64, value);
    return text;
}

const char *keep(const char *text)
{
    return text == NULL ? NULL : xstrdup(text);
}

int64_t param_i64(const struct statement *s, size_t i)
{
    return s->params[i - 1] == NULL ? 0 : strtoll(s->params[i - 1], NULL, 10);
}

bool param_bool(const struct statement *s, size_t i)
{
    return s->params[i - 1] != NULL && s->params[i - 1][0] == 't';
}

bool json_has(const char *array, const char *text)
{
    auto_json *json = json_loads(array, 0, NULL);
    json_t *item;
    size_t i;

    json_array_foreach(json, i, item)
    {
        if (strcmp(json_string_value(item), text) == 0)
            return true;
    }
    return false;
}

/* Number of rows that an UPDATE touched, or that RETURNING gave. */
char *__wrap_PQcmdTuples(PGresult *result);
char *__wrap_PQcmdTuples(PGresult *result)
{
    return (char *)(uintptr_t)number(PQntuples(result));
}

char *__real_PQgetvalue(const PGresult *result, int row, int column);
char *__wrap_PQgetvalue(const PGresult *result, int row, int column);
char *__wrap_PQgetvalue(const PGresult *result, int row, int column)
{
    if (row >= PQntuples(result) || column >= PQnfields(result)) {
        sim_fail("the product reads column %d of row %d, but the model of the statement gives %d "
                 "columns and %d rows: bring tests/sim/statements_*.c up to date",
                 column, row, PQnfields(result), PQntuples(result));
    }
    return __real_PQgetvalue(result, row, column);
}

/* ---- db.h ---- */

struct db *db_new(const struct database_config *config, const char *role, const char *application)
{
    struct db *db = xcalloc(1, sizeof *db);

    (void)config;
    (void)role;
    (void)application;
    db->proc = sim_current();
    db->incarnation = db->proc->incarnation;
    db->next = databases;
    databases = db;
    return db;
}

void db_set_lock_wait(struct db *db, unsigned int ms)
{
    (void)db;
    (void)ms; /* transactions of the model do not wait for each other */
}

void db_set_by_index(struct db *db)
{
    (void)db; /* the model has no plans */
}

void db_free(struct db *db)
{
    abort_tx(db);
    db->connected = false;
}

void store_outage(int64_t us)
{
    sim_trace("the database is away for %.1f s", (double)us / 1e6);
    outage_until_us = sim_now_us + us;
    for (struct db *db = databases; db != NULL; db = db->next) {
        db->connected = false;
        abort_tx(db);
    }
}

static int lost(struct db *db, const char *where, struct error *err)
{
    sim_trace("connection to the database lost: %s", where);
    db->connected = false;
    abort_tx(db);
    return error_set(err, ERR_UNAVAILABLE, "database: connection lost %s", where);
}

static int64_t latency(void)
{
    return sim_chance(sim_faults.database_slow) ? sim_between(0, 4000) * SIM_MS
                                                : sim_between(50, 2000);
}

static int connect_to(struct db *db, struct error *err)
{
    if (db->transaction && !db->connected)
        return error_set(err, ERR_UNAVAILABLE, "database: connection lost inside a transaction");
    if (outage_until_us > sim_now_us || db->proc->cut_until_us > sim_now_us) {
        sim_sleep(sim_between(1, 3000) * SIM_MS); /* refused, or silent */
        return lost(db, "before it could be used", err);
    }
    db->connected = true;
    return 0;
}

static struct tx *tx_new(struct db *db)
{
    struct tx *tx = xcalloc(1, sizeof *tx);

    sweep_sessions();
    tx->now_ms = store_clock_ms();
    tx->active_us = sim_now_us;
    db->tx = tx;
    return tx;
}

static statement_fn model_of(const char *sql)
{
    static const struct statement_model *const lists[] = {statements_jobs, statements_scheduler,
                                                          statements_schedules, statements_rules,
                                                          statements_workflows};

    for (size_t l = 0; l < ARRAY_LEN(lists); l++) {
        for (const struct statement_model *m = lists[l]; m->piece != NULL; m++) {
            if (strstr(sql, m->piece) != NULL)
                return m->fn;
        }
    }
    sim_fail("the simulator has no model of this statement; write one into "
             "tests/sim/statements_*.c: %.200s",
             sql);
}

/* The texts of the product live for ever: their address is their name. */
static statement_fn find_model(const char *sql)
{
    static struct {
        const char *sql;
        statement_fn fn;
    } known[256];
    size_t i = ((uintptr_t)sql >> 4) % ARRAY_LEN(known);

    while (known[i].sql != NULL && known[i].sql != sql)
        i = (i + 1) % ARRAY_LEN(known);
    if (known[i].sql == NULL) {
        known[i].fn = model_of(sql);
        known[i].sql = sql;
    }
    return known[i].fn;
}

/* The end of an implicit transaction, or COMMIT. */
static int finish(struct db *db, struct error *err)
{
    struct tx *tx = db->tx;

    if (sim_chance(sim_faults.commit_unknown_lost))
        return lost(db, "at a commit that did not happen", err);
    release(tx, sim_break != BREAK_COMMIT || !sim_chance(30000));
    tx_free(db);
    if (sim_chance(sim_faults.commit_unknown_done)) {
        sim_trace("a commit is done but reported failed");
        db->connected = false;
        return error_set(err, ERR_UNAVAILABLE, "database: connection lost after a commit");
    }
    return 0;
}

static int run_statement(struct db *db, statement_fn fn, struct statement *s, struct error *err)
{
    struct tx *tx = db->tx == NULL ? tx_new(db) : db->tx;
    bool aborted;

    s->tx = tx;
    s->now_ms = tx->now_ms;
    tx->in_statement = true;
    fn(s);
    aborted = tx->aborted;
    tx->in_statement = false;
    tx->active_us = sim_now_us;
    if (aborted) {
        free(tx);
        db->connected = false;
        return error_set(err, ERR_UNAVAILABLE, "database: the session was ended");
    }
    if (s->failed) {
        abort_tx(db);
        db->connected = db->connected && !db->transaction; /* simpler than an aborted one */
        return error_set(err, ERR_UNAVAILABLE, "database: deadlock detected");
    }
    return db->transaction ? 0 : finish(db, err);
}

int db_exec(struct db *db, const char *sql, const char *const *params, size_t count, PGresult **out,
            struct error *err)
{
    struct statement s = {.params = params, .count = count};
    statement_fn fn = find_model(sql);
    int rc;

    sim_sleep(latency());
    if (connect_to(db, err) < 0)
        return -1;
    if (db->transaction && db->tx == NULL)
        return lost(db, "inside a transaction", err);
    if (sim_chance(sim_faults.statement_lost))
        return lost(db, "at a statement", err);
    s.rows = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
    rc = run_statement(db, fn, &s, err);
    if (rc == 0 && out != NULL) {
        *out = s.rows;
    } else {
        PQclear(s.rows);
    }
    return rc;
}

int db_later(struct db *db, const char *sql, const char *const *params, size_t count,
             PGresult **out, struct error *err)
{
    return db_exec(db, sql, params, count, out, err);
}

int db_flush(struct db *db, struct error *err)
{
    (void)db;
    (void)err;
    return 0;
}

int db_begin(struct db *db, struct error *err)
{
    assert(!db->transaction);
    sim_sleep(latency());
    if (connect_to(db, err) < 0)
        return -1;
    (void)tx_new(db);
    db->transaction = true;
    return 0;
}

int db_begin_by_index(struct db *db, struct error *err)
{
    return db_begin(db, err);
}

int db_commit(struct db *db, struct error *err)
{
    assert(db->transaction);
    db->transaction = false;
    if (db->tx != NULL)
        sim_sleep(latency());
    if (db->tx == NULL || !db->connected)
        return error_set(err, ERR_UNAVAILABLE, "database: connection lost before commit");
    return finish(db, err);
}

void db_rollback(struct db *db)
{
    db->transaction = false;
    abort_tx(db);
}

bool db_in_transaction(const struct db *db)
{
    return db->transaction;
}

PGconn *db_connection(struct db *db)
{
    (void)db;
    return NULL;
}

int db_check(struct db *db, struct error *err)
{
    sim_sleep(latency());
    return connect_to(db, err);
}

int db_migrate(struct db *db, struct error *err)
{
    return db_check(db, err);
}
