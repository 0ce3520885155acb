/* The task kind "import": images that exist become a domain of libvirt; and "release", which takes
 * back what a dead import left (docs/tasks.md).
 *
 * Before anything is made outside, a record says what: images.<n> (a volume), domain, replaced.<n>
 * (the definition that ours takes the place of). A later lease looks first and goes on; an end
 * without success takes everything back. A domain is ours when its metadata names our job. */
#ifndef BRIDGE_LIBVIRT_IMPORT_H
#define BRIDGE_LIBVIRT_IMPORT_H

#include "services/hyper2kvm-bridge/bridge.h"

/* arg is the struct bridge. */
int import_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err);
int import_release_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err);

/* libvirt.domain_type, libvirt.networks: texts to put into problems. */
MUST_CHECK int import_check_config(const struct libvirt_config *config, struct strbuf *problems);

/* Looks at libvirt.uri now and then, in a thread of its own, and keeps a connection to it. */
void import_probe_start(const struct libvirt_config *config);
/* {"uri", "available", "error"} as last seen. New reference. */
json_t *import_probe_record(void);

#endif
