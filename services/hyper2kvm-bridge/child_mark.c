/* Children that outlived us. Whoever kills this process with SIGKILL leaves hyper2kvm running in a
 * session of its own; the next one that takes the task ends it. A process is named by boot, PID
 * namespace, number and start time, so that no other is ever hit. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "child.h"
#include "common/clock.h"
#include "common/parse.h"
#include "common/paths.h"

#define GONE_MS         5000
#define STAT_BYTES_MAX  4096
#define START_TIME_SKIP 19 /* from field 3, the state, to field 22 of /proc/<pid>/stat */

/* "<boot id>/<PID namespace>"; "" when it cannot be told. */
static char *machine(void)
{
    char boot[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    struct stat ns;

    if (f != NULL) {
        if (fgets(boot, sizeof boot, f) == NULL)
            boot[0] = '\0';
        (void)fclose(f);
    }
    boot[strcspn(boot, "\n")] = '\0';
    if (boot[0] == '\0' || stat("/proc/self/ns/pid", &ns) < 0)
        return xstrdup("");
    return xasprintf("%s/%ju", boot, (uintmax_t)ns.st_ino);
}

/* The number that the text begins with; *text then stands behind it and a space. */
static bool take_number(const char **text, uint64_t *out)
{
    size_t length = strcspn(*text, " \n");
    autofree char *word = xstrndup(*text, length);
    struct error ignored = ERROR_NONE;

    if (parse_u64("number", word, 0, UINT64_MAX, out, &ignored) < 0)
        return false;
    *text += length + ((*text)[length] == ' ' ? 1 : 0);
    return true;
}

/* 0: no such process, or a zombie. */
static uint64_t start_time(pid_t pid)
{
    autofree char *path = xasprintf("/proc/%d/stat", (int)pid);
    char text[STAT_BYTES_MAX];
    FILE *f = fopen(path, "re");
    const char *p = NULL;
    uint64_t time = 0;

    if (f == NULL)
        return 0;
    if (fgets(text, sizeof text, f) != NULL)
        p = strrchr(text, ')'); /* the name may hold anything */
    (void)fclose(f);
    if (p == NULL || strlen(p) < 3 || p[2] == 'Z' || p[2] == 'X')
        return 0;
    p += 2;
    for (int i = 0; i < START_TIME_SKIP && p != NULL; i++) {
        p = strchr(p, ' ');
        p = p == NULL ? NULL : p + 1;
    }
    return p != NULL && take_number(&p, &time) ? time : 0;
}

char *child_mark(pid_t pid)
{
    autofree char *here = machine();

    return xasprintf("%s %d %" PRIu64, here, (int)pid, start_time(pid));
}

void child_end_marked(const char *mark)
{
    autofree char *here = machine();
    size_t n = strlen(here);
    int64_t until = clock_mono_ms() + GONE_MS;
    uint64_t started = 0;
    uint64_t number = 0;
    pid_t pid;

    if (n == 0 || strncmp(mark, here, n) != 0 || mark[n] != ' ')
        return;
    mark += n + 1;
    if (!take_number(&mark, &number) || !take_number(&mark, &started) || number <= 1 ||
        number > INT32_MAX || started == 0)
        return;
    pid = (pid_t)number;
    if (start_time(pid) != started)
        return;
    (void)kill(-pid, SIGKILL);
    while (start_time(pid) == started && clock_mono_ms() < until)
        clock_sleep_ms(10);
}
