/* See bootstrap.h. */
#include "bootstrap.h"

#include <stdio.h>
#include <string.h>

#include "auth.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/paths.h"
#include "config_sync.h"
#include "route.h"

#define MAINTENANCE_MS       60000
#define WAIT_FOR_DB_MS       500
#define RELOAD_LOOK_MS       500
#define ADMIN_PASSWORD_BYTES 12 /* 96 bits, as 24 hex digits to copy by hand */

/* ---- the first administrator ---- */

/* true in *out_created: this call made it. Two gateways may start at once: the lock lets one look
 * after the other. */
static int insert_admin(struct db *db, const char *hash, bool *out_created, struct error *err)
{
    static const char lock[] = "SELECT pg_advisory_xact_lock(7233746108372)";
    static const char insert[] =
        "INSERT INTO users (id, username, password, roles)"
        " SELECT $1, 'admin', $2, ARRAY['admin'] WHERE NOT EXISTS (SELECT 1 FROM users)";
    char id[ID_SIZE];
    auto_pgresult *result = NULL;

    id_new("usr", id);
    if (db_begin(db, err) < 0)
        return -1;
    if (db_exec(db, lock, DB_NO_PARAMS, NULL, err) < 0 ||
        db_exec(db, insert, DB_PARAMS(id, hash), &result, err) < 0) {
        db_rollback(db);
        return -1;
    }
    if (db_commit(db, err) < 0)
        return -1;
    *out_created = db_affected(result) == 1;
    return 0;
}

static int ensure_admin(struct db *db, struct error *err)
{
    static const char any[] = "SELECT 1 FROM users LIMIT 1";
    uint8_t random[ADMIN_PASSWORD_BYTES];
    char password[2 * ADMIN_PASSWORD_BYTES + 1];
    char hash[crypto_pwhash_STRBYTES];
    auto_pgresult *rows = NULL;
    bool created = false;

    if (db_exec(db, any, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    if (PQntuples(rows) > 0)
        return 0;
    random_bytes(random, sizeof random);
    hex_encode(random, sizeof random, password);
    if (password_hash(password, hash, err) < 0 || insert_admin(db, hash, &created, err) < 0)
        return -1;
    if (created) {
        /* on stdout, once: the log goes to places that many can read */
        (void)printf("first start: user 'admin' was made with the password %s\n"
                     "(shown only this once; change it: PUT /api/v1/users/{id})\n",
                     password);
        (void)fflush(stdout);
        LOG(WARN, "admin_created", F_STR("username", "admin"));
    }
    sodium_memzero(password, sizeof password);
    return 0;
}

/* ---- the background thread ---- */

static int tidy_up(struct db *db, struct error *err)
{
    static const char sessions[] = "DELETE FROM sessions WHERE expires_at < now()";

    return db_exec(db, sessions, DB_NO_PARAMS, NULL, err);
}

/* Providers and webhooks of the file as it is now. A file that is wrong changes nothing. */
static int sync_file(struct gateway *gateway, struct db *db, struct error *err)
{
    auto_config_file *file = NULL;
    auto_strbuf problems;

    strbuf_init(&problems, CONFIG_PROBLEMS_BYTES_MAX);
    if (config_file_load(service_config_path(gateway->service), &file, &problems, err) < 0)
        return -1;
    config_sync_check(file, &problems);
    if (problems.length > 0)
        return error_set(err, ERR_INVALID, "configuration: %.400s", problems.data);
    if (config_sync(file, gateway->master, db, err) < 0)
        return -1;
    return template_files_sync(&gateway->templates, db, err);
}

static int first_time(struct gateway *gateway, struct db *db, struct error *err)
{
    if (db_check(db, err) < 0 || sync_file(gateway, db, err) < 0)
        return -1;
    return gateway->daemon.dev_mode ? 0 : ensure_admin(db, err);
}

/* SIGHUP: what cannot be stored now is tried again, what is wrong waits for the next SIGHUP. */
static void reload(struct gateway *gateway, struct db *db, bool *again)
{
    struct error err = ERROR_NONE;

    *again = false;
    if (sync_file(gateway, db, &err) == 0) {
        LOG(INFO, "config_reloaded");
        return;
    }
    *again = error_is_retryable(&err);
    LOG(ERROR, "config_reload_failed", F_ERR(&err));
}

/* The upkeep's wait, that a SIGHUP ends. */
static void wait_and_reload(struct gateway *gateway, struct db *db, int64_t wait_ms)
{
    int64_t end_ms = clock_mono_ms() + wait_ms;
    bool again = false;

    while (clock_mono_ms() < end_ms && !service_wait(gateway->service, RELOAD_LOOK_MS)) {
        if (service_reload_requested(gateway->service) || again)
            reload(gateway, db, &again);
    }
}

static void *on_bootstrap_thread(void *arg)
{
    struct gateway *gateway = arg;
    struct db *db = gateway_db_new(gateway, "upkeep");
    struct log_throttle throttle = {0};
    bool done = false;

    while (!service_stopping(gateway->service)) {
        struct error err = ERROR_NONE;
        uint64_t suppressed = 0;
        bool failed = (done ? tidy_up(db, &err) : first_time(gateway, db, &err)) < 0;

        if (!failed) {
            done = true;
        } else if (log_throttle_pass(&throttle, err.message, &suppressed)) {
            LOG(WARN, "waiting_for_database", F_ERR(&err), F_U64("suppressed", suppressed));
        }
        wait_and_reload(gateway, db, failed ? WAIT_FOR_DB_MS : MAINTENANCE_MS);
    }
    db_free(db);
    return NULL;
}

int bootstrap_start(struct gateway *gateway, struct error *err)
{
    pthread_t thread;
    int rv = pthread_create(&thread, NULL, on_bootstrap_thread, gateway);

    if (rv != 0)
        return error_set_errno(err, rv, "upkeep thread cannot be started");
    (void)pthread_detach(thread);
    return 0;
}

/* ---- one-time commands ---- */

int export_keys(const struct gateway *gateway, const char *dir, struct error *err)
{
    static const char *const audiences[] = {
        "provider:vsphere",
        "provider:aws",
        "provider:azure",
        "provider:gcp",
        "provider:hyperv",
        "provider:proxmox",
        "provider:openstack",
        "provider:oci",
        "provider:alibaba",
        "notify",
        "bridge",
        "upload",
        SEAL_EVIDENCE,
        SEAL_EXPORTS,
    };

    if (gateway->master == NULL) {
        return error_set(err, ERR_INVALID,
                         "--export-keys wants secrets.master_key or master_key_file");
    }
    if (path_make_dirs(dir, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(audiences); i++) {
        auto_seal_key *key = seal_master_derive(gateway->master, audiences[i]);
        if (seal_key_save(key, dir, err) < 0)
            return error_wrap(err, "key of '%s'", audiences[i]);
    }
    LOG(INFO, "keys_exported", F_STR("dir", dir), F_U64("count", ARRAY_LEN(audiences)));
    return 0;
}

static json_t *flag_names(unsigned int flags)
{
    static const struct {
        unsigned int flag;
        const char *name;
    } names[] = {
        {ROUTE_OPEN, "open"},         {ROUTE_SELF, "self"},           {ROUTE_SLOW, "slow"},
        {ROUTE_SHORT, "short"},       {ROUTE_STREAM, "stream"},       {ROUTE_NO_DB, "no_db"},
        {ROUTE_PASSWORD, "password"}, {ROUTE_LATE_AUTH, "late_auth"},
    };
    json_t *list = json_array();

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if ((flags & names[i].flag) != 0)
            (void)json_array_append_new(list, json_string(names[i].name));
    }
    return list;
}

void print_routes(void)
{
    auto_json *list = json_array();
    autofree char *text = NULL;

    for (size_t i = 0; i < routes_count; i++) {
        const struct route *r = &routes[i];
        (void)json_array_append_new(list, json_pack("{s:s, s:s, s:s?, s:s?, s:s, s:o}", "method",
                                                    r->method, "path", r->path, "permission",
                                                    r->permission, "action", r->action, "operation",
                                                    r->operation, "flags", flag_names(r->flags)));
    }
    text = json_dumps(list, JSON_INDENT(1));
    (void)puts(text);
}
