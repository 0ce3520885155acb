/* What an import's spec asks for, checked: the images, the manifest that describes the machine, and
 * where it goes. Knows nothing of libvirt. */
#ifndef BRIDGE_LIBVIRT_PLAN_H
#define BRIDGE_LIBVIRT_PLAN_H

#include "services/hyper2kvm-bridge/convert.h"

enum plan_clash { PLAN_FAIL, PLAN_RENAME, PLAN_REPLACE }; /* if_exists */

struct import_plan {
    json_t *manifest; /* its disks are the images, in boot order */
    char *images[CONVERT_DISKS_MAX];
    size_t count;
    char *name;              /* of the domain, as wanted */
    char *export_path;       /* "": not known */
    const char *uri;         /* borrowed from the spec or the configuration, as all below */
    const char *pool;        /* "": the images are used where they are */
    const char *domain_type; /* kvm, qemu, auto */
    enum plan_clash clash;
    bool guest_fixed;
    bool autostart;
    bool start;
    struct domain_network *networks; /* of the configuration */
    size_t network_count;
    struct domain_network network_default;
};

/* ERR_DENIED: an image outside of the allowed directories, or a URI that is not allowed.
 * ERR_NOT_AVAILABLE: an image that stands on others. */
MUST_CHECK int plan_read(const json_t *spec, const struct bridge *bridge, struct import_plan *out,
                         struct error *err);
void plan_release(struct import_plan *plan);
#define auto_plan CLEANUP(plan_release) struct import_plan

/* ERR_DENIED: neither the configuration's nor among those that it allows. */
MUST_CHECK int plan_check_uri(const struct libvirt_config *config, const char *uri,
                              struct error *err);
/* Does a finished export stand in the directory? ERR_CONFLICT: a restore point does, whose images
 * others stand on. */
MUST_CHECK int plan_is_export(const char *dir, bool *out, struct error *err);

/* "<source>=network:<name>", "<source>=bridge:<name>", "<source>=user". The texts of *out are
 * allocated. ERR_INVALID. */
MUST_CHECK int plan_network(const char *text, struct domain_network *out, struct error *err);

#endif
