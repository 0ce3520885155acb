/* Reading images back, for verify and conversion: random access to the logical content.
 * Everything in the file is hostile: sizes, offsets and tables are checked before use. */
#ifndef EXPORTER_IMAGE_H
#define EXPORTER_IMAGE_H

#include "common/error.h"

struct image;

/* format: "raw", "qcow2", "vmdk" (streamOptimized). Backing files are refused here. Not
 * thread-safe; open one per thread. */
MUST_CHECK int image_open(const char *path, const char *format, struct image **out,
                          struct error *err);
uint64_t image_size_bytes(const struct image *image);
/* All of length or an error; ERR_CORRUPT names the offset. */
MUST_CHECK int image_read(struct image *image, void *buffer, size_t length, uint64_t offset,
                          struct error *err);
/* Is [offset, offset+length) known to read as zeros without looking at data? A hint. */
bool image_is_hole(struct image *image, uint64_t offset, uint64_t length);
void image_close(struct image *image); /* NULL-safe */
DEFINE_AUTO(image, struct image, image_close)
#define auto_image CLEANUP(image_auto) struct image

#endif
