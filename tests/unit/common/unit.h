/* What every unit test of common/ includes: cmocka in the order it wants, and a scratch folder. */
#ifndef TESTS_UNIT_COMMON_UNIT_H
#define TESTS_UNIT_COMMON_UNIT_H

/* clang-format off: cmocka's header needs these four before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"

#define assert_ok(call, err)                                                           \
    do {                                                                               \
        if ((call) < 0)                                                                \
            fail_msg("%s: %s: %s", #call, error_code_name((err).code), (err).message); \
    } while (0)

/* The call fails with the code, and the message holds the text; err is empty again afterwards. */
#define assert_fails(call, err, wanted, text)                                                \
    do {                                                                                     \
        if ((call) >= 0)                                                                     \
            fail_msg("%s succeeded", #call);                                                 \
        if ((err).code != (wanted) || strstr((err).message, (text)) == NULL)                 \
            fail_msg("%s: %s: '%s' instead of %s: '%s'", #call, error_code_name((err).code), \
                     (err).message, error_code_name(wanted), (text));                        \
        error_clear(&(err));                                                                 \
    } while (0)

/* A new empty directory; scratch_remove removes it with what is inside. */
static inline char *scratch_make(void)
{
    char *dir = xstrdup("/tmp/hypersdk-unit-XXXXXX");

    if (mkdtemp(dir) == NULL)
        abort();
    return dir;
}

__attribute__((unused)) static void scratch_remove(char *dir)
{
    DIR *d = opendir(dir);
    const struct dirent *entry;

    while (d != NULL && (entry = readdir(d)) != NULL) {
        autofree char *path = xasprintf("%s/%s", dir, entry->d_name);
        struct stat st;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            lstat(path, &st) < 0)
            continue;
        if (S_ISDIR(st.st_mode))
            scratch_remove(STEAL(path));
        else
            (void)unlink(path);
    }
    if (d != NULL)
        (void)closedir(d);
    (void)rmdir(dir);
    free(dir);
}
DEFINE_AUTO(scratch, char, scratch_remove)
#define auto_scratch CLEANUP(scratch_auto) char

__attribute__((unused)) static char *scratch_file(const char *dir, const char *name,
                                                  const char *text)
{
    char *path = xasprintf("%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write_all(fd, text, strlen(text)) < 0 || close(fd) < 0)
        abort();
    return path;
}

#endif
