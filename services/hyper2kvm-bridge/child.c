/* See child.h. */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "common/strbuf.h"

#define POLL_MS         200 /* how soon a stop is seen */
#define TICK_MS         1000
#define GROUP_GONE_MS   2000          /* killed processes leave the group within this time */
#define DRAIN_BYTES_MAX ((size_t)MIB) /* largest pipe buffer */

extern char **environ;

struct run {
    const struct child_options *options;
    pid_t pid;
    int output; /* -1 at its end */
    int pidfd;  /* readable when the child has ended; -1: the kernel has none */
    char line[CHILD_LINE_BYTES_MAX + 1];
    size_t line_length;
    int64_t start_ms;
    int64_t last_output_ms;
    int64_t last_tick_ms;
};

/* ---- start ---- */

static bool is_set(const char *const *list, const char *variable)
{
    size_t n = strcspn(variable, "=");

    for (size_t i = 0; list != NULL && list[i] != NULL; i++) {
        if (strncmp(list[i], variable, n) == 0 && list[i][n] == '=')
            return true;
    }
    return false;
}

static size_t count_of(const char *const *list)
{
    size_t n = 0;

    while (list != NULL && list[n] != NULL)
        n++;
    return n;
}

/* Array of borrowed strings; caller frees it. */
static char **make_env(const struct child_options *o)
{
    const char *const *inherited = (const char *const *)(uintptr_t)environ;
    size_t most = count_of(o->env) + count_of(o->env_if) + count_of(inherited) + 1;
    char **env = xcalloc(most, sizeof *env);
    size_t n = 0;

    for (size_t i = 0; o->env != NULL && o->env[i] != NULL; i++)
        env[n++] = (char *)(uintptr_t)o->env[i];
    for (size_t i = 0; o->env_if != NULL && o->env_if[i] != NULL; i++) {
        if (!is_set(inherited, o->env_if[i]) && !is_set(o->env, o->env_if[i]))
            env[n++] = (char *)(uintptr_t)o->env_if[i];
    }
    for (size_t i = 0; !o->env_only && i < count_of(inherited); i++) {
        if (!is_set(o->env, inherited[i]))
            env[n++] = (char *)(uintptr_t)inherited[i];
    }
    return env;
}

/* Signals as a program expects them; ours are blocked or ignored (common/service.h). An own
 * session: children of the child stay in its group and end with it. */
static void set_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none;
    sigset_t ignored;

    (void)sigemptyset(&none);
    (void)sigemptyset(&ignored);
    (void)sigaddset(&ignored, SIGPIPE);
    (void)posix_spawnattr_init(attributes);
    (void)posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
                                                   POSIX_SPAWN_SETSIGDEF);
    (void)posix_spawnattr_setsigmask(attributes, &none);
    (void)posix_spawnattr_setsigdefault(attributes, &ignored);
}

static int spawn(const struct child_options *options, int output, pid_t *out_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    autofree char **env = make_env(options);
    int rc;

    (void)posix_spawn_file_actions_init(&actions);
    set_attributes(&attributes);
    (void)posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    (void)posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
    rc = posix_spawnp(out_pid, options->argv[0], &actions, &attributes,
                      (char *const *)(uintptr_t)options->argv, env);
    (void)posix_spawnattr_destroy(&attributes);
    (void)posix_spawn_file_actions_destroy(&actions);
    return rc;
}

static int start(struct run *run, struct error *err)
{
    const struct child_options *o = run->options;
    struct rlimit limit = {o->memory_max, o->memory_max};
    int pipes[2];
    int rc;

    if (pipe2(pipes, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "pipe");
    rc = spawn(o, pipes[1], &run->pid);
    (void)close(pipes[1]);
    run->output = pipes[0];
    if (rc == ENOENT || rc == ENOTDIR)
        return error_set(err, ERR_NOT_FOUND, "program '%s' is not installed", o->argv[0]);
    if (rc != 0)
        return error_set_errno(err, rc, "start of '%s'", o->argv[0]);
    if (o->memory_max > 0)
        (void)prlimit(run->pid, RLIMIT_AS, &limit, NULL);
    run->pidfd = pidfd_open(run->pid, 0);
    run->start_ms = clock_mono_ms();
    run->last_output_ms = run->start_ms;
    run->last_tick_ms = run->start_ms;
    if (o->started != NULL)
        o->started(o->arg, run->pid);
    return 0;
}

/* ---- output ---- */

static void end_line(struct run *run)
{
    run->line[run->line_length] = '\0';
    if (run->line_length > 0 && run->options->line != NULL)
        run->options->line(run->options->arg, run->line);
    run->line_length = 0;
}

/* CR ends a line as well: progress bars come that way. */
static void take(struct run *run, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (data[i] == '\n' || data[i] == '\r' || run->line_length == CHILD_LINE_BYTES_MAX)
            end_line(run);
        if (data[i] != '\n' && data[i] != '\r' && data[i] != '\0')
            run->line[run->line_length++] = data[i];
    }
}

static void close_output(struct run *run)
{
    if (run->output >= 0)
        (void)close(fd_steal(&run->output));
}

/* Bytes taken; 0 at the end of the output or when there is nothing yet. */
static size_t read_some(struct run *run)
{
    char buffer[8192];
    ssize_t n = read(run->output, buffer, sizeof buffer);

    if (n > 0) {
        run->last_output_ms = clock_mono_ms();
        take(run, buffer, (size_t)n);
        return (size_t)n;
    }
    if (n == 0 || (errno != EINTR && errno != EAGAIN))
        close_output(run); /* a program may close its output and run on */
    return 0;
}

/* Until there is output, the child ends, or POLL_MS are over. */
static void wait_for_news(struct run *run)
{
    struct pollfd fds[] = {{.fd = run->output, .events = POLLIN},
                           {.fd = run->pidfd, .events = POLLIN}};

    if (poll(fds, ARRAY_LEN(fds), POLL_MS) > 0 && fds[0].revents != 0)
        (void)read_some(run);
}

/* What the ended child had still in the pipe. Someone who left its session may go on writing. */
static void drain(struct run *run)
{
    size_t total = 0;

    if (run->output >= 0)
        (void)fcntl(run->output, F_SETFL, O_NONBLOCK);
    while (run->output >= 0 && total < DRAIN_BYTES_MAX) {
        size_t n = read_some(run);
        if (n == 0)
            break;
        total += n;
    }
    end_line(run);
    close_output(run);
}

/* ---- end ---- */

/* Leaves the zombie: its number stays its group's until we have killed that. */
static bool has_ended(const struct run *run)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)run->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
}

static void wait_group_gone(pid_t group)
{
    int64_t until = clock_mono_ms() + GROUP_GONE_MS;

    while (kill(-group, 0) == 0 && clock_mono_ms() < until)
        clock_sleep_ms(5);
}

static int end_group(struct run *run)
{
    int status = 0;

    (void)kill(-run->pid, SIGKILL);
    while (waitpid(run->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    drain(run);
    wait_group_gone(run->pid);
    if (run->pidfd >= 0)
        (void)close(fd_steal(&run->pidfd));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The leader alone is not enough: an appliance below it would live on. */
static void ask_to_end(struct run *run)
{
    int64_t until = clock_mono_ms() + CHILD_KILL_MS;

    (void)kill(-run->pid, SIGTERM);
    while (!has_ended(run) && clock_mono_ms() < until)
        wait_for_news(run);
}

static const char *name_of(const struct child_options *o)
{
    return o->name != NULL ? o->name : o->argv[0];
}

static int check(const struct run *run, struct error *err)
{
    const struct child_options *o = run->options;
    int64_t now = clock_mono_ms();

    if (o->stopped != NULL && atomic_load(o->stopped))
        return error_set(err, ERR_CANCELLED, "'%s' was stopped", name_of(o));
    if (now - run->start_ms > o->timeout_ms) {
        return error_set(err, ERR_TIMEOUT, "'%s' did not end within %lld s and was stopped",
                         name_of(o), (long long)(o->timeout_ms / 1000));
    }
    if (o->silence_ms > 0 && now - run->last_output_ms > o->silence_ms) {
        return error_set(err, ERR_TIMEOUT, "'%s' printed nothing for %lld s and was stopped",
                         name_of(o), (long long)(o->silence_ms / 1000));
    }
    return 0;
}

static void tick(struct run *run)
{
    int64_t now = clock_mono_ms();

    if (run->options->tick == NULL || now - run->last_tick_ms < TICK_MS)
        return;
    run->last_tick_ms = now;
    run->options->tick(run->options->arg);
}

int child_run(const struct child_options *options, int *out_status, struct error *err)
{
    struct run run = {.options = options, .output = -1, .pidfd = -1};
    int rc = 0;

    if (start(&run, err) < 0) {
        close_output(&run);
        return -1;
    }
    /* A grandchild may hold the pipe open after the child has ended: the child's end counts. */
    while (rc == 0 && !has_ended(&run)) {
        rc = check(&run, err);
        if (rc < 0) {
            ask_to_end(&run);
        } else {
            wait_for_news(&run);
        }
        tick(&run);
    }
    *out_status = end_group(&run);
    return rc;
}

static void collect(void *arg, const char *line)
{
    struct strbuf *sb = arg;

    strbuf_add(sb, line);
    strbuf_addc(sb, '\n');
}

int child_output(const struct child_options *options, size_t size_max, char **out, int *out_status,
                 struct error *err)
{
    auto_strbuf sb;
    struct child_options collecting = *options;

    strbuf_init(&sb, size_max);
    collecting.line = collect;
    collecting.arg = &sb;
    if (child_run(&collecting, out_status, err) < 0)
        return -1;
    *out = xstrdup(sb.data); /* cut at size_max, which is enough for looking for words */
    return 0;
}
