/* The endpoints below /libvirt: a control task "libvirt" of the bridge (docs/tasks.md), whose
 * answer is ours. What an endpoint takes stands in the table `endpoints`, by the route's operation.
 */
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "control_task.h"
#include "handlers.h"
#include "common/libvirt_wish.h"
#include "transport.h"

#define POWER_TIMEOUT_MAX_MS 600000 /* a guest that takes longer to shut down does not */

#define BATCH_DOMAINS_MAX 100
#define PREFIX_MAX        200 /* the time comes behind it */
#define VOLUME_BYTES_MAX  (UINT64_C(64) << 40)

#define URI_FIELD                                          \
    {                                                      \
        "uri", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL \
    }
#define NAME_FIELD                                                                          \
    {                                                                                       \
        "name", {"domain", "domain_name", "vm_name"}, FIELD_TEXT, 1, LIBVIRT_NAME_MAX, NULL \
    }
#define LIST_FIELDS                                           \
    {"limit", {NULL}, FIELD_NUMBER, 1, PAGE_LIMIT_MAX, NULL}, \
    {                                                         \
        "cursor", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL \
    }

static const struct field list_fields[] = {URI_FIELD, LIST_FIELDS, {0}};
static const struct field domain_fields[] = {URI_FIELD, NAME_FIELD, {0}};
static const struct field domain_list_fields[] = {URI_FIELD, NAME_FIELD, LIST_FIELDS, {0}};
static const struct field volumes_fields[] = {
    URI_FIELD,
    LIST_FIELDS,
    {"pool", {NULL}, FIELD_TEXT, 1, LIBVIRT_NAME_MAX, NULL},
    {"refresh", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {0}};

static const struct field power_fields[] = {
    URI_FIELD,
    NAME_FIELD,
    {"wait", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"timeout", {NULL}, FIELD_DURATION, 1000, POWER_TIMEOUT_MAX_MS, NULL},
    {0}};
static const struct field autostart_fields[] = {
    URI_FIELD, NAME_FIELD, {"autostart", {NULL}, FIELD_BOOL, 0, 0, NULL}, {0}};
#define SNAPSHOT_FIELDS                                                      \
    URI_FIELD, NAME_FIELD,                                                   \
    {                                                                        \
        "snapshot_name", {"snapshot"}, FIELD_TEXT, 1, LIBVIRT_NAME_MAX, NULL \
    }
static const struct field snapshot_create_fields[] = {
    SNAPSHOT_FIELDS,
    {"description", {NULL}, FIELD_TEXT, 0, FIELD_TEXT_MAX, NULL},
    {"disk_only", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"quiesce", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {0}};
static const struct field snapshot_revert_fields[] = {
    SNAPSHOT_FIELDS, {"force", {NULL}, FIELD_BOOL, 0, 0, NULL}, {0}};
static const struct field snapshot_delete_fields[] = {
    SNAPSHOT_FIELDS, {"children", {NULL}, FIELD_BOOL, 0, 0, NULL}, {0}};

static const struct field delete_fields[] = {URI_FIELD,
                                             NAME_FIELD,
                                             {"force", {NULL}, FIELD_BOOL, 0, 0, NULL},
                                             {"remove_storage", {NULL}, FIELD_BOOL, 0, 0, NULL},
                                             {0}};
#define VOLUME_FIELDS                                                            \
    URI_FIELD, {"pool", {NULL}, FIELD_TEXT, 1, LIBVIRT_NAME_MAX, NULL},          \
    {                                                                            \
        "volume", {"name", "volume_name"}, FIELD_TEXT, 1, LIBVIRT_NAME_MAX, NULL \
    }
#define CAPACITY_FIELD                                                    \
    {                                                                     \
        "capacity_bytes", {NULL}, FIELD_NUMBER, 1, VOLUME_BYTES_MAX, NULL \
    }
static const struct field volume_create_fields[] = {
    VOLUME_FIELDS, CAPACITY_FIELD, {"format", {NULL}, FIELD_TEXT, 1, 8, NULL}, {0}};
static const struct field volume_delete_fields[] = {VOLUME_FIELDS, {0}};
static const struct field volume_resize_fields[] = {VOLUME_FIELDS, CAPACITY_FIELD, {0}};
static const struct field batch_fields[] = {
    URI_FIELD,
    {"operation", {NULL}, FIELD_TEXT, 1, 16, NULL},
    {"domains", {NULL}, FIELD_TEXT_LIST, 0, BATCH_DOMAINS_MAX, NULL},
    {"paused", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"force", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"name_prefix", {NULL}, FIELD_TEXT, 1, PREFIX_MAX, NULL},
    {"description", {NULL}, FIELD_TEXT, 0, FIELD_TEXT_MAX, NULL},
    {"atomic", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"disk_only", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"remove_storage", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {0}};

static const struct endpoint {
    const char *operation; /* of the route */
    const char *op;        /* of the task's spec */
    const struct field *fields;
    const char *required[3]; /* fields; those in the path among them */
    unsigned int status;     /* of success */
    const char *action;      /* of the spec; NULL: none */
} endpoints[] = {
    {"listLibvirtDomains", "domains", list_fields, {NULL}, 200, NULL},
    {"getLibvirtDomain", "domain", domain_fields, {"name"}, 200, NULL},
    {"getLibvirtConsole", "console", domain_fields, {"name"}, 200, NULL},
    {"getLibvirtStats", "stats", domain_list_fields, {NULL}, 200, NULL},
    {"listLibvirtSnapshots", "snapshots", domain_list_fields, {"name"}, 200, NULL},
    {"listLibvirtPools", "pools", list_fields, {NULL}, 200, NULL},
    {"listLibvirtVolumes", "volumes", volumes_fields, {"pool"}, 200, NULL},
    {"listLibvirtNetworks", "networks", list_fields, {NULL}, 200, NULL},
    {"startLibvirtDomain", "power", power_fields, {"name"}, 200, "start"},
    {"shutdownLibvirtDomain", "power", power_fields, {"name"}, 200, "shutdown"},
    {"destroyLibvirtDomain", "power", power_fields, {"name"}, 200, "destroy"},
    {"rebootLibvirtDomain", "power", domain_fields, {"name"}, 200, "reboot"},
    {"pauseLibvirtDomain", "power", power_fields, {"name"}, 200, "pause"},
    {"resumeLibvirtDomain", "power", power_fields, {"name"}, 200, "resume"},
    {"autostartLibvirtDomain", "autostart", autostart_fields, {"name", "autostart"}, 200, NULL},
    {"deleteLibvirtDomain", "delete", delete_fields, {"name"}, 200, NULL},
    {"batchLibvirtDomains", "batch", batch_fields, {"operation", "domains"}, 200, NULL},
    {"createLibvirtVolume",
     "volume_create",
     volume_create_fields,
     {"pool", "volume", "capacity_bytes"},
     201,
     NULL},
    {"deleteLibvirtVolume", "volume_delete", volume_delete_fields, {"pool", "volume"}, 200, NULL},
    {"resizeLibvirtVolume",
     "volume_resize",
     volume_resize_fields,
     {"pool", "volume", "capacity_bytes"},
     200,
     NULL},
    {"createLibvirtSnapshot", "snapshot_create", snapshot_create_fields, {"name"}, 201, NULL},
    {"revertLibvirtSnapshot",
     "snapshot_revert",
     snapshot_revert_fields,
     {"name", "snapshot_name"},
     200,
     NULL},
    {"deleteLibvirtSnapshot",
     "snapshot_delete",
     snapshot_delete_fields,
     {"name", "snapshot_name"},
     200,
     NULL},
};

static const struct endpoint *endpoint_of(const struct call *call)
{
    for (size_t i = 0; i < ARRAY_LEN(endpoints); i++) {
        if (strcmp(endpoints[i].operation, call->route->operation) == 0)
            return &endpoints[i];
    }
    return NULL;
}

/* ---- what the client sends ---- */

/* Names go to libvirt's library only, but some end up in file names there. */
static int check_name(struct call *call, const char *field, const char *name, struct error *err)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._ -";

    if (name[strspn(name, allowed)] != '\0') {
        return call_bad_field(call, field, err,
                              "'%s': a name has letters, digits, '.', '_', ' ' and '-' only "
                              "(domains with other names: give their UUID)",
                              field);
    }
    if (name[0] == '-' || name[strspn(name, ".")] == '\0') {
        return call_bad_field(call, field, err,
                              "'%s': a name does not begin with '-' and is not only dots", field);
    }
    return 0;
}

static int check_names(struct call *call, const json_t *body, struct error *err)
{
    static const char *const fields[] = {"name", "pool", "volume", "snapshot_name", "name_prefix"};

    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        const char *name = field_text(body, fields[i], NULL);
        if (name != NULL && check_name(call, fields[i], name, err) < 0)
            return -1;
    }
    return 0;
}

static int check_query(struct call *call, const struct field *fields, struct error *err)
{
    const char *names[64];
    size_t count = 0;

    for (const struct field *f = fields; f->name != NULL; f++) {
        names[count++] = f->name;
        for (size_t i = 0; i < FIELD_ALIASES_MAX && f->aliases[i] != NULL; i++)
            names[count++] = f->aliases[i];
        assert(count + FIELD_ALIASES_MAX + 1 < ARRAY_LEN(names));
    }
    names[count] = NULL;
    return call_check_query(call, names, err);
}

/* What the path names as well must be the same. */
static int take_path(struct call *call, json_t *canonical, struct error *err)
{
    static const struct {
        const char *parameter;
        const char *field;
    } places[] = {{"name", "name"},
                  {"pool", "pool"},
                  {"volume", "volume"},
                  {"snapshot", "snapshot_name"},
                  {"operation", "operation"}};

    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        const char *named = call_param(call, places[i].parameter);
        const char *field = places[i].field;
        if (named[0] == '\0')
            continue;
        if (strcmp(field_text(canonical, field, named), named) != 0)
            return call_bad_field(call, field, err, "'%s' is not the one of the path", field);
        json_set_text(canonical, field, named);
    }
    return 0;
}

/* Each operation of a batch, and the fields that mean something to it. */
static const struct {
    const char *name;
    const char *fields[5];
} batches[] = {
    {"start", {"paused"}},
    {"stop", {"force"}},
    {"reboot", {"force"}},
    {"pause", {NULL}},
    {"resume", {NULL}},
    {"snapshot", {"name_prefix", "description", "atomic", "disk_only"}},
    {"delete", {"force", "remove_storage"}},
};

static int check_batch_fields(struct call *call, const json_t *body, const char *const *fields,
                              struct error *err)
{
    static const char *const common[] = {"uri", "operation", "domains", NULL};
    const char *key;
    json_t *value;

    json_object_foreach(json_unconst(body), key, value)
    {
        if (!word_in(key, common) && !word_in(key, fields)) {
            return call_bad_field(call, key, err, "'%s' means nothing to the operation '%s'", key,
                                  field_text(body, "operation", ""));
        }
    }
    return 0;
}

static int check_domains(struct call *call, const json_t *domains, struct error *err)
{
    auto_json *seen = json_object();
    const json_t *name;
    size_t i;

    if (json_array_size(domains) == 0)
        return call_bad_field(call, "domains", err, "'domains' names none");
    json_array_foreach(domains, i, name)
    {
        const char *text = json_string_value(name);
        if (strlen(text) > LIBVIRT_NAME_MAX) {
            return call_bad_field(call, "domains", err, "'domains': a name has at most %d bytes",
                                  LIBVIRT_NAME_MAX);
        }
        if (check_name(call, "domains", text, err) < 0)
            return -1;
        if (json_object_get(seen, text) != NULL)
            return call_bad_field(call, "domains", err, "'domains' names '%s' twice", text);
        json_put(seen, text, json_true());
    }
    return 0;
}

static void audit_json(struct call *call, const char *key, const json_t *value)
{
    autofree char *text = json_text(value);

    call_audit(call, key, text);
}

static int check_batch(struct call *call, const json_t *body, struct error *err)
{
    const char *name = field_text(body, "operation", "");

    for (size_t i = 0; i < ARRAY_LEN(batches); i++) {
        if (strcmp(batches[i].name, name) != 0)
            continue;
        call_audit(call, "operation", name);
        audit_json(call, "domains", json_object_get(body, "domains"));
        return check_batch_fields(call, body, batches[i].fields, err) < 0
                   ? -1
                   : check_domains(call, json_object_get(body, "domains"), err);
    }
    return call_bad_field(call, "operation", err,
                          "'operation': '%s' is not start, stop, reboot, pause, resume, snapshot "
                          "or delete",
                          name);
}

/* Fields that mean something only together with others. */
static int check_together(struct call *call, const json_t *body, struct error *err)
{
    static const char *const formats[] = {"qcow2", "raw", NULL};
    const char *format = field_text(body, "format", formats[0]);

    if (json_object_get(body, "operation") != NULL)
        return check_batch(call, body, err);
    if (!word_in(format, formats))
        return call_bad_field(call, "format", err, "'format': '%s' is not qcow2 or raw", format);
    if (field_bool(body, "quiesce", false) && !field_bool(body, "disk_only", false)) {
        return call_bad_field(
            call, "quiesce", err,
            "'quiesce' is for snapshots with 'disk_only': others hold the memory");
    }
    return 0;
}

/* By parameters, by body, or by the path: one canonical object. */
static int read_request(struct call *call, const struct endpoint *endpoint, json_t **out,
                        struct error *err)
{
    auto_json *parameters = NULL;
    auto_json *canonical = NULL;
    struct field_problem problem = {0};

    if (check_query(call, endpoint->fields, err) < 0)
        return -1;
    if (query_as_body(call, endpoint->fields, &parameters, err) < 0)
        return -1;
    if (call->body != NULL && json_object_size(parameters) > 0)
        return error_set(err, ERR_INVALID, "there are fields in the body and in the URL: use one");
    if (fields_canonical(endpoint->fields, "", call->body != NULL ? call->body : parameters,
                         &canonical, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (take_path(call, canonical, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(endpoint->required) && endpoint->required[i] != NULL; i++) {
        if (json_object_get(canonical, endpoint->required[i]) == NULL) {
            return call_bad_field(call, endpoint->required[i], err, "'%s' is missing",
                                  endpoint->required[i]);
        }
    }
    if (check_names(call, canonical, err) < 0 || check_together(call, canonical, err) < 0)
        return -1;
    if (libvirt_wish_check(&call->gateway->libvirt, canonical, "", &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    *out = STEAL(canonical);
    return 0;
}

/* ---- what the bridge answers ---- */

static int fail(struct call *call, const struct control_task *task, struct error *err)
{
    switch (task->error_code) {
    case ERR_NOT_FOUND: /* 404 */
    case ERR_CONFLICT:  /* 409 */
        return error_set(err, task->error_code, "%s", task->error);
    case ERR_TIMEOUT:
    case ERR_UNAVAILABLE:
        call->transport->error_slug = "libvirt_unreachable";
        break;
    case ERR_INTERNAL: /* libvirt's own word for "it did not work": its reason is worth knowing */
        call->transport->error_slug = "libvirt_failed";
        return call_fail(call, 422, NULL, err, task->error_code, "%s", task->error);
    case ERR_NONE:
    case ERR_INVALID:
    case ERR_DENIED:
    case ERR_LIMIT:
    case ERR_NOT_AVAILABLE:
    case ERR_SOURCE_CHANGED:
    case ERR_CANCELLED:
    case ERR_PROTOCOL:
    case ERR_CORRUPT:
        break;
    }
    return control_task_fail(call, task, NULL, err);
}

static int answer_task(struct call *call, const struct control_task *task, unsigned int status,
                       struct error *err)
{
    json_t *answer;

    if (!control_task_is_over(task)) {
        control_task_answer_later(call, task);
        return 0;
    }
    if (strcmp(task->state, "done") != 0)
        return fail(call, task, err);
    answer = json_deep_copy(json_object_get(task->result, "answer"));
    if (answer == NULL)
        return error_set(err, ERR_PROTOCOL, "the worker's answer holds nothing");
    if (json_integer_value(json_object_get(answer, "failed")) > 0) /* of a batch */
        audit_json(call, "failed", json_object_get(answer, "failed"));
    if (json_object_get(answer, "removed") != NULL)
        audit_json(call, "removed", json_object_get(answer, "removed"));
    json_set_now(answer, "timestamp");
    call_answer_json(call, status, answer);
    return 0;
}

int handle_libvirt(struct call *call, struct error *err)
{
    const struct endpoint *endpoint = endpoint_of(call);
    struct control_request request = {.kind = "libvirt",
                                      .provider = "",
                                      .provider_kind = "",
                                      .wait_ms = CONTROL_WAIT_MS,
                                      .bridge = true};
    auto_control_task task = {0};
    auto_json *spec = NULL;

    assert(endpoint != NULL);
    if (read_request(call, endpoint, &spec, err) < 0)
        return -1;
    if (json_object_get(spec, "name") != NULL)
        call_resource(call, "domain", field_text(spec, "name", ""));
    if (json_object_get(spec, "volume") != NULL)
        call_resource(call, "volume", field_text(spec, "volume", ""));
    json_set_text(spec, "op", endpoint->op);
    if (endpoint->action != NULL)
        json_set_text(spec, "action", endpoint->action);
    json_set_text(spec, "uri", field_text(spec, "uri", call->gateway->libvirt.uri));
    request.spec = spec;
    if (control_task_run(call, &request, &task, err) < 0)
        return -1;
    return answer_task(call, &task, endpoint->status, err);
}
