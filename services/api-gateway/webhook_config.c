/* webhooks.endpoints[] of the configuration into table webhooks. Header values and the signing
 * secret are sealed for the notifier (audience "notify") as {"headers": {name: value},
 * "secret": text}; the table shows the headers' names only. */
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/config_tables.h"
#include "common/json.h"
#include "common/log.h"
#include "common/paths.h"
#include "common/strbuf.h"
#include "common/webhook_post.h"
#include "config_sync.h"
#include "common/fields.h"

#define ENDPOINTS_MAX    100
#define HEADERS_MAX      32
#define HEADER_BYTES_MAX 4096
#define RETRY_MAX        20
#define RETRY_DEFAULT    3
#define TIMEOUT_MS       10000
#define TIMEOUT_MS_MAX   60000
#define ID_HEX           16
#define NUMBER_TEXT      24
#define SECRET_BYTES_MAX 4096
#define EVENTS_TEXT_MAX  512 /* all names that are known */

static const struct field endpoint_fields[] = {
    {"url", {NULL}, FIELD_TEXT, 1, WEBHOOK_URL_BYTES_MAX, NULL},
    {"events", {NULL}, FIELD_TEXT_LIST, 0, 32, NULL},
    {"headers", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    {"retry", {NULL}, FIELD_NUMBER, 0, RETRY_MAX, NULL},
    {"timeout", {NULL}, FIELD_DURATION, 100, TIMEOUT_MS_MAX, NULL},
    {"secret", {NULL}, FIELD_TEXT, 1, SECRET_BYTES_MAX, NULL},
    {"secret_file", {NULL}, FIELD_TEXT, 1, PATH_BYTES_MAX - 1, NULL},
    {0},
};
/* What is sent; whoever writes into the outbox adds its event here. */
static const char *const events_known[] = {"*",
                                           "job.started",
                                           "job.completed",
                                           "job.failed",
                                           "job.cancelled",
                                           "schedule.triggered",
                                           "schedule.missed",
                                           NULL};

/* A receiver that answered 410 was switched off: it stays so until its settings change. */
static const char upsert_sql[] =
    "INSERT INTO webhooks AS w (id, url, events, headers, sealed, retry, timeout_ms, enabled, "
    "origin)"
    " VALUES ($1, $2, ARRAY(SELECT jsonb_array_elements_text($3::jsonb)), $4, $5, $6, $7, true,"
    " 'config') ON CONFLICT (id) DO UPDATE SET url = $2,"
    " events = ARRAY(SELECT jsonb_array_elements_text($3::jsonb)), headers = $4, sealed = $5,"
    " retry = $6, timeout_ms = $7, enabled = w.enabled OR (w.events, w.headers) IS DISTINCT FROM"
    " (ARRAY(SELECT jsonb_array_elements_text($3::jsonb)), $4::jsonb)";
static const char gone_sql[] = "DELETE FROM webhooks WHERE origin = 'config'"
                               " AND NOT id IN (SELECT jsonb_array_elements_text($1::jsonb))";

struct endpoint {
    char id[sizeof "wh-" + ID_HEX];
    json_t *canonical;
    json_t *events;  /* list of texts */
    json_t *headers; /* {name: "***"} */
    json_t *secrets; /* {"headers": {...}, "secret": "..."}; empty = none */
};

static void endpoint_release(struct endpoint *endpoint)
{
    json_decref(endpoint->canonical);
    json_decref(endpoint->events);
    json_decref(endpoint->headers);
    json_decref(endpoint->secrets);
}

static bool header_name_is_right(const char *name)
{
    for (const char *p = name; *p != '\0'; p++) {
        bool letter =
            (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9');
        if (!letter && strchr("!#$%&'*+-.^_`|~", *p) == NULL)
            return false;
    }
    return name[0] != '\0';
}

static int read_headers(struct endpoint *endpoint, struct error *err)
{
    const json_t *headers = json_object_get(endpoint->canonical, "headers");
    const char *name;
    json_t *value;

    endpoint->headers = json_object();
    endpoint->secrets = json_object();
    if (json_object_size(headers) > 0)
        (void)json_object_set_new(endpoint->secrets, "headers", json_object());
    if (json_object_size(headers) > HEADERS_MAX)
        return error_set(err, ERR_INVALID, "'headers' may be at most %d", HEADERS_MAX);
    json_object_foreach(json_unconst(headers), name, value)
    {
        const char *text = json_string_value(value);
        if (!header_name_is_right(name))
            return error_set(err, ERR_INVALID, "'%.64s' is no header name", name);
        if (text == NULL || strlen(text) > HEADER_BYTES_MAX ||
            strlen(text) != json_string_length(value) || strpbrk(text, "\r\n") != NULL)
            return error_set(err, ERR_INVALID, "header '%.64s' must be a text of one line", name);
        (void)json_object_set(json_object_get(endpoint->secrets, "headers"), name, value);
        json_set_text(endpoint->headers, name, "***");
    }
    return 0;
}

static int read_secret(struct endpoint *endpoint, struct error *err)
{
    const char *path = field_text(endpoint->canonical, "secret_file", NULL);
    const char *secret = field_text(endpoint->canonical, "secret", NULL);
    auto_secret *content = NULL;
    size_t size = 0;

    if (path != NULL && secret != NULL)
        return error_set(err, ERR_INVALID, "only one of 'secret' and 'secret_file' may be set");
    if (path != NULL) {
        if (file_read(path, SECRET_BYTES_MAX, &content, &size, err) < 0)
            return -1;
        if (size > 0 && content[size - 1] == '\n')
            content[size - 1] = '\0';
        secret = content;
    }
    if (secret != NULL && secret[0] != '\0')
        json_set_text(endpoint->secrets, "secret", secret);
    return 0;
}

static int unknown_event(const char *event, const char *near, struct error *err)
{
    auto_strbuf known = {0};

    strbuf_init(&known, EVENTS_TEXT_MAX);
    for (size_t i = 0; events_known[i] != NULL; i++)
        strbuf_addf(&known, "%s%s", i == 0 ? "" : ", ", events_known[i]);
    return error_set(err, ERR_INVALID, "event '%.64s' is not sent (there are %s)%s%s", event,
                     known.data, near == NULL ? "" : ", did you mean ", near == NULL ? "" : near);
}

static int read_events(struct endpoint *endpoint, struct error *err)
{
    json_t *events = json_object_get(endpoint->canonical, "events");
    size_t i;
    json_t *event;

    if (json_array_size(events) == 0) {
        endpoint->events = json_pack("[s]", "*");
        return 0;
    }
    endpoint->events = json_incref(events);
    json_array_foreach(events, i, event)
    {
        const char *near;
        if (word_in(json_string_value(event), events_known))
            continue;
        near = nearest_word(json_string_value(event), events_known);
        return unknown_event(json_string_value(event), near, err);
    }
    return 0;
}

/* occurrence: how many endpoints before have the same URL. The id lasts over restarts, so that
 * deliveries under way keep their webhook. */
static void make_id(struct endpoint *endpoint, size_t occurrence)
{
    autofree char *text =
        xasprintf("%zu %s", occurrence, field_text(endpoint->canonical, "url", ""));
    uint8_t digest[SHA256_DIGEST_LENGTH];

    (void)SHA256((const unsigned char *)text, strlen(text), digest);
    memcpy(endpoint->id, "wh-", 3);
    hex_encode(digest, ID_HEX / 2, endpoint->id + 3);
}

static int read_endpoint(const json_t *list, size_t index, struct endpoint *out, struct error *err)
{
    struct field_problem problem = {0};
    size_t occurrence = 0;

    *out = (struct endpoint){0};
    if (fields_canonical(endpoint_fields, "", json_array_get(list, index), &out->canonical,
                         &problem, err) < 0)
        return -1;
    if (json_object_get(out->canonical, "url") == NULL)
        return error_set(err, ERR_INVALID, "'url' is missing");
    if (webhook_url_check(field_text(out->canonical, "url", ""), err) < 0 ||
        read_events(out, err) < 0 || read_headers(out, err) < 0 || read_secret(out, err) < 0)
        return -1;
    for (size_t i = 0; i < index; i++) {
        if (strcmp(json_str(json_array_get(list, i), "url"),
                   field_text(out->canonical, "url", "")) == 0)
            occurrence++;
    }
    make_id(out, occurrence);
    return 0;
}

void webhook_config_check(const json_t *section, struct strbuf *problems)
{
    const json_t *list = json_object_get(section, "endpoints");

    if (list == NULL || json_is_null(list))
        return;
    if (!json_is_array(list) || json_array_size(list) > ENDPOINTS_MAX) {
        strbuf_addf(problems, "webhooks.endpoints: must be a list of at most %d\n", ENDPOINTS_MAX);
        return;
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        CLEANUP(endpoint_release) struct endpoint endpoint = {0};
        struct error err = ERROR_NONE;
        if (read_endpoint(list, i, &endpoint, &err) < 0)
            strbuf_addf(problems, "webhooks.endpoints[%zu]: %s\n", i, err.message);
    }
}

static int store(struct db *db, const struct seal_master *master, const struct endpoint *endpoint,
                 struct error *err)
{
    autofree char *events = json_text(endpoint->events);
    autofree char *headers = json_text(endpoint->headers);
    autofree char *sealed = NULL;
    char retry[NUMBER_TEXT];
    char timeout[NUMBER_TEXT];

    if (json_object_size(endpoint->secrets) > 0) {
        char *plain;
        autofree uint8_t *box = NULL;
        size_t size = 0;
        if (master == NULL) {
            return error_set(err, ERR_INVALID,
                             "webhooks.endpoints hold secrets, but secrets.master_key is not set");
        }
        auto_seal_key *key = seal_master_derive(master, "notify");
        plain = json_text(endpoint->secrets);
        seal(key, plain, strlen(plain), &box, &size);
        secret_free(plain);
        sealed = db_bytea_text(box, size);
    }
    (void)snprintf(retry, sizeof retry, "%llu",
                   (unsigned long long)field_number(endpoint->canonical, "retry", RETRY_DEFAULT));
    (void)snprintf(timeout, sizeof timeout, "%lld",
                   (long long)field_duration_ms(endpoint->canonical, "timeout", TIMEOUT_MS));
    return db_exec(db, upsert_sql,
                   DB_PARAMS(endpoint->id, field_text(endpoint->canonical, "url", ""), events,
                             headers, sealed, retry, timeout),
                   NULL, err);
}

int webhook_config_sync(const json_t *section, const struct seal_master *master, struct db *db,
                        struct error *err)
{
    const json_t *list = json_object_get(section, "endpoints");
    auto_json *ids = json_array();
    auto_pgresult *rows = NULL;
    autofree char *text = NULL;

    if (!json_is_object(section))
        return 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        CLEANUP(endpoint_release) struct endpoint endpoint = {0};
        if (read_endpoint(list, i, &endpoint, err) < 0)
            return error_wrap(err, "webhooks.endpoints[%zu]", i);
        if (store(db, master, &endpoint, err) < 0)
            return -1;
        (void)json_array_append_new(ids, json_string(endpoint.id));
    }
    text = json_text(ids);
    if (db_exec(db, gone_sql, DB_PARAMS(text), &rows, err) < 0)
        return -1;
    if (json_array_size(ids) > 0 || db_affected(rows) > 0) {
        LOG(INFO, "webhooks_synced", F_U64("webhooks", json_array_size(ids)),
            F_U64("gone", db_affected(rows)));
    }
    return 0;
}
