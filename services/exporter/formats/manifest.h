/* The artifact manifest v1.0: what an export tells hyper2kvm and the bridge (manifest-and-ovf
 * section 2). One json_t tree, written as artifact-manifest.json (the one hyper2kvm reads) and
 * manifest.yaml with the same content. */
#ifndef EXPORTER_MANIFEST_H
#define EXPORTER_MANIFEST_H

#include <jansson.h>

#include "common/config.h"
#include "services/exporter/engine/vm.h"

#define MANIFEST_VERSION   "1.0"
#define MANIFEST_JSON_NAME "artifact-manifest.json"
#define MANIFEST_YAML_NAME "manifest.yaml"
#define MANIFEST_BYTES_MAX ((size_t)MIB) /* 64 disks and 32 NICs need 50 KiB */
#define MANIFEST_DISKS_MAX 1000          /* of a stranger's file */

struct manifest_disk {    /* a finished file; borrowed */
    size_t vm_disk_index; /* into vm->disks: order, controller, label, change id */
    const char *format;   /* vmdk, qcow2, raw; ova: the disk is the member of the file */
    const char *member;   /* with ova: its name */
    const char *path;     /* absolute, final name; in the manifest's own directory */
    uint64_t file_bytes;
    const char *file_sha256;    /* 64 hex, or NULL */
    const char *content_digest; /* "sha256-tree-1m:...", or NULL */
};

struct manifest_warning {
    const char *stage;
    const char *message;
    int64_t wall_ms;
};

/* Stages for hyper2kvm. Without this object it runs nothing at all and says "success". */
struct manifest_pipeline {
    bool inspect;
    bool collect_guest_info;
    bool fix;
    const char *fstab_mode; /* stabilize-all, bypath-only, noop */
    bool update_grub;
    bool regen_initramfs;
    bool remove_vmware_tools;
    bool convert;
    bool compress;
    uint32_t compress_level; /* 1 to 9; 0 = left to hyper2kvm */
    bool validate;
};

struct manifest_facts {
    const struct vm *vm;
    const char *provider; /* kind: vsphere */
    const char *method;   /* how it was exported: folder, snapshot-folder */
    const char *job_id;
    const char *version; /* of the suite */
    int64_t export_wall_ms;
    const json_t *tags; /* object of strings, or NULL */
    const struct manifest_disk *disks;
    size_t disk_count;
    const char *const *notes;
    size_t note_count;
    const struct manifest_warning *warnings;
    size_t warning_count;
    const struct manifest_pipeline *pipeline; /* NULL: no pipeline wanted */
    const char *output_directory;             /* of the conversion; NULL: none */
    const char *output_format;                /* qcow2, raw, vdi; NULL with no directory */
};

/* New reference. ERR_INVALID when the result would not pass manifest_validate. */
MUST_CHECK int manifest_build(const struct manifest_facts *facts, json_t **out, struct error *err);
/* Reads .yaml and .yml as YAML (no aliases), anything else as JSON. Not validated yet. */
MUST_CHECK int manifest_load(const char *path, json_t **out, struct error *err);

struct manifest_check {
    const char *dir;                 /* the manifest's; for relative_path. NULL: not looked at */
    bool files;                      /* every disk file is there with its size */
    bool checksums;                  /* and has its checksum (reads it all) */
    const struct config_list *bases; /* disk files must lie in one of these; NULL: anywhere */
};

/* First problem as ERR_INVALID ("disks[1].id ..."), ERR_NOT_FOUND (file), ERR_CORRUPT (size or
 * checksum), ERR_DENIED (outside the bases). Unknown keys are no problem. */
MUST_CHECK int manifest_validate(const json_t *manifest, const struct manifest_check *check,
                                 struct error *err);
/* Where a disk's file is: local_path if that exists, else relative_path below dir (the export was
 * moved). Caller frees. */
MUST_CHECK int manifest_disk_path(const json_t *disk, const char *dir, char **out,
                                  struct error *err);

/* Any JSON tree as YAML block style; strings always in double quotes. Caller frees. */
MUST_CHECK int yaml_format(const json_t *json, size_t size_max, char **out, struct error *err);

#endif
