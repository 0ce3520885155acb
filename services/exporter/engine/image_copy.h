/* A finished image as the source of a copy: the copy engine with its readers, leaf digests and
 * journal, for images instead of a provider's disks. */
#ifndef EXPORTER_IMAGE_COPY_H
#define EXPORTER_IMAGE_COPY_H

#include "services/exporter/engine/copy.h"
#include "services/exporter/formats/image.h"

#define IMAGE_COPY_THREADS_MAX (COPY_READERS_MAX / 2)

struct image_copy_options {
    struct image_part image; /* no chains: image_open's rules */
    unsigned int threads;    /* busy ones, 1 to IMAGE_COPY_THREADS_MAX; each reads for itself */
    const char *journal_path;
    const struct copy_output *outputs;
    size_t output_count;
    bool no_hash; /* only in the bench */
    /* As in copy_options; all may be NULL. */
    const atomic_bool *stopped;
    int (*may_write)(void *arg, struct error *err);
    void (*progress)(void *arg, const struct copy_progress *progress);
    void *arg;
};

/* As copy_disk. The journal belongs to that file as it is now: size and time of its last change.
 * ERR_SOURCE_CHANGED: it was written to meanwhile. */
MUST_CHECK int image_copy(const struct image_copy_options *options, struct copy_result *out,
                          struct error *err);

#endif
