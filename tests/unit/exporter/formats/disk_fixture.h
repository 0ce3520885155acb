/* Disks of known content for the tests of sinks and image readers, a private temporary folder, and
 * runs of qemu-img. Header only: a unit test is one object. */
#ifndef TEST_DISK_FIXTURE_H
#define TEST_DISK_FIXTURE_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/error.h"
#include "services/exporter/formats/sink.h"

#define QEMU_IMG "/usr/bin/qemu-img"
#define SECTOR   512U

extern char **environ;

enum pattern { PATTERN_RANDOM, PATTERN_ZERO, PATTERN_SPARSE, PATTERN_TEXT };

struct test_disk {
    uint8_t *data;
    size_t size;
};

static char test_dir[64];

__attribute__((unused)) static int test_dir_make(void **state)
{
    (void)state;
    (void)snprintf(test_dir, sizeof test_dir, "/tmp/hsdk-formats-XXXXXX");
    return mkdtemp(test_dir) == NULL ? -1 : 0;
}

static int run_program(const char *const *argv)
{
    pid_t pid = 0;
    int status = 0;
    posix_spawn_file_actions_t actions;

    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    int rc = posix_spawn(&pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    if (rc != 0)
        return -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

__attribute__((unused)) static int test_dir_remove(void **state)
{
    const char *argv[] = {"/bin/rm", "-rf", test_dir, NULL};
    (void)state;
    return run_program(argv);
}

__attribute__((unused)) static char *test_path(const char *name)
{
    return xasprintf("%s/%s", test_dir, name);
}

/* Visible in the test's output; never a silent pass. */
__attribute__((unused)) static void need_qemu_img(void)
{
    if (access(QEMU_IMG, X_OK) != 0) {
        print_message("SKIP: %s is not installed, images are not compared with it\n", QEMU_IMG);
        skip();
    }
}

/* xorshift: the same bytes in every run. */
static uint64_t test_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void fill_random(uint8_t *data, size_t size, uint64_t *seed)
{
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)test_random(seed);
}

__attribute__((unused)) static struct test_disk test_disk_make(enum pattern pattern, size_t size)
{
    struct test_disk disk = {.data = xcalloc(1, size), .size = size};
    uint64_t seed = 0x9e3779b97f4a7c15U + size;

    switch (pattern) {
    case PATTERN_RANDOM:
        fill_random(disk.data, size, &seed);
        break;
    case PATTERN_ZERO:
        break;
    case PATTERN_SPARSE: /* about every fifth 4 KiB, so that pieces have holes inside */
        for (size_t at = 0; at + 4096 <= size; at += 4096) {
            if (test_random(&seed) % 5 == 0 && (at / (3 * MIB)) % 2 == 0)
                fill_random(disk.data + at, 4096, &seed);
        }
        break;
    case PATTERN_TEXT:
        for (size_t i = 0; i < size; i++)
            disk.data[i] = (uint8_t)((size_t) "the quick brown fox "[i % 20] + (i / 65536) % 3);
        break;
    }
    return disk;
}

__attribute__((unused)) static void test_disk_free(struct test_disk *disk)
{
    free(disk->data);
    disk->data = NULL;
}

__attribute__((unused)) static void write_file(const char *path, const void *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write_all(fd, data, size), 0);
    assert_int_equal(close(fd), 0);
}

__attribute__((unused)) static uint8_t *read_file(const char *path, size_t *out_size)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    uint8_t *data = xmalloc((size_t)st.st_size + 1);
    assert_int_equal(pread_all(fd, data, (size_t)st.st_size, 0), 0);
    data[st.st_size] = '\0';
    assert_int_equal(close(fd), 0);
    *out_size = (size_t)st.st_size;
    return data;
}

#define assert_ok(call)                                                            \
    do {                                                                           \
        if ((call) < 0)                                                            \
            fail_msg("%s: %s: %s", #call, error_code_name(err.code), err.message); \
    } while (0)

/* qemu-img finds no fault in the image and reads the disk's bytes out of it. */
__attribute__((unused)) static void compare_with_qemu(const struct test_disk *disk,
                                                      const char *path, const char *format)
{
    autofree char *raw = test_path("read-by-qemu.raw");
    const char *check[] = {QEMU_IMG, "check", "-q", "-f", format, path, NULL};
    const char *convert[] = {QEMU_IMG, "convert", "-f", format, "-O", "raw", path, raw, NULL};
    const char *unpack[] = {"/usr/bin/zstd", "-q", "-d", "-f", path, "-o", raw, NULL};
    size_t size = 0;

    if (strcmp(format, "raw.zst") == 0) {
        assert_int_equal(run_program(unpack), 0);
    } else if (strcmp(format, "raw") != 0) {
        assert_int_equal(run_program(check), 0); /* 3 would be leaks */
    }
    if (strcmp(format, "raw.zst") != 0)
        assert_int_equal(run_program(convert), 0);
    autofree uint8_t *data = read_file(raw, &size);
    assert_int_equal(size, disk->size);
    assert_true(memcmp(data, disk->data, size) == 0);
    (void)unlink(raw);
}

/* A guest at work: `times` places get other data, every third one zeros, at odd offsets. */
__attribute__((unused)) static void test_disk_scribble(struct test_disk *disk, int times,
                                                       size_t bytes_max, uint64_t *seed)
{
    for (int i = 0; i < times; i++) {
        size_t at = test_random(seed) % disk->size;
        size_t n = test_random(seed) % min_u64(bytes_max, disk->size - at) + 1;
        if (i % 3 == 0)
            memset(disk->data + at, 0, n);
        else
            fill_random(disk->data + at, n, seed);
    }
}

/* One piece the way the copy pipeline delivers it. */
__attribute__((unused)) static int deliver_piece(const struct sink_format *format,
                                                 struct sink *sink, const struct test_disk *disk,
                                                 uint64_t offset, struct error *err)
{
    size_t length = (size_t)min_u64(SINK_PIECE_BYTES, disk->size - offset);
    const uint8_t *data = disk->data + offset;

    if (mem_is_zero(data, length))
        return format->write_zero(sink, offset, length, err);
    if (format->encode != NULL) {
        struct sink_blob blob = {0};
        if (format->encode(sink, offset, data, length, &blob, err) < 0)
            return -1;
        int rc = format->write_encoded(sink, offset, &blob, err);
        free(blob.data);
        return rc;
    }
    return format->write(sink, offset, data, length, err);
}

/* The disk as a finished image file of this format. */
__attribute__((unused)) static void
test_disk_write(const struct test_disk *disk, const struct sink_format *format, const char *path)
{
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct sink_options options = {.path = path, .size_bytes = disk->size, .file_name = "disk.img"};

    assert_ok(format->open(&options, &sink, &err));
    for (uint64_t at = 0; at < disk->size; at += SINK_PIECE_BYTES)
        assert_ok(deliver_piece(format, sink, disk, at, &err));
    assert_ok(format->finish(sink, &err));
    format->close(sink);
}

#endif
