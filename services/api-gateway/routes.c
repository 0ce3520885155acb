/* THE table: one line per route and path family. Routing, permissions, audit, limits and the
 * OpenAPI test all read it. Order does not matter. */
#include "handlers.h"

/* clang-format off: one line per route */
const struct route routes[] = {
    /* method, path, permission, audit action, operation, flags, handler */

    /* identity */
    {"POST", "/api/login", NULL, "auth.login", "login", ROUTE_OPEN | ROUTE_PASSWORD | ROUTE_SHORT, handle_login},
    {"POST", "/api/v1/auth/login", NULL, "auth.login", "login", ROUTE_OPEN | ROUTE_PASSWORD, handle_login},
    {"POST", "/api/logout", NULL, "auth.logout", "logout", ROUTE_SELF | ROUTE_SHORT, handle_logout},
    {"POST", "/api/v1/auth/logout", NULL, "auth.logout", "logout", ROUTE_SELF, handle_logout},
    {"GET", "/users/list", "user.manage", "user.list", "listUsers", ROUTE_SHORT, handle_user_list},
    {"GET", "/api/v1/users", "user.manage", "user.list", "listUsers", 0, handle_user_list},
    {"POST", "/users/create", "user.manage", "user.create", "createUser", ROUTE_PASSWORD | ROUTE_SHORT, handle_user_create},
    {"POST", "/api/v1/users", "user.manage", "user.create", "createUser", ROUTE_PASSWORD, handle_user_create},
    {"GET", "/api/v1/users/{id}", "user.manage", "user.view", "getUser", 0, handle_user_get},
    {"PUT", "/api/v1/users/{id}", "user.manage", "user.update", "updateUser", ROUTE_PASSWORD, handle_user_put},
    {"DELETE", "/api/v1/users/{id}", "user.manage", "user.delete", "deleteUser", 0, handle_user_delete},
    {"GET", "/roles/list", "user.manage", "role.list", "listRoles", ROUTE_SHORT, handle_role_list},
    {"GET", "/api/v1/roles", "user.manage", "role.list", "listRoles", 0, handle_role_list},
    {"GET", "/api-keys/list", NULL, "api_key.list", "listApiKeys", ROUTE_SELF | ROUTE_SHORT, handle_key_list},
    {"GET", "/api/v1/api-keys", NULL, "api_key.list", "listApiKeys", ROUTE_SELF, handle_key_list},
    {"POST", "/api-keys/generate", NULL, "api_key.create", "createApiKey", ROUTE_SELF | ROUTE_SHORT, handle_key_generate},
    {"POST", "/api/v1/api-keys", NULL, "api_key.create", "createApiKey", ROUTE_SELF, handle_key_generate},
    {"DELETE", "/api/v1/api-keys/{id}", NULL, "api_key.delete", "deleteApiKey", ROUTE_SELF, handle_key_delete},
    {"GET", "/sessions/list", "user.manage", "session.list", "listSessions", ROUTE_SHORT, handle_session_list},
    {"GET", "/api/v1/sessions", "user.manage", "session.list", "listSessions", 0, handle_session_list},
    {"DELETE", "/api/v1/sessions/{id}", "user.manage", "session.delete", "deleteSession", 0, handle_session_delete},
    {"GET", "/audit/logs", "audit.view", "audit.query", "queryAudit", ROUTE_SHORT, handle_audit_logs},
    {"GET", "/api/v1/audit", "audit.view", "audit.query", "queryAudit", 0, handle_audit_logs},
};
/* clang-format on */
const size_t routes_count = ARRAY_LEN(routes);
