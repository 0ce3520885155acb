/* The deterministic simulator: the real scheduler and the real worker loop, compiled as they are,
 * on a virtual clock. tests/sim/README.md says what is real and what is a model.
 *
 * Everything that could differ between two runs comes from here: threads are coroutines of one
 * thread (loop.c), time is a number, chance is a seeded generator, the bus (net.c) and PostgreSQL
 * (store.c, statements_*.c) are models that lose, double, delay and fail. */
#ifndef SIM_SIM_H
#define SIM_SIM_H

#include <stdio.h>

#include "common/base.h"

#define SIM_MS INT64_C(1000) /* the simulator counts microseconds */
#define SIM_S  (1000 * SIM_MS)

/* ---- chance ---- */

void sim_seed(uint64_t seed);
uint64_t sim_random(void);
/* [0, below) and [from, to]. */
uint64_t sim_below(uint64_t below);
int64_t sim_between(int64_t from, int64_t to);
/* True in so many of a million cases. */
bool sim_chance(uint32_t per_million);

/* ---- what goes wrong, and what is broken on purpose ---- */

struct sim_faults { /* per million, unless said otherwise */
    uint32_t message_lost;
    uint32_t message_doubled;
    uint32_t message_late; /* seconds instead of milliseconds */
    uint32_t statement_lost;
    uint32_t commit_unknown_done;
    uint32_t commit_unknown_lost;
    uint32_t database_slow;
};
extern struct sim_faults sim_faults; /* all 0 once everything is healed */

/* Switches of `--break`: each takes one protection away, and an invariant must notice. */
enum sim_break {
    BREAK_NOTHING,
    BREAK_FENCING,        /* epoch and token are not looked at */
    BREAK_EARLY_LEASE,    /* leases are taken back long before they end */
    BREAK_WRITE_DEADLINE, /* workers write without asking */
    BREAK_LOSSES,         /* a task that kills its workers is never given up */
    BREAK_CANCEL,         /* a cancelled task comes back when its lease is lost */
    BREAK_TWICE,          /* a repeated report counts again */
    BREAK_RECORDS,        /* records are acknowledged and forgotten */
    BREAK_COMMIT,         /* a commit is acknowledged and lost */
    BREAK_NEXT,           /* what waits behind a task is not released */
    BREAK_REAPER,         /* leases that ran out are not seen */
    BREAK_CLAIM,          /* two leaders choose tasks without locking them */
    BREAK_NAMES,          /* nobody asks whether a claimed name is another's */
    BREAK_CRON,           /* a schedule is not locked, its runs are not unique */
    BREAK_HOLD,           /* tasks that are held are handed out */
    BREAK_DEPENDS,        /* what a job depends on is not looked at */
    BREAK_DEADLINE,       /* nobody looks at deadlines */
    BREAK_WINDOW_END,     /* what should end with its window goes on */
    BREAK_RUN_LOCK,       /* a run of a workflow is not locked */
    BREAK_RUN_PAUSE,      /* a paused run goes on */
    BREAK_GROUP,          /* a policy's limit is not looked at */
    BREAK_WHEN,           /* steps run whatever became of those before them */
};
extern enum sim_break sim_break;
MUST_CHECK bool sim_break_parse(const char *name, enum sim_break *out);
const char *sim_break_name(enum sim_break what); /* NULL behind the last */

/* ---- processes and coroutines ---- */

struct sim_proc {
    char name[32];
    char instance[64]; /* of this incarnation */
    uint32_t incarnation;
    bool alive;
    bool stopping;           /* SIGTERM */
    int64_t frozen_until_us; /* SIGSTOP, or a machine that swaps */
    int64_t cut_until_us;    /* no message comes or goes */
    int64_t wall_offset_us;  /* of its wall clock */
    int64_t mono_offset_us;  /* its machine started at another time */
    void (*main)(struct sim_proc *proc);
    int number;
};

struct co;
extern int64_t sim_now_us;

void sim_proc_start(struct sim_proc *proc);
/* kill -9. Does not return when the caller is of that process. */
void sim_proc_kill(struct sim_proc *proc);
struct sim_proc *sim_current(void); /* NULL: the world itself */
bool sim_is_alive(const struct sim_proc *proc, uint32_t incarnation);

struct co *sim_spawn(struct sim_proc *proc, void *(*fn)(void *), void *arg);
/* Later, on the loop itself (must not block); proc: only if it lives still, and not while it is
 * frozen; NULL: always. */
void sim_after(struct sim_proc *proc, int64_t delay_us, void (*fn)(void *), void *arg);
/* Blocks the coroutine; true: woken by its key, false: it is until_us. */
bool sim_block(const void *key, int64_t until_us);
void sim_wake(const void *key, bool all);
void sim_sleep(int64_t us);
void sim_join(struct co *co);
/* Runs until fn says so or nothing is left to do. */
void sim_run(bool (*done)(void));

/* ---- outcome ---- */

void sim_trace(const char *format, ...) PRINTF_LIKE(1, 2);
extern bool sim_tracing;
uint64_t sim_fingerprint(void); /* over everything that happened, in order */
/* An invariant is broken: says so and ends the process with 1. */
_Noreturn void sim_fail(const char *format, ...) PRINTF_LIKE(1, 2);

/* ---- the models ---- */

void net_proc_died(const struct sim_proc *proc);

#endif
