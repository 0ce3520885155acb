/* Domains of libvirt: found, told apart (ours or not), described, defined, taken back. */
#ifndef BRIDGE_LIBVIRT_DOMAIN_H
#define BRIDGE_LIBVIRT_DOMAIN_H

#include <jansson.h>

#include "connection.h"

/* 1: *out is it. 0: there is none. -1: error. */
MUST_CHECK int domain_by_name(virConnectPtr connection, const char *name, virDomainPtr *out,
                              struct error *err);
MUST_CHECK int domain_by_uuid(virConnectPtr connection, const char *uuid, virDomainPtr *out,
                              struct error *err);
/* The job that imported it, from its metadata; "": none did. *out: caller frees. */
MUST_CHECK int domain_origin_job(virDomainPtr domain, char **out, struct error *err);
MUST_CHECK int domain_is_active(virDomainPtr domain, bool *out, struct error *err);
/* "running", "paused", "shutdown" (on its way), "shutoff" (also one without a definition that is
 * gone) ...; "nostate" also when libvirt does not tell. */
const char *domain_state(virDomainPtr domain);
/* As libvirt has it now, rest-api.md section 8: name, uuid, id, state, cpus, memory_mb, autostart,
 * persistent, disks[{file, device, target, bus, format}], nics[{mac, model, type, source}]. New
 * reference. */
MUST_CHECK int domain_facts(virDomainPtr domain, json_t **out, struct error *err);
/* Removes its definition with what belongs to it only: saved state, what libvirt knows of its
 * snapshots, UEFI variables. One that runs goes on, without a definition. */
MUST_CHECK int domain_undefine(virDomainPtr domain, struct error *err);
/* Stops it if it runs and removes its definition, its UEFI variables and nothing else. */
MUST_CHECK int domain_remove(virDomainPtr domain, struct error *err);

#endif
