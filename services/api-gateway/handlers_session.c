/* Login, logout, sessions and API keys (rest-api.md sections 2.2 and 9). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "auth.h"
#include "common/clock.h"
#include "common/json.h"
#include "handlers.h"
#include "identity_store.h"
#include "limiter.h"

#define ADDRESS_ATTEMPTS 10 /* times login_attempts_per_min: many users behind one address */
#define API_KEYS_MAX     50 /* per user */

/* ---- login ---- */

static pthread_once_t limiters_once = PTHREAD_ONCE_INIT;
static struct limiter *by_user;
static struct limiter *by_address;
static uint32_t attempts_per_min;

static void make_limiters(void)
{
    by_user = limiter_new(attempts_per_min);
    by_address = limiter_new(attempts_per_min * ADDRESS_ATTEMPTS);
}

/* Every try counts, also a good one: a try that waits for its result would let others through. */
static int check_attempts(struct call *call, const char *username, struct error *err)
{
    char key[LIMITER_KEY_MAX];
    char seconds[16];
    int64_t now_ms = clock_mono_ms();
    uint32_t wait_s;

    attempts_per_min = call->gateway->security.login_attempts_per_min;
    (void)pthread_once(&limiters_once, make_limiters);
    (void)snprintf(key, sizeof key, "%s %s", call->ip, username);
    wait_s = limiter_take(by_address, call->ip, now_ms);
    if (wait_s == 0)
        wait_s = limiter_take(by_user, key, now_ms);
    if (wait_s == 0)
        return 0;
    (void)snprintf(seconds, sizeof seconds, "%u", wait_s);
    call_set_header(call, "Retry-After", seconds);
    return call_fail(call, 429, NULL, err, ERR_LIMIT, "too many logins; wait %u s", wait_s);
}

/* *out: row of the user (id, password, roles) when name and password fit. */
static int check_password(struct call *call, const char *username, const char *password,
                          PGresult **out, struct error *err)
{
    static const char sql[] = "SELECT id, password, to_json(roles) FROM users"
                              " WHERE username = $1 AND status = 'active'";
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, sql, DB_PARAMS(username), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 1) /* else it may be a password, typed into the wrong field */
        call_audit(call, "username", username);
    if (!password_verify(PQntuples(rows) == 1 ? db_text(rows, 0, 1) : NULL, password))
        return call_fail(call, 401, NULL, err, ERR_DENIED, "wrong username or password");
    *out = STEAL(rows);
    return 0;
}

static int store_session(struct call *call, const char *user_id, const char *hash,
                         const char *expires, struct error *err)
{
    static const char insert[] = "INSERT INTO sessions (id, user_id, token_hash, ip, expires_at)"
                                 " VALUES ($1, $2, $3::bytea, $4, $5::timestamptz)";
    static const char touch[] = "UPDATE users SET last_login = now() WHERE id = $1";
    char id[ID_SIZE];

    id_new("ses", id);
    if (db_begin(call->db, err) < 0)
        return -1;
    if (db_exec(call->db, insert, DB_PARAMS(id, user_id, hash, call->ip, expires), NULL, err) < 0 ||
        db_exec(call->db, touch, DB_PARAMS(user_id), NULL, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    call_resource(call, "session", id);
    return db_commit(call->db, err);
}

/* For WebSocket and EventSource, which cannot send headers from a browser. */
static void set_cookie(struct call *call, const char *token, int64_t seconds)
{
    autofree char *cookie =
        xasprintf("%s=%s; Path=/; HttpOnly; SameSite=Strict; Max-Age=%" PRId64 "%s", SESSION_COOKIE,
                  token, seconds, call->transport->secure ? "; Secure" : "");

    call_set_header(call, "Set-Cookie", cookie);
}

static int answer_login(struct call *call, const char *username, const PGresult *user,
                        struct error *err)
{
    int64_t ttl_ms = call->gateway->security.session_ttl_ms;
    char token[TOKEN_TEXT_SIZE];
    char expires[CLOCK_RFC3339_SIZE];
    autofree char *hash = token_new(SESSION_PREFIX, token);
    auto_json *roles = NULL;

    clock_rfc3339(clock_wall_ms() + ttl_ms, expires);
    if (json_parse(db_text(user, 0, 2), strlen(db_text(user, 0, 2)), MIB, &roles, err) < 0 ||
        store_session(call, db_text(user, 0, 0), hash, expires, err) < 0)
        return -1;
    set_cookie(call, token, ttl_ms / 1000);
    call_answer_json(call, 200,
                     json_pack("{s:s, s:s, s:O, s:s}", "token", token, "username", username,
                               "roles", roles, "expires_at", expires));
    sodium_memzero(token, sizeof token);
    return 0;
}

int handle_login(struct call *call, struct error *err)
{
    static const char *const keys[] = {"username", "password", NULL};
    const char *username = "";
    const char *password = "";
    auto_pgresult *user = NULL;

    if (call->gateway->daemon.dev_mode)
        return call_fail(call, 409, NULL, err, ERR_CONFLICT, "dev mode has no login");
    if (call_check_body(call, keys, err) < 0 ||
        json_get_string(call->body, "username", "", &username, err) < 0 ||
        json_get_string(call->body, "password", "", &password, err) < 0)
        return -1;
    if (username[0] == '\0' || strlen(username) > USERNAME_BYTES_MAX ||
        strlen(password) > PASSWORD_BYTES_MAX)
        return error_set(err, ERR_INVALID, "username and password are required");
    if (check_attempts(call, username, err) < 0 ||
        check_password(call, username, password, &user, err) < 0)
        return -1;
    (void)snprintf(call->identity.username, sizeof call->identity.username, "%s", username);
    return answer_login(call, username, user, err);
}

int handle_logout(struct call *call, struct error *err)
{
    static const char sql[] = "DELETE FROM sessions WHERE id = $1";

    if (call->identity.session_id[0] == '\0')
        return call_fail(call, 409, NULL, err, ERR_CONFLICT, "this call has no session to end");
    call_resource(call, "session", call->identity.session_id);
    if (db_exec(call->db, sql, DB_PARAMS(call->identity.session_id), NULL, err) < 0)
        return -1;
    call_set_header(call, "Set-Cookie",
                    SESSION_COOKIE "=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    call_answer_json(call, 200, json_pack("{s:s}", "status", "logged_out"));
    return 0;
}

/* ---- sessions ---- */

int handle_session_list(struct call *call, struct error *err)
{
    static const char sql[] =
        "SELECT coalesce(json_agg(json_build_object('id', s.id, 'username', u.username, 'ip', s.ip,"
        " 'created_at', to_char(s.created_at, '" SQL_TIME "'),"
        " 'expires_at', to_char(s.expires_at, '" SQL_TIME "')) ORDER BY s.created_at DESC), '[]')"
        " FROM (SELECT * FROM sessions WHERE expires_at > now() ORDER BY created_at DESC LIMIT "
        "1000)"
        " s JOIN users u ON u.id = s.user_id";

    return identity_answer_list(call, sql, DB_NO_PARAMS, "sessions", err);
}

int handle_session_delete(struct call *call, struct error *err)
{
    static const char sql[] = "DELETE FROM sessions WHERE id = $1";
    const char *id = call_param(call, "id");
    auto_pgresult *result = NULL;

    call_resource(call, "session", id);
    if (db_exec(call->db, sql, DB_PARAMS(id), &result, err) < 0)
        return -1;
    if (db_affected(result) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no session '%.64s'", id);
    call_answer_json(call, 200, json_pack("{s:s, s:b}", "id", id, "deleted", 1));
    return 0;
}

/* ---- API keys ---- */

int handle_key_list(struct call *call, struct error *err)
{
    static const char sql[] =
        "SELECT coalesce(json_agg(json_build_object('id', k.id, 'name', k.name, 'prefix', k.prefix,"
        " 'username', u.username, 'roles', k.roles,"
        " 'created_at', to_char(k.created_at, '" SQL_TIME "'),"
        " 'expires_at', to_char(k.expires_at, '" SQL_TIME "'),"
        " 'last_used', to_char(k.last_used, '" SQL_TIME "')) ORDER BY k.created_at DESC), '[]')"
        " FROM (SELECT * FROM api_keys WHERE $1::text IS NULL OR user_id = $1"
        " ORDER BY created_at DESC LIMIT 1000) k JOIN users u ON u.id = k.user_id";
    bool all = identity_may(&call->identity, "user.manage");

    return identity_answer_list(call, sql, DB_PARAMS(all ? NULL : call->identity.user_id),
                                "api_keys", err);
}

/* The wanted roles, each one the caller's own; default: all of his. */
static int key_roles(const struct call *call, json_t **out, struct error *err)
{
    json_t *wanted = json_object_get(call->body, "roles");
    auto_json *own = json_array();
    size_t i;
    json_t *role;

    for (size_t k = 0; k < call->identity.role_count; k++)
        (void)json_array_append_new(own, json_string(call->identity.roles[k]));
    if (wanted == NULL || json_is_null(wanted)) {
        *out = STEAL(own);
        return 0;
    }
    if (identity_check_roles(wanted, err) < 0)
        return -1;
    json_array_foreach(wanted, i, role)
    {
        size_t k = 0;
        while (k < json_array_size(own) && !json_equal(json_array_get(own, k), role))
            k++;
        if (k == json_array_size(own))
            return error_set(err, ERR_DENIED, "role '%.64s' is not yours", json_string_value(role));
    }
    *out = json_incref(wanted);
    return 0;
}

/* *out: RFC 3339 text or "" for a key without end. */
static int key_expiry(const struct call *call, char out[CLOCK_RFC3339_SIZE], struct error *err)
{
    uint64_t days = 0;

    if (json_get_u64(call->body, "expires_in_days", 1, 3650, 0, &days, err) < 0)
        return -1;
    out[0] = '\0';
    if (days > 0)
        clock_rfc3339(clock_wall_ms() + (int64_t)days * 86400000, out);
    return 0;
}

struct new_key {
    const char *id;
    const char *name;
    const char *prefix; /* shown in lists */
    const char *hash;
    const json_t *roles;
    const char *expires; /* "": never */
};

/* The limit is checked where the row is made: two calls at once may pass one check before. */
static int store_key(struct call *call, const struct new_key *key, struct error *err)
{
    static const char lock[] = "SELECT 1 FROM users WHERE id = $1 FOR UPDATE";
    static const char insert[] =
        "INSERT INTO api_keys (id, user_id, name, prefix, key_hash, roles, expires_at)"
        " SELECT $1, $2, $3, $4, $5::bytea, ARRAY(SELECT json_array_elements_text($6::json)),"
        " nullif($7, '')::timestamptz"
        " WHERE (SELECT count(*) FROM api_keys WHERE user_id = $2) < $8::integer";
    autofree char *roles_text = json_text(key->roles);
    char limit[16];
    auto_pgresult *result = NULL;
    const char *user = call->identity.user_id;

    (void)snprintf(limit, sizeof limit, "%d", API_KEYS_MAX);
    if (db_begin(call->db, err) < 0)
        return -1;
    if (db_exec(call->db, lock, DB_PARAMS(user), NULL, err) < 0 ||
        db_exec(call->db, insert,
                DB_PARAMS(key->id, user, key->name, key->prefix, key->hash, roles_text,
                          key->expires, limit),
                &result, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    if (db_affected(result) == 0) {
        db_rollback(call->db);
        return error_set(err, ERR_CONFLICT, "a user has at most %d API keys", API_KEYS_MAX);
    }
    return db_commit(call->db, err);
}

int handle_key_generate(struct call *call, struct error *err)
{
    static const char *const keys[] = {"name", "roles", "expires_in_days", NULL};
    const char *name = "";
    char expires[CLOCK_RFC3339_SIZE];
    char key[TOKEN_TEXT_SIZE];
    char prefix[KEY_SHOWN_BYTES + 1];
    char id[ID_SIZE];
    auto_json *roles = NULL;
    autofree char *hash = NULL;
    json_t *answer;

    if (call->identity.user_id[0] == '\0')
        return call_fail(call, 409, NULL, err, ERR_CONFLICT, "dev mode has no users to own a key");
    if (call_check_body(call, keys, err) < 0 ||
        json_get_string(call->body, "name", "", &name, err) < 0 ||
        key_roles(call, &roles, err) < 0 || key_expiry(call, expires, err) < 0)
        return -1;
    if (strlen(name) > IDENTITY_TEXT_MAX)
        return error_set(err, ERR_INVALID, "'name' is longer than %d bytes", IDENTITY_TEXT_MAX);
    hash = token_new(KEY_PREFIX, key);
    memcpy(prefix, key, KEY_SHOWN_BYTES);
    prefix[KEY_SHOWN_BYTES] = 0;
    id_new("key", id);
    call_resource(call, "api_key", id);
    if (store_key(call, &(struct new_key){id, name, prefix, hash, roles, expires}, err) < 0)
        return -1;
    answer = json_pack("{s:s, s:s, s:s, s:s, s:O}", "id", id, "name", name, "key", key, "prefix",
                       prefix, "roles", roles);
    (void)json_object_set_new(answer, "expires_at",
                              expires[0] == '\0' ? json_null() : json_string(expires));
    call_answer_json(call, 201, answer);
    sodium_memzero(key, sizeof key);
    return 0;
}

int handle_key_delete(struct call *call, struct error *err)
{
    static const char sql[] =
        "DELETE FROM api_keys WHERE id = $1 AND ($2::text IS NULL OR user_id = $2)";
    bool all = identity_may(&call->identity, "user.manage");
    const char *id = call_param(call, "id");
    auto_pgresult *result = NULL;

    call_resource(call, "api_key", id);
    if (db_exec(call->db, sql, DB_PARAMS(id, all ? NULL : call->identity.user_id), &result, err) <
        0)
        return -1;
    if (db_affected(result) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no API key '%.64s' of yours", id);
    call_answer_json(call, 200, json_pack("{s:s, s:b}", "id", id, "deleted", 1));
    return 0;
}
