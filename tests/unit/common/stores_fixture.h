/* Private PostgreSQL and Redis for a test program, by the scripts that `make run` uses. Tests run
 * from the repository's root; where the server's programs are missing they are skipped, visibly. */
#ifndef TESTS_UNIT_COMMON_STORES_FIXTURE_H
#define TESTS_UNIT_COMMON_STORES_FIXTURE_H

#include "tests/unit/common/unit.h"

#include <spawn.h>
#include <sys/wait.h>

#include "common/paths.h"

extern char **environ;

/* Exit status of the program; its output goes to <dir>/script.log. */
__attribute__((unused)) static int run_script(const char *dir, const char *const *argv)
{
    autofree char *log = xasprintf("%s/script.log", dir);
    posix_spawn_file_actions_t actions;
    pid_t pid = -1;
    int status = -1;
    int rv;

    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log,
                                           O_WRONLY | O_CREAT | O_APPEND, 0600);
    (void)posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    rv = posix_spawn(&pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    if (rv != 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

/* First line of <dir>/<name>. */
__attribute__((unused)) static char *read_line(const char *dir, const char *name)
{
    autofree char *path = xasprintf("%s/%s", dir, name);
    struct error err = ERROR_NONE;
    char *text = NULL;
    size_t size = 0;

    assert_ok(file_read(path, 4096, &text, &size, &err), err);
    text[strcspn(text, "\n")] = '\0';
    return text;
}

/* action: "start" or "stop"; false: the script failed. */
__attribute__((unused)) static bool store_script(const char *script, const char *action,
                                                 const char *dir)
{
    autofree char *path = xasprintf("deploy/local/%s", script);
    const char *const argv[] = {path, action, dir, NULL};

    return run_script(dir, argv) == 0;
}

#endif
