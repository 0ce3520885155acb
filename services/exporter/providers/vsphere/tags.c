/* See tags.h. */
#include "services/exporter/providers/vsphere/tags.h"

#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/log.h"

#define LOGOUT_MS_MAX 5000
#define HTTP_OK       200
#define HTTP_CREATED  201

/* The older API is there from 6.5 on, the newer one from 7.0 on; releases to come drop the older.
 */
static const struct dialect {
    const char *session;
    const char *attached;
    const char *tag;
    const char *category;
    bool wrapped;
} dialects[] = {
    {"/rest/com/vmware/cis/session",
     "/rest/com/vmware/cis/tagging/tag-association?~action=list-attached-tags-on-objects",
     "/rest/com/vmware/cis/tagging/tag/id:", "/rest/com/vmware/cis/tagging/category/id:", true},
    {"/api/session", "/api/cis/tagging/tag-association?action=list-attached-tags-on-objects",
     "/api/cis/tagging/tag/", "/api/cis/tagging/category/", false},
};

struct vsphere_tags {
    const char *origin; /* of the session */
    struct http_options http;
    CURL *curl;
    const struct dialect *dialect;
    char *login;        /* header "vmware-api-session-id: ..."; NULL: not logged in */
    json_t *known;      /* tag id: [category, name]; null: it was deleted meanwhile */
    json_t *categories; /* category id: name */
};

/* ---- answers ---- */

int tags_answer_value(const char *body, size_t size, bool wrapped, json_t **out, struct error *err)
{
    auto_json *answer = NULL;
    json_t *value;

    if (json_parse(body, size, TAGS_ANSWER_BYTES_MAX, &answer, err) < 0)
        return -1;
    value = wrapped ? json_object_get(answer, "value") : answer;
    if (value == NULL)
        return error_set(err, ERR_PROTOCOL, "the answer has no 'value'");
    *out = json_incref(value);
    return 0;
}

int tags_answer_attached(const json_t *value,
                         int (*each)(void *arg, const char *vm_id, const char *tag_id,
                                     struct error *err),
                         void *arg, struct error *err)
{
    const json_t *item;
    size_t i;

    if (!json_is_array(value))
        return error_set(err, ERR_PROTOCOL, "the attached tags are no list");
    json_array_foreach(value, i, item)
    {
        const char *vm_id = json_str(json_object_get(item, "object_id"), "id");
        const json_t *tags = json_object_get(item, "tag_ids");
        const json_t *tag;
        size_t k;
        json_array_foreach(tags, k, tag)
        {
            if (!json_is_string(tag))
                return error_set(err, ERR_PROTOCOL, "a tag's id is no text");
            if (each(arg, vm_id, json_string_value(tag), err) < 0)
                return -1;
        }
    }
    return 0;
}

static int take_text(const json_t *value, const char *name, const char **out, struct error *err)
{
    const char *text = json_str(value, name);

    if (text[0] == '\0' || strlen(text) > TAGS_TEXT_BYTES_MAX) {
        return error_set(err, ERR_PROTOCOL, "a tag's or category's '%s' is missing or too long",
                         name);
    }
    *out = text;
    return 0;
}

int tags_answer_item(const json_t *value, const char **out_name, const char **out_category_id,
                     struct error *err)
{
    if (take_text(value, "name", out_name, err) < 0)
        return -1;
    return out_category_id == NULL ? 0 : take_text(value, "category_id", out_category_id, err);
}

/* ---- calls ---- */

/* Ids go into paths and headers. */
static bool id_is_sane(const char *id)
{
    size_t length = strlen(id);

    return length > 0 && length <= TAGS_TEXT_BYTES_MAX &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:._-") ==
               length;
}

static int status_error(const struct vsphere_tags *tags, long status, struct error *err)
{
    enum error_code code = status == 401 || status == 403   ? ERR_DENIED
                           : status == 404                  ? ERR_NOT_FOUND
                           : status == 429 || status >= 500 ? ERR_UNAVAILABLE
                                                            : ERR_PROTOCOL;

    return error_set(err, code, "the REST API of '%s' answers HTTP %ld%s", tags->origin, status,
                     code == ERR_DENIED ? ": this account may not read tags" : "");
}

/* *out: the answer's value; ERR_NOT_FOUND is HTTP 404. */
static int call(struct vsphere_tags *tags, const char *method, const char *path, const json_t *body,
                json_t **out, struct error *err)
{
    auto_http_response response = {0};
    auto_curl_slist *headers = NULL;
    autofree char *url = xasprintf("%s%s", tags->origin, path);
    autofree char *text = body == NULL ? NULL : json_text(body);

    headers = curl_slist_append(headers, "Content-Type: application/json");
    if (headers == NULL || (tags->login != NULL && curl_slist_append(headers, tags->login) == NULL))
        abort(); /* out of memory */
    if (http_request(
            tags->curl,
            &(struct http_call){method, url, headers, text, text == NULL ? 0 : strlen(text)},
            &response, err) < 0)
        return error_wrap(err, "reading tags");
    if (response.status != HTTP_OK && response.status != HTTP_CREATED)
        return status_error(tags, response.status, err);
    if (tags_answer_value(response.body, response.body_size, tags->dialect->wrapped, out, err) < 0)
        return error_wrap(err, "the REST API of '%s'", tags->origin);
    return 0;
}

/* ---- login ---- */

static int set_account(CURL *curl, const char *username, const char *password, struct error *err)
{
    if (curl_easy_setopt(curl, CURLOPT_USERNAME, username) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_PASSWORD, password) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl does not take the account");
    return 0;
}

/* 1: logged in, 0: this dialect is not spoken here. */
static int try_login(struct vsphere_tags *tags, const struct dialect *dialect, struct error *err)
{
    auto_json *value = NULL;
    const char *id;

    tags->dialect = dialect;
    if (call(tags, "POST", dialect->session, NULL, &value, err) < 0) {
        if (err->code != ERR_NOT_FOUND)
            return -1;
        error_clear(err);
        return 0;
    }
    id = json_string_value(value);
    if (id == NULL || !id_is_sane(id)) {
        return error_set(err, ERR_PROTOCOL, "the REST API of '%s' logs in without a session id",
                         tags->origin);
    }
    tags->login = xasprintf("vmware-api-session-id: %s", id);
    return 1;
}

static int login(struct provider_session *session, struct vsphere_tags *tags, struct error *err)
{
    int rc = 0;

    if (set_account(tags->curl, session->config->username, session->config->password, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(dialects) && rc == 0; i++)
        rc = try_login(tags, &dialects[i], err);
    if (rc < 0)
        return -1;
    if (rc == 0) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "'%s' has no REST API to read tags from (neither /rest nor /api answers)",
                         tags->origin);
    }
    return set_account(tags->curl, NULL, NULL, err);
}

static int open_tags(struct provider_session *session, struct vsphere_tags **out, struct error *err)
{
    struct vsphere_tags *tags;

    if (session_login(session, err) < 0)
        return -1;
    if (!session->content.is_vcenter) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "'%s' is an ESXi host: tags are kept by vCenter only", session->origin);
    }
    tags = xcalloc(1, sizeof *tags);
    tags->origin = session->origin;
    tags->known = json_object();
    tags->categories = json_object();
    tags->http = session->http;
    tags->http.cancelled = session->cancelled;
    tags->http.body_bytes_max = TAGS_ANSWER_BYTES_MAX;
    if (tags->http.timeout_ms > TAGS_TIMEOUT_MS_MAX)
        tags->http.timeout_ms = TAGS_TIMEOUT_MS_MAX;
    tags->http.connect_timeout_ms = tags->http.timeout_ms;
    if (http_handle_new(&tags->http, &tags->curl, err) < 0 || login(session, tags, err) < 0) {
        vsphere_tags_free(tags);
        return -1;
    }
    *out = tags;
    return 0;
}

/* A login that is not ended counts against the account's limit until it times out. */
static void logout(struct vsphere_tags *tags)
{
    auto_http_response response = {0};
    auto_curl_slist *headers = curl_slist_append(NULL, tags->login);
    autofree char *url = xasprintf("%s%s", tags->origin, tags->dialect->session);
    struct error err = ERROR_NONE;

    curl_easy_cleanup(tags->curl);
    tags->curl = NULL;
    tags->http.cancelled = NULL; /* also of a task that was */
    tags->http.timeout_ms = LOGOUT_MS_MAX;
    if (http_handle_new(&tags->http, &tags->curl, &err) < 0 ||
        http_request(tags->curl, &(struct http_call){"DELETE", url, headers, NULL, 0}, &response,
                     &err) < 0)
        LOG(DEBUG, "vsphere_logout_failed", F_ERR(&err));
}

void vsphere_tags_free(struct vsphere_tags *tags)
{
    if (tags == NULL)
        return;
    if (tags->login != NULL)
        logout(tags);
    if (tags->curl != NULL)
        curl_easy_cleanup(tags->curl);
    json_decref(tags->known);
    json_decref(tags->categories);
    free(tags->login);
    free(tags);
}

/* ---- names ---- */

static int category_name(struct vsphere_tags *tags, const char *id, const char **out,
                         struct error *err)
{
    auto_json *value = NULL;
    autofree char *path = NULL;
    const char *name = NULL;

    *out = json_string_value(json_object_get(tags->categories, id));
    if (*out != NULL)
        return 0;
    if (!id_is_sane(id))
        return error_set(err, ERR_PROTOCOL, "'%.64s' is no id of a category", id);
    path = xasprintf("%s%s", tags->dialect->category, id);
    if (call(tags, "GET", path, NULL, &value, err) < 0 ||
        tags_answer_item(value, &name, NULL, err) < 0)
        return error_wrap(err, "category '%.64s'", id);
    json_put(tags->categories, id, json_string(name));
    *out = json_string_value(json_object_get(tags->categories, id));
    return 0;
}

/* [category, name] of a tag; JSON null when it is gone. Borrowed. */
static int tag_names(struct vsphere_tags *tags, const char *id, const json_t **out,
                     struct error *err)
{
    auto_json *value = NULL;
    autofree char *path = NULL;
    const char *name = NULL, *category_id = NULL, *category = NULL;
    json_t *names = NULL;

    *out = json_object_get(tags->known, id);
    if (*out != NULL)
        return 0;
    if (json_object_size(tags->known) == TAGS_KNOWN_MAX)
        return error_set(err, ERR_LIMIT, "there are more than %d tags", TAGS_KNOWN_MAX);
    if (!id_is_sane(id))
        return error_set(err, ERR_PROTOCOL, "'%.64s' is no id of a tag", id);
    path = xasprintf("%s%s", tags->dialect->tag, id);
    if (call(tags, "GET", path, NULL, &value, err) == 0) {
        if (tags_answer_item(value, &name, &category_id, err) < 0 ||
            category_name(tags, category_id, &category, err) < 0)
            return error_wrap(err, "tag '%.64s'", id);
        names = json_array();
        (void)json_array_append_new(names, json_string(category));
        (void)json_array_append_new(names, json_string(name));
    } else if (err->code == ERR_NOT_FOUND) {
        error_clear(err); /* deleted since it was listed */
        names = json_null();
    } else {
        return error_wrap(err, "tag '%.64s'", id);
    }
    json_put(tags->known, id, names);
    *out = names;
    return 0;
}

/* ---- reading ---- */

struct reading {
    struct vsphere_tags *tags;
    const char *const *vm_ids;
    size_t count;
    struct vm_tags *out;
};

static int add_attached(void *arg, const char *vm_id, const char *tag_id, struct error *err)
{
    const struct reading *reading = arg;
    const json_t *names = NULL;

    for (size_t i = 0; i < reading->count; i++) {
        if (strcmp(reading->vm_ids[i], vm_id) != 0)
            continue;
        if (tag_names(reading->tags, tag_id, &names, err) < 0)
            return -1;
        if (json_is_null(names))
            return 0;
        return vm_tags_add(&reading->out[i], json_string_value(json_array_get(names, 0)),
                           json_string_value(json_array_get(names, 1)), err);
    }
    return 0; /* nobody asked for it */
}

int tags_read(struct provider_session *session, const char *const *vm_ids, size_t count,
              struct vm_tags *out, struct error *err)
{
    struct reading reading = {NULL, vm_ids, count, out};
    auto_json *body = json_object();
    auto_json *value = NULL;
    json_t *objects = json_array();

    json_put(body, "object_ids", objects);
    if (session->tags == NULL && open_tags(session, &session->tags, err) < 0)
        return -1;
    reading.tags = session->tags;
    for (size_t i = 0; i < count; i++) {
        json_t *object = json_object();
        json_set_text(object, "id", vm_ids[i]);
        json_set_text(object, "type", "VirtualMachine");
        (void)json_array_append_new(objects, object);
    }
    if (call(session->tags, "POST", session->tags->dialect->attached, body, &value, err) < 0)
        return -1;
    return tags_answer_attached(value, add_attached, &reading, err);
}
