/* Snapshots of domains. */
#include "call.h"
#include "common/json.h"
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
