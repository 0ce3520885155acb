/* Snapshots of a domain: found, described, made. */
#ifndef BRIDGE_LIBVIRT_SNAPSHOT_H
#define BRIDGE_LIBVIRT_SNAPSHOT_H

#include "call.h"

/* 1: *out is it. 0: there is none. */
MUST_CHECK int snapshot_find(virDomainPtr domain, const char *name, virDomainSnapshotPtr *out,
                             struct error *err);
/* {name, description, creation_time, state, parent, current}. New reference. */
MUST_CHECK int snapshot_facts(virDomainSnapshotPtr snapshot, json_t **out, struct error *err);

struct snapshot_wish {
    const char *name; /* "": <prefix>-<time> */
    const char *prefix;
    const char *description;
    bool disk_only; /* overlay files instead of a snapshot inside the images */
    bool quiesce;
    bool atomic;
    size_t index; /* of the domain in the call */
};
/* Puts domain and snapshot into answer. ERR_CONFLICT: the name is taken. */
MUST_CHECK int snapshot_make(struct hv_call *call, virDomainPtr domain,
                             const struct snapshot_wish *wish, json_t *answer, struct error *err);

#endif
