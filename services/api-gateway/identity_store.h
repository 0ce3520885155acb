/* What the identity handlers share: names, roles, and lists made by the database. */
#ifndef GATEWAY_IDENTITY_STORE_H
#define GATEWAY_IDENTITY_STORE_H

#include "transport.h"

#define USERNAME_BYTES_MAX 64
#define IDENTITY_TEXT_MAX  254 /* names of keys, e-mail addresses */
#define USER_ROLES_MAX     16
/* Template of to_char for RFC 3339 UTC (sessions run in UTC). */
#define SQL_TIME "YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\""

/* 1 to 64 of A-Z a-z 0-9 . _ @ - */
bool username_is_valid(const char *text);
/* A list of 1 to USER_ROLES_MAX different texts. */
MUST_CHECK int identity_check_roles(const json_t *roles, struct error *err);
/* Runs sql, whose one cell is a JSON array, and answers {"<key>": [...], "total": n}. */
MUST_CHECK int identity_answer_list(struct call *call, const char *sql, const char *const *params,
                                    size_t count, const char *key, struct error *err);

#endif
