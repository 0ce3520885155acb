/* The work area of one conversion below output_dir (same file system as the results): overlays
 * over the export's disks, and the way of finished images to their final place. */
#ifndef BRIDGE_STAGE_H
#define BRIDGE_STAGE_H

#include "convert.h"

#define STAGE_DIR ".hypersdk-stage"

struct stage {
    char *dir;                         /* <output_dir>/.hypersdk-stage/<job>-<epoch> */
    char *out;                         /* dir/out: hyper2kvm writes here */
    char *links[CONVERT_DISKS_MAX];    /* second names ending in .vmdk, for D2/D3 readers */
    char *overlays[CONVERT_DISKS_MAX]; /* qcow2 over the export's disk */
    size_t count;
};

MUST_CHECK int stage_open(const struct conversion *c, struct stage *out, struct error *err);
/* Removes the work area. */
void stage_close(struct stage *stage);
#define auto_stage CLEANUP(stage_close) struct stage

/* The superset document of hyper2kvm-contract.md section 2. New reference. */
json_t *stage_document(const struct conversion *c, const struct stage *stage);
/* images[i] (in the work area) become <output_dir>/<vm>/<vm>-disk<i+1>.<format>; a directory that
 * exists already is not touched, the job's id is appended then. Checks each with qemu-img. Sets
 * output_files and writes the domain. */
MUST_CHECK int stage_publish(struct conversion *c, char *const *images, bool guest_fixed,
                             struct error *err);
/* Runs qemu-img; its words go into the error. */
MUST_CHECK int stage_qemu_img(const struct conversion *c, const char *const *argv,
                              struct error *err);

#endif
