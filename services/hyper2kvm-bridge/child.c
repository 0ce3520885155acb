/* See child.h. */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "common/strbuf.h"

#define POLL_MS 200 /* how soon a stop is seen */
#define TICK_MS 1000

extern char **environ;

struct run {
    const struct child_options *options;
    pid_t pid;
    int fd;
    char line[CHILD_LINE_BYTES_MAX + 1];
    size_t line_length;
    int64_t last_output_ms;
};

static bool same_name(const char *a, const char *b)
{
    size_t n = strcspn(a, "=");

    return strncmp(a, b, n) == 0 && b[n] == '=';
}

/* Ours first, then what is inherited and not replaced. The strings stay where they are. */
static void make_env(const char *const *own, char **out)
{
    size_t count = 0;

    for (size_t i = 0; own != NULL && own[i] != NULL && count < CHILD_ENV_MAX - 1; i++)
        out[count++] = (char *)(uintptr_t)own[i];
    for (char **item = environ; *item != NULL && count < CHILD_ENV_MAX - 1; item++) {
        bool replaced = false;
        for (size_t i = 0; own != NULL && own[i] != NULL; i++)
            replaced = replaced || same_name(own[i], *item);
        if (!replaced)
            out[count++] = *item;
    }
    out[count] = NULL;
}

static int spawn(const struct child_options *options, int output, pid_t *out_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    char *env[CHILD_ENV_MAX];
    sigset_t none;
    int rc;

    make_env(options->env, env);
    (void)sigemptyset(&none);
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawnattr_init(&attributes);
    (void)posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    (void)posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
    /* An own session: children of the child stay in its group and end with it. Our signal mask is
     * the service's; the program gets a clean one. */
    (void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    (void)posix_spawnattr_setsigmask(&attributes, &none);
    rc = posix_spawnp(out_pid, options->argv[0], &actions, &attributes,
                      (char *const *)(uintptr_t)options->argv, env);
    (void)posix_spawnattr_destroy(&attributes);
    (void)posix_spawn_file_actions_destroy(&actions);
    return rc;
}

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

/* false at the end of the output. */
static bool read_some(struct run *run)
{
    struct pollfd p = {.fd = run->fd, .events = POLLIN};
    char buffer[8192];
    ssize_t n;

    if (poll(&p, 1, POLL_MS) <= 0)
        return true;
    n = read(run->fd, buffer, sizeof buffer);
    if (n > 0) {
        run->last_output_ms = clock_mono_ms();
        take(run, buffer, (size_t)n);
        return true;
    }
    return n < 0 && (errno == EINTR || errno == EAGAIN);
}

static bool has_ended(const struct run *run)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)run->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
}

static int reap(const struct run *run)
{
    int status = 0;

    while (waitpid(run->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The leader alone is not enough: an appliance below it would live on. */
static void end_group(struct run *run)
{
    int64_t until = clock_mono_ms() + CHILD_KILL_MS;

    (void)kill(-run->pid, SIGTERM);
    while (clock_mono_ms() < until && !has_ended(run))
        (void)read_some(run);
    (void)kill(-run->pid, SIGKILL);
    (void)reap(run);
}

static int check(const struct run *run, int64_t start_ms, struct error *err)
{
    const struct child_options *o = run->options;
    int64_t now = clock_mono_ms();

    if (o->stopped != NULL && atomic_load(o->stopped))
        return error_set(err, ERR_CANCELLED, "'%s' was stopped", o->argv[0]);
    if (now - start_ms > o->timeout_ms)
        return error_set(err, ERR_TIMEOUT, "'%s' did not end within %lld s and was stopped",
                         o->argv[0], (long long)(o->timeout_ms / 1000));
    if (o->silence_ms > 0 && now - run->last_output_ms > o->silence_ms)
        return error_set(err, ERR_TIMEOUT, "'%s' printed nothing for %lld s and was stopped",
                         o->argv[0], (long long)(o->silence_ms / 1000));
    return 0;
}

int child_run(const struct child_options *options, int *out_status, struct error *err)
{
    struct run run = {.options = options, .fd = -1};
    int64_t start = clock_mono_ms();
    int64_t tick = start;
    autoclose int reader = -1;
    int pipes[2];
    int rc;

    if (pipe2(pipes, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "pipe");
    reader = pipes[0];
    rc = spawn(options, pipes[1], &run.pid);
    (void)close(pipes[1]);
    if (rc == ENOENT)
        return error_set(err, ERR_NOT_FOUND, "program '%s' is not installed", options->argv[0]);
    if (rc != 0)
        return error_set_errno(err, rc, "start of '%s'", options->argv[0]);
    run.fd = reader;
    run.last_output_ms = start;
    /* A grandchild may hold the pipe open after the child has ended: the child's end counts. */
    while (read_some(&run) && !has_ended(&run)) {
        if (check(&run, start, err) < 0) {
            end_group(&run);
            return -1;
        }
        if (options->tick != NULL && clock_mono_ms() - tick >= TICK_MS) {
            tick = clock_mono_ms();
            options->tick(options->arg);
        }
    }
    while (!has_ended(&run)) { /* closed its output and runs on */
        if (check(&run, start, err) < 0) {
            end_group(&run);
            return -1;
        }
        clock_sleep_ms(POLL_MS);
    }
    (void)fcntl(run.fd, F_SETFL, O_NONBLOCK);
    for (ssize_t n = 1; n > 0;) {
        char buffer[8192];
        n = read(run.fd, buffer, sizeof buffer);
        if (n > 0)
            take(&run, buffer, (size_t)n);
    }
    end_line(&run);
    (void)kill(-run.pid, SIGKILL); /* what it left behind */
    *out_status = reap(&run);
    return 0;
}

static void collect(void *arg, const char *line)
{
    struct strbuf *sb = arg;

    strbuf_add(sb, line);
    strbuf_addc(sb, '\n');
}

int child_output(const char *const *argv, int64_t timeout_ms, size_t size_max, char **out,
                 int *out_status, struct error *err)
{
    auto_strbuf sb;
    struct child_options options = {
        .argv = argv, .timeout_ms = timeout_ms, .line = collect, .arg = &sb};

    strbuf_init(&sb, size_max);
    if (child_run(&options, out_status, err) < 0)
        return -1;
    *out = xstrdup(sb.data); /* cut at size_max, which is enough for looking for words */
    return 0;
}
