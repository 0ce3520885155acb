/* PostgreSQL: one connection per struct db, one thread at a time.
 * Parameters only, never text built from input. A lost connection is reconnected by the next call
 * outside a transaction. One that ended while nothing ran is noticed before the next statement; a
 * call that meets the end itself fails with ERR_UNAVAILABLE, and whether it took effect is unknown:
 * statements are idempotent by key or guarded by epoch. */
#ifndef COMMON_DB_H
#define COMMON_DB_H

#include <libpq-fe.h>

#include "common/autos.h"
#include "common/config_schema.h"
#include "common/error.h"

#define DB_PARAMS_MAX 40

struct db;

/* role: "hypersdk_gateway" ... is SET after each connect; NULL: none. application: shown in
 * pg_stat_activity. Does not connect yet. */
struct db *db_new(const struct database_config *config, const char *role, const char *application);
/* How long a statement waits for a row or table that someone else has locked (default 2 s) before
 * it fails with ERR_UNAVAILABLE. Before the first statement. */
void db_set_lock_wait(struct db *db, unsigned int ms);
/* For statements that find their few rows by an index and run all the time: their plans are made
 * once and read no table from end to end, however small it was. Else each call makes its plan, by
 * what the tables hold then. Before the first statement. */
void db_set_by_index(struct db *db);
void db_free(struct db *db);
DEFINE_AUTO(db, struct db, db_free)
#define auto_db CLEANUP(db_auto) struct db

/* Is the server there and the schema at least at this build's version? */
MUST_CHECK int db_check(struct db *db, struct error *err);
/* Runs one statement. Parameters: count text values (NULL = SQL NULL), text format in and out.
 * Errors: unique/foreign key/check violation ERR_CONFLICT, serialization or deadlock or connection
 * or a table that is still to come ERR_UNAVAILABLE, statement timeout ERR_TIMEOUT, insufficient
 * privilege ERR_DENIED, else ERR_INTERNAL. *out is NULL-safe to ignore: pass NULL when no rows are
 * wanted. Named constants only: `sql` must be a string that lives for ever (statements are prepared
 * by its address). */
MUST_CHECK int db_exec(struct db *db, const char *sql, const char *const *params, size_t count,
                       PGresult **out, struct error *err);
/* Convenience: params as an array literal: DB_PARAMS(a, b). */
#define DB_PARAMS(...) \
    (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)
#define DB_NO_PARAMS NULL, 0
/* In a transaction: as db_exec, but the statement goes to the server with those behind it, up to
 * the next db_exec, db_flush or db_commit, in one round trip: *out is written by that call, and a
 * failure is that call's (COMMIT is not run then). Who gives up before it rolls back. Outside of
 * one: db_exec. */
MUST_CHECK int db_later(struct db *db, const char *sql, const char *const *params, size_t count,
                        PGresult **out, struct error *err);
MUST_CHECK int db_flush(struct db *db, struct error *err);
/* BEGIN goes with the first statement. */
MUST_CHECK int db_begin(struct db *db, struct error *err);
/* As if db_set_by_index had been called, for this transaction; also what its foreign keys ask. */
MUST_CHECK int db_begin_by_index(struct db *db, struct error *err);
/* An error after COMMIT was sent is ERR_UNAVAILABLE: unknown outcome. */
MUST_CHECK int db_commit(struct db *db, struct error *err);
/* Always leaves the connection usable or closed. */
void db_rollback(struct db *db);
bool db_in_transaction(const struct db *db);
/* The connection as it is, for LISTEN and pipelines; may be NULL when not connected. */
PGconn *db_connection(struct db *db);

/* Cells: text is borrowed from the result; NULL cell = "" / 0 / false. */
const char *db_text(const PGresult *rows, int row, int column);
bool db_is_null(const PGresult *rows, int row, int column);
int64_t db_i64(const PGresult *rows, int row, int column);
bool db_bool(const PGresult *rows, int row, int column);
size_t db_affected(const PGresult *rows);
/* bytea parameters and cells travel as "\x<hex>" text. Caller frees. */
char *db_bytea_text(const void *data, size_t size);
MUST_CHECK int db_bytea(const PGresult *rows, int row, int column, void *out, size_t size_max,
                        size_t *out_size, struct error *err);

/* Applies what is missing of schema_files under an advisory lock. ERR_CONFLICT: the database is
 * newer than this build. */
MUST_CHECK int db_migrate(struct db *db, struct error *err);

#endif
