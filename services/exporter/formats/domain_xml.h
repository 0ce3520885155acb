/* A libvirt domain for an export: minimal, correct, accepted by `virsh define` without edits. */
#ifndef EXPORTER_DOMAIN_XML_H
#define EXPORTER_DOMAIN_XML_H

#include <jansson.h>

#include "common/error.h"

#define DOMAIN_XML_BYTES_MAX ((size_t)MIB)
#define DOMAIN_DISKS_MAX     64

enum domain_net_kind {
    DOMAIN_NET_NETWORK, /* a libvirt network */
    DOMAIN_NET_BRIDGE,  /* a bridge of the host */
    DOMAIN_NET_USER,    /* QEMU's own NAT: needs no rights; target is not used */
};

#define DOMAIN_NET_ANY "*" /* source of a default that someone chose: nothing is amiss then */
struct domain_network {    /* source network -> where it goes; borrowed */
    const char *source;
    enum domain_net_kind kind;
    const char *target; /* name of the libvirt network or of the bridge */
};

struct domain_origin { /* goes into the domain's metadata (DOMAIN_ORIGIN_URI); borrowed, no NULLs */
    const char *job_id;
    const char *export_path;
    const char *provider;
    const char *vm_id;
    const char *vm_name;
};
#define DOMAIN_ORIGIN_URI \
    "urn:hypersdk:import" /* its element is "import", its members attributes */

struct domain_options {
    const char *name;      /* NULL: the manifest's source.vm_name */
    const char *uuid;      /* NULL: the manifest's vm.uuid if it is one; "": libvirt makes one */
    const char *type;      /* NULL: "kvm"; "qemu": emulated; "test": libvirt's mock driver */
    bool guest_fixed;      /* the guest has virtio drivers and an initramfs that loads them */
    const char *dir;       /* of the manifest, for disks that were moved with it; may be NULL */
    const char *final_dir; /* the disk files will be moved there: the XML says so; may be NULL */
    /* Where the disks are for libvirt, in boot order, one each; not looked at. NULL: as above. */
    const char *const *paths;
    const struct domain_network *networks;
    size_t network_count;
    const struct domain_network *network_default; /* for all others; NULL: network "default" */
    const struct domain_origin *origin;           /* NULL: no metadata */
};

/* The name that the domain gets: libvirt refuses '/' and control bytes, file names are short.
 * wanted: NULL or "" means the manifest's source.vm_name. Caller frees, never empty. */
char *domain_xml_name(const json_t *manifest, const char *wanted);
bool domain_xml_is_uuid(const char *text);

/* *out: the XML, caller frees. Texts for the user (networks not mapped, TPM content lost ...) are
 * appended to the array `warnings`, if given. The disks are the manifest's, in its boot order;
 * ERR_INVALID when it is no valid manifest, ERR_NOT_FOUND when a disk file is missing. */
MUST_CHECK int domain_xml_build(const json_t *manifest, const struct domain_options *options,
                                json_t *warnings, char **out, struct error *err);

#endif
