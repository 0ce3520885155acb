/* qcow2 images with a backing file: the input is two images, the second one below the first. Their
 * lengths do not matter to the reader, so the cut is in the middle; the upper one's backing name is
 * "b". */
#include "tests/fuzz/fuzz_image.h"

#include <fcntl.h>
#include <string.h>

static char dir[64];

static void remove_dir(void)
{
    char path[128];

    for (const char *name = "ab"; *name != '\0'; name++) {
        (void)snprintf(path, sizeof path, "%s/%c", dir, *name);
        (void)unlink(path);
    }
    (void)rmdir(dir);
}

static void put(const char *path, const uint8_t *data, size_t size)
{
    autoclose int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write_all(fd, data, size) < 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t buffer[READ_BYTES];
    struct error err = ERROR_NONE;
    auto_image *image = NULL;
    char upper[128];
    char lower[128];

    if (dir[0] == '\0') {
        (void)snprintf(dir, sizeof dir, "/dev/shm/hsdk-fuzz-XXXXXX");
        if (mkdtemp(dir) == NULL)
            abort();
        (void)atexit(remove_dir);
    }
    (void)snprintf(upper, sizeof upper, "%s/a", dir);
    (void)snprintf(lower, sizeof lower, "%s/b", dir);
    put(upper, data, size / 2);
    put(lower, data + size / 2, size - size / 2);
    if (image_open(upper, "qcow2", &image, &err) < 0)
        return 0;
    for (uint64_t at = 0; at < 2 * READ_BYTES; at += READ_BYTES)
        read_at(image, buffer, at, READ_BYTES);
    read_at(image, buffer, 12345, 70000);
    read_at(image, buffer, image_size_bytes(image) / 2, READ_BYTES);
    return 0;
}
