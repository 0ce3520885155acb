/* Merging two images of a chain: what `upper` says over `lower`, into lower's file. */
#ifndef EXPORTER_QCOW2_MERGE_H
#define EXPORTER_QCOW2_MERGE_H

#include "common/error.h"

/* Afterwards the file `lower` reads as the disk of `upper`, whose backing file it is, and has no
 * backing file itself. Both are images as sink_qcow2 writes them, below root (image_open_chain).
 * lower's clusters stay as they are until one write of its header: whenever this ends, lower reads
 * as before or as upper, and upper, which is not written to, as ever. Repeatable. Clusters of lower
 * that nobody needs any more are given back to the file system.
 * go_on is asked before writing; -1 (its err set) ends it. */
MUST_CHECK int qcow2_merge(const char *lower, const char *upper, const char *root,
                           int (*go_on)(void *arg, struct error *err), void *arg,
                           struct error *err);

#endif
