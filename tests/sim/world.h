/* What is around the product: disks and snapshots, users, and whatever goes wrong. world.c makes
 * it, tasks.c is what workers do, check.c judges. */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include <jansson.h>

#include "common/clock.h"
#include "common/worker.h"
#include "tests/sim/sim.h"

#define WORLD_TASKS_MAX 512
#define WORLD_PROCS_MAX 16
#define WORLD_JOBS_MAX  32
#define WORLD_VMS_MAX   5

/* The outside of one task: it outlives every process. */
struct world_task {
    char id[80];
    int64_t newest_epoch; /* that has written */
    int64_t renewed_us;   /* its lease */
    int64_t done_epoch;   /* its run() said that all is done */
    uint32_t chunks;      /* on the disk: what a journal would tell */
    bool snapshot;        /* at the source */
    bool marked;          /* export.json is there */
    bool poison;          /* no worker survives it */
    char claim[32];       /* name that its holder claimed; "" : none */
    int64_t claim_epoch;
};

struct world_job { /* what a user knows */
    char id[80];
    char key[32];
    bool sent;         /* it was tried at least once */
    bool acknowledged; /* the answer was: it is stored */
    bool cancel_acknowledged;
    bool poison;
};

/* What a seed is about besides jobs and what goes wrong. */
enum world_theme { THEME_JOBS, THEME_RULES, THEME_WORKFLOWS, THEME_POLICIES };

struct world {
    enum world_theme theme;
    struct sim_proc procs[WORLD_PROCS_MAX];
    size_t proc_count;
    struct world_task tasks[WORLD_TASKS_MAX];
    size_t task_count;
    struct world_job jobs[WORLD_JOBS_MAX];
    size_t job_count;
    int64_t lease_ms;
    uint32_t losses_max;
    uint32_t provider_limit;
    int64_t heal_us;             /* nothing goes wrong any more */
    int64_t calm_us;             /* and nobody is frozen any more; known from the healing on */
    int64_t calm_ms;             /* the same by the database's clock */
    int64_t back_ms_max;         /* how far the database's clock may go back at once */
    char vms[WORLD_VMS_MAX][32]; /* paths of those that a policy takes */
    size_t vm_count;
    int schedules_wanted; /* not made yet */
    int64_t leased_us;    /* the newest lease of a transfer */
    int64_t stops_us;     /* when that is looked at, after the healing; 0: not at all */
    bool held;            /* what was cancelled or paused then has been looked at */
    bool finished;
};
extern struct world world;

void world_start(void);
bool world_is_finished(void);
struct world_task *world_task(const char *id);

/* wishes.c: when a job may run. */
struct world_wishes {
    char deadline[CLOCK_RFC3339_SIZE]; /* "": none */
    json_t *depends_on, *windows;      /* NULL: none */
    const char *on_window_end;
};
void wishes_draw(struct world_wishes *out);

/* users_workflows.c */
struct db;
void workflows_draw(void);
void workflows_act(struct db *db, const char *actor);
/* Those that are wanted are started, and nothing is paused; false: not yet. */
bool workflows_settle(struct db *db, const char *actor);

/* service.c */
struct service *sim_service_new(struct sim_proc *proc);
void sim_terminate(struct sim_proc *proc); /* SIGTERM */

/* tasks.c: main functions of worker processes. */
void exporter_main(struct sim_proc *proc);
void bridge_main(struct sim_proc *proc);

/* check.c */
bool check_is_quiet(void); /* every job is final and nothing is to be done */
void check_stuck(void);    /* says what is not, and fails */
void check_stops(void);    /* what users stopped before the healing has stopped by now */
void check_end(void);
/* check_rules.c */
void check_windows(void); /* once all is well nothing is worked on outside of its windows */
void check_rules_end(void);
/* check_workflows.c */
bool check_workflows_are_over(void);
void check_workflows_end(void);

#endif
