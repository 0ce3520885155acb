/* What the fuzz targets of the image readers do with one input. */
#ifndef FUZZ_IMAGE_H
#define FUZZ_IMAGE_H

#include <stdio.h>

#include "services/exporter/formats/image.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define READ_BYTES MIB /* at a time */

static void read_at(struct image *image, uint8_t *buffer, uint64_t offset, size_t length)
{
    uint64_t size = image_size_bytes(image);
    struct error err = ERROR_NONE;

    if (offset >= size)
        return;
    length = (size_t)min_u64(length, size - offset);
    if (image_read(image, buffer, length, offset, &err) == 0 &&
        image_is_hole(image, offset, length) && !mem_is_zero(buffer, length))
        abort(); /* a hole that is none: verify would believe it */
}

__attribute__((unused)) static int fuzz_image(const char *format, const uint8_t *data, size_t size)
{
    static uint8_t buffer[READ_BYTES];
    struct error err = ERROR_NONE;
    auto_image *image = NULL;
    char path[FUZZ_PATH_SIZE];
    autoclose int fd = fuzz_file(data, size, path);

    if (image_open(path, format, &image, &err) < 0)
        return 0;
    for (uint64_t at = 0; at < 4 * READ_BYTES; at += READ_BYTES)
        read_at(image, buffer, at, READ_BYTES);
    read_at(image, buffer, 12345, 70000);
    read_at(image, buffer, image_size_bytes(image) / 2, READ_BYTES);
    read_at(image, buffer, image_size_bytes(image) - min_u64(512, image_size_bytes(image)), 512);
    return 0;
}

#endif
