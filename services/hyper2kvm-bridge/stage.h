/* The work area of one conversion below output_dir (same file system as the results): overlays
 * over the export's disks, so that the export itself is never written to.
 *
 * Who works in an area holds the OFD lock on its file `lock`; a kill frees it. The next lease of
 * the job finds the area again: it ends a hyper2kvm that outlived its bridge, and goes on with a
 * submission that the daemon still has. */
#ifndef BRIDGE_STAGE_H
#define BRIDGE_STAGE_H

#include "convert.h"

#define STAGE_DIR         ".hypersdk-stage"
#define STAGE_LOCK_MS     10000                   /* for a holder that is about to end */
#define STAGE_LEFTOVER_MS (72 * INT64_C(3600000)) /* longer than any conversion: 48 h */

struct stage {
    char *dir;                         /* <output_dir>/.hypersdk-stage/<job> */
    char *out;                         /* dir/out: hyper2kvm writes here */
    char *tmp;                         /* dir/tmp: TMPDIR of hyper2kvm */
    char *final;                       /* dir/final: becomes the result's directory */
    char *overlays[CONVERT_DISKS_MAX]; /* qcow2 over the export's disk */
    char *links[CONVERT_DISKS_MAX];    /* second names ending in .vmdk, for D2/D3 readers */
    size_t count;
    int lock;
    bool found;   /* left behind by an earlier lease of the job; nothing runs in it any more */
    bool checked; /* who wrote the images read them back */
    bool keep;    /* stage_close leaves it to the next lease */
};

/* Locks the job's area; its content stays as it is. ERR_LIMIT: the images do not fit beside it. */
MUST_CHECK int stage_open(const struct conversion *c, struct stage *out, struct error *err);
/* Empties it and makes the overlays. */
MUST_CHECK int stage_fill(const struct conversion *c, struct stage *stage, struct error *err);
/* Removes the area, unless it is to be kept. */
void stage_close(struct stage *stage);
static inline void stage_auto_close(struct stage *stage)
{
    stage_close(stage);
}
#define auto_stage CLEANUP(stage_auto_close) struct stage

/* Ends what processes that are gone left running below output_dir, and removes areas that nobody
 * came back to. */
void stage_sweep(const char *output_dir);

/* For child_options.started: the area says which process works in it. */
void stage_note_child(const struct stage *stage, pid_t pid);
/* Runs qemu-img; its words go into the error. */
MUST_CHECK int stage_qemu_img(const struct conversion *c, const struct stage *stage,
                              const char *const *argv, struct error *err);
/* Copies what disk `index` holds by now (overlay and all) to out/<id>.<format>. */
MUST_CHECK int stage_copy_disk(const struct conversion *c, const struct stage *stage, size_t index,
                               struct error *err);
/* All of them. */
MUST_CHECK int stage_copy_disks(const struct conversion *c, const struct stage *stage,
                                struct error *err);
/* out/<id>.<format>; caller frees. */
char *stage_image(const struct conversion *c, const struct stage *stage, size_t index);
/* rm -r */
void stage_remove(const char *path);
/* Bytes allocated below path, which may be missing. */
uint64_t stage_used(const char *path);

/* The superset document of hyper2kvm-contract.md section 2. New reference. */
json_t *stage_document(const struct conversion *c, const struct stage *stage);
/* Where hyper2kvm's report of a direct call goes. Caller frees. */
char *stage_report(const struct stage *stage);

#endif
