/* See call.h. */
#include "call.h"

#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "domain.h"
#include "plan.h"
#include "services/exporter/formats/domain_xml.h"

#define NOTE_KEY       "libvirt.%zu.%zu"
#define NOTE_KEY_BYTES 60

static const struct {
    const char *name;
    int (*run)(struct hv_call *call, json_t *answer, struct error *err);
} calls[] = {
    {"domains", call_domains},
    {"domain", call_domain},
    {"console", call_console},
    {"stats", call_stats},
    {"snapshots", call_snapshots},
    {"pools", call_pools},
    {"volumes", call_volumes},
    {"networks", call_networks},
    {"power", call_power},
    {"autostart", call_autostart},
    {"snapshot_create", call_snapshot_create},
    {"snapshot_revert", call_snapshot_revert},
    {"snapshot_delete", call_snapshot_delete},
    {"delete", call_delete},
    {"batch", call_batch},
    {"volume_create", call_volume_create},
    {"volume_delete", call_volume_delete},
    {"volume_resize", call_volume_resize},
};

int call_find(struct hv_call *call, const char *name, virDomainPtr *out, struct error *err)
{
    int found = domain_by_name(call->connection, name, out, err);

    if (found == 0 && domain_xml_is_uuid(name))
        found = domain_by_uuid(call->connection, name, out, err);
    if (found == 0) {
        return error_set(err, ERR_NOT_FOUND, "libvirt at '%.128s' has no domain '%.255s'",
                         call->uri, name);
    }
    return found < 0 ? -1 : 0;
}

int call_may_act(const struct hv_call *call, struct error *err)
{
    return worker_task_check(call->task, err) < 0 ? -1 : worker_task_may_write(call->task, err);
}

const char *call_noted(const struct hv_call *call, size_t index, size_t part)
{
    char key[NOTE_KEY_BYTES];

    (void)snprintf(key, sizeof key, NOTE_KEY, index, part);
    return worker_task_record_get(call->task, key);
}

int call_note(struct hv_call *call, size_t index, size_t part, const char *value, struct error *err)
{
    char key[NOTE_KEY_BYTES];

    (void)snprintf(key, sizeof key, NOTE_KEY, index, part);
    return worker_task_record_put(call->task, key, value, err);
}

/* ---- lists ---- */

static int by_name(const void *a, const void *b)
{
    const struct hv_item *one = a;
    const struct hv_item *other = b;

    return strcmp(one->name, other->name);
}

/* Where the page begins. */
static size_t skip(const struct hv_page *page, const char *cursor)
{
    size_t first = 0;

    while (first < page->count && cursor[0] != '\0' && strcmp(page->items[first].name, cursor) <= 0)
        first++;
    return first;
}

int call_page(const struct hv_call *call, const struct hv_page *page, json_t *answer,
              struct error *err)
{
    json_t *list = json_array();
    uint64_t limit = json_u64(call->spec, "limit");
    size_t bytes = 0;

    json_put(answer, page->member, list);
    json_put(answer, "total", json_integer((json_int_t)page->count));
    if (page->count > 0)
        qsort(page->items, page->count, sizeof *page->items, by_name);
    if (limit == 0 || limit > HV_LIST_MAX)
        limit = HV_LIST_MAX;
    for (size_t i = skip(page, json_str(call->spec, "cursor")); i < page->count; i++) {
        json_t *facts = NULL;
        if (json_array_size(list) >= limit || bytes >= HV_LIST_BYTES_MAX) {
            json_set_text(answer, "next_cursor", page->items[i - 1].name);
            return 0;
        }
        if (page->facts(call, page->items[i].handle, &facts, err) < 0) {
            if (err->code != ERR_NOT_FOUND)
                return -1;
            error_clear(err);
            continue;
        }
        bytes += json_dumpb(facts, NULL, 0, JSON_COMPACT);
        (void)json_array_append_new(list, facts);
    }
    return 0;
}

/* ---- the task ---- */

/* Whatever keeps us out, the answer is the same: libvirt cannot be reached, and here is what to
 * look at. */
static int open_connection(struct hv_call *call, struct error *err)
{
    int64_t timeout_ms = call->bridge->libvirt.timeout_ms;
    struct error why = ERROR_NONE;

    if (timeout_ms > HV_CALL_TIMEOUT_MS)
        timeout_ms = HV_CALL_TIMEOUT_MS;
    if (hv_open(call->uri, timeout_ms, &call->connection, &why) == 0)
        return 0;
    return error_set(err, why.code == ERR_TIMEOUT ? ERR_TIMEOUT : ERR_UNAVAILABLE,
                     "%s; libvirtd must run there and let the user of hyper2kvm-bridge in, or "
                     "libvirt.uri must name another one",
                     why.message);
}

static int run_named(struct hv_call *call, json_t *answer, struct error *err)
{
    const char *name = json_str(call->spec, "op");

    for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
        if (strcmp(calls[i].name, name) == 0)
            return calls[i].run(call, answer, err);
    }
    return error_set(err, ERR_NOT_AVAILABLE, "this bridge knows no call '%.32s'", name);
}

static void call_release(struct hv_call *call)
{
    hv_close(call->connection);
}

int libvirt_call_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    const struct bridge *bridge = arg;
    CLEANUP(call_release)
    struct hv_call call = {task, bridge, worker_task_spec(task), bridge->libvirt.uri, NULL};
    auto_json *answer = json_object();

    if (json_get_string(call.spec, "uri", call.uri, &call.uri, err) < 0 ||
        plan_check_uri(&bridge->libvirt, call.uri, err) < 0 || open_connection(&call, err) < 0 ||
        run_named(&call, answer, err) < 0)
        return -1;
    *out_result = json_pack("{s:O}", "answer", answer);
    return 0;
}
