/* What the bench programs of the copy engine share: a folder, other people's programs, medians. */
#ifndef BENCH_H
#define BENCH_H

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "common/parse.h"
#include "services/exporter/engine/copy.h"

#define BENCH_RUNS_MAX    50U
#define BENCH_CHUNK_BYTES (10 * MIB) /* export.chunk_size's default */

extern char **environ;

static char folder[] = "/var/tmp/hsdk-bench-XXXXXX";

/* Caller frees. */
static char *path_of(const char *name)
{
    return xasprintf("%s/%s", folder, name);
}

/* quiet: its standard error is dropped as well. -1: it cannot be started. */
static pid_t start_program(const char *const *argv, bool quiet)
{
    posix_spawn_file_actions_t actions;
    pid_t pid = 0;
    int rc;

    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    if (quiet)
        (void)posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    rc = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    return rc == 0 ? pid : -1;
}

static int wait_program(pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return -1;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int run_program(const char *const *argv, bool quiet, struct error *err)
{
    pid_t pid = start_program(argv, quiet);

    if (pid < 0 || wait_program(pid) != 0)
        return error_set(err, ERR_INTERNAL, "'%s' failed", argv[0]);
    return 0;
}

static void remove_folder(void)
{
    const char *argv[] = {"rm", "-rf", folder, NULL};
    struct error ignored = ERROR_NONE;

    if (run_program(argv, false, &ignored) < 0)
        error_clear(&ignored);
}

static int compare_seconds(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Sorts them. */
static double median_seconds(double *seconds, size_t count)
{
    qsort(seconds, count, sizeof *seconds, compare_seconds);
    return seconds[count / 2];
}

/* MiB per second of the median run. */
static double median_rate(double *seconds, size_t count, uint64_t size)
{
    return (double)size / (double)MIB / median_seconds(seconds, count);
}

/* Of all threads. */
__attribute__((unused)) static double cpu_seconds(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Of the environment variable, 1 to max; fallback without it. */
static int number_of(const char *name, uint32_t fallback, uint32_t max, uint32_t *out,
                     struct error *err)
{
    const char *text = getenv(name);

    *out = fallback;
    return text == NULL ? 0 : parse_u32(name, text, 1, max, out, err);
}

#endif
