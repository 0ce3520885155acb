/* See auth.h. */
#include "auth.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "headers.h"

const char *const permissions_known[] = {
    "job.create",
    "job.view",
    "job.cancel",
    "job.cancel.own",
    "job.delete",
    "vm.list",
    "vm.export",
    "settings.manage",
    "vm.operate",
    "convert.run",
    "schedule.view",
    "schedule.manage",
    "libvirt.view",
    "libvirt.manage",
    "status.view",
    "webhook.manage",
    "user.manage",
    "audit.view",
    NULL,
};

bool permission_is_known(const char *permission)
{
    for (size_t i = 0; permissions_known[i] != NULL; i++) {
        if (strcmp(permissions_known[i], permission) == 0)
            return true;
    }
    return false;
}

/* ---- tokens ---- */

void token_hash(const char *token, uint8_t out[TOKEN_HASH_BYTES])
{
    (void)crypto_hash_sha256(out, (const uint8_t *)token, strlen(token));
}

char *token_hash_text(const char *token)
{
    uint8_t hash[TOKEN_HASH_BYTES];

    token_hash(token, hash);
    return db_bytea_text(hash, sizeof hash);
}

char *token_new(const char *prefix, char out[TOKEN_TEXT_SIZE])
{
    uint8_t random[32];

    random_bytes(random, sizeof random);
    memcpy(out, prefix, 2);
    hex_encode(random, sizeof random, out + 2);
    sodium_memzero(random, sizeof random);
    return token_hash_text(out);
}

/* ---- passwords ---- */

int password_hash(const char *password, char out[crypto_pwhash_STRBYTES], struct error *err)
{
    if (crypto_pwhash_str(out, password, strlen(password), crypto_pwhash_OPSLIMIT_INTERACTIVE,
                          crypto_pwhash_MEMLIMIT_INTERACTIVE) != 0)
        return error_set(err, ERR_UNAVAILABLE, "not enough memory to hash a password");
    return 0;
}

bool password_verify(const char *hash, const char *password)
{
    /* of a random password nobody knows, with the parameters of password_hash */
    static const char nobody[] = "$argon2id$v=19$m=65536,t=2,p=1$spYGKEuthqPQk29UKiLNyw$"
                                 "zK3MzpHPbJUIfKoi5C5NAtcRSZ/BI8WHcnUbFflHkpI";
    bool same =
        crypto_pwhash_str_verify(hash == NULL ? nobody : hash, password, strlen(password)) == 0;

    return hash != NULL && same;
}

/* ---- roles ---- */

static int table_role(struct db *db, const char *role, json_t **out, struct error *err)
{
    static const char sql[] = "SELECT to_json(permissions) FROM roles WHERE name = $1";
    auto_pgresult *rows = NULL;

    if (db_exec(db, sql, DB_PARAMS(role), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no role '%.64s'", role);
    return json_parse(db_text(rows, 0, 0), strlen(db_text(rows, 0, 0)), MIB, out, err);
}

int role_permissions(const struct gateway *gateway, struct db *db, const char *role, json_t **out,
                     struct error *err)
{
    json_t *configured = json_object_get(gateway->roles, role);

    if (configured != NULL) {
        *out = json_incref(configured);
        return 0;
    }
    return table_role(db, role, out, err);
}

static void add_text(char ***list, size_t *count, const char *text)
{
    for (size_t i = 0; i < *count; i++) {
        if (strcmp((*list)[i], text) == 0)
            return;
    }
    *list = xreallocarray(*list, *count + 1, sizeof **list);
    (*list)[(*count)++] = xstrdup(text);
}

static int add_roles(const struct gateway *gateway, struct db *db, const json_t *roles,
                     struct identity *identity, struct error *err)
{
    size_t i;
    json_t *role;

    json_array_foreach(roles, i, role)
    {
        auto_json *permissions = NULL;
        size_t k;
        json_t *permission;
        struct error why = ERROR_NONE;

        add_text(&identity->roles, &identity->role_count, json_string_value(role));
        if (role_permissions(gateway, db, json_string_value(role), &permissions, &why) < 0) {
            if (why.code == ERR_NOT_FOUND)
                continue; /* a role that is gone grants nothing */
            *err = why;
            return -1;
        }
        json_array_foreach(permissions, k, permission)
        {
            add_text(&identity->permissions, &identity->permission_count,
                     json_string_value(permission));
        }
    }
    return 0;
}

void identity_release(struct identity *identity)
{
    for (size_t i = 0; i < identity->permission_count; i++)
        free(identity->permissions[i]);
    free(identity->permissions);
    for (size_t i = 0; i < identity->role_count; i++)
        free(identity->roles[i]);
    free(identity->roles);
    *identity = (struct identity){0};
}

void auth_dev(struct identity *out)
{
    *out = (struct identity){.dev = true};
    (void)snprintf(out->username, sizeof out->username, "dev");
    add_text(&out->roles, &out->role_count, "admin");
}

/* ---- who ---- */

/* columns: user id, name, session id, roles */
static int find_session(struct db *db, const char *hash, PGresult **out, struct error *err)
{
    static const char sql[] =
        "SELECT u.id, u.username, s.id, to_json(u.roles) FROM sessions s JOIN users u"
        " ON u.id = s.user_id"
        " WHERE s.token_hash = $1::bytea AND s.expires_at > now() AND u.status = 'active'";

    return db_exec(db, sql, DB_PARAMS(hash), out, err);
}

/* A key never has a role that its user has lost. */
static int find_key(struct db *db, const char *hash, PGresult **out, struct error *err)
{
    static const char sql[] =
        "SELECT u.id, u.username, '', to_json(ARRAY(SELECT unnest(k.roles) INTERSECT"
        " SELECT unnest(u.roles))), k.id FROM api_keys k JOIN users u ON u.id = k.user_id"
        " WHERE k.key_hash = $1::bytea AND (k.expires_at IS NULL OR k.expires_at > now())"
        " AND u.status = 'active'";
    static const char used[] =
        "UPDATE api_keys SET last_used = now() WHERE id = $1"
        " AND (last_used IS NULL OR last_used < now() - interval '1 minute')";

    if (db_exec(db, sql, DB_PARAMS(hash), out, err) < 0)
        return -1;
    if (PQntuples(*out) == 1 && db_exec(db, used, DB_PARAMS(db_text(*out, 0, 4)), NULL, err) < 0)
        return -1;
    return 0;
}

int auth_token_again(const struct gateway *gateway, struct db *db, bool session,
                     const uint8_t hash[TOKEN_HASH_BYTES], struct identity *out, struct error *err)
{
    autofree char *text = db_bytea_text(hash, TOKEN_HASH_BYTES);
    auto_pgresult *rows = NULL;
    auto_json *roles = NULL;

    if ((session ? find_session : find_key)(db, text, &rows, err) < 0)
        return -1;
    if (PQntuples(rows) != 1) {
        return error_set(err, ERR_DENIED, "the %s is not valid or has expired",
                         session ? "session" : "API key");
    }
    if (json_parse(db_text(rows, 0, 3), strlen(db_text(rows, 0, 3)), MIB, &roles, err) < 0)
        return -1;
    *out = (struct identity){0};
    (void)snprintf(out->user_id, sizeof out->user_id, "%s", db_text(rows, 0, 0));
    (void)snprintf(out->username, sizeof out->username, "%s", db_text(rows, 0, 1));
    (void)snprintf(out->session_id, sizeof out->session_id, "%s", db_text(rows, 0, 2));
    if (add_roles(gateway, db, roles, out, err) < 0) {
        identity_release(out);
        return -1;
    }
    return 0;
}

int auth_token(const struct gateway *gateway, struct db *db, const char *token,
               struct identity *out, struct error *err)
{
    bool session = strncmp(token, SESSION_PREFIX, 2) == 0;
    uint8_t hash[TOKEN_HASH_BYTES];

    if (!session && strncmp(token, KEY_PREFIX, 2) != 0)
        return error_set(err, ERR_DENIED, "this is neither a session token nor an API key");
    token_hash(token, hash);
    return auth_token_again(gateway, db, session, hash, out, err);
}

const char *auth_credential(const struct call *call, char cookie[TOKEN_BYTES_MAX])
{
    const char *token = header_bearer(call_header(call, "Authorization"));

    if (token == NULL)
        token = call_header(call, "X-API-Key");
    /* cookies go along with requests that other pages start: only for streams, which also check
     * the Origin, and which change nothing */
    if (token == NULL && (call->route->flags & ROUTE_STREAM) != 0 &&
        header_cookie(call_header(call, "Cookie"), SESSION_COOKIE, cookie))
        token = cookie;
    return token;
}

int auth_identify(struct call *call, struct db *db, struct error *err)
{
    char cookie[TOKEN_BYTES_MAX];
    const char *token;

    if (call->gateway->daemon.dev_mode) {
        auth_dev(&call->identity);
        return 0;
    }
    token = auth_credential(call, cookie);
    if (token == NULL) {
        if (call_header(call, "Authorization") != NULL)
            return error_set(err, ERR_DENIED, "Authorization must be 'Bearer <token>'");
        return 0;
    }
    if (strlen(token) >= TOKEN_BYTES_MAX)
        return error_set(err, ERR_DENIED, "this is neither a session token nor an API key");
    return auth_token(call->gateway, db, token, &call->identity, err);
}
