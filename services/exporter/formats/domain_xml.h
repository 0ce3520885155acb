/* A libvirt domain for an export: minimal, correct, accepted by `virsh define` without edits. */
#ifndef EXPORTER_DOMAIN_XML_H
#define EXPORTER_DOMAIN_XML_H

#include <jansson.h>

#include "common/error.h"

#define DOMAIN_XML_BYTES_MAX ((size_t)MIB)
#define DOMAIN_DISKS_MAX     64

struct domain_network { /* source network -> where it goes; borrowed */
    const char *source;
    const char *target; /* name of a libvirt network or of a bridge */
    bool bridge;
};

struct domain_options {
    const char *name;      /* NULL: the manifest's source.vm_name */
    const char *uuid;      /* NULL: the manifest's vm.uuid if it is one; "": libvirt makes one */
    bool kvm;              /* false: emulated (type='qemu') */
    bool guest_fixed;      /* the guest has virtio drivers and an initramfs that loads them */
    const char *dir;       /* of the manifest, for disks that were moved with it; may be NULL */
    const char *final_dir; /* the disk files will be moved there: the XML says so; may be NULL */
    const struct domain_network *networks;
    size_t network_count;
    const char *network_default; /* libvirt network for all others; NULL: "default" */
};

/* *out: the XML, caller frees. Texts for the user (networks not mapped, TPM content lost ...) are
 * appended to the array `warnings`, if given. The disks are the manifest's, in its boot order;
 * ERR_INVALID when it is no valid manifest, ERR_NOT_FOUND when a disk file is missing. */
MUST_CHECK int domain_xml_build(const json_t *manifest, const struct domain_options *options,
                                json_t *warnings, char **out, struct error *err);

#endif
