#include "services/exporter/providers/vsphere/property.h"

#include <string.h>

#include "common/log.h"

static const xmlNode *property_find(const xmlNode *object, const char *path)
{
    for (const xmlNode *set = soap_child(object, "propSet"); set != NULL; set = soap_next(set)) {
        if (strcmp(soap_text(set, "name"), path) == 0)
            return set;
    }
    return NULL;
}

const xmlNode *property_value(const xmlNode *object, const char *path)
{
    return soap_child(property_find(object, path), "val");
}

const char *property_text(const xmlNode *object, const char *path)
{
    return soap_content(property_value(object, path));
}

bool property_bool(const xmlNode *object, const char *path)
{
    return soap_bool(property_find(object, path), "val");
}

uint64_t property_u64(const xmlNode *object, const char *path, uint64_t fallback)
{
    return soap_u64(property_find(object, path), "val", fallback);
}

static void add_property_set(struct strbuf *sb, const struct property_set *set)
{
    strbuf_add(sb, "<propSet>");
    soap_add(sb, "type", set->type);
    for (const char *const *path = set->paths; *path != NULL; path++)
        soap_add(sb, "pathSet", *path);
    strbuf_add(sb, "</propSet>");
}

/* ---- one object ---- */

int property_get(struct provider_session *session, const struct property_set *set, const char *id,
                 struct soap_reply *out_reply, const xmlNode **out_object, struct error *err)
{
    auto_strbuf request = {0};
    auto_soap_reply reply = {0};
    const xmlNode *object;

    if (!soap_id_is_sane(id))
        return error_set(err, ERR_NOT_FOUND, "'%.128s' is not the id of a %s", id, set->type);
    if (session_login(session, err) < 0)
        return -1;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "RetrievePropertiesEx", "PropertyCollector",
               session->content.property_collector);
    strbuf_add(&request, "<specSet>");
    add_property_set(&request, set);
    strbuf_add(&request, "<objectSet>");
    soap_add_ref(&request, "obj", set->type, id);
    strbuf_add(&request, "<skip>false</skip></objectSet></specSet><options></options>");
    soap_end(&request, "RetrievePropertiesEx");
    if (session_call(session, "RetrievePropertiesEx", &request, 0, &reply, err) < 0)
        return -1;
    object = soap_child(soap_child(reply.response, "returnval"), "objects");
    if (object == NULL || strcmp(soap_text(object, "obj"), id) != 0) {
        return error_set(err, ERR_NOT_FOUND,
                         "%s '%s' does not exist or is hidden from this account", set->type, id);
    }
    *out_object = object;
    *out_reply = reply;
    reply = (struct soap_reply){0};
    return 0;
}

/* ---- a view and its pages ---- */

static int view_create(struct provider_session *session, const struct property_scan *scan,
                       char **out_view, struct error *err)
{
    auto_strbuf request;
    auto_soap_reply reply = {0};
    const char *view;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "CreateContainerView", "ViewManager", session->content.view_manager);
    soap_add_ref(&request, "container", scan->container_type, scan->container);
    for (size_t i = 0; i < scan->set_count; i++)
        soap_add(&request, "type", scan->sets[i].type);
    soap_add(&request, "recursive", "true");
    soap_end(&request, "CreateContainerView");
    if (session_call(session, "CreateContainerView", &request, 0, &reply, err) < 0)
        return -1;
    view = soap_text(reply.response, "returnval");
    if (!soap_id_is_sane(view))
        return error_set(err, ERR_PROTOCOL, "CreateContainerView: the answer has no view");
    *out_view = xstrdup(view);
    return 0;
}

/* Best effort: the server drops views with the session. */
static void view_destroy(struct provider_session *session, const char *view)
{
    auto_strbuf request;
    auto_soap_reply reply = {0};
    struct error err = ERROR_NONE;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "DestroyView", "ContainerView", view);
    soap_end(&request, "DestroyView");
    if (session_call(session, "DestroyView", &request, SESSION_CALL_BOUND, &reply, &err) < 0)
        LOG(DEBUG, "vsphere_view_not_destroyed", F_ERR(&err));
}

static int first_page(struct provider_session *session, const struct property_scan *scan,
                      const char *view, struct soap_reply *out, struct error *err)
{
    auto_strbuf request;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "RetrievePropertiesEx", "PropertyCollector",
               session->content.property_collector);
    strbuf_add(&request, "<specSet>");
    for (size_t i = 0; i < scan->set_count; i++)
        add_property_set(&request, &scan->sets[i]);
    strbuf_add(&request, "<objectSet>");
    soap_add_ref(&request, "obj", "ContainerView", view);
    strbuf_add(&request, "<skip>true</skip><selectSet xsi:type=\"TraversalSpec\"><name>view</name>"
                         "<type>ContainerView</type><path>view</path><skip>false</skip></selectSet>"
                         "</objectSet></specSet><options>");
    strbuf_addf(&request, "<maxObjects>%d</maxObjects></options>", PROPERTY_PAGE_OBJECTS);
    soap_end(&request, "RetrievePropertiesEx");
    return session_call(session, "RetrievePropertiesEx", &request, SESSION_CALL_BOUND, out, err);
}

static int next_page(struct provider_session *session, const char *token, struct soap_reply *out,
                     struct error *err)
{
    auto_strbuf request;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "ContinueRetrievePropertiesEx", "PropertyCollector",
               session->content.property_collector);
    soap_add(&request, "token", token);
    soap_end(&request, "ContinueRetrievePropertiesEx");
    return session_call(session, "ContinueRetrievePropertiesEx", &request, SESSION_CALL_BOUND, out,
                        err);
}

/* Leaving early frees the server's half of the paging. */
static void cancel_pages(struct provider_session *session, const char *token)
{
    auto_strbuf request;
    auto_soap_reply reply = {0};
    struct error err = ERROR_NONE;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "CancelRetrievePropertiesEx", "PropertyCollector",
               session->content.property_collector);
    soap_add(&request, "token", token);
    soap_end(&request, "CancelRetrievePropertiesEx");
    if (session_call(session, "CancelRetrievePropertiesEx", &request, SESSION_CALL_BOUND, &reply,
                     &err) < 0)
        LOG(DEBUG, "vsphere_paging_not_cancelled", F_ERR(&err));
}

static int deliver(const struct property_scan *scan, const xmlNode *result, struct error *err)
{
    for (const xmlNode *object = soap_child(result, "objects"); object != NULL;
         object = soap_next(object)) {
        if (scan->each(scan->arg, object, err) < 0)
            return -1;
    }
    return scan->page_end == NULL ? 0 : scan->page_end(scan->arg, err);
}

/* Gives one page away; *token is that of the next one, "" at the end. */
static int take_page(const struct property_scan *scan, const struct soap_reply *reply, char **token,
                     struct error *err)
{
    const xmlNode *result = soap_child(reply->response, "returnval");
    char *next = xstrdup(soap_text(result, "token"));

    free(*token);
    *token = next;
    return deliver(scan, result, err);
}

static int run_view(struct provider_session *session, const struct property_scan *scan,
                    const char *view, struct error *err)
{
    autofree char *token = NULL;

    for (int page = 0; page < PROPERTY_PAGES_MAX; page++) {
        auto_soap_reply reply = {0};
        int rc = page == 0 ? first_page(session, scan, view, &reply, err)
                           : next_page(session, token, &reply, err);
        if (rc < 0) {
            /* The view is what was not found: it died with an older login. */
            if (err->code == ERR_NOT_FOUND)
                err->code = ERR_UNAVAILABLE;
            return -1;
        }
        if (take_page(scan, &reply, &token, err) < 0) {
            if (token[0] != '\0')
                cancel_pages(session, token);
            return -1;
        }
        if (token[0] == '\0')
            return 0;
    }
    return error_set(err, ERR_LIMIT, "the listing has more than %d pages", PROPERTY_PAGES_MAX);
}

int property_scan_run(struct provider_session *session, const struct property_scan *scan,
                      struct error *err)
{
    autofree char *view = NULL;
    int rc;

    if (session_login(session, err) < 0 || view_create(session, scan, &view, err) < 0)
        return -1;
    rc = run_view(session, scan, view, err);
    view_destroy(session, view);
    return rc;
}
