/* Programs as children: output, environment, signals, and that nothing outlives its end. The
 * children are small scripts, for which sh and python3 are called by name. */
#include "tests/unit/common/unit.h"

#include <linux/close_range.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "services/hyper2kvm-bridge/child.h"

#define LINES_MAX  4096
#define TIMEOUT_MS 30000

struct seen {
    char *lines[LINES_MAX];
    size_t count;
    size_t ticks;
    pid_t pid;
    atomic_bool stopped;
    const char *stop_at; /* a line that makes us stop the child */
};

static void on_line(void *arg, const char *line)
{
    struct seen *seen = arg;

    if (seen->stop_at != NULL && strcmp(line, seen->stop_at) == 0)
        atomic_store(&seen->stopped, true);
    if (seen->count < LINES_MAX)
        seen->lines[seen->count++] = xstrdup(line);
}

static void on_tick(void *arg)
{
    ((struct seen *)arg)->ticks++;
}

static void on_start(void *arg, pid_t pid)
{
    ((struct seen *)arg)->pid = pid;
}

static void seen_release(struct seen *seen)
{
    for (size_t i = 0; i < seen->count; i++)
        free(seen->lines[i]);
}
#define auto_seen CLEANUP(seen_release) struct seen

static struct child_options options_of(struct seen *seen, const char *const *argv)
{
    return (struct child_options){
        .argv = argv,
        .stopped = &seen->stopped,
        .timeout_ms = TIMEOUT_MS,
        .started = on_start,
        .line = on_line,
        .tick = on_tick,
        .arg = seen,
    };
}

static int shell(struct seen *seen, const char *script, int *out_status, struct error *err)
{
    const char *const argv[] = {"sh", "-c", script, NULL};
    struct child_options options = options_of(seen, argv);

    return child_run(&options, out_status, err);
}

static bool has_line(const struct seen *seen, const char *line)
{
    for (size_t i = 0; i < seen->count; i++) {
        if (strcmp(seen->lines[i], line) == 0)
            return true;
    }
    return false;
}

static bool is_alive(pid_t pid)
{
    autofree char *path = xasprintf("/proc/%d/stat", (int)pid);
    char text[512] = "";
    FILE *f = fopen(path, "re");
    const char *p;

    if (f == NULL)
        return false;
    if (fgets(text, sizeof text, f) == NULL)
        text[0] = '\0';
    (void)fclose(f);
    p = strrchr(text, ')');
    return p != NULL && p[2] != 'Z' && p[2] != 'X';
}

/* ---- output ---- */

static void output_comes_line_by_line_from_both_streams(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_ok(
        shell(&seen, "echo one; echo two >&2; printf 'a\\rb\\n\\n'; printf last", &status, &err),
        err);
    assert_int_equal(status, 0);
    assert_int_equal(seen.count, 5);
    assert_string_equal(seen.lines[0], "one");
    assert_string_equal(seen.lines[1], "two");
    assert_string_equal(seen.lines[2], "a");
    assert_string_equal(seen.lines[3], "b");
    assert_string_equal(seen.lines[4], "last");
}

static void long_lines_are_split_and_nul_bytes_dropped(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_ok(shell(&seen, "printf '%4500s' x; printf 'a\\0b\\n'", &status, &err), err);
    assert_int_equal(seen.count, 3);
    assert_int_equal(strlen(seen.lines[0]), CHILD_LINE_BYTES_MAX);
    assert_int_equal(strlen(seen.lines[1]), CHILD_LINE_BYTES_MAX);
    assert_string_equal(seen.lines[2] + strlen(seen.lines[2]) - 3, "xab");
}

static void much_output_arrives_completely(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    /* more than a pipe holds, ended while we still read */
    assert_ok(shell(&seen,
                    "i=0; while [ $i -lt 4000 ]; do echo \"a line of some length, number "
                    "$i\"; i=$((i+1)); done",
                    &status, &err),
              err);
    assert_int_equal(seen.count, 4000);
    assert_string_equal(seen.lines[3999], "a line of some length, number 3999");
}

static void output_is_cut_at_its_limit(void **state)
{
    const char *const argv[] = {"sh", "-c", "echo 12345; echo 67890; exit 3", NULL};
    autofree char *text = NULL;
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_ok(child_output(&(struct child_options){.argv = argv, .timeout_ms = TIMEOUT_MS}, 8,
                           &text, &status, &err),
              err);
    assert_int_equal(status, 3);
    assert_true(strlen(text) <= 8 && strncmp(text, "12345\n", 6) == 0);
}

/* ---- how it ends ---- */

static void exit_codes_and_signals_are_told_apart(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_ok(shell(&seen, "exit 7", &status, &err), err);
    assert_int_equal(status, 7);
    assert_ok(shell(&seen, "kill -KILL $$", &status, &err), err);
    assert_int_equal(status, 128 + SIGKILL);
}

static void a_missing_program_is_not_found(void **state)
{
    const char *const argv[] = {"no-such-program-of-ours", NULL};
    const char *const path[] = {"/etc/passwd/no-such", NULL};
    auto_seen seen = {0};
    struct child_options options = options_of(&seen, argv);
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_fails(child_run(&options, &status, &err), err, ERR_NOT_FOUND, "not installed");
    options.argv = path;
    assert_fails(child_run(&options, &status, &err), err, ERR_NOT_FOUND, "not installed");
}

static void a_program_without_execute_permission_is_denied(void **state)
{
    auto_scratch *dir = scratch_make();
    autofree char *path = scratch_file(dir, "plain", "#!/bin/sh\n");
    const char *const argv[] = {path, NULL};
    auto_seen seen = {0};
    struct child_options options = options_of(&seen, argv);
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_fails(child_run(&options, &status, &err), err, ERR_DENIED, path);
}

static void silence_ends_it(void **state)
{
    const char *const argv[] = {"sh", "-c", "echo alive; exec sleep 60", NULL};
    auto_seen seen = {0};
    struct child_options options = options_of(&seen, argv);
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    options.silence_ms = 1500; /* a busy machine starts a shell late */
    assert_fails(child_run(&options, &status, &err), err, ERR_TIMEOUT, "printed nothing");
    assert_true(has_line(&seen, "alive"));
    assert_false(is_alive(seen.pid));
}

static void output_keeps_it_from_being_silent(void **state)
{
    const char *const argv[] = {"sh", "-c",
                                "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.3; done", NULL};
    auto_seen seen = {0};
    struct child_options options = options_of(&seen, argv);
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    options.silence_ms = 2500; /* less than it takes, and much more than a line takes */
    assert_ok(child_run(&options, &status, &err), err);
    assert_int_equal(seen.count, 9);
    assert_true(seen.ticks >= 1);
}

static void it_has_a_time_limit_even_when_it_prints(void **state)
{
    const char *const argv[] = {"sh", "-c", "while :; do echo x; sleep 0.05; done", NULL};
    auto_seen seen = {0};
    struct child_options options = options_of(&seen, argv);
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    options.timeout_ms = 400;
    assert_fails(child_run(&options, &status, &err), err, ERR_TIMEOUT, "did not end");
    assert_false(is_alive(seen.pid));
}

static void a_closed_output_is_no_end(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_ok(shell(&seen, "exec >&- 2>&-; sleep 1.3; exit 5", &status, &err), err);
    assert_int_equal(status, 5);
    assert_true(seen.ticks >= 1);
}

/* ---- the whole group ---- */

static pid_t pid_line(const struct seen *seen, const char *word)
{
    int pid = 0;

    for (size_t i = 0; i < seen->count; i++) {
        if (strncmp(seen->lines[i], word, strlen(word)) == 0)
            pid = (int)strtol(seen->lines[i] + strlen(word), NULL, 10);
    }
    assert_true(pid > 1);
    return pid;
}

static void a_stop_ends_grandchildren_too(void **state)
{
    auto_seen seen = {.stop_at = "ready"};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    /* the grandchild ignores SIGTERM, as an appliance that hangs does */
    assert_fails(shell(&seen,
                       "echo child $$; sh -c 'trap \"\" TERM; echo grandchild $$; echo ready; "
                       "while :; do sleep 1; done' & wait",
                       &status, &err),
                 err, ERR_CANCELLED, "stopped");
    assert_false(is_alive(pid_line(&seen, "child ")));
    assert_false(is_alive(pid_line(&seen, "grandchild ")));
}

static void a_stop_lets_the_child_tidy_up(void **state)
{
    auto_seen seen = {.stop_at = "ready"};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_fails(shell(&seen,
                       "trap 'echo tidy; exit 0' TERM; echo ready; while :; do sleep 0.05; "
                       "done",
                       &status, &err),
                 err, ERR_CANCELLED, "stopped");
    assert_true(has_line(&seen, "tidy"));
}

static void a_grandchild_that_holds_the_output_does_not_hold_us(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    int64_t start = clock_mono_ms();
    int status = -1;

    (void)state;
    assert_ok(shell(&seen, "sleep 60 & echo left $!; exit 0", &status, &err), err);
    assert_int_equal(status, 0);
    assert_true(clock_mono_ms() - start < 20000);
    assert_false(is_alive(pid_line(&seen, "left ")));
}

static void an_escaped_writer_does_not_hold_us_either(void **state)
{
    auto_seen seen = {0};
    auto_scratch *dir = scratch_make();
    autofree char *script = xasprintf(
        "setsid sh -c 'trap \"\" PIPE; echo left $$; : > %s/on; while :; do echo noise; done' & "
        "until [ -e %s/on ]; do sleep 0.05; done",
        dir, dir);
    struct error err = ERROR_NONE;
    int status = -1;
    pid_t left;

    (void)state;
    assert_ok(shell(&seen, script, &status, &err), err);
    left = pid_line(&seen, "left ");
    /* Out of our reach by its own wish; without the trap the closed pipe would end it. */
    assert_true(is_alive(left));
    (void)kill(left, SIGKILL);
}

/* ---- what it inherits ---- */

static void a_child_gets_clean_signals(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    sigset_t block;
    sigset_t old;
    int status = -1;

    (void)state;
    /* as in a service: common/service.h */
    (void)sigemptyset(&block);
    (void)sigaddset(&block, SIGTERM);
    (void)pthread_sigmask(SIG_BLOCK, &block, &old);
    (void)signal(SIGPIPE, SIG_IGN);
    assert_ok(shell(&seen, "grep -E '^Sig(Blk|Ign)' /proc/self/status; exec grep -c . /dev/null",
                    &status, &err),
              err);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    assert_true(has_line(&seen, "SigBlk:\t0000000000000000"));
    for (size_t i = 0; i < seen.count; i++) {
        if (strncmp(seen.lines[i], "SigIgn:", 7) == 0) {
            uint64_t ignored = strtoull(seen.lines[i] + 7, NULL, 16);
            assert_int_equal(ignored & (UINT64_C(1) << (SIGPIPE - 1)), 0);
            return;
        }
    }
    fail_msg("no SigIgn line");
}

static void a_child_has_no_descriptors_of_ours(void **state)
{
    auto_seen seen = {0};
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    /* what the test's own caller left open is not ours */
    (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    assert_ok(shell(&seen, "ls /proc/self/fd | tr '\\n' ' '; echo; readlink /proc/self/fd/0",
                    &status, &err),
              err);
    /* 3 is the directory that ls reads */
    assert_true(has_line(&seen, "0 1 2 3 "));
    assert_true(has_line(&seen, "/dev/null"));
}

static void the_environment_is_ours_with_replacements(void **state)
{
    static const char *const env[] = {"BRIDGE_A=new", "BRIDGE_B=b", NULL};
    static const char *const env_if[] = {"BRIDGE_C=default", "BRIDGE_D=default", NULL};
    const char *const argv[] = {"sh", "-c", "env | grep '^BRIDGE_' | sort", NULL};
    auto_seen seen = {0};
    struct child_options options = options_of(&seen, argv);
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    assert_int_equal(setenv("BRIDGE_A", "old", 1), 0);
    assert_int_equal(setenv("BRIDGE_C", "kept", 1), 0);
    assert_int_equal(setenv("BRIDGE_E", "inherited", 1), 0);
    options.env = env;
    options.env_if = env_if;
    assert_ok(child_run(&options, &status, &err), err);
    assert_int_equal(seen.count, 5);
    assert_string_equal(seen.lines[0], "BRIDGE_A=new");
    assert_string_equal(seen.lines[1], "BRIDGE_B=b");
    assert_string_equal(seen.lines[2], "BRIDGE_C=kept");
    assert_string_equal(seen.lines[3], "BRIDGE_D=default");
    assert_string_equal(seen.lines[4], "BRIDGE_E=inherited");
}

static void memory_can_be_limited(void **state)
{
    /* it is limited when it runs already */
    const char *const argv[] = {
        "sh", "-c",
        "until grep '^Max address space.* 536870912 ' /proc/self/limits; do "
        "sleep 0.05; done",
        NULL};
    auto_seen seen = {0};
    struct child_options options = options_of(&seen, argv);
    struct error err = ERROR_NONE;
    int status = -1;

    (void)state;
    options.memory_max = 512 * MIB;
    assert_ok(child_run(&options, &status, &err), err);
    assert_int_equal(seen.count, 1);
    assert_non_null(strstr(seen.lines[0], "536870912"));
}

/* ---- children of a bridge that is gone ---- */

/* The child of a process that was killed: runs on in its own session. */
static pid_t orphan(void)
{
    const char *const argv[] = {"sh", "-c", "sleep 60 & wait", NULL};
    int pipes[2];
    pid_t pid = -1;
    pid_t parent;

    assert_int_equal(pipe(pipes), 0);
    parent = fork();
    if (parent == 0) {
        pid_t child = fork();
        if (child == 0) {
            (void)setsid();
            execvp(argv[0], (char *const *)(uintptr_t)argv);
            _exit(127);
        }
        _exit(write(pipes[1], &child, sizeof child) == sizeof child ? 0 : 1);
    }
    assert_int_equal(read(pipes[0], &pid, sizeof pid), sizeof pid);
    assert_int_equal(waitpid(parent, NULL, 0), parent);
    (void)close(pipes[0]);
    (void)close(pipes[1]);
    return pid;
}

static void a_marked_child_is_ended_and_no_other(void **state)
{
    pid_t pid = orphan();
    autofree char *mark = NULL;
    autofree char *older = NULL;
    autofree char *elsewhere = NULL;

    (void)state;
    while (getpgid(pid) != pid) /* until it has its own session */
        clock_sleep_ms(5);
    mark = child_mark(pid);
    older = xasprintf("%s", mark);
    older[strlen(older) - 1] = (char)(older[strlen(older) - 1] == '1' ? '2' : '1');
    elsewhere = xasprintf("x%s", mark);
    child_end_marked(older);     /* the number was used again since */
    child_end_marked(elsewhere); /* another machine's process */
    child_end_marked("");
    child_end_marked("nonsense 1 1");
    assert_true(is_alive(pid));
    child_end_marked(mark);
    assert_false(is_alive(pid));
    child_end_marked(mark);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(output_comes_line_by_line_from_both_streams),
        cmocka_unit_test(long_lines_are_split_and_nul_bytes_dropped),
        cmocka_unit_test(much_output_arrives_completely),
        cmocka_unit_test(output_is_cut_at_its_limit),
        cmocka_unit_test(exit_codes_and_signals_are_told_apart),
        cmocka_unit_test(a_missing_program_is_not_found),
        cmocka_unit_test(a_program_without_execute_permission_is_denied),
        cmocka_unit_test(silence_ends_it),
        cmocka_unit_test(output_keeps_it_from_being_silent),
        cmocka_unit_test(it_has_a_time_limit_even_when_it_prints),
        cmocka_unit_test(a_closed_output_is_no_end),
        cmocka_unit_test(a_stop_ends_grandchildren_too),
        cmocka_unit_test(a_stop_lets_the_child_tidy_up),
        cmocka_unit_test(a_grandchild_that_holds_the_output_does_not_hold_us),
        cmocka_unit_test(an_escaped_writer_does_not_hold_us_either),
        cmocka_unit_test(a_child_gets_clean_signals),
        cmocka_unit_test(a_child_has_no_descriptors_of_ours),
        cmocka_unit_test(the_environment_is_ours_with_replacements),
        cmocka_unit_test(memory_can_be_limited),
        cmocka_unit_test(a_marked_child_is_ended_and_no_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
