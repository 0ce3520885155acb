/* Snapshots of a domain: found and described. */
#ifndef BRIDGE_LIBVIRT_SNAPSHOT_H
#define BRIDGE_LIBVIRT_SNAPSHOT_H

#include <jansson.h>

#include "connection.h"

/* 1: *out is it. 0: there is none. */
MUST_CHECK int snapshot_find(virDomainPtr domain, const char *name, virDomainSnapshotPtr *out,
                             struct error *err);
/* {name, description, creation_time, state, parent, current}. New reference. */
MUST_CHECK int snapshot_facts(virDomainSnapshotPtr snapshot, json_t **out, struct error *err);

#endif
