/* sim [--seeds N] [--start S] [--jobs N] [--failures N] [--trace] [--break WHAT] [--list-breaks]
 *
 * Runs the seeds S .. S+N-1, each in a process of its own: it finds the same memory and the same
 * statics whatever ran before. Exit status 0: all invariants held; 1: one did not. */
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/job_store.h"
#include "common/workflow_state.h"
#include "tests/sim/world.h"

#define JOBS_MAX    64
#define SECONDS_MAX 120 /* of one seed; most take less than a tenth of a second */

struct options {
    uint64_t start;
    uint64_t seeds;
    size_t jobs;
    int failures; /* then a share is not run on */
    bool trace;
};

static const char *const break_names[] = {
    "nothing", "fencing", "early-lease", "write-deadline", "losses",   "cancel",    "twice",
    "records", "commit",  "next",        "reaper",         "claim",    "names",     "cron",
    "hold",    "depends", "deadline",    "window-end",     "run-lock", "run-pause", "group",
    "when"};

bool sim_break_parse(const char *name, enum sim_break *out)
{
    for (size_t i = 0; i < ARRAY_LEN(break_names); i++) {
        if (strcmp(break_names[i], name) == 0) {
            *out = (enum sim_break)i;
            return true;
        }
    }
    return false;
}

const char *sim_break_name(enum sim_break what)
{
    return (size_t)what < ARRAY_LEN(break_names) ? break_names[what] : NULL;
}

/* ---- what --break takes away from decisions of the product ---- */

struct job_decision __real_job_decide(const struct job_machine *row,
                                      const struct job_event_input *input);
struct job_decision __wrap_job_decide(const struct job_machine *row,
                                      const struct job_event_input *input);
struct job_decision __wrap_job_decide(const struct job_machine *row,
                                      const struct job_event_input *input)
{
    struct job_machine changed = *row;
    struct job_event_input other = *input;

    if (sim_break == BREAK_LOSSES)
        changed.losses_max = UINT32_MAX;
    if (sim_break == BREAK_EARLY_LEASE && input->event == JOB_EVENT_LEASE_LOST)
        other.now_ms += 60000;
    if (sim_break == BREAK_CANCEL && input->event == JOB_EVENT_LEASE_LOST) {
        changed.task_cancel = false;
        if (changed.job == JOB_CANCELLING)
            changed.job = JOB_RUNNING;
    }
    if (sim_break == BREAK_TWICE && input->event == JOB_EVENT_TASK_DONE && row->task == TASK_DONE)
        changed.task = TASK_FINISHING;
    return __real_job_decide(&changed, &other);
}

int __real_job_store_apply_all(struct db *db, const struct job_store_event *events, size_t count,
                               struct job_store_outcome *out, struct error *err);
int __wrap_job_store_apply_all(struct db *db, const struct job_store_event *events, size_t count,
                               struct job_store_outcome *out, struct error *err);
int __wrap_job_store_apply_all(struct db *db, const struct job_store_event *events, size_t count,
                               struct job_store_outcome *out, struct error *err)
{
    autofree struct job_store_event *others = xcalloc(count, sizeof *others);

    for (size_t i = 0; i < count; i++) {
        others[i] = events[i];
        if (sim_break == BREAK_FENCING) {
            others[i].expect_epoch = NULL;
            others[i].expect_token = NULL;
        }
    }
    return __real_job_store_apply_all(db, others, count, out, err);
}

int __wrap_job_store_apply(struct db *db, const struct job_store_event *event,
                           struct job_decision *out, struct error *err);
int __wrap_job_store_apply(struct db *db, const struct job_store_event *event,
                           struct job_decision *out, struct error *err)
{
    struct job_store_outcome outcome = {0};

    if (__wrap_job_store_apply_all(db, event, 1, &outcome, err) < 0)
        return -1;
    *out = outcome.decision;
    return 0;
}

void __real_workflow_decide(struct workflow_run_state *run, enum workflow_event event,
                            int64_t now_ms);
void __wrap_workflow_decide(struct workflow_run_state *run, enum workflow_event event,
                            int64_t now_ms);
void __wrap_workflow_decide(struct workflow_run_state *run, enum workflow_event event,
                            int64_t now_ms)
{
    bool paused = sim_break == BREAK_RUN_PAUSE && run->status == WORKFLOW_PAUSED &&
                  event == WORKFLOW_EVENT_LOOK;

    for (uint32_t i = 0; sim_break == BREAK_WHEN && i < run->step_count; i++)
        run->steps[i].when = WORKFLOW_WHEN_ALWAYS;
    if (paused)
        run->status = WORKFLOW_RUNNING;
    __real_workflow_decide(run, event, now_ms);
    if (paused && run->status == WORKFLOW_RUNNING)
        run->status = WORKFLOW_PAUSED;
}

/* ---- seeds ---- */

static void run_seed(uint64_t seed)
{
    sim_seed(seed);
    (void)alarm(SECONDS_MAX);
    world_start();
    sim_run(world_is_finished);
    check_end();
    if (sim_tracing)
        (void)printf("seed %" PRIu64 " fingerprint %016" PRIx64 " at %.3f s\n", seed,
                     sim_fingerprint(), (double)sim_now_us / 1e6);
}

/* In a child; its exit status, or 128 + signal. */
static int run_apart(uint64_t seed, bool trace)
{
    int status = 0;
    pid_t child;

    (void)fflush(NULL);
    child = fork();
    if (child == 0) {
        sim_tracing = trace;
        run_seed(seed);
        (void)fflush(NULL);
        _Exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        return 255;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Every jobs-th seed; the number of those that failed. */
static int run_share(const struct options *options, size_t share)
{
    int failed = 0;

    for (uint64_t i = share; i < options->seeds && failed < options->failures; i += options->jobs) {
        uint64_t seed = options->start + i;
        int status = run_apart(seed, options->trace);
        if (status == 0)
            continue;
        failed++;
        (void)fprintf(stderr,
                      "FAILED seed %" PRIu64 " (status %d); its trace: sim --start %" PRIu64
                      " --seeds 1 --trace%s%s\n",
                      seed, status, seed, sim_break == BREAK_NOTHING ? "" : " --break ",
                      sim_break == BREAK_NOTHING ? "" : sim_break_name(sim_break));
    }
    return failed;
}

static int run_all(const struct options *options)
{
    pid_t children[JOBS_MAX];
    int failed = 0;

    (void)fflush(NULL);
    for (size_t i = 0; i < options->jobs; i++) {
        children[i] = fork();
        if (children[i] == 0)
            _Exit(run_share(options, i));
    }
    for (size_t i = 0; i < options->jobs; i++) {
        int status = 0;
        if (children[i] < 0 || waitpid(children[i], &status, 0) < 0 || !WIFEXITED(status)) {
            failed++;
        } else {
            failed += WEXITSTATUS(status);
        }
    }
    return failed;
}

static void list_breaks(void)
{
    for (int i = 1; sim_break_name((enum sim_break)i) != NULL; i++)
        (void)printf("%s\n", sim_break_name((enum sim_break)i));
}

static int usage(void)
{
    (void)fprintf(stderr, "usage: sim [--seeds N] [--start S] [--jobs N] [--failures N] [--trace]"
                          " [--break WHAT] [--list-breaks]\n");
    return 64;
}

static int parse(int argc, char **argv, struct options *options)
{
    static const struct option flags[] = {
        {"seeds", required_argument, NULL, 'n'},    {"start", required_argument, NULL, 's'},
        {"jobs", required_argument, NULL, 'j'},     {"trace", no_argument, NULL, 't'},
        {"failures", required_argument, NULL, 'f'}, {"break", required_argument, NULL, 'b'},
        {"list-breaks", no_argument, NULL, 'l'},    {0},
    };
    int flag;

    while ((flag = getopt_long(argc, argv, "", flags, NULL)) != -1) {
        if (flag == 'n') {
            options->seeds = strtoull(optarg, NULL, 10);
        } else if (flag == 's') {
            options->start = strtoull(optarg, NULL, 10);
        } else if (flag == 'j') {
            options->jobs = (size_t)strtoull(optarg, NULL, 10);
        } else if (flag == 't') {
            options->trace = true;
        } else if (flag == 'f') {
            options->failures = (int)strtol(optarg, NULL, 10);
        } else if (flag == 'l') {
            list_breaks();
            return 1;
        } else if (flag != 'b' || !sim_break_parse(optarg, &sim_break)) {
            return -1;
        }
    }
    return optind == argc && options->jobs > 0 && options->jobs <= JOBS_MAX ? 0 : -1;
}

int main(int argc, char **argv)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct options options = {.start = 1,
                              .failures = 3,
                              .seeds = 1,
                              .jobs =
                                  processors < 1 || processors > JOBS_MAX ? 1 : (size_t)processors};
    int rc = parse(argc, argv, &options);
    int failed;

    if (rc != 0)
        return rc < 0 ? usage() : 0;
    failed = run_all(&options);
    (void)printf("%s %" PRIu64 " seeds from %" PRIu64 "\n", failed == 0 ? "ok" : "FAILED",
                 options.seeds, options.start);
    return failed == 0 ? 0 : 1;
}
