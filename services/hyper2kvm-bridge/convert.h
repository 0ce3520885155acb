/* One conversion: an export that exists becomes images and a libvirt domain.
 *
 * Paths, in the order of choice: the hyper2kvm daemon's queue (when asked for and configured), a
 * direct call of hyper2kvm, the built-in path (the exporter has written qcow2 already; a domain
 * with the devices the guest knows is put next to it). The export itself is never written to by
 * hyper2kvm: it gets an overlay. */
#ifndef BRIDGE_CONVERT_H
#define BRIDGE_CONVERT_H

#include <jansson.h>

#include "bridge.h"

#define CONVERT_DISKS_MAX 64 /* VM_DISKS_MAX */

struct conversion {
    struct worker_task *task;
    const struct bridge *bridge;
    const char *job_id;
    char *export_dir;     /* confined */
    char *vm_file;        /* VM name as a file name */
    json_t *manifest;     /* of the export, with its disks replaced by their qcow2 files */
    bool queue;           /* daemon_mode */
    const json_t *stages; /* may be NULL */
    const char *format;   /* of the images */
    const char *instance; /* hyper2kvm@<instance> */
    int64_t timeout_ms;
    /* the result */
    const char *path_used; /* "queue" | "direct" | "builtin" */
    char *report;          /* of hyper2kvm; "" */
    char *domain_xml;
    json_t *output_files; /* array of paths */
    json_t *not_done;     /* array of texts: what nobody did to the guest */
    json_t *warnings;     /* array of texts */
};

/* The task kind "convert"; arg is the struct bridge. */
int convert_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err);

/* Is stage `name` wanted? (hyper2kvm_integration.stages, default yes) */
bool convert_stage(const struct conversion *c, const char *name);
void convert_remark(json_t *array, const char *format, ...) PRINTF_LIKE(2, 3);
/* Boot order: disk i of the manifest. */
const json_t *convert_disk(const struct conversion *c, size_t index);
size_t convert_disk_count(const struct conversion *c);
/* Puts <dir>/<vm>.xml for images[i] (one per disk of the manifest). */
MUST_CHECK int convert_write_domain(struct conversion *c, const char *dir,
                                    const char *const *images, bool guest_fixed, struct error *err);

/* The paths; each sets path_used and the result. ERR_NOT_FOUND of queue and direct: hyper2kvm is
 * not there, take the next. */
MUST_CHECK int builtin_convert(struct conversion *c, struct error *err);
MUST_CHECK int direct_convert(struct conversion *c, struct error *err);
MUST_CHECK int queue_convert(struct conversion *c, struct error *err);

#endif
