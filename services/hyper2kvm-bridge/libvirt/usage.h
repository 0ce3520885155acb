/* Who uses which file: what must be known before one is removed. */
#ifndef BRIDGE_LIBVIRT_USAGE_H
#define BRIDGE_LIBVIRT_USAGE_H

#include <jansson.h>

#include "connection.h"

enum usage_scope {
    USAGE_ALL,     /* all domains, their snapshots, and volumes of the pools that run */
    USAGE_RUNNING, /* domains that run */
};

/* *out: path -> users as texts ("domain 'web'"); new reference. except: UUID of a domain that does
 * not count; NULL: all count. Images below others count as used by what is above, as far as libvirt
 * or the files themselves tell. */
MUST_CHECK int usage_read(virConnectPtr connection, enum usage_scope scope, const char *except,
                          json_t **out, struct error *err);
/* The first user of the file; NULL: there is none. Borrowed. */
const char *usage_of(const json_t *usage, const char *path);

/* Name of the file that a qcow2 image stands on, made absolute; NULL: none, or it is none of this
 * machine's readable files. Caller frees. */
char *usage_backing(const char *path);

#endif
