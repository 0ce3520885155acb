/* See identity_store.h. */
#include "identity_store.h"

#include <string.h>

#include "common/json.h"

#define LIST_BYTES_MAX ((size_t)16 * MIB) /* 1000 rows of at most a few KiB */

bool username_is_valid(const char *text)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                  "0123456789._@-";
    size_t length = strlen(text);

    return length >= 1 && length <= USERNAME_BYTES_MAX && strspn(text, allowed) == length;
}

int identity_check_roles(const json_t *roles, struct error *err)
{
    size_t i;
    json_t *role;

    if (!json_is_array(roles) || json_array_size(roles) == 0 ||
        json_array_size(roles) > USER_ROLES_MAX) {
        return error_set(err, ERR_INVALID, "'roles' must be a list of 1 to %d names",
                         USER_ROLES_MAX);
    }
    json_array_foreach(roles, i, role)
    {
        if (!json_is_string(role) || strlen(json_string_value(role)) != json_string_length(role))
            return error_set(err, ERR_INVALID, "'roles' must be a list of names");
        for (size_t k = 0; k < i; k++) {
            if (json_equal(json_array_get(roles, k), role)) {
                return error_set(err, ERR_INVALID, "role '%.64s' is named twice",
                                 json_string_value(role));
            }
        }
    }
    return 0;
}

int identity_answer_list(struct call *call, const char *sql, const char *const *params,
                         size_t count, const char *key, struct error *err)
{
    auto_pgresult *rows = NULL;
    json_t *list = NULL;

    if (db_exec(call->db, sql, params, count, &rows, err) < 0)
        return -1;
    if (json_parse(db_text(rows, 0, 0), strlen(db_text(rows, 0, 0)), LIST_BYTES_MAX, &list, err) <
        0) {
        err->code = ERR_INTERNAL;
        return -1;
    }
    call_answer_json(
        call, 200, json_pack("{s:o, s:I}", key, list, "total", (json_int_t)json_array_size(list)));
    return 0;
}
