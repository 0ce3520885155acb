/* Reading images back, for verify and conversion: random access to the logical content.
 * Everything in the file is hostile: sizes, offsets and tables are checked before use. */
#ifndef EXPORTER_IMAGE_H
#define EXPORTER_IMAGE_H

#include <sys/stat.h>

#include "common/error.h"

struct image;

/* An image that is no file here (an object at a target). */
struct image_source {
    /* All of length, which lies inside. By the thread of the image. */
    int (*read)(void *arg, void *buffer, size_t length, uint64_t offset, struct error *err);
    void *arg;
    uint64_t size_bytes;
};

/* Where an image is: a file, or a part of one (a member of an OVA). */
struct image_part {
    const char *path;
    const struct image_source *source; /* instead of the file; path is its name then. NULL: none */
    const char *format;
    uint64_t offset;
    uint64_t length;  /* 0: up to the end of the file */
    const char *root; /* of its chain, as in image_open_chain; NULL: its own directory */
};

#define IMAGE_CHAIN_MAX 64 /* images of one chain, itself included: each is an open file */

/* format: "raw", "raw.zst" (zst.h), "qcow2", "vmdk" (streamOptimized, monolithicSparse, and
 * descriptors with flat or sparse extents in files with plain names beside them). A qcow2's backing
 * files are read as well; they must lie in its own directory, under plain names, and be regular
 * files: ERR_DENIED. ERR_LIMIT: a chain over IMAGE_CHAIN_MAX. ERR_CORRUPT: a circle. Not
 * thread-safe; open one per thread. */
MUST_CHECK int image_open(const char *path, const char *format, struct image **out,
                          struct error *err);
/* The same for restore points: all files of the chain lie in `root` or in a directory directly
 * below it ("../exp-1/disk.qcow2"). root is a canonical path; NULL: as image_open. */
MUST_CHECK int image_open_chain(const char *path, const char *format, const char *root,
                                struct image **out, struct error *err);
/* Name of the backing file as the image says it, and that image; NULL: none. Borrowed. */
const char *image_backing_name(const struct image *image);
struct image *image_backing(struct image *image);
/* ERR_CORRUPT also when the part does not lie in its file. */
MUST_CHECK int image_open_part(const struct image_part *part, struct image **out,
                               struct error *err);
uint64_t image_size_bytes(const struct image *image);
/* All of length or an error; ERR_CORRUPT names the offset. */
MUST_CHECK int image_read(struct image *image, void *buffer, size_t length, uint64_t offset,
                          struct error *err);
/* Is [offset, offset+length) known to read as zeros without looking at data? A hint. */
bool image_is_hole(struct image *image, uint64_t offset, uint64_t length);
/* fstat of the image's file. */
MUST_CHECK int image_file_stat(const struct image *image, struct stat *out);
void image_close(struct image *image); /* NULL-safe */
DEFINE_AUTO(image, struct image, image_close)
#define auto_image CLEANUP(image_auto) struct image

#endif
