/* The task kind "libvirt": one call of the libvirt endpoints (docs/tasks.md). The spec names the
 * call ("op") and carries its parameters, which the gateway has checked; every module call_*.c
 * holds a few of them.
 *
 * A libvirtd that is silent is given up after HV_CALL_TIMEOUT_MS, so that who waits at the gateway
 * hears of it. */
#ifndef BRIDGE_LIBVIRT_CALL_H
#define BRIDGE_LIBVIRT_CALL_H

#include "connection.h"
#include "services/hyper2kvm-bridge/bridge.h"

/* Opening and a call that hangs are 20 s at most; the gateway waits 30 s. */
#define HV_CALL_TIMEOUT_MS 10000
#define HV_LIST_BYTES_MAX  ((size_t)(384 * KIB)) /* a task's result has at most 512 KiB */
#define HV_LIST_MAX        1000

/* arg is the struct bridge. */
int libvirt_call_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err);

struct hv_call { /* for the modules */
    struct worker_task *task;
    const struct bridge *bridge;
    const json_t *spec; /* borrowed */
    const char *uri;
    virConnectPtr connection;
};
/* Fill `answer`, an object. */
int call_domains(struct hv_call *call, json_t *answer, struct error *err);
int call_domain(struct hv_call *call, json_t *answer, struct error *err);
int call_console(struct hv_call *call, json_t *answer, struct error *err);
int call_stats(struct hv_call *call, json_t *answer, struct error *err);
int call_snapshots(struct hv_call *call, json_t *answer, struct error *err);
int call_pools(struct hv_call *call, json_t *answer, struct error *err);
int call_volumes(struct hv_call *call, json_t *answer, struct error *err);
int call_networks(struct hv_call *call, json_t *answer, struct error *err);

int call_power(struct hv_call *call, json_t *answer, struct error *err);
int call_autostart(struct hv_call *call, json_t *answer, struct error *err);
int call_snapshot_create(struct hv_call *call, json_t *answer, struct error *err);
int call_snapshot_revert(struct hv_call *call, json_t *answer, struct error *err);
int call_snapshot_delete(struct hv_call *call, json_t *answer, struct error *err);

int call_delete(struct hv_call *call, json_t *answer, struct error *err);
int call_batch(struct hv_call *call, json_t *answer, struct error *err);
int call_volume_create(struct hv_call *call, json_t *answer, struct error *err);
int call_volume_delete(struct hv_call *call, json_t *answer, struct error *err);
int call_volume_resize(struct hv_call *call, json_t *answer, struct error *err);

/* Asked before everything that changes something. ERR_CANCELLED: the task is not ours any more. */
MUST_CHECK int call_may_act(const struct hv_call *call, struct error *err);
/* What must not be done twice is noted before it is done, for each domain of the call (index; 0
 * when there is one only) in parts: a later lease of the task sees it. NULL: that was not noted. */
const char *call_noted(const struct hv_call *call, size_t index, size_t part);
MUST_CHECK int call_note(struct hv_call *call, size_t index, size_t part, const char *value,
                         struct error *err);

/* The domain of that name or UUID. ERR_NOT_FOUND. */
MUST_CHECK int call_find(struct hv_call *call, const char *name, virDomainPtr *out,
                         struct error *err);

/* A page of a list, in the order of the names: of what comes behind spec.cursor at most spec.limit
 * and at most HV_LIST_BYTES_MAX. answer[member] = facts, total, next_cursor if there are more. */
struct hv_item {
    const char *name; /* borrowed from the handle */
    void *handle;
};
struct hv_page {
    const char *member; /* "domains" */
    struct hv_item *items;
    size_t count;
    /* *out: new reference. ERR_NOT_FOUND: it has just gone, the list goes on without it. */
    int (*facts)(const struct hv_call *call, void *handle, json_t **out, struct error *err);
};
MUST_CHECK int call_page(const struct hv_call *call, const struct hv_page *page, json_t *answer,
                         struct error *err);

#endif
