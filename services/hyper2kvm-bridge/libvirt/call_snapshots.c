/* Snapshots of domains. */
#include "call.h"
#include "common/json.h"
#include "domain.h"
#include "snapshot.h"

static int facts_of(const struct hv_call *call, void *handle, json_t **out, struct error *err)
{
    (void)call;
    return snapshot_facts(handle, out, err);
}

int call_snapshots(struct hv_call *call, json_t *answer, struct error *err)
{
    CLEANUP(hv_snapshot_list_release) struct hv_snapshot_list all = {0};
    autofree struct hv_item *items = NULL;
    struct hv_page page = {.member = "snapshots", .facts = facts_of};
    auto_domain domain = NULL;

    if (call_find(call, json_str(call->spec, "name"), &domain, err) < 0)
        return -1;
    json_set_text(answer, "domain", virDomainGetName(domain));
    all.count = virDomainListAllSnapshots(domain, &all.items, 0);
    if (all.count < 0)
        return hv_error(err, "snapshots of domain '%.128s'", virDomainGetName(domain));
    page.items = items = xcalloc((size_t)all.count + 1, sizeof *items);
    page.count = (size_t)all.count;
    for (size_t i = 0; i < page.count; i++)
        items[i] = (struct hv_item){virDomainSnapshotGetName(all.items[i]), all.items[i]};
    return call_page(call, &page, answer, err);
}

static bool flag(const struct hv_call *call, const char *name)
{
    return json_is_true(json_object_get(call->spec, name));
}

int call_snapshot_create(struct hv_call *call, json_t *answer, struct error *err)
{
    const struct snapshot_wish wish = {
        .name = json_str(call->spec, "snapshot_name"),
        .prefix = "snap",
        .description = json_str(call->spec, "description"),
        .disk_only = flag(call, "disk_only"),
        .quiesce = flag(call, "quiesce"),
    };
    auto_domain domain = NULL;

    if (call_find(call, json_str(call->spec, "name"), &domain, err) < 0)
        return -1;
    return snapshot_make(call, domain, &wish, answer, err);
}

/* The snapshot that the call names, and its domain. */
static int find_snapshot(struct hv_call *call, virDomainPtr *out_domain, virDomainSnapshotPtr *out,
                         struct error *err)
{
    const char *name = json_str(call->spec, "snapshot_name");
    int found;

    if (call_find(call, json_str(call->spec, "name"), out_domain, err) < 0)
        return -1;
    found = snapshot_find(*out_domain, name, out, err);
    if (found == 0) {
        return error_set(err, ERR_NOT_FOUND, "domain '%.128s' has no snapshot '%.255s'",
                         virDomainGetName(*out_domain), name);
    }
    return found < 0 ? -1 : 0;
}

static void say(json_t *answer, virDomainPtr domain, char *message_taken)
{
    autofree char *message = message_taken;

    json_set_text(answer, "status", "success");
    json_set_text(answer, "domain", virDomainGetName(domain));
    json_set_text(answer, "message", message);
    json_set_text(answer, "state", domain_state(domain));
}

int call_snapshot_revert(struct hv_call *call, json_t *answer, struct error *err)
{
    unsigned int flags = flag(call, "force") ? VIR_DOMAIN_SNAPSHOT_REVERT_FORCE : 0U;
    auto_domain domain = NULL;
    auto_snapshot snapshot = NULL;

    if (find_snapshot(call, &domain, &snapshot, err) < 0 || call_may_act(call, err) < 0)
        return -1;
    if (virDomainRevertToSnapshot(snapshot, flags) < 0) {
        return hv_error_of(err, "going back to snapshot '%.255s'",
                           virDomainSnapshotGetName(snapshot));
    }
    say(answer, domain,
        xasprintf("domain '%s' is what it was at snapshot '%s'", virDomainGetName(domain),
                  virDomainSnapshotGetName(snapshot)));
    return 0;
}

/* Names of what goes with it. */
static int list_removed(virDomainSnapshotPtr snapshot, bool children, json_t *removed,
                        struct error *err)
{
    CLEANUP(hv_snapshot_list_release) struct hv_snapshot_list below = {0};

    (void)json_array_append_new(removed, json_string(virDomainSnapshotGetName(snapshot)));
    if (!children)
        return 0;
    below.count = virDomainSnapshotListAllChildren(snapshot, &below.items,
                                                   VIR_DOMAIN_SNAPSHOT_LIST_DESCENDANTS);
    if (below.count < 0)
        return hv_error(err, "snapshots below '%.255s'", virDomainSnapshotGetName(snapshot));
    for (int i = 0; i < below.count; i++) {
        (void)json_array_append_new(removed, json_string(virDomainSnapshotGetName(below.items[i])));
    }
    return 0;
}

int call_snapshot_delete(struct hv_call *call, json_t *answer, struct error *err)
{
    bool children = flag(call, "children");
    json_t *removed = json_array();
    auto_domain domain = NULL;
    auto_snapshot snapshot = NULL;

    json_put(answer, "removed", removed);
    if (find_snapshot(call, &domain, &snapshot, err) < 0 ||
        list_removed(snapshot, children, removed, err) < 0 || call_may_act(call, err) < 0)
        return -1;
    if (virDomainSnapshotDelete(snapshot, children ? VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN : 0) < 0)
        return hv_error_of(err, "removing snapshot '%.255s'", virDomainSnapshotGetName(snapshot));
    say(answer, domain,
        xasprintf("%zu snapshots of domain '%s' are removed", json_array_size(removed),
                  virDomainGetName(domain)));
    return 0;
}
