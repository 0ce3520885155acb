/* Connections and statements; see db.h.
 *
 * Design notes. Statements are prepared once per connection, keyed by the address of their text
 * (named constants). A statement that fails because the connection died is not repeated here:
 * only the caller knows whether that is safe. */
#include "common/db.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/schema.h"

#define DB_STATEMENTS_MAX    256 /* distinct constants in the largest service: about 90 */
#define DB_CONNECT_TIMEOUT_S "5"
#define DB_SETUP_SQL_MAX     512
#define DB_LATER_MAX         32   /* answers of one round trip; more take a second one */
#define DB_LOCK_WAIT_MS      2000 /* our own transactions take milliseconds */
/* Its migrations make tables and roles: until then one waits, and does not give up. */
#define WAITING       "waiting for the schema: the scheduler applies it"
#define NO_SUCH_TABLE "42P01"
#define NO_SUCH_ROLE  "22023" /* of SET ROLE; CREATE and GRANT say 42704 */
/* local: "true", for the transaction, or "false": plans are kept, and read no more than an index
 * leads to; a plan that does not know its parameters would start processes to read a third of a
 * large table. */
#define BY_INDEX(local)                                                      \
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', " local ")," \
    " set_config('enable_seqscan', 'off', " local                            \
    "), set_config('enable_bitmapscan', 'off', " local                       \
    "), set_config('enable_hashjoin', 'off', " local "),"                    \
    " set_config('enable_mergejoin', 'off', " local                          \
    "), set_config('enable_material', 'off', " local                         \
    "), set_config('max_parallel_workers_per_gather', '0', " local ")"

/* What the server was sent and is to answer. */
struct db_later {
    PGresult **out; /* or NULL */
    bool prepares;  /* the last of db.prepared, when it was sent */
};

struct db {
    PGconn *connection;
    char sqlstate[6]; /* of the last failure; "": the server said none */
    char *conninfo;
    char *password;
    char *application;
    char *role;
    unsigned int lock_wait_ms;
    bool by_index;
    bool transaction;
    bool begins;          /* BEGIN is not sent yet */
    bool begins_by_index; /* and these settings neither */
    struct db_later later[DB_LATER_MAX];
    size_t later_count;
    const char *prepared[DB_STATEMENTS_MAX];
    size_t prepared_count;
};

struct db *db_new(const struct database_config *config, const char *role, const char *application)
{
    struct db *db = xcalloc(1, sizeof *db);

    db->conninfo = xstrdup(config->url);
    db->password = xstrdup(config->password);
    db->application = xstrdup(application);
    db->role = role == NULL ? NULL : xstrdup(role);
    db->lock_wait_ms = DB_LOCK_WAIT_MS;
    return db;
}

void db_set_lock_wait(struct db *db, unsigned int ms)
{
    assert(db->connection == NULL && ms > 0);
    db->lock_wait_ms = ms;
}

void db_set_by_index(struct db *db)
{
    assert(db->connection == NULL);
    db->by_index = true;
}

/* An open transaction stays open in name until its rollback or commit: a statement after the loss
 * must not run outside of it, on a new connection. */
static void drop_connection(struct db *db)
{
    if (db->connection != NULL)
        PQfinish(db->connection);
    db->connection = NULL;
    db->prepared_count = 0;
    db->later_count = 0;
}

void db_free(struct db *db)
{
    if (db == NULL)
        return;
    drop_connection(db);
    free(db->conninfo);
    explicit_bzero(db->password, strlen(db->password));
    free(db->password);
    free(db->application);
    free(db->role);
    free(db);
}

/* First line of the server's words: PostgreSQL's messages may carry DETAIL and newlines. */
static void first_line(const char *message, char out[256])
{
    size_t n = strcspn(message, "\n");

    if (n > 255)
        n = 255;
    memcpy(out, message, n);
    out[n] = '\0';
}

static enum error_code code_of_sqlstate(const char *state)
{
    if (state == NULL)
        return ERR_UNAVAILABLE; /* the connection broke before the server answered */
    if (strncmp(state, "23", 2) == 0)
        return ERR_CONFLICT;
    if (strncmp(state, "08", 2) == 0 || strncmp(state, "40", 2) == 0 ||
        strncmp(state, "53", 2) == 0 || strncmp(state, "57P", 3) == 0 ||
        strcmp(state, "55P03") == 0 || strncmp(state, "25", 2) == 0)
        return ERR_UNAVAILABLE;
    if (strcmp(state, "57014") == 0)
        return ERR_TIMEOUT;
    if (strcmp(state, "42501") == 0 || strncmp(state, "28", 2) == 0)
        return ERR_DENIED;
    return ERR_INTERNAL;
}

static int fail(struct db *db, const PGresult *result, const char *what, struct error *err)
{
    char line[256];
    const char *state = result == NULL ? NULL : PQresultErrorField(result, PG_DIAG_SQLSTATE);

    first_line(result == NULL ? PQerrorMessage(db->connection) : PQresultErrorMessage(result),
               line);
    (void)snprintf(db->sqlstate, sizeof db->sqlstate, "%s", state == NULL ? "" : state);
    if (strcmp(db->sqlstate, NO_SUCH_TABLE) == 0) {
        (void)error_set(err, ERR_UNAVAILABLE, WAITING " (%s)", line);
    } else {
        (void)error_set(err, code_of_sqlstate(state), "database: %s: %s", what, line);
    }
    if (PQstatus(db->connection) != CONNECTION_OK)
        drop_connection(db);
    return -1;
}

/* A plan that is kept was made for the tables as they were: made while they were empty it reads
 * them from end to end until the first ANALYZE, minutes later. So plans are made anew for each
 * call, or, where they are kept, never read more than an index leads to. */
static int set_plans(struct db *db, PGresult **out)
{
    static const char fresh[] = "SET plan_cache_mode = force_custom_plan";
    static const char by_index[] = BY_INDEX("false");

    *out = PQexec(db->connection, db->by_index ? by_index : fresh);
    return PQresultStatus(*out) == (db->by_index ? PGRES_TUPLES_OK : PGRES_COMMAND_OK) ? 0 : -1;
}

/* A row that someone else holds locked must not hold up what has nothing to do with it. */
static int set_lock_wait(struct db *db, PGresult **out)
{
    char sql[DB_SETUP_SQL_MAX];

    (void)snprintf(sql, sizeof sql, "SET lock_timeout = %u", db->lock_wait_ms);
    *out = PQexec(db->connection, sql);
    return PQresultStatus(*out) == PGRES_COMMAND_OK ? 0 : -1;
}

/* Limits that protect the queue from a forgotten transaction (library notes, section 4). No
 * statement is worth a compiler: it takes longer than the slowest of them. */
static int set_up(struct db *db, struct error *err)
{
    static const char limits[] = "SET idle_in_transaction_session_timeout = '10s';"
                                 "SET statement_timeout = '30s';"
                                 "SET client_min_messages = warning;"
                                 "SET timezone = 'UTC';"
                                 "SET jit = off";
    auto_pgresult *result = PQexec(db->connection, limits);
    auto_pgresult *waits = NULL;
    auto_pgresult *plans = NULL;
    auto_pgresult *role = NULL;
    char *quoted;
    char sql[DB_SETUP_SQL_MAX];

    if (PQresultStatus(result) != PGRES_COMMAND_OK || set_lock_wait(db, &waits) < 0)
        return fail(db, waits == NULL ? result : waits, "session limits", err);
    if (set_plans(db, &plans) < 0)
        return fail(db, plans, "session plans", err);
    if (db->role == NULL)
        return 0;
    quoted = PQescapeIdentifier(db->connection, db->role, strlen(db->role));
    if (quoted == NULL)
        return fail(db, NULL, "role name", err);
    (void)snprintf(sql, sizeof sql, "SET ROLE %s", quoted);
    PQfreemem(quoted);
    role = PQexec(db->connection, sql);
    if (PQresultStatus(role) != PGRES_COMMAND_OK) {
        (void)fail(db, role, "set role", err);
        drop_connection(db);
        if (strcmp(db->sqlstate, NO_SUCH_ROLE) == 0) {
            error_clear(err);
            return error_set(err, ERR_UNAVAILABLE, WAITING ", and makes role '%.64s'", db->role);
        }
        err->code = ERR_UNAVAILABLE; /* they also grant it */
        return -1;
    }
    return 0;
}

/* Between statements the server says nothing but that it ends the connection (or that a setting
 * changed, which a new connection has as well): found out here, that fails nothing. */
static bool has_ended(const struct db *db)
{
    struct pollfd fd = {.fd = PQsocket(db->connection), .events = POLLIN};

    return poll(&fd, 1, 0) > 0;
}

static int ensure_connection(struct db *db, struct error *err)
{
    /* dbname last: its conninfo or URI is expanded, and what it says wins over nothing here */
    const char *const keys[] = {"connect_timeout",
                                "keepalives_idle",
                                "tcp_user_timeout",
                                "application_name",
                                "password",
                                "dbname",
                                NULL};
    const char *const values[] = {DB_CONNECT_TIMEOUT_S,
                                  "10",
                                  "10000",
                                  db->application,
                                  db->password[0] == '\0' ? NULL : db->password,
                                  db->conninfo,
                                  NULL};
    char line[256];

    if (db->connection != NULL && PQstatus(db->connection) == CONNECTION_OK &&
        (db->transaction || !has_ended(db)))
        return 0;
    drop_connection(db);
    db->connection = PQconnectdbParams(keys, values, 1);
    if (db->connection == NULL)
        abort(); /* out of memory */
    if (PQstatus(db->connection) != CONNECTION_OK) {
        first_line(PQerrorMessage(db->connection), line);
        drop_connection(db);
        return error_set(err, ERR_UNAVAILABLE, "database cannot be reached: %s", line);
    }
    if (set_up(db, err) < 0) {
        drop_connection(db);
        return -1;
    }
    return 0;
}

/* ---- statements ---- */

/* True: sql was prepared on this connection, or is counted as if it were; the name is its index. */
static bool is_prepared(struct db *db, const char *sql, char name[16])
{
    size_t i = 0;

    while (i < db->prepared_count && db->prepared[i] != sql)
        i++;
    (void)snprintf(name, 16, "s%zu", i);
    if (i < db->prepared_count)
        return true;
    assert(i < DB_STATEMENTS_MAX);
    db->prepared[db->prepared_count++] = sql;
    return false;
}

static bool is_ok(const PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);

    return status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
}

static int exec_at_once(struct db *db, const char *sql, const char *const *params, size_t count,
                        PGresult **out, struct error *err)
{
    char name[16];
    auto_pgresult *result = NULL;

    if (!is_prepared(db, sql, name)) {
        auto_pgresult *prepared = PQprepare(db->connection, name, sql, 0, NULL);
        if (PQresultStatus(prepared) != PGRES_COMMAND_OK) {
            db->prepared_count--;
            return fail(db, prepared, "prepare", err);
        }
    }
    result = PQexecPrepared(db->connection, name, (int)count, params, NULL, NULL, 0);
    if (!is_ok(result))
        return fail(db, result, "statement", err);
    if (out != NULL)
        *out = STEAL(result);
    return 0;
}

static int simple(struct db *db, const char *sql, struct error *err)
{
    auto_pgresult *result = PQexec(db->connection, sql);

    if (PQresultStatus(result) != PGRES_COMMAND_OK)
        return fail(db, result, sql, err);
    return 0;
}

/* ---- several statements in one round trip ---- */

static int note_sent(struct db *db, int sent, PGresult **out, bool prepares, struct error *err)
{
    if (sent != 1) {
        (void)fail(db, NULL, "send", err);
        drop_connection(db);
        return -1;
    }
    assert(db->later_count < DB_LATER_MAX);
    db->later[db->later_count++] = (struct db_later){.out = out, .prepares = prepares};
    return 0;
}

static int send_prepared(struct db *db, const char *sql, const char *const *params, size_t count,
                         PGresult **out, struct error *err)
{
    char name[16];

    if (!is_prepared(db, sql, name) &&
        note_sent(db, PQsendPrepare(db->connection, name, sql, 0, NULL), NULL, true, err) < 0)
        return -1;
    return note_sent(db,
                     PQsendQueryPrepared(db->connection, name, (int)count, params, NULL, NULL, 0),
                     out, false, err);
}

static int send_text(struct db *db, const char *sql, struct error *err)
{
    return note_sent(db, PQsendQueryParams(db->connection, sql, 0, NULL, NULL, NULL, NULL, 0), NULL,
                     false, err);
}

static int send_begin(struct db *db, struct error *err)
{
    static const char by_index[] = BY_INDEX("true");

    if (!db->begins)
        return 0;
    db->begins = false;
    if (send_text(db, "BEGIN", err) < 0)
        return -1;
    return db->begins_by_index ? send_prepared(db, by_index, NULL, 0, NULL, err) : 0;
}

/* The answer to one of those that were sent; the first failure is kept. What follows a failure was
 * not run, so it is not prepared either. */
static int take_answer(struct db *db, const struct db_later *later, size_t *prepared, bool keep,
                       struct error *err)
{
    auto_pgresult *result = PQgetResult(db->connection);

    if (result == NULL || !is_ok(result)) {
        if (err->code == ERR_NONE)
            (void)fail(db, result, later->prepares ? "prepare" : "statement", err);
        if (db->connection == NULL)
            return -1;
    } else {
        *prepared += later->prepares;
        if (keep && later->out != NULL)
            *later->out = STEAL(result);
    }
    PQclear(PQgetResult(db->connection)); /* NULL stands between the answers */
    return 0;
}

/* Waits for all answers. keep false: nobody wants them any more. */
static int collect(struct db *db, bool keep, struct error *err)
{
    size_t count = db->later_count;
    size_t prepared = db->prepared_count;
    auto_pgresult *sync = NULL;
    struct error first = ERROR_NONE;

    for (size_t i = 0; i < count; i++)
        prepared -= db->later[i].prepares;
    if (PQpipelineSync(db->connection) != 1)
        (void)fail(db, NULL, "send", &first);
    for (size_t i = 0; i < count && db->connection != NULL; i++) {
        if (take_answer(db, &db->later[i], &prepared, keep, &first) < 0)
            break;
    }
    if (db->connection != NULL)
        sync = PQgetResult(db->connection);
    db->later_count = 0;
    db->prepared_count = db->connection == NULL ? 0 : prepared;
    if (db->connection != NULL && PQexitPipelineMode(db->connection) != 1) {
        if (first.code == ERR_NONE)
            (void)fail(db, NULL, "pipeline", &first);
        drop_connection(db);
    }
    if (first.code == ERR_NONE)
        return 0;
    *err = first;
    return -1;
}

static int send_later(struct db *db, const char *sql, const char *const *params, size_t count,
                      PGresult **out, struct error *err)
{
    /* BEGIN, its settings and two for each statement may come */
    if (db->later_count + 5 > DB_LATER_MAX && collect(db, true, err) < 0)
        return -1;
    if (db->later_count == 0 && PQenterPipelineMode(db->connection) != 1)
        return fail(db, NULL, "pipeline", err);
    if (send_begin(db, err) < 0)
        return -1;
    return sql == NULL ? 0 : send_prepared(db, sql, params, count, out, err);
}

static int check_connection(struct db *db, size_t count, struct error *err)
{
    assert(count <= DB_PARAMS_MAX);
    if (db->transaction && (db->connection == NULL || PQstatus(db->connection) != CONNECTION_OK)) {
        drop_connection(db);
        return error_set(err, ERR_UNAVAILABLE, "database: connection lost inside a transaction");
    }
    return ensure_connection(db, err);
}

int db_exec(struct db *db, const char *sql, const char *const *params, size_t count, PGresult **out,
            struct error *err)
{
    if (check_connection(db, count, err) < 0)
        return -1;
    if (db->later_count == 0 && !db->begins)
        return exec_at_once(db, sql, params, count, out, err);
    if (send_later(db, sql, params, count, out, err) < 0)
        return -1;
    return collect(db, true, err);
}

int db_later(struct db *db, const char *sql, const char *const *params, size_t count,
             PGresult **out, struct error *err)
{
    if (!db->transaction)
        return db_exec(db, sql, params, count, out, err);
    if (check_connection(db, count, err) < 0)
        return -1;
    return send_later(db, sql, params, count, out, err);
}

int db_flush(struct db *db, struct error *err)
{
    if (check_connection(db, 0, err) < 0)
        return -1;
    return db->later_count == 0 ? 0 : collect(db, true, err);
}

/* ---- transactions ---- */

static int begin(struct db *db, bool by_index, struct error *err)
{
    assert(!db->transaction);
    if (ensure_connection(db, err) < 0)
        return -1;
    db->transaction = true;
    db->begins = true;
    db->begins_by_index = by_index;
    return 0;
}

int db_begin(struct db *db, struct error *err)
{
    return begin(db, false, err);
}

int db_begin_by_index(struct db *db, struct error *err)
{
    return begin(db, true, err);
}

/* What is still to be sent goes with it: when that fails, COMMIT is not run. */
static int commit_with_later(struct db *db, PGresult **out, struct error *err)
{
    struct error ignored = ERROR_NONE;

    if (db->later_count == 0) {
        *out = PQexec(db->connection, "COMMIT");
        return 0;
    }
    if (note_sent(db, PQsendQueryParams(db->connection, "COMMIT", 0, NULL, NULL, NULL, NULL, 0),
                  out, false, err) < 0)
        return -1;
    if (collect(db, true, err) == 0)
        return 0;
    if (db->connection != NULL && simple(db, "ROLLBACK", &ignored) < 0)
        drop_connection(db);
    return -1;
}

int db_commit(struct db *db, struct error *err)
{
    auto_pgresult *result = NULL;

    assert(db->transaction);
    db->transaction = false;
    if (db->connection == NULL)
        return error_set(err, ERR_UNAVAILABLE, "database: connection lost before commit");
    if (db->begins) { /* nothing was done in it */
        db->begins = false;
        return 0;
    }
    if (commit_with_later(db, &result, err) < 0)
        return -1;
    if (PQresultStatus(result) != PGRES_COMMAND_OK) {
        (void)fail(db, result, "commit", err);
        drop_connection(db);
        return -1;
    }
    /* COMMIT of an aborted transaction answers ROLLBACK with success */
    if (strcmp(PQcmdStatus(result), "COMMIT") != 0)
        return error_set(err, ERR_INTERNAL, "database: commit answered '%s'", PQcmdStatus(result));
    return 0;
}

void db_rollback(struct db *db)
{
    struct error ignored = ERROR_NONE;
    bool begun = !db->begins;

    if (!db->transaction)
        return;
    db->transaction = false;
    db->begins = false;
    if (db->connection == NULL || !begun)
        return;
    if (db->later_count > 0)
        (void)collect(db, false, &ignored);
    error_clear(&ignored);
    if (db->connection != NULL && simple(db, "ROLLBACK", &ignored) < 0)
        drop_connection(db);
}

bool db_in_transaction(const struct db *db)
{
    return db->transaction;
}

PGconn *db_connection(struct db *db)
{
    return db->connection;
}

int db_check(struct db *db, struct error *err)
{
    static const char sql[] = "SELECT coalesce(max(version), 0) FROM schema_version";
    auto_pgresult *rows = NULL;
    int64_t have;

    db->sqlstate[0] = '\0';
    if (db_exec(db, sql, DB_NO_PARAMS, &rows, err) < 0) {
        if (strcmp(db->sqlstate, NO_SUCH_TABLE) != 0)
            return -1;
        error_clear(err);
        return error_set(err, ERR_UNAVAILABLE, WAITING);
    }
    have = db_i64(rows, 0, 0);
    if (have < (int64_t)schema_files_count) {
        return error_set(
            err, ERR_UNAVAILABLE,
            "waiting for the schema: it is at version %lld, this build wants %zu (the scheduler "
            "applies it)",
            (long long)have, schema_files_count);
    }
    return 0;
}

/* ---- migrations ---- */

/* The key of the advisory lock: any constant, the same in every build. */
#define MIGRATE_LOCK_SQL "SELECT pg_advisory_xact_lock(7233746108371)"

static int apply_schema_file(struct db *db, const struct schema_file *file, struct error *err)
{
    static const char record[] = "INSERT INTO schema_version (version, name) VALUES ($1, $2)";
    char version[16];
    auto_pgresult *result = PQexec(db->connection, file->sql);
    ExecStatusType status = PQresultStatus(result);

    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) {
        (void)fail(db, result, "migration", err);
        if (strcmp(db->sqlstate, NO_SUCH_TABLE) == 0)
            err->code = ERR_INTERNAL; /* nobody else makes it */
        return error_wrap(err, "schema file %s", file->name);
    }
    (void)snprintf(version, sizeof version, "%u", file->version);
    return db_exec(db, record, DB_PARAMS(version, file->name), NULL, err);
}

static int migrate_locked(struct db *db, struct error *err)
{
    static const char table[] = "CREATE TABLE IF NOT EXISTS schema_version (version integer "
                                "PRIMARY KEY, name text NOT NULL,"
                                " applied_at timestamptz NOT NULL DEFAULT now())";
    static const char newest[] = "SELECT coalesce(max(version), 0) FROM schema_version";
    static const char grant[] = "GRANT SELECT ON schema_version TO PUBLIC";
    auto_pgresult *lock = PQexec(db->connection, MIGRATE_LOCK_SQL);
    auto_pgresult *rows = NULL;
    size_t have;

    if (PQresultStatus(lock) != PGRES_TUPLES_OK)
        return fail(db, lock, "migration lock", err);
    if (db_exec(db, table, DB_NO_PARAMS, NULL, err) < 0 ||
        db_exec(db, newest, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    have = (size_t)db_i64(rows, 0, 0);
    if (have > schema_files_count) {
        return error_set(err, ERR_CONFLICT,
                         "database has schema version %zu, this build knows %zu: install the newer "
                         "version",
                         have, schema_files_count);
    }
    for (size_t i = have; i < schema_files_count; i++) {
        if (apply_schema_file(db, &schema_files[i], err) < 0)
            return -1;
    }
    return have == schema_files_count ? 0 : db_exec(db, grant, DB_NO_PARAMS, NULL, err);
}

int db_migrate(struct db *db, struct error *err)
{
    static const char patience[] = "SET LOCAL lock_timeout = 0";

    if (db_begin(db, err) < 0)
        return -1;
    if (db_exec(db, patience, DB_NO_PARAMS, NULL, err) < 0 || migrate_locked(db, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}
