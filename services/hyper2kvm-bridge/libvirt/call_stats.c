/* What domains use: CPU, memory, disks, network. Counters since the domain was started. */
#include <libvirt/virterror.h>
#include <stdio.h>
#include <string.h>

#include "call.h"
#include "common/autos.h"
#include "common/json.h"
#include "domain.h"

#define DEVICES_MAX 256 /* disks or NICs of one domain that are shown */
#define FIELD_BYTES 80  /* libvirt's names have 80 bytes at most (VIR_TYPED_PARAM_FIELD_LENGTH) */
static_assert(FIELD_BYTES == VIR_TYPED_PARAM_FIELD_LENGTH, "names of libvirt's parameters");

struct renamed {
    const char *ours;
    const char *theirs; /* behind "block.<n>." and the like */
    unsigned int unit;  /* of theirs, in ours */
};

static bool number(const virDomainStatsRecord *record, const char *name, unsigned long long *out)
{
    for (int i = 0; i < record->nparams; i++) {
        const virTypedParameter *p = &record->params[i];
        if (strcmp(p->field, name) != 0)
            continue;
        if (p->type == VIR_TYPED_PARAM_ULLONG) {
            *out = p->value.ul;
        } else if (p->type == VIR_TYPED_PARAM_UINT) {
            *out = p->value.ui;
        } else if (p->type == VIR_TYPED_PARAM_INT && p->value.i >= 0) {
            *out = (unsigned long long)p->value.i;
        } else if (p->type == VIR_TYPED_PARAM_LLONG && p->value.l >= 0) {
            *out = (unsigned long long)p->value.l;
        } else {
            return false;
        }
        return true;
    }
    return false;
}

static void copy_text(const virDomainStatsRecord *record, const char *name, json_t *to,
                      const char *key)
{
    for (int i = 0; i < record->nparams; i++) {
        const virTypedParameter *p = &record->params[i];
        if (p->type == VIR_TYPED_PARAM_STRING && strcmp(p->field, name) == 0)
            json_set_text(to, key, p->value.s);
    }
}

/* What libvirt does not tell is null, not 0. */
static void copy_numbers(const virDomainStatsRecord *record, const char *prefix,
                         const struct renamed *names, json_t *to)
{
    for (; names->ours != NULL; names++) {
        char name[FIELD_BYTES];
        unsigned long long value = 0;
        (void)snprintf(name, sizeof name, "%s%s", prefix, names->theirs);
        json_put(to, names->ours,
                 number(record, name, &value) &&
                         value <= (unsigned long long)INT64_MAX / names->unit
                     ? json_integer((json_int_t)(value * names->unit))
                     : json_null());
    }
}

static json_t *devices(const virDomainStatsRecord *record, const char *group, const char *named,
                       const struct renamed *names)
{
    json_t *list = json_array();
    char prefix[FIELD_BYTES];
    char name[FIELD_BYTES];
    unsigned long long count = 0;

    (void)snprintf(prefix, sizeof prefix, "%s.count", group);
    (void)number(record, prefix, &count);
    for (unsigned long long i = 0; i < count && i < DEVICES_MAX; i++) {
        json_t *device = json_object();
        (void)snprintf(prefix, sizeof prefix, "%s.%llu.", group, i);
        (void)snprintf(name, sizeof name, "%.60sname", prefix);
        copy_text(record, name, device, "name");
        (void)snprintf(name, sizeof name, "%.60s%s", prefix, named);
        copy_text(record, name, device, named);
        copy_numbers(record, prefix, names, device);
        (void)json_array_append_new(list, device);
    }
    return list;
}

/* Drivers that count less (test:///default) still know this much. */
static int add_basics(virDomainPtr domain, json_t *cpu, json_t *memory, struct error *err)
{
    virDomainInfo info;

    if (virDomainGetInfo(domain, &info) < 0)
        return hv_error(err, "domain '%.128s'", virDomainGetName(domain));
    if (json_is_null(json_object_get(cpu, "time_ns")))
        json_put(cpu, "time_ns", json_integer((json_int_t)info.cpuTime));
    if (json_is_null(json_object_get(cpu, "vcpus")))
        json_put(cpu, "vcpus", json_integer(info.nrVirtCpu));
    if (json_is_null(json_object_get(memory, "current_bytes")))
        json_put(memory, "current_bytes", json_integer((json_int_t)info.memory * 1024));
    if (json_is_null(json_object_get(memory, "maximum_bytes")))
        json_put(memory, "maximum_bytes", json_integer((json_int_t)info.maxMem * 1024));
    return 0;
}

static int stats_facts(const struct hv_call *call, void *handle, json_t **out, struct error *err)
{
    static const struct renamed cpu_names[] = {{"time_ns", "cpu.time", 1},
                                               {"user_ns", "cpu.user", 1},
                                               {"system_ns", "cpu.system", 1},
                                               {"vcpus", "vcpu.current", 1},
                                               {0}};
    static const struct renamed memory_names[] = {{"current_bytes", "balloon.current", 1024},
                                                  {"maximum_bytes", "balloon.maximum", 1024},
                                                  {"unused_bytes", "balloon.unused", 1024},
                                                  {"rss_bytes", "balloon.rss", 1024},
                                                  {0}};
    static const struct renamed disk_names[] = {
        {"read_bytes", "rd.bytes", 1},     {"read_requests", "rd.reqs", 1},
        {"write_bytes", "wr.bytes", 1},    {"write_requests", "wr.reqs", 1},
        {"capacity_bytes", "capacity", 1}, {"allocation_bytes", "allocation", 1},
        {"physical_bytes", "physical", 1}, {0}};
    static const struct renamed nic_names[] = {
        {"rx_bytes", "rx.bytes", 1},  {"rx_packets", "rx.pkts", 1}, {"rx_errors", "rx.errs", 1},
        {"rx_dropped", "rx.drop", 1}, {"tx_bytes", "tx.bytes", 1},  {"tx_packets", "tx.pkts", 1},
        {"tx_errors", "tx.errs", 1},  {"tx_dropped", "tx.drop", 1}, {0}};
    const virDomainStatsRecord *record = handle;
    auto_json *facts = json_object();
    json_t *cpu = json_object();
    json_t *memory = json_object();

    (void)call;
    json_set_text(facts, "name", virDomainGetName(record->dom));
    json_set_text(facts, "state", domain_state(record->dom));
    json_put(facts, "cpu", cpu);
    json_put(facts, "memory", memory);
    copy_numbers(record, "", cpu_names, cpu);
    copy_numbers(record, "", memory_names, memory);
    json_put(facts, "disks", devices(record, "block", "path", disk_names));
    json_put(facts, "nics", devices(record, "net", "path", nic_names));
    if (add_basics(record->dom, cpu, memory, err) < 0)
        return -1;
    *out = STEAL(facts);
    return 0;
}

/* ---- the call ---- */

struct records {
    virDomainStatsRecordPtr *items;
    int count;
};

static void records_release(struct records *records)
{
    if (records->items != NULL)
        virDomainStatsRecordListFree(records->items);
}

/* A domain that is busy with something long (a migration, a snapshot) is not waited for. */
static int read_records(struct hv_call *call, virDomainPtr domain, struct records *out,
                        struct error *err)
{
    const unsigned int flags[] = {VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT, 0};
    virDomainPtr one[] = {domain, NULL};

    for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
        out->count = domain == NULL
                         ? virConnectGetAllDomainStats(call->connection, 0, &out->items, flags[i])
                         : virDomainListGetStats(one, 0, &out->items, flags[i]);
        if (out->count >= 0)
            return 0;
        if (hv_error_number() != VIR_ERR_INVALID_ARG) /* a driver without that flag */
            break;
    }
    return hv_error(err, "statistics of libvirt at '%.128s'", call->uri);
}

static int one_domain(struct hv_call *call, const char *name, json_t *answer, struct error *err)
{
    CLEANUP(records_release) struct records records = {0};
    auto_domain domain = NULL;
    auto_json *facts = NULL;

    if (call_find(call, name, &domain, err) < 0 || read_records(call, domain, &records, err) < 0)
        return -1;
    if (records.count == 0)
        return error_set(err, ERR_NOT_FOUND, "domain '%.255s' is gone", name);
    if (stats_facts(call, records.items[0], &facts, err) < 0)
        return -1;
    (void)json_object_update(answer, facts);
    return 0;
}

int call_stats(struct hv_call *call, json_t *answer, struct error *err)
{
    CLEANUP(records_release) struct records all = {0};
    autofree struct hv_item *items = NULL;
    struct hv_page page = {.member = "domains", .facts = stats_facts};
    const char *name = json_str(call->spec, "name");

    if (name[0] != '\0')
        return one_domain(call, name, answer, err);
    if (read_records(call, NULL, &all, err) < 0)
        return -1;
    page.items = items = xcalloc((size_t)all.count + 1, sizeof *items);
    page.count = (size_t)all.count;
    for (size_t i = 0; i < page.count; i++)
        items[i] = (struct hv_item){virDomainGetName(all.items[i]->dom), all.items[i]};
    return call_page(call, &page, answer, err);
}
