/* Runs a fuzz target over the files of the folders given, without libFuzzer: each as it is, then
 * copies of it that are cut or have one byte changed. The last line says how many inputs. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base.h"

#define FILE_BYTES_MAX (4 * MIB)
#define CUTS_MAX       64U
#define CHANGES_MAX    400U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Of targets that need something set up once. */
__attribute__((weak)) int LLVMFuzzerInitialize(int *argc, char ***argv);

static size_t inputs;

/* A copy of exactly this size, so that the sanitizer sees every byte read behind it. */
static void run_one(const uint8_t *data, size_t size)
{
    autofree uint8_t *copy = xmalloc(size == 0 ? 1 : size);

    memcpy(copy, data, size);
    (void)LLVMFuzzerTestOneInput(copy, size);
    inputs++;
}

static void run_damaged(uint8_t *data, size_t size)
{
    static const uint8_t masks[] = {0x01, 0x80, 0xff, 0x20};
    size_t step = size / CUTS_MAX + 1;

    for (size_t length = 0; length < size; length += step)
        run_one(data, length);
    step = size / CHANGES_MAX + 1;
    for (size_t at = 0; at < size; at += step) {
        uint8_t mask = masks[at / step % ARRAY_LEN(masks)];
        data[at] ^= mask;
        run_one(data, size);
        data[at] ^= mask;
    }
}

static int run_file(const char *path)
{
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    autofree uint8_t *data = NULL;
    struct stat st;
    size_t size;

    if (fd < 0 || fstat(fd, &st) < 0 || st.st_size > (off_t)FILE_BYTES_MAX) {
        (void)fprintf(stderr, "cannot use '%s'\n", path);
        return -1;
    }
    size = (size_t)st.st_size;
    data = xmalloc(size == 0 ? 1 : size);
    if (pread_all(fd, data, size, 0) < 0)
        return -1;
    (void)fprintf(stderr, "%s\n", path);
    run_one(data, size);
    run_damaged(data, size);
    return 0;
}

static int run_folder(const char *path)
{
    DIR *folder = opendir(path);
    int failed = 0;

    if (folder == NULL) {
        (void)fprintf(stderr, "there is no corpus '%s'\n", path);
        return -1;
    }
    for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        autofree char *file = xasprintf("%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.' && run_file(file) < 0)
            failed = -1;
    }
    (void)closedir(folder);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = argc < 2;

    if (LLVMFuzzerInitialize != NULL)
        (void)LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++)
        failed |= run_folder(argv[i]) < 0;
    (void)printf("%zu inputs\n", inputs);
    return failed ? 1 : 0;
}
