#include "services/exporter/providers/vsphere/session.h"

#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/log.h"
#include "services/exporter/providers/vsphere/inventory.h"
#include "services/exporter/providers/vsphere/tags.h"

/* 6.5 is the oldest release that is not long out of support; 6.7 knows virtual TPMs. */
#define NAP_MS            INT64_C(100) /* how soon a cancelled task is noticed while waiting */
#define SOAP_ACTION_FLOOR "urn:vim25/6.5"
#define SOAP_ACTION_TPM   "urn:vim25/6.7"

#define LOGOUT_MS_MAX 5000 /* nobody waits longer to leave a server that hangs */

static void content_release(struct service_content *content)
{
    free(content->root_folder);
    free(content->property_collector);
    free(content->view_manager);
    free(content->session_manager);
    free(content->full_name);
    free(content->api_version);
    *content = (struct service_content){0};
}

/* ---- address and handle ---- */

struct url_parts {
    char *scheme, *host, *port, *path, *user;
};

static void url_parts_release(struct url_parts *parts)
{
    curl_free(parts->scheme);
    curl_free(parts->host);
    curl_free(parts->port);
    curl_free(parts->path);
    curl_free(parts->user);
}

static void url_free(CURLU **url)
{
    curl_url_cleanup(*url);
}

static int origin_from_parts(const struct url_parts *parts, const char *host, char **out,
                             struct error *err)
{
    if (strcmp(parts->scheme, "https") != 0) {
        return error_set(err, ERR_INVALID,
                         "host '%.128s': only https is spoken, the password would be readable",
                         host);
    }
    if (parts->user != NULL) {
        return error_set(err, ERR_INVALID,
                         "host: put the account into username and password, not into the address");
    }
    if (parts->path != NULL && strcmp(parts->path, "/") != 0 && strcmp(parts->path, "/sdk") != 0 &&
        strcmp(parts->path, "/sdk/") != 0) {
        return error_set(err, ERR_INVALID,
                         "host '%.128s': give host, host:port or https://host[:port]/sdk", host);
    }
    *out = xasprintf("https://%s:%s", parts->host, parts->port);
    return 0;
}

/* host, host:port or https URL to "https://host:port". */
static int origin_from_host(const char *host, char **out, struct error *err)
{
    CLEANUP(url_free) CURLU *url = curl_url();
    CLEANUP(url_parts_release) struct url_parts parts = {0};
    autofree char *text =
        strstr(host, "://") != NULL ? xstrdup(host) : xasprintf("https://%s", host);

    if (url == NULL)
        abort();
    if (host[0] == '\0' || strpbrk(host, " \t\r\n?#") != NULL ||
        curl_url_set(url, CURLUPART_URL, text, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_SCHEME, &parts.scheme, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_HOST, &parts.host, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_PORT, &parts.port, CURLU_DEFAULT_PORT) != CURLUE_OK) {
        return error_set(err, ERR_INVALID,
                         "host '%.128s': give host, host:port or https://host[:port]/sdk", host);
    }
    (void)curl_url_get(url, CURLUPART_PATH, &parts.path, 0);
    (void)curl_url_get(url, CURLUPART_USER, &parts.user, 0);
    return origin_from_parts(&parts, host, out, err);
}

/* A handle by the session's options; the cookie engine keeps the login. */
static int handle_new(struct provider_session *session, CURL **out, struct error *err)
{
    auto_curl *curl = NULL;

    session->http.cancelled = session->shielded ? NULL : session->cancelled;
    if (http_handle_new(&session->http, &curl, err) < 0)
        return -1;
    if (curl_easy_setopt(curl, CURLOPT_COOKIEFILE, "") != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl has no cookie engine");
    *out = STEAL(curl);
    return 0;
}

int session_new(const struct vsphere_config *config, const atomic_bool *cancelled,
                struct provider_session **out, struct error *err)
{
    struct provider_session *session = xcalloc(1, sizeof *session);

    session->config = config;
    session->cancelled = cancelled;
    (void)pthread_mutex_init(&session->call_mutex, NULL);
    (void)pthread_mutex_init(&session->cookie_mutex, NULL);
    session->cookie = xstrdup("");
    (void)snprintf(session->soap_action, sizeof session->soap_action, "%s", SOAP_ACTION_FLOOR);
    session->http = (struct http_options){
        .ca_file = config->ca_file[0] == '\0' ? NULL : config->ca_file,
        .thumbprint = config->thumbprint[0] == '\0' ? NULL : config->thumbprint,
        .insecure = config->insecure,
        .timeout_ms = config->timeout_ms,
        .connect_timeout_ms = config->timeout_ms,
        .body_bytes_max = SOAP_REPLY_BYTES_MAX,
    };
    if (origin_from_host(config->host, &session->origin, err) < 0 ||
        handle_new(session, &session->curl, err) < 0) {
        session_free(session);
        return -1;
    }
    *out = session;
    return 0;
}

/* ---- calls ---- */

int session_check_cancelled(const struct provider_session *session, struct error *err)
{
    if (!session->shielded && session->cancelled != NULL && atomic_load(session->cancelled))
        return error_set(err, ERR_CANCELLED, "cancelled");
    return 0;
}

int session_nap(const struct provider_session *session, int64_t ms, struct error *err)
{
    for (int64_t left = ms; left > 0; left -= NAP_MS) {
        if (session_check_cancelled(session, err) < 0)
            return -1;
        clock_sleep_ms(left < NAP_MS ? left : NAP_MS);
    }
    return session_check_cancelled(session, err);
}

static int status_error(const struct http_response *response, const char *method,
                        const char *origin, struct error *err)
{
    long status = response->status;

    if (status == 401 || status == 403)
        return error_set(err, ERR_DENIED, "%s: '%s' answers HTTP %ld", method, origin, status);
    if (status == 429 || status >= 500)
        return error_set(err, ERR_UNAVAILABLE, "%s: '%s' answers HTTP %ld", method, origin, status);
    return error_set(err, ERR_PROTOCOL,
                     "%s: '%s/sdk' answers HTTP %ld; is this the address of a vCenter or ESXi host",
                     method, origin, status);
}

/* One exchange, call_mutex held. Faults are in out->fault. */
static int exchange(struct provider_session *session, const char *method, const char *request,
                    size_t size, struct soap_reply *out, struct error *err)
{
    auto_http_response response = {0};
    auto_curl_slist *headers = NULL;
    autofree char *url = xasprintf("%s/sdk", session->origin);
    autofree char *action = xasprintf("SOAPAction: %s", session->soap_action);
    struct error parse = ERROR_NONE;

    headers = curl_slist_append(headers, "Content-Type: text/xml; charset=\"utf-8\"");
    headers = curl_slist_append(headers, action);
    if (headers == NULL)
        abort();
    if (http_request(session->curl, &(struct http_call){"POST", url, headers, request, size},
                     &response, err) < 0)
        return error_wrap(err, "%s", method);
    atomic_store(&session->last_call_ms, clock_mono_ms());
    if (response.status != 200 && response.status != 500)
        return status_error(&response, method, session->origin, err);
    if (soap_parse(response.body, response.body_size, out, &parse) < 0) {
        /* A proxy's or a crashed server's error page: come again. */
        if (response.status == 500)
            return status_error(&response, method, session->origin, err);
        *err = parse;
        return error_wrap(err, "%s", method);
    }
    if (response.status == 500 && out->fault.type[0] == '\0') {
        soap_reply_release(out);
        return status_error(&response, method, session->origin, err);
    }
    return 0;
}

static int exchange_strbuf(struct provider_session *session, const char *method,
                           const struct strbuf *request, struct soap_reply *out, struct error *err)
{
    if (request->overflowed) {
        return error_set(err, ERR_LIMIT, "%s: the request is over %zu bytes", method,
                         request->size_max);
    }
    return exchange(session, method, request->data, request->length, out, err);
}

static void take_text(char **field, const xmlNode *parent, const char *name)
{
    free(*field);
    *field = xstrdup(soap_text(parent, name));
}

/* Is "6.10.2" at least major.minor? */
static bool version_at_least(const char *version, unsigned long major, unsigned long minor)
{
    char *end = NULL;
    unsigned long have_major = strtoul(version, &end, 10);
    unsigned long have_minor = *end == '.' ? strtoul(end + 1, NULL, 10) : 0;

    return have_major > major || (have_major == major && have_minor >= minor);
}

/* call_mutex held. */
static int discover(struct provider_session *session, struct error *err)
{
    auto_soap_reply reply = {0};
    auto_strbuf request = {0};
    struct service_content *content = &session->content;
    const xmlNode *value, *about;

    if (session->discovered)
        return 0;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "RetrieveServiceContent", "ServiceInstance", "ServiceInstance");
    soap_end(&request, "RetrieveServiceContent");
    if (exchange_strbuf(session, "RetrieveServiceContent", &request, &reply, err) < 0)
        return -1;
    if (reply.fault.type[0] != '\0')
        return soap_fault_error(&reply.fault, "RetrieveServiceContent", err);
    value = soap_child(reply.response, "returnval");
    about = soap_child(value, "about");
    content_release(content);
    take_text(&content->root_folder, value, "rootFolder");
    take_text(&content->property_collector, value, "propertyCollector");
    take_text(&content->view_manager, value, "viewManager");
    take_text(&content->session_manager, value, "sessionManager");
    take_text(&content->full_name, about, "fullName");
    take_text(&content->api_version, about, "apiVersion");
    content->is_vcenter = strcmp(soap_text(about, "apiType"), "VirtualCenter") == 0;
    if (!soap_id_is_sane(content->root_folder) || !soap_id_is_sane(content->property_collector) ||
        !soap_id_is_sane(content->view_manager) || !soap_id_is_sane(content->session_manager)) {
        return error_set(err, ERR_PROTOCOL, "'%s' describes itself without the managers of vSphere",
                         session->origin);
    }
    (void)snprintf(session->soap_action, sizeof session->soap_action, "%s",
                   version_at_least(content->api_version, 6, 7) ? SOAP_ACTION_TPM
                                                                : SOAP_ACTION_FLOOR);
    session->discovered = true;
    return 0;
}

/* "name=value" of the cookie that the login set, from the handle's cookie list. */
static char *cookie_from_handle(CURL *curl)
{
    auto_curl_slist *cookies = NULL;
    auto_strbuf text;
    char *out = NULL;
    struct error ignored = ERROR_NONE;

    strbuf_init(&text, 8 * KIB);
    if (curl_easy_getinfo(curl, CURLINFO_COOKIELIST, &cookies) != CURLE_OK)
        return xstrdup("");
    for (const struct curl_slist *item = cookies; item != NULL; item = item->next) {
        /* Netscape format: domain, subdomains, path, secure, expires, name, value */
        const char *field = item->data;
        for (int i = 0; i < 5 && field != NULL; i++) {
            field = strchr(field, '\t');
            field = field == NULL ? NULL : field + 1;
        }
        const char *value = field == NULL ? NULL : strchr(field, '\t');
        if (value == NULL)
            continue;
        strbuf_add(&text, text.length == 0 ? "" : "; ");
        strbuf_add_bytes(&text, field, (size_t)(value - field));
        strbuf_add(&text, "=");
        strbuf_add(&text, value + 1);
    }
    return strbuf_finish(&text, &out, &ignored) < 0 ? xstrdup("") : out;
}

static void request_wipe(struct strbuf *request)
{
    /* The password must not stay in freed memory. */
    explicit_bzero(request->data, request->capacity);
    strbuf_release(request);
}

/* call_mutex held, discovered. */
static int login(struct provider_session *session, struct error *err)
{
    auto_soap_reply reply = {0};
    CLEANUP(request_wipe) struct strbuf request;
    char *cookie = NULL;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "Login", "SessionManager", session->content.session_manager);
    soap_add(&request, "userName", session->config->username);
    soap_add(&request, "password", session->config->password);
    soap_end(&request, "Login");
    (void)curl_easy_setopt(session->curl, CURLOPT_COOKIELIST, "ALL");
    session->logged_in = false;
    if (exchange_strbuf(session, "Login", &request, &reply, err) < 0)
        return -1;
    if (strcmp(reply.fault.type, "InvalidLogin") == 0) {
        return error_set(
            err, ERR_DENIED,
            "'%s' refuses user '%.128s': wrong username or password, or a locked account",
            session->origin, session->config->username);
    }
    if (reply.fault.type[0] != '\0')
        return soap_fault_error(&reply.fault, "Login", err);
    session->logged_in = true;
    cookie = cookie_from_handle(session->curl);
    LOCK_SCOPE(&session->cookie_mutex);
    free(session->cookie);
    session->cookie = cookie;
    session->generation++;
    return 0;
}

int session_discover(struct provider_session *session, struct error *err)
{
    LOCK_SCOPE(&session->call_mutex);
    return discover(session, err);
}

/* call_mutex held. */
static int ensure_login(struct provider_session *session, struct error *err)
{
    if (session->logged_in)
        return 0;
    if (discover(session, err) < 0)
        return -1;
    return login(session, err);
}

int session_login(struct provider_session *session, struct error *err)
{
    LOCK_SCOPE(&session->call_mutex);
    return ensure_login(session, err);
}

/* A session that is over: a fault, or, of the property collector, objects whose properties are all
 * missing for that reason. */
static bool is_unauthenticated(const struct soap_reply *reply)
{
    const xmlNode *object = soap_child(soap_child(reply->response, "returnval"), "objects");
    char type[sizeof reply->fault.type];

    if (strcmp(reply->fault.type, "NotAuthenticated") == 0)
        return true;
    for (const xmlNode *set = soap_child(object, "missingSet"); set != NULL; set = soap_next(set)) {
        soap_xsi_type(soap_child(soap_child(set, "fault"), "fault"), type, sizeof type);
        if (strcmp(type, "NotAuthenticated") == 0)
            return true;
    }
    return false;
}

int session_call(struct provider_session *session, const char *method, const struct strbuf *request,
                 unsigned int flags, struct soap_reply *out, struct error *err)
{
    auto_soap_reply reply = {0};

    if (session_check_cancelled(session, err) < 0)
        return -1;
    LOCK_SCOPE(&session->call_mutex);
    if (ensure_login(session, err) < 0 ||
        exchange_strbuf(session, method, request, &reply, err) < 0)
        return -1;
    if (is_unauthenticated(&reply)) {
        soap_reply_release(&reply);
        if (login(session, err) < 0)
            return error_wrap(err, "%s: the session expired", method);
        if ((flags & SESSION_CALL_BOUND) != 0)
            return error_set(err, ERR_UNAVAILABLE, "%s: the session expired meanwhile", method);
        if (exchange_strbuf(session, method, request, &reply, err) < 0)
            return -1;
        if (reply.fault.type[0] == '\0' && is_unauthenticated(&reply)) {
            return error_set(err, ERR_DENIED, "%s: '%s' forgets its logins at once", method,
                             session->origin);
        }
    }
    if (reply.fault.type[0] != '\0') {
        out->fault = reply.fault;
        return soap_fault_error(&reply.fault, method, err);
    }
    *out = reply;
    reply = (struct soap_reply){0};
    return 0;
}

int session_shield(struct provider_session *session, bool on, struct error *err)
{
    auto_curl_slist *cookies = NULL;
    CURL *curl = NULL;

    LOCK_SCOPE(&session->call_mutex);
    if (session->shielded == on)
        return 0;
    session->shielded = on;
    if (handle_new(session, &curl, err) < 0)
        return -1;
    /* The new handle goes on with the old one's login. */
    if (curl_easy_getinfo(session->curl, CURLINFO_COOKIELIST, &cookies) == CURLE_OK) {
        for (const struct curl_slist *item = cookies; item != NULL; item = item->next)
            (void)curl_easy_setopt(curl, CURLOPT_COOKIELIST, item->data);
    }
    curl_easy_cleanup(session->curl);
    session->curl = curl;
    return 0;
}

/* ---- for readers ---- */

char *session_cookie(struct provider_session *session, uint64_t *out_generation)
{
    LOCK_SCOPE(&session->cookie_mutex);
    *out_generation = session->generation;
    return xstrdup(session->cookie);
}

int session_relogin(struct provider_session *session, uint64_t generation, struct error *err)
{
    uint64_t now;

    LOCK_SCOPE(&session->call_mutex);
    free(session_cookie(session, &now));
    if (now != generation)
        return 0;
    if (discover(session, err) < 0)
        return -1;
    return login(session, err);
}

/* call_mutex held. Failures are left to the next real call, which can report them. */
static void touch(struct provider_session *session)
{
    auto_soap_reply reply = {0};
    auto_strbuf request;
    struct error ignored = ERROR_NONE;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "CurrentTime", "ServiceInstance", "ServiceInstance");
    soap_end(&request, "CurrentTime");
    atomic_store(&session->last_call_ms, clock_mono_ms());
    if (exchange_strbuf(session, "CurrentTime", &request, &reply, &ignored) == 0 &&
        strcmp(reply.fault.type, "NotAuthenticated") == 0)
        (void)login(session, &ignored);
}

void session_keep_alive(struct provider_session *session)
{
    if (clock_mono_ms() - atomic_load(&session->last_call_ms) < SESSION_IDLE_MS_MAX)
        return;
    if (pthread_mutex_trylock(&session->call_mutex) != 0)
        return; /* busy: that call keeps it alive */
    if (session->logged_in &&
        clock_mono_ms() - atomic_load(&session->last_call_ms) >= SESSION_IDLE_MS_MAX)
        touch(session);
    (void)pthread_mutex_unlock(&session->call_mutex);
}

/* A session that is not closed counts against the account's limit until it times out. */
static void logout(struct provider_session *session)
{
    auto_soap_reply reply = {0};
    auto_strbuf request = {0};
    struct error err = ERROR_NONE;

    session->http.timeout_ms = LOGOUT_MS_MAX;
    session->shielded = false; /* so that the next line makes a handle with this time */
    if (session_shield(session, true, &err) < 0)
        return;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "Logout", "SessionManager", session->content.session_manager);
    soap_end(&request, "Logout");
    if (exchange_strbuf(session, "Logout", &request, &reply, &err) < 0)
        LOG(DEBUG, "vsphere_logout_failed", F_ERR(&err));
}

void session_free(struct provider_session *session)
{
    if (session == NULL)
        return;
    vsphere_tags_free(session->tags);
    if (session->logged_in)
        logout(session);
    if (session->curl != NULL)
        curl_easy_cleanup(session->curl);
    inventory_names_free(session->names);
    content_release(&session->content);
    free(session->origin);
    free(session->cookie);
    (void)pthread_mutex_destroy(&session->call_mutex);
    (void)pthread_mutex_destroy(&session->cookie_mutex);
    free(session);
}
