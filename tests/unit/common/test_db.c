/* Connections, statements, errors and migration against a private PostgreSQL. */
#include "tests/unit/common/postgres_fixture.h"

#include "common/clock.h"
#include "common/json.h"
#include "common/metric_totals.h"
#include "common/schema.h"

/* The first test: the others need what it makes. */
static void migrations_are_applied_once_by_whoever_comes_first(void **state)
{
    static const char count_sql[] = "SELECT count(*) FROM schema_version";
    struct error err = ERROR_NONE;
    auto_db *early = connect_app("hypersdk_gateway");
    auto_db *db = db_new(&owner, NULL, "unit");
    auto_pgresult *rows = NULL;

    (void)state;
    assert_fails(db_check(early, &err), err, ERR_UNAVAILABLE,
                 "waiting for the schema: the scheduler applies it");
    assert_ok(db_migrate(db, &err), err);
    assert_ok(db_migrate(db, &err), err);
    assert_ok(db_exec(db, count_sql, DB_NO_PARAMS, &rows, &err), err);
    assert_int_equal(db_i64(rows, 0, 0), schema_files_count);
    assert_ok(db_check(early, &err), err);
}

static void a_newer_schema_is_refused(void **state)
{
    static const char newer_sql[] = "INSERT INTO schema_version (version, name) VALUES (9999, 'x')";
    static const char undo_sql[] = "DELETE FROM schema_version WHERE version = 9999";
    static const char gap_sql[] = "INSERT INTO schema_version (version, name) SELECT g, 'x'"
                                  " FROM generate_series(100, 9998) g";
    static const char undo_gap_sql[] = "DELETE FROM schema_version WHERE version >= 100";
    struct error err = ERROR_NONE;
    auto_db *db = NULL;

    (void)state;
    if (dir == NULL)
        skip();
    db = db_new(&owner, NULL, "unit");
    assert_ok(db_exec(db, newer_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_fails(db_migrate(db, &err), err, ERR_CONFLICT, "install the newer version");
    assert_false(db_in_transaction(db));
    assert_ok(db_check(db, &err), err); /* reading services go on */
    assert_ok(db_exec(db, undo_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_ok(db_exec(db, gap_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_ok(db_exec(db, undo_gap_sql, DB_NO_PARAMS, NULL, &err), err);
}

static void parameters_and_cells_go_through(void **state)
{
    static const char sql[] = "SELECT $1::text, $2::bigint, $3::boolean, $4::text, $5::bytea";
    static const uint8_t bytes[] = {0, 1, 0xff};
    struct error err = ERROR_NONE;
    auto_db *db = connect_app(NULL);
    auto_pgresult *rows = NULL;
    autofree char *bytea = db_bytea_text(bytes, sizeof bytes);
    uint8_t back[3];
    size_t size = 0;

    (void)state;
    for (int i = 0; i < 2; i++) { /* the second time it is prepared already */
        auto_pgresult *again = NULL;
        assert_ok(
            db_exec(db, sql, DB_PARAMS("it's \xc3\xa4", "-5", "true", NULL, bytea), &again, &err),
            err);
        if (i == 1)
            rows = STEAL(again);
    }
    assert_string_equal(db_text(rows, 0, 0), "it's \xc3\xa4");
    assert_int_equal(db_i64(rows, 0, 1), -5);
    assert_true(db_bool(rows, 0, 2));
    assert_true(db_is_null(rows, 0, 3));
    assert_string_equal(db_text(rows, 0, 3), "");
    assert_ok(db_bytea(rows, 0, 4, back, sizeof back, &size, &err), err);
    assert_int_equal(size, 3);
    assert_memory_equal(back, bytes, 3);
    assert_fails(db_bytea(rows, 0, 4, back, 2, &size, &err), err, ERR_LIMIT, "3 bytes is over 2");
    assert_fails(db_bytea(rows, 0, 0, back, 3, &size, &err), err, ERR_INTERNAL, "no bytea");
}

static void failures_have_the_code_that_says_what_to_do(void **state)
{
    static const char insert_sql[] = "INSERT INTO settings (key, value) VALUES ('unit', '1')";
    static const char foreign_sql[] = "INSERT INTO job_dependencies (job_id, on_job, required)"
                                      " VALUES ('none', 'x', 'final')";
    static const char check_sql[] = "INSERT INTO providers (name, kind) VALUES ('NOT OK', 'x')";
    static const char denied_sql[] = "SELECT * FROM leader FOR UPDATE";
    static const char slow_sql[] = "SELECT set_config('statement_timeout', '50', false)";
    static const char sleep_sql[] = "SELECT pg_sleep(5)";
    static const char wrong_sql[] = "SELEC 1";
    struct error err = ERROR_NONE;
    auto_db *db = connect_app("hypersdk_gateway");

    (void)state;
    assert_ok(db_exec(db, insert_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_fails(db_exec(db, insert_sql, DB_NO_PARAMS, NULL, &err), err, ERR_CONFLICT, "duplicate");
    assert_fails(db_exec(db, foreign_sql, DB_NO_PARAMS, NULL, &err), err, ERR_CONFLICT, "foreign");
    assert_fails(db_exec(db, check_sql, DB_NO_PARAMS, NULL, &err), err, ERR_CONFLICT, "check");
    assert_fails(db_exec(db, denied_sql, DB_NO_PARAMS, NULL, &err), err, ERR_DENIED, "denied");
    assert_fails(db_exec(db, wrong_sql, DB_NO_PARAMS, NULL, &err), err, ERR_INTERNAL, "syntax");
    assert_ok(db_exec(db, slow_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_fails(db_exec(db, sleep_sql, DB_NO_PARAMS, NULL, &err), err, ERR_TIMEOUT, "statement");
    assert_null(strchr(err.message, '\n'));
}

static void a_rolled_back_transaction_leaves_nothing(void **state)
{
    static const char insert_sql[] = "INSERT INTO settings (key, value) VALUES ($1, '1')";
    static const char count_sql[] = "SELECT count(*) FROM settings WHERE key LIKE 'tx-%'";
    static const char wrong_sql[] = "SELECT 1/0";
    struct error err = ERROR_NONE;
    auto_db *db = connect_app("hypersdk_gateway");
    auto_pgresult *rows = NULL;

    (void)state;
    assert_ok(db_begin(db, &err), err);
    assert_true(db_in_transaction(db));
    assert_ok(db_exec(db, insert_sql, DB_PARAMS("tx-1"), NULL, &err), err);
    db_rollback(db);
    assert_false(db_in_transaction(db));
    db_rollback(db); /* without a transaction: nothing */
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_exec(db, insert_sql, DB_PARAMS("tx-2"), NULL, &err), err);
    assert_fails(db_exec(db, wrong_sql, DB_NO_PARAMS, NULL, &err), err, ERR_INTERNAL, "division");
    assert_fails(db_commit(db, &err), err, ERR_INTERNAL, "ROLLBACK"); /* it was aborted */
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_exec(db, insert_sql, DB_PARAMS("tx-3"), NULL, &err), err);
    assert_ok(db_commit(db, &err), err);
    assert_ok(db_exec(db, count_sql, DB_NO_PARAMS, &rows, &err), err);
    assert_int_equal(db_i64(rows, 0, 0), 1);
}

static int64_t open_transactions(struct db *db)
{
    static const char sql[] =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'later'"
        " AND xact_start IS NOT NULL";
    struct error err = ERROR_NONE;
    auto_pgresult *rows = NULL;

    assert_ok(db_exec(db, sql, DB_NO_PARAMS, &rows, &err), err);
    return db_i64(rows, 0, 0);
}

static int64_t settings_like(struct db *db, const char *pattern)
{
    static const char sql[] = "SELECT count(*) FROM settings WHERE key LIKE $1";
    struct error err = ERROR_NONE;
    auto_pgresult *rows = NULL;

    assert_ok(db_exec(db, sql, DB_PARAMS(pattern), &rows, &err), err);
    return db_i64(rows, 0, 0);
}

static const char insert_later[] = "INSERT INTO settings (key, value) VALUES ($1, '1')";

static void what_is_sent_later_goes_with_the_next_call(void **state)
{
    static const char which_sql[] = "SELECT $1::text";
    struct error err = ERROR_NONE;
    auto_db *db = db_new(&app, "hypersdk_gateway", "later");
    auto_db *other = connect_app(NULL);
    auto_pgresult *first = NULL;
    auto_pgresult *second = NULL;

    (void)state;
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_later(db, insert_later, DB_PARAMS("later-1"), NULL, &err), err);
    assert_ok(db_later(db, which_sql, DB_PARAMS("a"), &first, &err), err);
    assert_null(first);
    assert_int_equal(open_transactions(other), 0); /* not even BEGIN was sent */
    assert_ok(db_exec(db, which_sql, DB_PARAMS("b"), &second, &err), err);
    assert_string_equal(db_text(first, 0, 0), "a");
    assert_string_equal(db_text(second, 0, 0), "b");
    assert_int_equal(open_transactions(other), 1);
    assert_ok(db_later(db, insert_later, DB_PARAMS("later-2"), NULL, &err), err);
    assert_ok(db_commit(db, &err), err);
    assert_int_equal(settings_like(other, "later-%"), 2);
    for (int i = 0; i < 100; i++) { /* more than one round trip takes */
        assert_true(i > 0 || db_begin_by_index(db, &err) == 0);
        assert_ok(db_later(db, which_sql, DB_PARAMS("c"), NULL, &err), err);
    }
    assert_ok(db_flush(db, &err), err);
    db_rollback(db);
    assert_ok(db_later(db, insert_later, DB_PARAMS("later-3"), NULL, &err), err); /* at once */
    assert_int_equal(settings_like(other, "later-%"), 3);
}

static void a_failure_of_what_was_sent_later_is_the_next_call_s(void **state)
{
    static const char wrong_sql[] = "SELEC 2";
    static const char new_sql[] = "SELECT 'behind the failure'";
    struct error err = ERROR_NONE;
    auto_db *db = db_new(&app, "hypersdk_gateway", "later");
    auto_pgresult *rows = NULL;

    (void)state;
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_later(db, insert_later, DB_PARAMS("fails-1"), NULL, &err), err);
    assert_ok(db_later(db, insert_later, DB_PARAMS("fails-1"), NULL, &err), err);
    assert_fails(db_exec(db, new_sql, DB_NO_PARAMS, &rows, &err), err, ERR_CONFLICT, "duplicate");
    assert_null(rows);
    db_rollback(db);
    assert_ok(db_exec(db, new_sql, DB_NO_PARAMS, &rows, &err), err); /* it was not prepared */
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_later(db, insert_later, DB_PARAMS("fails-2"), NULL, &err), err);
    assert_ok(db_later(db, wrong_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_fails(db_commit(db, &err), err, ERR_INTERNAL, "prepare");
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_later(db, insert_later, DB_PARAMS("fails-3"), NULL, &err), err);
    db_rollback(db);
    assert_int_equal(settings_like(db, "fails-%"), 0);
}

static void expect_plans(struct db *db, const char *mode, const char *scans)
{
    static const char sql[] =
        "SELECT current_setting('plan_cache_mode'), current_setting('enable_seqscan'),"
        " current_setting('max_parallel_workers_per_gather') = '0'";
    struct error err = ERROR_NONE;
    auto_pgresult *rows = NULL;

    assert_ok(db_exec(db, sql, DB_NO_PARAMS, &rows, &err), err);
    assert_string_equal(db_text(rows, 0, 0), mode);
    assert_string_equal(db_text(rows, 0, 1), scans);
    assert_int_equal(db_bool(rows, 0, 2), strcmp(scans, "off") == 0);
}

static void a_transaction_is_by_index_to_its_end_only(void **state)
{
    struct error err = ERROR_NONE;
    auto_db *db = connect_app("hypersdk_gateway");

    (void)state;
    expect_plans(db, "force_custom_plan", "on");
    assert_ok(db_begin_by_index(db, &err), err);
    expect_plans(db, "force_generic_plan", "off");
    assert_ok(db_commit(db, &err), err);
    expect_plans(db, "force_custom_plan", "on");
    assert_ok(db_begin(db, &err), err);
    expect_plans(db, "force_custom_plan", "on");
    db_rollback(db);
}

static void wait_gone(struct db *db, const char *pid)
{
    static const char sql[] = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1::integer";
    int64_t until_ms = clock_mono_ms() + 30000;

    for (;;) {
        struct error err = ERROR_NONE;
        auto_pgresult *rows = NULL;
        assert_ok(db_exec(db, sql, DB_PARAMS(pid), &rows, &err), err);
        if (db_i64(rows, 0, 0) == 0)
            return;
        assert_true(clock_mono_ms() < until_ms);
        clock_sleep_ms(10);
    }
}

static void who_waits_too_long_for_a_lock_is_told(void **state)
{
    static const char lock_sql[] = "SELECT pg_advisory_xact_lock(4711)";
    struct error err = ERROR_NONE;
    auto_db *holder = connect_app(NULL);
    auto_db *waiter = connect_app(NULL);

    (void)state;
    db_set_lock_wait(waiter, 50);
    assert_ok(db_begin(holder, &err), err);
    assert_ok(db_exec(holder, lock_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_fails(db_exec(waiter, lock_sql, DB_NO_PARAMS, NULL, &err), err, ERR_UNAVAILABLE,
                 "lock timeout");
    error_clear(&err);
    db_rollback(holder);
    assert_ok(db_exec(waiter, lock_sql, DB_NO_PARAMS, NULL, &err), err);
}

static void a_cut_connection_is_made_again_by_the_next_call(void **state)
{
    static const char pid_sql[] = "SELECT pg_backend_pid()";
    static const char kill_sql[] = "SELECT pg_terminate_backend($1::integer)";
    static const char one_sql[] = "SELECT 1";
    struct error err = ERROR_NONE;
    auto_db *db = connect_app(NULL);
    auto_db *killer = connect_app(NULL);
    auto_pgresult *rows = NULL;
    auto_pgresult *again = NULL;
    autofree char *pid = NULL;

    (void)state;
    assert_ok(db_exec(db, pid_sql, DB_NO_PARAMS, &rows, &err), err);
    pid = xstrdup(db_text(rows, 0, 0));
    assert_ok(db_exec(killer, kill_sql, DB_PARAMS(pid), NULL, &err), err);
    wait_gone(killer, pid);
    assert_ok(db_exec(db, one_sql, DB_NO_PARAMS, NULL, &err), err); /* nothing ran when it ended */
    /* inside a transaction everything up to the rollback fails */
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_exec(db, pid_sql, DB_NO_PARAMS, &again, &err), err);
    free(pid);
    pid = xstrdup(db_text(again, 0, 0));
    assert_ok(db_exec(killer, kill_sql, DB_PARAMS(pid), NULL, &err), err);
    assert_fails(db_exec(db, one_sql, DB_NO_PARAMS, NULL, &err), err, ERR_UNAVAILABLE, "database");
    assert_fails(db_exec(db, one_sql, DB_NO_PARAMS, NULL, &err), err, ERR_UNAVAILABLE,
                 "inside a transaction");
    assert_fails(db_commit(db, &err), err, ERR_UNAVAILABLE, "connection lost");
    db_rollback(db);
    assert_ok(db_exec(db, one_sql, DB_NO_PARAMS, NULL, &err), err);
}

static void unreachable_servers_and_wrong_accounts_are_told(void **state)
{
    struct error err = ERROR_NONE;
    char nowhere[] = "host=127.0.0.1 port=1 dbname=x";
    char wrong[] = "wrong";
    struct database_config config = app;
    auto_db *away = NULL;
    auto_db *stranger = NULL;
    auto_db *no_role = NULL;

    (void)state;
    if (dir == NULL)
        skip();
    config.url = nowhere;
    away = db_new(&config, NULL, "unit");
    assert_fails(db_check(away, &err), err, ERR_UNAVAILABLE, "cannot be reached");
    config = app;
    config.password = wrong;
    stranger = db_new(&config, NULL, "unit");
    assert_fails(db_check(stranger, &err), err, ERR_UNAVAILABLE, "password");
    assert_null(strstr(err.message, "wrong"));
    no_role = db_new(&app, "hypersdk_none", "unit");
    assert_fails(db_check(no_role, &err), err, ERR_UNAVAILABLE, "hypersdk_none");
}

static void each_connection_takes_its_role(void **state)
{
    static const char who_sql[] = "SELECT current_user, current_setting('application_name'),"
                                  " current_setting('TimeZone')";
    struct error err = ERROR_NONE;
    auto_db *db = connect_app("hypersdk_notifier");
    auto_pgresult *rows = NULL;

    (void)state;
    assert_ok(db_exec(db, who_sql, DB_NO_PARAMS, &rows, &err), err);
    assert_string_equal(db_text(rows, 0, 0), "hypersdk_notifier");
    assert_string_equal(db_text(rows, 0, 1), "unit");
    assert_string_equal(db_text(rows, 0, 2), "UTC");
}

static double total(struct db *db, const char *name, const char *labels)
{
    static const char sql[] = "SELECT coalesce(sum(value), -1) FROM metric_totals"
                              " WHERE name = $1 AND labels = $2::jsonb";
    struct error err = ERROR_NONE;
    auto_pgresult *rows = NULL;

    assert_ok(db_exec(db, sql, DB_PARAMS(name, labels), &rows, &err), err);
    return strtod(db_text(rows, 0, 0), NULL);
}

static void metric_totals_add_up_over_batches(void **state)
{
    struct error err = ERROR_NONE;
    auto_db *db = connect_app("hypersdk_scheduler");
    auto_json *labels = json_pack("{s:s,s:s}", "status", "completed", "provider", "v");
    auto_json *types = json_pack("{s:s}", "vm_type", "linux");
    static const double seconds[] = {0.5, 1, 1.5, 59, 1e9};
    auto_metric_batch empty;

    (void)state;
    metric_batch_init(&empty);
    assert_ok(metric_batch_store(db, &empty, &err), err);
    for (int i = 0; i < 2; i++) {
        auto_metric_batch batch;
        metric_batch_init(&batch);
        metric_batch_add(&batch, "unit_jobs_total", labels, 1);
        metric_batch_add(&batch, "unit_jobs_total", labels, 2); /* twice in one batch */
        assert_int_equal(json_array_size(batch.items), 1);
        metric_batch_add(&batch, "unit_bytes_total", NULL, 1e15);
        for (size_t j = 0; j < ARRAY_LEN(seconds); j++)
            metric_batch_observe(&batch, "unit_seconds", types, seconds[j]);
        assert_ok(metric_batch_store(db, &batch, &err), err);
    }
    assert_true(total(db, "unit_jobs_total", "{\"provider\":\"v\",\"status\":\"completed\"}") == 6);
    assert_true(total(db, "unit_bytes_total", "{}") == 2e15);
    assert_true(total(db, "unit_seconds_bucket", "{\"vm_type\":\"linux\",\"le\":\"1\"}") == 4);
    assert_true(total(db, "unit_seconds_bucket", "{\"vm_type\":\"linux\",\"le\":\"5\"}") == 2);
    assert_true(total(db, "unit_seconds_bucket", "{\"vm_type\":\"linux\",\"le\":\"60\"}") == 2);
    assert_true(total(db, "unit_seconds_bucket", "{\"vm_type\":\"linux\",\"le\":\"+Inf\"}") == 2);
    assert_true(total(db, "unit_seconds_bucket", "{\"vm_type\":\"linux\",\"le\":\"10\"}") == -1);
    assert_true(total(db, "unit_seconds_count", "{\"vm_type\":\"linux\"}") == 10);
    assert_true(total(db, "unit_seconds_sum", "{\"vm_type\":\"linux\"}") == 2 * (1e9 + 62));
}

/* The last test: it takes the server away. */
static void a_stopped_server_is_unavailable_and_comes_back(void **state)
{
    static const char one_sql[] = "SELECT 1";
    struct error err = ERROR_NONE;
    auto_db *db = connect_app("hypersdk_gateway");

    (void)state;
    assert_ok(db_exec(db, one_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_true(store_script("postgres.sh", "stop", dir));
    assert_fails(db_exec(db, one_sql, DB_NO_PARAMS, NULL, &err), err, ERR_UNAVAILABLE, "database");
    assert_fails(db_begin(db, &err), err, ERR_UNAVAILABLE, "cannot be reached");
    assert_fails(db_check(db, &err), err, ERR_UNAVAILABLE, "cannot be reached");
    assert_true(store_script("postgres.sh", "start", dir));
    assert_ok(db_check(db, &err), err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(migrations_are_applied_once_by_whoever_comes_first),
        cmocka_unit_test(a_newer_schema_is_refused),
        cmocka_unit_test(parameters_and_cells_go_through),
        cmocka_unit_test(failures_have_the_code_that_says_what_to_do),
        cmocka_unit_test(a_rolled_back_transaction_leaves_nothing),
        cmocka_unit_test(what_is_sent_later_goes_with_the_next_call),
        cmocka_unit_test(a_failure_of_what_was_sent_later_is_the_next_call_s),
        cmocka_unit_test(a_transaction_is_by_index_to_its_end_only),
        cmocka_unit_test(who_waits_too_long_for_a_lock_is_told),
        cmocka_unit_test(a_cut_connection_is_made_again_by_the_next_call),
        cmocka_unit_test(unreachable_servers_and_wrong_accounts_are_told),
        cmocka_unit_test(each_connection_takes_its_role),
        cmocka_unit_test(metric_totals_add_up_over_batches),
        cmocka_unit_test(a_stopped_server_is_unavailable_and_comes_back),
    };
    return cmocka_run_group_tests(tests, start_postgres, stop_postgres);
}
