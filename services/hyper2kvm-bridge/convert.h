/* One conversion: an export that exists becomes images and a libvirt domain.
 *
 * Paths, in the order of choice: the hyper2kvm daemon's queue (when asked for and configured), a
 * direct call of hyper2kvm, virt-v2v where it is installed, the built-in path (the exporter has
 * written qcow2 already; a domain with the devices the guest knows is put next to it). The export's
 * images are never written to: programs that change guests get overlays. */
#ifndef BRIDGE_CONVERT_H
#define BRIDGE_CONVERT_H

#include <jansson.h>

#include "bridge.h"
#include "services/exporter/formats/domain_xml.h"
#include "services/exporter/formats/image.h"

#define CONVERT_DISKS_MAX 64 /* VM_DISKS_MAX */

struct conversion {
    struct worker_task *task;
    const struct bridge *bridge;
    const char *job_id;
    char *export_dir; /* of the manifest, confined; "" for a foreign source */
    char *vm_file;    /* VM name as a file name */
    /* Of the export, its disks in boot order, each as "local_path" (confined) and "source_format"
     * qcow2, vmdk or raw; with "part_offset" and "part_bytes" it is a member of an OVA. */
    json_t *manifest;
    bool foreign;            /* no export of ours: nothing is put next to it */
    const char *compression; /* of qcow2 clusters: "zlib", "zstd"; NULL: none */
    int compress_level;      /* 0: the format's default */
    const char *output_name; /* directory below output_dir that must be new; NULL: the VM's name */
    bool queue;              /* daemon_mode */
    const json_t *stages;    /* may be NULL */
    const char *format;      /* of the images */
    const char *instance;    /* hyper2kvm@<instance> */
    int64_t timeout_ms;
    /* the result */
    const char *path_used; /* "queue" | "direct" | "virt-v2v" | "builtin" */
    bool guest_fixed;      /* the guest starts with virtio devices */
    char *report;          /* path of hyper2kvm's report, or NULL */
    char *domain_xml;      /* path */
    char *manifest_path;   /* of the images: the export's, or one that was published with them */
    json_t *output_files;  /* array of paths */
    json_t *not_done;      /* array of texts: what nobody did to the guest */
    json_t *warnings;      /* array of texts */
};

/* The task kind "convert"; arg is the struct bridge. */
int convert_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err);

/* Is stage `name` wanted? (hyper2kvm_integration.stages, default yes) */
bool convert_stage(const struct conversion *c, const char *name);
void convert_remark(json_t *array, const char *format, ...) PRINTF_LIKE(2, 3);
/* Boot order: the first one is the boot disk. */
const json_t *convert_disk(const struct conversion *c, size_t index);
size_t convert_disk_count(const struct conversion *c);
/* Domain for images[i] (one per disk of the manifest, all of c->format). Caller frees *out.
 * warnings may be NULL. */
MUST_CHECK int convert_domain(const struct conversion *c, const char *const *images,
                              const struct domain_options *options, json_t *warnings, char **out,
                              struct error *err);
/* The task's result {"conversion": {...}}. New reference. */
json_t *convert_result(const struct conversion *c);

/* Format of the image that begins at offset: by content; raw has none to go by, so `name` must end
 * in .raw or .img. ERR_NOT_AVAILABLE: none that we read. */
MUST_CHECK int convert_detect(const char *path, uint64_t offset, const char *name, const char **out,
                              struct error *err);
struct convert_source {
    json_t *manifest;    /* made from a foreign file; new reference. Or */
    char *manifest_path; /* the manifest that stands there; caller frees */
};
/* What `source` names: a manifest, a directory or descriptor with one, else an OVF, an OVA or one
 * disk image. ERR_NOT_AVAILABLE: of no format that we read. */
MUST_CHECK int convert_find_source(const char *source, const struct config_list *bases,
                                   struct convert_source *out, struct error *err);
/* A manifest's shape is checked and its disks put into boot order. */
MUST_CHECK int convert_check_manifest(json_t *manifest, struct error *err);
/* The same for the file that path names. New reference. */
MUST_CHECK int convert_read_manifest(const char *path, const struct config_list *bases,
                                     json_t **out, struct error *err);
/* The disks of a checked manifest are found (in place of a VMDK its qcow2, where the exporter wrote
 * one beside it) and opened once. dir: of the manifest, or NULL; bases: where files may lie. */
MUST_CHECK int convert_take_disks(json_t *manifest, const char *dir,
                                  const struct config_list *bases, struct error *err);
/* What the caller says about the machine ("memory_mb", "vcpus", "firmware" of spec) beats the
 * manifest. ERR_INVALID: out of range. */
MUST_CHECK int convert_override_machine(const json_t *spec, json_t *manifest, struct error *err);
/* Where disk `index` is. Borrowed from c. */
struct image_part convert_part(const struct conversion *c, size_t index);

/* The paths; each sets path_used and the result. -1 with *out_next: nothing was done, the next path
 * may be tried. */
MUST_CHECK int builtin_convert(struct conversion *c, struct error *err);
MUST_CHECK int direct_convert(struct conversion *c, bool *out_next, struct error *err);
MUST_CHECK int queue_convert(struct conversion *c, bool *out_next, struct error *err);
MUST_CHECK int v2v_convert(struct conversion *c, bool *out_next, struct error *err);

struct stage;
/* The images become <output_dir>/<vm>/<vm>-disk<i+1>.<format> (images[i]: of disk i; they are
 * moved), with <vm>.xml, hyper2kvm's report (NULL: none) and conversion.json next to them. The
 * directory appears complete, in one step; one that exists already is not touched, the job's id is
 * appended then. Each image is checked with qemu-img before. Sets the result. */
MUST_CHECK int publish_images(struct conversion *c, const struct stage *stage, char *const *images,
                              bool guest_fixed, const char *report, struct error *err);
/* dir/<vm>-disk<index+1>.<format>; caller frees. */
char *publish_image(const struct conversion *c, const char *dir, size_t index);
/* An earlier lease of this job published, but could not tell: its result, else NULL. */
json_t *publish_find(const struct conversion *c);

#endif
