/* Users and roles (rest-api.md sections 2.2 and 9). */
#include <stdio.h>
#include <string.h>

#include "auth.h"
#include "common/json.h"
#include "handlers.h"
#include "identity_store.h"

#define USER_JSON                                                                       \
    "json_build_object('id', id, 'username', username, 'email', email, 'roles', roles," \
    " 'status', status, 'created_at', to_char(created_at, '" SQL_TIME "'),"             \
    " 'last_login', to_char(last_login, '" SQL_TIME "'))"

int handle_user_list(struct call *call, struct error *err)
{
    static const char sql[] = "SELECT coalesce(json_agg(" USER_JSON " ORDER BY username), '[]')"
                              " FROM (SELECT * FROM users ORDER BY username LIMIT 1000) u";

    return identity_answer_list(call, sql, DB_NO_PARAMS, "users", err);
}

static int answer_user(struct call *call, unsigned int status, const char *id, struct error *err)
{
    static const char sql[] = "SELECT " USER_JSON " FROM users WHERE id = $1";
    auto_pgresult *rows = NULL;
    json_t *user = NULL;

    if (db_exec(call->db, sql, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no user '%.64s'", id);
    if (json_parse(db_text(rows, 0, 0), strlen(db_text(rows, 0, 0)), MIB, &user, err) < 0)
        return -1;
    call_answer_json(call, status, user);
    return 0;
}

int handle_user_get(struct call *call, struct error *err)
{
    const char *id = call_param(call, "id");

    call_resource(call, "user", id);
    return answer_user(call, 200, id, err);
}

/* ---- what may be written ---- */

/* Roles that exist and grant nothing that the caller does not have himself: who manages users does
 * not raise himself through another one. */
static int check_grant(struct call *call, const json_t *roles, struct error *err)
{
    size_t i;
    json_t *role;

    if (identity_check_roles(roles, err) < 0)
        return -1;
    json_array_foreach(roles, i, role)
    {
        const char *name = json_string_value(role);
        auto_json *permissions = NULL;
        size_t k;
        json_t *permission;
        struct error why = ERROR_NONE;

        if (role_permissions(call->gateway, call->db, name, &permissions, &why) < 0) {
            if (why.code == ERR_NOT_FOUND)
                return call_fail(call, 422, NULL, err, ERR_INVALID, "%s", why.message);
            *err = why;
            return -1;
        }
        json_array_foreach(permissions, k, permission)
        {
            if (!identity_may(&call->identity, json_string_value(permission))) {
                return error_set(err, ERR_DENIED, "role '%.64s' has permission '%.64s', you do not",
                                 name, json_string_value(permission));
            }
        }
    }
    return 0;
}

static int check_password_text(const char *password, struct error *err)
{
    size_t length = strlen(password);

    if (length < PASSWORD_BYTES_MIN || length > PASSWORD_BYTES_MAX) {
        return error_set(err, ERR_INVALID, "'password' must have %d to %d bytes",
                         PASSWORD_BYTES_MIN, PASSWORD_BYTES_MAX);
    }
    return 0;
}

struct user_fields {
    const char *username;
    const char *email;
    const char *password;
    const char *status;
    const json_t *roles;
    char hash[crypto_pwhash_STRBYTES];
};

/* NULL members: not given. */
static int take_fields(struct call *call, struct user_fields *out, struct error *err)
{
    static const char *const keys[] = {"username", "email", "password", "status", "roles", NULL};
    const json_t *body = call->body;

    if (call_check_body(call, keys, err) < 0 ||
        json_get_string(body, "username", NULL, &out->username, err) < 0 ||
        json_get_string(body, "email", NULL, &out->email, err) < 0 ||
        json_get_string(body, "password", NULL, &out->password, err) < 0 ||
        json_get_string(body, "status", NULL, &out->status, err) < 0)
        return -1;
    out->roles = json_object_get(body, "roles");
    if (out->username != NULL && !username_is_valid(out->username)) {
        return error_set(err, ERR_INVALID, "'username' must have 1 to %d of A-Z a-z 0-9 . _ @ -",
                         USERNAME_BYTES_MAX);
    }
    if (out->email != NULL && strlen(out->email) > IDENTITY_TEXT_MAX)
        return error_set(err, ERR_INVALID, "'email' is longer than %d bytes", IDENTITY_TEXT_MAX);
    if (out->status != NULL && strcmp(out->status, "active") != 0 &&
        strcmp(out->status, "disabled") != 0)
        return error_set(err, ERR_INVALID, "'status' must be active or disabled");
    if (out->roles != NULL && check_grant(call, out->roles, err) < 0)
        return -1;
    if (out->password != NULL && (check_password_text(out->password, err) < 0 ||
                                  password_hash(out->password, out->hash, err) < 0))
        return -1;
    return 0;
}

int handle_user_create(struct call *call, struct error *err)
{
    static const char sql[] =
        "INSERT INTO users (id, username, email, password, roles, status)"
        " VALUES ($1, $2, $3, $4, ARRAY(SELECT json_array_elements_text($5::json)), $6)";
    struct user_fields fields = {0};
    autofree char *roles = NULL;
    struct error why = ERROR_NONE;
    char id[ID_SIZE];

    if (take_fields(call, &fields, err) < 0)
        return -1;
    if (fields.username == NULL || fields.password == NULL || fields.roles == NULL)
        return error_set(err, ERR_INVALID, "username, password and roles are required");
    id_new("usr", id);
    call_resource(call, "user", id);
    call_audit(call, "username", fields.username);
    roles = json_text(fields.roles);
    call_audit(call, "roles", roles);
    if (db_exec(call->db, sql,
                DB_PARAMS(id, fields.username, fields.email == NULL ? "" : fields.email,
                          fields.hash, roles, fields.status == NULL ? "active" : fields.status),
                NULL, &why) < 0) {
        if (why.code == ERR_CONFLICT)
            return error_set(err, ERR_CONFLICT, "there is a user '%s' already", fields.username);
        *err = why;
        return -1;
    }
    return answer_user(call, 201, id, err);
}

/* ---- changes ---- */

/* Someone must be left who can manage users. Inside the transaction, after the change; the
 * advisory lock lets one change look after the other. */
static int check_admin_left(struct call *call, struct error *err)
{
    static const char sql[] =
        "SELECT 1 FROM users WHERE status = 'active' AND 'admin' = ANY (roles) LIMIT 1";
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_CONFLICT, "the last active admin must stay");
    return 0;
}

static int lock_users(struct call *call, struct error *err)
{
    static const char sql[] = "SELECT pg_advisory_xact_lock(7233746108373)";

    return db_exec(call->db, sql, DB_NO_PARAMS, NULL, err);
}

/* New password, other roles or a disabled user end what was opened before. */
static int end_sessions(struct call *call, const char *id, struct error *err)
{
    static const char sql[] = "DELETE FROM sessions WHERE user_id = $1 AND id <> $2";

    return db_exec(call->db, sql, DB_PARAMS(id, call->identity.session_id), NULL, err);
}

static int change_user(struct call *call, const char *id, const struct user_fields *fields,
                       struct error *err)
{
    static const char sql[] =
        "UPDATE users SET username = coalesce($2, username), email = coalesce($3, email),"
        " password = coalesce($4, password), status = coalesce($5, status),"
        " roles = CASE WHEN $6::text IS NULL THEN roles"
        " ELSE ARRAY(SELECT json_array_elements_text($6::json)) END WHERE id = $1";
    autofree char *roles = fields->roles == NULL ? NULL : json_text(fields->roles);
    auto_pgresult *result = NULL;

    if (roles != NULL)
        call_audit(call, "roles", roles);
    if (fields->password != NULL)
        call_audit(call, "changed", "password");
    if (lock_users(call, err) < 0 ||
        db_exec(call->db, sql,
                DB_PARAMS(id, fields->username, fields->email,
                          fields->password == NULL ? NULL : fields->hash, fields->status, roles),
                &result, err) < 0)
        return -1;
    if (db_affected(result) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no user '%.64s'", id);
    if ((fields->password != NULL || roles != NULL || fields->status != NULL) &&
        end_sessions(call, id, err) < 0)
        return -1;
    return check_admin_left(call, err);
}

int handle_user_put(struct call *call, struct error *err)
{
    const char *id = call_param(call, "id");
    struct user_fields fields = {0};

    call_resource(call, "user", id);
    if (take_fields(call, &fields, err) < 0 || db_begin(call->db, err) < 0)
        return -1;
    if (change_user(call, id, &fields, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    if (db_commit(call->db, err) < 0)
        return -1;
    return answer_user(call, 200, id, err);
}

static int delete_user(struct call *call, const char *id, struct error *err)
{
    static const char sql[] = "DELETE FROM users WHERE id = $1";
    auto_pgresult *result = NULL;

    if (lock_users(call, err) < 0 || db_exec(call->db, sql, DB_PARAMS(id), &result, err) < 0)
        return -1;
    if (db_affected(result) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no user '%.64s'", id);
    return check_admin_left(call, err);
}

int handle_user_delete(struct call *call, struct error *err)
{
    const char *id = call_param(call, "id");

    call_resource(call, "user", id);
    if (db_begin(call->db, err) < 0)
        return -1;
    if (delete_user(call, id, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    if (db_commit(call->db, err) < 0)
        return -1;
    call_answer_json(call, 200, json_pack("{s:s, s:b}", "id", id, "deleted", 1));
    return 0;
}

/* ---- roles ---- */

/* The table's roles with the configuration's laid over them. */
int handle_role_list(struct call *call, struct error *err)
{
    static const char sql[] =
        "SELECT coalesce(json_object_agg(name, json_build_object('name', name, 'permissions',"
        " permissions, 'builtin', builtin)), '{}') FROM roles";
    auto_pgresult *rows = NULL;
    auto_json *roles = NULL;
    const char *name;
    json_t *value;
    json_t *list = json_array();

    if (db_exec(call->db, sql, DB_NO_PARAMS, &rows, err) < 0 ||
        json_parse(db_text(rows, 0, 0), strlen(db_text(rows, 0, 0)), MIB, &roles, err) < 0) {
        json_decref(list);
        return -1;
    }
    json_object_foreach(call->gateway->roles, name, value)
    {
        bool builtin = json_is_true(json_object_get(json_object_get(roles, name), "builtin"));
        (void)json_object_set_new(roles, name,
                                  json_pack("{s:s, s:O, s:b}", "name", name, "permissions", value,
                                            "builtin", builtin ? 1 : 0));
    }
    json_object_foreach(roles, name, value)
    {
        (void)json_array_append(list, value);
    }
    call_answer_json(
        call, 200,
        json_pack("{s:o, s:I}", "roles", list, "total", (json_int_t)json_array_size(list)));
    return 0;
}
